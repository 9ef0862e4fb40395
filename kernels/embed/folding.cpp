#include "folding.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "protobuf.h"

namespace streamssm::embed {
namespace {

constexpr int64_t kMostFilled = 1 << 28;  // elements that a shape may ask for

Constant reshaped(const Tensor& value, const Tensor& shape) {
  if (shape.type != kInt64) return nullptr;
  Tensor out = value.packed();
  out.dims = shape.integers();
  int64_t product = 1;
  for (const int64_t size : out.dims)
    if (size < 1 || __builtin_mul_overflow(product, size, &product)) return nullptr;
  if (out.dims.empty() || product != value.size()) return nullptr;
  set_strides(out);
  return std::make_shared<Tensor>(std::move(out));
}

Constant transposed(const Node& node, const Tensor& value) {
  std::vector<int64_t> order;
  for (int64_t i = value.rank(); i-- > 0;) order.push_back(i);
  if (const Attribute* given = node.attribute("perm"))
    if (const auto* list = std::get_if<std::vector<int64_t>>(given)) order = *list;
  Tensor out = value;
  std::set<int64_t> seen;
  if (order.size() != value.dims.size()) throw Malformed("a Transpose of another rank");
  for (size_t i = 0; i < order.size(); ++i) {
    const int64_t from = order[i] < 0 ? order[i] + value.rank() : order[i];
    if (from < 0 || from >= value.rank() || !seen.insert(from).second)
      throw Malformed("a Transpose that is none");
    out.dims[i] = value.dims[size_t(from)], out.strides[i] = value.strides[size_t(from)];
  }
  return std::make_shared<Tensor>(std::move(out));
}

Constant filled(const Node& node, const Tensor& shape) {
  Tensor out;
  std::string item(4, '\0');
  out.type = kFloat;
  if (const Attribute* given = node.attribute("value")) {
    const Constant* value = std::get_if<Constant>(given);
    if (value == nullptr || *value == nullptr || (*value)->size() != 1) return nullptr;
    out.type = (*value)->type, item.assign((*value)->data, item_size(out.type));
  }
  if (shape.type != kInt64) return nullptr;
  out.dims = shape.integers();
  const int64_t count = count_of(out.dims);
  if (count < 0 || count > kMostFilled) return nullptr;
  out.own = std::make_shared<std::string>();
  for (int64_t i = 0; i < count; ++i) *out.own += item;
  out.data = out.own->data();
  set_strides(out);
  return std::make_shared<Tensor>(std::move(out));
}

template <class F>
Constant mapped_floats(const Tensor& value, const F& function) {
  if (value.type != kFloat) return nullptr;
  const Tensor from = value.packed();
  Tensor out = from;
  out.own = std::make_shared<std::string>(size_t(from.size()) * 4, '\0');
  for (int64_t i = 0; i < from.size(); ++i) {
    const float made = function(from.at(i));
    std::memcpy(out.own->data() + 4 * i, &made, 4);
  }
  out.data = out.own->data();
  return std::make_shared<Tensor>(std::move(out));
}

}  // namespace

size_t item_size(int64_t type) {
  switch (type) {
    case kFloat:
    case kInt32: return 4;
    case kUint8:
    case kInt8:
    case kBool: return 1;
    case kInt64: return 8;
    case kHalf: return 2;
    default: return 0;
  }
}

int64_t count_of(const Shape& dims) {
  int64_t step = 1;
  bool empty = false;
  for (const int64_t size : dims) {
    if (size < 0 || __builtin_mul_overflow(step, std::max<int64_t>(size, 1), &step)) return -1;
    empty |= size == 0;
  }
  return empty ? 0 : step;
}

void set_strides(Tensor& tensor) {
  tensor.strides.assign(tensor.dims.size(), 1);
  for (size_t i = tensor.dims.size(); i-- > 1;) tensor.strides[i - 1] = tensor.strides[i] * tensor.dims[i];
}

bool can_fold(const Node& node) {
  const std::string kind = node.kind();
  const bool known = kind == "Transpose" || kind == "ConstantOfShape" || kind == "Exp" || kind == "Neg";
  return (known && node.inputs.size() == 1) || (kind == "Reshape" && node.inputs.size() == 2);
}

Constant fold(const Node& node, const std::vector<Constant>& inputs) {
  const std::string kind = node.kind();
  if (kind == "Reshape") return reshaped(*inputs[0], *inputs[1]);
  if (kind == "Transpose") return transposed(node, *inputs[0]);
  if (kind == "ConstantOfShape") return filled(node, *inputs[0]);
  if (kind == "Exp") return mapped_floats(*inputs[0], [](float x) { return std::exp(x); });
  return mapped_floats(*inputs[0], [](float x) { return -x; });
}

}  // namespace streamssm::embed
