// The sums of the lanes of kLanes registers, as one register: a transposition that adds as it goes,
// cheaper than kLanes calls of sum() in simd.h and in the same order.
#pragma once

#include "simd.h"

namespace streamssm::STREAMSSM_ISA {

template <int... kLane>
struct LaneList {};
template <int kCount, int... kLane>
struct CountLanes : CountLanes<kCount - 1, kCount - 1, kLane...> {};
template <int... kLane>
struct CountLanes<0, kLane...> {
  using Type = LaneList<kLane...>;
};

// Lane l of a and b folded by `width`: a's sums where bit `width` of l is clear, b's where it is set.
constexpr int fold_source(int l, int width) {
  return l / (2 * width) * 2 * width + l % width + (l & width ? kLanes : 0);
}

template <int kWidth, int... kLane>
inline Vec fold(Vec a, Vec b, LaneList<kLane...>) {
  return __builtin_shufflevector(a, b, fold_source(kLane, kWidth)...) +
         __builtin_shufflevector(a, b, (fold_source(kLane, kWidth) + kWidth)...);
}

// Lane l becomes the sum of v[l]'s lanes; kWidth is kLanes / 2, and v is used up.
template <int kWidth>
inline Vec lane_sums(Vec* v) {
  STREAMSSM_UNROLL for (int i = 0; i < kWidth; ++i)
    v[i] = fold<kWidth>(v[i], v[i + kWidth], CountLanes<kLanes>::Type{});
  if constexpr (kWidth > 1) return lane_sums<kWidth / 2>(v);
  return v[0];
}

}  // namespace streamssm::STREAMSSM_ISA
