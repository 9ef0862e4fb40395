// Calls of the operators, valid and damaged.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fake_runtime.h"
#include "random.h"

namespace streamssm::fuzz {

// What an operator's inputs are made of; the operators' files say what the letters mean.
struct Input {
  std::vector<int64_t> dims;
  bool parameter = false;  // may be a constant of the model
  int output = -1;         // the output that is its next state
};

// One node and the inputs of one call of it.
struct Call {
  std::vector<Input> inputs;
  std::map<std::string, int64_t> integers;
  std::map<std::string, float> reals;
  std::map<std::string, std::vector<int64_t>> lists;
  std::vector<float> lent;  // parameters of a fused node
  size_t outputs;
};

// A kind of node with fixed parameters; `call` draws the sizes that differ between calls.
class Node {
 public:
  virtual ~Node() = default;
  virtual Call call(Random& random) const = 0;
};

// Throws std::invalid_argument for an operator it does not know: then this file lacks one.
std::unique_ptr<Node> draw_node(const std::string& op, Random& random);

// Changes one to three things, so that the call is probably not valid any more.
void damage(Call& call, Random& random);

}  // namespace streamssm::fuzz
