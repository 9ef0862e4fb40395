// The two ends of a step of many rows: the inputs as residual stream, and the logits.
//
// The logits are a product like others, with the embedding as it is in memory: tiles of 128 entries by all rows,
// 64 of the sum at a time, brought by asynchronous copies some stages ahead.
#pragma once

#include "rows_tools.cuh"

namespace streamssm::cuda::rows {

struct EmbedCall {
  Streams rows;
  const int32_t* tokens;
  const float* x;
  const __half* embedding;
  const float* norm;
  int32_t width;
  float eps;
  float* residual;
  __half* normed;
  float* squares[2];  // [rows, parts]: the same to both, so that their scales agree
  int32_t parts, counters;
  int32_t* zeroed;  // [counters] of rows_dual
};

__global__ void __launch_bounds__(kThreads) rows_embed(const __grid_constant__ EmbedCall c) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  __shared__ float sums[kThreads / 32];
  const int64_t row = blockIdx.x, at = row * c.width;
  const bool real = slot_of(c.rows, int(row)) >= 0;
  const __half* entry = c.tokens && real ? c.embedding + int64_t(c.tokens[row]) * c.width : nullptr;
  const auto input = [&](int i) { return !real ? 0.0f : entry ? __half2float(entry[i]) : c.x[at + i]; };
  admit_next();
  float squares = 0.0f;
  for (int i = threadIdx.x; i < c.width; i += kThreads) {
    const float v = input(i);
    squares = fmaf(v, v, squares);
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = squares;
  __syncthreads();
  squares = 0.0f;
  for (int i = 0; i < kThreads / 32; ++i) squares += sums[i];
  const float scale = rsqrtf(squares / float(c.width) + c.eps);
  for (int i = threadIdx.x; i < c.width; i += kThreads) {
    const float v = input(i);
    c.residual[at + i] = v;
    c.normed[at + i] = __float2half_rn(v * c.norm[i] * scale);
  }
  for (int i = threadIdx.x; row == 0 && i < c.counters; i += kThreads) c.zeroed[i] = 0;
  for (int i = threadIdx.x; i < c.parts; i += kThreads)
    c.squares[0][row * c.parts + i] = c.squares[1][row * c.parts + i] = i == 0 ? squares : 0.0f;
#endif
}

template <int kRows_, int kRowWarps_, int kStages_>
struct HeadTile {
  static constexpr int kRows = kRows_, kEntries = 128, kRowWarps = kRowWarps_, kStages = kStages_;
  static constexpr int kColumnWarps = kThreads / 32 / kRowWarps;
  static constexpr int kRowTiles = kRows / kRowWarps / 16, kColumnTiles = kEntries / kColumnWarps / 8;
  static constexpr int kStageBytes = (kEntries + kRows) * 128;
  static constexpr size_t kSharedBytes = size_t(kStages) * kStageBytes;
  static constexpr int kBlocks = kSharedBytes <= 100 * 1024 ? 2 : 1;  // of a multiprocessor
};

struct HeadCall {
  int32_t rows, width, vocabulary;
  const __half *x, *embedding;
  Squares now, before;
  __half* logits;
};

// Entries are dealt out to the columns of two tiles so that a thread's four sums are of neighbours. Rows of 128
// bytes are in pieces of 16, whose place depends on the row: a matrix of eight rows touches all banks.
__device__ inline int entry_key(int entry) { return (entry / 2 & 6) | (entry & 1); }

template <class Tile>
__device__ void fetch_entries(const HeadCall& c, uint8_t* stage, int tile, int step) {
#pragma unroll
  for (int i = threadIdx.x; i < Tile::kEntries * 8; i += kThreads) {
    const int row = i / 8, chunk = i % 8, entry = tile * Tile::kEntries + row;
    const bool real = entry < c.vocabulary;
    copy16(stage + row * 128 + (chunk ^ entry_key(row)) * 16,
           c.embedding + int64_t(real ? entry : 0) * c.width + step * 64 + chunk * 8, real);
  }
}

template <class Tile>
__device__ void fetch_inputs(const HeadCall& c, uint8_t* stage, int step) {
#pragma unroll
  for (int i = threadIdx.x; i < Tile::kRows * 8; i += kThreads) {
    const int row = i / 8, chunk = i % 8, from = blockIdx.y * Tile::kRows + row;
    const bool real = from < c.rows;
    copy16(stage + Tile::kEntries * 128 + row * 128 + (chunk ^ row % 8) * 16,
           c.x + int64_t(real ? from : 0) * c.width + step * 64 + chunk * 8, real);
  }
}

template <class Tile>
__device__ void multiply_stage(const uint8_t* stage, float (&sums)[Tile::kRowTiles][Tile::kColumnTiles][4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int entry = warp / Tile::kRowWarps * Tile::kColumnTiles * 8 + lane % 8 / 2 * 4 + lane % 2 + lane / 16 * 2;
  const int row = warp % Tile::kRowWarps * Tile::kRowTiles * 16 + lane % 16;
  const uint32_t entries = shared_address(stage) + entry * 128;
  const uint32_t rows = shared_address(stage) + (Tile::kEntries + row) * 128;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t w[Tile::kColumnTiles / 2][4];
#pragma unroll
    for (int j = 0; j < Tile::kColumnTiles / 2; ++j)
      load_matrices(entries + j * 16 * 128 + ((k * 2 + lane / 8 % 2) ^ entry_key(entry)) * 16, w[j]);
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
      uint32_t a[4];
      load_matrices(rows + i * 16 * 128 + ((k * 2 + lane / 16) ^ row % 8) * 16, a);
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; ++j)
        multiply(sums[i][j], a[0], a[1], a[2], a[3], w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]);
    }
  }
}

