// One step of StateSpaceDual for many rows, where all that counts is the states: read once, written once.
//
// An item is a head of a row. A block goes through items with a ring in shared memory of all that they need. Their
// states are on the way before the input of the first item is there, so the memory works while the product before
// this still runs. After those that a block starts with, items are dealt out by a counter: blocks that start late or
// share their multiprocessor do fewer.
//
// The output is gated; the division by its rms is left to the next product, which gets the squares. So that float16
// keeps its digits whatever the size, 32 values at a time are divided by their own rms.
#pragma once

#include "rows_tools.cuh"

namespace streamssm::cuda::rows {

constexpr int kHeld = 8;   // vectors of states that a thread has at a time
constexpr int kDualWarps = kThreads / 32;

struct DualStep {
  Streams rows;
  int32_t H, P, G, N, dt_pitch;
  const float* mixed;                 // [rows, H P + 2 G N]: x, B, C
  const float* gate;                  // [rows, H P]
  const float* dt;                    // [rows, dt_pitch]
  const float *A, *skip, *gate_norm;  // A [H] / ln 2; skip and gate_norm [H P]
  __half* y;                          // [rows, H P], times the norm's weight; 32 at a time divided by their rms
  float* squares;                     // [rows, H P / 32], of y before all that
  int32_t* dealt;                     // how many items have been dealt out, zero before
  LayerState ssm;
};

// What a ring of `ring` items holds of each, in floats: its states, then x, gate, B, C and the step sizes of its row.
struct DualLayout {
  int x, gate, B, C, dt, size;        // of an item
  int sums, skip, gate_norm, A, all;  // behind the ring: sums of the warps (twice), vectors of the layer

  __host__ __device__ DualLayout(const DualStep& c, int ring) {
    x = c.N * c.P, gate = x + c.P, B = gate + c.P, C = B + c.N, dt = C + c.N, size = (dt + c.dt_pitch + 31) / 32 * 32;
    sums = ring * size, skip = sums + 2 * kDualWarps * c.P, gate_norm = skip + c.H * c.P, A = gate_norm + c.H * c.P;
    all = A + c.H;
  }
  __host__ __device__ int shared_bytes() const { return all * 4; }
  __device__ uint32_t small_bytes(const DualStep& c) const { return uint32_t(dt + c.dt_pitch - x) * 4; }
};

// Asks for the states of an item, which come with its small parts; one thread.
__device__ inline void fetch_states(const DualStep& c, const DualLayout& at, int item, float* to, uint64_t* full) {
  const int64_t slot = slot_of(c.rows, item / c.H);
  const uint32_t bytes = c.N * c.P * 4;
  barrier_expect(full, slot < 0 ? 0 : bytes + at.small_bytes(c));
  if (slot >= 0) bulk_fetch(to, c.ssm.from + slot * c.ssm.stride + int64_t(item % c.H) * c.N * c.P, bytes, full);
}

__device__ inline void fetch_small(const DualStep& c, const DualLayout& at, int item, float* to, uint64_t* full) {
  const int64_t row = item / c.H;
  const int head = item % c.H, D = c.H * c.P, group = head / (c.H / c.G);
  if (slot_of(c.rows, int(row)) < 0) return;
  const float* mixed = c.mixed + row * (D + 2 * c.G * c.N);
  bulk_fetch(to + at.x, mixed + head * c.P, c.P * 4, full);
  bulk_fetch(to + at.gate, c.gate + row * D + head * c.P, c.P * 4, full);
  bulk_fetch(to + at.B, mixed + D + group * c.N, c.N * 4, full);
  bulk_fetch(to + at.C, mixed + D + (c.G + group) * c.N, c.N * 4, full);
  bulk_fetch(to + at.dt, c.dt + row * c.dt_pitch, c.dt_pitch * 4, full);
}

// A thread has four columns of every (4 kThreads / P)-th row of the state; `sums` gets what a warp adds up.
__device__ inline void advance_item(const DualStep& c, const DualLayout& at, int head, int64_t slot, const float* item,
                                    float A, float* sums) {
  const int quads = c.P / 4, quad = threadIdx.x % quads, rows = kThreads / quads;
  const float dt = item[at.dt + head], decay = exp2_fast(dt * A);
  const float4 x = reinterpret_cast<const float4*>(item + at.x)[quad];
  const float4 inflow{dt * x.x, dt * x.y, dt * x.z, dt * x.w};
  float4* next = reinterpret_cast<float4*>(c.ssm.to + slot * c.ssm.stride + int64_t(head) * c.N * c.P);
  float4 sum{};
  for (int first = threadIdx.x / quads; first < c.N; first += kHeld * rows) {
    float4 h[kHeld];
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
      if (first + k * rows < c.N) h[k] = reinterpret_cast<const float4*>(item)[(first + k * rows) * quads + quad];
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int n = first + k * rows;
      if (n >= c.N) break;
      const float b = item[at.B + n], out = item[at.C + n];
      h[k].x = fmaf(decay, h[k].x, b * inflow.x), sum.x = fmaf(out, h[k].x, sum.x);
      h[k].y = fmaf(decay, h[k].y, b * inflow.y), sum.y = fmaf(out, h[k].y, sum.y);
      h[k].z = fmaf(decay, h[k].z, b * inflow.z), sum.z = fmaf(out, h[k].z, sum.z);
      h[k].w = fmaf(decay, h[k].w, b * inflow.w), sum.w = fmaf(out, h[k].w, sum.w);
      __stcs(next + n * quads + quad, h[k]);
    }
  }
  for (int half = 16; half >= quads; half /= 2) {
    sum.x += __shfl_xor_sync(~0u, sum.x, half), sum.y += __shfl_xor_sync(~0u, sum.y, half);
    sum.z += __shfl_xor_sync(~0u, sum.z, half), sum.w += __shfl_xor_sync(~0u, sum.w, half);
  }
  if (threadIdx.x % 32 < quads) reinterpret_cast<float4*>(sums + threadIdx.x / 32 * c.P)[quad] = sum;
}

