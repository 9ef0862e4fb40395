// C++17 over streamssm.h: owners, spans, and exceptions in place of status codes. Header only.
//
//   streamssm::Model model("vad.onnx");
//   streamssm::Stream stream(model);
//   std::vector<float> speech = stream.push(samples, count);      // of a model with one output
//
// The rules of streamssm.h hold. A call that throws streamssm::Error has changed nothing. The functions that
// take `Frames` allocate nothing; those that return vectors do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "streamssm.h"

namespace streamssm {

class Error : public std::runtime_error {
 public:
  explicit Error(streamssm_status status) : Error(status, streamssm_message()) {}
  Error(streamssm_status status, const std::string& text) : std::runtime_error(text), status(status) {}
  const streamssm_status status;
};

inline void check(streamssm_status status) {
  if (status != STREAMSSM_OK) throw Error(status);
}

// A view of some values, made from a pointer and a count, or from anything that has data() and size().
template <class T>
class Span {
 public:
  constexpr Span() = default;
  constexpr Span(T* data, size_t size) : data_(data), size_(size) {}
  template <class Values,
            class = std::enable_if_t<std::is_convertible_v<decltype(std::declval<Values&>().data()), T*>>>
  constexpr Span(Values& values) : data_(values.data()), size_(values.size()) {}  // NOLINT
  constexpr T* data() const { return data_; }
  constexpr size_t size() const { return size_; }
  constexpr bool empty() const { return size_ == 0; }
  constexpr T* begin() const { return data_; }
  constexpr T* end() const { return data_ + size_; }
  constexpr T& operator[](size_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

namespace detail {
template <class Handle, void (*close)(Handle*)>
struct Close {
  void operator()(Handle* handle) const { close(handle); }
};
template <class Handle, void (*close)(Handle*)>
using Owner = std::unique_ptr<Handle, Close<Handle, close>>;

// Where the library is another one than this header's, its structs may be others too.
inline void check_abi() {
  if (streamssm_abi() != STREAMSSM_ABI)
    throw Error(STREAMSSM_ERROR_ARGUMENT, "this program was compiled for another version of libstreamssm");
}

// `size` numbers as items of `width`: all of them, or none.
inline size_t items_of(size_t size, size_t width) {
  if (width == 0 || size % width != 0)
    throw Error(STREAMSSM_ERROR_ARGUMENT, std::to_string(size) + " numbers are no whole items of " +
                                              std::to_string(width));
  return size / width;
}

// The bytes that save(memory, room, &bytes) writes.
template <class Save>
std::vector<uint8_t> saved(const Save& save) {
  size_t bytes = 0;
  const streamssm_status status = save(nullptr, 0, &bytes);
  if (status != STREAMSSM_ERROR_ROOM) check(status);
  std::vector<uint8_t> memory(bytes);
  check(save(memory.data(), memory.size(), &bytes));
  return memory;
}
}  // namespace detail

// An opened model: immutable, shared by any number of streams and threads.
class Model {
 public:
  explicit Model(const std::string& path, streamssm_options options = {}) {
    streamssm_model* model;
    detail::check_abi();
    options.size = sizeof options;
    check(streamssm_open(path.c_str(), &options, &model));
    handle_.reset(model);
  }
  Model(Span<const uint8_t> file, streamssm_options options = {}) {
    streamssm_model* model;
    detail::check_abi();
    options.size = sizeof options;
    check(streamssm_open_memory(file.data(), file.size(), &options, &model));
    handle_.reset(model);
  }

  const streamssm_info& info() const { return *streamssm_model_info(get()); }
  Span<const streamssm_output> outputs() const { return {info().outputs, info().output_count}; }
  streamssm_model* get() const { return handle_.get(); }

 private:
  detail::Owner<streamssm_model, streamssm_close> handle_;
};

// One live sequence; it belongs to one thread at a time.
class Stream {
 public:
  explicit Stream(const Model& model, int64_t block = 0, bool allow_nonfinite = false)
      : Stream(model, Empty()) {
    const streamssm_stream_options options = {sizeof options, block, allow_nonfinite};
    open([&](streamssm_stream** out) { return streamssm_stream_open(model.get(), &options, out); });
  }
  // Where a snapshot left off, at its own block.
  static Stream resume(const Model& model, Span<const uint8_t> snapshot) {
    Stream stream(model, Empty());
    stream.open([&](streamssm_stream** out) {
      return streamssm_resume(model.get(), snapshot.data(), snapshot.size(), nullptr, out);
    });
    return stream;
  }
  Stream fork() const {
    Stream twin(*this, Empty());
    twin.open([&](streamssm_stream** out) { return streamssm_fork(get(), out); });
    return twin;
  }
  Stream(Stream&&) noexcept = default;
  Stream& operator=(Stream&&) noexcept = default;

  // Into memory of the caller: one entry for each output of the model.
  void push(const void* items, size_t count, Span<streamssm_frames> outputs) {
    require_all(outputs);
    check(streamssm_push(get(), items, count, outputs.data()));
  }
  void flush(Span<streamssm_frames> outputs) {
    require_all(outputs);
    check(streamssm_flush(get(), outputs.data()));
  }

  // The frames of the first output, one after the other. Numbers of the model's type, and whole items.
  std::vector<float> push(const void* items, size_t count) { return push_all(items, count)[0]; }
  std::vector<float> push(Span<const float> samples) {
    return push(samples.data(), items_of(samples.size(), STREAMSSM_FLOAT32));
  }
  std::vector<float> push(Span<const int64_t> tokens) {
    return push(tokens.data(), items_of(tokens.size(), STREAMSSM_INT64));
  }
  std::vector<float> flush() { return flush_all()[0]; }

  // Those of every output.
  std::vector<std::vector<float>> push_all(const void* items, size_t count) {
    return collect([&](size_t output) { return streamssm_frames_of_push(get(), count, output); },
                   [&](streamssm_frames* outputs) { return streamssm_push(get(), items, count, outputs); });
  }
  std::vector<std::vector<float>> flush_all() {
    return collect([&](size_t output) { return streamssm_frames_of_flush(get(), output); },
                   [&](streamssm_frames* outputs) { return streamssm_flush(get(), outputs); });
  }

  void reset() { check(streamssm_reset(get())); }
  int64_t position() const { return streamssm_position(get()); }
  int64_t pending() const { return streamssm_pending(get()); }
  bool ended() const { return streamssm_ended(get()) == 1; }
  std::vector<uint8_t> save() const {
    return detail::saved(
        [&](void* to, size_t room, size_t* bytes) { return streamssm_save(get(), to, room, bytes); });
  }
  void restore(Span<const uint8_t> snapshot) {
    check(streamssm_restore(get(), snapshot.data(), snapshot.size()));
  }
  streamssm_stream* get() const { return handle_.get(); }

 private:
  struct Empty {};
  Stream(const Model& model, Empty) : width_(model.info().width), type_(model.info().type) {
    for (const streamssm_output& output : model.outputs()) widths_.push_back(output.width);
  }
  Stream(const Stream& other, Empty) : width_(other.width_), type_(other.type_), widths_(other.widths_) {}

  size_t items_of(size_t size, streamssm_type type) const {
    if (type != type_)
      throw Error(STREAMSSM_ERROR_ARGUMENT, type_ == STREAMSSM_INT64 ? "the model takes int64_t, not float"
                                                                     : "the model takes float, not int64_t");
    return detail::items_of(size, width_);
  }
  void require_all(Span<streamssm_frames> outputs) const {
    if (outputs.size() != widths_.size())
      throw Error(STREAMSSM_ERROR_ARGUMENT, "one entry is needed for each of " +
                                                std::to_string(widths_.size()) + " outputs, not " +
                                                std::to_string(outputs.size()));
  }

  template <class Open>
  void open(const Open& open) {
    streamssm_stream* stream;
    check(open(&stream));
    handle_.reset(stream);
  }

  template <class Count, class Call>
  std::vector<std::vector<float>> collect(const Count& count, const Call& call) {
    std::vector<std::vector<float>> values;
    std::vector<streamssm_frames> outputs;
    for (size_t i = 0; i < widths_.size(); ++i) {
      const size_t frames = count(i);
      values.emplace_back(frames * widths_[i]);
      outputs.push_back({values.back().data(), frames, 0});
    }
    check(call(outputs.data()));
    return values;
  }

  detail::Owner<streamssm_stream, streamssm_stream_close> handle_;
  size_t width_;
  streamssm_type type_;
  std::vector<size_t> widths_;
};

// Many streams, stepped as one batch. push() may be called by any thread at any time.
class Pool {
 public:
  Pool(const Model& model, size_t slots, int64_t block = 0, int64_t limit = 0) {
    const streamssm_pool_options options = {sizeof options, block, limit, 0};
    streamssm_pool* pool;
    check(streamssm_pool_open(model.get(), slots, &options, &pool));
    handle_.reset(pool);
  }
  size_t join() {
    size_t slot;
    check(streamssm_pool_join(get(), &slot));
    return slot;
  }
  size_t resume(Span<const uint8_t> snapshot) {
    size_t slot;
    check(streamssm_pool_resume(get(), snapshot.data(), snapshot.size(), &slot));
    return slot;
  }
  void leave(size_t slot) { check(streamssm_pool_leave(get(), slot)); }
  void reset(size_t slot) { check(streamssm_pool_reset(get(), slot)); }
  void push(size_t slot, const void* items, size_t count) {
    check(streamssm_pool_push(get(), slot, items, count));
  }
  void flush(size_t slot) { check(streamssm_pool_flush(get(), slot)); }
  size_t ready() const { return streamssm_pool_ready(get()); }
  // Holds until the next call but push() and ready(). Where it throws, results() are those of the runs that
  // did not fail.
  Span<const streamssm_result> step() {
    const streamssm_result* results = nullptr;
    size_t count = 0;
    const streamssm_status status = streamssm_pool_step(get(), &results, &count);
    results_ = {results, count};
    check(status);
    return results_;
  }
  Span<const streamssm_result> results() const { return results_; }
  std::vector<uint8_t> save(size_t slot) const {
    return detail::saved([&](void* to, size_t room, size_t* bytes) {
      return streamssm_pool_save(get(), slot, to, room, bytes);
    });
  }
  streamssm_pool* get() const { return handle_.get(); }

 private:
  detail::Owner<streamssm_pool, streamssm_pool_close> handle_;
  Span<const streamssm_result> results_;
};

// Starts and ends of events, by the model's own rule.
class Detector {
 public:
  explicit Detector(const Model& model) {
    streamssm_detector* detector;
    check(streamssm_detector_open(model.get(), &detector));
    handle_.reset(detector);
    width_ = model.info().outputs[model.info().event_output].width;
  }
  // Frames of the output that the rule reads.
  std::vector<streamssm_event> push(Span<const float> frames) {
    const size_t count = detail::items_of(frames.size(), width_);
    std::vector<streamssm_event> events(count);
    size_t found;
    check(streamssm_detect(get(), frames.data(), count, events.data(), events.size(), &found));
    events.resize(found);
    return events;
  }
  // The end of an open event, if there is one.
  std::vector<streamssm_event> end() {
    std::vector<streamssm_event> events(1);
    size_t found;
    check(streamssm_detector_end(get(), events.data(), &found));
    events.resize(found);
    return events;
  }
  streamssm_detector* get() const { return handle_.get(); }

 private:
  detail::Owner<streamssm_detector, streamssm_detector_close> handle_;
  size_t width_ = 1;
};

}  // namespace streamssm
