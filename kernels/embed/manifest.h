// The manifest: what a model file says about itself. streamssm/manifest.py is its definition; it is read as
// strictly here: an unknown field, a missing one or a value of the wrong type is refused.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "error.h"

namespace streamssm::embed {

// The element types of a manifest, with ONNX's numbers.
enum class DType : int { float32 = 1, int64 = 7 };
inline int64_t bytes_of(DType type) { return type == DType::float32 ? 4 : 8; }
inline const char* name_of(DType type) { return type == DType::float32 ? "float32" : "int64"; }

using Shape = std::vector<int64_t>;
std::string show(const Shape& shape);  // "[2, 3]"

// A decimal number, exactly.
struct Fraction {
  __int128 up = 0, down = 1;
};

struct InputSpec {
  std::string name, kind;
  DType dtype = DType::float32;
  Shape shape;
  int64_t width = 1;           // numbers of an item
  std::optional<double> rate;  // items per second
  int64_t hop = 1;
  int64_t vocabulary = 0;  // 0: none
  int64_t filler = 0;      // what fills the last block of a stream that ends: N of nucleotides, else zeros
  // So many fillers, to be copied as items are; none where zeros do.
  std::vector<int64_t> padding(int64_t items) const {
    return std::vector<int64_t>(filler != 0 ? size_t(items) : 0, filler);
  }
};

struct OutputSpec {
  std::string name, kind;
  Shape shape;
  int64_t width = 1;  // floats of a frame
  int64_t up = 1, down = 1;
  std::vector<std::string> labels;
};

struct StateSpec {
  std::string name, next;
  Shape shape;
  int64_t size = 1;  // numbers of one sequence
  DType dtype = DType::float32;
  int64_t nbytes() const { return size * bytes_of(dtype); }
};

struct EventRule {
  size_t output = 0;
  std::string label;
  int64_t column = 0;
  double onset = 0.5, offset = 0.35, min_on = 0.05, min_off = 0.3;
  bool every = false;  // of all columns instead
};

struct ExternalFile {
  std::string name;
  int64_t size = 0;
  std::string sha256;
};

struct Manifest {
  std::string name, sha256, producer, description, license, weights = "float32";
  InputSpec input;
  std::vector<OutputSpec> outputs;
  std::vector<StateSpec> states;
  std::vector<ExternalFile> external;
  std::optional<EventRule> events;
  int64_t block = 1, lookahead = 0, parameters = 0, state_bytes = 0;
};

// Throws Error: STREAMSSM_ERROR_FORMAT for a newer one, else STREAMSSM_ERROR_FILE.
Manifest decode_manifest(Bytes json);

// The decimal number that a double prints as, such as 0.1; throws Error where it has too many digits.
Fraction exact(double value);

}  // namespace streamssm::embed
