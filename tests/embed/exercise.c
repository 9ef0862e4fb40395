/* Everything of streamssm.h, for valgrind and the sanitizers: exercise MODEL RUNTIME. Says what went wrong,
 * else "ok". The model takes float32 items. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <streamssm.h>
#include <string.h>

#define ITEMS 8000
#define EXPECT(wanted, call)                                                                         \
  do {                                                                                               \
    const streamssm_status seen = (call);                                                            \
    if (seen != (wanted)) stop(__LINE__, #call, streamssm_status_name(seen));                        \
    if (seen != STREAMSSM_OK && streamssm_message()[0] == '\0') stop(__LINE__, #call, "no message"); \
  } while (0)
#define TRUE(condition)                                        \
  do {                                                         \
    if (!(condition)) stop(__LINE__, #condition, "is not so"); \
  } while (0)

static void stop(int line, const char *what, const char *why) {
  printf("line %d: %s: %s (%s)\n", line, what, why, streamssm_message());
  exit(1);
}

/* The same numbers on every machine. */
static uint32_t random_next(uint32_t *state) { return *state = *state * 1664525u + 1013904223u; }
static float random_sample(uint32_t *state) {
  return (float)(int32_t)random_next(state) / 2147483648.0f * 0.3f;
}

typedef struct {
  streamssm_model *model;
  const float *items;
  size_t count, width, room, outputs;
  int64_t block;
} Input;

typedef struct {
  streamssm_frames frames[8];
} Result;

static Result blank(const Input *in) {
  Result result;
  const streamssm_info *info = streamssm_model_info(in->model);
  for (size_t i = 0; i < in->outputs; ++i) {
    result.frames[i].data = calloc(in->room * info->outputs[i].width + 1, sizeof(float));
    result.frames[i].room = in->room;
    result.frames[i].count = 0;
  }
  return result;
}

static void discard(const Input *in, Result *result) {
  for (size_t i = 0; i < in->outputs; ++i) free(result->frames[i].data);
}

/* Where the next frames go. */
static void behind(const Input *in, const Result *all, const size_t *done, streamssm_frames *next) {
  const streamssm_info *info = streamssm_model_info(in->model);
  for (size_t i = 0; i < in->outputs; ++i) {
    next[i].data = all->frames[i].data + done[i] * info->outputs[i].width;
    next[i].room = all->frames[i].room - done[i];
  }
}

/* Push everything in random pieces, through snapshots and forks now and then, and flush. */
static void run_split(const Input *in, uint32_t seed, Result *all) {
  streamssm_stream_options options = {sizeof options, in->block, 0};
  streamssm_stream *stream, *twin;
  streamssm_frames next[8];
  size_t done[8] = {0}, at = 0;
  EXPECT(STREAMSSM_OK, streamssm_stream_open(in->model, &options, &stream));
  while (at < in->count) {
    size_t piece = random_next(&seed) % 5 == 0 ? random_next(&seed) % 2000 : random_next(&seed) % 300;
    if (piece > in->count - at) piece = in->count - at;
    behind(in, all, done, next);
    size_t expected = streamssm_frames_of_push(stream, piece, 0);
    EXPECT(STREAMSSM_OK, streamssm_push(stream, in->items + at * in->width, piece, next));
    TRUE(expected == next[0].count);
    for (size_t i = 0; i < in->outputs; ++i) done[i] += next[i].count;
    at += piece;
    TRUE(streamssm_position(stream) == (int64_t)at);
    switch (random_next(&seed) % 6) {
      case 0: {
        size_t bytes = 0, again = 0;
        EXPECT(STREAMSSM_ERROR_ROOM, streamssm_save(stream, NULL, 0, &bytes));
        char *memory = malloc(bytes);
        EXPECT(STREAMSSM_OK, streamssm_save(stream, memory, bytes, &again));
        TRUE(bytes == again);
        EXPECT(STREAMSSM_ERROR_SNAPSHOT, streamssm_restore(stream, memory, bytes - 1));
        EXPECT(STREAMSSM_OK, streamssm_reset(stream));
        EXPECT(STREAMSSM_OK, streamssm_restore(stream, memory, bytes));
        streamssm_stream_close(stream);
        EXPECT(STREAMSSM_OK, streamssm_resume(in->model, memory, bytes, NULL, &stream));
        free(memory);
        break;
      }
      case 1:
        EXPECT(STREAMSSM_OK, streamssm_fork(stream, &twin));
        streamssm_stream_close(stream);
        stream = twin;
        break;
      default: break;
    }
  }
  behind(in, all, done, next);
  size_t expected = streamssm_frames_of_flush(stream, 0);
  EXPECT(STREAMSSM_OK, streamssm_flush(stream, next));
  TRUE(expected == next[0].count && streamssm_ended(stream) == 1);
  for (size_t i = 0; i < in->outputs; ++i) all->frames[i].count = done[i] + next[i].count;
  EXPECT(STREAMSSM_ERROR_ENDED, streamssm_push(stream, in->items, 1, next));
  streamssm_stream_close(stream);
}

