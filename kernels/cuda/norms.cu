// What stands between the matrix products of a stack of blocks: the residual stream with its norm, the
// gated norm of Mamba-2, step sizes. A row is an item; sums run in one fixed order.
#include "launch.h"

namespace streamssm::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// The sum over a block, for every thread.
__device__ inline float block_sum(float v) {
  __shared__ float sums[kWarps];
#pragma unroll
  for (int half = 16; half > 0; half /= 2) v += __shfl_xor_sync(~0u, v, half);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
  __syncthreads();
  float all = 0.0f;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) all += sums[i];
  return all;
}

constexpr int kHeld = 8;  // values that a thread keeps in registers: rows of up to 2,048

template <class Data>
__global__ void __launch_bounds__(kThreads) norm(NormCall c) {
  float* residual = c.residual + blockIdx.x * c.width;
  const Data* added = c.added ? static_cast<const Data*>(c.added) + blockIdx.x * c.width : nullptr;
  float v[kHeld], squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t i = threadIdx.x + k * kThreads;
    v[k] = i < c.width ? residual[i] : 0.0f;
    if (i < c.width && added) residual[i] = v[k] += widen(added[i]);
    squares = fmaf(v[k], v[k], squares);
  }
  const float scale = rsqrtf(block_sum(squares) / float(c.width) + c.eps);
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t i = threadIdx.x + k * kThreads;
    if (i < c.width) narrow(v[k] * scale * c.weight[i], static_cast<Data*>(c.y) + blockIdx.x * c.width + i);
  }
}

template <class Data>
__global__ void __launch_bounds__(kThreads) gate_norm(GateNormCall c) {
  const Data* x = static_cast<const Data*>(c.x) + blockIdx.x * c.width;
  const Data* z = static_cast<const Data*>(c.z) + blockIdx.x * c.z_pitch;
  float v[kHeld], squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t i = threadIdx.x + k * kThreads;
    v[k] = i < c.width ? widen(x[i]) * silu(widen(z[i])) : 0.0f;
    squares = fmaf(v[k], v[k], squares);
  }
  const float scale = rsqrtf(block_sum(squares) / float(c.width) + c.eps);
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t i = threadIdx.x + k * kThreads;
    if (i < c.width) narrow(v[k] * scale * c.weight[i], static_cast<Data*>(c.y) + blockIdx.x * c.width + i);
  }
}

template <class Data>
__global__ void __launch_bounds__(kThreads) step_size(StepSizeCall c) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x, row = i / c.H, h = i % c.H;
  if (row >= c.rows) return;
  const float dt = softplus(widen(static_cast<const Data*>(c.raw)[row * c.pitch + h]) + c.bias[h]);
  narrow(fminf(fmaxf(dt, c.least), c.most), static_cast<Data*>(c.dt) + i);
}

}  // namespace
}  // namespace streamssm::cuda

using namespace streamssm::cuda;

STREAMSSM_CUDA_API const char* streamssm_cuda_norm(const NormCall* call, void* stream) {
  if (call->width > kHeld * kThreads) return "a row has at most 2,048 values";
  if (call->rows == 0) return nullptr;
  return for_type(call->type, [&](auto data) {
    norm<decltype(data)><<<unsigned(call->rows), kThreads, 0, cudaStream_t(stream)>>>(*call);
  });
}

STREAMSSM_CUDA_API const char* streamssm_cuda_gate_norm(const GateNormCall* call, void* stream) {
  if (call->width > kHeld * kThreads) return "a row has at most 2,048 values";
  if (call->rows == 0) return nullptr;
  return for_type(call->type, [&](auto data) {
    gate_norm<decltype(data)><<<unsigned(call->rows), kThreads, 0, cudaStream_t(stream)>>>(*call);
  });
}

STREAMSSM_CUDA_API const char* streamssm_cuda_step_size(const StepSizeCall* call, void* stream) {
  if (call->rows * call->H == 0) return nullptr;
  return for_type(call->type, [&](auto data) {
    step_size<decltype(data)><<<parts(call->rows * call->H, kThreads), kThreads, 0, cudaStream_t(stream)>>>(*call);
  });
}
