/* A process that forks (fork(2)) with a model and streams open: after_fork MODEL RUNTIME. The child goes on
 * with its copies, opens the model once more and closes all; the parent's stream is as it was. */
#include <stdio.h>
#include <streamssm.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define ITEMS 4000
#define ROOM 40

static streamssm_options options = {sizeof options, NULL, STREAMSSM_KERNELS_FUSED};
static float items[ITEMS], wanted[ROOM], seen[ROOM];

/* 0: the stream gives the frames that are wanted */
static int differs(streamssm_stream *stream) {
  streamssm_frames frames = {seen, ROOM, 0};
  return streamssm_push(stream, items, ITEMS, &frames) != STREAMSSM_OK || frames.count == 0 ||
         memcmp(seen, wanted, frames.count * sizeof *seen) != 0;
}

static int child(const char *path, streamssm_model *model, streamssm_stream *stream) {
  streamssm_model *another;
  streamssm_stream *second;
  alarm(60); /* a lock that nobody opens any more */
  if (differs(stream)) return 1;
  if (streamssm_open(path, &options, &another) || streamssm_stream_open(another, NULL, &second)) return 2;
  if (differs(second)) return 3;
  streamssm_close(another), streamssm_stream_close(second);
  streamssm_stream_close(stream), streamssm_close(model);
  return 0;
}

int main(int argc, char **argv) {
  streamssm_model *model;
  streamssm_stream *stream, *twin;
  streamssm_frames frames = {wanted, ROOM, 0};
  int status = 0;
  if (argc < 3) return 10;
  options.runtime = argv[2];
  for (int i = 0; i < ITEMS; ++i) items[i] = (float)(i * 7919 % 1000) / 1000 - 0.5f;
  if (streamssm_open(argv[1], &options, &model) || streamssm_stream_open(model, NULL, &stream)) return 11;
  if (streamssm_fork(stream, &twin) || streamssm_push(twin, items, ITEMS, &frames)) return 12;
  const pid_t one = fork();
  if (one == 0) return child(argv[1], model, stream);
  if (one < 0 || waitpid(one, &status, 0) != one || status != 0) return 13;
  if (differs(stream)) return 14;
  streamssm_close(model), streamssm_stream_close(twin), streamssm_stream_close(stream);
  puts("ok");
  return 0;
}
