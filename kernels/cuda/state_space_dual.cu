// StateSpaceDual, one decay a head:
//
//     h_n = exp(dt A) h_n + B_n (dt x)     y = sum_n C_n h_n + D x
//
// From 16 items on the matrix form (state_space_dual_chunk.cu), where the GPU has it. Here the recurrence, in
// three kernels. One item: whole rows of the state go by once, four columns a thread. More items: a
// block keeps 16 columns of a head's state in registers, a warp four columns, while tiles of items go
// by; other warps bring the tiles and finish their outputs meanwhile. States too large for registers: a
// plain loop over memory.
#include "state_space_dual.h"

namespace streamssm::cuda {
namespace {

constexpr int kColumns = 16;  // of a block
constexpr int kPerWarp = 4;   // columns of a warp
constexpr int kItems = 16;    // of a tile
constexpr int kWorkers = 32 * kColumns / kPerWarp;
constexpr int kHelpers = 256;
constexpr int kOwn = kItems * kColumns / kHelpers;  // elements (item, column) that a helper brings

template <class Data>
__device__ const Data* data(const void* from, int64_t at) {
  return static_cast<const Data*>(from) + at;
}

struct Place {
  int64_t items, row, p;  // items of the row, its first item in the batch, first column of the block
  int head, group;
};

// What a helper fetches of a tile, as it is in memory, so that nothing waits for it before it is used.
template <int kPer, class Data>
struct Fetched {
  Data x[kOwn], dt[kOwn], B[kItems * 32 * kPer / kHelpers], C[kItems * 32 * kPer / kHelpers];
};

template <int kPer>
struct Tile {
  alignas(16) float B[kItems][32 * kPer], C[kItems][32 * kPer];
  alignas(16) float inflow[kItems][kColumns], sum[kItems][kColumns];
  float decay[kItems];
};

template <int kPer, class Data>
__device__ void fetch(const DualCall& c, const Steps& steps, const Place& at, int64_t first, Fetched<kPer, Data>& f) {
  constexpr int kN = 32 * kPer;
  const int helper = threadIdx.x - kWorkers;
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    const int e = helper + k * kHelpers;
    const int64_t t = first + e / kColumns, p = at.p + e % kColumns;
    const bool real = t < at.items && p < c.P;
    f.x[k] = real ? *data<Data>(c.x, (at.row + t) * c.x_pitch + at.head * c.P + p) : zero<Data>();
    f.dt[k] = t < at.items ? *data<Data>(c.dt, (at.row + t) * steps.pitch + at.head) : zero<Data>();
  }
#pragma unroll
  for (int k = 0; k < kItems * kN / kHelpers; ++k) {
    const int e = helper + k * kHelpers;
    const int64_t t = first + e / kN, n = e % kN, i = (at.row + t) * c.bc_pitch + at.group * c.N + n;
    const bool real = t < at.items && n < c.N;
    f.B[k] = real ? *data<Data>(c.B, i) : zero<Data>();
    f.C[k] = real ? *data<Data>(c.C, i) : zero<Data>();
  }
}

// Items after the row's end have dt 0: decay 1, inflow 0, and the states stay as they are.
template <int kPer, class Data>
__device__ void prepare(const DualCall& c, const Steps& steps, const Place& at, int64_t first,
                        const Fetched<kPer, Data>& f, Tile<kPer>& tile) {
  constexpr int kN = 32 * kPer;
  const int helper = threadIdx.x - kWorkers;
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    const int e = helper + k * kHelpers;
    const float dt = first + e / kColumns < at.items ? steps.size(widen(f.dt[k]), at.head) : 0.0f;
    tile.inflow[e / kColumns][e % kColumns] = dt * widen(f.x[k]);
    if (e % kColumns == 0) tile.decay[e / kColumns] = exp2_fast(dt * kPerOctave * c.A[at.head]);
  }
#pragma unroll
  for (int k = 0; k < kItems * kN / kHelpers; ++k) {
    const int e = helper + k * kHelpers;
    tile.B[e / kN][e % kN] = widen(f.B[k]);
    tile.C[e / kN][e % kN] = widen(f.C[k]);
  }
}

template <int kPer>
__device__ void read_states(const float* from, float (&to)[kPer]) {
  if constexpr (kPer == 4) {
    *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(from);
  } else if constexpr (kPer == 2) {
    *reinterpret_cast<float2*>(to) = *reinterpret_cast<const float2*>(from);
  } else {
    to[0] = *from;
  }
}

