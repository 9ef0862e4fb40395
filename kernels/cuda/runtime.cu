// What the runtime needs beside the operators: rows of a batch that took no part in a step keep their
// states, copied from the side that was read; and memory for tables.
#include "launch.h"

namespace streamssm::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) keep_rows(const KeptState* states, const uint8_t* active) {
  const int64_t b = blockIdx.x;
  if (active[b]) return;
  const KeptState s = states[blockIdx.y];
  const int64_t words = s.bytes / 4;
  const uint32_t* from = static_cast<const uint32_t*>(s.from) + b * words;
  uint32_t* to = static_cast<uint32_t*>(s.to) + b * words;
  for (int64_t i = threadIdx.x; i < words; i += kThreads) to[i] = from[i];
}

}  // namespace
}  // namespace streamssm::cuda

using namespace streamssm::cuda;

STREAMSSM_CUDA_API const char* streamssm_cuda_keep_rows(const KeptState* states, int64_t count, const uint8_t* active,
                                                        int64_t B, void* stream) {
  if (count > 65535) return "a call takes at most 65,535 states";
  if (count == 0 || B == 0) return nullptr;
  keep_rows<<<dim3(unsigned(B), unsigned(count)), kThreads, 0, cudaStream_t(stream)>>>(states, active);
  return outcome();
}

STREAMSSM_CUDA_API const char* streamssm_cuda_take(int64_t bytes, void** memory) {
  *memory = nullptr;
  if (bytes == 0) return nullptr;
  const cudaError_t error = cudaMalloc(memory, size_t(bytes));
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // it is told here, and must not be taken for that of the next launch
  return cudaGetErrorString(error);
}

STREAMSSM_CUDA_API void streamssm_cuda_give(void* memory) { cudaFree(memory); }

STREAMSSM_CUDA_API const char* streamssm_cuda_wait() {
  const cudaError_t error = cudaDeviceSynchronize();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
