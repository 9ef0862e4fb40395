// SelectiveScan of long calls, N = 16, 16-bit data, sm_90: the warps of a block, in a ring, take turns at the items.
//
// Only h = a h + b hangs on the item before: 4 cycles of the 27 that a pair of states takes in scan_stream.cuh.
// So a warp has 16 items at a time. It makes all that does not hang on h (step sizes, exponentials, inflows), waits for
// the states of the warp before, takes them through its items, hands them on, and then sums and writes its outputs.
// The states take one path, item after item, and the sums have the order of the other kernels: so have the bits.
//
// A warp has everything for itself but the states. Raw data come by the copy engine, a turn ahead: by asynchronous
// copies of 8 bytes, each of a row of its own, they took a third of the shared memory's time.
#pragma once

#include <cuda.h>

#include "scan_stream.cuh"

namespace streamssm::cuda {
namespace {

// A block has kGroups groups of four channels. In a group, a thread has one channel and two neighbouring states.
template <int kGroupsOf>
struct Ring {
  static constexpr int kGroups = kGroupsOf, kChannels = 4 * kGroups;
  static constexpr int kWarps = 12, kThreads = 32 * kWarps, kItems = 16, kTurn = kWarps * kItems;
  static constexpr int kPartRow = kItems + 4, kPartChannel = 8 * kPartRow + 16;  // apart in the banks

  template <class Data>
  struct alignas(256) Raw {  // rows of 16 channels, of which kChannels are the block's
    Data x[kItems][16], dt[kItems][16], z[kItems][16], B[kItems][16], C[kItems][16];
  };
  template <class Data>
  struct alignas(256) Own {  // of a warp
    Raw<Data> raw[2];
    float4 bc[kItems][9];                              // of a pair of states: B of both, C of both
    alignas(16) float2 drive[kChannels][kItems + 4];   // step and inflow
    alignas(16) float part[4 * kPartChannel];          // of the sums over the states, a pair of them each
    alignas(16) float sums[kItems][4 * (kGroups | 1)];
    uint64_t full[2];  // barriers: raw data have come
  };
  template <class Data>
  struct Memory {
    Own<Data> own[kWarps];
    float2 handed[kWarps][kGroups][32];  // the states after a warp's items
    float2 A[kGroups][32];
    alignas(16) float bias[kChannels], skip[kChannels];
    uint64_t ready[kWarps][kGroups];  // barriers: states have been handed on
  };
};

struct RingMaps {
  CUtensorMap x, dt, z, B, C;  // each [B T, width]
};

struct RingPlace {
  int64_t row, d;  // first item of the row in the batch, first channel
  int items;       // of the row that are no padding
  int shift;       // where the first channel lies in a row of raw data: a box must begin at 16 bytes
};

#if __CUDA_ARCH__ >= 900

struct RingLane {
  int item, half;  // with raw data and outputs: an item, and of a group the first or last two channels
  int ch, pair;    // with states: a channel of a group, a pair of states
};

// Neighbours differ in the channel, neighbours two apart in the states: so reads of 16 bytes are shared.
__device__ inline RingLane ring_lane() {
  const int lane = threadIdx.x % 32;
  return {lane / 2, lane % 2, lane % 2 + lane / 16 * 2, lane / 2 % 8};
}

__device__ inline uint32_t ring_address(const void* at) { return uint32_t(__cvta_generic_to_shared(at)); }

__device__ inline void ring_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(ring_address(barrier)), "r"(arrivals) : "memory");
}

__device__ inline void ring_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done = 0;
  while (!done)
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(done)
                 : "r"(ring_address(barrier)), "r"(parity)
                 : "memory");
}

__device__ inline void ring_arrive(uint64_t* barrier) {
  asm volatile("{.reg .b64 s; mbarrier.arrive.shared.b64 s, [%0];}" ::"r"(ring_address(barrier)) : "memory");
}

