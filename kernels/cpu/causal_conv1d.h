// CausalConv1d: y_t = bias + sum_k weight[k] x[t - (K - 1) + k], oldest tap first; SiLU on request.
//
// Widths up to 4 keep the last K - 1 items of a register's channels in registers while the items
// go by; wider ones look them up. Both add the taps in the same order.
#pragma once

#include "denormals.h"
#include "kernels.h"
#include "simd.h"

namespace streamssm::STREAMSSM_ISA {

constexpr int kConvRegisters = 4;  // of channels in a single step

// Channels d to d + count of every row; K is known, the shift of the past is by renaming.
template <int K, bool kWhole>
inline void conv_narrow(const ConvShape& s, In x, const float* weight, const float* bias, const float* state,
                        Out y, float* next, int64_t d, int64_t count) {
  Vec tap[K], item[K];  // item[K - 1] is the present one
  for (int k = 0; k < K; ++k) tap[k] = load_lanes<kWhole>(weight + k * s.D + d, count);
  for (int k = 0; k < K - 1; ++k) item[k] = load_lanes<kWhole>(state + k * s.D + d, count);
  const Vec start = load_lanes<kWhole>(bias + d, count);
  for (int64_t t = 0; t < s.T; ++t) {
    item[K - 1] = load_lanes<kWhole>(x.row(t) + d, count);
    Vec sum = start;
    for (int k = 0; k < K; ++k) sum = fma(tap[k], item[k], sum);
    store_lanes<kWhole>(y.row(t) + d, s.silu ? silu(sum) : sum, count);
    for (int k = 0; k < K - 1; ++k) item[k] = item[k + 1];
  }
  for (int k = 0; k < K - 1; ++k) store_lanes<kWhole>(next + k * s.D + d, item[k], count);
}

// Any K. `full` is the state followed by x; next is its tail, written oldest first, so that in
// place no row is overwritten before it was read.
template <bool kWhole>
inline void conv_wide(const ConvShape& s, In x, const float* weight, const float* bias, const float* state,
                      Out y, float* next, int64_t d, int64_t count) {
  const auto full = [&](int64_t i) {
    return load_lanes<kWhole>((i < s.K - 1 ? state + i * s.D : x.row(i - (s.K - 1))) + d, count);
  };
  const Vec start = load_lanes<kWhole>(bias + d, count);
  for (int64_t t = 0; t < s.T; ++t) {
    Vec sum = start;
    for (int64_t k = 0; k < s.K; ++k)
      sum = fma(load_lanes<kWhole>(weight + k * s.D + d, count), full(t + k), sum);
    store_lanes<kWhole>(y.row(t) + d, s.silu ? silu(sum) : sum, count);
  }
  for (int64_t k = 0; k < s.K - 1; ++k) store_lanes<kWhole>(next + k * s.D + d, full(s.T + k), count);
}

// One item and any K, a few registers of channels together: they fill the time that one waits for its
// SiLU. Row k of the state is read before row k - 1 of next is written.
template <int kRegisters, bool kWhole>
inline void conv_step(const ConvShape& s, In x, const float* weight, const float* bias, const float* state,
                      Out y, float* next, int64_t d, int64_t count) {
  Vec sum[kRegisters];
  STREAMSSM_UNROLL for (int r = 0; r < kRegisters; ++r)
    sum[r] = load_lanes<kWhole>(bias + d + r * kLanes, count);
  for (int64_t k = 0; k < s.K; ++k) {
    const float* row = (k < s.K - 1 ? state + k * s.D : x.data) + d;
    STREAMSSM_UNROLL for (int r = 0; r < kRegisters; ++r) {
      const Vec item = in_register(load_lanes<kWhole>(row + r * kLanes, count));
      if (k > 0) store_lanes<kWhole>(next + (k - 1) * s.D + d + r * kLanes, item, count);
      sum[r] = fma(load_lanes<kWhole>(weight + k * s.D + d + r * kLanes, count), item, sum[r]);
    }
  }
  STREAMSSM_UNROLL for (int r = 0; r < kRegisters; ++r)
    store_lanes<kWhole>(y.data + d + r * kLanes, s.silu ? silu(sum[r]) : sum[r], count);
}

template <bool kWhole>
inline void conv_lanes(const ConvShape& s, In x, const float* weight, const float* bias, const float* state,
                       Out y, float* next, int64_t d, int64_t count) {
  if (s.T == 1) return conv_step<1, kWhole>(s, x, weight, bias, state, y, next, d, count);
  switch (s.K) {
    case 1:
      return conv_narrow<1, kWhole>(s, x, weight, bias, state, y, next, d, count);
    case 2:
      return conv_narrow<2, kWhole>(s, x, weight, bias, state, y, next, d, count);
    case 3:
      return conv_narrow<3, kWhole>(s, x, weight, bias, state, y, next, d, count);
    case 4:
      return conv_narrow<4, kWhole>(s, x, weight, bias, state, y, next, d, count);
    default:
      return conv_wide<kWhole>(s, x, weight, bias, state, y, next, d, count);
  }
}

inline void causal_conv1d(ConvShape s, In x, const float* weight, const float* bias, const float* state,
                          Out y, float* next, Range channels) {
  const FlushDenormals flush;
  int64_t d = channels.first;
  for (; s.T == 1 && d + kConvRegisters * kLanes <= channels.last; d += kConvRegisters * kLanes)
    conv_step<kConvRegisters, true>(s, x, weight, bias, state, y, next, d, kLanes);
  for (; d + kLanes <= channels.last; d += kLanes)
    conv_lanes<true>(s, x, weight, bias, state, y, next, d, kLanes);
  if (d < channels.last)
    conv_lanes<false>(s, x, weight, bias, state, y, next, d, channels.last - d);
}

}  // namespace streamssm::STREAMSSM_ISA