// A warp has four columns and all states of each: state number lane * kPer + i is in thread `lane`.
template <int kPer>
__device__ void advance(Tile<kPer>& tile, float (&h)[kPerWarp][kPer]) {
  const int lane = threadIdx.x % 32, column = threadIdx.x / 32 * kPerWarp;
#pragma unroll 1
  for (int first = 0; first < kItems; first += 8) {
    float sums[8 * kPerWarp];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int t = first + j;
      const float decay = tile.decay[t];
      float inflow[kPerWarp], B[kPer], C[kPer];
      *reinterpret_cast<float4*>(inflow) = *reinterpret_cast<const float4*>(&tile.inflow[t][column]);
      read_states<kPer>(&tile.B[t][lane * kPer], B);
      read_states<kPer>(&tile.C[t][lane * kPer], C);
#pragma unroll
      for (int p = 0; p < kPerWarp; ++p) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kPer; ++i) {
          h[p][i] = fmaf(decay, h[p][i], B[i] * inflow[p]);
          sum = fmaf(C[i], h[p][i], sum);
        }
        sums[j * kPerWarp + p] = sum;
      }
    }
    tile.sum[first + lane / kPerWarp][column + lane % kPerWarp] = scatter_sum<32>(sums, lane);
  }
}

template <class Data>
__device__ void finish(const DualCall& c, const Place& at, int64_t first, const Data (&x)[kOwn],
                       const float (&sum)[kItems][kColumns]) {
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    const int e = threadIdx.x - kWorkers + k * kHelpers;
    const int64_t t = first + e / kColumns, p = at.p + e % kColumns;
    if (t >= c.rows.T || p >= c.P) continue;
    const float y = fmaf(c.skip[at.head * c.P + p], widen(x[k]), sum[e / kColumns][e % kColumns]);
    narrow(t < at.items ? y : 0.0f, static_cast<Data*>(c.y) + ((at.row + t) * c.H + at.head) * c.P + p);
  }
}

// Workers and helpers wait for each other at different places of the code: a barrier that says how many.
__device__ inline void meet() {
  __syncwarp();
  asm volatile("barrier.sync 1, %0;" ::"n"(kWorkers + kHelpers) : "memory");
}

// While the workers advance tile i, the helpers finish tile i - 1, prepare i + 1 and fetch i + 3.
template <int kPer, class Data>
__device__ void help(const DualCall& c, const Steps& steps, const Place& at, Tile<kPer> (&tiles)[2]) {
  Fetched<kPer, Data> f[4];  // of the tiles i - 1 to i + 2
  fetch(c, steps, at, 0, f[1]);
  fetch(c, steps, at, kItems, f[2]);
  fetch(c, steps, at, 2 * kItems, f[3]);
  prepare(c, steps, at, 0, f[1], tiles[0]);
  meet();
  // four tiles a round, so that f needs no index known only at run time
  for (int64_t round = 0; round < c.rows.T + kItems; round += 4 * kItems)
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t first = round + k * kItems;
      if (first >= c.rows.T + kItems) break;
      if (first) finish(c, at, first - kItems, f[k].x, tiles[(k + 1) % 2].sum);
      fetch(c, steps, at, first + 3 * kItems, f[k]);
      prepare(c, steps, at, first + kItems, f[(k + 2) % 4], tiles[(k + 1) % 2]);
      meet();
    }
}

template <int kPer>
__device__ void work(const DualCall& c, const Place& at, int64_t slot, Tile<kPer> (&tiles)[2]) {
  static_assert(kPerWarp == 4, "a thread's columns of a state are a vector");
  const int lane = threadIdx.x % 32;
  const int64_t column = at.p + threadIdx.x / 32 * kPerWarp;
  const int64_t kept = ((max(slot, int64_t(0)) * c.H + at.head) * c.N + lane * kPer) * c.P + column;
  const bool whole = c.P % 4 == 0 && (uintptr_t(c.state) | uintptr_t(c.next)) % 16 == 0;
  const auto real = [&](int p, int i) { return slot >= 0 && column + p < c.P && lane * kPer + i < c.N; };
  float h[kPerWarp][kPer];
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    const float* from = c.state + kept + i * c.P;
    if (whole) {
      const float4 v = real(0, i) ? *reinterpret_cast<const float4*>(from) : float4{};
      h[0][i] = v.x, h[1][i] = v.y, h[2][i] = v.z, h[3][i] = v.w;
    } else {
#pragma unroll
      for (int p = 0; p < kPerWarp; ++p) h[p][i] = real(p, i) ? from[p] : 0.0f;
    }
  }
  meet();
  int now = 0;
  for (int64_t first = 0; first < c.rows.T + kItems; first += kItems, now ^= 1) {
    if (first < c.rows.T) advance(tiles[now], h);
    meet();
  }
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    float* to = c.next + kept + i * c.P;
    if (whole) {
      if (real(0, i)) *reinterpret_cast<float4*>(to) = {h[0][i], h[1][i], h[2][i], h[3][i]};
    } else {
#pragma unroll
      for (int p = 0; p < kPerWarp; ++p)
        if (real(p, i)) to[p] = h[p][i];
    }
  }
}

