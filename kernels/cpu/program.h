// A stretch of a model as a list of instructions over rows of floats.
//
// The runtime turns the nodes of a graph into such a program when it loads a model; the program
// then runs them without the cost of one call a node, and with its intermediate results in the
// cache. Rows are items: B sequences of T. Buffers hold one row an item; a value is a view of a
// buffer: columns [offset, offset + width). Parameters lie in one array, `weights`.
//
// A long chunk is run in slices of time, so memory does not grow with T; nothing that an item's
// result goes through depends on the slicing.
#pragma once

#include <cstdint>

namespace streamssm {

enum class Code : int64_t {
  kInput = 0,      // dst, input, width
  kOutput = 1,     // src, output, width
  kLinear = 2,     // dst, src, K, N, bits, block, weights, scales, bias, added
  kRmsNorm = 3,    // dst, src, width, group, eps, weight
  kConv = 4,       // dst, src, K, D, silu, weight, bias, state
  kScan = 5,       // dst, x, dt, B, C, z, D, N, A, skip, dt_bias, state
  kDual = 6,       // dst, x, dt, B, C, H, P, G, N, A, skip, state
  kUnary = 7,      // dst, src, width, function
  kBinary = 8,     // dst, a, b, width, function
  kConstant = 9,   // dst, src, width, function, vector
  kUnfold = 10,    // dst, src, K, D, state: the last K items side by side, oldest first
};

enum class Function : int64_t {
  kAdd = 0, kSubtract = 1, kMultiply = 2, kDivide = 3, kMaximum = 4, kMinimum = 5,
  kGate = 6,  // a * silu(b)
  kSigmoid = 16, kSilu = 17, kSoftplus = 18, kExp = 19, kTanh = 20, kRelu = 21, kCopy = 22,
};

constexpr int64_t kNone = -1;
constexpr int kMaxArguments = 24;

// A view takes two arguments, buffer and offset. Places in `weights` are in floats.
struct Instruction {
  Code code;
  int64_t arguments[kMaxArguments];
};

// Lists of a program; plain pointers, for the code that is compiled once per instruction set.
struct Program {
  const int64_t* buffers;  // width of each, in floats
  int64_t buffer_count;
  const int64_t* inputs;   // width of each
  int64_t input_count;
  const int64_t* outputs;  // width of each
  int64_t output_count;
  const int64_t* states;   // floats of each, for one sequence
  int64_t state_count;
  const Instruction* code;
  int64_t code_count;
  int64_t rounded_bytes;   // scratch of one row for 8-bit products
  int64_t weight_floats;
};

// One run. Arrays of pointers, in the order of the program's lists.
struct ProgramCall {
  int64_t B, T;
  const float* const* inputs;
  const float* const* states;
  float* const* outputs;
  float* const* next;
  const float* weights;
  float* scratch;  // scratch_floats() floats at a multiple of 64 bytes
};

// Rows that pass through the program together: some items of some sequences. Their values fit the
// second level of cache, and the weights are read once for all of them. Weights that stay in that
// cache themselves are read again cheaply: then it is the first level that the values should fit.
constexpr int64_t kSliceRows = 192, kFewRows = 32, kNearWeights = 1 << 19;

struct Slicing {
  int64_t sequences, items;
};

// Slices as equal as they can be; of short sequences several go together.
static inline Slicing slicing(const Program& program, int64_t B, int64_t T) {
  const int64_t rows = program.weight_floats <= kNearWeights ? kFewRows : kSliceRows;
  const int64_t slices = (T + rows - 1) / rows;
  const int64_t items = slices > 0 ? (T + slices - 1) / slices : 0;
  const int64_t together = items > 0 ? rows / items : 1, groups = together > 0 ? (B + together - 1) / together : B;
  return {groups > 0 ? (B + groups - 1) / groups : 0, items};
}

// The stride of a buffer of `width` floats: whole cache lines with room for a vector that begins at
// the last column, and an odd number of them, or many rows would share few sets of the cache.
static inline int64_t buffer_stride(int64_t width) { return ((width + 31) / 16 | 1) * 16; }

// Floats of scratch for a run.
static inline int64_t scratch_floats(const Program& program, int64_t B, int64_t T) {
  int64_t row = (program.rounded_bytes + 3) / 4 + 16;
  for (int64_t i = 0; i < program.buffer_count; ++i) row += buffer_stride(program.buffers[i]);
  const Slicing slice = slicing(program, B, T);
  return slice.sequences * slice.items * row + 16;
}

}  // namespace streamssm
