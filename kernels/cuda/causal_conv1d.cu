// CausalConv1d: y_t = bias + sum_k weight[k] x[t - (K - 1) + k], oldest tap first; SiLU on request.
//
// Narrow filters on aligned data: a thread takes 16 bytes of channels of a stretch of items. Others: one
// channel; the threads of a block share a few channels, or have one each where there is one item.
//
// Only the first stretch of a narrow filter reads the state, so its thread also writes the next one. Of a wide
// one others do: where such a sequence has several blocks, the state is written by a second kernel.
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

// 16 bytes of channels.
template <class Data>
struct alignas(16) Part {
  static constexpr int kWidth = 16 / int(sizeof(Data));
  Data v[kWidth];
};

template <class Data>
__device__ const Part<Data>& part_of(const Data* at) {
  return *reinterpret_cast<const Part<Data>*>(at);
}

template <class Data>
__device__ void read_floats(const float* from, float (&to)[Part<Data>::kWidth]) {
#pragma unroll
  for (int i = 0; i < Part<Data>::kWidth; i += 4) {
    const float4 v = *reinterpret_cast<const float4*>(from + i);
    to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
  }
}

// Item i of the state followed by x.
template <int K, class Data>
__device__ void read_item(const ConvCall& c, int64_t slot, const Data* x, int64_t d, int64_t i,
                          float (&to)[Part<Data>::kWidth]) {
  if (i < K - 1) return read_floats<Data>(c.state + (slot * (K - 1) + i) * c.D + d, to);
  const Part<Data> raw = part_of(x + (i - (K - 1)) * c.x_pitch + d);
#pragma unroll
  for (int e = 0; e < Part<Data>::kWidth; ++e) to[e] = widen(raw.v[e]);
}

constexpr int kAhead = 4;  // items that are read together

// Items first to last - 1 of a part; item[k] is item first - (K - 1) + k.
template <int K, class Data>
__device__ void stretch_of_parts(const ConvCall& c, const Data* x, Data* y, int64_t d, int64_t first, int64_t last,
                                 float (&item)[K][Part<Data>::kWidth]) {
  constexpr int kWidth = Part<Data>::kWidth;
  float tap[K][kWidth], bias[kWidth];
#pragma unroll
  for (int k = 0; k < K; ++k) read_floats<Data>(c.weight + k * c.D + d, tap[k]);
  read_floats<Data>(c.bias + d, bias);
  for (int64_t t = first; t < last; t += kAhead) {
    Part<Data> raw[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (t + i < last) raw[i] = part_of(x + (t + i) * c.x_pitch + d);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (t + i >= last) break;
      Part<Data> out;
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        item[K - 1][e] = widen(raw[i].v[e]);
        float sum = bias[e];
#pragma unroll
        for (int k = 0; k < K; ++k) sum = fmaf(tap[k][e], item[k][e], sum);
        narrow(c.silu ? silu(sum) : sum, &out.v[e]);
#pragma unroll
        for (int k = 0; k < K - 1; ++k) item[k][e] = item[k + 1][e];
      }
      *reinterpret_cast<Part<Data>*>(y + (t + i) * c.D + d) = out;
    }
  }
}

// The same as keep_items; all is read before anything is written, so that one wait does for all.
template <int K, class Data>
__device__ void keep_parts(const ConvCall& c, const Row& row, const Data* x, int64_t d) {
  constexpr int kWidth = Part<Data>::kWidth;
  float kept[K - 1][kWidth];
#pragma unroll
  for (int k = 0; k < K - 1; ++k) read_item<K>(c, row.slot, x, d, row.items + k, kept[k]);
#pragma unroll
  for (int k = 0; k < K - 1; ++k)
#pragma unroll
    for (int i = 0; i < kWidth; i += 4)
      *reinterpret_cast<float4*>(c.next + (row.slot * (K - 1) + k) * c.D + d + i) = {kept[k][i], kept[k][i + 1],
                                                                                     kept[k][i + 2], kept[k][i + 3]};
}

constexpr int kPartThreads = 128;

