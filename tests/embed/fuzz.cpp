// Random damage to model files and snapshots: fuzz MODEL RUNTIME SECONDS SEED.
//
// Models go through everything of ours that reads them, up to the fused graph; ONNX Runtime itself is not
// fuzzed. Snapshots are restored into a stream, which then runs. The hash is put right after most changes, or
// nothing behind it would ever be reached. Built with sanitizers (make embed-fuzz), any fault ends the
// program.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../kernels/embed/fusion.h"
#include "../../kernels/embed/protobuf.h"
#include "../../kernels/embed/sha256.h"
#include "../../kernels/embed/snapshot.h"

using namespace streamssm::embed;

namespace {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  uint64_t next() {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return state_;
  }
  size_t below(size_t end) { return end ? size_t(next() % end) : 0; }
  bool once_in(size_t n) { return below(n) == 0; }

 private:
  uint64_t state_;
};

const std::vector<std::string> kWords = {"0",
                                         "-1",
                                         "1",
                                         "9223372036854775807",
                                         "18446744073709551616",
                                         "1e308",
                                         "1e-9",
                                         "null",
                                         "true",
                                         "[]",
                                         "{}",
                                         "\"\"",
                                         "[1,2]",
                                         "\"x\"",
                                         "0.5",
                                         "1073741824",
                                         "\"\\ud800\"",
                                         "\"\\u0000\"",
                                         "[[[[[[[[",
                                         "\"float32\"",
                                         "\"int64\"",
                                         ",",
                                         ":"};

// A few changes of bytes, or of what looks like numbers and words.
std::string damaged(std::string bytes, Random& random, bool text) {
  for (size_t changes = 1 + random.below(4); changes > 0 && !bytes.empty(); --changes) {
    const size_t at = random.below(bytes.size());
    switch (random.below(text ? 7 : 6)) {
      case 0: bytes[at] = char(random.next()); break;
      case 1: bytes[at] = char(bytes[at] ^ (1 << random.below(8))); break;
      case 2: bytes.erase(at, 1 + random.below(16)); break;
      case 3: bytes.insert(at, bytes.substr(random.below(bytes.size()), 1 + random.below(32))); break;
      case 4: bytes.replace(at, 1, std::string(1 + random.below(9), '\xff')); break;
      case 5:
        if (random.once_in(8)) bytes.resize(at);
        break;
      default: {
        const size_t start = bytes.find_first_of("-0123456789\"[{", at);
        if (start == bytes.npos) break;
        const size_t end = std::min(bytes.find_first_of(",]}", start), bytes.size());
        bytes.replace(start, end - start, kWords[random.below(kWords.size())]);
      }
    }
  }
  return bytes;
}

// A message with one of its parts damaged, found by going down at random.
std::string damaged_message(Bytes message, Random& random, int depth) {
  std::vector<std::string> fields;
  size_t chosen = 0, seen = 0;
  try {
    for (Fields at(message); at.next(); ++seen)
      if (random.once_in(seen + 1)) chosen = seen;
    std::string out;
    size_t i = 0;
    for (Fields at(message); at.next(); ++i) {
      if (i != chosen) {
        put_field(out, at);
      } else if (at.wire() != 2) {
        put_number(out, at.number(),
                   random.once_in(2) ? int64_t(random.next()) : int64_t(random.below(70)) - 2);
      } else if (depth < 8 && !at.value().empty() && !random.once_in(4)) {
        put_message(out, at.number(), damaged_message(at.value(), random, depth + 1));
      } else if (!random.once_in(6)) {
        put_message(out, at.number(), damaged(std::string(at.value()), random, false));
      }
    }
    return seen ? out : damaged(std::string(message), random, false);
  } catch (const Malformed&) {
    return damaged(std::string(message), random, false);
  }
}

// The model with its manifest damaged.
std::string damaged_manifest(Bytes model, Random& random) {
  std::string out;
  for (Fields at(model); at.next();) {
    if (at.is(14, 2) && last(at.value(), 1) == "streamssm") {
      std::string entry;
      put_message(entry, 1, "streamssm");
      put_message(entry, 2, damaged(std::string(last(at.value(), 2)), random, true));
      put_message(out, 14, entry);
    } else {
      put_field(out, at);
    }
  }
  return out;
}

