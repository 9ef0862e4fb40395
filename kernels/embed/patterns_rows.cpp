// Operations on the rows of one item: splits, new shapes, functions of one or two rows, unfolded windows.
#include <algorithm>
#include <map>

#include "patterns_parts.h"

namespace streamssm::embed {
namespace {

std::optional<Function> unary_function(const std::string& kind) {
  static const std::map<std::string, Function> all = {{"Sigmoid", Function::kSigmoid},
                                                      {"Softplus", Function::kSoftplus},
                                                      {"Exp", Function::kExp},
                                                      {"Tanh", Function::kTanh},
                                                      {"Relu", Function::kRelu}};
  const auto found = all.find(kind);
  return found == all.end() ? std::nullopt : std::optional(found->second);
}

std::optional<Function> binary_function(const std::string& kind) {
  static const std::map<std::string, Function> all = {
      {"Add", Function::kAdd},    {"Sub", Function::kSubtract}, {"Mul", Function::kMultiply},
      {"Div", Function::kDivide}, {"Max", Function::kMaximum},  {"Min", Function::kMinimum}};
  const auto found = all.find(kind);
  return found == all.end() ? std::nullopt : std::optional(found->second);
}

}  // namespace

std::optional<Step> Reader::split(const Node& node) {
  const std::string x = node.inputs.at(0);
  const std::optional<Shape> shape = rows(x);
  const int64_t axis = node.integer("axis", 0), count = int64_t(node.outputs.size());
  if (!shape || shape->size() != 1 || (axis != 2 && axis != -1)) return std::nullopt;
  std::vector<int64_t> sizes(size_t(count), (*shape)[0] / std::max<int64_t>(count, 1));
  if (node.inputs.size() > 1) {
    const auto given = integers(node.inputs[1]);
    if (!given) return std::nullopt;
    sizes = *given;
  }
  int64_t sum = 0;
  for (const int64_t size : sizes)
    if (size < 1 || __builtin_add_overflow(sum, size, &sum)) return std::nullopt;
  if (sum != (*shape)[0] || int64_t(sizes.size()) != count) return std::nullopt;
  Step step;
  step.nodes = {&node}, step.inputs = {x}, step.outputs = node.outputs;
  for (size_t i = 0; i < sizes.size(); ++i) shapes[node.outputs[i]] = {sizes[i]};
  step.emit = [=, outputs = node.outputs](Assembler& program) {
    int64_t offset = 0;
    for (size_t i = 0; i < sizes.size(); offset += sizes[i++]) program.alias(outputs[i], x, offset);
  };
  return step;
}

std::optional<Step> Reader::regroup(const Node& node) {
  const std::string& x = node.inputs.at(0);
  if (!rows(x)) return std::nullopt;
  const std::optional<Shape> target = keeps_items(node.inputs.at(1), x);
  if (!target) return std::nullopt;
  return renamed(node, x, *target);
}

std::optional<Step> Reader::identity(const Node& node) {
  const std::optional<Shape> shape = rows(node.inputs.at(0));
  if (!shape) return std::nullopt;
  return renamed(node, node.inputs[0], *shape);
}

Step Reader::renamed(const Node& node, const std::string& x, const Shape& shape) {
  const std::string result = node.outputs.at(0);
  shapes[result] = shape;
  Step step;
  step.nodes = {&node}, step.inputs = {x}, step.outputs = {result};
  step.emit = [=](Assembler& program) { program.alias(result, x); };
  return step;
}

// Sigmoid, x sigmoid(x), or a x sigmoid(x).
std::optional<Step> Reader::sigmoid(const Node& node) {
  const std::string& x = node.inputs.at(0);
  const std::optional<Shape> shape = rows(x);
  if (!shape) return std::nullopt;
  const std::string& squashed = outputs_of(node, 1)[0];
  const Node* silu = only(squashed, "Mul");
  if (silu == nullptr || other(*silu, squashed) != x) return unary(node);
  const std::string& result = outputs_of(*silu, 1)[0];
  const Node* gate = only(result, "Mul");
  const std::string gated = gate == nullptr ? "" : other(*gate, result);
  if (gate != nullptr && gated != result && has_rows(gated, *shape, x))
    return rowwise({&node, silu, gate}, {gated, x}, *shape, Code::kBinary, Function::kGate);
  return rowwise({&node, silu}, {x}, *shape, Code::kUnary, Function::kSilu);
}

std::optional<Step> Reader::unary(const Node& node) {
  const std::optional<Shape> shape = rows(node.inputs.at(0));
  const std::optional<Function> function = unary_function(node.kind());
  if (!shape || !function) return std::nullopt;
  return rowwise({&node}, {node.inputs[0]}, *shape, Code::kUnary, *function);
}

std::optional<Step> Reader::binary(const Node& node) {
  const std::optional<Function> function = binary_function(node.kind());
  if (node.inputs.size() != 2 || !function) return std::nullopt;
  std::string a = node.inputs[0], b = node.inputs[1];
  const bool turns = *function != Function::kSubtract && *function != Function::kDivide;
  if (graph.constant(a) != nullptr && turns) std::swap(a, b);
  const std::optional<Shape> shape = rows(a);
  if (!shape) return std::nullopt;
  if (graph.constant(b) != nullptr) return with_constant_row(node, a, b, *shape, *function);
  if (!has_rows(b, *shape, a)) return std::nullopt;
  return rowwise({&node}, {a, b}, *shape, Code::kBinary, *function);
}

std::optional<Step> Reader::with_constant_row(const Node& node, const std::string& x, const std::string& name,
                                              const Shape& shape, Function function) {
  const Constant values = graph.constant(name);
  if (values == nullptr || values->type != kFloat) return std::nullopt;
  const bool whole = values->dims == shape;
  if (!whole && !values->dims.empty() && values->dims != Shape{1}) return std::nullopt;
  const std::string result = outputs_of(node, 1)[0];
  const int64_t width = streamssm::embed::product(shape);
  shapes[result] = shape;
  Step step;
  step.nodes = {&node}, step.inputs = {x}, step.outputs = {result};
  step.emit = [=](Assembler& program) {
    const Assembler::Pack same = [=](float* to) {
      for (int64_t i = 0; i < width; ++i) to[i] = values->at(0);
    };
    const int64_t place = program.vector(key_of("row", name), width, whole ? row(values) : same);
    program.define(result, width);
    program.emit(Code::kConstant, {result, x, width, int64_t(function), place});
  };
  return step;
}

Step Reader::rowwise(std::vector<const Node*> nodes, std::vector<std::string> inputs, const Shape& shape,
                     Code code, Function function) {
  const std::string result = outputs_of(*nodes.back(), 1)[0];
  const int64_t width = streamssm::embed::product(shape);
  shapes[result] = shape;
  Step step;
  step.nodes = std::move(nodes), step.inputs = std::move(inputs), step.outputs = {result};
  step.emit = [=, sources = step.inputs](Assembler& program) {
    program.define(result, width);
    Arguments all = {result};
    for (const std::string& name : sources) all.push_back(name);
    all.insert(all.end(), {width, int64_t(function)});
    program.emit(code, all);
  };
  return step;
}

// The last K items side by side: Concat[state, x] in time, K slices of it, Concat of these.
std::optional<Step> Reader::unfold(const Node& node) {
  if (node.integer("axis", 0) != 1 || node.inputs.size() != 2) return std::nullopt;
  const std::string state = node.inputs[0], x = node.inputs[1], &joint = node.outputs.at(0);
  const Port* port = nullptr;
  for (const Port& candidate : graph.inputs())
    if (port == nullptr && candidate.name == state) port = &candidate;
  if (port == nullptr || port->dims.size() != 3 || !port->dims[1].fixed || !port->dims[2].fixed)
    return std::nullopt;
  if (!is_input(state)) return std::nullopt;
  const int64_t past = port->dims[1].size, D = port->dims[2].size;
  const std::vector<const Node*>& slices = graph.consumers(joint);
  std::map<std::optional<std::pair<int64_t, int64_t>>, const Node*> found;
  for (const Node* part : slices) found[time_slice(*part)] = part;
  const auto at = [&found](int64_t first, int64_t last) -> const Node* {
    const auto place = found.find(std::pair{first, last});
    return place == found.end() ? nullptr : place->second;
  };
  if (past < 0 || int64_t(slices.size()) != past + 2) return std::nullopt;
  Step step;
  step.nodes = {&node};
  std::vector<std::string> taps;
  const Node* joined = nullptr;
  for (int64_t k = 0; k <= past; ++k) {
    const Node* tap = at(k, k < past ? k - past : 0);
    if (tap == nullptr) return std::nullopt;
    taps.push_back(outputs_of(*tap, 1)[0]);
    const Node* reader = only(taps.back(), "Concat");
    if (reader == nullptr || (joined != nullptr && reader != joined)) return std::nullopt;
    joined = reader;
    step.nodes.push_back(tap);
  }
  const Node* following = at(-past, 0);
  if (following == nullptr) return std::nullopt;
  const int64_t axis = joined->integer("axis", 0);
  if ((axis != 2 && axis != -1) || joined->inputs != taps || !has_rows(x, {D})) return std::nullopt;
  const std::string next = outputs_of(*following, 1)[0], result = outputs_of(*joined, 1)[0];
  if (!graph.consumers(next).empty() || graph.results().count(joint) > 0) return std::nullopt;
  const int64_t K = past + 1;
  shapes[result] = {K * D};
  step.nodes.push_back(following), step.nodes.push_back(joined);
  step.inputs = {x}, step.outputs = {result}, step.states = {{state, next}};
  step.emit = [=](Assembler& program) {
    const int64_t slot = program.port(Assembler::kStates, past * D);
    program.define(result, K * D);
    program.emit(Code::kUnfold, {result, x, K, D, slot});
  };
  return step;
}

// First and last (0: the end) of a slice along time with step 1.
std::optional<std::pair<int64_t, int64_t>> Reader::time_slice(const Node& node) const {
  if (node.kind() != "Slice" || node.inputs.size() < 4) return std::nullopt;
  std::vector<int64_t> values;
  for (size_t i = 1; i < node.inputs.size(); ++i) {
    const auto list = integers(node.inputs[i]);
    if (!list || list->size() != 1) return std::nullopt;
    values.push_back((*list)[0]);
  }
  const bool single = values.size() == 3 || (values.size() == 4 && values[3] == 1);
  if (values[2] != 1 || !single || values[1] == 0) return std::nullopt;
  return std::pair{values[0], values[1] > (int64_t(1) << 62) ? 0 : values[1]};
}

}  // namespace streamssm::embed
