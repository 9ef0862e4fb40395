// What stands between the matrix products of a stack of blocks: the residual stream with its norm, the
// gated norm of Mamba-2, step sizes. A row is an item; sums run in one fixed order, which hangs on the width and
// on how rows lie in memory: those on multiples of 16 bytes have a warp each, others a block.
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

constexpr int kRowThreads = 128, kRowWarps = kRowThreads / 32, kPer = 8, kVectors = kHeld * kThreads / (32 * kPer);

__device__ inline void read_part(const float* from, float (&to)[kPer]) {
#pragma unroll
  for (int i = 0; i < kPer; i += 4) *reinterpret_cast<float4*>(to + i) = *reinterpret_cast<const float4*>(from + i);
}

template <class Data>
__device__ void read_part(const Data* from, float (&to)[kPer]) {
  alignas(16) Data raw[kPer];
  *reinterpret_cast<uint4*>(raw) = *reinterpret_cast<const uint4*>(from);
#pragma unroll
  for (int i = 0; i < kPer; ++i) to[i] = widen(raw[i]);
}

template <class Data>
__device__ void write_part(const float (&from)[kPer], Data* to) {
  alignas(16) Data raw[kPer];
#pragma unroll
  for (int i = 0; i < kPer; ++i) narrow(from[i], &raw[i]);
#pragma unroll
  for (int i = 0; i < int(sizeof(raw) / 16); ++i)
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(raw)[i];
}

// A row by a warp: read(i, v) gives eight values from number i on; those over their root mean square to y.
template <class Data, class Read>
__device__ void norm_row(int64_t row, int64_t width, float eps, const float* weight, void* y, const Read& read) {
  const int lane = threadIdx.x % 32;
  alignas(16) float v[kVectors][kPer];
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int64_t i = (k * 32 + lane) * kPer;
    if (i >= width) break;
    read(i, v[k]);
#pragma unroll
    for (int e = 0; e < kPer; ++e) squares = fmaf(v[k][e], v[k][e], squares);
  }
#pragma unroll
  for (int half = 16; half > 0; half /= 2) squares += __shfl_xor_sync(~0u, squares, half);
  const float scale = rsqrtf(squares / float(width) + eps);
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int64_t i = (k * 32 + lane) * kPer;
    if (i >= width) break;
    alignas(16) float factor[kPer];
    read_part(weight + i, factor);
#pragma unroll
    for (int e = 0; e < kPer; ++e) v[k][e] = v[k][e] * scale * factor[e];
    write_part(v[k], static_cast<Data*>(y) + row * width + i);
  }
}

template <class Data>
__global__ void __launch_bounds__(kRowThreads) norm_rows(NormCall c) {
  const int64_t row = int64_t(blockIdx.x) * kRowWarps + threadIdx.x / 32;
  if (row >= c.rows) return;
  norm_row<Data>(row, c.width, c.eps, c.weight, c.y, [&](int64_t i, float (&v)[kPer]) {
    read_part(c.residual + row * c.width + i, v);
    if (!c.added) return;
    alignas(16) float added[kPer];
    read_part(static_cast<const Data*>(c.added) + row * c.width + i, added);
#pragma unroll
    for (int e = 0; e < kPer; ++e) v[e] += added[e];
    write_part(v, c.residual + row * c.width + i);
  });
}

template <class Data>
__global__ void __launch_bounds__(kRowThreads) gate_norm_rows(GateNormCall c) {
  const int64_t row = int64_t(blockIdx.x) * kRowWarps + threadIdx.x / 32;
  if (row >= c.rows) return;
  norm_row<Data>(row, c.width, c.eps, c.weight, c.y, [&](int64_t i, float (&v)[kPer]) {
    alignas(16) float z[kPer];
    read_part(static_cast<const Data*>(c.x) + row * c.width + i, v);
    read_part(static_cast<const Data*>(c.z) + row * c.z_pitch + i, z);
#pragma unroll
    for (int e = 0; e < kPer; ++e) v[e] *= silu(z[e]);
  });
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
  const uintptr_t addresses =
      uintptr_t(call->residual) | uintptr_t(call->added) | uintptr_t(call->weight) | uintptr_t(call->y);
  const bool warps = call->width % kPer == 0 && addresses % 16 == 0;
  return for_type(call->type, [&](auto v) {
    using Data = decltype(v);
    if (warps) {
      norm_rows<Data><<<parts(call->rows, kRowWarps), kRowThreads, 0, cudaStream_t(stream)>>>(*call);
    } else {
      norm<Data><<<unsigned(call->rows), kThreads, 0, cudaStream_t(stream)>>>(*call);
    }
  });
}

STREAMSSM_CUDA_API const char* streamssm_cuda_gate_norm(const GateNormCall* call, void* stream) {
  if (call->width > kHeld * kThreads) return "a row has at most 2,048 values";
  if (call->rows == 0) return nullptr;
  const uintptr_t addresses = uintptr_t(call->x) | uintptr_t(call->z) | uintptr_t(call->weight) | uintptr_t(call->y);
  const bool warps = (call->width | call->z_pitch) % kPer == 0 && addresses % 16 == 0;
  return for_type(call->type, [&](auto v) {
    using Data = decltype(v);
    if (warps) {
      gate_norm_rows<Data><<<parts(call->rows, kRowWarps), kRowThreads, 0, cudaStream_t(stream)>>>(*call);
    } else {
      gate_norm<Data><<<unsigned(call->rows), kThreads, 0, cudaStream_t(stream)>>>(*call);
    }
  });
}

STREAMSSM_CUDA_API const char* streamssm_cuda_step_size(const StepSizeCall* call, void* stream) {
  if (call->rows * call->H == 0) return nullptr;
  return for_type(call->type, [&](auto data) {
    step_size<decltype(data)><<<parts(call->rows * call->H, kThreads), kThreads, 0, cudaStream_t(stream)>>>(*call);
  });
}
