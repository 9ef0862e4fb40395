// What a rewrite adds to a model, at the level of protobuf.
#pragma once

#include "graph.h"
#include "protobuf.h"

namespace streamssm::embed {

// Tensors of so many bytes stay where they are.
constexpr int64_t kLarge = 1 << 20;

// A node that a rewrite has made, as a NodeProto. Its attributes are integers and lists of integers.
inline std::string encoded(const Node& node) {
  std::string out;
  for (const std::string& name : node.inputs) put_message(out, 1, name);
  for (const std::string& name : node.outputs) put_message(out, 2, name);
  put_message(out, 3, node.outputs[0]);
  put_message(out, 4, node.op);
  put_message(out, 7, node.domain);
  for (const auto& [name, value] : node.attributes) {
    std::string attribute;
    put_message(attribute, 1, name);
    if (const auto* list = std::get_if<std::vector<int64_t>>(&value)) {
      for (const int64_t item : *list) put_number(attribute, 8, item);
      put_number(attribute, 20, 7);
    } else {
      put_number(attribute, 3, std::get<int64_t>(value));
      put_number(attribute, 20, 2);
    }
    put_message(out, 5, attribute);
  }
  return out;
}

}  // namespace streamssm::embed
