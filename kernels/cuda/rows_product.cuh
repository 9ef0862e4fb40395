// The two large products of a block, y = x W^T for up to 64 rows, with all that follows them folded in.
//
// A cluster of blocks has one tile of outputs for all rows; each block multiplies a part of the sum, from weights
// that it fetched before the kernel's input was there, and sends its partial sums to the blocks that own the rows.
// An owner adds them in the order of the ranks and goes on with them: the convolution, the gate and the step sizes
// after the first product (rows_project), the residual stream and its squares after the second (rows_finish).
//
// A row's sums are formed in the same order whatever the number of rows.
#pragma once

#include "rows_tools.cuh"

namespace streamssm::cuda::rows {

// kVectors: float32 numbers of an output that come with its weights.
template <int kRows_, int kWidth_, int kRanks_, int kRowWarps_, int kColumnWarps_, int kVectors_>
struct ProductTile {
  static constexpr int kRows = kRows_, kWidth = kWidth_, kRanks = kRanks_;
  static constexpr int kRowWarps = kRowWarps_, kColumnWarps = kColumnWarps_;
  static constexpr int kWarps = kRowWarps * kColumnWarps;  // that multiply; at most 8
  static constexpr int kRowTiles = kRows / kRowWarps / 16, kColumnTiles = kWidth / kColumnWarps / 8;
  static constexpr int kOwn = kRows / kRanks;  // rows that a rank owns
  static constexpr int kPitch = kWidth + 8;    // of a row of partial sums
  static_assert(kRowTiles > 0 && kColumnTiles > 0 && kOwn > 0 && kWarps <= kThreads / 32, "");

  static constexpr int kVectors = kVectors_;

  __host__ __device__ static constexpr uint32_t matrix_bytes(int part) { return uint32_t(kWidth) * part * 2; }
  __host__ __device__ static constexpr uint32_t weight_bytes(int part) {
    return matrix_bytes(part) + kVectors * kWidth * 4;
  }
  __host__ __device__ static constexpr uint32_t row_bytes(int part) { return part * 2 + 16; }
  __host__ __device__ static constexpr uint32_t shared_bytes(int part) {
    return weight_bytes(part) + kRows * row_bytes(part) + kRanks * kOwn * kPitch * 4;
  }
};

template <int kRows>
using ProjectTile = ProductTile<kRows, 96, 4, (kRows > 16 ? 2 : 1), 4, kMostTaps + 1>;
template <int kRows>
using FinishTile = ProductTile<kRows, 48, 8, kRows / 16, 2, 0>;

// Where a block's shared memory is; the rest is the kernel's own. `part` is a block's part of the sum.
template <class Tile>
struct ProductMemory {
  uint8_t *weights, *x;
  float* sums;  // [rank][own row][kPitch]
  int part;

  __device__ ProductMemory(uint8_t* memory, int part_)
      : weights(memory),
        x(memory + Tile::weight_bytes(part_)),
        sums(reinterpret_cast<float*>(x + Tile::kRows * Tile::row_bytes(part_))),
        part(part_) {}