__device__ inline void ring_copy(void* to, const CUtensorMap& map, int column, int row, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          ring_address(to)),
      "l"(&map), "r"(column), "r"(row), "r"(ring_address(barrier))
      : "memory");
}

// By one thread: 16 items from `item` of the batch on; what lies after the ends of the tensors is zeros.
template <class Raw>
__device__ void ring_fetch(const RingMaps& maps, int item, int d, Raw& raw, uint64_t* barrier) {
  asm volatile("{.reg .b64 s; mbarrier.arrive.expect_tx.shared.b64 s, [%0], %1;}" ::"r"(ring_address(barrier)),
               "n"(sizeof(Raw))
               : "memory");
  ring_copy(raw.x, maps.x, d, item, barrier);
  ring_copy(raw.dt, maps.dt, d, item, barrier);
  ring_copy(raw.z, maps.z, d, item, barrier);
  ring_copy(raw.B, maps.B, 0, item, barrier);
  ring_copy(raw.C, maps.C, 0, item, barrier);
}

// A thread's two channels of group g. In four rows of eight the engine has swapped the halves: fewer rows of a read
// share a bank.
template <class S, class Data>
__device__ inline Pair<2, Data> ring_raw(const Data (&tile)[S::kItems][16], int g, int shift) {
  const RingLane l = ring_lane();
  const int swapped = l.item / 4 % 2 * 8;
  return *reinterpret_cast<const Pair<2, Data>*>(&tile[l.item][(shift + 2 * l.half + 4 * g) ^ swapped]);
}

// B, C, steps and inflows of 16 items. Those after the row's end (not `real`) leave the states as they are.
template <class S, class Data>
__device__ void ring_prepare(const float (&bias)[S::kChannels], bool real, int shift,
                             const typename S::template Raw<Data>& raw, typename S::template Own<Data>& own) {
  const RingLane l = ring_lane();
  alignas(16) Data B[8], C[8];
  *reinterpret_cast<uint4*>(B) = *reinterpret_cast<const uint4*>(&raw.B[l.item][8 * l.half]);
  *reinterpret_cast<uint4*>(C) = *reinterpret_cast<const uint4*>(&raw.C[l.item][8 * l.half]);
#pragma unroll
  for (int j = 0; j < 4; ++j)
    own.bc[l.item][4 * l.half + j] = {widen(B[2 * j]), widen(B[2 * j + 1]), widen(C[2 * j]), widen(C[2 * j + 1])};
  float given[S::kGroups][2], curved[S::kGroups][2];
#pragma unroll
  for (int g = 0; g < S::kGroups; ++g) {
    const auto dt = ring_raw<S>(raw.dt, g, shift);
    const float2 add = *reinterpret_cast<const float2*>(&bias[4 * g + 2 * l.half]);
    given[g][0] = widen(dt.v[0]) + add.x, given[g][1] = widen(dt.v[1]) + add.y;
#pragma unroll
    for (int k = 0; k < 2; ++k) curved[g][k] = softplus_curved(given[g][k]);
  }
#pragma unroll
  for (int i = 0; i < 2 * S::kGroups; ++i)
    asm volatile("" : "+f"(curved[i / 2][i % 2]));  // all side by side: else each was made in a branch
#pragma unroll
  for (int g = 0; g < S::kGroups; ++g) {
    const auto x = ring_raw<S>(raw.x, g, shift);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float d = given[g][k] > kSoftplusLinear ? given[g][k] : curved[g][k];
      own.drive[4 * g + 2 * l.half + k][l.item] = {d * kPerOctave, d * widen(x.v[k])};
    }
  }
  if (real) return;
#pragma unroll 1
  for (int i = 0; i < 4; ++i) own.bc[l.item][4 * l.half + i] = {};
#pragma unroll 1
  for (int ch = 2 * l.half; ch < S::kChannels; ch += 4) own.drive[ch][l.item] = own.drive[ch + 1][l.item] = {};
}

