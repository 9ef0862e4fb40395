// SelectiveScan:
//
//     d = softplus(dt + dt_bias)     h_n = exp(d A_n) h_n + B_n (d x)     y = (sum_n C_n h_n + D x) silu(z)
//
// Three kernels. Few items: one thread a channel, its states in registers. More items: 8 threads share a
// channel and keep its states in registers while tiles of items go by; other warps
// bring the tiles and finish their outputs meanwhile. States too large for registers: a plain loop over memory.
#include "launch.h"

namespace streamssm::cuda {
namespace {

constexpr int kLanes = 8;     // threads of a channel
constexpr int kChannels = 8;  // of a block
constexpr int kItems = 32;    // of a tile
constexpr int kWorkers = kLanes * kChannels;
constexpr int kHelpers = 128;
constexpr int kOwn = kItems * kChannels / kHelpers;  // elements of a tile that a helper brings

template <class Data>
__device__ const Data* data(const void* from, int64_t at) {
  return static_cast<const Data*>(from) + at;
}

// What a helper fetches of a tile, as it is in memory, so that nothing waits for it before it is used:
// elements (item, channel) of x, dt, z and (item, n) of B and C.
template <int kPer, class Data>
struct Fetched {
  Data x[kOwn], dt[kOwn], z[kOwn], B[kItems * kLanes * kPer / kHelpers], C[kItems * kLanes * kPer / kHelpers];
};

template <int kPer>
struct Tile {
  float2 drive[kItems][kChannels];  // step and inflow
  alignas(16) float bc[kItems][kLanes][2 * kPer];
  float sum[kItems][kChannels];
};

struct Place {
  int64_t items;  // of the row that are not padding
  int64_t row;    // index of the row's first item in the batch
  int64_t d;      // first channel of the block
};

template <int kPer, class Data>
__device__ void fetch(const ScanCall& c, const Place& at, int64_t first, Fetched<kPer, Data>& f) {
  constexpr int kN = kLanes * kPer;
  const int helper = threadIdx.x - kWorkers;
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    const int e = helper + k * kHelpers;
    const int64_t t = first + e / kChannels, d = at.d + e % kChannels, i = (at.row + t) * c.D + d;
    const bool real = t < at.items && d < c.D;
    f.x[k] = real ? *data<Data>(c.x, i) : zero<Data>();
    f.dt[k] = real ? *data<Data>(c.dt, i) : zero<Data>();
    f.z[k] = real ? *data<Data>(c.z, i) : zero<Data>();
  }
#pragma unroll
  for (int k = 0; k < kItems * kN / kHelpers; ++k) {
    const int e = helper + k * kHelpers;
    const int64_t t = first + e / kN, n = e % kN, i = (at.row + t) * c.N + n;
    const bool real = t < at.items && n < c.N;
    f.B[k] = real ? *data<Data>(c.B, i) : zero<Data>();
    f.C[k] = real ? *data<Data>(c.C, i) : zero<Data>();
  }
}

// Items after the row's end get step 0 and inflow 0: the states stay as they are.
template <int kPer, class Data>
__device__ void prepare(const ScanCall& c, const Place& at, int64_t first, const Fetched<kPer, Data>& f,
                        Tile<kPer>& tile) {
  constexpr int kN = kLanes * kPer;
  const int helper = threadIdx.x - kWorkers;
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    const int e = helper + k * kHelpers, ch = e % kChannels;
    const bool real = first + e / kChannels < at.items && at.d + ch < c.D;
    const float d = real ? softplus(widen(f.dt[k]) + c.dt_bias[at.d + ch]) : 0.0f;
    tile.drive[e / kChannels][ch] = {d * kPerOctave, d * widen(f.x[k])};
  }
#pragma unroll
  for (int k = 0; k < kItems * kN / kHelpers; ++k) {
    const int e = helper + k * kHelpers, n = e % kN;
    tile.bc[e / kN][n / kPer][n % kPer] = widen(f.B[k]);
    tile.bc[e / kN][n / kPer][kPer + n % kPer] = widen(f.C[k]);
  }
}

template <int kPer>
__device__ void advance(Tile<kPer>& tile, const float (&A)[kPer], float (&h)[kPer], int ch, int lane) {
#pragma unroll 2
  for (int first = 0; first < kItems; first += 8) {
    float sums[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 drive = tile.drive[first + j][ch];
      const float* bc = tile.bc[first + j][lane];
      float sum = 0.0f;
#pragma unroll
      for (int p = 0; p < kPer; ++p) {
        h[p] = fmaf(exp2_fast(drive.x * A[p]), h[p], bc[p] * drive.y);
        sum = fmaf(bc[kPer + p], h[p], sum);
      }
      sums[j] = sum;
    }
    tile.sum[first + lane][ch] = scatter_sum<8>(sums, lane);
  }
}

