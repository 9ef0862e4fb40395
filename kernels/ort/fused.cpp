// streamssm.native::Fused <program, trailing, weights> (inputs..., states...) -> (outputs..., next...)
//
// A stretch of a model that the runtime has turned into a program when it loaded it; never part of
// a file. All tensors are float32: inputs and outputs [B, T, ...], states [B, ...]. `trailing` lists,
// for each output, how many dimensions follow [B, T], and these. `weights` is the number under which
// the packed parameters are lent.
#include <cstring>

#include "../cpu/program_decode.h"
#include "lent.h"
#include "ops.h"
#include "scratch.h"

namespace streamssm::ort {
namespace {

class Fused {
 public:
  static constexpr const char* name = "Fused";
  static constexpr Port inputs[] = {{float32, variadic}};
  static constexpr Port outputs[] = {{float32, variadic}};

  explicit Fused(const Info& info)
      : kernels_(best_kernels()),
        weights_(lent(info.integer("weights"))),
        words_(info.integers("program")),
        program_(words_.data(), int64_t(words_.size()), weights_.floats),
        trailing_(info.integers("trailing")) {
    const Program& program = program_.view();
    if (info.inputs() != size_t(program.input_count + program.state_count) ||
        info.outputs() != size_t(program.output_count + program.state_count))
      throw Failure("Fused: the program has other inputs or outputs than the node");
    if (program.input_count < 1 || program.input_count > kMost || program.output_count > kMost ||
        program.state_count > kMost)
      throw Failure("Fused: too many inputs, outputs or states");
    size_t at = 0;
    for (int64_t i = 0; i < program.output_count; ++i) {
      if (at >= trailing_.size()) throw Failure("Fused: an output has no shape");
      const int64_t count = trailing_[at++];
      int64_t width = 1;
      if (count < 0 || count > kMaxRank - 2 || at + size_t(count) > trailing_.size())
        throw Failure("Fused: an output has no shape");
      for (int64_t d = 0; d < count; ++d)
        if (__builtin_mul_overflow(width, trailing_[at++], &width))
          throw Failure("Fused: an output is too large");
      if (width != program.outputs[i]) throw Failure("Fused: the shape of an output is not its width");
    }
  }

  void compute(Context& context) const {
    const Program& program = program_.view();
    const float* inputs[kMost];
    const float* states[kMost];
    float* outputs[kMost];
    float* next[kMost];
    const Tensor first = context.input(0);
    if (first.rank < 2) refuse_rank("input 0", first, "[B, T, ...]");
    const int64_t B = first.dims[0], T = first.dims[1];
    for (int64_t i = 0; i < program.input_count; ++i) {
      const Tensor x = i == 0 ? first : context.input(size_t(i));
      if (x.rank < 2 || x.dims[0] != B || x.dims[1] != T || x.size(2) != program.inputs[i])
        refuse_rank("an input", x, ("[B, T, ...] of " + show_sizes(B, T, program.inputs[i])).c_str());
      inputs[i] = x.as<float>();
    }
    for (int64_t i = 0; i < program.state_count; ++i) {
      const Tensor state = context.input(size_t(program.input_count + i));
      if (state.rank < 1 || state.dims[0] != B || state.size(1) != program.states[i])
        refuse_rank("a state", state, ("[B, ...] of " + show_sizes(B, 1, program.states[i])).c_str());
      states[i] = state.as<float>();
      next[i] = context.output_like<float>(size_t(program.output_count + i), state);
    }
    size_t at = 0;
    for (int64_t i = 0; i < program.output_count; ++i) {
      int64_t dims[kMaxRank] = {B, T};
      const size_t count = size_t(trailing_[at++]);
      for (size_t d = 0; d < count; ++d) dims[2 + d] = trailing_[at++];
      outputs[i] = context.output<float>(size_t(i), dims, 2 + count);
    }
    if (B == 0) return;
    if (T == 0) return keep(program, B, states, next);
    Scratch::Loan scratch(scratch_, scratch_floats(program, B, T));
    const FlushDenormals flush;
    kernels_.run_program(program, {B, T, inputs, states, outputs, next, weights_.data, scratch.get()});
  }

 private:
  static constexpr int64_t kMost = 512;

  static std::string show_sizes(int64_t B, int64_t T, int64_t width) {
    const int64_t dims[] = {B, T, width};
    return show(dims, 3);
  }

  static void keep(const Program& program, int64_t B, const float* const* states, float* const* next) {
    for (int64_t i = 0; i < program.state_count; ++i)
      if (next[i] != states[i])
        std::memcpy(next[i], states[i], sizeof(float) * size_t(B * program.states[i]));
  }

  const Kernels& kernels_;
  const Lent weights_;
  const std::vector<int64_t> words_;
  const DecodedProgram program_;
  const std::vector<int64_t> trailing_;
  mutable Scratch scratch_;
};

}  // namespace

Versions fused() { return {custom_op<Fused>()}; }

}  // namespace streamssm::ort
