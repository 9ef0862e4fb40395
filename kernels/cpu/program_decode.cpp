#include "program_decode.h"

#include <stdexcept>
#include <string>

namespace streamssm {
namespace {

constexpr int64_t kLargest = int64_t{1} << 31;  // of any size: products of two cannot overflow
constexpr int64_t kPanelColumns = 16;
constexpr int64_t kMaxBufferCount = 64;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("program: " + what); }

void require(bool condition, const char* what) {
  if (!condition) refuse(what);
}

int64_t padded(int64_t columns) { return (columns + kPanelColumns - 1) / kPanelColumns * kPanelColumns; }

class Words {
 public:
  Words(const int64_t* words, int64_t count) : at_(words), end_(words + count) {}
  bool done() const { return at_ == end_; }
  int64_t take() {
    require(at_ != end_, "cut short");
    return *at_++;
  }
  int64_t size(const char* what) {
    const int64_t value = take();
    if (value < 0 || value > kLargest) refuse(std::string(what) + " " + std::to_string(value));
    return value;
  }
  std::vector<int64_t> list(int64_t count) {
    std::vector<int64_t> values;
    for (int64_t i = 0; i < count; ++i) values.push_back(size("size"));
    return values;
  }

 private:
  const int64_t *at_, *end_;
};

// Checks the arguments of instructions against the program's lists.
class Checker {
 public:
  Checker(const Program& program, int64_t weight_floats) : program_(program), weight_floats_(weight_floats) {}

  // Scratch of one row that the instruction needs for rounded inputs.
  int64_t check(const Instruction& instruction, int64_t count) {
    a_ = instruction.arguments;
    switch (instruction.code) {
      case Code::kInput:
        arguments(count, 4), view(0, a_[3]), index(a_[2], program_.input_count, program_.inputs, a_[3]);
        return 0;
      case Code::kOutput:
        arguments(count, 4), view(0, a_[3]), index(a_[2], program_.output_count, program_.outputs, a_[3]);
        return 0;
      case Code::kLinear: return linear(count);
      case Code::kRmsNorm:
        arguments(count, 8), size(4), size(5), view(0, a_[4]), view(2, a_[4]), weights(a_[7], padded(a_[4]) + 16);
        require(a_[4] % a_[5] == 0, "norm groups do not divide the width");
        return 0;
      case Code::kConv:
        arguments(count, 10), size(4), size(5), view(0, a_[5]), view(2, a_[5]);
        weights(a_[7], a_[4] * a_[5]), weights(a_[8], a_[5]), state(a_[9], (a_[4] - 1) * a_[5]);
        return 0;
      case Code::kScan: return scan(count);
      case Code::kDual: return dual(count);
      case Code::kUnary:
        arguments(count, 6), view(0, padded(a_[4])), view(2, a_[4]);
        require(a_[5] >= (int64_t)Function::kSigmoid && a_[5] <= (int64_t)Function::kCopy, "unknown function");
        return 0;
      case Code::kBinary:
        arguments(count, 8), view(0, padded(a_[6])), view(2, a_[6]), view(4, a_[6]), function(a_[7]);
        return 0;
      case Code::kConstant:
        arguments(count, 7), view(0, padded(a_[4])), view(2, a_[4]), weights(a_[6], padded(a_[4])), function(a_[5]);
        return 0;
      case Code::kUnfold:
        arguments(count, 7), size(4), size(5), view(0, a_[4] * a_[5]), view(2, a_[5]);
        state(a_[6], (a_[4] - 1) * a_[5]);
        return 0;
    }
    refuse("unknown instruction " + std::to_string((int64_t)instruction.code));
  }

