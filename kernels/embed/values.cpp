#include "values.h"

#include <algorithm>

namespace streamssm::embed {
namespace {

constexpr size_t kMostTrailing = 4;  // more dimensions than an item may have (kMaxRank in kernels/ort/op.h)
constexpr int kMostNested = 64;

// Operations that are not run here and give rows of the shape of their first input.
const std::set<std::string>& keeps_shape() {
  static const std::set<std::string> all = {"streamssm.SlidingWindowAttention",
                                            "streamssm.CausalConv1d",
                                            "streamssm.SelectiveScan",
                                            "streamssm.StateSpaceDual",
                                            "LayerNormalization",
                                            "Softmax",
                                            "Clip",
                                            "Log",
                                            "Sqrt",
                                            "Erf",
                                            "Gelu"};
  return all;
}

// The shape of an item that can be run here: fixed, not empty, of few dimensions.
std::optional<Shape> item_of(const std::vector<Dim>& dims, size_t first) {
  Shape shape;
  for (size_t i = first; i < dims.size(); ++i) {
    if (!dims[i].fixed || dims[i].size < 1) return std::nullopt;
    shape.push_back(dims[i].size);
  }
  if (shape.size() > kMostTrailing) return std::nullopt;
  return shape;
}

std::string axis(const Port& port, size_t at) {
  const Dim dim = at < port.dims.size() ? port.dims[at] : Dim{};
  if (dim.fixed && dim.size != 0) return say("=", dim.size);
  return dim.name.empty() ? say("?", at, " ", port.name) : say("#", dim.name);
}

Axes axes_of(const Port& port) { return {axis(port, 0), axis(port, 1)}; }

std::string axis(const Dim& dim) { return dim.fixed ? say("=", dim.size) : say("#", dim.name); }

}  // namespace

int64_t product(const Shape& shape) {
  int64_t product = 1;
  for (const int64_t size : shape)
    if (__builtin_mul_overflow(product, size, &product)) fail(STREAMSSM_ERROR_FILE, "a shape is too large");
  return product;
}

Values::Values(Graph& graph) : graph(graph) {
  for (const Port& port : graph.inputs()) inputs_[port.name] = &port;
  for (const auto* ports : {&graph.inputs(), &graph.inner()})
    for (const Port& port : *ports) {
      const std::optional<Shape> trailing = item_of(port.dims, 2);
      const bool open = port.dims.size() >= 3 && !port.dims[0].fixed && !port.dims[1].fixed;
      if (open && trailing && port.type == kFloat)
        shapes[port.name] = *trailing, axes[port.name] = axes_of(port);
    }
}

const Port* Values::input(const std::string& name) const {
  const auto found = inputs_.find(name);
  return found == inputs_.end() ? nullptr : found->second;
}

std::optional<Shape> Values::rows(const std::string& name, const Shape* shape,
                                  const std::string* beside) const {
  const auto known = shapes.find(name);
  if (known == shapes.end() || (shape != nullptr && known->second != *shape)) return std::nullopt;
  if (beside != nullptr) {
    const auto mine = axes.find(name), theirs = axes.find(*beside);
    const bool none = mine == axes.end() && theirs == axes.end();
    if (!none && (mine == axes.end() || theirs == axes.end() || mine->second != theirs->second))
      return std::nullopt;
  }
  return known->second;
}

bool Values::is_input(const std::string& name) const {
  const Port* port = input(name);
  return port != nullptr && port->type == kFloat;
}

const Node* Values::only(const std::string& name, const std::string& op) const {
  const std::vector<const Node*>& readers = graph.consumers(name);
  if (readers.size() != 1 || graph.results().count(name) > 0 || readers[0]->kind() != op) return nullptr;
  return readers[0];
}

std::optional<double> Values::scalar(const std::string& name) const {
  const Constant value = graph.constant(name);
  if (value == nullptr || value->size() != 1 || value->rank() > 3) return std::nullopt;
  return value->number();
}

Constant Values::floats(const std::string& name, const Shape& shape) const {
  const Constant value = graph.constant(name);
  return value != nullptr && value->is_float(shape) ? value : nullptr;
}

std::optional<std::vector<int64_t>> Values::integers(const std::string& name) const {
  const Constant value = graph.constant(name);
  if (value == nullptr || value->type != kInt64) return std::nullopt;
  return value->integers();
}

void Values::note_shape(const Node& node) {
  std::optional<Shape> shape;
  std::optional<Axes> found;
  const std::string kind = node.kind();
  if (kind == "Gather" && node.inputs.size() >= 2 && node.integer("axis", 0) == 0) {
    const Constant table = graph.constant(node.inputs[0]);
    const Port* port = input(node.inputs[1]);
    const bool rows =
        port != nullptr && port->dims.size() == 2 && !port->dims[0].fixed && !port->dims[1].fixed;
    if (table == nullptr || table->rank() != 2 || table->type != kFloat || !rows) return;
    if (table->dims[1] > 0) shape = Shape{table->dims[1]};
    found = axes_of(*port);
  } else if (kind == "streamssm.LogMel") {
    Constant filters;
    for (const std::string& name : node.inputs) {
      const Constant value = graph.constant(name);
      if (filters == nullptr && value != nullptr && value->rank() == 2) filters = value;
    }
    const Port* past = node.inputs.empty() ? nullptr : input(node.inputs.back());
    if (filters != nullptr && filters->type == kFloat && past != nullptr && filters->dims[1] > 0) {
      shape = Shape{filters->dims[1]};
      found = Axes{axis(*past, 0), say("?1 ", node.outputs.at(0))};
    }
  } else if (keeps_shape().count(kind) > 0 || with_constant(node)) {
    const std::string& x = node.inputs.at(0);
    const auto known = axes.find(x);
    shape = rows(x);
    if (known != axes.end()) found = known->second;
  }
  if (shape && found) shapes[node.outputs.at(0)] = *shape, axes[node.outputs.at(0)] = *found;
}

// Whether an operation of two values takes a constant that adds nothing to the first one's shape.
bool Values::with_constant(const Node& node) const {
  static const std::set<std::string> kinds = {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"};
  if (kinds.count(node.kind()) == 0 || node.inputs.size() != 2) return false;
  const std::optional<Shape> shape = rows(node.inputs[0]);
  const Constant value = graph.constant(node.inputs[1]);
  if (!shape || value == nullptr || value->dims.size() > shape->size()) return false;
  for (size_t i = 1; i <= value->dims.size(); ++i) {
    const int64_t size = value->dims[value->dims.size() - i];
    if (size != 1 && size != (*shape)[shape->size() - i]) return false;
  }
  return true;
}

std::optional<Shape> Values::keeps_items(const std::string& name, const std::string& x) const {
  const std::optional<std::vector<Dim>> dims = sizes(name, 0);
  if (!dims || dims->size() < 3 || axis((*dims)[0]) != axes.at(x).first) return std::nullopt;
  const std::optional<Shape> trailing = item_of(*dims, 2);
  if (!trailing || product(*trailing) != product(shapes.at(x))) return std::nullopt;
  return trailing;
}

// A shape that the graph computes: numbers, names of dimensions, nothing for the unknown.
std::optional<std::vector<Dim>> Values::sizes(const std::string& name, int depth) const {
  std::vector<Dim> all;
  if (const auto constant = integers(name)) {
    for (const int64_t size : *constant) all.push_back({true, size, ""});
    return all;
  }
  const Node* node = graph.producer(name);
  if (node == nullptr || depth > kMostNested) return std::nullopt;
  if (node->kind() == "Concat") {
    for (const std::string& part : node->inputs) {
      const auto known = sizes(part, depth + 1);
      if (!known) return std::nullopt;
      all.insert(all.end(), known->begin(), known->end());
    }
    return all;
  }
  if (node->kind() != "Shape" || node->inputs.empty()) return std::nullopt;
  const int64_t start = node->integer("start", 0);
  const bool has_end = node->attribute("end") != nullptr;
  const int64_t end = node->integer("end", 0);
  if (const Port* port = input(node->inputs[0])) {
    const int64_t count = int64_t(port->dims.size());
    const auto clamped = [count](int64_t at) {
      return std::clamp<int64_t>(at < 0 ? at + count : at, 0, count);
    };
    const int64_t last = has_end ? clamped(end) : count;
    for (int64_t i = clamped(start); i < last; ++i) all.push_back(port->dims[size_t(i)]);
    return all;
  }
  if (!has_end || end - start != 1) return std::nullopt;
  return std::vector<Dim>{Dim{}};
}

}  // namespace streamssm::embed
