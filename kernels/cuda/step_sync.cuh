// How the blocks of a fused step talk, and how weights reach them (Hopper and later).
//
// - Bulk copies bring weights from memory to shared memory while the block does other things.
// - Within a cluster, a block writes into another's shared memory and completes its barrier.
// - Across clusters, words of 16 bytes carry three numbers and the count of the exchange: a reader
//   polls the very words it needs, so an exchange costs one trip to the L2 cache, not a grid barrier
//   and then a read.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace streamssm::cuda {

__device__ inline uint32_t shared_address(const void* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}

__device__ inline void barrier_init(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}

// The one arrival of a phase; it completes once `bytes` have come too.
__device__ inline void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

__device__ inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Weights are read once a step: they shall not push states and exchanges out of the L2 cache.
__device__ inline uint64_t passing_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ inline void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

// The address in block `rank` of the cluster that `address` has in this one.
__device__ inline uint32_t in_block(uint32_t address, uint32_t rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

__device__ inline void send(uint32_t to, float v, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to),
               "r"(__float_as_uint(v)), "r"(barrier)
               : "memory");
}

__device__ inline void send(uint32_t to, float2 v, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(to),
               "r"(__float_as_uint(v.x)), "r"(__float_as_uint(v.y)), "r"(barrier)
               : "memory");
}

__device__ inline void send(uint32_t to, float4 v, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
               "r"(__float_as_uint(v.x)), "r"(__float_as_uint(v.y)), "r"(__float_as_uint(v.z)),
               "r"(__float_as_uint(v.w)), "r"(barrier)
               : "memory");
}

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Three numbers and the exchange they belong to; 16 bytes are written and read as one.
struct alignas(16) Word {
  float v[3];
  uint32_t exchange;
};

__device__ inline void publish(Word* to, float a, float b, float c, uint32_t exchange) {
  const uint64_t low = uint64_t(__float_as_uint(b)) << 32 | __float_as_uint(a);
  const uint64_t high = uint64_t(exchange) << 32 | __float_as_uint(c);
  asm volatile("{\n.reg .b128 word;\nmov.b128 word, {%1, %2};\nst.relaxed.gpu.global.b128 [%0], word;\n}" ::"l"(to),
               "l"(low), "l"(high)
               : "memory");
}

__device__ inline Word peek(const Word* from) {
  uint64_t low, high;
  asm volatile("{\n.reg .b128 word;\nld.relaxed.gpu.global.b128 word, [%2];\nmov.b128 {%0, %1}, word;\n}"
               : "=l"(low), "=l"(high)
               : "l"(from)
               : "memory");
  Word word;
  word.v[0] = __uint_as_float(uint32_t(low)), word.v[1] = __uint_as_float(uint32_t(low >> 32));
  word.v[2] = __uint_as_float(uint32_t(high)), word.exchange = uint32_t(high >> 32);
  return word;
}

// Words `stride` apart, once all of them belong to `exchange`.
template <int kCount>
__device__ inline void collect(const Word* from, int64_t stride, uint32_t exchange, Word (&words)[kCount]) {
  bool complete;
  do {
    complete = true;
#pragma unroll
    for (int i = 0; i < kCount; ++i) words[i] = peek(from + i * stride);
#pragma unroll
    for (int i = 0; i < kCount; ++i) complete &= words[i].exchange == exchange;
  } while (!complete);
}

}  // namespace streamssm::cuda