template <class Data>
__device__ void finish(const ScanCall& c, const Place& at, int64_t first, const Data (&x)[kOwn],
                       const Data (&z)[kOwn], const float (&sum)[kItems][kChannels]) {
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    const int e = threadIdx.x - kWorkers + k * kHelpers, ch = e % kChannels;
    const int64_t t = first + e / kChannels, d = at.d + ch;
    if (t >= c.rows.T || d >= c.D) continue;
    const float y = fmaf(c.skip[d], widen(x[k]), sum[e / kChannels][ch]) * silu(widen(z[k]));
    narrow(t < at.items ? y : 0.0f, static_cast<Data*>(c.y) + (at.row + t) * c.D + d);
  }
}

// While the workers advance tile i, the helpers finish tile i - 1, prepare i + 1 and fetch i + 3.
template <int kPer, class Data>
__device__ void help(const ScanCall& c, const Place& at, Tile<kPer> (&tiles)[2]) {
  Fetched<kPer, Data> f[4];  // of the tiles i - 1 to i + 2
  fetch(c, at, 0, f[1]);
  fetch(c, at, kItems, f[2]);
  fetch(c, at, 2 * kItems, f[3]);
  prepare(c, at, 0, f[1], tiles[0]);
  __syncthreads();
  // four tiles a round, so that f needs no index known only at run time
  for (int64_t round = 0; round < c.rows.T + kItems; round += 4 * kItems)
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t first = round + k * kItems;
      if (first >= c.rows.T + kItems) break;
      if (first) finish(c, at, first - kItems, f[k].x, f[k].z, tiles[(k + 1) % 2].sum);
      fetch(c, at, first + 3 * kItems, f[k]);
      prepare(c, at, first + kItems, f[(k + 2) % 4], tiles[(k + 1) % 2]);
      __syncthreads();
    }
}

template <int kPer>
__device__ void work(const ScanCall& c, const Place& at, int64_t slot, Tile<kPer> (&tiles)[2]) {
  const int ch = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int64_t d = at.d + ch, kept = max(slot, int64_t(0)) * c.N;
  float A[kPer], h[kPer];
#pragma unroll
  for (int p = 0; p < kPer; ++p) {
    const int64_t n = lane * kPer + p;
    const bool real = d < c.D && n < c.N;
    A[p] = real ? c.A[n * c.D + d] : 0.0f;
    h[p] = real && slot >= 0 ? c.state[(kept + n) * c.D + d] : 0.0f;
  }
  __syncthreads();
  int now = 0;
  for (int64_t first = 0; first < c.rows.T + kItems; first += kItems, now ^= 1) {
    if (first < c.rows.T) advance(tiles[now], A, h, ch, lane);
    __syncthreads();
  }
  if (slot < 0 || d >= c.D) return;
#pragma unroll
  for (int p = 0; p < kPer; ++p)
    if (lane * kPer + p < c.N) c.next[(kept + lane * kPer + p) * c.D + d] = h[p];
}

template <int kPer, class Data>
__global__ void __launch_bounds__(kWorkers + kHelpers) scan(ScanCall c) {
  __shared__ Tile<kPer> tiles[2];
  const Row row = row_of(c.rows, blockIdx.x);
  const Place at{row.items, int64_t(blockIdx.x) * c.rows.T, int64_t(blockIdx.y) * kChannels};
  if (threadIdx.x < kWorkers) {
    work(c, at, row.slot, tiles);
  } else {
    help<kPer, Data>(c, at, tiles);
  }
}

// Few items and N <= 16: one thread a channel. Sums run in the same order as in the tiled kernel, so
// that both give the same bits.
constexpr int kNarrowThreads = 256, kNarrowStates = 16;
constexpr int64_t kNarrowItems = 8;  // with more, waiting for each item costs more than a tile does

// 16 numbers, or N and zeros.
template <class Data>
__device__ void read_row(const Data* from, int64_t N, float (&to)[kNarrowStates]) {
  alignas(16) Data raw[kNarrowStates];
  constexpr int kVectors = sizeof(raw) / 16;
  if (N == kNarrowStates && uintptr_t(from) % 16 == 0) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) reinterpret_cast<uint4*>(raw)[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
  } else {
#pragma unroll
    for (int n = 0; n < kNarrowStates; ++n) raw[n] = n < N ? from[n] : zero<Data>();
  }
#pragma unroll
  for (int n = 0; n < kNarrowStates; ++n) to[n] = widen(raw[n]);
}

template <class Data>
__device__ float narrow_item(const ScanCall& c, int64_t item, const float* A, float step, float inflow,
                             float (&h)[kNarrowStates]) {
  float row[kNarrowStates], pair[kNarrowStates / 2];
  read_row(data<Data>(c.B, item * c.N), c.N, row);
#pragma unroll
  for (int n = 0; n < kNarrowStates; ++n) {
    const float decay = n < c.N ? exp2_fast(step * __ldg(A + n * c.D)) : 0.0f;
    h[n] = fmaf(decay, h[n], row[n] * inflow);
  }
  read_row(data<Data>(c.C, item * c.N), c.N, row);
#pragma unroll
  for (int i = 0; i < kNarrowStates / 2; ++i) pair[i] = fmaf(row[2 * i + 1], h[2 * i + 1], row[2 * i] * h[2 * i]);
#pragma unroll
  for (int half = kNarrowStates / 4; half > 0; half /= 2)
#pragma unroll
    for (int i = 0; i < half; ++i) pair[i] += pair[i + half];
  return pair[0];
}

