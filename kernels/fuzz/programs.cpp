#include "programs.h"

#include <cstring>

#include "../cpu/program.h"

namespace streamssm::fuzz {
namespace {

int64_t padded(int64_t columns) { return (columns + 15) / 16 * 16; }

class Chain {
 public:
  explicit Chain(Random& random) : random_(random) {}

  DrawnProgram make() {
    width_ = random_.size(1);
    program_.inputs = {width_};
    append(Code::kInput, {buffer(width_), 0, 0, width_});
    for (int64_t left = random_.between(0, 6); left > 0; --left) step();
    append(Code::kOutput, {current_, 0, 0, width_});
    program_.outputs = {width_};
    program_.trailing = {1, width_};
    const std::vector<int64_t>*lists[] = {&buffers_, &program_.inputs, &program_.outputs, &program_.states};
    for (const auto* list : lists) program_.words.push_back(int64_t(list->size()));
    for (const auto* list : lists) program_.words.insert(program_.words.end(), list->begin(), list->end());
    program_.words.insert(program_.words.end(), code_.begin(), code_.end());
    return program_;
  }

 private:
  void step() {
    const int64_t from = current_, D = width_;
    switch (random_.between(2, 10)) {
      case int64_t(Code::kLinear): return linear(from, D);
      case int64_t(Code::kRmsNorm): {
        const int64_t group = D / divisor(D);
        return append(Code::kRmsNorm, {buffer(D), 0, from, 0, D, group, epsilon(), weights(padded(D) + 16)});
      }
      case int64_t(Code::kConv): {
        const int64_t K = random_.between(1, 6), silu = random_.between(0, 1);
        const int64_t weight = weights(K * D), bias = weights(D), past = state((K - 1) * D);
        return append(Code::kConv, {buffer(D), 0, from, 0, K, D, silu, weight, bias, past});
      }
      case int64_t(Code::kScan): {
        const int64_t N = random_.between(1, D), A = weights(N * D), skip = weights(D), bias = weights(D);
        const int64_t group = random_.between(0, D - N), past = state(N * D);
        return append(Code::kScan, {buffer(D), 0, from, 0, from, 0, from, group, from, 0, from, 0,
                                    D, N, A, skip, bias, past});
      }
      case int64_t(Code::kDual): {
        const int64_t H = divisor(D), P = D / H, G = divisor(H), N = random_.between(1, D / G);
        const int64_t A = weights(H), skip = weights(D), past = state(D * N);
        return append(Code::kDual,
                      {buffer(D), 0, from, 0, from, 0, from, 0, from, 0, H, P, G, N, A, skip, past});
      }
      case int64_t(Code::kUnary):
        return append(Code::kUnary, {buffer(D), 0, from, 0, D, random_.between(16, 22)});
      case int64_t(Code::kBinary):
        return append(Code::kBinary, {buffer(D), 0, from, 0, from, 0, D, random_.between(0, 6)});
      case int64_t(Code::kConstant): {
        const int64_t function = random_.between(0, 6), vector = weights(padded(D));
        return append(Code::kConstant, {buffer(D), 0, from, 0, D, function, vector});
      }
      default: {
        const int64_t K = random_.between(1, 4), past = state((K - 1) * D);
        width_ = K * D;
        return append(Code::kUnfold, {buffer(width_), 0, from, 0, K, D, past});
      }
    }
  }

  void linear(int64_t from, int64_t K) {
    const int64_t N = random_.size(1), bits = random_.one_of<int64_t>({32, 8, 4});
    const int64_t block = bits == 32 ? 0 : 16 * random_.between(1, 9);
    const int64_t blocks = bits == 32 ? 0 : (K + block - 1) / block;
    const int64_t place = weights(bits == 32 ? padded(N) * K : padded(N) * blocks * block * bits / 32);
    const int64_t scales = bits == 32 ? 0 : weights(padded(N) * blocks);
    const int64_t bias = random_.chance(0.5) ? weights(padded(N)) : kNone;
    const bool adds = N <= K && random_.chance(0.5);
    width_ = N;
    append(Code::kLinear, {buffer(N), 0, from, 0, K, N, bits, block, place, scales, bias, adds ? from : kNone,
                           adds ? 0 : kNone});
  }

  int64_t divisor(int64_t number) {
    for (;;) {
      const int64_t guess = random_.between(1, number);
      if (number % guess == 0) return guess;
    }
  }

  static int64_t epsilon() {
    const float value = 1e-5f;
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
  }

  int64_t buffer(int64_t width) {
    buffers_.push_back(padded(width));
    current_ = int64_t(buffers_.size()) - 1;
    return current_;
  }

  int64_t weights(int64_t floats) {
    const int64_t place = padded(int64_t(program_.weights.size()));
    program_.weights.resize(size_t(place));
    for (int64_t i = 0; i < floats; ++i) program_.weights.push_back(random_.normal());
    return place;
  }

  int64_t state(int64_t floats) {
    program_.states.push_back(floats);
    return int64_t(program_.states.size()) - 1;
  }

  void append(Code code, std::initializer_list<int64_t> arguments) {
    code_.push_back(int64_t(code));
    code_.push_back(int64_t(arguments.size()));
    code_.insert(code_.end(), arguments);
  }

  Random& random_;
  DrawnProgram program_;
  std::vector<int64_t> buffers_, code_;
  int64_t width_ = 0, current_ = 0;
};

}  // namespace

DrawnProgram draw_program(Random& random) { return Chain(random).make(); }

}  // namespace streamssm::fuzz
