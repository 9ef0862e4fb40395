// Step sizes of a SelectiveScan as a product of few numbers an item, for 16 channels: raw = low weight', on
// tensor cores, float16 or bfloat16 data, summed in float32.
//
// A thread (g, t) = (lane / 4, lane % 4) holds elements 4t to 4t + 3 of 16 of a sum, which stand for the
// hardware's 2t, 2t + 1, 2t + 8 and 2t + 9 in both operands.
#pragma once

#include <type_traits>

#include "numbers.cuh"

namespace streamssm::cuda {
namespace {

constexpr int kLowColumns = 16, kLowSteps = 4, kLowMost = 16 * kLowSteps;  // channels; numbers of an item

template <class Data>
__device__ inline uint2 low_pair(const void* from, int64_t at, bool real) {
  return real ? *reinterpret_cast<const uint2*>(static_cast<const Data*>(from) + at) : uint2{};
}

// The weights of 16 channels from channel d on.
template <class Data>
struct LowWeights {
  uint2 v[2][kLowSteps];

  __device__ void read(const LowRank& low, int64_t d, int64_t D) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int k = 0; k < kLowSteps; ++k) {
        const int64_t row = d + half * 8 + lane / 4;
        v[half][k] = low_pair<Data>(low.weight, row * low.R + k * 16 + lane % 4 * 4, row < D && k * 16 < low.R);
      }
  }
};

// A tile of items, as they are in memory.
template <int kItems>
struct LowItems {
  uint2 v[kItems / 8][kLowSteps];  // item 8i + g

  template <class Data>
  __device__ void read(const LowRank& low, int64_t row, int64_t items, int64_t first) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kItems / 8; ++i)
#pragma unroll
      for (int k = 0; k < kLowSteps; ++k) {
        const int64_t t = first + i * 8 + lane / 4;
        v[i][k] = low_pair<Data>(low.low, (row + t) * low.pitch + k * 16 + lane % 4 * 4, t < items && k * 16 < low.R);
      }
  }
};

template <class Data>
__device__ inline void low_add(float (&d)[4], uint2 upper, uint2 lower, uint2 weights) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same<Data, __half>::value) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(upper.x), "r"(lower.x), "r"(upper.y), "r"(lower.y), "r"(weights.x), "r"(weights.y));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(upper.x), "r"(lower.x), "r"(upper.y), "r"(lower.y), "r"(weights.x), "r"(weights.y));
  }
#endif
}

template <class Data, int kItems>
__device__ void low_product(const LowItems<kItems>& items, const LowWeights<Data>& weights,
                            float (&raw)[kItems][kLowColumns]) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < kItems / 8; i += 2)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum[4] = {};
#pragma unroll
      for (int k = 0; k < kLowSteps; ++k) low_add<Data>(sum, items.v[i][k], items.v[i + 1][k], weights.v[half][k]);
      *reinterpret_cast<float2*>(&raw[i * 8 + g][half * 8 + 2 * t]) = {sum[0], sum[1]};
      *reinterpret_cast<float2*>(&raw[i * 8 + 8 + g][half * 8 + 2 * t]) = {sum[2], sum[3]};
    }
}

}  // namespace
}  // namespace streamssm::cuda