// Of a pair of states and 16 items: decays and inflows, then in the place of the decays the states.
struct RingItems {
  static constexpr int kItems = 16;
  float a[kItems][2], b[kItems][2];

  __device__ void make(const float2* drive, float2 A, const float4 (&bc)[kItems]) {
#pragma unroll
    for (int i = 0; i < kItems; i += 2) {
      const float4 two = *reinterpret_cast<const float4*>(drive + i);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float step = k ? two.z : two.x, inflow = k ? two.w : two.y;
        a[i + k][0] = exp2_fast(step * A.x), a[i + k][1] = exp2_fast(step * A.y);
        b[i + k][0] = bc[i + k].x * inflow, b[i + k][1] = bc[i + k].y * inflow;
      }
    }
  }

  __device__ void advance(float2& h) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      h.x = a[i][0] = fmaf(a[i][0], h.x, b[i][0]);
      h.y = a[i][1] = fmaf(a[i][1], h.y, b[i][1]);
    }
  }
};

// The sums over the states of group g, in the order of sum_states.
template <class S, class Own>
__device__ void ring_sum(const RingItems& items, const float4 (&bc)[S::kItems], int g, Own& own) {
  const RingLane l = ring_lane();
  float pair[S::kItems];
#pragma unroll
  for (int i = 0; i < S::kItems; ++i) pair[i] = fmaf(bc[i].w, items.a[i][1], fmaf(bc[i].z, items.a[i][0], 0.0f));
#pragma unroll
  for (int i = 0; i < S::kItems; i += 4)
    *reinterpret_cast<float4*>(&own.part[l.ch * S::kPartChannel + l.pair * S::kPartRow + i]) = {
        pair[i], pair[i + 1], pair[i + 2], pair[i + 3]};
  __syncwarp();
  const int lane = threadIdx.x % 32, ch = lane / 8, item = lane % 8 * 2;
  float2 p[8];
#pragma unroll
  for (int n = 0; n < 8; ++n)
    p[n] = *reinterpret_cast<const float2*>(&own.part[ch * S::kPartChannel + n * S::kPartRow + item]);
  own.sums[item][4 * g + ch] = ((p[0].x + p[1].x) + (p[4].x + p[5].x)) + ((p[2].x + p[3].x) + (p[6].x + p[7].x));
  own.sums[item + 1][4 * g + ch] = ((p[0].y + p[1].y) + (p[4].y + p[5].y)) + ((p[2].y + p[3].y) + (p[6].y + p[7].y));
}

// `wide`: how many of the block's channels the thread's item has; none if it is padding.
template <class S, class Data>
__device__ void ring_finish(Data* y, int wide, int shift, const float (&skip)[S::kChannels],
                            const typename S::template Raw<Data>& raw, const typename S::template Own<Data>& own) {
  const RingLane l = ring_lane();
#pragma unroll
  for (int g = 0; g < S::kGroups; ++g) {
    const int ch = 4 * g + 2 * l.half;
    const float2 sum = *reinterpret_cast<const float2*>(&own.sums[l.item][ch]);
    const float2 keep = *reinterpret_cast<const float2*>(&skip[ch]);
    const auto x = ring_raw<S>(raw.x, g, shift), z = ring_raw<S>(raw.z, g, shift);
    Pair<2, Data> out;
    narrow(fmaf(keep.x, widen(x.v[0]), sum.x) * silu(widen(z.v[0])), &out.v[0]);
    narrow(fmaf(keep.y, widen(x.v[1]), sum.y) * silu(widen(z.v[1])), &out.v[1]);
    if (ch < wide) *reinterpret_cast<Pair<2, Data>*>(y + ch) = out;
  }
}

// False, which no compiler knows.
__device__ inline bool never() {
  int blocks;
  asm volatile("mov.u32 %0, %%nctaid.z;" : "=r"(blocks));
  return blocks > 1;
}

