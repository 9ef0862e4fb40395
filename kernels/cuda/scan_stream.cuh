// SelectiveScan in one pass over the items, N <= 16: all exponentials once, for which chunks side by side need
// two passes. What parallel work there is lies in the channels and within a thread: a worker warp has four
// channels, eight threads each, two states a thread, and what does not hang on the last item is
// computed ahead of it. Helper warps bring tiles of items, make step sizes and finish outputs meanwhile.
//
// Exponentials bound it: 16 threads a cycle and multiprocessor, so 16 cycles an item for a worker warp. With
// three worker warps all helpers go to the fourth scheduler: warps that would share one with a worker leave.
#pragma once

#include <type_traits>

#include "scan_few.cuh"
#include "scan_low_rank.cuh"

namespace streamssm::cuda {
namespace {

template <int kWorkersOf, int kItemsOf, bool kLowRankOf = false>
struct Streaming {
  static constexpr int kWorkers = kWorkersOf, kItems = kItemsOf;  // worker warps, items of a tile
  static constexpr bool kLowRank = kLowRankOf;                    // step sizes by a product, one warp more
  static constexpr int kChannels = 4 * kWorkers, kRounds = kItems / 32;
  static constexpr int kStep = kWorkers == 3 ? 4 : 1;  // from one helper warp to the next
  static constexpr int kFirstHelper = kWorkers, kRowWarp = kFirstHelper + kStep * kWorkers;
  static constexpr int kLastWarp = kRowWarp + (kLowRank ? kStep : 0);
  static constexpr int kThreads = 32 * (kLastWarp + 1), kMeeting = 32 * (2 * kWorkers + 1 + kLowRank);

  struct Tile {
    float4 bc[kItems][9];  // of a worker's thread: B of its two states, C of them
    alignas(16) float2 drive[kChannels][kItems + 2];  // step and inflow
    alignas(16) float sums[kItems][kChannels];
    alignas(16) float raw[kLowRank ? kItems : 1][kLowColumns];  // step sizes, if they are made here
  };
};

template <class S>
__device__ inline void stream_meet() {
  __syncwarp();
  asm volatile("barrier.sync 1, %0;" ::"n"(S::kMeeting) : "memory");
}

struct StreamPlace {
  int64_t row, items, d;  // first item of the row, how many are no padding, first channel
};

// The pair of states of a thread: sums over eight threads then run in the order of sum_states.
__device__ inline int pair_of(int lane) { return 2 * (lane % 4) + lane / 4 % 2; }

template <class S>
__device__ void stream_advance(typename S::Tile& tile, const float (&A)[2], float (&h)[2]) {
  const int lane = threadIdx.x % 32, ch = threadIdx.x / 8;
  float sums[S::kItems / 8];  // stored at the end: a store before would hold up the loads after it
#pragma unroll
  for (int first = 0; first < S::kItems; first += 8) {
    float partial[8];
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      const float4 drive = *reinterpret_cast<const float4*>(&tile.drive[ch][first + j]);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float step = k ? drive.z : drive.x, inflow = k ? drive.w : drive.y;
        const float4 bc = tile.bc[first + j + k][lane % 8];
        h[0] = fmaf(exp2_fast(step * A[0]), h[0], bc.x * inflow);
        h[1] = fmaf(exp2_fast(step * A[1]), h[1], bc.y * inflow);
        partial[j + k] = fmaf(bc.w, h[1], fmaf(bc.z, h[0], 0.0f));
      }
    }
    sums[first / 8] = scatter_sum<8>(partial, lane);
  }
#pragma unroll
  for (int i = 0; i < S::kItems / 8; ++i) tile.sums[i * 8 + lane % 8][ch] = sums[i];
}

template <class S>
__device__ void stream_work(const ScanCall& c, const StreamPlace& at, int64_t slot, typename S::Tile (&tiles)[2]) {
  const int64_t d = at.d + threadIdx.x / 8, n = 2 * pair_of(threadIdx.x % 32);
  const int64_t kept = (max(slot, int64_t(0)) * c.N + n) * c.D + d;
  float A[2], h[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const bool real = d < c.D && n + k < c.N;
    A[k] = real ? c.A[(n + k) * c.D + d] : 0.0f;
    h[k] = real && slot >= 0 ? c.state[kept + k * c.D] : 0.0f;
  }
  if (S::kLowRank) stream_meet<S>();
  stream_meet<S>();
  int side = 0;
  for (int64_t first = 0; first < c.rows.T + S::kItems; first += S::kItems, side ^= 1) {
    if (first < c.rows.T) stream_advance<S>(tiles[side], A, h);
    stream_meet<S>();
  }
#pragma unroll
  for (int k = 0; k < 2; ++k)
    if (slot >= 0 && d < c.D && n + k < c.N) c.next[kept + k * c.D] = h[k];
}

