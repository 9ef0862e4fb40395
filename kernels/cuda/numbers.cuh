// Numbers as the kernels see them: data of three types read and written as float32, the activations,
// and the sum of a group of threads in one fixed order.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "api.h"

namespace streamssm::cuda {

__device__ inline float widen(float v) { return v; }
__device__ inline float widen(__half v) { return __half2float(v); }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

__device__ inline void narrow(float v, float* to) { *to = v; }
__device__ inline void narrow(float v, __half* to) { *to = __float2half_rn(v); }
__device__ inline void narrow(float v, __nv_bfloat16* to) { *to = __float2bfloat16_rn(v); }

constexpr float kPerOctave = 1.44269504f;  // 1 / ln 2

// 2^x to 2 ulp; results below the normal range become 0.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float exp_fast(float x) { return exp2_fast(x * kPerOctave); }

// max(x, 0) + log1p(e), e = exp(-|x|), by log1p(e) = 2 atanh(e / (2 + e)), whose argument is at most 1/3; to
// 3 ulp. x itself above 20, as in kernels/reference_ops.py: softplus_curved leaves that choice to its caller, so
// that several can be made side by side.
constexpr float kSoftplusLinear = 20.0f;

__device__ inline float softplus_curved(float x) {
  const float e = exp_fast(-fabsf(x)), s = __fdividef(e, 2.0f + e), q = s * s;
  float sum = 2.0f / 13.0f;
  sum = fmaf(sum, q, 2.0f / 11.0f);
  sum = fmaf(sum, q, 2.0f / 9.0f);
  sum = fmaf(sum, q, 2.0f / 7.0f);
  sum = fmaf(sum, q, 2.0f / 5.0f);
  sum = fmaf(sum, q, 2.0f / 3.0f);
  sum = fmaf(sum, q, 2.0f);
  return fmaf(sum, s, fmaxf(x, 0.0f));
}

__device__ inline float softplus(float x) { return x > kSoftplusLinear ? x : softplus_curved(x); }

__device__ inline float silu(float x) { return __fdividef(x, 1.0f + exp_fast(-x)); }

// For kCount neighbouring threads with kCount values each: thread j of them gets the sum of their v[j].
// By recursion: as a loop over `half` it stayed rolled for 32 values, and v went to local memory.
template <int kCount, int half = kCount / 2>
__device__ float scatter_sum(float (&v)[kCount], int lane) {
#pragma unroll
  for (int j = 0; j < half; ++j) {
    const bool upper = lane & half;
    const float give = upper ? v[j] : v[j + half], keep = upper ? v[j + half] : v[j];
    v[j] = keep + __shfl_xor_sync(~0u, give, half);
  }
  if constexpr (half > 1) return scatter_sum<kCount, half / 2>(v, lane);
  return v[0];
}

template <class Data>
__device__ Data zero() {
  Data v;
  narrow(0.0f, &v);
  return v;
}

// What a row of a batch works on.
struct Row {
  int64_t slot;  // negative: none
  int64_t items;
};

__device__ inline Row row_of(const Rows& rows, int64_t b) {
  Row row;
  row.slot = rows.slots ? rows.slots[b] : b;
  row.items = rows.lengths ? min(max(int64_t(rows.lengths[b]), int64_t(0)), rows.T) : rows.T;
  if (row.slot < 0) row.items = 0;
  return row;
}

}  // namespace streamssm::cuda