template <class Data>
__global__ void __launch_bounds__(kNarrowThreads) scan_narrow(ScanCall c, unsigned width) {
  const int64_t b = blockIdx.x / width, d = int64_t(blockIdx.x % width) * kNarrowThreads + threadIdx.x;
  if (d >= c.D) return;
  const Row row = row_of(c.rows, b);
  const int64_t kept = row.slot * c.N * c.D + d;
  float h[kNarrowStates] = {};
#pragma unroll
  for (int n = 0; n < kNarrowStates; ++n)
    if (n < c.N && row.slot >= 0) h[n] = c.state[kept + n * c.D];
  for (int64_t t = 0; t < c.rows.T; ++t) {
    const int64_t item = b * c.rows.T + t, i = item * c.D + d;
    float y = 0.0f;
    if (t < row.items) {
      const float x = widen(*data<Data>(c.x, i)), z = widen(*data<Data>(c.z, i));
      const float delta = softplus(widen(*data<Data>(c.dt, i)) + c.dt_bias[d]);
      const float sum = narrow_item<Data>(c, item, c.A + d, delta * kPerOctave, delta * x, h);
      y = fmaf(c.skip[d], x, sum) * silu(z);
    }
    narrow(y, static_cast<Data*>(c.y) + i);
  }
#pragma unroll
  for (int n = 0; n < kNarrowStates; ++n)
    if (n < c.N && row.slot >= 0) c.next[kept + n * c.D] = h[n];
}

constexpr int kWideThreads = 128;

// Any N, any T: one thread a channel, its states in memory.
template <class Data>
__global__ void __launch_bounds__(kWideThreads) scan_wide(ScanCall c) {
  const int64_t b = blockIdx.x, d = int64_t(blockIdx.y) * kWideThreads + threadIdx.x;
  if (d >= c.D) return;
  const Row row = row_of(c.rows, b);
  const float* state = c.state + row.slot * c.N * c.D + d;
  float* next = c.next + row.slot * c.N * c.D + d;
  if (row.slot >= 0 && state != next)
    for (int64_t n = 0; n < c.N; ++n) next[n * c.D] = state[n * c.D];
  for (int64_t t = 0; t < c.rows.T; ++t) {
    const int64_t item = b * c.rows.T + t, i = item * c.D + d;
    if (t >= row.items) {
      narrow(0.0f, static_cast<Data*>(c.y) + i);
      continue;
    }
    const float x = widen(*data<Data>(c.x, i)), delta = softplus(widen(*data<Data>(c.dt, i)) + c.dt_bias[d]);
    float sum = 0.0f;
    for (int64_t n = 0; n < c.N; ++n) {
      const float decay = exp2_fast(delta * kPerOctave * c.A[n * c.D + d]);
      const float h = fmaf(decay, next[n * c.D], widen(*data<Data>(c.B, item * c.N + n)) * (delta * x));
      next[n * c.D] = h;
      sum = fmaf(widen(*data<Data>(c.C, item * c.N + n)), h, sum);
    }
    narrow(fmaf(c.skip[d], x, sum) * silu(widen(*data<Data>(c.z, i))), static_cast<Data*>(c.y) + i);
  }
}

template <class Data>
void launch(const ScanCall& c, cudaStream_t stream) {
  const dim3 tiled(unsigned(c.rows.B), parts(c.D, kChannels)), plain(unsigned(c.rows.B), parts(c.D, kWideThreads));
  const unsigned width = parts(c.D, kNarrowThreads);
  const bool narrow = c.N <= kNarrowStates && c.rows.T <= kNarrowItems && c.rows.B * width <= INT32_MAX;
  if (narrow) {
    scan_narrow<Data><<<unsigned(c.rows.B) * width, kNarrowThreads, 0, stream>>>(c, width);
  } else if (c.N <= 16) {
    scan<2, Data><<<tiled, kWorkers + kHelpers, 0, stream>>>(c);
  } else if (c.N <= 32) {
    scan<4, Data><<<tiled, kWorkers + kHelpers, 0, stream>>>(c);
  } else {
    scan_wide<Data><<<plain, kWideThreads, 0, stream>>>(c);
  }
}

}  // namespace
}  // namespace streamssm::cuda

using namespace streamssm::cuda;

STREAMSSM_CUDA_API const char* streamssm_cuda_selective_scan(const ScanCall* call, void* stream) {
  if (const char* reason = refuse(call->rows)) return reason;
  if (call->N < 0 || call->D < 0) return "N and D must not be negative";
  if (call->D > 65535 * kChannels) return "a call takes at most 524,280 channels";
  if (call->rows.B == 0 || call->D == 0) return nullptr;
  return for_type(call->type, [&](auto data) { launch<decltype(data)>(*call, cudaStream_t(stream)); });
}