 private:
  int64_t linear(int64_t count) {
    arguments(count, 13), size(4), size(5);
    const int64_t K = a_[4], N = padded(a_[5]), bits = a_[6], block = a_[7];
    view(0, N), view(2, K);
    if (a_[10] != kNone) weights(a_[10], N);
    if (a_[11] != kNone) view(11, a_[5]);
    if (bits == 32) {
      weights(a_[8], N * K);
      return 0;
    }
    require(bits == 8 || bits == 4, "bits");
    require(block >= 16 && block <= 4096 && block % 16 == 0, "block size");
    const int64_t blocks = (K + block - 1) / block;
    weights(a_[8], N * blocks * block * bits / 32);
    weights(a_[9], N * blocks);
    return blocks * (block + 8);
  }

  int64_t scan(int64_t count) {
    arguments(count, 18), size(12), size(13);
    const int64_t D = a_[12], N = a_[13];
    view(0, D), view(2, D), view(4, D), view(6, N), view(8, N), view(10, D);
    weights(a_[14], N * D), weights(a_[15], D), weights(a_[16], D), state(a_[17], N * D);
    return 0;
  }

  int64_t dual(int64_t count) {
    arguments(count, 17);
    for (int i = 10; i < 14; ++i) size(i);
    const int64_t H = a_[10], P = a_[11], G = a_[12], N = a_[13];
    require(H % G == 0, "groups do not divide the heads");
    view(0, H * P), view(2, H * P), view(4, H), view(6, G * N), view(8, G * N);
    weights(a_[14], H), weights(a_[15], H * P), state(a_[16], H * N * P);
    return 0;
  }

  void arguments(int64_t seen, int64_t wanted) const { require(seen == wanted, "wrong number of arguments"); }

  void size(int at) const { require(a_[at] > 0 && a_[at] <= (1 << 24), "size out of range"); }

  void function(int64_t value) const {
    require(value >= 0 && value <= (int64_t)Function::kGate, "unknown function");
  }

  void view(int at, int64_t width) const {
    const int64_t buffer = a_[at], offset = a_[at + 1];
    require(buffer >= 0 && buffer < program_.buffer_count, "no such buffer");
    require(offset >= 0 && width > 0 && offset <= kLargest && offset + width <= program_.buffers[buffer],
            "a view leaves its buffer");
  }

  void weights(int64_t place, int64_t floats) const {
    require(place >= 0 && floats >= 0 && place <= weight_floats_ && floats <= weight_floats_ - place,
            "weights out of range");
  }

  void state(int64_t which, int64_t floats) const { index(which, program_.state_count, program_.states, floats); }

  void index(int64_t which, int64_t count, const int64_t* sizes, int64_t wanted) const {
    require(which >= 0 && which < count, "no such input, output or state");
    require(sizes[which] == wanted, "an input, output or state has another size");
  }

  const Program& program_;
  int64_t weight_floats_;
  const int64_t* a_ = nullptr;
};

}  // namespace

DecodedProgram::DecodedProgram(const int64_t* words, int64_t count, int64_t weight_floats) {
  Words from(words, count);
  const int64_t buffers = from.size("buffers"), inputs = from.size("inputs"), outputs = from.size("outputs"),
                states = from.size("states");
  require(buffers <= kMaxBufferCount, "too many buffers");
  buffers_ = from.list(buffers), inputs_ = from.list(inputs), outputs_ = from.list(outputs);
  states_ = from.list(states);
  view_ = {buffers_.data(), buffers, inputs_.data(), inputs,  outputs_.data(), outputs,
           states_.data(),  states,  nullptr,        0,       0,             weight_floats};
  Checker checker(view_, weight_floats);
  while (!from.done()) {
    Instruction instruction{};
    instruction.code = (Code)from.take();
    const int64_t arguments = from.size("arguments");
    require(arguments <= kMaxArguments, "too many arguments");
    for (int64_t i = 0; i < arguments; ++i) instruction.arguments[i] = from.take();
    const int64_t rounded = checker.check(instruction, arguments);
    view_.rounded_bytes = rounded > view_.rounded_bytes ? rounded : view_.rounded_bytes;
    code_.push_back(instruction);
  }
  view_.code = code_.data();
  view_.code_count = (int64_t)code_.size();
}

}  // namespace streamssm