// Four numbers as they are in memory: taken apart before they are used, they would be waited for too soon.
template <class Data>
using Four = typename std::conditional<sizeof(Data) == 2, uint2, uint4>::type;

template <class Data>
__device__ void take_apart(const Four<Data>& from, float (&to)[4]) {
  const Data* v = reinterpret_cast<const Data*>(&from);
#pragma unroll
  for (int k = 0; k < 4; ++k) to[k] = widen(v[k]);
}

// What a helper's thread has of a tile: four channels of kRounds items.
template <class S, class Data>
struct StreamRaw {
  Four<Data> x[S::kRounds], dt[S::kRounds], z[S::kRounds];
};

// Items of a tile that are before `end`.
template <class S>
__device__ int stream_count(int64_t end, int64_t first) {
  return int(max(min(end - first, int64_t(S::kItems)), int64_t(0)));
}

struct StreamOwn {
  int item, ch;
  bool real;
  float4 bias, skip;
};

template <class S, class Data>
__device__ void stream_fetch(const ScanCall& c, const StreamPlace& at, const StreamOwn& own, int64_t first,
                             StreamRaw<S, Data>& raw) {
  const int64_t last = at.items - 1 - first, d = own.real ? at.d + own.ch : 0, begin = at.row + first;
  const Data *x = data<Data>(c.x, begin * c.D + d), *z = data<Data>(c.z, begin * c.z_pitch + d);
  const Data* dt = S::kLowRank ? nullptr : data<Data>(c.dt, begin * c.D + d);
#pragma unroll
  for (int r = 0; r < S::kRounds; ++r) {
    // of the last item and of channel 0 where there is none: no branch
    const int64_t t = min(int64_t(own.item + r * 32), last);
    raw.x[r] = *reinterpret_cast<const Four<Data>*>(x + t * c.D);
    if (!S::kLowRank) raw.dt[r] = *reinterpret_cast<const Four<Data>*>(dt + t * c.D);
    raw.z[r] = *reinterpret_cast<const Four<Data>*>(z + t * c.z_pitch);
  }
}

// Items after the row's end get step 0 and inflow 0: the states stay as they are.
template <class S, class Data>
__device__ void stream_prepare(const StreamPlace& at, const StreamOwn& own, int64_t first,
                               const StreamRaw<S, Data>& raw, typename S::Tile& tile) {
  const float bias[4] = {own.bias.x, own.bias.y, own.bias.z, own.bias.w};
  const int items = stream_count<S>(at.items, first);
#pragma unroll
  for (int r = 0; r < S::kRounds; ++r) {
    const int t = own.item + r * 32;
    float dt[4], x[4];
    take_apart<Data>(raw.x[r], x);
    if constexpr (S::kLowRank) {
      const float4 made = *reinterpret_cast<const float4*>(&tile.raw[t][own.ch]);
      dt[0] = made.x, dt[1] = made.y, dt[2] = made.z, dt[3] = made.w;
    } else {
      take_apart<Data>(raw.dt[r], dt);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float d = softplus(dt[k] + bias[k]);
      tile.drive[own.ch + k][t] = t < items ? float2{d * kPerOctave, d * x[k]} : float2{};
    }
  }
}

template <class S, class Data>
__device__ void stream_finish(const ScanCall& c, const StreamPlace& at, const StreamOwn& own, int64_t first,
                              const StreamRaw<S, Data>& raw, const typename S::Tile& tile) {
  const float skip[4] = {own.skip.x, own.skip.y, own.skip.z, own.skip.w};
  const int items = stream_count<S>(at.items, first), all = own.real ? stream_count<S>(c.rows.T, first) : 0;
  Data* y = static_cast<Data*>(c.y) + (at.row + first + own.item) * c.D + at.d + own.ch;
#pragma unroll
  for (int r = 0; r < S::kRounds; ++r) {
    const int t = own.item + r * 32;
    if (t >= all) continue;
    const float4 sum = *reinterpret_cast<const float4*>(&tile.sums[t][own.ch]);
    const float sums[4] = {sum.x, sum.y, sum.z, sum.w};
    float x[4], z[4];
    take_apart<Data>(raw.x[r], x);
    take_apart<Data>(raw.z[r], z);
    alignas(16) Data out[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float v = fmaf(skip[k], x[k], sums[k]) * silu(z[k]);
      narrow(t < items ? v : 0.0f, &out[k]);
    }
    *reinterpret_cast<Four<Data>*>(y + r * 32 * c.D) = *reinterpret_cast<const Four<Data>*>(out);
  }
}

