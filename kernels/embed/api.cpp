// The C interface: checks of arguments, handles, and no exception past this file.
#include <cstdio>
#include <cstring>
#include <new>
#include <stdexcept>

#include "detector.h"
#include "handles.h"
#include "model.h"
#include "pool.h"
#include "protobuf.h"
#include "stream.h"

#ifndef STREAMSSM_VERSION
#error "the build passes the version"
#endif

using namespace streamssm::embed;

struct streamssm_model : Handle<const Model> {};
struct streamssm_stream : Handle<Stream> {};
struct streamssm_pool : Handle<Pool> {};
struct streamssm_detector : Handle<Detector> {};

namespace {

// Of fixed size: a failure for want of memory can be told too.
thread_local char message[1024] = "";

streamssm_status told(streamssm_status status, const char* text) noexcept {
  std::snprintf(message, sizeof message, "%s", text);
  return status;
}

// Runs `work`; what it throws becomes a status and a message.
template <class Work>
streamssm_status guarded(const Work& work) noexcept {
  try {
    work();
    return STREAMSSM_OK;
  } catch (const Error& error) {
    return told(error.status, error.what());
  } catch (const Malformed& error) {
    return told(STREAMSSM_ERROR_FILE, error.what());
  } catch (const std::bad_alloc&) {
    return told(STREAMSSM_ERROR_MEMORY, "out of memory");
  } catch (const std::length_error&) {
    return told(STREAMSSM_ERROR_MEMORY, "more memory was asked for than there can be");
  } catch (const std::exception& error) {
    return told(STREAMSSM_ERROR_INTERNAL, error.what());
  } catch (...) {
    return told(STREAMSSM_ERROR_INTERNAL, "an exception that is none of the library's");
  }
}

void require(const void* pointer, const char* name) {
  if (pointer == nullptr) fail(STREAMSSM_ERROR_ARGUMENT, name, " is NULL");
}

// The options that were given, as many as this library knows and the program knew; the rest is zero.
template <class Options>
Options options_or_default(const Options* given) {
  Options options{};
  if (given == nullptr) return options;
  if (given->size < sizeof(size_t) || given->size > 4096 || given->size % alignof(Options) != 0)
    fail(STREAMSSM_ERROR_ARGUMENT, "options.size is ", given->size, ", not sizeof of the struct, which is ",
         sizeof(Options));
  std::memcpy(&options, given, given->size < sizeof(Options) ? given->size : sizeof(Options));
  return options;
}

template <class Read>
streamssm_status open_model(const streamssm_options* given, streamssm_model** model, const Read& read) {
  if (model != nullptr) *model = nullptr;
  return guarded([&] {
    require(model, "model");
    const streamssm_options options = options_or_default(given);
    if (options.kernels < STREAMSSM_KERNELS_FUSED || options.kernels > STREAMSSM_KERNELS_PLAIN)
      fail(STREAMSSM_ERROR_ARGUMENT, "options.kernels is ", options.kernels, ", none of streamssm_kernels");
    auto opened = std::make_shared<const Model>(read(), options.runtime, streamssm_kernels(options.kernels));
    *model = new_handle<streamssm_model>(std::move(opened));
  });
}

void require_items(const void* items, size_t count) {
  if (count > 0) require(items, "items");
}

// The writer's bytes, to memory of the caller.
void save_to(const SnapshotWriter& writer, void* memory, size_t room, size_t* bytes) {
  *bytes = writer.bytes();
  if (room < *bytes)
    fail(STREAMSSM_ERROR_ROOM, "the snapshot needs ", *bytes, " bytes, there is room for ", room);
  require(memory, "memory");
  writer.write(static_cast<char*>(memory));
}

Bytes bytes_of(const void* data, size_t bytes) {
  require(data, "the memory");
  return {static_cast<const char*>(data), bytes};
}

}  // namespace

