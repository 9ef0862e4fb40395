// Reads and checks a model file without running it: the manifest, its hash, the operators it uses, and the
// files of weights beside it. The rules are those of streamssm/onnx_file.py and streamssm/external.py.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "manifest.h"
#include "mapping.h"

namespace streamssm::embed {

// Tensors in a file of their own begin at multiples of this, so that memory can be mapped.
constexpr int64_t kAlignment = 64;

// A tensor in another file: where it says that it lies.
struct Placed {
  std::string name, location;
  int64_t offset = 0, length = 0;
};

// Where a TensorProto says its values lie; nothing if they are in it. Throws Malformed where two readers
// could take it for two things.
std::optional<Placed> read_placed(Bytes tensor);

struct ModelFile {
  Mapping content;
  Manifest manifest;
  std::set<std::pair<std::string, std::string>> operators;  // domain, name
  std::map<std::string, Mapping> side;                      // by name
  std::string folder, name;                                 // where it really lies; empty: only in memory

  bool uses(const std::string& domain, const std::string& op) const {
    return operators.count({domain, op}) > 0;
  }
};

ModelFile read_model_file(const std::string& path);
ModelFile read_model_memory(Bytes memory);

}  // namespace streamssm::embed
