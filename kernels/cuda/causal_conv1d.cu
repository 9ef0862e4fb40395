// CausalConv1d: y_t = bias + sum_k weight[k] x[t - (K - 1) + k], oldest tap first; SiLU on request.
//
// One thread takes one channel of a stretch of items; the threads of a block share a few channels, or have
// one each where there is one item. Where a sequence has several blocks, the state is written by a second
// kernel: in place, the first block might still be reading it.
#include "launch.h"

namespace streamssm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kStretch = 8;  // items of a thread
constexpr int kParts = 8;        // stretches of a block, if there is more than one

// Item i of the state followed by x.
template <class Data>
__device__ float full(const ConvCall& c, int64_t slot, const Data* x, int64_t d, int64_t i) {
  return i < c.K - 1 ? c.state[(slot * (c.K - 1) + i) * c.D + d] : widen(x[(i - (c.K - 1)) * c.x_pitch + d]);
}

// Any K: nothing is kept in registers.
template <class Data>
__device__ void stretch_wide(const ConvCall& c, const Row& row, const Data* x, Data* y, int64_t d,
                             int64_t first, int64_t last) {
  for (int64_t t = first; t < last; ++t) {
    float sum = c.bias[d];
    for (int64_t k = 0; k < c.K; ++k) sum = fmaf(c.weight[k * c.D + d], full(c, row.slot, x, d, t + k), sum);
    narrow(c.silu ? silu(sum) : sum, y + t * c.D + d);
  }
}

template <int K, class Data>
__device__ void stretch_narrow(const ConvCall& c, const Row& row, const Data* x, Data* y, int64_t d,
                               int64_t first, int64_t last) {
  float tap[K], item[K];
#pragma unroll
  for (int k = 0; k < K; ++k) tap[k] = c.weight[k * c.D + d];
#pragma unroll
  for (int k = 0; k < K - 1; ++k) item[k] = full(c, row.slot, x, d, first + k);
  const float bias = c.bias[d];
#pragma unroll 4
  for (int64_t t = first; t < last; ++t) {
    item[K - 1] = widen(x[t * c.x_pitch + d]);
    float sum = bias;
#pragma unroll
    for (int k = 0; k < K; ++k) sum = fmaf(tap[k], item[k], sum);
    narrow(c.silu ? silu(sum) : sum, y + t * c.D + d);
#pragma unroll
    for (int k = 0; k < K - 1; ++k) item[k] = item[k + 1];
  }
}

// The last K - 1 items, oldest first: in place, no row is overwritten before it was read.
template <class Data>
__device__ void keep_items(const ConvCall& c, const Row& row, const Data* x, int64_t d) {
  float* next = c.next + row.slot * (c.K - 1) * c.D + d;
  for (int64_t k = 0; k < c.K - 1; ++k) next[k * c.D] = full(c, row.slot, x, d, row.items + k);
}

template <int K, class Data>  // K = 0 stands for any other
__global__ void __launch_bounds__(kThreads) conv(ConvCall c, int parts, bool keep) {
  const int channels = kThreads / parts, part = threadIdx.x / channels;
  const int64_t b = blockIdx.x, d = int64_t(blockIdx.y) * channels + threadIdx.x % channels;
  const Row row = row_of(c.rows, b);
  const Data* x = static_cast<const Data*>(c.x) + b * c.rows.T * c.x_pitch;
  Data* y = static_cast<Data*>(c.y) + b * c.rows.T * c.D;
  const int64_t first = min((int64_t(blockIdx.z) * parts + part) * kStretch, c.rows.T);
  const int64_t end = min(first + kStretch, c.rows.T), last = max(first, min(end, row.items));
  if (d < c.D) {
    if constexpr (K > 0) {
      if (last > first) stretch_narrow<K>(c, row, x, y, d, first, last);
    } else {
      stretch_wide(c, row, x, y, d, first, last);
    }
    for (int64_t t = last; t < end; ++t) narrow(0.0f, y + t * c.D + d);
  }
  if (!keep) return;
  if (parts > 1) __syncthreads();  // the first stretch has read the state
  if (d < c.D && part == 0 && row.slot >= 0) keep_items(c, row, x, d);
}

template <class Data>
__global__ void __launch_bounds__(kThreads) conv_keep(ConvCall c) {
  const int64_t b = blockIdx.x, d = int64_t(blockIdx.y) * kThreads + threadIdx.x;
  const Row row = row_of(c.rows, b);
  if (d < c.D && row.slot >= 0)
    keep_items(c, row, static_cast<const Data*>(c.x) + b * c.rows.T * c.x_pitch, d);
}

template <class Data>
void launch(const ConvCall& c, cudaStream_t stream) {
  const int shared = c.rows.T > kStretch ? kParts : 1;
  const unsigned blocks = c.rows.T > kStretch ? parts(c.rows.T, kStretch * kParts) : 1;
  const dim3 grid(unsigned(c.rows.B), parts(c.D, kThreads / shared), blocks);
  const bool keep = blocks == 1;
  switch (c.K) {
    case 2:
      conv<2, Data><<<grid, kThreads, 0, stream>>>(c, shared, keep);
      break;
    case 3:
      conv<3, Data><<<grid, kThreads, 0, stream>>>(c, shared, keep);
      break;
    case 4:
      conv<4, Data><<<grid, kThreads, 0, stream>>>(c, shared, keep);
      break;
    default:
      conv<0, Data><<<grid, kThreads, 0, stream>>>(c, shared, keep);
  }
  if (!keep) conv_keep<Data><<<dim3(grid.x, parts(c.D, kThreads)), kThreads, 0, stream>>>(c);
}

}  // namespace
}  // namespace streamssm::cuda

using namespace streamssm::cuda;

STREAMSSM_CUDA_API const char* streamssm_cuda_causal_conv1d(const ConvCall* given, void* stream) {
  ConvCall filled = *given;
  if (filled.x_pitch == 0) filled.x_pitch = filled.D;
  const ConvCall* const call = &filled;
  if (const char* reason = refuse(call->rows)) return reason;
  if (call->K < 1 || call->D < 0) return "K must be at least 1 and D not negative";
  if (call->rows.B == 0 || call->D == 0) return nullptr;
  if (parts(call->rows.T, kStretch * kParts) > 65535) return "a call takes at most 4 million items";
  return for_type(call->type, [&](auto data) { launch<decltype(data)>(*call, cudaStream_t(stream)); });
}
