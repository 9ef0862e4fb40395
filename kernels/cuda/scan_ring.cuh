// SelectiveScan of long calls, N = 16, float16, sm_90: the warps of a block, in a ring, take turns at the items.
//
// Only h = a h + b hangs on the item before: 4 cycles of the 27 that a pair of states takes in scan_stream.cuh. So a
// warp has 16 items at a time. It makes all that does not hang on h (step sizes, exponentials, inflows), waits for
// the states of the warp before, takes them through its items, hands them on, and then sums and writes its outputs.
// The states take one path, item after item, and the sums have the order of the other kernels: so have the bits,
// at any length.
//
// A warp has everything for itself but the states. Raw data come by asynchronous copies, a turn ahead.
#pragma once

#include "copies.cuh"
#include "scan_stream.cuh"

namespace streamssm::cuda {
namespace {

// kRings side by side in a block, each of kWarps, for kGroups groups of four channels, one after the other. In a group
// a thread has one channel and two neighbouring states.
template <int kGroupsOf, int kRingsOf, int kWarpsOf>
struct Ring {
  static constexpr int kGroups = kGroupsOf, kRings = kRingsOf, kWarps = kWarpsOf, kItems = 16;
  static constexpr int kWide = 4 * kGroups, kChannels = kWide * kRings, kThreads = 32 * kRings * kWarps;

