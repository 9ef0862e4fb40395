// The two large products of the walk, each split along its sum over the warps of a block. The rows come straight from
// the L2 cache, in the order in which the tensor cores take them; the weights from the ring. The tiles that had the
// weights take the partial sums.
#pragma once

#include "rows_walk_sync.cuh"

namespace streamssm::cuda::rows::walk {

// in_proj: 2 x 48 outputs. A warp has a quarter of the sum, and half of the rows, or for 16 rows half of the outputs.
template <class S>
struct InputProduct {
  static constexpr int kI = S::kRowTiles == 4 ? 2 : 1, kJ = S::kRowTiles == 1 ? 6 : 12;
  static constexpr int kSteps = kModel / kQuarters / 32, kAhead = 2;
  static constexpr int kFragments = 12;  // of a tile of rows
  static_assert(kAhead * kFragments * 512 == kTileBytes, "a tile has the weights of two steps");
  float sums[kI][kJ][4];
  uint2 a[kAhead][kI][4];
  int quarter, first_tile, first_column, lane;

  __device__ explicit InputProduct(int thread) : lane(thread % 32) {
    const int warp = thread / 32, side = warp / kQuarters;
    quarter = warp % kQuarters;
    first_tile = S::kRowTiles == 1 ? 0 : side * kI, first_column = S::kRowTiles == 1 ? side * kJ : 0;
#pragma unroll
    for (int i = 0; i < kI; ++i)
#pragma unroll
      for (int j = 0; j < kJ; ++j) sums[i][j][0] = sums[i][j][1] = sums[i][j][2] = sums[i][j][3] = 0.0f;
  }
  // The blocks that write this warp's part of the rows have done so.
  __device__ void await_rows(const Place& at, uint32_t exchange) const {
    constexpr int kWriters = kBlocks / kQuarters;
    if (lane < kI * kWriters)
      await_part<1>(at, kX, first_tile + lane / kWriters, quarter * kWriters + lane % kWriters, exchange);
    __syncwarp();
  }
  // `x` is where this lane's part begins.
  __device__ void load(const uint2* x, int begin, int place) {
#pragma unroll
    for (int i = 0; i < kI; ++i)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        a[place][i][k] = fetch_half(x + (i * (kModel / 8) + (begin + place) * 4 + k) * 32);
  }
  // `first` is the number of the first of the layer's tiles.
  __device__ void run(const Place& at, const Ring<S>& ring, int first) {
    const uint2* x = &at.group->x[first_tile][quarter * kSteps * 4][lane];
#pragma unroll
    for (int step = 0; step < kAhead; ++step) load(x, 0, step);
#pragma unroll 1
    for (int begin = 0; begin < kSteps; begin += kAhead) {
      const uint8_t* tile = ring.await_tile(first + quarter * (kInTiles / kQuarters) + begin / kAhead);
#pragma unroll
      for (int step = 0; step < kAhead; ++step) {
        multiply_step(reinterpret_cast<const uint4*>(tile) + (step * kFragments + first_column) * 32 + lane, step);
        if (begin + kAhead < kSteps) load(x, begin + kAhead, step);
      }
    }
  }
  __device__ void multiply_step(const uint4* weights, int place) {
#pragma unroll
    for (int j = 0; j < kJ; ++j) {
      if (j % 2 == 0) asm volatile("" ::: "memory");  // no more weights in registers than these
      const uint4 w = weights[j * 32];
#pragma unroll
      for (int i = 0; i < kI; ++i) {
        const uint2(&v)[4] = a[place][i];
        multiply(sums[i][j], v[0].x, v[0].y, v[1].x, v[1].y, w.x, w.y);
        multiply(sums[i][j], v[2].x, v[2].y, v[3].x, v[3].y, w.z, w.w);
      }
    }
  }
  // A tile takes the sums of two times 16 rows.
  static __device__ float4* part(const Ring<S>& ring, int first, int quarter, int row_tile, int column, int lane) {
    uint8_t* tile = ring.memory(first + quarter * (kInTiles / kQuarters) + row_tile / 2);
    return reinterpret_cast<float4*>(tile) + (row_tile % 2 * kFragments + column) * 32 + lane;
  }
  __device__ void keep(const Ring<S>& ring, int first) const {
    float4* to = part(ring, first, quarter, first_tile, first_column, lane);
#pragma unroll
    for (int i = 0; i < kI; ++i)  // first_tile is even where there are two
#pragma unroll
      for (int j = 0; j < kJ; ++j)
        to[(i * kFragments + j) * 32] = make_float4(sums[i][j][0], sums[i][j][1], sums[i][j][2], sums[i][j][3]);
  }
  // The sums of rows g and g + 8 (x, y and z, w), outputs 2t and 2t + 1 of 8, g = lane / 4, t = lane % 4.
  static __device__ float4 total(const Ring<S>& ring, int first, int row_tile, int column, int lane) {
    float4 sum = *part(ring, first, 0, row_tile, column, lane);
#pragma unroll
    for (int quarter = 1; quarter < kQuarters; ++quarter) {
      const float4 v = *part(ring, first, quarter, row_tile, column, lane);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    return sum;
  }
};

// out_proj: 24 outputs. A warp has an eighth of the sum, that of the channels of four blocks, and all rows.
template <class S>
struct OutputProduct {
  static constexpr int kI = S::kRowTiles, kJ = kOutputs / 8;
  static constexpr int kSteps = kInner / kParts / 32, kAhead = kI == 4 ? 2 : 3;
  static constexpr int kPartBytes = kTileBytes / 2;
  static_assert(kI * kJ * 512 <= kPartBytes && kParts / 2 <= kOutTiles, "");
  float sums[kI][kJ][4];
  uint4 a[kAhead][kI][2];
  int warp, lane;