  __device__ uint8_t* rest() const {
    return reinterpret_cast<uint8_t*>(sums + Tile::kRanks * Tile::kOwn * Tile::kPitch);
  }
  __device__ const float* vectors() const { return reinterpret_cast<const float*>(weights + Tile::matrix_bytes(part)); }
};

struct Barriers {
  uint64_t weights_came, sums_came;
};

// The rows of a tile that rank `rank` owns and that exist.
template <class Tile>
__device__ int owned_rows(int rank, int count) {
  return min(max(count - int(blockIdx.y) * Tile::kRows - rank * Tile::kOwn, 0), Tile::kOwn);
}

// Starts the copy of this block's weights, and of `more` bytes.
template <class Tile>
__device__ void begin_product(const ProductMemory<Tile>& m, Barriers& barriers, const uint8_t* weights, int count,
                              void* to = nullptr, const uint8_t* from = nullptr, uint32_t more = 0) {
  if (threadIdx.x == 0) {
    barrier_init(&barriers.weights_came), barrier_init(&barriers.sums_came);
    barriers_ready();
    const uint32_t bytes = Tile::weight_bytes(m.part);
    const int rows = owned_rows<Tile>(blockIdx.x % Tile::kRanks, count);
    barrier_expect(&barriers.sums_came, Tile::kRanks * rows * Tile::kWidth * 4);
    barrier_expect(&barriers.weights_came, bytes + more);
    bulk_fetch(m.weights, weights + int64_t(blockIdx.x) * bytes, bytes, &barriers.weights_came);
    if (more) bulk_fetch(to, from, more, &barriers.weights_came);
  }
  __syncwarp();
  cluster_arrive();
}

// Rows of float16 to shared memory; those that do not exist are zero. A warp takes 8 rows by 64 bytes.
template <class Tile>
__device__ void fetch_rows(const ProductMemory<Tile>& m, const __half* x, int width, int first, int count) {
  constexpr int kGroups = Tile::kRows / 8;
  const int lane = threadIdx.x % 32;
  x += blockIdx.x % Tile::kRanks * m.part;
  for (int i = threadIdx.x / 32; i < kGroups * (m.part / 32); i += kThreads / 32) {
    const int row = i % kGroups * 8 + lane / 4, chunk = i / kGroups * 4 + lane % 4;
    const bool real = first + row < count;
    const __half* from = x + int64_t(real ? first + row : 0) * width + chunk * 8;
    copy16(m.x + row * Tile::row_bytes(m.part) + chunk * 16, from, real);
  }
  copies_end();
}

// A warp's share of a product. Weights are packed as the tensor cores take them: [column tile][32 of the sum][lane],
// 16 bytes each; the first wait in registers for the rows. With kScaled, 32 of the sum at a time have a factor of
// their own for each row: `factors` [kRows][steps].
template <class Tile, bool kScaled>
struct Multiplier {
  static constexpr int kI = Tile::kRowTiles, kJ = Tile::kColumnTiles;
  const uint4* weights;
  const float* factors;
  uint32_t x, row_bytes;
  int steps;
  uint4 w[2][kJ];
  uint32_t a[2][kI][2][4];
  float sums[kI][kJ][4];

  __device__ Multiplier(const ProductMemory<Tile>& m, const float* factors_of_rows)
      : row_bytes(Tile::row_bytes(m.part)), steps(m.part / 32) {
    const int warp = threadIdx.x / 32 % Tile::kWarps, lane = threadIdx.x % 32;
    const int first = warp % Tile::kRowWarps * Tile::kRowTiles * 16, row = first + lane % 16;
    factors = factors_of_rows + (first + lane / 4) * steps;
    x = shared_address(m.x) + row * row_bytes + lane / 16 * 16;
    weights = reinterpret_cast<const uint4*>(m.weights) + warp / Tile::kRowWarps * kJ * steps * 32 + lane;
    load_weights(0, 0);
#pragma unroll
    for (int i = 0; i < kI; ++i)
#pragma unroll
      for (int j = 0; j < kJ; ++j) sums[i][j][0] = sums[i][j][1] = sums[i][j][2] = sums[i][j][3] = 0.0f;
  }
  __device__ void load_weights(int place, int step) {
#pragma unroll
    for (int j = 0; j < kJ; ++j) w[place][j] = weights[(j * steps + step) * 32];
  }
  __device__ void load_rows(int place, int step) {
#pragma unroll
    for (int i = 0; i < kI; ++i) {
      load_matrices(x + i * 16 * row_bytes + step * 64, a[place][i][0]);
      load_matrices(x + i * 16 * row_bytes + step * 64 + 32, a[place][i][1]);
    }
  }
  __device__ void multiply_tile(int place, int i, int j, float (&sum)[4]) const {
    const uint4 v = w[place][j];
    const uint32_t(&low)[4] = a[place][i][0], (&high)[4] = a[place][i][1];
    multiply(sum, low[0], low[1], low[2], low[3], v.x, v.y);
    multiply(sum, high[0], high[1], high[2], high[3], v.z, v.w);
  }
  __device__ void multiply_step(int place, int step) {
#pragma unroll
    for (int i = 0; i < kI; ++i)
#pragma unroll
      for (int j = 0; j < kJ; ++j) {
        if constexpr (kScaled) {
          const float upper = factors[i * 16 * steps + step], lower = factors[(i * 16 + 8) * steps + step];
          float sum[4] = {};
          multiply_tile(place, i, j, sum);
          sums[i][j][0] = fmaf(upper, sum[0], sums[i][j][0]), sums[i][j][1] = fmaf(upper, sum[1], sums[i][j][1]);
          sums[i][j][2] = fmaf(lower, sum[2], sums[i][j][2]), sums[i][j][3] = fmaf(lower, sum[3], sums[i][j][3]);
        } else {
          multiply_tile(place, i, j, sums[i][j]);
        }
      }
  }
  // One step is loaded while the one before is multiplied.
  __device__ void run() {
    load_rows(0, 0);
    for (int first = 0; first < steps; first += 2)
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if (first + k >= steps) break;
        if (first + k + 1 < steps) load_weights(k ^ 1, first + k + 1), load_rows(k ^ 1, first + k + 1);
        multiply_step(k, first + k);
      }
  }
};

