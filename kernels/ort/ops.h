// What the operators share: their parameters, how their work is cut for threads, and how data of
// 16 bits passes through kernels that know float32 only.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "../cpu/denormals.h"
#include "../cpu/kernels.h"
#include "op.h"

#define STREAMSSM_EXPORT extern "C" __attribute__((visibility("default")))

#if defined(STREAMSSM_FUZZ)
namespace streamssm {
const Kernels* kernels_of_this_process();  // kernels/fuzz/main.cpp
}
#endif

namespace streamssm::ort {

// Every typed version of an operator. State and parameters are float32 in all of them.
using Versions = std::vector<const OrtCustomOp*>;
Versions causal_conv1d();
Versions selective_scan();
Versions state_space_dual();
Versions sliding_window_attention();
Versions log_mel();
Versions fused();

template <template <Type> class Op>
Versions every_type() {
  return {custom_op<Op<float32>>(), custom_op<Op<float16>>(), custom_op<Op<bfloat16>>()};
}

// The functions for this processor. Refuses one that has none.
inline const Kernels& best_kernels() {
#if defined(STREAMSSM_FUZZ)  // tries them all in one process
  const Kernels* const table = kernels_of_this_process();
#else
  static const Kernels* const table = kernels();
#endif
  if (table == nullptr) throw Failure("this processor lacks the instructions that the kernels need");
  return *table;
}

// An input that is part of nearly every model, and is then looked up only once.
class Parameter {
 public:
  Parameter(const Info& info, size_t index) : index_(index), constant_(info.constant(index)) {}

  Tensor get(const Context& context) const { return constant_ ? *constant_ : context.input(index_); }

 private:
  size_t index_;
  std::optional<Tensor> constant_;
};

// Below this many products a call is faster on one thread than the others take to wake up.
#if defined(STREAMSSM_FUZZ)
constexpr double kParallelWork = 1 << 10;
#else
constexpr double kParallelWork = 1 << 20;
#endif
constexpr double kMostParts = 16;  // narrower ones share less work inside a kernel

// Calls work(row, range) for every row of a batch and every part of [0, units), where about `cost`
// products are done for each unit of each row. Parts are multiples of `grain`, so that a unit
// falls on the same lane of a register however many parts there are.
template <class Work>
void for_parts(const Context& context, int64_t batch, int64_t units, int64_t grain, double cost,
               const Work& work) {
  const double total = double(batch) * double(units) * cost;
  const int64_t most = std::max<int64_t>((units + grain - 1) / grain, 1);
  const int64_t wanted = int64_t(std::min(total / kParallelWork, kMostParts)) / std::max<int64_t>(batch, 1);
  const int64_t parts = std::clamp<int64_t>(wanted, 1, most);
  const int64_t step = (most + parts - 1) / parts * grain;
  std::atomic<bool> memory_ran_out{false};
  auto part = [&](size_t i) {
    const FlushDenormals guard;
    const int64_t first = std::min(int64_t(i) % parts * step, units);
    try {
      work(int64_t(i) / parts, Range{first, std::min(first + step, units)});
    } catch (const std::bad_alloc&) {  // nothing may leave a thread of ONNX Runtime's
      memory_ran_out = true;
    }
  };
  if (total < kParallelWork) {
    for (int64_t i = 0; i < batch * parts; ++i) part(size_t(i));
  } else {
    context.parallel(size_t(batch * parts), part);
  }
  if (memory_ran_out) throw std::bad_alloc();
}

// Items [start, start + items) of one row of a batch, as float32. For data that is float32 there
// is one tile and nothing is copied; otherwise the tiles are short and carry the state on.
template <Type kData>
class Tile {
 public:
  static constexpr int64_t kItems = 64;

  Tile(const Kernels& kernels, int64_t row, int64_t T, int64_t start, int64_t items, float* scratch)
      : start(start), items(items), kernels_(kernels), at_(row * T + start), scratch_(scratch) {}

  // Columns outside of `columns` are left undefined.
  In in(const Tensor& x, int64_t width, Range columns) {
    if constexpr (kData == float32) return {x.as<float>() + at_ * width, width};
    const uint16_t* from = x.as<uint16_t>() + at_ * width;
    float* to = take(width);
    const auto widen = kData == float16 ? kernels_.from_half : kernels_.from_bfloat16;
    for (int64_t at = columns.first; at < items * width; at += width)
      widen(from + at, to + at, columns.last - columns.first);
    return {to, width};
  }
  In in(const Tensor& x, int64_t width) { return in(x, width, {0, width}); }

  Out out(void* y, int64_t width) {
    if constexpr (kData == float32) return {static_cast<float*>(y) + at_ * width, width};
    return {take(width), width};
  }

  // Brings what the kernel wrote to `out` to where it belongs.
  void finish(const Out& out, void* y, Range columns) const {
    if constexpr (kData == float32) return;
    uint16_t* to = static_cast<uint16_t*>(y) + at_ * out.stride;
    const auto narrow = kData == float16 ? kernels_.to_half : kernels_.to_bfloat16;
    for (int64_t at = columns.first; at < items * out.stride; at += out.stride)
      narrow(out.data + at, to + at, columns.last - columns.first);
  }

  const int64_t start, items;

 private:
  float* take(int64_t width) {
    float* memory = scratch_;
    scratch_ += items * width;
    return memory;
  }

  const Kernels& kernels_;
  const int64_t at_;
  float* scratch_;
};

// Calls work(tile) for the tiles of one row, of which `floats` per item are converted; once, with
// no items, for T = 0.
template <Type kData, class Work>
void for_tiles(const Kernels& kernels, int64_t row, int64_t T, int64_t floats, const Work& work) {
  if constexpr (kData == float32) {
    Tile<kData> tile(kernels, row, T, 0, T, nullptr);
    work(tile);
  } else {
    const int64_t longest = std::min(T, Tile<kData>::kItems);
    const std::unique_ptr<float[]> scratch(new float[size_t(longest * floats)]);
    int64_t start = 0;
    do {
      Tile<kData> tile(kernels, row, T, start, std::min(T - start, longest), scratch.get());
      work(tile);
      start += longest;
    } while (start < T);
  }
}

}  // namespace streamssm::ort
