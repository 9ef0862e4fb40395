/* Preloaded: counts the allocations that happen between embed_hook_start() and embed_hook_stop(), by the
 * module that asked for them. Callers in the C and C++ libraries are passed over: whoever called those
 * counts. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <execinfo.h>
#include <stdio.h>
#include <string.h>

#define MOST_FRAMES 24
#define MOST_MODULES 16

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static __thread int counting, inside;
static struct {
  const char *name;
  long count;
} modules[MOST_MODULES];

static int is_library(const char *path) {
  const char *name = strrchr(path, '/');
  name = name ? name + 1 : path;
  return !strncmp(name, "libc.so", 7) || !strncmp(name, "libstdc++", 9) ||
         !strncmp(name, "libembed_alloc_hook", 19);
}

static void count_one(void) {
  void *frames[MOST_FRAMES];
  inside = 1;
  const int depth = backtrace(frames, MOST_FRAMES);
  const char *name = "unknown";
  for (int i = 0; i < depth; ++i) {
    Dl_info info;
    if (!dladdr(frames[i], &info) || is_library(info.dli_fname)) continue;
    name = info.dli_fname;
    break;
  }
  for (int i = 0; i < MOST_MODULES; ++i) {
    if (modules[i].name && strcmp(modules[i].name, name)) continue;
    modules[i].name = name;
    ++modules[i].count;
    break;
  }
  inside = 0;
}

static void note(void) {
  if (counting && !inside) count_one();
}

void embed_hook_start(void) {
  void *frames[2];
  backtrace(frames, 2); /* the first call allocates */
  memset(modules, 0, sizeof modules);
  counting = 1;
}

void embed_hook_stop(void) {
  counting = 0;
  for (int i = 0; i < MOST_MODULES && modules[i].name; ++i)
    printf("%ld %s\n", modules[i].count, modules[i].name);
}

void *malloc(size_t size) { return note(), __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return note(), __libc_calloc(count, size); }
void *realloc(void *memory, size_t size) { return note(), __libc_realloc(memory, size); }
void *memalign(size_t alignment, size_t size) { return note(), __libc_memalign(alignment, size); }
void *aligned_alloc(size_t alignment, size_t size) { return note(), __libc_memalign(alignment, size); }
int posix_memalign(void **memory, size_t alignment, size_t size) {
  note();
  *memory = __libc_memalign(alignment, size);
  return *memory == NULL ? 12 : 0;
}
