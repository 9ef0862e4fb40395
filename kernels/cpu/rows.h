// Operations on rows: what stands between the matrix products of a block.
//
// Buffers are padded, so whole vectors are read and written past the last column.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace streamssm::STREAMSSM_ISA {

inline Vec tanh(Vec x) {
  // tanh |x| = (1 - e^(-2|x|)) / (1 + e^(-2|x|)) loses digits near 0: there its series
  const Vec a = abs(x), e = exp(-2.0f * a), far = (1.0f - e) / (1.0f + e);
  const Vec x2 = x * x;
  Vec p = splat(-1382.0f / 155925);
  p = fma(p, x2, splat(62.0f / 2835));
  p = fma(p, x2, splat(-17.0f / 315));
  p = fma(p, x2, splat(2.0f / 15));
  p = fma(p, x2, splat(-1.0f / 3));
  const Vec near = fma(p * x2, x, x), signed_far = x < 0.0f ? -far : far;
  return a < 0.3f ? near : signed_far;
}

template <typename F>
inline void each(int64_t rows, int64_t width, Out y, In a, F function) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* source = a.row(r);
    float* target = y.row(r);
    for (int64_t i = 0; i < width; i += kLanes) store(target + i, function(load(source + i)));
  }
}

// `b` with a stride of 0 is one row for all.
template <typename F>
inline void each(int64_t rows, int64_t width, Out y, In a, In b, F function) {
  for (int64_t r = 0; r < rows; ++r) {
    const float *left = a.row(r), *right = b.row(r);
    float* target = y.row(r);
    for (int64_t i = 0; i < width; i += kLanes) store(target + i, function(load(left + i), load(right + i)));
  }
}

// x / sqrt(mean(x^2) + eps) * weight, the mean over each `group` columns.
inline void rms_norm(int64_t rows, int64_t width, int64_t group, float eps, In x, const float* weight, Out y) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t start = 0; start < width; start += group) {
      const float* source = x.row(r) + start;
      float* target = y.row(r) + start;
      Vec squares[4] = {};
      int64_t i = 0;
      for (; i + 4 * kLanes <= group; i += 4 * kLanes)
        for (int part = 0; part < 4; ++part) {
          const Vec value = load(source + i + part * kLanes);
          squares[part] = fma(value, value, squares[part]);
        }
      for (; i < group; i += kLanes) {
        const Vec value = group - i >= kLanes ? load(source + i) : load_part(source + i, group - i);
        squares[0] = fma(value, value, squares[0]);
      }
      const float mean = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / (float)group;
      const float scale = 1.0f / __builtin_sqrtf(mean + eps);
      for (i = 0; i < group; i += kLanes) {
        const Vec result = load(source + i) * scale * load(weight + start + i);
        if (group - i >= kLanes)
          store(target + i, result);
        else
          store_part(target + i, result, group - i);
      }
    }
}

// Rows of K inputs side by side, oldest first; state [K-1, D] holds what came before.
inline void unfold(int64_t T, int64_t K, int64_t D, In x, const float* state, Out y, float* next) {
  for (int64_t t = 0; t < T; ++t)
    for (int64_t k = 0; k < K; ++k) {
      const int64_t at = t + k - (K - 1);
      const float* source = at < 0 ? state + (at + K - 1) * D : x.row(at);
      __builtin_memcpy(y.row(t) + k * D, source, sizeof(float) * D);
    }
  const int64_t kept = T < K - 1 ? K - 1 - T : 0;  // rows of the old state that stay
  __builtin_memmove(next, state + (K - 1 - kept) * D, sizeof(float) * kept * D);
  for (int64_t k = kept; k < K - 1; ++k)
    __builtin_memcpy(next + k * D, x.row(T - (K - 1) + k), sizeof(float) * D);
}

}  // namespace streamssm::STREAMSSM_ISA
