// What exporters leave to be computed at load, from constants alone.
#pragma once

#include <vector>

#include "graph.h"

namespace streamssm::embed {

// Bytes of a number of this type; 0 of one that is unknown here.
size_t item_size(int64_t type);

// The number of values in a shape; -1 where it, or a stride, does not fit 64 bits: also of an empty one.
int64_t count_of(const Shape& dims);

// The strides of a tensor whose values lie one after the other.
void set_strides(Tensor& tensor);

bool can_fold(const Node& node);
// The result for these inputs; null where the operation is not of the form known here. Throws Malformed.
Constant fold(const Node& node, const std::vector<Constant>& inputs);

}  // namespace streamssm::embed