// Puts the hash right, if it is where it was.
void seal(std::string& bytes, const std::string& digest) {
  const size_t at = bytes.find(digest);
  if (at == bytes.npos) return;
  const std::string actual = digest_with_own(bytes, at);
  bytes.replace(at, kDigits, actual);
}

std::string contents(const char* path) {
  const Mapping mapping{std::string(path)};
  return std::string(mapping.data());
}

// Everything that reads a model, up to the session.
bool try_model(const std::string& bytes) {
  try {
    const ModelFile file = read_model_memory(bytes);
    Graph graph(file, false);
    int64_t number = 0;
    for (const char* set : {"avx512vnni", "avx2"}) fuse(graph, set, [&](Floats) { return ++number; });
    return true;
  } catch (const Error&) {
  } catch (const Malformed&) {
  } catch (const std::bad_alloc&) {
  } catch (const std::out_of_range&) {  // as model.cpp takes any exception of the fusion
  } catch (const std::length_error&) {
  }
  return false;
}

struct Restorer {
  Restorer(const char* path, const char* runtime) {
    const streamssm_options options = {sizeof options, runtime, STREAMSSM_KERNELS_FUSED};
    if (streamssm_open(path, &options, &model) || streamssm_stream_open(model, nullptr, &stream)) {
      std::fprintf(stderr, "%s\n", streamssm_message());
      std::exit(1);
    }
    const streamssm_info& info = *streamssm_model_info(model);
    items.resize(size_t(info.block) * 3 * info.width * 8);
    for (size_t i = 0; i < info.output_count; ++i) {
      const size_t room = size_t(info.block) * 100 + 1000;
      memory.emplace_back(room * info.outputs[i].width);
      outputs.push_back({memory.back().data(), room, 0});
    }
    streamssm_push(stream, items.data(), size_t(info.block) + 3, outputs.data());
    size_t bytes = 0;
    streamssm_save(stream, nullptr, 0, &bytes);
    good.resize(bytes);
    if (streamssm_save(stream, good.data(), bytes, &bytes)) std::exit(1);
    digest = good.substr(good.find("digest\":\"") + 9, kDigits);
  }
  ~Restorer() { streamssm_stream_close(stream), streamssm_close(model); }

  bool try_snapshot(const std::string& bytes) {
    if (streamssm_restore(stream, bytes.data(), bytes.size()) != STREAMSSM_OK) return false;
    streamssm_push(stream, items.data(), size_t(streamssm_model_info(model)->block), outputs.data());
    streamssm_flush(stream, outputs.data());
    return true;
  }

  streamssm_model* model = nullptr;
  streamssm_stream* stream = nullptr;
  std::vector<char> items;
  std::vector<std::vector<float>> memory;
  std::vector<streamssm_frames> outputs;
  std::string good, digest;
};

// The header of a snapshot damaged as text, its length put right.
std::string damaged_snapshot(const std::string& good, Random& random) {
  if (random.once_in(3)) return damaged(good, random, false);
  const size_t head =
      size_t(uint8_t(good[0])) | size_t(uint8_t(good[1])) << 8 | size_t(uint8_t(good[2])) << 16;
  std::string text = damaged(good.substr(8, head), random, true), out(8, '\0');
  for (size_t i = 0; i < 8; ++i) out[i] = char(text.size() >> (8 * i));
  return out + text + good.substr(8 + head);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) return 2;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoll(argv[3]));
  Random random(std::strtoull(argv[4], nullptr, 10));
  const std::string model = contents(argv[1]), digest = read_model_memory(model).manifest.sha256;
  Restorer restorer(argv[1], argv[2]);
  long models = 0, opened = 0, snapshots = 0, restored = 0;
  while (std::chrono::steady_clock::now() < end) {
    std::string bytes = random.once_in(3)   ? damaged_manifest(model, random)
                        : random.once_in(3) ? damaged(model, random, false)
                                            : damaged_message(model, random, 0);
    if (!random.once_in(10)) seal(bytes, digest);
    ++models, opened += try_model(bytes);
    for (int i = 0; i < 10; ++i) {
      std::string snapshot = damaged_snapshot(restorer.good, random);
      if (!random.once_in(10)) seal(snapshot, restorer.digest);
      ++snapshots, restored += restorer.try_snapshot(snapshot);
    }
  }
  std::printf("%ld models, %ld of them usable; %ld snapshots, %ld of them usable; seed %s\n", models, opened,
              snapshots, restored, argv[4]);
}