template <int kPer, class Data>
__global__ void __launch_bounds__(kWorkers + kHelpers) dual(DualCall c, Steps steps) {
  __shared__ Tile<kPer> tiles[2];
  const Row row = row_of(c.rows, blockIdx.x);
  const int head = blockIdx.y;
  const Place at{row.items, int64_t(blockIdx.x) * c.rows.T, int64_t(blockIdx.z) * kColumns, head,
                 int(head / (c.H / c.G))};
  if (threadIdx.x < kWorkers) {
    work(c, at, row.slot, tiles);
  } else {
    help<kPer, Data>(c, steps, at, tiles);
  }
}

// One item and P a multiple of 4: a block takes a head, a thread four columns of every 8th row or so.
constexpr int kStepThreads = 128, kStepAhead = 8;

template <class Data>
__device__ void step_rows(const DualCall& c, const float* state, float* next, int64_t bc, float decay,
                          float4 inflow, int row, int rows, float4& sum) {
  for (int64_t first = row; first < c.N; first += kStepAhead * rows) {
    float4 h[kStepAhead];
#pragma unroll
    for (int i = 0; i < kStepAhead; ++i)
      if (first + i * rows < c.N) h[i] = __ldcs(reinterpret_cast<const float4*>(state + (first + i * rows) * c.P));
#pragma unroll
    for (int i = 0; i < kStepAhead; ++i) {
      const int64_t n = first + i * rows;
      if (n >= c.N) break;
      const float B = widen(*data<Data>(c.B, bc + n)), C = widen(*data<Data>(c.C, bc + n));
      h[i].x = fmaf(decay, h[i].x, B * inflow.x), sum.x = fmaf(C, h[i].x, sum.x);
      h[i].y = fmaf(decay, h[i].y, B * inflow.y), sum.y = fmaf(C, h[i].y, sum.y);
      h[i].z = fmaf(decay, h[i].z, B * inflow.z), sum.z = fmaf(C, h[i].z, sum.z);
      h[i].w = fmaf(decay, h[i].w, B * inflow.w), sum.w = fmaf(C, h[i].w, sum.w);
      __stcs(reinterpret_cast<float4*>(next + n * c.P), h[i]);
    }
  }
}

template <class Data>
__global__ void __launch_bounds__(kStepThreads) dual_step(DualCall c, Steps steps) {
  extern __shared__ float sums[];  // [rows][P]
  const int64_t b = blockIdx.x, head = blockIdx.y, item = b * c.H + head;
  const int quads = int(c.P / 4), rows = kStepThreads / quads, quad = threadIdx.x % quads;
  const int row_here = threadIdx.x / quads;
  const Row row = row_of(c.rows, b);
  const Data* x = data<Data>(c.x, b * c.x_pitch + head * c.P);
  Data* y = static_cast<Data*>(c.y) + item * c.P;
  const float dt = row.items ? steps.size(widen(*data<Data>(c.dt, b * steps.pitch + head)), head) : 0.0f;
  const float decay = exp2_fast(dt * kPerOctave * c.A[head]);
  if (row_here < rows && row.slot >= 0) {
    const int64_t at = (row.slot * c.H + head) * c.N * c.P + quad * 4;
    float4 inflow{}, sum{};
    if (row.items) {
      inflow = {dt * widen(x[quad * 4]), dt * widen(x[quad * 4 + 1]), dt * widen(x[quad * 4 + 2]),
                dt * widen(x[quad * 4 + 3])};
      const int64_t bc = b * c.bc_pitch + head / (c.H / c.G) * c.N;
      step_rows<Data>(c, c.state + at, c.next + at, bc, decay, inflow, row_here, rows, sum);
    } else if (c.state != c.next) {
      for (int64_t n = row_here; n < c.N; n += rows)
        *reinterpret_cast<float4*>(c.next + at + n * c.P) = *reinterpret_cast<const float4*>(c.state + at + n * c.P);
    }
    *reinterpret_cast<float4*>(sums + row_here * c.P + quad * 4) = sum;
  }
  __syncthreads();
  for (int64_t p = threadIdx.x; p < c.P; p += kStepThreads) {
    float sum = 0.0f;
    for (int r = 0; row.items && r < rows; ++r) sum += sums[r * c.P + p];
    narrow(row.items ? fmaf(c.skip[head * c.P + p], widen(x[p]), sum) : 0.0f, y + p);
  }
}

