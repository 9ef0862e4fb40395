// Runs a program: see program.h.
#pragma once

#include "causal_conv1d.h"
#include "gemm.h"
#include "gemm_quantized.h"
#include "program.h"
#include "rows.h"
#include "selective_scan.h"
#include "state_space_dual.h"

namespace streamssm::STREAMSSM_ISA {

// Floats of a state that is fetched ahead: 64 KB.
constexpr int64_t kAhead = 1 << 14;

// One slice of a run: `items` items of each of `sequences` sequences, from item `start` and sequence
// `first` on. Buffers hold the sequences one after the other.
class Slice {
 public:
  Slice(const Program& program, const ProgramCall& call, int64_t first, int64_t sequences, int64_t start,
        int64_t items, float* const* buffers, char* rounded)
      : program_(program), call_(call), first_(first), sequences_(sequences), start_(start), items_(items),
        rows_(sequences * items), buffers_(buffers), rounded_(rounded) {}

  void run(const Instruction& instruction) {
    const int64_t* a = instruction.arguments;
    switch (instruction.code) {
      case Code::kInput: return input(a);
      case Code::kOutput: return output(a);
      case Code::kLinear: return linear(a);
      case Code::kRmsNorm:
        return rms_norm(rows_, a[4], a[5], real(a[6]), in(a + 2), weights(a[7]), out(a));
      case Code::kConv: return conv(a);
      case Code::kScan: return scan(a);
      case Code::kDual: return dual(a);
      case Code::kUnary: return unary(a);
      case Code::kBinary: return binary(a[6], out(a), in(a + 2), in(a + 4), a[7]);
      case Code::kConstant: return binary(a[4], out(a), in(a + 2), In{weights(a[6]), 0}, a[5]);
      case Code::kUnfold: return unfold_rows(a);
    }
  }

 private:
  static float real(int64_t bits) {
    const int32_t word = (int32_t)bits;
    float value;
    __builtin_memcpy(&value, &word, sizeof value);
    return value;
  }

  int64_t stride(int64_t buffer) const { return buffer_stride(program_.buffers[buffer]); }
  In in(const int64_t* view) const { return {buffers_[view[0]] + view[1], stride(view[0])}; }
  Out out(const int64_t* view) const { return {buffers_[view[0]] + view[1], stride(view[0])}; }
  const float* weights(int64_t place) const { return call_.weights + place; }

  // The rows of sequence b of a view.
  In of(In rows, int64_t b) const { return {rows.row(b * items_), rows.stride}; }
  Out of(Out rows, int64_t b) const { return {rows.row(b * items_), rows.stride}; }

  // The first slice reads the state it was given, the others what the one before has left.
  const float* state(int64_t index, int64_t b) const {
    return (start_ == 0 ? call_.states[index] : call_.next[index]) + (first_ + b) * program_.states[index];
  }
  float* next(int64_t index, int64_t b) const { return call_.next[index] + (first_ + b) * program_.states[index]; }

  // Bring the state of the next sequence to the second level of cache while this one is worked on: those
  // of many sequences do not stay there. Large ones would push out what is at hand.
  void fetch_ahead(int64_t index, int64_t b) const {
    if (b + 1 >= sequences_ || program_.states[index] > kAhead) return;
    const float* ahead = state(index, b + 1);
    for (int64_t i = 0; i < program_.states[index]; i += kPanel) __builtin_prefetch(ahead + i, 0, 2);
  }

  // The row of item t of sequence b among a call's inputs or outputs.
  int64_t place(int64_t b, int64_t t) const { return (first_ + b) * call_.T + start_ + t; }

  void input(const int64_t* a) const {
    const int64_t width = a[3];
    const Out target = out(a);
    for (int64_t b = 0; b < sequences_; ++b)
      for (int64_t t = 0; t < items_; ++t)
        __builtin_memcpy(target.row(b * items_ + t), call_.inputs[a[2]] + place(b, t) * width,
                         sizeof(float) * width);
  }

  void output(const int64_t* a) const {
    const int64_t width = a[3];
    const In source = in(a);
    for (int64_t b = 0; b < sequences_; ++b)
      for (int64_t t = 0; t < items_; ++t)
        __builtin_memcpy(call_.outputs[a[2]] + place(b, t) * width, source.row(b * items_ + t),
                         sizeof(float) * width);
  }

  void linear(const int64_t* a) const {
    const int64_t K = a[4], N = a[5], bits = a[6];
    const Finish finish = {a[10] < 0 ? nullptr : weights(a[10]), a[11] < 0 ? In{nullptr, 0} : in(a + 11)};
    if (bits == 32) return gemm(rows_, K, N, in(a + 2), weights(a[8]), finish, out(a));
    const int64_t block = a[7], blocks = (K + block - 1) / block;
    float* scales = (float*)rounded_;
    int32_t* totals = (int32_t*)(scales + rows_ * blocks);
    int8_t* values = (int8_t*)(totals + rows_ * blocks);
    round_rows(rows_, K, block, in(a + 2), values, scales, totals);
    const Rounded x = {values, scales, totals, blocks * block, blocks, block};
    const uint8_t* packed = (const uint8_t*)weights(a[8]);
    if (bits == 8)
      gemm_quantized<8>(rows_, N, x, packed, weights(a[9]), finish, out(a));
    else
      gemm_quantized<4>(rows_, N, x, packed, weights(a[9]), finish, out(a));
  }