  template <class Data>
  struct Raw {
    alignas(16) Data x[kItems][kWide], dt[kItems][kWide], z[kItems][kWide];
    alignas(16) Data B[kItems][16], C[kItems][16];
  };
  template <class Data>
  struct Own {  // of a warp
    Raw<Data> raw[2];
    float4 bc[kItems][9];                         // of a pair of states: B of both, C of both
    alignas(16) float2 drive[kWide][kItems + 4];  // step and inflow
    alignas(16) float sums[kItems][4];            // over the states, of one group
  };
  template <class Data>
  struct Memory {
    Own<Data> own[kRings][kWarps];
    float2 handed[kRings][kWarps][kGroups][32];  // the states after a warp's items
    float2 A[kRings][kGroups][32];
    alignas(16) float bias[kChannels], skip[kChannels];
    alignas(8) uint64_t ready[kRings][kWarps][kGroups];  // barriers: states have been handed on
  };
};

struct RingPlace {
  int64_t row, items, d;  // first item of the row, how many are no padding, first channel of the ring
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

// What a thread fetches, and bytes from item to item.
struct RingPointers {
  const char *x, *dt, *z, *B, *C;
  int wide, z_pitch, bc_pitch;
};

template <class S, class Data>
__device__ RingPointers ring_pointers(const ScanCall& c, const RingPlace& at) {
  constexpr int kSize = int(sizeof(Data));
  const RingLane l = ring_lane();
  const int64_t ch = at.d + 4 * l.half, i = at.row * c.D + ch, bc = at.row * c.bc_pitch + 8 * l.half;
  const auto bytes = [](const void* from, int64_t first) {
    const char* pointer = static_cast<const char*>(from) + first * kSize;
    asm volatile("" : "+l"(pointer));  // kept, not made anew at every turn
    return pointer;
  };
  return {bytes(c.x, i), bytes(c.dt, i), bytes(c.z, at.row * c.z_pitch + ch), bytes(c.B, bc), bytes(c.C, bc),
          int(c.D) * kSize, int(c.z_pitch) * kSize, int(c.bc_pitch) * kSize};
}

// Item t of the row. `room`: how many channels there are from the ring's first on.
template <class S, class Data>
__device__ void ring_fetch(const RingPointers& from, int t, int room, typename S::template Raw<Data>& raw) {
  const RingLane l = ring_lane();
  const char *x = from.x + int64_t(t) * from.wide, *dt = from.dt + int64_t(t) * from.wide;
  const char* z = from.z + int64_t(t) * from.z_pitch;
  copy16(&raw.B[l.item][8 * l.half], from.B + int64_t(t) * from.bc_pitch, true);
  copy16(&raw.C[l.item][8 * l.half], from.C + int64_t(t) * from.bc_pitch, true);
#pragma unroll
  for (int g = 0; g < S::kGroups; g += 2)
    if (g + l.half < S::kGroups && 4 * (g + l.half) < room) {
      const int to = 4 * (g + l.half), skipped = 4 * g * int(sizeof(Data));
      copy8(&raw.x[l.item][to], x + skipped);
      copy8(&raw.dt[l.item][to], dt + skipped);
      copy8(&raw.z[l.item][to], z + skipped);
    }
}

// Keeps the compiler from moving what makes v to where v is used.
__device__ inline void now(float& v) { asm volatile("" : "+f"(v)); }

// B, C, steps and inflows. Items after the row's end (not `real`) get step 0 and inflow 0: the states stay.
template <class S, class Data>
__device__ void ring_prepare(const float* bias, bool real, int stage, typename S::template Own<Data>& own) {
  const RingLane l = ring_lane();
  const auto& raw = own.raw[stage];
  alignas(16) Data B[8], C[8];
  *reinterpret_cast<uint4*>(B) = *reinterpret_cast<const uint4*>(&raw.B[l.item][8 * l.half]);
  *reinterpret_cast<uint4*>(C) = *reinterpret_cast<const uint4*>(&raw.C[l.item][8 * l.half]);
#pragma unroll
  for (int j = 0; j < 4; ++j)
    own.bc[l.item][4 * l.half + j] = {widen(B[2 * j]), widen(B[2 * j + 1]), widen(C[2 * j]), widen(C[2 * j + 1])};
  float given[S::kGroups][2], curved[S::kGroups][2];
#pragma unroll
  for (int g = 0; g < S::kGroups; ++g) {
    const int ch = 4 * g + 2 * l.half;
    const auto dt = *reinterpret_cast<const Pair<2, Data>*>(&raw.dt[l.item][ch]);
    const float2 add = *reinterpret_cast<const float2*>(&bias[ch]);
    given[g][0] = widen(dt.v[0]) + add.x, given[g][1] = widen(dt.v[1]) + add.y;
#pragma unroll
    for (int k = 0; k < 2; ++k) curved[g][k] = softplus_curved(given[g][k]);
  }
#pragma unroll
  for (int i = 0; i < 2 * S::kGroups; ++i) now(curved[i / 2][i % 2]);  // not in branches
#pragma unroll
  for (int g = 0; g < S::kGroups; ++g) {
    const int ch = 4 * g + 2 * l.half;
    const auto x = *reinterpret_cast<const Pair<2, Data>*>(&raw.x[l.item][ch]);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float made = given[g][k] > kSoftplusLinear ? given[g][k] : curved[g][k], d = real ? made : 0.0f;
      own.drive[ch + k][l.item] = {d * kPerOctave, real ? d * widen(x.v[k]) : 0.0f};
    }
  }
}

template <int half>
__device__ inline void ring_halve(float (&v)[8], int apart) {
  const bool upper = threadIdx.x & apart;
#pragma unroll
  for (int j = 0; j < half; ++j) {
    const float give = upper ? v[j] : v[j + half], keep = upper ? v[j + half] : v[j];
    v[j] = keep + __shfl_xor_sync(~0u, give, apart);
  }
}

// The sums over the states of four channels and 16 items, in the order of sum_states.
template <class S, class Own>
__device__ void ring_sum(const float (&v)[S::kItems], Own& own) {
  const RingLane l = ring_lane();
  const int item = l.pair % 2 * 4 + l.pair / 4 * 2 + l.pair / 2 % 2;
#pragma unroll
  for (int j = 0; j < S::kItems; j += 8) {
    float part[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) part[k] = v[j + k];
    ring_halve<4>(part, 2);
    ring_halve<2>(part, 8);
    ring_halve<1>(part, 4);
    own.sums[j + item][l.ch] = part[0];
  }
  __syncwarp();
}

__device__ inline uint32_t ring_address(const void* at) { return uint32_t(__cvta_generic_to_shared(at)); }

__device__ inline void ring_wait(uint64_t* ready, uint32_t parity) {
  const uint32_t at = ring_address(ready);
  uint32_t done = 0;
  while (!done)
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(done)
                 : "r"(at), "r"(parity)
                 : "memory");
}

__device__ inline void ring_post(uint64_t* ready) {
  __syncwarp();
  if (threadIdx.x % 32 == 0)
    asm volatile("{.reg .b64 s; mbarrier.arrive.shared.b64 s, [%0];}" ::"r"(ring_address(ready)) : "memory");
}

// `left`: items of the row from the thread's own on; `all`: with padding; `room`: as above.
template <class S, class Data>
__device__ void ring_finish(Data* y, int left, int all, int room, int g, const float* skip,
                            const typename S::template Raw<Data>& raw, const float (&sums)[S::kItems][4]) {
  const RingLane l = ring_lane();
  const int ch = 4 * g + 2 * l.half;
  const float2 sum = *reinterpret_cast<const float2*>(&sums[l.item][2 * l.half]);
  const float2 keep = *reinterpret_cast<const float2*>(&skip[ch]);
  const auto x = *reinterpret_cast<const Pair<2, Data>*>(&raw.x[l.item][ch]);
  const auto z = *reinterpret_cast<const Pair<2, Data>*>(&raw.z[l.item][ch]);
  Pair<2, Data> out;
  const float one = fmaf(keep.x, widen(x.v[0]), sum.x) * silu(widen(z.v[0]));
  const float two = fmaf(keep.y, widen(x.v[1]), sum.y) * silu(widen(z.v[1]));
  narrow(left > 0 ? one : 0.0f, &out.v[0]);
  narrow(left > 0 ? two : 0.0f, &out.v[1]);
  if (all > 0 && ch < room) *reinterpret_cast<Pair<2, Data>*>(y + 4 * g) = out;
}

// Of a pair of states and kItems items: decays and inflows, then in the place of the decays the states.
template <class S>
struct RingItems {
  float a[S::kItems][2], b[S::kItems][2];

