/* Pushes of any length between the marks of alloc_hook.c: allocations MODEL RUNTIME [KERNELS]. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <streamssm.h>

static int failed(void) {
  fprintf(stderr, "%s\n", streamssm_message());
  return 1;
}

int main(int argc, char **argv) {
  void (*start)(void) = (void (*)(void))dlsym(RTLD_DEFAULT, "embed_hook_start");
  void (*stop)(void) = (void (*)(void))dlsym(RTLD_DEFAULT, "embed_hook_stop");
  if (argc < 3 || start == NULL || stop == NULL) return 2;
  streamssm_options options = {sizeof options, argv[2], argc > 3 ? atoi(argv[3]) : 0};
  streamssm_model *model;
  streamssm_stream *stream;
  if (streamssm_open(argv[1], &options, &model)) return failed();
  if (streamssm_stream_open(model, NULL, &stream)) return failed();
  const streamssm_info *info = streamssm_model_info(model);
  const size_t most = 10 * (size_t)info->block;
  float *items = calloc(most * info->width, sizeof *items);
  streamssm_frames outputs[8];
  for (size_t i = 0; i < info->output_count && i < 8; ++i) {
    outputs[i].room = most * (size_t)(info->outputs[i].up / info->outputs[i].down + 1) + 64;
    outputs[i].data = malloc(outputs[i].room * info->outputs[i].width * sizeof(float));
  }
  /* also the first ones */
  start();
  for (size_t i = 0; i < 1000; ++i)
    if (streamssm_push(stream, items, i * 37 % most, outputs)) return failed();
  stop();
  streamssm_stream_close(stream), streamssm_close(model);
  return 0;
}