static void compare(const Input *in, const Result *a, const Result *b) {
  const streamssm_info *info = streamssm_model_info(in->model);
  for (size_t i = 0; i < in->outputs; ++i) {
    TRUE(a->frames[i].count == b->frames[i].count);
    const size_t bytes = a->frames[i].count * info->outputs[i].width * sizeof(float);
    TRUE(memcmp(a->frames[i].data, b->frames[i].data, bytes) == 0);
  }
}

static void splits(const Input *in) {
  Result first = blank(in);
  run_split(in, 1, &first);
  for (uint32_t seed = 2; seed < 5; ++seed) {
    Result other = blank(in);
    run_split(in, seed, &other);
    compare(in, &first, &other);
    discard(in, &other);
  }
  discard(in, &first);
}

static void *one_thread(void *in) {
  splits(in);
  return NULL;
}

/* Two threads, two streams, one model. */
static void threads(Input *in) {
  pthread_t two[2];
  for (int i = 0; i < 2; ++i) TRUE(pthread_create(&two[i], NULL, one_thread, in) == 0);
  for (int i = 0; i < 2; ++i) TRUE(pthread_join(two[i], NULL) == 0);
}

typedef struct {
  streamssm_pool *pool;
  const Input *in;
  size_t slots[3];
  atomic_int done;
} Feed;

/* Pushes while another thread steps. */
static void *feed(void *raw) {
  Feed *feed = raw;
  for (size_t at = 0; at < feed->in->count; at += 100)
    for (size_t i = 0; i < 3; ++i) {
      const size_t left = feed->in->count - at, piece = left < 100 ? left : 100;
      streamssm_status status;
      do
        status =
            streamssm_pool_push(feed->pool, feed->slots[i], feed->in->items + at * feed->in->width, piece);
      while (status == STREAMSSM_ERROR_FULL);
      if (status != STREAMSSM_OK) stop(__LINE__, "push to the pool", streamssm_message());
    }
  atomic_store(&feed->done, 1);
  return NULL;
}

