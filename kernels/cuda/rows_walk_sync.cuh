// How the warps and the blocks of the walk wait for each other.
#pragma once

#include "rows_walk_call.cuh"

namespace streamssm::cuda::rows::walk {

// All warps that compute. (A barrier counts warps: lanes that have gone different ways must meet before it.)
__device__ inline void sync_workers() {
  __syncwarp();
  asm volatile("bar.sync 1, %0;" ::"n"(kWorkers) : "memory");
}
// These and the helper.
__device__ inline void sync_with_helper() {
  __syncwarp();
  asm volatile("bar.sync 2, %0;" ::"n"(kWorkers + 32) : "memory");
}

__device__ inline void barrier_of(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

__device__ inline void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// What this thread wrote to shared memory is there before later bulk copies to and from the same place.
__device__ inline void before_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ inline void prefetch(const void* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

// A block's part of the states of a slot, [kStates][kChannels], to shared memory and back.
__device__ inline void fetch_states(void* to, const CUtensorMap& map, int block, int slot, int layer,
                                    uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(shared_address(to)),
      "l"(&map), "r"(block * kChannels), "r"(0), "r"(slot), "r"(layer), "r"(shared_address(barrier))
      : "memory");
}

__device__ inline void store_states(const void* from, const CUtensorMap& map, int block, int slot, int layer) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(&map),
               "r"(block * kChannels), "r"(0), "r"(slot), "r"(layer), "r"(shared_address(from))
               : "memory");
}

__device__ inline void stores_end() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until all groups of stores but the last kLeft have read what they store.
template <int kLeft>
__device__ inline void stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kLeft) : "memory");
}

__device__ inline void stores_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

enum Kind { kX, kY };

// This warp has written its part of 16 rows of x or y: tells all blocks of the group, each by a flag of its own, so
// that a line of the cache is polled by one block only.
__device__ inline void tell(const Place& at, Kind kind, int row_tile, uint32_t exchange) {
  __syncwarp();
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
  uint32_t* flag = &at.group->flags[threadIdx.x % 32][kind][row_tile][at.block];
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(exchange) : "memory");
}

// Until block `writer` has told of its part of kTiles times 16 rows; then its part can be read.
template <int kTiles>
__device__ inline void await_part(const Place& at, Kind kind, int row_tile, int writer, uint32_t exchange) {
  bool complete;
  do {
    complete = true;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      uint32_t last;
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                   : "=r"(last)
                   : "l"(&at.group->flags[at.block][kind][row_tile + tile][writer])
                   : "memory");
      complete &= int32_t(last - exchange) >= 0;
    }
  } while (!complete);
}

__device__ inline void await_word(const Word* word, uint32_t exchange) {
  while (peek(word).exchange != exchange) __nanosleep(20);
}

// Words `stride` apart of which this thread takes those for which wanted(i), once all of them belong to `exchange`.
// Of the others it reads the first instead.
template <int kCount, class Wanted>
__device__ inline void collect_words(const Word* from, int stride, uint32_t exchange, const Wanted& wanted,
                                     Word (&words)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) words[i] = peek(wanted(i) ? from + i * stride : from);
  bool complete;
  do {
    complete = true;
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (wanted(i) && words[i].exchange != exchange) words[i] = peek(from + i * stride), complete = false;
  } while (!complete);
}

__device__ inline uint2 fetch_half(const uint2* from) {
  uint2 v;
  asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from) : "memory");
  return v;
}

__device__ inline uint4 fetch_fragment(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}

// The ring as one warp sees it: tile number n, counted through all layers.
template <class S>
struct Ring {
  S& sh;

  __device__ const uint8_t* await_tile(int n) const {
    barrier_wait(&sh.full[n % S::kRing], n / S::kRing & 1);
    return sh.ring[n % S::kRing];
  }
  __device__ uint8_t* memory(int n) const { return sh.ring[n % S::kRing]; }
  // This warp does not read tiles [n, n + count), at most 32, any more, nor writes to them.
  __device__ void free(int n, int count) const {
    __syncwarp();
    const int lane = threadIdx.x % 32;
    if (lane < count) arrive(&sh.empty[(n + lane) % S::kRing]);
  }
};

}  // namespace streamssm::cuda::rows::walk