// While the workers advance tile i: finish tile i - 1, fetch i + 2, prepare i + 1.
template <class S, class Data>
__device__ void stream_help(const ScanCall& c, const StreamPlace& at, typename S::Tile (&tiles)[2]) {
  const int helper = (threadIdx.x / 32 - S::kFirstHelper) / S::kStep * 32 + threadIdx.x % 32;
  StreamOwn own{helper / S::kWorkers, helper % S::kWorkers * 4};
  own.real = at.d + own.ch < c.D;
  if (own.real) {
    const float *bias = c.dt_bias + at.d + own.ch, *skip = c.skip + at.d + own.ch;
    own.bias = {bias[0], bias[1], bias[2], bias[3]};
    own.skip = {skip[0], skip[1], skip[2], skip[3]};
  }
  StreamRaw<S, Data> raw[3];  // tile i in raw[i % 3]
  stream_fetch<S, Data>(c, at, own, 0, raw[0]);
  stream_fetch<S, Data>(c, at, own, S::kItems, raw[1]);
  if (S::kLowRank) stream_meet<S>();
  stream_prepare<S, Data>(at, own, 0, raw[0], tiles[0]);
  stream_meet<S>();
  int side = 1;
  // three tiles a round, so that raw needs no index known only at run time
  for (int64_t round = 0; round < c.rows.T + S::kItems; round += 3 * S::kItems)
#pragma unroll
    for (int k = 0; k < 3; ++k, side ^= 1) {
      const int64_t first = round + k * S::kItems;
      if (first >= c.rows.T + S::kItems) break;
      if (first) stream_finish<S, Data>(c, at, own, first - S::kItems, raw[(k + 2) % 3], tiles[side]);
      stream_fetch<S, Data>(c, at, own, first + 2 * S::kItems, raw[(k + 2) % 3]);
      stream_prepare<S, Data>(at, own, first + S::kItems, raw[(k + 1) % 3], tiles[side]);
      stream_meet<S>();
    }
}

// B or C of an item as it is in memory; `whole` if it has kFewStates numbers on a multiple of 16 bytes.
template <class Data>
struct RawRow {
  uint4 v[kFewStates * sizeof(Data) / 16];

  __device__ void read(const Data* from, int64_t N, bool whole) {
    constexpr int kVectors = sizeof(v) / 16, kPer = 16 / sizeof(Data);
    if (whole) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) v[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
    } else {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        alignas(16) Data part[kPer];
#pragma unroll
        for (int k = 0; k < kPer; ++k) part[k] = i * kPer + k < N ? from[i * kPer + k] : zero<Data>();
        v[i] = *reinterpret_cast<const uint4*>(part);
      }
    }
  }

  __device__ float number(int n) const { return widen(reinterpret_cast<const Data*>(v)[n]); }
};

// One warp brings B and C, an item a thread; items after the row's end get those of the last, times nothing.
template <class S, bool kRows, class Data>
__device__ void stream_rows(const ScanCall& c, const StreamPlace& at, typename S::Tile (&tiles)[2]) {
  RawRow<Data> B[S::kRounds], C[S::kRounds];
  const int lane = threadIdx.x % 32;
  const auto bring = [&](int64_t first) {
#pragma unroll
    for (int r = 0; r < S::kRounds; ++r) {
      const int64_t i = (at.row + min(first + r * 32 + lane, at.items - 1)) * c.bc_pitch;
      B[r].read(data<Data>(c.B, i), c.N, kRows);
      C[r].read(data<Data>(c.C, i), c.N, kRows);
    }
  };
  const auto put = [&](typename S::Tile& tile) {
#pragma unroll
    for (int r = 0; r < S::kRounds; ++r)
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int n = 2 * pair_of(i);
        tile.bc[r * 32 + lane][i] = {B[r].number(n), B[r].number(n + 1), C[r].number(n), C[r].number(n + 1)};
      }
  };
  bring(0);
  put(tiles[0]);
  bring(S::kItems);
  if (S::kLowRank) stream_meet<S>();
  stream_meet<S>();
  int side = 1;
  for (int64_t first = 0; first < c.rows.T + S::kItems; first += S::kItems, side ^= 1) {
    put(tiles[side]);
    bring(first + 2 * S::kItems);
    stream_meet<S>();
  }
}