  __device__ explicit OutputProduct(int thread) : warp(thread / 32), lane(thread % 32) {
#pragma unroll
    for (int i = 0; i < kI; ++i)
#pragma unroll
      for (int j = 0; j < kJ; ++j) sums[i][j][0] = sums[i][j][1] = sums[i][j][2] = sums[i][j][3] = 0.0f;
  }
  __device__ void await_rows(const Place& at, uint32_t exchange) const {
    constexpr int kWriters = kBlocks / kParts;
    if (lane < kI * kWriters)
      await_part<1>(at, kY, lane / kWriters, warp * kWriters + lane % kWriters, exchange);
    __syncwarp();
  }
  __device__ void load(const uint4* y, int step) {
#pragma unroll
    for (int i = 0; i < kI; ++i)
#pragma unroll
      for (int k = 0; k < 2; ++k) a[step % kAhead][i][k] = fetch_fragment(y + (i * (kInner / 16) + step * 2 + k) * 32);
  }
  __device__ void run(const Place& at, const Ring<S>& ring, int first) {
    constexpr int kTileSteps = kTileBytes / (kJ * 512);
    const uint4* y = &at.group->y[0][warp * kSteps * 2][lane];
#pragma unroll
    for (int step = 0; step < kAhead; ++step) load(y, step);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int all = warp * kSteps + step;
      const uint8_t* tile = ring.await_tile(first + all / kTileSteps);
      const uint4* weights = reinterpret_cast<const uint4*>(tile) + all % kTileSteps * kJ * 32 + lane;
#pragma unroll
      for (int j = 0; j < kJ; ++j) {
        const uint4 w = weights[j * 32];
#pragma unroll
        for (int i = 0; i < kI; ++i) {
          const uint4(&v)[2] = a[step % kAhead][i];
          multiply(sums[i][j], v[0].x, v[0].y, v[0].z, v[0].w, w.x, w.y);
          multiply(sums[i][j], v[1].x, v[1].y, v[1].z, v[1].w, w.z, w.w);
        }
      }
      if (step + kAhead < kSteps) load(y, step + kAhead);
    }
  }
  static __device__ float4* part(const Ring<S>& ring, int first, int part, int row_tile, int column, int lane) {
    uint8_t* half = ring.memory(first + part / 2) + part % 2 * kPartBytes;
    return reinterpret_cast<float4*>(half) + (row_tile * kJ + column) * 32 + lane;
  }
  __device__ void keep(const Ring<S>& ring, int first) const {
    float4* to = part(ring, first, warp, 0, 0, lane);
#pragma unroll
    for (int i = 0; i < kI; ++i)
#pragma unroll
      for (int j = 0; j < kJ; ++j)
        to[(i * kJ + j) * 32] = make_float4(sums[i][j][0], sums[i][j][1], sums[i][j][2], sums[i][j][3]);
  }
  static __device__ float4 total(const Ring<S>& ring, int first, int row_tile, int column, int lane) {
    float4 sum = *part(ring, first, 0, row_tile, column, lane);
#pragma unroll
    for (int i = 1; i < kParts; ++i) {
      const float4 v = *part(ring, first, i, row_tile, column, lane);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    return sum;
  }
};

}  // namespace streamssm::cuda::rows::walk
