// Times of the C library: measure MODEL RUNTIME PUSHES. Prints JSON: from the start of the process to the
// first result, and what a push of one block takes beyond the bare call of ONNX Runtime, which is made beside
// it in turns.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

#include "../../kernels/embed/lane.h"
#include "../../kernels/embed/protobuf.h"

using namespace streamssm::embed;
using Clock = std::chrono::steady_clock;

static double microseconds(Clock::duration time) {
  return std::chrono::duration<double, std::micro>(time).count();
}

static double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + int64_t(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// Seconds since the process was started.
static double age() {
  std::FILE* file = std::fopen("/proc/self/stat", "r");
  char text[1024] = "";
  if (file == nullptr || std::fgets(text, sizeof text, file) == nullptr) return -1;
  std::fclose(file);
  const char* at = std::strrchr(text, ')');
  for (int field = 2; at != nullptr && field < 22; ++field) at = std::strchr(at + 1, ' ');
  struct timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  const double started = at == nullptr ? 0 : double(std::atoll(at + 1)) / 100;
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec) - started;
}

static int failed() {
  std::fprintf(stderr, "%s\n", streamssm_message());
  return 1;
}

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  const Clock::time_point began = Clock::now();
  streamssm_options options = {sizeof options, argv[2], STREAMSSM_KERNELS_FUSED};
  streamssm_model* model;
  streamssm_stream* stream;
  if (streamssm_open(argv[1], &options, &model)) return failed();
  const double opened = microseconds(Clock::now() - began);
  if (streamssm_stream_open(model, nullptr, &stream)) return failed();
  const streamssm_info& info = *streamssm_model_info(model);
  std::vector<float> items(size_t(info.block) * info.width, 0.01f);
  std::vector<float> memory(size_t(info.block + 64) * info.outputs[0].width * size_t(info.outputs[0].up));
  streamssm_frames out = {memory.data(), memory.size() / info.outputs[0].width, 0};
  if (streamssm_push(stream, items.data(), size_t(info.block), &out)) return failed();
  const double first = microseconds(Clock::now() - began), since_start = age() * 1e6;

  // the bare call: the same graph in a lane of its own, its buffers filled once
  const Model inner(read_model_file(argv[1]), argv[2], STREAMSSM_KERNELS_FUSED);
  Lane lane(inner, info.block, 1);
  std::memcpy(lane.x(), items.data(), items.size() * 4);
  std::vector<double> bare, pushed, difference;
  for (int i = 0; i < std::atoi(argv[3]); ++i) {
    const Clock::time_point a = Clock::now();
    lane.step();
    const Clock::time_point b = Clock::now();
    if (streamssm_push(stream, items.data(), size_t(info.block), &out)) return failed();
    const Clock::time_point c = Clock::now();
    bare.push_back(microseconds(b - a)), pushed.push_back(microseconds(c - b));
    difference.push_back(pushed.back() - bare.back());
  }
  std::printf(
      "{\"open_ms\": %.2f, \"first_result_ms\": %.2f, \"process_start_to_first_result_ms\": %.1f, "
      "\"bare_us\": %.2f, \"push_us\": %.2f, \"overhead_us\": %.2f}\n",
      opened / 1e3, first / 1e3, since_start / 1e3, median(bare), median(pushed), median(difference));
  streamssm_stream_close(stream), streamssm_close(model);
}