// Any N, P, T: one thread a column, its states in memory.
template <class Data>
__global__ void __launch_bounds__(kStepThreads) dual_wide(DualCall c, Steps steps) {
  const int64_t b = blockIdx.x, head = blockIdx.y, p = int64_t(blockIdx.z) * kStepThreads + threadIdx.x;
  if (p >= c.P) return;
  const Row row = row_of(c.rows, b);
  const int64_t kept = (row.slot * c.H + head) * c.N * c.P + p, group = head / (c.H / c.G);
  const float* state = c.state + kept;
  float* next = c.next + kept;
  if (row.slot >= 0 && state != next)
    for (int64_t n = 0; n < c.N; ++n) next[n * c.P] = state[n * c.P];
  for (int64_t t = 0; t < c.rows.T; ++t) {
    const int64_t i = b * c.rows.T + t, item = i * c.H + head, bc = i * c.bc_pitch + group * c.N;
    float y = 0.0f;
    if (t < row.items) {
      const float dt = steps.size(widen(*data<Data>(c.dt, i * steps.pitch + head)), head);
      const float x = widen(*data<Data>(c.x, i * c.x_pitch + head * c.P + p));
      const float decay = exp2_fast(dt * kPerOctave * c.A[head]);
      for (int64_t n = 0; n < c.N; ++n) {
        const float h = fmaf(decay, next[n * c.P], widen(*data<Data>(c.B, bc + n)) * (dt * x));
        next[n * c.P] = h;
        y = fmaf(widen(*data<Data>(c.C, bc + n)), h, y);
      }
      y = fmaf(c.skip[head * c.P + p], x, y);
    }
    narrow(y, static_cast<Data*>(c.y) + item * c.P + p);
  }
}

template <class Data>
void launch(const DualCall& c, const Steps& steps, cudaStream_t stream) {
  const dim3 heads(unsigned(c.rows.B), unsigned(c.H)), tiles(heads.x, heads.y, parts(c.P, kColumns));
  const bool aligned = (uintptr_t(c.state) | uintptr_t(c.next)) % 16 == 0;
  if (c.rows.T == 1 && c.P % 4 == 0 && c.P <= 4 * kStepThreads && aligned) {
    const size_t shared = kStepThreads * 4 * sizeof(float);
    dual_step<Data><<<heads, kStepThreads, shared, stream>>>(c, steps);
  } else if (c.N <= 32) {
    dual<1, Data><<<tiles, kWorkers + kHelpers, 0, stream>>>(c, steps);
  } else if (c.N <= 64) {
    dual<2, Data><<<tiles, kWorkers + kHelpers, 0, stream>>>(c, steps);
  } else if (c.N <= 128) {
    dual<4, Data><<<tiles, kWorkers + kHelpers, 0, stream>>>(c, steps);
  } else {
    dual_wide<Data><<<dim3(heads.x, heads.y, parts(c.P, kStepThreads)), kStepThreads, 0, stream>>>(c, steps);
  }
}

}  // namespace
}  // namespace streamssm::cuda

using namespace streamssm::cuda;

namespace {

const char* run(const DualCall* given, Steps steps, void* stream) {
  DualCall filled = *given;
  if (filled.x_pitch == 0) filled.x_pitch = filled.H * filled.P;
  if (filled.bc_pitch == 0) filled.bc_pitch = filled.G * filled.N;
  if (steps.pitch == 0) steps.pitch = filled.H;
  const DualCall* const call = &filled;
  if (const char* reason = refuse(call->rows)) return reason;
  if (call->N < 0 || call->P < 0 || call->H < 0) return "H, N and P must not be negative";
  if (call->G < 1 || call->H % call->G) return "the heads must be a multiple of the groups";
  if (call->H > 65535 || call->P > 65535 * kColumns) return "a call takes at most 65,535 heads";
  if (call->rows.B == 0 || call->H == 0 || call->P == 0) return nullptr;
  if (in_chunks(*call)) return launch_chunks(*call, steps, cudaStream_t(stream));
  return for_type(call->type, [&](auto data) { launch<decltype(data)>(*call, steps, cudaStream_t(stream)); });
}

}  // namespace

STREAMSSM_CUDA_API const char* streamssm_cuda_state_space_dual(const DualCall* call, void* stream) {
  return run(call, {}, stream);
}

STREAMSSM_CUDA_API const char* streamssm_cuda_state_space_dual_raw(const DualCall* call, const RawSteps* raw,
                                                                   void* stream) {
  if (!raw->bias) return "raw step sizes need a bias";
  return run(call, {raw->pitch, raw->bias, raw->least, raw->most}, stream);
}
