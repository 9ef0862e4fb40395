// What the kernels of rows_step.cu share: which rows they work on, launches that overlap, products of 16 x 8
// tiles on the tensor cores, and a place for a layer's small numbers.
//
// A kernel starts while its predecessor still runs, fetches what does not depend on it (weights, states), and
// waits. What it may fetch early is what was complete when the predecessor's predecessor ended: see rows_step.cu.
#pragma once

#include <cuda_fp16.h>

#include "copies.cuh"
#include "numbers.cuh"
#include "rows_api.h"
#include "step_sync.cuh"

namespace streamssm::cuda::rows {

constexpr int kThreads = 256;
constexpr int kMostTaps = 4;

// Rows of a launch: `first` and `slots` say where they are among the slots.
struct Streams {
  int32_t count, first;
  const int32_t* slots;
};

// Negative: there is no such row, or it is skipped.
__device__ inline int64_t slot_of(const Streams& rows, int row) {
  if (row >= rows.count) return -1;
  return rows.slots ? rows.slots[row] : rows.first + row;
}

// One layer's part of a pool.
struct LayerState {
  const float* from;
  float* to;
  int64_t stride;  // from slot to slot
};

// The mean square of a row of the residual stream, as partial sums of the blocks that wrote it.
struct Squares {
  const float* parts;  // [rows][count]
  int32_t count;       // a multiple of 4
  float mean, eps;     // mean: 1 / width
};

// Loads that stay behind the wait for the kernel before, and do not see old lines of the L1 cache.
__device__ inline float4 fetch4(const float* from) {
  float4 v;
  asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(from)
               : "memory");
  return v;
}

__device__ inline float2 fetch2(const float* from) {
  float2 v;
  asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(from) : "memory");
  return v;
}

__device__ inline float fetch(const float* from) {
  float v;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(from) : "memory");
  return v;
}

__device__ inline uint32_t fetch_pair(const __half* from) {
  uint32_t v;
  asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}

// 1 / rms. Always in the same order, so that all kernels agree to the bit.
__device__ inline float scale_of(const Squares& s, int64_t row) {
  float sum = 0.0f;
#pragma unroll 4
  for (int i = 0; i < s.count; i += 4) {
    const float4 v = fetch4(s.parts + row * s.count + i);
    sum += (v.x + v.y) + (v.z + v.w);
  }
  return rsqrtf(fmaf(sum, s.mean, s.eps));
}

// All that the kernels before this one wrote is there. Every kernel calls it before it writes anything.
__device__ inline void await_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// The next kernel may start as soon as all blocks of this one have called this.
__device__ inline void admit_next() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// `bytes` is a multiple of 16.
__device__ inline void bulk_fetch(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

// Barriers are seen by the copies and by the other blocks of the cluster after this and a cluster barrier.
__device__ inline void barriers_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}

// Four 8 x 8 matrices of float16; lane i gives the address of row i % 8 of matrix i / 8.
__device__ inline void load_matrices(uint32_t address, uint32_t (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}

// sum [16 x 8] += a [16 x 16] b [16 x 8]
__device__ inline void multiply(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline uint32_t pair_of(float low, float high) {
  const __half2 v = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}

__device__ inline float2 widen_pair(uint32_t v) { return __half22float2(*reinterpret_cast<const __half2*>(&v)); }

__device__ inline float warp_sum(float v) {
#pragma unroll
  for (int half = 16; half > 0; half /= 2) v += __shfl_xor_sync(~0u, v, half);
  return v;
}

}  // namespace streamssm::cuda::rows
