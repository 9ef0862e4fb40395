// A model behind a ring buffer: an audio thread delivers samples, another one runs the model.
//   ring_buffer vad.onnx [libonnxruntime.so.1] < samples.s16
//
// The audio thread, here a reader of standard input, takes no lock and allocates nothing. Between the threads
// are two counters, each written by one of them.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <streamssm.hpp>
#include <thread>
#include <vector>

namespace {

// Samples from one thread to one other.
class Ring {
 public:
  explicit Ring(size_t capacity) : samples_(capacity) {}

  // For the audio thread: takes all of them, or none and false.
  bool put(const float* samples, size_t count) {
    const size_t written = written_.load(std::memory_order_relaxed);
    if (samples_.size() - (written - read_.load(std::memory_order_acquire)) < count) return false;
    for (size_t i = 0; i < count; ++i) samples_[(written + i) % samples_.size()] = samples[i];
    written_.store(written + count, std::memory_order_release);
    return true;
  }

  // For the other one: up to `room` samples.
  size_t take(float* samples, size_t room) {
    const size_t read = read_.load(std::memory_order_relaxed);
    const size_t count = std::min(room, written_.load(std::memory_order_acquire) - read);
    for (size_t i = 0; i < count; ++i) samples[i] = samples_[(read + i) % samples_.size()];
    read_.store(read + count, std::memory_order_release);
    return count;
  }

 private:
  std::vector<float> samples_;
  std::atomic<size_t> written_{0}, read_{0};
};

void print(const std::vector<streamssm_event>& events, const char* label) {
  for (const streamssm_event& event : events)
    std::printf("{\"event\":\"%s\",\"label\":\"%s\",\"time\":%.10g,\"index\":%lld%s}\n",
                event.start ? "start" : "end", label, event.time, static_cast<long long>(event.index),
                event.cut ? ",\"cut\":true" : "");
}

int run(const char* path, const char* runtime) {
  streamssm_options options = {};
  options.runtime = runtime;
  const streamssm::Model model(path, options);
  streamssm::Stream stream(model);
  streamssm::Detector detector(model);
  const char* const label = model.info().event_label;

  Ring ring(size_t(1) << 16);  // four seconds
  std::atomic<bool> ended{false};
  std::thread audio([&] {
    int16_t raw[160];
    float samples[160];
    while (const size_t count = std::fread(raw, sizeof *raw, 160, stdin)) {
      for (size_t i = 0; i < count; ++i) samples[i] = float(raw[i]) / 32768.0f;
      // a sound card would not come again: there, what does not fit is lost
      while (!ring.put(samples, count)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    ended.store(true, std::memory_order_release);
  });

  std::vector<float> samples(1600);
  for (bool last = false; !last;) {
    last = ended.load(std::memory_order_acquire);  // before the look: what came before the end is there now
    size_t count;
    while ((count = ring.take(samples.data(), samples.size())) > 0) {
      const std::vector<float> speech = stream.push(samples.data(), count);
      print(detector.push(speech), label);
    }
    if (!last) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  audio.join();
  const std::vector<float> speech = stream.flush();
  print(detector.push(speech), label);
  print(detector.end(), label);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc > 1 ? argv[1] : "vad.onnx", argc > 2 ? argv[2] : nullptr);
  } catch (const streamssm::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