static void pool(const Input *in) {
  streamssm_pool_options options = {sizeof options, in->block, 4 * in->block, 0};
  const streamssm_result *results;
  size_t count, bytes, total[3] = {0}, open = 3, extra;
  int last;
  Feed job;
  pthread_t thread;
  job.in = in;
  atomic_init(&job.done, 0);
  EXPECT(STREAMSSM_OK, streamssm_pool_open(in->model, 4, &options, &job.pool));
  for (int i = 0; i < 3; ++i) EXPECT(STREAMSSM_OK, streamssm_pool_join(job.pool, &job.slots[i]));
  EXPECT(STREAMSSM_OK, streamssm_pool_join(job.pool, &extra));
  EXPECT(STREAMSSM_ERROR_FULL, streamssm_pool_join(job.pool, &bytes));
  EXPECT(STREAMSSM_OK, streamssm_pool_leave(job.pool, extra));
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_pool_push(job.pool, extra, in->items, 1));
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_pool_push(job.pool, 99, in->items, 1));
  TRUE(streamssm_pool_waiting(job.pool, 99) == -1);
  TRUE(pthread_create(&thread, NULL, feed, &job) == 0);
  do {
    last = atomic_load(&job.done); /* before the look: what was pushed before the end is there now */
    EXPECT(STREAMSSM_OK, streamssm_pool_step(job.pool, &results, &count));
    for (size_t i = 0; i < count; ++i) total[results[i].slot] += results[i].outputs[0].count;
  } while (!last || streamssm_pool_ready(job.pool) > 0);
  TRUE(total[0] > 0 && total[0] == total[1] && total[0] == total[2]);
  TRUE(pthread_join(thread, NULL) == 0);
  EXPECT(STREAMSSM_ERROR_ROOM, streamssm_pool_save(job.pool, job.slots[1], NULL, 0, &bytes));
  char *memory = malloc(bytes);
  EXPECT(STREAMSSM_OK, streamssm_pool_save(job.pool, job.slots[1], memory, bytes, &bytes));
  EXPECT(STREAMSSM_OK, streamssm_pool_resume(job.pool, memory, bytes, &extra));
  EXPECT(STREAMSSM_ERROR_SNAPSHOT, streamssm_pool_resume(job.pool, memory, bytes / 2, &bytes));
  EXPECT(STREAMSSM_OK, streamssm_pool_reset(job.pool, extra));
  free(memory);
  for (int i = 0; i < 3; ++i) EXPECT(STREAMSSM_OK, streamssm_pool_flush(job.pool, job.slots[i]));
  while (open > 0) {
    EXPECT(STREAMSSM_OK, streamssm_pool_step(job.pool, &results, &count));
    for (size_t i = 0; i < count; ++i) open -= (size_t)results[i].ended;
  }
  streamssm_pool_close(job.pool);
}

static void bad_input(const Input *in) {
  streamssm_stream *stream = NULL;
  streamssm_model *model = NULL;
  streamssm_pool *pool = NULL;
  streamssm_frames frames[8];
  size_t bytes;
  Result result = blank(in);
  memcpy(frames, result.frames, sizeof frames);
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_open(NULL, NULL, &model));
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_open("x", NULL, NULL));
  EXPECT(STREAMSSM_ERROR_FILE, streamssm_open("/nonexistent/model.onnx", NULL, &model));
  EXPECT(STREAMSSM_ERROR_FILE, streamssm_open("/", NULL, &model));
  EXPECT(STREAMSSM_ERROR_FILE, streamssm_open_memory("PK\3\4", 4, NULL, &model));
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_open_memory(NULL, 4, NULL, &model));
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_stream_open(NULL, NULL, &stream));
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_stream_open(in->model, NULL, NULL));
  streamssm_stream_options options = {sizeof options, in->block + 1, 0};
  EXPECT(streamssm_model_info(in->model)->hop > 1 ? STREAMSSM_ERROR_ARGUMENT : STREAMSSM_OK,
         streamssm_stream_open(in->model, &options, &stream));
  streamssm_stream_close(stream);
  options.block = -1;
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_stream_open(in->model, &options, &stream));
  options.size = 3;
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_stream_open(in->model, &options, &stream));
  EXPECT(STREAMSSM_OK, streamssm_stream_open(in->model, NULL, &stream));
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_push(NULL, in->items, 1, frames));
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_push(stream, NULL, 1, frames));
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_push(stream, in->items, 1, NULL));
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_push(stream, in->items, (size_t)-1, frames));
  EXPECT(STREAMSSM_OK, streamssm_push(stream, NULL, 0, frames));
  float *bad = malloc(4 * in->width * sizeof *bad);
  memset(bad, 0, 4 * in->width * sizeof *bad);
  bad[3 * in->width] = (float)(1e300 * 1e300);
  EXPECT(STREAMSSM_ERROR_INPUT, streamssm_push(stream, bad, 4, frames));
  TRUE(streamssm_position(stream) == 0 && streamssm_pending(stream) == 0);
  free(bad);
  const size_t many = (size_t)in->block * 5;
  if (many <= in->count) {
    frames[0].room = 0;
    EXPECT(STREAMSSM_ERROR_ROOM, streamssm_push(stream, in->items, many, frames));
    TRUE(frames[0].count == streamssm_frames_of_push(stream, many, 0) && streamssm_position(stream) == 0);
    frames[0].data = NULL; /* not wanted */
    EXPECT(STREAMSSM_OK, streamssm_push(stream, in->items, many, frames));
  }
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_save(stream, NULL, 0, NULL));
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_save(NULL, NULL, 0, &bytes));
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_restore(stream, NULL, 100));
  EXPECT(STREAMSSM_ERROR_SNAPSHOT, streamssm_restore(stream, "12345678{}", 10));
  EXPECT(STREAMSSM_ERROR_SNAPSHOT, streamssm_restore(stream, "", 0));
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_pool_open(in->model, 0, NULL, &pool));
  EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_pool_open(in->model, (size_t)-1, NULL, &pool));
  TRUE(streamssm_frames_of_push(stream, 1, 99) == 0 && streamssm_frames_of_push(NULL, 1, 0) == 0);
  TRUE(streamssm_position(NULL) == -1 && streamssm_model_info(NULL) == NULL);
