// 16 bytes at a time from memory to shared memory while the threads do other things; at once on GPUs
// before sm_80.
#pragma once

#include <cstdint>

namespace streamssm::cuda {

// Zeros if not `real`; then `from` is not read.
__device__ inline void copy16(void* to, const void* from, bool real) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from),
               "r"(real ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(to) = real ? *static_cast<const uint4*>(from) : uint4{};
#endif
}

// 8 bytes, that are real.
__device__ inline void copy8(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from)
               : "memory");
#else
  *static_cast<uint2*>(to) = *static_cast<const uint2*>(from);
#endif
}

// Ends a group of copies.
__device__ inline void copies_end() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until all groups but the last kLeft have come, for this thread's own copies.
template <int kLeft>
__device__ inline void copies_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

}  // namespace streamssm::cuda