template <int K, class Data>
__global__ void __launch_bounds__(kPartThreads) conv_parts(ConvCall c, int stretch, unsigned blocks) {
  constexpr int kWidth = Part<Data>::kWidth;
  const unsigned across = unsigned(c.D / kWidth), index = blockIdx.x % blocks * kPartThreads + threadIdx.x;
  const int64_t b = blockIdx.x / blocks;
  const int64_t d = int64_t(index % across) * kWidth, first = int64_t(index / across) * stretch;
  if (first >= c.rows.T && first > 0) return;
  const Row row = row_of(c.rows, b);
  const Data* x = static_cast<const Data*>(c.x) + b * c.rows.T * c.x_pitch;
  Data* y = static_cast<Data*>(c.y) + b * c.rows.T * c.D;
  const int64_t end = min(first + stretch, c.rows.T), last = max(first, min(end, row.items));
  if (last > first) {
    float item[K][kWidth];
#pragma unroll
    for (int k = 0; k < K - 1; ++k) read_item<K>(c, row.slot, x, d, first + k, item[k]);
    stretch_of_parts<K>(c, x, y, d, first, last, item);
  }
  for (int64_t t = last; t < end; ++t) *reinterpret_cast<uint4*>(y + t * c.D + d) = uint4{};
  if (first == 0 && row.slot >= 0) keep_parts<K>(c, row, x, d);
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
  if (K > 0 && blockIdx.z > 0) return;
  if (!keep) return;
  if (K == 0 && parts > 1) __syncthreads();  // all stretches have read the state
  if (d < c.D && part == 0 && row.slot >= 0) keep_items(c, row, x, d);
}

template <class Data>
__global__ void __launch_bounds__(kThreads) conv_keep(ConvCall c) {
  const int64_t b = blockIdx.x, d = int64_t(blockIdx.y) * kThreads + threadIdx.x;
  const Row row = row_of(c.rows, b);
  if (d < c.D && row.slot >= 0)
    keep_items(c, row, static_cast<const Data*>(c.x) + b * c.rows.T * c.x_pitch, d);
}

template <int K, class Data>
bool in_parts(const ConvCall& c, cudaStream_t stream) {
  constexpr int kWidth = Part<Data>::kWidth;
  const uintptr_t addresses = uintptr_t(c.x) | uintptr_t(c.y) | uintptr_t(c.weight) | uintptr_t(c.bias) |
                              uintptr_t(c.state) | uintptr_t(c.next);
  if (addresses % 16 != 0 || (c.D | c.x_pitch) % kWidth != 0 || c.rows.T > (1 << 22)) return false;
  const int stretch = c.rows.T >= 1024 ? 16 : 4;
  const int64_t stretches = c.rows.T > 0 ? parts(c.rows.T, stretch) : 1;
  const int64_t blocks = (stretches * (c.D / kWidth) + kPartThreads - 1) / kPartThreads;
  if (blocks * c.rows.B > INT32_MAX) return false;
  conv_parts<K, Data><<<unsigned(blocks * c.rows.B), kPartThreads, 0, stream>>>(c, stretch, unsigned(blocks));
  return true;
}

template <int K, class Data>
void launch_width(const ConvCall& c, cudaStream_t stream) {
  if constexpr (K > 0)
    if (in_parts<K, Data>(c, stream)) return;
  const int shared = c.rows.T > kStretch ? kParts : 1;
  const unsigned blocks = c.rows.T > kStretch ? parts(c.rows.T, kStretch * kParts) : 1;
  const dim3 grid(unsigned(c.rows.B), parts(c.D, kThreads / shared), blocks);
  const bool keep = K > 0 || blocks == 1;
  conv<K, Data><<<grid, kThreads, 0, stream>>>(c, shared, keep);
  if (!keep) conv_keep<Data><<<dim3(grid.x, parts(c.D, kThreads)), kThreads, 0, stream>>>(c);
}

template <class Data>
void launch(const ConvCall& c, cudaStream_t stream) {
  switch (c.K) {
    case 2:
      return launch_width<2, Data>(c, stream);
    case 3:
      return launch_width<3, Data>(c, stream);
    case 4:
      return launch_width<4, Data>(c, stream);
    default:
      return launch_width<0, Data>(c, stream);
  }
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