  __device__ void make(const float2* drive, float2 A, const float4 (&bc)[S::kItems]) {
#pragma unroll
    for (int i = 0; i < S::kItems; i += 2) {
      const float4 two = *reinterpret_cast<const float4*>(drive + i);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float step = k ? two.z : two.x, inflow = k ? two.w : two.y;
        a[i + k][0] = exp2_fast(step * A.x), a[i + k][1] = exp2_fast(step * A.y);
        b[i + k][0] = bc[i + k].x * inflow, b[i + k][1] = bc[i + k].y * inflow;
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * S::kItems; ++i) now(a[i / 2][i % 2]), now(b[i / 2][i % 2]);
  }

  __device__ void advance(float2& h) {
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) {
      h.x = a[i][0] = fmaf(a[i][0], h.x, b[i][0]);
      h.y = a[i][1] = fmaf(a[i][1], h.y, b[i][1]);
    }
  }
};

// The turns of a warp. What it makes before it waits is made at the end of the round before: as the first thing of
// a round, half of it was put after the wait by the compiler.
template <class S, class Data>
__device__ void ring_work(const ScanCall& c, const RingPlace& at, int64_t slot, int ring, int warp,
                          typename S::template Memory<Data>& m) {
  constexpr int kTurn = S::kWarps * S::kItems;
  auto& own = m.own[ring][warp];
  const RingLane l = ring_lane();
  const int before = warp == 0 ? S::kWarps - 1 : warp - 1, lane = threadIdx.x % 32, items = int(at.items);
  const int room = int(min(c.D - at.d, int64_t(S::kWide))), T = int(c.rows.T);
  const float *bias = &m.bias[ring * S::kWide], *skip = &m.skip[ring * S::kWide];
  int first = warp * S::kItems, stage = 0, g = 0;
  if (first >= items) return;
  const RingPointers pointers = ring_pointers<S, Data>(c, at);
  Data* y = static_cast<Data*>(c.y) + (at.row + first + l.item) * c.D + at.d + 2 * l.half;
  uint32_t parity = warp == 0;
  float4 bc[S::kItems];
  RingItems<S> turn;
  ring_fetch<S, Data>(pointers, min(first + l.item, items - 1), room, own.raw[0]);
  const auto begin_turn = [&] {
    copies_end();
    copies_wait<0>();
    __syncwarp();
    if (first + kTurn < items)
      ring_fetch<S, Data>(pointers, min(first + kTurn + l.item, items - 1), room, own.raw[stage ^ 1]);
    copies_end();
    ring_prepare<S, Data>(bias, first + l.item < items, stage, own);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) bc[i] = own.bc[i][l.pair];
  };
  begin_turn();
  turn.make(own.drive[l.ch], m.A[ring][0][lane], bc);