// The turns of a warp.
template <class S, class Data>
__device__ void ring_work(const ScanCall& c, const RingMaps& maps, const RingPlace& at, int warp,
                          typename S::template Memory<Data>& m) {
  const int lane = threadIdx.x % 32, before = warp == 0 ? S::kWarps - 1 : warp - 1;
  const int room = int(min(c.D - at.d, int64_t(S::kChannels))), row = int(at.row), d = int(at.d) - at.shift;
  auto& own = m.own[warp];
  const RingLane l = ring_lane();
  int first = warp * S::kItems;
  if (lane == 0 && first < at.items) ring_fetch(maps, row + first, d, own.raw[0], &own.full[0]);
  Data* y = static_cast<Data*>(c.y) + (at.row + first + l.item) * c.D + at.d;
  uint32_t parity = 0, stage = 0;  // the stage is the parity of the turn
#pragma unroll 1
  for (; first < at.items; first += S::kTurn, parity ^= stage, stage ^= 1) {
    ring_wait(&own.full[stage], parity);
    __syncwarp();  // all have read what was in the other stage
    if (lane == 0 && first + S::kTurn < at.items)
      ring_fetch(maps, row + first + S::kTurn, d, own.raw[stage ^ 1], &own.full[stage ^ 1]);
    const bool real = first + l.item < at.items;
    ring_prepare<S, Data>(m.bias, real, at.shift, own.raw[stage], own);
    __syncwarp();
    float4 bc[S::kItems];
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) bc[i] = own.bc[i][l.pair];
#pragma unroll
    for (int g = 0; g < S::kGroups; ++g) {
      RingItems items;
      float2 h;
      items.make(own.drive[4 * g + l.ch], m.A[g][lane], bc);
      do {  // once: the compiler puts half of make() after the wait, but not into a loop
        ring_wait(&m.ready[before][g], stage);
        h = m.handed[before][g][lane];
        items.advance(h);
      } while (never());
      m.handed[warp][g][lane] = h;
      ring_arrive(&m.ready[warp][g]);  // each for its own: racecheck does not see it if one does it for the warp
      __syncwarp();                    // all have read the parts of the group before
      ring_sum<S>(items, bc, g, own);
    }
    __syncwarp();
    ring_finish<S, Data>(y, real ? room : 0, at.shift, m.skip, own.raw[stage], own);
    y += int64_t(S::kTurn) * c.D;
  }
}

// Parameters, barriers, and the states as the last warp would hand them on.
template <class S, class Data>
__device__ void ring_begin(const ScanCall& c, int64_t d, int64_t kept, typename S::template Memory<Data>& m) {
  const int i = threadIdx.x, g = i / 32, lane = i % 32;
  if (i < S::kChannels) {
    m.bias[i] = d + i < c.D ? c.dt_bias[d + i] : 0.0f;
    m.skip[i] = d + i < c.D ? c.skip[d + i] : 0.0f;
  }
  if (g < S::kGroups) {
    const RingLane l = ring_lane();
    const int64_t channel = d + 4 * g + l.ch, n = 2 * l.pair, at = kept + n * c.D + channel;
    const bool real = channel < c.D;
    m.A[g][lane] = real ? float2{c.A[n * c.D + channel], c.A[(n + 1) * c.D + channel]} : float2{};
    m.handed[S::kWarps - 1][g][lane] = real ? float2{c.state[at], c.state[at + c.D]} : float2{};
  }
  if (i < S::kWarps * S::kGroups) ring_barrier(&m.ready[i / S::kGroups][i % S::kGroups], 32);
  if (i < S::kWarps * 2) ring_barrier(&m.own[i / 2].full[i % 2], 1);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (g < S::kGroups) ring_arrive(&m.ready[S::kWarps - 1][g]);
}

// By the warp that had the last items.
template <class S, class Data>
__device__ void ring_end(const ScanCall& c, int64_t d, int64_t kept, const float2 (&handed)[S::kGroups][32]) {
  const RingLane l = ring_lane();
  for (int g = 0; g < S::kGroups; ++g) {
    const int64_t channel = d + 4 * g + l.ch, at = kept + 2 * l.pair * c.D + channel;
    const float2 h = handed[g][threadIdx.x % 32];
    if (channel < c.D) c.next[at] = h.x, c.next[at + c.D] = h.y;
  }
}