extern "C" {

const char* streamssm_message(void) { return message; }
uint32_t streamssm_abi(void) { return STREAMSSM_ABI; }
const char* streamssm_version(void) { return STREAMSSM_VERSION; }
void streamssm_set_logger(streamssm_logger logger, void* user) { set_logger(logger, user); }

const char* streamssm_status_name(streamssm_status status) {
  static constexpr const char* names[] = {"ok",
                                          "wrong argument",
                                          "wrong input",
                                          "the stream has ended",
                                          "too little room",
                                          "full",
                                          "bad file",
                                          "newer format",
                                          "wrong hash",
                                          "bad snapshot",
                                          "no usable ONNX Runtime",
                                          "a run failed",
                                          "out of memory",
                                          "closed",
                                          "internal error"};
  return unsigned(status) < sizeof names / sizeof *names ? names[status] : "unknown status";
}

// Models.

streamssm_status streamssm_open(const char* path, const streamssm_options* options, streamssm_model** model) {
  return open_model(options, model, [&] {
    require(path, "path");
    return read_model_file(path);
  });
}

streamssm_status streamssm_open_memory(const void* data, size_t bytes, const streamssm_options* options,
                                       streamssm_model** model) {
  return open_model(options, model, [&] {
    if (bytes == 0) fail(STREAMSSM_ERROR_FILE, "a model of 0 bytes is none");
    return read_model_memory(bytes_of(data, bytes));
  });
}

void streamssm_close(streamssm_model* model) { close_handle(model); }

const streamssm_info* streamssm_model_info(const streamssm_model* model) {
  const streamssm_info* info = nullptr;
  guarded([&] { info = &use(model, "model").info(); });
  return info;
}

// Streams.

streamssm_status streamssm_stream_open(streamssm_model* model, const streamssm_stream_options* given,
                                       streamssm_stream** stream) {
  if (stream != nullptr) *stream = nullptr;
  return guarded([&] {
    require(stream, "stream");
    const Model& opened = use(model, "model");
    const streamssm_stream_options options = options_or_default(given);
    *stream = new_handle<streamssm_stream>(
        std::make_shared<Stream>(model->object, opened.block(options.block), options.allow_nonfinite != 0));
  });
}

streamssm_status streamssm_resume(streamssm_model* model, const void* snapshot, size_t bytes,
                                  const streamssm_stream_options* given, streamssm_stream** stream) {
  if (stream != nullptr) *stream = nullptr;
  return guarded([&] {
    require(stream, "stream");
    const Model& opened = use(model, "model");
    const streamssm_stream_options options = options_or_default(given);
    const Snapshot saved = read_snapshot(opened.manifest(), bytes_of(snapshot, bytes));
    if (saved.block < 1) fail(STREAMSSM_ERROR_SNAPSHOT, "the snapshot's block is ", saved.block);
    const int64_t block = opened.block(options.block == 0 ? saved.block : options.block);
    auto made =
        std::make_shared<Stream>(model->object, block, saved.allow_nonfinite || options.allow_nonfinite != 0);
    made->restore(saved);
    *stream = new_handle<streamssm_stream>(std::move(made));
  });
}

void streamssm_stream_close(streamssm_stream* stream) { close_handle(stream); }

streamssm_status streamssm_push(streamssm_stream* stream, const void* items, size_t count,
                                streamssm_frames* outputs) {
  return guarded([&] {
    Stream& self = use(stream, "stream");
    require_items(items, count);
    require(outputs, "outputs");
    self.push(items, count, outputs);
  });
}

streamssm_status streamssm_flush(streamssm_stream* stream, streamssm_frames* outputs) {
  return guarded([&] {
    Stream& self = use(stream, "stream");
    require(outputs, "outputs");
    self.flush(outputs);
  });
}

size_t streamssm_frames_of_push(const streamssm_stream* stream, size_t count, size_t output) {
  size_t frames = 0;
  guarded([&] {
    const Stream& self = use(stream, "stream");
    const bool fits = count < size_t(INT64_MAX / 4) && int64_t(count) < INT64_MAX / 4 - self.position();
    if (fits && output < self.manifest().outputs.size() && !self.ended())
      frames = size_t(self.frames_of_push(count, output));
  });
  return frames;
}

size_t streamssm_frames_of_flush(const streamssm_stream* stream, size_t output) {
  size_t frames = 0;
  guarded([&] {
    const Stream& self = use(stream, "stream");
    if (output < self.manifest().outputs.size()) frames = size_t(self.frames_of_flush(output));
  });
  return frames;
}

streamssm_status streamssm_reset(streamssm_stream* stream) {
  return guarded([&] { use(stream, "stream").reset(); });
}

streamssm_status streamssm_fork(const streamssm_stream* stream, streamssm_stream** twin) {
  if (twin != nullptr) *twin = nullptr;
  return guarded([&] {
    require(twin, "twin");
    *twin = new_handle<streamssm_stream>(std::shared_ptr<Stream>(use(stream, "stream").fork()));
  });
}

int64_t streamssm_position(const streamssm_stream* stream) {
  int64_t position = -1;
  guarded([&] { position = use(stream, "stream").position(); });
  return position;
}

int64_t streamssm_pending(const streamssm_stream* stream) {
  int64_t pending = -1;
  guarded([&] { pending = use(stream, "stream").pending(); });
  return pending;
}

int32_t streamssm_ended(const streamssm_stream* stream) {
  int32_t ended = -1;
  guarded([&] { ended = use(stream, "stream").ended(); });
  return ended;
}

streamssm_status streamssm_save(const streamssm_stream* stream, void* memory, size_t room, size_t* bytes) {
  return guarded([&] {
    require(bytes, "bytes");
    *bytes = 0;
    const Stream& self = use(stream, "stream");
    save_to(SnapshotWriter(self.manifest(), self.view()), memory, room, bytes);
  });
}

streamssm_status streamssm_restore(streamssm_stream* stream, const void* snapshot, size_t bytes) {
  return guarded([&] {
    Stream& self = use(stream, "stream");
    self.restore(read_snapshot(self.manifest(), bytes_of(snapshot, bytes)));
  });
}

// Pools.

streamssm_status streamssm_pool_open(streamssm_model* model, size_t slots,
                                     const streamssm_pool_options* given, streamssm_pool** pool) {
  if (pool != nullptr) *pool = nullptr;
  return guarded([&] {
    require(pool, "pool");
    const Model& opened = use(model, "model");
    const streamssm_pool_options options = options_or_default(given);
    *pool = new_handle<streamssm_pool>(std::make_shared<Pool>(
        model->object, slots, opened.block(options.block), options.limit, options.allow_nonfinite != 0));
  });
}

void streamssm_pool_close(streamssm_pool* pool) { close_handle(pool); }

streamssm_status streamssm_pool_join(streamssm_pool* pool, size_t* slot) {
  return guarded([&] {
    require(slot, "slot");
    *slot = use(pool, "pool").join(nullptr);
  });
}

streamssm_status streamssm_pool_resume(streamssm_pool* pool, const void* snapshot, size_t bytes,
                                       size_t* slot) {
  return guarded([&] {
    require(slot, "slot");
    Pool& self = use(pool, "pool");
    const Snapshot saved = read_snapshot(self.manifest(), bytes_of(snapshot, bytes));
    *slot = self.join(&saved);
  });
}

streamssm_status streamssm_pool_leave(streamssm_pool* pool, size_t slot) {
  return guarded([&] { use(pool, "pool").leave(slot); });
}

streamssm_status streamssm_pool_reset(streamssm_pool* pool, size_t slot) {
  return guarded([&] { use(pool, "pool").reset(slot); });
}

streamssm_status streamssm_pool_push(streamssm_pool* pool, size_t slot, const void* items, size_t count) {
  return guarded([&] {
    Pool& self = use(pool, "pool");
    require_items(items, count);
    self.push(slot, items, count);
  });
}

streamssm_status streamssm_pool_flush(streamssm_pool* pool, size_t slot) {
  return guarded([&] { use(pool, "pool").flush(slot); });
}

size_t streamssm_pool_ready(streamssm_pool* pool) {
  size_t ready = 0;
  guarded([&] { ready = use(pool, "pool").ready(); });
  return ready;
}

int64_t streamssm_pool_waiting(streamssm_pool* pool, size_t slot) {
  int64_t waiting = -1;
  guarded([&] { waiting = use(pool, "pool").waiting(slot); });
  return waiting;
}

streamssm_status streamssm_pool_step(streamssm_pool* pool, const streamssm_result** results, size_t* count) {
  return guarded([&] {
    require(results, "results");
    require(count, "count");
    *results = nullptr, *count = 0;
    Pool& self = use(pool, "pool");
    struct Deliver {  // also what was done before a failure
      ~Deliver() { *results = pool.results().data(), *count = pool.results().size(); }
      const Pool& pool;
      const streamssm_result** results;
      size_t* count;
    } deliver{self, results, count};
    self.step();
  });
}

streamssm_status streamssm_pool_save(streamssm_pool* pool, size_t slot, void* memory, size_t room,
                                     size_t* bytes) {
  return guarded([&] {
    require(bytes, "bytes");
    *bytes = 0;
    use(pool, "pool").save(slot, [&](const SnapshotWriter& writer) { save_to(writer, memory, room, bytes); });
  });
}

// Detectors.

streamssm_status streamssm_detector_open(streamssm_model* model, streamssm_detector** detector) {
  if (detector != nullptr) *detector = nullptr;
  return guarded([&] {
    require(detector, "detector");
    use(model, "model");
    *detector = new_handle<streamssm_detector>(std::make_shared<Detector>(model->object));
  });
}

void streamssm_detector_close(streamssm_detector* detector) { close_handle(detector); }

streamssm_status streamssm_detect(streamssm_detector* detector, const float* frames, size_t count,
                                  streamssm_event* events, size_t room, size_t* found) {
  return guarded([&] {
    require(found, "found");
    *found = 0;
    Detector& self = use(detector, "detector");
    require_items(frames, count);
    if (room > 0) require(events, "events");
    self.push(frames, count, events, room, found);
  });
}

streamssm_status streamssm_detector_end(streamssm_detector* detector, streamssm_event* event, size_t* found) {
  return guarded([&] {
    require(event, "event");
    require(found, "found");
    use(detector, "detector").end(event, found);
  });
}

}  // extern "C"
