// out_proj of many rows, added to the residual stream, and what the next norm needs: the residual times the next
// norm's weight as float16, and the squares of a row, one partial sum a tile.
//
// The float16 values are scaled by this layer's 1 / rms, which is known; the next product makes up for the
// difference to its own. So they are near 1 in size, unless one block makes the residual grow 1,000 times.
#pragma once

#include "rows_product.cuh"

namespace streamssm::cuda::rows {

struct FinishCall {
  Streams rows;
  const uint8_t* weights;
  const __half* x;            // [rows, width]
  const float* gate_squares;  // [rows, width / 32], or null: x is still to be divided by the rms of a row, and 32
                              // values at a time have been divided by theirs; this is the sum of their squares
  int32_t width, gate_parts, outputs;
  float eps;
  const float* residual;  // [rows, outputs]
  float* next_residual;   // may be the same
  const float* norm;      // [outputs] of the next norm, or null
  __half* normed;
  Squares now;
  float* next_squares;  // [rows, now.count]
  bool late;  // admits the next kernel only when the rows are there
};

// The factors of x: 1 / rms of the whole row times the rms of 32 values, by which those were divided. Four threads
// take a row.
template <class Tile>
__device__ void find_factors(const FinishCall& c, float* factors, int steps, int first) {
  const int own = threadIdx.x / 4, quarter = threadIdx.x % 4, row = first + own;
  if (own >= Tile::kRows) return;
  const bool real = row < c.rows.count;
  const float* squares = c.gate_squares + int64_t(real ? row : 0) * c.gate_parts;
  constexpr int kMine = 4;
  float4 v[kMine];
  float mine[kMine], sum = 0.0f;
#pragma unroll
  for (int k = 0; k < kMine; ++k) {
    const int at = (quarter + k * 4) * 4, step = quarter + k * 4;
    v[k] = at < c.gate_parts ? fetch4(squares + at) : float4{};
    mine[k] = step < steps ? fetch(squares + blockIdx.x % Tile::kRanks * steps + step) : 0.0f;
  }
#pragma unroll
  for (int k = 0; k < kMine; ++k) sum += (v[k].x + v[k].y) + (v[k].z + v[k].w);
  for (int at = (quarter + kMine * 4) * 4; at < c.gate_parts; at += 16) {
    const float4 more = fetch4(squares + at);
    sum += (more.x + more.y) + (more.z + more.w);
  }
  sum += __shfl_xor_sync(~0u, sum, 1), sum += __shfl_xor_sync(~0u, sum, 2);
  const float scale = real ? rsqrtf(sum / float(c.width) + c.eps) : 0.0f;
#pragma unroll
  for (int k = 0; k < kMine; ++k)
    if (quarter + k * 4 < steps) factors[own * steps + quarter + k * 4] = sqrtf(mine[k] / 32.0f) * scale;
  for (int step = quarter + kMine * 4; step < steps; step += 4)
    factors[own * steps + step] = sqrtf(fetch(squares + blockIdx.x % Tile::kRanks * steps + step) / 32.0f) * scale;
}

// One owned row of a warp: what is fetched before the sums are there.
template <class Tile>
struct FinishRow {
  static constexpr int kPairs = (Tile::kWidth + 63) / 64;
  int64_t slot;
  int own, row;
  float scale;
  float2 residual[kPairs], norm[kPairs];
};

// Two neighbouring outputs of a lane.
template <class Tile>
__device__ int output_of(int pair) {
  return blockIdx.x / Tile::kRanks * Tile::kWidth + (threadIdx.x % 32 + pair * 32) * 2;
}

template <class Tile>
__device__ bool has_output(const FinishCall& c, int pair) {
  return (threadIdx.x % 32 + pair * 32) * 2 < Tile::kWidth && output_of<Tile>(pair) < c.outputs;
}

template <class Tile>
__device__ FinishRow<Tile> finish_row(const FinishCall& c) {
  FinishRow<Tile> r{-1};
  r.own = threadIdx.x / 32, r.row = blockIdx.y * Tile::kRows + blockIdx.x % Tile::kRanks * Tile::kOwn + r.own;
  if (r.own >= Tile::kOwn || r.row >= c.rows.count) return r;
  r.slot = slot_of(c.rows, r.row);
  if (c.norm) r.scale = scale_of(c.now, r.row);
#pragma unroll
  for (int i = 0; i < r.kPairs; ++i) {
    if (!has_output<Tile>(c, i)) continue;
    r.residual[i] = fetch2(c.residual + int64_t(r.row) * c.outputs + output_of<Tile>(i));
    if (c.norm) r.norm[i] = *reinterpret_cast<const float2*>(c.norm + output_of<Tile>(i));
  }
  return r;
}

// Skipped rows stay zero.
template <class Tile>
__device__ void add_row(const FinishCall& c, const ProductMemory<Tile>& m, const FinishRow<Tile>& r) {
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < r.kPairs; ++i) {
    if (!has_output<Tile>(c, i)) continue;
    const int64_t at = int64_t(r.row) * c.outputs + output_of<Tile>(i);
    const float2 sum = owned_sum<Tile>(m, r.own, (threadIdx.x % 32 + i * 32) * 2);
    float2 v{r.residual[i].x + sum.x, r.residual[i].y + sum.y};
    if (r.slot < 0) v = {};
    *reinterpret_cast<float2*>(c.next_residual + at) = v;
    squares = fmaf(v.x, v.x, fmaf(v.y, v.y, squares));
    if (c.norm)
      *reinterpret_cast<uint32_t*>(c.normed + at) = pair_of(v.x * r.norm[i].x * r.scale, v.y * r.norm[i].y * r.scale);
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) c.next_squares[int64_t(r.row) * c.now.count + blockIdx.x / Tile::kRanks] = squares;
}

template <class Tile, bool kGated>
__global__ void __launch_bounds__(kThreads, 2) rows_finish(const __grid_constant__ FinishCall c) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ Barriers barriers;
  static_assert(Tile::kOwn <= kThreads / 32, "a warp takes one row");
  const ProductMemory<Tile> m(memory, c.width / Tile::kRanks);
  if (!c.late) admit_next();
  begin_product<Tile>(m, barriers, c.weights, c.rows.count);
  const FinishRow<Tile> row = finish_row<Tile>(c);
  __syncthreads();
  barrier_wait(&barriers.weights_came, 0);
  float* factors = reinterpret_cast<float*>(m.rest());
  Multiplier<Tile, kGated> multiplier(m, factors);
  await_previous();
  fetch_rows<Tile>(m, c.x, c.width, blockIdx.y * Tile::kRows, c.rows.count);
  if constexpr (kGated) find_factors<Tile>(c, factors, m.part / 32, blockIdx.y * Tile::kRows);
  finish_product<Tile>(m, barriers, c.rows.count, c.late, multiplier, [] {});
  if (row.own < Tile::kOwn && row.row < c.rows.count) add_row<Tile>(c, m, row);
#endif
}

}  // namespace streamssm::cuda::rows
