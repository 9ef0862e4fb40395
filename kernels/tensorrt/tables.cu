#include "tables.h"

namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) rotation(const float* inv_freq, int64_t half, int64_t count, float* kept) {
  const int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= count) return;
  const float frequency = inv_freq[e % half];
  if (kept[e] == frequency) return;
  double s, c;  // float32 angles lose 1e-5 at a distance of 1000
  sincos(double(e / half) * double(frequency), &s, &c);
  kept[e] = frequency;
  kept[count + e] = float(c);
  kept[2 * count + e] = float(s);
}

const char* outcome(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

}  // namespace

const char* streamssm_tensorrt_rotation(const float* inv_freq, int64_t half, int64_t W, float* kept,
                                        cudaStream_t stream) {
  const int64_t count = half * W;
  if (count == 0) return nullptr;
  rotation<<<unsigned((count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(inv_freq, half, count, kept);
  return outcome(cudaGetLastError());
}

const char* streamssm_tensorrt_forget(void* memory, int64_t bytes) {
  if (bytes == 0) return nullptr;
  if (const char* reason = outcome(cudaMemset(memory, 255, size_t(bytes)))) return reason;
  return outcome(cudaDeviceSynchronize());  // the streams of the calls do not wait for this one
}
