// The walk's first phase: in_proj, then the convolution and the gate.
#pragma once

#include "rows_walk_layer.cuh"

namespace streamssm::cuda::rows::walk {

template <class S>
__device__ Taps Layer<S>::load_taps(int fragment) const {
  Taps taps{};
  if (fragment >= kConvFragments) return taps;
  const float* from = c.conv.state + layer * c.conv.layer_stride + at.block * kChannels +
                      fragment / kRowTiles * 8 + lane() % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t slot = sh.slots[fragment % kRowTiles * 16 + half * 8 + lane() / 4];
#pragma unroll
    for (int k = 0; k < kTaps - 1; ++k)
      if (slot >= 0) taps.past[half][k] = fetch2(from + slot * c.conv.slot_stride + k * kInner);
  }
  return taps;
}

template <class S>
__device__ void Layer<S>::store_taps(int fragment, const Taps& taps) const {
  if (fragment >= kConvFragments) return;
  float* to = c.conv.next + layer * c.conv.layer_stride + at.block * kChannels + fragment / kRowTiles * 8 +
              lane() % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t slot = sh.slots[fragment % kRowTiles * 16 + half * 8 + lane() / 4];
#pragma unroll
    for (int k = 0; k < kTaps - 1; ++k)
      if (slot >= 0) *reinterpret_cast<float2*>(to + slot * c.conv.slot_stride + k * kInner) = taps.past[half][k];
  }
}

template <class S>
__device__ float2 Layer<S>::convolve(int channel, float2 (&past)[kTaps - 1], float2 now) const {
  const auto vector = [&](const float* v) { return *reinterpret_cast<const float2*>(v + channel); };
  float2 sum = vector(sh.small.conv_bias);
#pragma unroll
  for (int k = 0; k < kTaps; ++k) {
    const float2 w = vector(sh.small.taps[k]), v = k + 1 < kTaps ? past[k + 1 < kTaps ? k : 0] : now;
    sum.x = fmaf(w.x, v.x, sum.x), sum.y = fmaf(w.y, v.y, sum.y);
    if (k > 0) past[k - 1] = v;
  }
  return {silu(sum.x), silu(sum.y)};
}

template <class S>
__device__ void Layer<S>::use_outputs(int fragment, const float4& sum, Taps& taps) {
  const int tile = fragment % kRowTiles, column = fragment / kRowTiles, row = tile * 16 + lane() / 4;
  const float upper = sh.factor[row], lower = sh.factor[row + 8];
  float2 v[2] = {{sum.x * upper, sum.y * upper}, {sum.z * lower, sum.w * lower}};
  const bool conv = fragment < kConvFragments;
  const int own = conv ? column : column - kChannels / 8;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (conv) {
      v[half] = convolve(own * 8 + lane() % 4 * 2, taps.past[half], v[half]);
    } else {
      v[half] = {silu(v[half].x), silu(v[half].y)};
    }
  }
  uint4& to = (conv ? sh.u : sh.gate)[tile][own / 2][lane()];
  reinterpret_cast<uint2*>(&to)[own % 2] = {pair_of(v[0].x, v[0].y), pair_of(v[1].x, v[1].y)};
}

template <class S>
__device__ void Layer<S>::project(Taps (&taps)[kConvMine]) {
  begin_phase();
  InputProduct<S> product(thread);
  product.await_rows(at, exchange);
  product.run(at, ring, first_tile);
#pragma unroll
  for (int k = 0; k < kConvMine; ++k) taps[k] = load_taps(warp() + k * kWarps);
  begin_phase();
  sync_with_helper();  // all weights have been used, and the factors are there
  product.keep(ring, first_tile);
  sync_workers();
  barrier_wait(&sh.small_full, small_parity);
  float4 sums[kMine];  // all loads before the first store, which they could not pass
#pragma unroll
  for (int k = 0; k < kMine; ++k) {
    const int fragment = min(warp() + k * kWarps, 2 * kConvFragments - 1);
    sums[k] = InputProduct<S>::total(ring, first_tile, fragment % kRowTiles, fragment / kRowTiles, lane());
  }
#pragma unroll
  for (int k = 0; k < kMine; ++k) {
    const int fragment = warp() + k * kWarps;
    if (fragment < 2 * kConvFragments) use_outputs(fragment, sums[k], taps[k < kConvMine ? k : 0]);
  }
  before_copies();
  ring.free(first_tile, kInTiles);
  sync_workers();
}

}  // namespace streamssm::cuda::rows::walk