// One warp makes raw step sizes, two tiles ahead of the workers.
template <class S, class Data>
__device__ void stream_make_steps(const ScanCall& c, const LowRank& low, const StreamPlace& at,
                                  typename S::Tile (&tiles)[2]) {
  LowWeights<Data> weights;
  weights.read(low, at.d, c.D);
  LowItems<S::kItems> items;
  items.template read<Data>(low, at.row, at.items, 0);
  low_product<Data>(items, weights, tiles[0].raw);
  items.template read<Data>(low, at.row, at.items, S::kItems);
  stream_meet<S>();
  low_product<Data>(items, weights, tiles[1].raw);
  items.template read<Data>(low, at.row, at.items, 2 * S::kItems);
  stream_meet<S>();
  int side = 0;
  for (int64_t first = 0; first < c.rows.T + S::kItems; first += S::kItems, side ^= 1) {
    low_product<Data>(items, weights, tiles[side].raw);
    items.template read<Data>(low, at.row, at.items, first + 3 * S::kItems);
    stream_meet<S>();
  }
}

// A row without items: outputs are zero, the states stay.
template <class S, class Data>
__device__ void stream_nothing(const ScanCall& c, const StreamPlace& at, int64_t slot) {
  const int width = int(min(c.D - at.d, int64_t(S::kChannels)));
  for (int64_t i = threadIdx.x; i < c.rows.T * width; i += S::kThreads)
    static_cast<Data*>(c.y)[(at.row + i / width) * c.D + at.d + i % width] = zero<Data>();
  if (slot < 0 || c.state == c.next) return;
  for (int i = threadIdx.x; i < c.N * width; i += S::kThreads) {
    const int64_t place = (slot * c.N + i / width) * c.D + at.d + i % width;
    c.next[place] = c.state[place];
  }
}

template <class S, class Data>
__global__ void __launch_bounds__(S::kThreads, S::kWorkers == 3 ? 1 : 2)
    scan_stream(ScanCall c, LowRank low, unsigned width) {
  __shared__ typename S::Tile tiles[2];
  const int64_t b = blockIdx.x / width;
  const Row row = row_of(c.rows, b);
  const StreamPlace at{b * c.rows.T, row.items, int64_t(blockIdx.x % width) * S::kChannels};
  const int warp = threadIdx.x / 32;
  if (row.items == 0) {
    stream_nothing<S, Data>(c, at, row.slot);
  } else if (warp < S::kWorkers) {
    stream_work<S>(c, at, row.slot, tiles);
  } else if (warp == S::kRowWarp) {
    const bool whole = c.N == kFewStates && (uintptr_t(c.B) | uintptr_t(c.C) | c.bc_pitch * sizeof(Data)) % 16 == 0;
    whole ? stream_rows<S, true, Data>(c, at, tiles) : stream_rows<S, false, Data>(c, at, tiles);
  } else if (S::kLowRank && warp == S::kLastWarp) {
    if constexpr (S::kLowRank) stream_make_steps<S, Data>(c, low, at, tiles);
  } else if ((warp - S::kFirstHelper) % S::kStep == 0) {
    stream_help<S, Data>(c, at, tiles);
  }
}

constexpr int64_t kStreamDevice = 132;   // multiprocessors of the GPU that this was tuned on
constexpr int64_t kStreamChannels = 768;  // from which on long calls are not cut into chunks

template <class Data>
bool can_stream(const ScanCall& c) {
  const uintptr_t addresses = uintptr_t(c.x) | uintptr_t(c.dt) | uintptr_t(c.z) | uintptr_t(c.y);
  return c.N <= kFewStates && (c.D | c.z_pitch) % 4 == 0 && addresses % (4 * sizeof(Data)) == 0;
}

// Whether the pass takes a call that is longer than a few items. Its bits are those of the tiles.
template <class Data>
bool streams(const ScanCall& c, int64_t long_call) {
  if (!can_stream<Data>(c)) return false;
  if (c.rows.T >= long_call) return c.D >= kStreamChannels;
  return c.rows.B * parts(c.D, 16) <= 2 * kStreamDevice;
}

template <class S, class Data>
void launch_streaming(const ScanCall& c, const LowRank& low, cudaStream_t stream) {
  const unsigned width = parts(c.D, S::kChannels);
  scan_stream<S, Data><<<unsigned(c.rows.B) * width, S::kThreads, 0, stream>>>(c, low, width);
}

// Three worker warps if one such block on each multiprocessor does all.
template <int kItems, bool kLowRank, class Data>
void launch_stream(const ScanCall& c, const LowRank& low, cudaStream_t stream) {
  if (c.rows.B * parts(c.D, 12) <= kStreamDevice) {
    launch_streaming<Streaming<3, kItems, kLowRank>, Data>(c, low, stream);
  } else {
    launch_streaming<Streaming<4, kItems, kLowRank>, Data>(c, low, stream);
  }
}

}  // namespace
}  // namespace streamssm::cuda