template <class Tile>
__device__ void write_logits(const HeadCall& c, int tile, const float* factor,
                             float (&sums)[Tile::kRowTiles][Tile::kColumnTiles][4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = (warp % Tile::kRowWarps * Tile::kRowTiles + i) * 16 + half * 8 + lane / 4;
      const int64_t to = blockIdx.y * Tile::kRows + row;
      const float f = factor[row];
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; j += 2) {
        const int entry = tile * Tile::kEntries + (warp / Tile::kRowWarps * Tile::kColumnTiles + j) * 8 + lane % 4 * 4;
        const float v[4] = {sums[i][j][2 * half] * f, sums[i][j][2 * half + 1] * f, sums[i][j + 1][2 * half] * f,
                            sums[i][j + 1][2 * half + 1] * f};
        __half* logits = c.logits + to * c.vocabulary + entry;
        if (to >= c.rows) continue;
        if (c.vocabulary % 4 == 0 && entry < c.vocabulary) {
          __stcs(reinterpret_cast<uint2*>(logits), uint2{pair_of(v[0], v[1]), pair_of(v[2], v[3])});
        } else {
#pragma unroll
          for (int k = 0; k < 4; ++k)
            if (entry + k < c.vocabulary) logits[k] = __float2half_rn(v[k]);
        }
      }
    }
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i)
#pragma unroll
    for (int j = 0; j < Tile::kColumnTiles; ++j)
#pragma unroll
      for (int k = 0; k < 4; ++k) sums[i][j][k] = 0.0f;
}

template <class Tile>
__global__ void __launch_bounds__(kThreads, Tile::kBlocks) rows_head(const __grid_constant__ HeadCall c) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ float factor[Tile::kRows];
  const int tiles = (c.vocabulary + Tile::kEntries - 1) / Tile::kEntries, steps = c.width / 64;
  const int all = steps * ((tiles - 1 - int(blockIdx.x)) / int(gridDim.x) + 1);  // there is a tile for every block
  const auto stage = [&](int i) { return memory + i % Tile::kStages * Tile::kStageBytes; };
  const auto tile_of = [&](int i) { return int(blockIdx.x) + i / steps * int(gridDim.x); };
  admit_next();
  for (int i = 0; i < Tile::kStages - 1 && i < all; ++i) fetch_entries<Tile>(c, stage(i), tile_of(i), i % steps);
  await_previous();
  for (int i = 0; i < Tile::kStages - 1; ++i) {
    if (i < all) fetch_inputs<Tile>(c, stage(i), i % steps);
    copies_end();
  }
  for (int row = threadIdx.x; row < Tile::kRows; row += kThreads) {
    const int from = blockIdx.y * Tile::kRows + row;
    factor[row] = from < c.rows ? scale_of(c.now, from) / scale_of(c.before, from) : 0.0f;
  }
  float sums[Tile::kRowTiles][Tile::kColumnTiles][4] = {};
  for (int i = 0; i < all; ++i) {
    copies_wait<Tile::kStages - 2>();
    __syncthreads();  // this stage has come for all, and the one before has been used by all
    const int next = i + Tile::kStages - 1;
    if (next < all) {
      fetch_entries<Tile>(c, stage(next), tile_of(next), next % steps);
      fetch_inputs<Tile>(c, stage(next), next % steps);
    }
    copies_end();
    multiply_stage<Tile>(stage(i), sums);
    if (i % steps == steps - 1) write_logits<Tile>(c, tile_of(i), factor, sums);
  }
#endif
}

}  // namespace streamssm::cuda::rows