#if defined(STREAMSSM_DEBUG)
  streamssm_stream *gone = stream;
  streamssm_stream_close(stream);
  EXPECT(STREAMSSM_ERROR_CLOSED, streamssm_push(gone, in->items, 1, frames));
  streamssm_stream_close(gone);
#else
  streamssm_stream_close(stream);
#endif
  streamssm_stream_close(NULL);
  streamssm_close(NULL);
  discard(in, &result);
}

static void detector(const Input *in) {
  const streamssm_info *info = streamssm_model_info(in->model);
  streamssm_detector *detector;
  streamssm_event events[4];
  size_t found;
  if (info->event_label == NULL) {
    EXPECT(STREAMSSM_ERROR_ARGUMENT, streamssm_detector_open(in->model, &detector));
    return;
  }
  float high[400], low[400];
  for (int i = 0; i < 400; ++i) high[i] = 0.95f, low[i] = 0.01f;
  EXPECT(STREAMSSM_OK, streamssm_detector_open(in->model, &detector));
  const size_t count = 400 / info->outputs[info->event_output].width;
  EXPECT(STREAMSSM_ERROR_ROOM, streamssm_detect(detector, high, count, NULL, 0, &found));
  TRUE(found == 1);
  EXPECT(STREAMSSM_OK, streamssm_detect(detector, high, count, events, 4, &found));
  TRUE(found == 1 && events[0].start && events[0].index == 0);
  EXPECT(STREAMSSM_OK, streamssm_detect(detector, low, count, events, 4, &found));
  TRUE(found == 1 && !events[0].start && events[0].index == (int64_t)count);
  EXPECT(STREAMSSM_OK, streamssm_detector_end(detector, events, &found));
  TRUE(found == 0);
  streamssm_detector_close(detector);
}

static void quiet(void *user, int level, const char *text) { (void)user, (void)level, (void)text; }

int main(int argc, char **argv) {
  streamssm_options options = {sizeof options, argc > 2 ? argv[2] : NULL, STREAMSSM_KERNELS_FUSED};
  streamssm_options missing = {sizeof missing, "/nonexistent/libonnxruntime.so", 0};
  Input in = {0};
  uint32_t seed = 7;
  if (argc < 2) return 2;
  streamssm_set_logger(quiet, NULL);
  TRUE(streamssm_abi() == STREAMSSM_ABI && streamssm_version()[0] != '\0');
  EXPECT(STREAMSSM_ERROR_RUNTIME, streamssm_open(argv[1], &missing, &in.model));
  TRUE(in.model == NULL);
  EXPECT(STREAMSSM_OK, streamssm_open(argv[1], &options, &in.model));
  const streamssm_info *info = streamssm_model_info(in.model);
  TRUE(info->type == STREAMSSM_FLOAT32 && info->output_count <= 8);
  in.width = info->width, in.outputs = info->output_count, in.block = info->block, in.count = ITEMS + 13;
  in.room = in.count * (size_t)(info->outputs[0].up / info->outputs[0].down + 1) + 64;
  float *items = malloc(in.count * in.width * sizeof *items);
  for (size_t i = 0; i < in.count * in.width; ++i) items[i] = random_sample(&seed);
  in.items = items;
  bad_input(&in);
  detector(&in);
  splits(&in);
  threads(&in);
  pool(&in);
  streamssm_close(in.model);
  free(items);
  puts("ok");
  return 0;
}
