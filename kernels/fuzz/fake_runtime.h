// As much of ONNX Runtime as the operators see: tensors between guard zones, attributes, and a
// table of functions that can fail.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../ort/abi.h"
#include "random.h"

// A tensor. The bytes before and after its data belong to nobody.
struct OrtValue {
  OrtValue(int type, std::vector<int64_t> dims, streamssm::fuzz::Random& random);
  ~OrtValue();
  OrtValue(const OrtValue&) = delete;
  OrtValue& operator=(const OrtValue&) = delete;

  int64_t size() const;
  int64_t bytes() const;
  // `special`: with infinities and the like; `damaged`: whole numbers may be any.
  void fill(streamssm::fuzz::Random& random, bool special, bool damaged);
  bool guards_are_intact() const;
  // Whether every element differs from what memory holds before anybody writes to it.
  bool is_written() const;

  const int type;
  const std::vector<int64_t> dims;
  unsigned char* data;

 private:
  std::vector<unsigned char> memory_;
};

struct OrtStatus {
  int code;
  std::string message;
};

struct OrtKernelInfo {
  std::map<std::string, int64_t> integers;
  std::map<std::string, float> reals;
  std::map<std::string, std::vector<int64_t>> lists;
  std::vector<std::shared_ptr<OrtValue>> constants;  // of each input, or null
  size_t outputs;
};

struct OrtKernelContext {
  std::vector<std::shared_ptr<OrtValue>> inputs;
  std::vector<int> types;    // of each output
  std::vector<int> in_place;  // of each output, the input whose memory it takes, or -1
  std::vector<std::shared_ptr<OrtValue>> outputs;
};

struct OrtCustomOpDomain {
  std::string name;
  std::vector<const OrtCustomOp*> ops;
};

struct OrtSessionOptions {
  std::vector<OrtCustomOpDomain*> domains;
};

namespace streamssm::fuzz {

// The table of a version before 1.24, or of a later one.
const OrtApiBase* fake_runtime(bool later);

// How often a function of the table fails, and the draws that decide it.
void set_failures(double probability, Random* random);
bool has_failed();  // since then

}  // namespace streamssm::fuzz
