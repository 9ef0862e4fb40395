/* Speech segments of raw samples, as they become known:
 *   ffmpeg -v error -i talk.mp4 -f s16le -ar 16000 -ac 1 - | vad_segments vad.onnx [libonnxruntime.so.1] */
#include <stdio.h>
#include <streamssm.h>

static void print(const streamssm_event *events, size_t count, const char *label) {
  for (const streamssm_event *e = events; e < events + count; ++e)
    printf("{\"event\":\"%s\",\"label\":\"%s\",\"time\":%.10g,\"index\":%lld%s}\n",
           e->start ? "start" : "end", label, e->time, (long long)e->index, e->cut ? ",\"cut\":true" : "");
  fflush(stdout);
}

static int run(const char *path, const char *runtime) {
  streamssm_options options = {sizeof options, runtime, STREAMSSM_KERNELS_FUSED};
  streamssm_model *model;
  streamssm_stream *stream;
  streamssm_detector *detector;
  if (streamssm_open(path, &options, &model) || streamssm_stream_open(model, NULL, &stream)) return 1;
  if (streamssm_detector_open(model, &detector)) return 1;
  const char *label = streamssm_model_info(model)->event_label;
  float samples[1600], memory[16];
  int16_t raw[1600];
  streamssm_frames speech = {memory, 16, 0};
  streamssm_event events[16];
  size_t count, found;
  do {
    count = fread(raw, sizeof *raw, 1600, stdin);
    for (size_t i = 0; i < count; ++i) samples[i] = raw[i] / 32768.0f;
    if (count > 0 ? streamssm_push(stream, samples, count, &speech) : streamssm_flush(stream, &speech))
      return 1;
    if (streamssm_detect(detector, speech.data, speech.count, events, 16, &found)) return 1;
    print(events, found, label);
  } while (count > 0);
  if (streamssm_detector_end(detector, events, &found)) return 1;
  print(events, found, label);
  streamssm_detector_close(detector), streamssm_stream_close(stream), streamssm_close(model);
  return 0;
}

int main(int argc, char **argv) {
  const int failed = run(argc > 1 ? argv[1] : "vad.onnx", argc > 2 ? argv[2] : NULL);
  if (failed) fprintf(stderr, "%s\n", streamssm_message());
  return failed;
}