// A thread's value of x and of the gate of an item, taken before the ring goes on.
struct Gated {
  float x, gate;
};

// The first P threads: the output of an item.
__device__ inline void write_item(const DualStep& c, const DualLayout& at, const float* memory, int item, bool real,
                                  Gated own, const float* sums) {
  const int p = threadIdx.x, channel = item % c.H * c.P + p, D = c.H * c.P;
  const int64_t to = int64_t(item / c.H) * D + channel;
  float v = 0.0f;
  if (real) {
#pragma unroll
    for (int i = 0; i < kDualWarps; ++i) v += sums[i * c.P + p];
    v = fmaf(memory[at.skip + channel], own.x, v) * own.gate;
  }
  const float squares = warp_sum(v * v), scale = squares > 0.0f ? rsqrtf(squares / 32.0f) : 0.0f;
  c.y[to] = __float2half_rn(v * scale * memory[at.gate_norm + channel]);
  if (p % 32 == 0) c.squares[to / 32] = squares;
}

// The items in the ring of a block: those whose states are on the way or in use. Two at least: a place is filled anew
// while others read which item the next one has.
template <int kRing>
struct DualQueue {
  static_assert(kRing > 1, "");
  uint64_t full[kRing];
  int items[kRing];  // the number of items or more: there are no more
};

template <int kRing>
__device__ void begin_dual(const DualStep& c, const DualLayout& at, float* memory, DualQueue<kRing>& queue, int items) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < kRing; ++i) barrier_init(queue.full + i);
    barriers_ready();
    for (int i = 0; i < kRing; ++i) {
      const int item = queue.items[i] = blockIdx.x + i * gridDim.x;
      if (item < items) fetch_states(c, at, item, memory + i * at.size, queue.full + i);
    }
  }
  for (int i = threadIdx.x; i < c.H * c.P; i += kThreads)
    memory[at.skip + i] = c.skip[i], memory[at.gate_norm + i] = c.gate_norm[i];
  for (int i = threadIdx.x; i < c.H; i += kThreads) memory[at.A + i] = c.A[i];
}

// Puts item `next` where the ring is free.
template <int kRing>
__device__ void refill(const DualStep& c, const DualLayout& at, float* to, DualQueue<kRing>& queue, int place, int next,
                       int items) {
  queue.items[place] = next;
  if (next >= items) return;
  fetch_states(c, at, next, to, queue.full + place);
  fetch_small(c, at, next, to, queue.full + place);
}

template <int kRing>
__global__ void __launch_bounds__(kThreads) rows_dual(const __grid_constant__ DualStep c) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) float memory_of_floats[];
  __shared__ DualQueue<kRing> queue;
  const DualLayout at(c, kRing);
  const int items = c.rows.count * c.H, dealt = kRing * gridDim.x;
  const bool writes = int(threadIdx.x) < c.P, refills = threadIdx.x == kThreads - 1;
  float* const memory = memory_of_floats;
  admit_next();
  begin_dual(c, at, memory, queue, items);
  await_previous();
  if (threadIdx.x == 0)
    for (int i = 0; i < kRing && queue.items[i] < items; ++i)
      fetch_small(c, at, queue.items[i], memory + i * at.size, queue.full + i);
  int next = refills ? dealt + atomicAdd(c.dealt, 1) : 0;
  __syncthreads();
  int place = 0, side = 0, item;
  for (uint32_t parity = 0; (item = queue.items[place]) < items; side ^= 1) {
    const int64_t slot = slot_of(c.rows, item / c.H);
    const int head = item % c.H;
    float* here = memory + place * at.size;
    float* sums = memory + at.sums + side * kDualWarps * c.P;
    barrier_wait(queue.full + place, parity);
    Gated own{};
    if (slot >= 0) {
      if (writes) own = {here[at.x + threadIdx.x], here[at.gate + threadIdx.x]};
      advance_item(c, at, head, slot, here, memory[at.A + head], sums);
    }
    __syncthreads();  // all have used this part of the ring
    if (refills) {
      refill(c, at, here, queue, place, next, items);
      if (next < items) next = dealt + atomicAdd(c.dealt, 1);
    }
    if (writes) write_item(c, at, memory, item, slot >= 0, own, sums);
    if (++place == kRing) place = 0, parity ^= 1;
  }
#endif
}

}  // namespace streamssm::cuda::rows