  void conv(const int64_t* a) const {
    const ConvShape shape = {items_, a[5], a[4], a[6] != 0};
    for (int64_t b = 0; b < sequences_; ++b)
      causal_conv1d(shape, of(in(a + 2), b), weights(a[7]), weights(a[8]), state(a[9], b), of(out(a), b),
                    next(a[9], b), {0, shape.D});
  }

  void scan(const int64_t* a) const {
    const ScanShape shape = {items_, a[12], a[13]};
    for (int64_t b = 0; b < sequences_; ++b) {
      fetch_ahead(a[17], b);
      selective_scan(shape, of(in(a + 2), b), of(in(a + 4), b), weights(a[14]), of(in(a + 6), b),
                     of(in(a + 8), b), weights(a[15]), weights(a[16]), of(in(a + 10), b), state(a[17], b),
                     of(out(a), b), next(a[17], b), {0, shape.D});
    }
  }

  void dual(const int64_t* a) const {
    const DualShape shape = {items_, a[10], a[11], a[12], a[13]};
    for (int64_t b = 0; b < sequences_; ++b) {
      fetch_ahead(a[16], b);
      state_space_dual(shape, of(in(a + 2), b), of(in(a + 4), b), weights(a[14]), of(in(a + 6), b),
                       of(in(a + 8), b), weights(a[15]), state(a[16], b), of(out(a), b), next(a[16], b),
                       {0, shape.H});
    }
  }

  void unfold_rows(const int64_t* a) const {
    for (int64_t b = 0; b < sequences_; ++b)
      unfold(items_, a[4], a[5], of(in(a + 2), b), state(a[6], b), of(out(a), b), next(a[6], b));
  }

  void unary(const int64_t* a) const {
    const Out y = out(a);
    const In x = in(a + 2);
    const int64_t width = a[4];
    switch ((Function)a[5]) {
      case Function::kSigmoid: return each(rows_, width, y, x, [](Vec v) { return sigmoid(v); });
      case Function::kSilu: return each(rows_, width, y, x, [](Vec v) { return silu(v); });
      case Function::kSoftplus: return each(rows_, width, y, x, [](Vec v) { return softplus(v); });
      case Function::kExp: return each(rows_, width, y, x, [](Vec v) { return exp(v); });
      case Function::kTanh: return each(rows_, width, y, x, [](Vec v) { return tanh(v); });
      case Function::kRelu: return each(rows_, width, y, x, [](Vec v) { return v < 0.0f ? Vec{} : v; });
      default: return each(rows_, width, y, x, [](Vec v) { return v; });
    }
  }

  void binary(int64_t width, Out y, In a, In b, int64_t function) const {
    switch ((Function)function) {
      case Function::kAdd: return each(rows_, width, y, a, b, [](Vec u, Vec v) { return u + v; });
      case Function::kSubtract: return each(rows_, width, y, a, b, [](Vec u, Vec v) { return u - v; });
      case Function::kMultiply: return each(rows_, width, y, a, b, [](Vec u, Vec v) { return u * v; });
      case Function::kDivide: return each(rows_, width, y, a, b, [](Vec u, Vec v) { return u / v; });
      // a NaN on either side is the result
      case Function::kMaximum:
        return each(rows_, width, y, a, b, [](Vec u, Vec v) { return (u < v) | (v != v) ? v : u; });
      case Function::kMinimum:
        return each(rows_, width, y, a, b, [](Vec u, Vec v) { return (u > v) | (v != v) ? v : u; });
      default: return each(rows_, width, y, a, b, [](Vec u, Vec v) { return u * silu(v); });
    }
  }

  const Program& program_;
  const ProgramCall& call_;
  int64_t first_, sequences_, start_, items_, rows_;
  float* const* buffers_;
  char* rounded_;
};

constexpr int64_t kMaxBuffers = 64;

inline void run_program(const Program& program, const ProgramCall& call) {
  const Slicing most = slicing(program, call.B, call.T);
  float* buffers[kMaxBuffers];
  float* free = call.scratch;
  for (int64_t i = 0; i < program.buffer_count; ++i) {
    buffers[i] = free;
    free += most.sequences * most.items * buffer_stride(program.buffers[i]);
  }
  for (int64_t first = 0; first < call.B; first += most.sequences) {
    const int64_t sequences = call.B - first < most.sequences ? call.B - first : most.sequences;
    for (int64_t start = 0; start < call.T; start += most.items) {
      const int64_t items = call.T - start < most.items ? call.T - start : most.items;
      Slice slice(program, call, first, sequences, start, items, buffers, (char*)free);
      for (int64_t i = 0; i < program.code_count; ++i) slice.run(program.code[i]);
    }
  }
}

}  // namespace streamssm::STREAMSSM_ISA
