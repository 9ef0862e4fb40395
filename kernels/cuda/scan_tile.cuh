// SelectiveScan by tiles of items: kLanes threads share one channel or two, each with kPer states of them
// in registers, while tiles go by. Raw data come by asynchronous copies, two tiles ahead; many small blocks on
// a multiprocessor hide each other's waits.
//
// A long call of few channels is cut into chunks of kChunk items that run side by side, in three kernels: every chunk from
// a state of zero, for its last state and the sum of its steps; one chunk after the other, the states they
// begin with; every chunk again, for the outputs. What they hand on waits in y, where the chunk's own
// outputs will be: each block reads its part before it writes there.
#pragma once

#include "copies.cuh"
#include "scan_few.cuh"
#include "scan_stream.cuh"

namespace streamssm::cuda {
namespace {

constexpr int64_t kChunk = 256;
constexpr int64_t kLongCall = 1024;  // items from which on a call is cut into chunks
constexpr int kStages = 3;

template <int kLanesOf, int kChannelsOf, int kOwnOf>
struct Tiling {
  static constexpr int kLanes = kLanesOf, kPer = 4, kChannels = kChannelsOf, kItems = 16;
  static constexpr int kOwn = kOwnOf;  // channels of a thread: one or two
  static constexpr int kStates = kLanes * kPer, kThreads = kLanes * kChannels / kOwn;
  static constexpr int kQuads = kItems * kChannels / 4;  // groups of four channels of an item
  static constexpr int kSumRow = kChannels + 8;          // apart, so that four items fall on other banks
  static constexpr int kHanded = (kStates + 1) * kChannels;
  // blocks of a multiprocessor, as far as its 64 K registers go with 80 a thread
  static constexpr int kBlocks = kThreads <= 32 ? 16 : 768 / kThreads;
};

enum Pass { kWhole, kLast, kOutputs };  // all at once; the first and the third kernel of a long call

struct Place {
  int64_t items;  // of the row that are not padding
  int64_t row;    // index of the row's first item in the batch
  int64_t d;      // first channel of the block
  int64_t first, last;  // items of the chunk
};

template <class S, class Data>
struct Raw {
  alignas(16) Data x[S::kItems][S::kChannels], dt[S::kItems][S::kChannels], z[S::kItems][S::kChannels];
  alignas(16) Data B[S::kItems * S::kStates], C[S::kItems * S::kStates];
};

template <class S>
struct Prepared {
  alignas(16) float2 drive[S::kItems][S::kChannels];  // step and inflow
  alignas(16) float bc[S::kItems][S::kLanes][2 * S::kPer];
};

// Four neighbours in shared memory.
template <class Data>
struct alignas(4 * sizeof(Data)) Quad {
  Data v[4];
};

template <class Data>
__device__ Quad<Data>& quad(Data* at) {
  return *reinterpret_cast<Quad<Data>*>(at);
}

template <class Data>
__device__ const Quad<Data>& quad(const Data* at) {
  return *reinterpret_cast<const Quad<Data>*>(at);
}

// Where what a chunk hands on waits: float i of it, in the rows of y that are this block's own.
template <class S, class Data>
__device__ float* handed(const ScanCall& c, const Place& at, int i) {
  constexpr int kRow = S::kChannels * int(sizeof(Data)) / 4;
  Data* row = static_cast<Data*>(c.y) + (at.row + at.first + i / kRow) * c.D + at.d;
  return reinterpret_cast<float*>(row) + i % kRow;
}

template <class S, Pass kPass, bool kAligned, class Data>
__device__ void fetch(const ScanCall& c, const Place& at, int64_t first, Raw<S, Data>& raw) {
  constexpr int kPart = kAligned ? 16 / int(sizeof(Data)) : 1, kParts = S::kChannels / kPart;
  const int items = int(max(int64_t(0), min(at.items - first, int64_t(S::kItems)))), D = int(c.D), N = int(c.N);
  const int width = int(min(c.D - at.d, int64_t(S::kChannels)));
  const int64_t origin = (at.row + first) * c.D + at.d, row = (at.row + first) * c.bc_pitch;
  const int zs = int(c.z_pitch), pitch = int(c.bc_pitch);
  const Data *x = data<Data>(c.x, origin), *dt = data<Data>(c.dt, origin), *z = data<Data>(c.z, (at.row + first) * c.z_pitch + at.d);
  const Data *B = data<Data>(c.B, row), *C = data<Data>(c.C, row);
  const auto bring = [](Data* to, const Data* from, bool real) {
    if constexpr (kAligned) {
      copy16(to, from, real);
    } else {
      *to = real ? *from : zero<Data>();
    }
  };
#pragma unroll 2
  for (int e = threadIdx.x; e < S::kItems * kParts; e += S::kThreads) {
    const int t = e / kParts, ch = e % kParts * kPart;
    const bool real = t < items && ch < width;
    const int i = real ? t * D + ch : 0;
    bring(&raw.x[t][ch], x + i, real);
    bring(&raw.dt[t][ch], dt + i, real);
    if (kPass != kLast) bring(&raw.z[t][ch], z + (real ? t * zs + ch : 0), real);
  }
  for (int e = threadIdx.x * kPart; e < S::kItems * N; e += S::kThreads * kPart) {
    const bool real = e < items * N;
    const int item = N == S::kStates ? e / S::kStates : e / N, i = real ? item * (pitch - N) + e : 0;
    bring(&raw.B[e], B + i, real);
    if (kPass != kLast) bring(&raw.C[e], C + i, real);
  }
}

// Items after the row's end get step 0 and inflow 0: the states stay as they are.
template <class S, Pass kPass, class Data>
__device__ void prepare(const ScanCall& c, int items, const Raw<S, Data>& raw, const float (&bias)[S::kChannels],
                        Prepared<S>& tile) {
#pragma unroll 2
  for (int e = threadIdx.x; e < S::kQuads; e += S::kThreads) {
    const int t = e / (S::kChannels / 4), ch = e % (S::kChannels / 4) * 4;
    const Quad<Data> x = quad(&raw.x[t][ch]), dt = quad(&raw.dt[t][ch]);
    const Quad<float> add = quad(&bias[ch]);
    float2 drive[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float d = t < items ? softplus(widen(dt.v[k]) + add.v[k]) : 0.0f;
      drive[k] = {d * kPerOctave, d * widen(x.v[k])};
    }
    float4* to = reinterpret_cast<float4*>(&tile.drive[t][ch]);
    to[0] = {drive[0].x, drive[0].y, drive[1].x, drive[1].y};
    to[1] = {drive[2].x, drive[2].y, drive[3].x, drive[3].y};
  }
  const int N = int(c.N);
#pragma unroll 2
  for (int e = threadIdx.x; e < S::kItems * S::kLanes; e += S::kThreads) {
    const int t = e / S::kLanes, lane = e % S::kLanes, n = lane * S::kPer;
    Quad<float> b, c_;
#pragma unroll
    for (int p = 0; p < S::kPer; ++p) {
      b.v[p] = n + p < N ? widen(raw.B[t * N + n + p]) : 0.0f;
      if (kPass != kLast) c_.v[p] = n + p < N ? widen(raw.C[t * N + n + p]) : 0.0f;
    }
    quad(&tile.bc[t][lane][0]) = b;
    if (kPass != kLast) quad(&tile.bc[t][lane][S::kPer]) = c_;
  }
}

template <class S, Pass kPass>
__device__ void advance(const Prepared<S>& tile, float (&sums)[S::kItems][S::kSumRow], const float (&A)[S::kOwn][S::kPer],
                        float (&h)[S::kOwn][S::kPer], float (&steps)[S::kOwn]) {
  constexpr int kPer = S::kPer, kLanes = S::kLanes, kOwn = S::kOwn;
  const int ch = threadIdx.x / kLanes * kOwn, lane = threadIdx.x % kLanes;
#pragma unroll
  for (int first = 0; first < S::kItems; first += kLanes) {
    float partial[kOwn][kLanes];
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      const auto drive = *reinterpret_cast<const Pair<kOwn, float2>*>(&tile.drive[first + j][ch]);
      const Quad<float> B = quad(&tile.bc[first + j][lane][0]);
      Quad<float> C;
      if (kPass != kLast) C = quad(&tile.bc[first + j][lane][kPer]);
#pragma unroll
      for (int k = 0; k < kOwn; ++k) {
        float sum[kPer / 2] = {};
#pragma unroll
        for (int p = 0; p < kPer; ++p) {
          h[k][p] = fmaf(exp2_fast(drive.v[k].x * A[k][p]), h[k][p], B.v[p] * drive.v[k].y);
          if (kPass != kLast) sum[p / 2] = fmaf(C.v[p], h[k][p], sum[p / 2]);
        }
        if (kPass == kLast) steps[k] += drive.v[k].x;
        partial[k][j] = sum[0] + sum[1];
      }
    }
    if (kPass != kLast) {
      Pair<kOwn, float> sum;
#pragma unroll
      for (int k = 0; k < kOwn; ++k) sum.v[k] = scatter_sum<kLanes>(partial[k], lane);
      *reinterpret_cast<Pair<kOwn, float>*>(&sums[first + lane][ch]) = sum;
    }
  }
}

template <class S, bool kAligned, class Data>
__device__ void finish(const ScanCall& c, const Place& at, int64_t first, const Raw<S, Data>& raw,
                       const float (&skip)[S::kChannels], const float (&sums)[S::kItems][S::kSumRow]) {
  const int left = int(min(at.last - first, int64_t(S::kItems))), D = int(c.D);
  const int items = int(max(int64_t(0), min(at.items - first, int64_t(S::kItems))));
  const int width = int(min(c.D - at.d, int64_t(S::kChannels)));
  Data* to = static_cast<Data*>(c.y) + (at.row + first) * c.D + at.d;
#pragma unroll 2
  for (int e = threadIdx.x; e < S::kQuads; e += S::kThreads) {
    const int t = e / (S::kChannels / 4), ch = e % (S::kChannels / 4) * 4;
    if (t >= left || ch >= width) continue;
    const Quad<Data> x = quad(&raw.x[t][ch]), z = quad(&raw.z[t][ch]);
    const Quad<float> add = quad(&skip[ch]), sum = quad(&sums[t][ch]);
    Quad<Data> y;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float v = fmaf(add.v[k], widen(x.v[k]), sum.v[k]) * silu(widen(z.v[k]));
      narrow(t < items ? v : 0.0f, &y.v[k]);
    }
    if constexpr (kAligned) {
      quad(to + t * D + ch) = y;
    } else {
      for (int k = 0; k < 4 && ch + k < width; ++k) to[t * D + ch + k] = y.v[k];
    }
  }
}