#endif

template <class S, class Data>
__global__ void __launch_bounds__(S::kThreads, 1)
    scan_ring(ScanCall c, const __grid_constant__ RingMaps maps, unsigned width) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(256) unsigned char memory[];
  auto& m = *reinterpret_cast<typename S::template Memory<Data>*>(memory);
  const int64_t b = blockIdx.x / width, d = int64_t(blockIdx.x % width) * S::kChannels;
  const Row row = row_of(c.rows, b);
  const RingPlace at{b * c.rows.T, d, int(row.items), S::kGroups % 2 ? int(d % 8) : 0};
  if (row.items == 0) return stream_nothing<S, Data>(c, {at.row, 0, d}, row.slot);
  const int64_t kept = row.slot * c.N * c.D;
  const int warp = threadIdx.x / 32;
  ring_begin<S, Data>(c, d, kept, m);
  ring_work<S, Data>(c, maps, at, warp, m);
  if (warp == (at.items - 1) / S::kItems % S::kWarps) ring_end<S, Data>(c, d, kept, m.handed[warp]);
  const int wide = int(min(c.D - d, int64_t(S::kChannels)));
  for (int64_t i = threadIdx.x; i < (c.rows.T - row.items) * wide; i += S::kThreads)
    static_cast<Data*>(c.y)[(at.row + row.items + i / wide) * c.D + d + i % wide] = zero<Data>();
#endif
}

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// A function of the driver, found at run time so that the library needs none to be loaded; null if it is too old.
inline EncodeTiled encode_tiled() {
  static const EncodeTiled found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    const auto error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? EncodeTiled(function) : nullptr;
  }();
  return found;
}

// Boxes of 16 items and 16 of `width` numbers of 16 bits.
inline bool ring_map(CUtensorMap* map, const void* from, int64_t width, int64_t rows, int64_t pitch, bool swapped) {
  const cuuint64_t sizes[2] = {cuuint64_t(width), cuuint64_t(rows)}, strides[1] = {cuuint64_t(pitch) * 2};
  const cuuint32_t box[2] = {16, 16}, ones[2] = {1, 1};
  const auto swizzle = swapped ? CU_TENSOR_MAP_SWIZZLE_32B : CU_TENSOR_MAP_SWIZZLE_NONE;
  return encode_tiled()(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, const_cast<void*>(from), sizes, strides, box, ones,
                        CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

inline bool ring_maps(const ScanCall& c, RingMaps* maps) {
  const int64_t rows = c.rows.B * c.rows.T;
  return encode_tiled() && ring_map(&maps->x, c.x, c.D, rows, c.D, true) &&
         ring_map(&maps->dt, c.dt, c.D, rows, c.D, true) && ring_map(&maps->z, c.z, c.D, rows, c.z_pitch, true) &&
         ring_map(&maps->B, c.B, c.N, rows, c.bc_pitch, false) && ring_map(&maps->C, c.C, c.N, rows, c.bc_pitch, false);
}

// Whether it was launched: the GPU must have the shared memory, and code that is compiled for it.
template <class S, class Data>
bool launch_ring(const ScanCall& c, cudaStream_t stream) {
  constexpr int kBytes = int(sizeof(typename S::template Memory<Data>));
  const auto kernel = scan_ring<S, Data>;
  RingMaps maps;
  const bool room = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes) == cudaSuccess;
  if (!room) cudaGetLastError();
  if (!room || compiled_before(kernel, 90) || !ring_maps(c, &maps)) return false;
  const unsigned width = parts(c.D, S::kChannels);
  kernel<<<unsigned(c.rows.B) * width, S::kThreads, kBytes, stream>>>(c, maps, width);
  return true;
}

}  // namespace
}  // namespace streamssm::cuda
