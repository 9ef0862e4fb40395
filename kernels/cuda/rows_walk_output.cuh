// The walk's last phase: out_proj, the residual stream, what the next layer takes; and how a pass begins.
#pragma once

#include "rows_walk_layer.cuh"

namespace streamssm::cuda::rows::walk {

template <class S>
__device__ float2 Layer<S>::squares_of(const float4 (&v)[kOutputs / 8]) const {
  float2 sum{};
#pragma unroll
  for (int j = 0; j < kOutputs / 8; ++j) {
    sum.x = fmaf(v[j].x, v[j].x, fmaf(v[j].y, v[j].y, sum.x));
    sum.y = fmaf(v[j].z, v[j].z, fmaf(v[j].w, v[j].w, sum.y));
  }
  sum.x += __shfl_xor_sync(~0u, sum.x, 1), sum.y += __shfl_xor_sync(~0u, sum.y, 1);
  sum.x += __shfl_xor_sync(~0u, sum.x, 2), sum.y += __shfl_xor_sync(~0u, sum.y, 2);
  return sum;
}

template <class S>
__device__ void Layer<S>::send_rows(const float4 (&v)[kOutputs / 8], const float* norm, uint32_t as) {
  const int tile = warp(), row = tile * 16 + lane() / 4;
  const float upper = sh.scale[row], lower = sh.scale[row + 8];
  const float2 squares = squares_of(v);
#pragma unroll
  for (int j = 0; j < kOutputs / 8; ++j) {
    const float2 w = *reinterpret_cast<const float2*>(norm + j * 8 + lane() % 4 * 2);
    const uint2 pair{pair_of(v[j].x * w.x * upper, v[j].y * w.y * upper),
                     pair_of(v[j].z * w.x * lower, v[j].w * w.y * lower)};
    __stcg(&at.group->x[tile][at.block * (kOutputs / 8) + j][lane()], pair);
  }
  if (lane() % 4 == 0) {
    __stcg(&at.group->squares[at.block][row], squares.x);
    __stcg(&at.group->squares[at.block][row + 8], squares.y);
  }
  tell(at, kX, tile, as);
}

template <class S>
__device__ void Layer<S>::write_ends(const float4 (&v)[kOutputs / 8]) {
  const float2 squares = squares_of(v);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int own = warp() * 16 + half * 8 + lane() / 4;
    if (own >= rows.count) continue;
    const int64_t row = first_row + own;
    const float scale = sh.scale[own];
#pragma unroll
    for (int j = 0; j < kOutputs / 8; ++j) {
      const float2 r = half ? make_float2(v[j].z, v[j].w) : make_float2(v[j].x, v[j].y);
      const int64_t to = row * kModel + at.block * kOutputs + j * 8 + lane() % 4 * 2;
      const float* norm = &sh.small.norm[j * 8 + lane() % 4 * 2];
      if (c.next_residual) *reinterpret_cast<float2*>(c.next_residual + to) = r;
      if (c.normed)
        *reinterpret_cast<uint32_t*>(c.normed + to) = pair_of(r.x * norm[0] * scale, r.y * norm[1] * scale);
    }
    if (c.normed && lane() % 4 == 0) c.now[row * kBlocks + at.block] = half ? squares.y : squares.x;
  }
}

template <class S>
__device__ void Layer<S>::finish() {
  begin_phase();
  const int first = first_tile + kInTiles + S::kStateTiles;
  OutputProduct<S> product(thread);
  product.await_rows(at, exchange);
  product.run(at, ring, first);
  sync_workers();  // all weights have been used
  product.keep(ring, first);
  sync_workers();
  if (warp() < kRowTiles) {
    float4 v[kOutputs / 8];
#pragma unroll
    for (int j = 0; j < kOutputs / 8; ++j) {
      const float4 sum = OutputProduct<S>::total(ring, first, warp(), j, lane());
      float4& residual = sh.residual[warp()][j][lane()];
      residual.x += sum.x, residual.y += sum.y, residual.z += sum.z, residual.w += sum.w;
      v[j] = residual;
    }
    if (layer + 1 < c.layers) send_rows(v, sh.small.norm, exchange + 1);
    if (layer + 1 == c.layers) write_ends(v);
  }
  before_copies();
  ring.free(first, kOutTiles);
  if (lane() == 0) arrive(&sh.small_empty);
}

template <class S>
__device__ void Layer<S>::begin() {
  if (thread < S::kRows) sh.slots[thread] = slot_of(rows, thread);
  if (warp() >= kRowTiles) return;
  float4 v[kOutputs / 8];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int own = warp() * 16 + half * 8 + lane() / 4;
    const int64_t row = first_row + own;
    const bool real = own < rows.count;
    const float scale = real ? scale_of(c.first, row) : 1.0f;
    if (lane() % 4 == 0) sh.scale[own] = scale;
#pragma unroll
    for (int j = 0; j < kOutputs / 8; ++j) {
      const int64_t from = row * kModel + at.block * kOutputs + j * 8 + lane() % 4 * 2;
      const float2 r = real ? fetch2(c.residual + from) : float2{};
      if (half) v[j].z = r.x, v[j].w = r.y;
      else v[j].x = r.x, v[j].y = r.y;
    }
  }
#pragma unroll
  for (int j = 0; j < kOutputs / 8; ++j) sh.residual[warp()][j][lane()] = v[j];
  __syncwarp();  // the scales
  send_rows(v, c.norm + at.block * kOutputs, exchange + 1);
}

}  // namespace streamssm::cuda::rows::walk
