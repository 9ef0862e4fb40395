#include "cases.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "programs.h"

namespace streamssm::fuzz {
namespace {

struct Convolution : Node {
  explicit Convolution(Random& random)
      : D(random.size()), K(random.size(1)), silu(random.between(-1, 2)) {}
  Call call(Random& random) const override {
    const int64_t B = random.size() % 5, T = random.size();
    Call call;
    call.inputs = {{{B, T, D}}, {{K, D}, true}, {{D}, true}, {{B, K - 1, D}, false, 1}};
    call.integers = {{"silu", silu}};
    call.outputs = 2;
    return call;
  }
  int64_t D, K, silu;
};

struct Scan : Node {
  explicit Scan(Random& random) : D(random.size()), N(random.size()) {}
  Call call(Random& random) const override {
    const int64_t B = random.size() % 5, T = random.size();
    const std::vector<int64_t> data{B, T, D}, group{B, T, N};
    Call call;
    call.inputs = {{data},      {data},      {{N, D}, true}, {group}, {group}, {{D}, true},
                   {{D}, true}, {data},      {{B, N, D}, false, 1}};
    call.outputs = 2;
    return call;
  }
  int64_t D, N;
};

struct Dual : Node {
  explicit Dual(Random& random)
      : G(random.between(1, 4)), H(G * (random.size() % 7)), P(random.size()), N(random.size()) {}
  Call call(Random& random) const override {
    const int64_t B = random.size() % 4, T = random.chance(0.2) ? random.between(60, 140) : random.size();
    const std::vector<int64_t> group{B, T, G, N};
    Call call;
    call.inputs = {{{B, T, H, P}}, {{B, T, H}},     {{H}, true},               {group},
                   {group},        {{H, P}, true},  {{B, H, N, P}, false, 1}};
    call.outputs = 2;
    return call;
  }
  int64_t G, H, P, N;
};

struct Attention : Node {
  explicit Attention(Random& random)
      : Hkv(random.between(1, 4)),
        Hq(Hkv * random.between(0, 4)),
        dh(random.size()),
        half(random.between(0, dh / 2)),
        scale(random.normal()) {}
  Call call(Random& random) const override {
    const int64_t B = random.size() % 4, T = random.size(), W = random.size(1);
    const std::vector<int64_t> items{B, T, Hkv, dh}, ring{B, Hkv, W, dh};
    Call call;
    call.inputs = {{{B, T, Hq, dh}}, {items},         {items},        {{half}, true},
                   {ring, false, 1}, {ring, false, 2}, {{B}, false, 3}};
    call.reals = {{"scale", scale}};
    call.outputs = 4;
    return call;
  }
  int64_t Hkv, Hq, dh, half;
  float scale;
};

struct Mel : Node {
  explicit Mel(Random& random)
      : points(random.chance(0.1) ? random.between(100, 600) : random.size(1)),
        length(random.between(1, points)),
        hop(random.size(1)),
        bands(random.size()) {}
  Call call(Random& random) const override {
    const int64_t B = random.size() % 4, T = random.size() * hop;
    const int64_t P = std::max<int64_t>(0, length - hop) + random.size();
    Call call;
    call.inputs = {{{B, T}}, {{length}, true}, {{points / 2 + 1, bands}, true}, {{B, P}, false, 1}};
    call.integers = {{"hop", hop}, {"n_fft", points}};
    call.reals = {{"eps", 1e-6f}};
    call.outputs = 2;
    return call;
  }
  int64_t points, length, hop, bands;
};

struct Fused : Node {
  explicit Fused(Random& random) : program(draw_program(random)) {}
  Call call(Random& random) const override {
    const int64_t B = random.size() % 5, T = random.size();
    Call call;
    for (const int64_t width : program.inputs) call.inputs.push_back({{B, T, width}});
    call.outputs = program.outputs.size();
    for (const int64_t size : program.states) call.inputs.push_back({{B, size}, false, int(call.outputs++)});
    call.integers = {{"weights", 0}};
    call.lists = {{"program", program.words}, {"trailing", program.trailing}};
    call.lent = program.weights;
    return call;
  }
  DrawnProgram program;
};

constexpr double kMostElements = 1 << 16;

int64_t strange_size(Random& random) {
  return random.one_of({int64_t{0}, int64_t{1}, int64_t{2}, random.between(0, 100), int64_t{1} << 31,
                        int64_t{1} << 40, int64_t{1} << 62, INT64_MAX - 100});
}

// Sizes whose product cannot be allocated are real only beside a zero.
void keep_allocatable(std::vector<int64_t>& dims, Random& random) {
  double size = 1;
  for (const int64_t dim : dims) size *= double(dim);
  if (size > kMostElements) dims[size_t(random.between(0, int64_t(dims.size()) - 1))] = 0;
}

void damage_shape(std::vector<int64_t>& dims, Random& random) {
  const size_t at = dims.empty() ? 0 : size_t(random.between(0, int64_t(dims.size()) - 1));
  switch (dims.empty() ? 0 : random.between(0, 5)) {
    case 0: dims.insert(dims.begin() + long(at), random.size()); break;
    case 1: dims.erase(dims.begin() + long(at)); break;
    case 2: std::swap(dims[at], dims[0]); break;
    case 3: dims[at] += 1; break;
    case 4: dims[at] = std::max<int64_t>(0, dims[at] - 1); break;
    default: dims[at] = strange_size(random);
  }
  if (random.chance(0.05)) dims.resize(size_t(random.between(0, 9)), 1);
  keep_allocatable(dims, random);
}

void damage_words(std::vector<int64_t>& words, Random& random) {
  const size_t at = words.empty() ? 0 : size_t(random.between(0, int64_t(words.size()) - 1));
  switch (words.empty() ? 0 : random.between(0, 4)) {
    case 0: words.insert(words.begin() + long(at), random.size()); break;
    case 1: words.erase(words.begin() + long(at)); break;
    case 2: words[at] += random.between(-2, 2); break;
    case 3: words.resize(at); break;
    default: words[at] = random.chance(0.5) ? strange_size(random) : -strange_size(random);
  }
}

void damage_attributes(Call& call, Random& random) {
  for (auto& [name, value] : call.integers)
    if (random.chance(0.5)) value = random.chance(0.5) ? strange_size(random) : -random.size();
  for (auto& [name, value] : call.reals)
    if (random.chance(0.5)) value = random.one_of({0.0f, -1.0f, 1e-42f, 3e38f, -INFINITY, 0.0f / value});
  for (auto& [name, words] : call.lists)
    if (random.chance(0.5)) damage_words(words, random);
  if (random.chance(0.2) && !call.integers.empty()) call.integers.erase(call.integers.begin());
  if (random.chance(0.1)) call.reals.clear();
  if (random.chance(0.1)) call.lists.clear();
  if (random.chance(0.3) && !call.lent.empty()) call.lent.resize(size_t(random.size()));
}

}  // namespace

std::unique_ptr<Node> draw_node(const std::string& op, Random& random) {
  if (op == "CausalConv1d") return std::make_unique<Convolution>(random);
  if (op == "SelectiveScan") return std::make_unique<Scan>(random);
  if (op == "StateSpaceDual") return std::make_unique<Dual>(random);
  if (op == "SlidingWindowAttention") return std::make_unique<Attention>(random);
  if (op == "LogMel") return std::make_unique<Mel>(random);
  if (op == "Fused") return std::make_unique<Fused>(random);
  throw std::invalid_argument("no cases are drawn for " + op);
}

void damage(Call& call, Random& random) {
  for (int64_t i = random.between(1, 3); i > 0; --i) {
    if (random.chance(call.lists.empty() ? 0.15 : 0.6)) damage_attributes(call, random);
    else damage_shape(call.inputs[size_t(random.between(0, int64_t(call.inputs.size()) - 1))].dims, random);
  }
}

}  // namespace streamssm::fuzz