template <class Tile>
__device__ void send_sums(const ProductMemory<Tile>& m, Barriers& barriers, int count,
                          const float (&sums)[Tile::kRowTiles][Tile::kColumnTiles][4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = blockIdx.x % Tile::kRanks;
  const int column = warp / Tile::kRowWarps * Tile::kColumnTiles * 8 + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = (warp % Tile::kRowWarps * Tile::kRowTiles + i) * 16 + half * 8 + lane / 4;
      const int owner = row / Tile::kOwn, at = (rank * Tile::kOwn + row % Tile::kOwn) * Tile::kPitch + column;
      if (int(blockIdx.y) * Tile::kRows + row >= count) continue;
      const uint32_t to = in_block(shared_address(m.sums + at), owner);
      const uint32_t came = in_block(shared_address(&barriers.sums_came), owner);
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; ++j)
        send(to + j * 32, make_float2(sums[i][j][2 * half], sums[i][j][2 * half + 1]), came);
    }
}

// From the rows that this thread fetched to the complete sums of the rows that this block owns. meanwhile() is called
// while they are on their way. With admits, the next kernel is admitted when the rows are there, not before.
template <class Tile, bool kScaled, class Meanwhile>
__device__ void finish_product(const ProductMemory<Tile>& m, Barriers& barriers, int count, bool admits,
                               Multiplier<Tile, kScaled>& multiplier, const Meanwhile& meanwhile) {
  copies_wait<0>();
  __syncthreads();
  if (admits) admit_next();
  const bool multiplies = threadIdx.x / 32 < Tile::kWarps;
  if (multiplies) multiplier.run();
  cluster_wait();  // all ranks have their barriers
  if (multiplies) send_sums<Tile>(m, barriers, count, multiplier.sums);
  meanwhile();
  barrier_wait(&barriers.sums_came, 0);
}

// Two neighbouring outputs of an owned row.
template <class Tile>
__device__ float2 owned_sum(const ProductMemory<Tile>& m, int own, int column) {
  float2 sum{};
#pragma unroll
  for (int rank = 0; rank < Tile::kRanks; ++rank) {
    const float2 v = *reinterpret_cast<const float2*>(m.sums + (rank * Tile::kOwn + own) * Tile::kPitch + column);
    sum.x += v.x, sum.y += v.y;
  }
  return sum;
}

}  // namespace streamssm::cuda::rows
