#include "patterns_parts.h"

#include <cfloat>
#include <cstring>

namespace streamssm::embed {
namespace {

int64_t float_bits(double value) {
  const float real = float(value);
  int32_t bits;
  std::memcpy(&bits, &real, sizeof bits);
  return bits;
}

}  // namespace

const std::map<std::string, Reader::Match>& Reader::matchers() {
  static const std::map<std::string, Match> all = {{"MatMul", &Reader::linear},
                                                   {"com.microsoft.MatMulNBits", &Reader::quantised},
                                                   {"Pow", &Reader::rms_norm},
                                                   {"streamssm.CausalConv1d", &Reader::conv},
                                                   {"streamssm.SelectiveScan", &Reader::scan},
                                                   {"streamssm.StateSpaceDual", &Reader::dual},
                                                   {"Split", &Reader::split},
                                                   {"Reshape", &Reader::regroup},
                                                   {"Identity", &Reader::identity},
                                                   {"Concat", &Reader::unfold},
                                                   {"Sigmoid", &Reader::sigmoid},
                                                   {"Softplus", &Reader::unary},
                                                   {"Exp", &Reader::unary},
                                                   {"Tanh", &Reader::unary},
                                                   {"Relu", &Reader::unary},
                                                   {"Add", &Reader::binary},
                                                   {"Sub", &Reader::binary},
                                                   {"Mul", &Reader::binary},
                                                   {"Div", &Reader::binary},
                                                   {"Max", &Reader::binary},
                                                   {"Min", &Reader::binary}};
  return all;
}

std::optional<Step> Reader::step(const Node& node) {
  if (claimed_.count(&node) > 0) return std::nullopt;
  bool named = true;  // an output that is left out has no name that could be told from another's
  for (const std::string& name : node.outputs) named = named && !name.empty();
  const auto match = matchers().find(node.kind());
  std::optional<Step> step;
  if (named && match != matchers().end()) step = (this->*match->second)(node);
  if (!step) {
    note_shape(node);
    return step;
  }
  claimed_.insert(step->nodes.begin(), step->nodes.end());
  const Axes shared = axes.at(step->inputs[0]);
  for (const std::string& name : step->outputs) axes[name] = shared;
  return step;
}

const Node* Reader::only(const std::string& name, const std::string& op) const {
  const Node* node = Values::only(name, op);
  return node != nullptr && claimed_.count(node) > 0 ? nullptr : node;
}

std::optional<Step> Reader::linear(const Node& node) {
  const auto& in = inputs_of(node, 2);
  const Constant matrix = graph.constant(in[1]);
  if (matrix == nullptr || matrix->rank() != 2 || matrix->size() == 0 || matrix->type != kFloat)
    return std::nullopt;
  const int64_t K = matrix->dims[0], N = matrix->dims[1];
  if (!has_rows(in[0], {K})) return std::nullopt;
  const std::string name = in[1];
  return product(
      node, K, N,
      [=](Assembler& program) {
        const int64_t place = program.weights(key_of("matrix", name), panels(N) * kPanel * K,
                                              [matrix](float* to) { pack_matrix(*matrix, to); });
        return Arguments{32, 0, place, 0};
      },
      4 * K * N);
}

std::optional<Step> Reader::quantised(const Node& node) {
  if (node.inputs.size() < 3) throw Malformed("a MatMulNBits with too few inputs");
  const int64_t K = node.integer("K", 0), N = node.integer("N", 0), bits = node.integer("bits", 0),
                block = node.integer("block_size", 0);
  bool fits =
      (bits == 4 || bits == 8) && node.integer("accuracy_level", 0) == 4 && block >= 16 && block % 16 == 0;
  for (size_t i = 3; i < node.inputs.size(); ++i) fits = fits && node.inputs[i].empty();
  const Constant codes = graph.constant(node.inputs[1]), scales = graph.constant(node.inputs[2]);
  if (!fits || codes == nullptr || scales == nullptr || K < 1 || N < 1) return std::nullopt;
  const int64_t blocks = (K + block - 1) / block;
  int64_t bytes = 0, factors = 0;
  if (__builtin_mul_overflow(N, blocks, &factors) ||
      __builtin_mul_overflow(factors, block * bits / 8, &bytes))
    return std::nullopt;
  if (codes->size() != bytes || scales->size() != factors || codes->type != kUint8 || scales->type != kFloat)
    return std::nullopt;
  if (!has_rows(node.inputs[0], {K})) return std::nullopt;
  const std::string name = node.inputs[1], scales_name = node.inputs[2];
  Step step = product(
      node, K, N,
      [=](Assembler& program) {
        const int64_t weights =
            program.weights(say("codes:", N, ",", blocks, ",", bits, ":", name),
                            panels(N) * kPanel * blocks * block * bits / 32,
                            [=](float* to) { pack_codes(codes->packed(), N, blocks, bits, to); });
        const int64_t place =
            program.weights(say("scales:", N, ":", scales_name), panels(N) * kPanel * blocks,
                            [=](float* to) { pack_scales(scales->packed(), N, blocks, to); });
        return Arguments{bits, block, weights, place};
      },
      K * N * bits / 8);
  step.quantised = true;
  return step;
}

// A product with what is added to it at once: a bias, a residual.
Step Reader::product(const Node& node, int64_t K, int64_t N, Place place, int64_t weight_bytes) {
  Step step;
  step.nodes = {&node}, step.inputs = {node.inputs[0]};
  std::string result = outputs_of(node, 1)[0], bias_name;
  Constant bias;
  const Node* add = only(result, "Add");
  if (add != nullptr) {
    bias_name = other(*add, result);
    bias = floats(bias_name, {N});
    if (bias != nullptr) {
      result = outputs_of(*add, 1)[0];
      step.nodes.push_back(add);
      add = only(result, "Add");
    }
  }
  const std::string added = add == nullptr ? "" : other(*add, result);
  if (add != nullptr && added != result && has_rows(added, {N}, node.inputs[0])) {
    step.inputs.push_back(added);
    step.nodes.push_back(add);
    result = outputs_of(*add, 1)[0];
  }
  shapes[result] = {N};
  step.outputs = {result}, step.weight_bytes = weight_bytes;
  step.emit = [=, inputs = step.inputs](Assembler& program) {
    Arguments weights = place(program);
    const int64_t offset = bias == nullptr ? kNone : program.vector(key_of("", bias_name), N, row(bias));
    program.define(result, N);
    Arguments all = {result, inputs[0], K, N};
    all.insert(all.end(), weights.begin(), weights.end());
    all.push_back(offset);
    if (inputs.size() > 1)
      all.push_back(inputs[1]);
    else
      all.insert(all.end(), {kNone, kNone});
    program.emit(Code::kLinear, all);
  };
  return step;
}

// x / sqrt(mean(x^2) + eps), and the weight where it follows.
std::optional<Step> Reader::rms_norm(const Node& node) {
  const auto& in = inputs_of(node, 2);
  const std::string x = in[0];
  const std::optional<Shape> shape = rows(x);
  const Node* mean = only(outputs_of(node, 1)[0], "ReduceMean");
  if (scalar(in[1]) != 2.0 || !shape || mean == nullptr || mean->inputs.size() != 2) return std::nullopt;
  const auto axis = integers(mean->inputs[1]);
  const int64_t last = int64_t(shape->size()) + 1;
  const bool inner = axis && axis->size() == 1 && ((*axis)[0] == -1 || (*axis)[0] == last);
  if (!inner || mean->integer("keepdims", 1) != 1) return std::nullopt;
  const std::string averaged = outputs_of(*mean, 1)[0];
  const Node* add = only(averaged, "Add");
  const Node* root = add == nullptr ? nullptr : only(outputs_of(*add, 1)[0], "Sqrt");
  const Node* divide = root == nullptr ? nullptr : only(outputs_of(*root, 1)[0], "Div");
  if (divide == nullptr || divide->inputs != std::vector<std::string>{x, root->outputs[0]})
    return std::nullopt;
  const std::optional<double> eps = scalar(other(*add, averaged));
  if (!eps || *eps < double(FLT_MIN)) return std::nullopt;  // denormal numbers are zero here
  Step step;
  step.nodes = {&node, mean, add, root, divide};
  std::string result = outputs_of(*divide, 1)[0], name;
  Constant weight;
  const Node* scale = only(result, "Mul");
  if (scale != nullptr) {
    weight = floats(other(*scale, result), *shape);
    if (weight != nullptr) {
      name = other(*scale, result), result = outputs_of(*scale, 1)[0];
      step.nodes.push_back(scale);
    }
  }
  shapes[result] = *shape;
  const int64_t width = streamssm::embed::product(*shape), group = shape->empty() ? 1 : shape->back();
  step.inputs = {x}, step.outputs = {result};
  step.emit = [=](Assembler& program) {
    const Assembler::Pack ones = [width](float* to) {
      for (int64_t i = 0; i < width; ++i) to[i] = 1;
    };
    const int64_t place = program.vector(key_of("norm", name), width, weight == nullptr ? ones : row(weight));
    program.define(result, width);
    program.emit(Code::kRmsNorm, {result, x, width, group, float_bits(*eps), place});
  };
  return step;
}

std::optional<Step> Reader::conv(const Node& node) {
  const auto& in = inputs_of(node, 4);
  const std::string x = in[0], weight_name = in[1], bias_name = in[2], state = in[3];
  const Constant weight = graph.constant(weight_name);
  if (weight == nullptr || weight->type != kFloat || weight->rank() != 2) return std::nullopt;
  const int64_t K = weight->dims[0], D = weight->dims[1];
  const Constant bias = floats(bias_name, {D});
  if (bias == nullptr || K < 2 || !has_rows(x, {D}) || !is_input(state)) return std::nullopt;
  const std::string y = outputs_of(node, 2)[0];
  const int64_t silu = node.integer("silu", 0) != 0;
  shapes[y] = {D};
  Step step;
  step.nodes = {&node}, step.inputs = {x}, step.outputs = {y};
  step.states = {{state, node.outputs[1]}}, step.recurrent = true;
  step.emit = [=](Assembler& program) {
    const int64_t taps = program.weights(key_of("as is", weight_name), K * D, row(weight));
    const int64_t place = program.vector(key_of("", bias_name), D, row(bias));
    const int64_t slot = program.port(Assembler::kStates, (K - 1) * D);
    program.define(y, D);
    program.emit(Code::kConv, {y, x, K, D, silu, taps, place, slot});
  };
  return step;
}

std::optional<Step> Reader::scan(const Node& node) {
  const std::vector<std::string> in = inputs_of(node, 9);  // x, dt, A, B, C, D, bias, z, state
  const std::string &x = in[0], &state = in[8];
  const Constant A = graph.constant(in[2]);
  if (A == nullptr || A->rank() != 2 || A->size() == 0 || A->type != kFloat || !is_input(state))
    return std::nullopt;
  const int64_t N = A->dims[0], D = A->dims[1];
  const Constant skip = floats(in[5], {D}), bias = floats(in[6], {D});
  const std::vector<std::pair<std::string, Shape>> wanted = {
      {x, {D}}, {in[1], {D}}, {in[3], {N}}, {in[4], {N}}, {in[7], {D}}};
  if (skip == nullptr || bias == nullptr) return std::nullopt;
  Step step;
  for (const auto& [name, shape] : wanted) {
    if (!has_rows(name, shape, x)) return std::nullopt;
    step.inputs.push_back(name);
  }
  const std::string y = outputs_of(node, 2)[0];
  shapes[y] = {D};
  step.nodes = {&node}, step.outputs = {y};
  step.states = {{state, node.outputs[1]}}, step.recurrent = true;
  step.emit = [=, sources = step.inputs](Assembler& program) {
    const int64_t decay = program.weights(key_of("as is", in[2]), N * D, row(A));
    const int64_t skips = program.vector(key_of("", in[5]), D, row(skip));
    const int64_t biases = program.vector(key_of("", in[6]), D, row(bias));
    const int64_t slot = program.port(Assembler::kStates, N * D);
    program.define(y, D);
    program.emit(Code::kScan, {y, sources[0], sources[1], sources[2], sources[3], sources[4], D, N, decay,
                               skips, biases, slot});
  };
  return step;
}

std::optional<Step> Reader::dual(const Node& node) {
  const std::vector<std::string> in = inputs_of(node, 7);  // x, dt, A, B, C, D, state
  const std::string &x = in[0], &state = in[6];
  const std::optional<Shape> heads = rows(x), groups = rows(in[3], nullptr, &x);
  if (!heads || !groups || heads->size() != 2 || groups->size() != 2 || !is_input(state)) return std::nullopt;
  const int64_t H = (*heads)[0], P = (*heads)[1], G = (*groups)[0], N = (*groups)[1];
  const Constant A = floats(in[2], {H}), skip = floats(in[5], {H, P});
  if (A == nullptr || skip == nullptr || !has_rows(in[1], {H}, x) || !has_rows(in[4], *groups, x))
    return std::nullopt;
  const std::string y = outputs_of(node, 2)[0];
  shapes[y] = *heads;
  Step step;
  step.nodes = {&node}, step.inputs = {x, in[1], in[3], in[4]}, step.outputs = {y};
  step.states = {{state, node.outputs[1]}}, step.recurrent = true;
  step.emit = [=, sources = step.inputs](Assembler& program) {
    const int64_t decay = program.vector(key_of("", in[2]), H, row(A));
    const int64_t skips = program.vector(key_of("", in[5]), H * P, row(skip));
    const int64_t slot = program.port(Assembler::kStates, H * N * P);
    program.define(y, H * P);
    program.emit(Code::kDual,
                 {y, sources[0], sources[1], sources[2], sources[3], H, P, G, N, decay, skips, slot});
  };
  return step;
}

}  // namespace streamssm::embed