#pragma unroll 1
  while (true) {
    if (first > 0) ring_wait(&m.ready[ring][before][g], parity);
    float2 h = m.handed[ring][before][g][lane];
    turn.advance(h);
    if (first + S::kItems < items) {
      m.handed[ring][warp][g][lane] = h;
      ring_post(&m.ready[ring][warp][g]);
    } else {
      __syncwarp();
      const int64_t d = at.d + 4 * g + l.ch, kept = (slot * c.N + 2 * l.pair) * c.D + d;
      if (d < c.D) c.next[kept] = h.x, c.next[kept + c.D] = h.y;
    }
    float pairs[S::kItems];
#pragma unroll
    for (int i = 0; i < S::kItems; ++i)
      pairs[i] = fmaf(bc[i].w, turn.a[i][1], fmaf(bc[i].z, turn.a[i][0], 0.0f));
    ring_sum<S>(pairs, own);
    ring_finish<S, Data>(y, items - first - l.item, T - first - l.item, room, g, skip, own.raw[stage], own.sums);
    if (++g == S::kGroups) {
      g = 0, first += kTurn, stage ^= 1, parity ^= 1;
      if (first >= items) break;
      y += int64_t(kTurn) * c.D;
      begin_turn();
    }
    turn.make(own.drive[4 * g + l.ch], m.A[ring][g][lane], bc);
  }
}

#endif

template <class S, class Data>
__global__ void __launch_bounds__(S::kThreads, 1) scan_ring(ScanCall c, unsigned width) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) unsigned char memory[];
  auto& m = *reinterpret_cast<typename S::template Memory<Data>*>(memory);
  const int64_t b = blockIdx.x / width, d = int64_t(blockIdx.x % width) * S::kChannels;
  const Row row = row_of(c.rows, b);
  const int warp = threadIdx.x / 32 % S::kWarps, ring = threadIdx.x / 32 / S::kWarps;
  const RingPlace at{b * c.rows.T, row.items, d + ring * S::kWide};
  if (row.items == 0) return stream_nothing<S, Data>(c, {at.row, 0, d}, row.slot);
  for (int i = threadIdx.x; i < S::kChannels; i += S::kThreads) {
    m.bias[i] = d + i < c.D ? c.dt_bias[d + i] : 0.0f;
    m.skip[i] = d + i < c.D ? c.skip[d + i] : 0.0f;
  }
  if (warp == 0) {
    const RingLane l = ring_lane();
    for (int g = 0; g < S::kGroups; ++g) {
      const int64_t channel = at.d + 4 * g + l.ch, n = 2 * l.pair, kept = (row.slot * c.N + n) * c.D + channel;
      const bool real = channel < c.D;
      m.A[ring][g][threadIdx.x % 32] = real ? float2{c.A[n * c.D + channel], c.A[(n + 1) * c.D + channel]} : float2{};
      m.handed[ring][S::kWarps - 1][g][threadIdx.x % 32] = real ? float2{c.state[kept], c.state[kept + c.D]} : float2{};
    }
  }
  if (threadIdx.x < S::kRings * S::kWarps * S::kGroups)
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(ring_address(&m.ready[0][0][0] + threadIdx.x)) : "memory");
  __syncthreads();
  ring_work<S, Data>(c, at, row.slot, ring, warp, m);
  const int64_t done = (row.items + S::kItems - 1) / S::kItems * S::kItems;
  const int wide = int(min(c.D - d, int64_t(S::kChannels)));
  for (int64_t i = threadIdx.x; i < max(c.rows.T - done, int64_t(0)) * wide; i += S::kThreads)
    static_cast<Data*>(c.y)[(at.row + done + i / wide) * c.D + d + i % wide] = zero<Data>();
#endif
}

constexpr int64_t kRingItems = 2048;  // from which on it is faster than scan_stream.cuh

// Whether it was launched: the GPU must have the shared memory, and code that is compiled for it.
template <class S, class Data>
bool launch_ring(const ScanCall& c, cudaStream_t stream) {
  constexpr int kBytes = int(sizeof(typename S::template Memory<Data>));
  const auto kernel = scan_ring<S, Data>;
  const bool room = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes) == cudaSuccess;
  if (!room) cudaGetLastError();
  if (!room || compiled_before(kernel, 90)) return false;
  const unsigned width = parts(c.D, S::kChannels);
  kernel<<<unsigned(c.rows.B) * width, S::kThreads, kBytes, stream>>>(c, width);
  return true;
}

}  // namespace
}  // namespace streamssm::cuda
