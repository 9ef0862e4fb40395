// What the matchers of patterns.h share.
#pragma once

#include <string>
#include <vector>

#include "patterns.h"
#include "protobuf.h"

namespace streamssm::embed {

using Arguments = std::vector<Assembler::Argument>;

// The inputs of a node, of which there must be `count`.
inline const std::vector<std::string>& inputs_of(const Node& node, size_t count) {
  if (node.inputs.size() != count)
    throw Malformed(say("a ", node.op, " with ", node.inputs.size(), " inputs, not ", count));
  return node.inputs;
}

inline const std::vector<std::string>& outputs_of(const Node& node, size_t count) {
  if (node.outputs.size() != count)
    throw Malformed(say("a ", node.op, " with ", node.outputs.size(), " outputs, not ", count));
  return node.outputs;
}

inline const std::string& other(const Node& node, const std::string& name) {
  const auto& inputs = inputs_of(node, 2);
  return inputs[0] == name ? inputs[1] : inputs[0];
}

inline Assembler::Pack row(const Constant& values) {
  return [values](float* to) { pack_row(*values, to); };
}

inline std::string key_of(const char* kind, const std::string& name) { return say(kind, ":", name); }

}  // namespace streamssm::embed