template <class S, Pass kPass, bool kAligned, class Data>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) scan_tiles(ScanCall c) {
  __shared__ Raw<S, Data> raw[kStages];
  __shared__ Prepared<S> tile;
  __shared__ alignas(16) float sums[S::kItems][S::kSumRow], bias[S::kChannels], skip[S::kChannels];
  const Row row = row_of(c.rows, blockIdx.x);
  const int64_t chunk = kPass == kWhole ? c.rows.T : kChunk, start = blockIdx.z * chunk;
  const Place at{row.items, int64_t(blockIdx.x) * c.rows.T, int64_t(blockIdx.y) * S::kChannels, start,
                 min(start + chunk, c.rows.T)};
  const int ch = threadIdx.x / S::kLanes * S::kOwn, lane = threadIdx.x % S::kLanes;
  const int64_t kept = max(row.slot, int64_t(0)) * c.N;
  for (int i = threadIdx.x; i < S::kChannels; i += S::kThreads) {
    bias[i] = at.d + i < c.D ? c.dt_bias[at.d + i] : 0.0f;
    skip[i] = at.d + i < c.D ? c.skip[at.d + i] : 0.0f;
  }
  for (int i = 0; i < kStages - 1; ++i) {
    fetch<S, kPass, kAligned, Data>(c, at, at.first + i * S::kItems, raw[i]);
    copies_end();
  }
  float A[S::kOwn][S::kPer], h[S::kOwn][S::kPer], steps[S::kOwn] = {};
#pragma unroll
  for (int k = 0; k < S::kOwn; ++k)
#pragma unroll
    for (int p = 0; p < S::kPer; ++p) {
      const int64_t n = lane * S::kPer + p, d = at.d + ch + k;
      const bool real = d < c.D && n < c.N;
      A[k][p] = real ? c.A[n * c.D + d] : 0.0f;
      if (kPass == kOutputs) {
        h[k][p] = *handed<S, Data>(c, at, int(n) * S::kChannels + ch + k);
      } else {
        h[k][p] = kPass == kWhole && real && row.slot >= 0 ? c.state[(kept + n) * c.D + d] : 0.0f;
      }
    }
  int stage = 0;
  for (int64_t first = at.first; first < at.last; first += S::kItems) {
    copies_wait<kStages - 2>();
    __syncthreads();
    const int ahead = stage == 0 ? kStages - 1 : stage - 1;  // its tile is finished
    if (first + (kStages - 1) * S::kItems < at.last)
      fetch<S, kPass, kAligned, Data>(c, at, first + (kStages - 1) * S::kItems, raw[ahead]);
    copies_end();
    const int items = int(max(int64_t(0), min(at.items - first, int64_t(S::kItems))));
    prepare<S, kPass, Data>(c, items, raw[stage], bias, tile);
    __syncthreads();
    advance<S, kPass>(tile, sums, A, h, steps);
    if (kPass != kLast) {
      __syncthreads();
      finish<S, kAligned, Data>(c, at, first, raw[stage], skip, sums);
    }
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
#pragma unroll
  for (int k = 0; k < S::kOwn; ++k) {
    const int64_t d = at.d + ch + k;
    if (kPass == kLast) {
#pragma unroll
      for (int p = 0; p < S::kPer; ++p)
        *handed<S, Data>(c, at, (lane * S::kPer + p) * S::kChannels + ch + k) = h[k][p];
      if (lane == 0) *handed<S, Data>(c, at, S::kStates * S::kChannels + ch + k) = steps[k];
    } else if (row.slot >= 0 && d < c.D && at.last == c.rows.T) {
#pragma unroll
      for (int p = 0; p < S::kPer; ++p)
        if (lane * S::kPer + p < c.N) c.next[(kept + lane * S::kPer + p) * c.D + d] = h[k][p];
    }
  }
}

// The states that the chunks begin with, in the place of those they left. A thread has one state.
template <class S, class Data>
__global__ void __launch_bounds__(S::kChannels * 4) scan_join(ScanCall c) {
  const Row row = row_of(c.rows, blockIdx.x);
  Place at{row.items, int64_t(blockIdx.x) * c.rows.T, int64_t(blockIdx.y) * S::kChannels, 0, 0};
  const int ch = threadIdx.x % S::kChannels, n = int(blockIdx.z) * 4 + threadIdx.x / S::kChannels;
  const bool real = n < c.N && row.slot >= 0;
  const int64_t i = (max(row.slot, int64_t(0)) * c.N + n) * c.D + at.d + ch;
  const float A = real ? c.A[n * c.D + at.d + ch] : 0.0f;
  float h = real ? c.state[i] : 0.0f;
#pragma unroll 4
  for (; at.first < c.rows.T; at.first += kChunk) {
    float* const place = handed<S, Data>(c, at, n * S::kChannels + ch);
    const float left = *place, steps = *handed<S, Data>(c, at, S::kStates * S::kChannels + ch);
    *place = h;
    h = fmaf(exp2_fast(steps * A), h, left);
  }
}

// Whether what a chunk hands on has room in its part of y.
template <class S, class Data>
bool cut(const ScanCall& c) {
  constexpr int64_t kRows = (S::kHanded * 4 + S::kChannels * sizeof(Data) - 1) / (S::kChannels * sizeof(Data));
  const int64_t rest = c.rows.T % kChunk;
  return c.rows.T >= kLongCall && c.D < kStreamChannels && c.D % S::kChannels == 0 && uintptr_t(c.y) % 4 == 0 && (rest == 0 || rest >= kRows);
}

template <class S, bool kAligned, class Data>
void launch_whole(const ScanCall& c, cudaStream_t stream) {
  const dim3 grid(unsigned(c.rows.B), parts(c.D, S::kChannels));
  scan_tiles<S, kWhole, kAligned, Data><<<grid, S::kThreads, 0, stream>>>(c);
}

template <class S, bool kAligned, class Data>
void launch_chunks(const ScanCall& c, cudaStream_t stream) {
  const dim3 one(unsigned(c.rows.B), parts(c.D, S::kChannels)), all(one.x, one.y, parts(c.rows.T, kChunk));
  scan_tiles<S, kLast, kAligned, Data><<<all, S::kThreads, 0, stream>>>(c);
  scan_join<S, Data><<<dim3(one.x, one.y, S::kStates / 4), S::kChannels * 4, 0, stream>>>(c);
  scan_tiles<S, kOutputs, kAligned, Data><<<all, S::kThreads, 0, stream>>>(c);
}

constexpr int64_t kFewBlocks = 256;  // with fewer, small blocks are sooner done

template <int kLanes, int kChannels, bool kAligned, class Data>
void launch_tiling(const ScanCall& c, cudaStream_t stream) {
  using Large = Tiling<kLanes, kChannels, 2>;
  if (kAligned && cut<Large, Data>(c)) {
    launch_chunks<Large, true, Data>(c, stream);
  } else if (c.rows.B * parts(c.D, kChannels) < kFewBlocks) {
    launch_whole<Tiling<kLanes, 8, 1>, kAligned, Data>(c, stream);
  } else {
    launch_whole<Large, kAligned, Data>(c, stream);
  }
}

template <int kLanes, int kChannels, class Data>
void launch_tiles(const ScanCall& c, cudaStream_t stream) {
  const uintptr_t addresses =
      uintptr_t(c.x) | uintptr_t(c.dt) | uintptr_t(c.z) | uintptr_t(c.B) | uintptr_t(c.C) | uintptr_t(c.y);
  constexpr int64_t kPart = 16 / int64_t(sizeof(Data));
  if (addresses % 16 == 0 && (c.D | c.N | c.z_pitch | c.bc_pitch) % kPart == 0) {
    launch_tiling<kLanes, kChannels, true, Data>(c, stream);
  } else {
    launch_tiling<kLanes, kChannels, false, Data>(c, stream);
  }
}

}  // namespace
}  // namespace streamssm::cuda
