// LogMel: y_f = log(sum_k filters_k |FFT(window * frame_f)_k|^2 + eps).
//
// A block takes a frame. The transform (Cooley & Tukey 1965, in Stockham's order) runs in shared memory,
// a pass for each radix: with L points behind it and M = points / (L r) to come,
//
//     Y'[l, m] = sum_j w^(j l M) Y[l mod L, j M + m]     w = exp(-2 pi i / points)
//
// for l in [0, L r) and m in [0, M). Any length works: a prime factor is a pass of its own. The state is
// written by a second kernel: in place, a block of the first might still be reading it.
#include "launch.h"

namespace streamssm::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRootThreads = 256;
constexpr size_t kMostShared = 200 << 10;

// Sample `at` of the past followed by x.
template <class Data>
__device__ float sample(const LogMelCall& c, int64_t slot, int64_t b, int64_t at) {
  return at < c.kept ? c.state[slot * c.kept + at] : widen(static_cast<const Data*>(c.x)[b * c.rows.T + at - c.kept]);
}

__device__ inline int64_t next_radix(int64_t rest) {
  if (rest % 4 == 0) return 4;
  for (int64_t r = 2; r * r <= rest; ++r)
    if (rest % r == 0) return r;
  return rest;
}

// The transform of from; where it ends is returned, as is the other buffer.
__device__ inline float2* transform(const LogMelCall& c, const float2* roots, float2* from, float2* to) {
  int L = 1, rest = int(c.points);
  while (rest > 1) {
    const int r = int(next_radix(rest)), M = rest / r, width = rest;
    for (int e = threadIdx.x; e < c.points; e += kThreads) {
      const int l = e / M, m = e % M, step = int(int64_t(l) * M % c.points);
      const float2* in = from + l % L * width + m;
      float2 sum = in[0];
      for (int j = 1, root = step; j < r; ++j) {
        const float2 v = in[j * M], w = roots[root];
        sum.x += fmaf(v.x, w.x, -(v.y * w.y));
        sum.y += fmaf(v.x, w.y, v.y * w.x);
        root += step;
        if (root >= c.points) root -= int(c.points);
      }
      to[e] = sum;
    }
    __syncthreads();
    float2* const other = from;
    from = to, to = other;
    L *= r, rest = M;
  }
  return from;
}

template <class Data>
__global__ void __launch_bounds__(kThreads) log_mel(LogMelCall c) {
  extern __shared__ float2 memory[];  // roots, two buffers
  const int64_t f = blockIdx.x, b = blockIdx.y, bins = c.points / 2 + 1;
  const Row row = row_of(c.rows, b);
  Data* y = static_cast<Data*>(c.y) + (b * (c.rows.T / c.hop) + f) * c.bands;
  if ((f + 1) * c.hop > row.items) {
    for (int64_t m = threadIdx.x; m < c.bands; m += kThreads) y[m] = zero<Data>();
    return;
  }
  float2 *roots = memory, *frame = memory + c.points, *other = frame + c.points;
  const int64_t first = c.hop * (f + 1) - c.length + c.kept;
  for (int64_t n = threadIdx.x; n < c.points; n += kThreads) {
    roots[n] = reinterpret_cast<const float2*>(c.roots)[n];
    frame[n] = {n < c.length ? c.window[n] * sample<Data>(c, row.slot, b, first + n) : 0.0f, 0.0f};
  }
  __syncthreads();
  const float2* spectrum = transform(c, roots, frame, other);
  float* power = reinterpret_cast<float*>(roots);  // nobody needs the roots any more
  for (int64_t k = threadIdx.x; k < bins; k += kThreads)
    power[k] = fmaf(spectrum[k].x, spectrum[k].x, spectrum[k].y * spectrum[k].y);
  __syncthreads();
  for (int64_t m = threadIdx.x; m < c.bands; m += kThreads) {
    float sum = 0.0f;
#pragma unroll 8
    for (int64_t k = 0; k < bins; ++k) sum = fmaf(__ldg(c.filters + k * c.bands + m), power[k], sum);
    narrow(logf(sum + c.eps), y + m);
  }
}

// The last samples become the state. What is read lies at or after what is written, which is safe in place.
template <class Data>
__global__ void __launch_bounds__(kRootThreads) keep_samples(LogMelCall c) {
  const int64_t b = blockIdx.x;
  const Row row = row_of(c.rows, b);
  if (row.slot < 0) return;
  for (int64_t first = 0; first < c.kept; first += kRootThreads) {
    const int64_t i = first + threadIdx.x;
    const float v = i < c.kept ? sample<Data>(c, row.slot, b, i + row.items) : 0.0f;
    __syncthreads();
    if (i < c.kept) c.next[row.slot * c.kept + i] = v;
  }
}

__global__ void make_roots(int64_t points, float2* to) {
  const int64_t k = int64_t(blockIdx.x) * kRootThreads + threadIdx.x;
  if (k >= points) return;
  double s, c;
  sincospi(-2.0 * double(k) / double(points), &s, &c);
  to[k] = {float(c), float(s)};
}

template <class Data>
void launch(const LogMelCall& c, size_t shared, cudaStream_t stream) {
  const unsigned B = unsigned(c.rows.B), frames = unsigned(c.rows.T / c.hop);
  if (shared > (48 << 10)) cudaFuncSetAttribute(log_mel<Data>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
  if (frames && c.bands) log_mel<Data><<<dim3(frames, B), kThreads, shared, stream>>>(c);
  if (c.kept) keep_samples<Data><<<B, kRootThreads, 0, stream>>>(c);
}

}  // namespace
}  // namespace streamssm::cuda

using namespace streamssm::cuda;

STREAMSSM_CUDA_API const char* streamssm_cuda_log_mel(const LogMelCall* call, void* stream) {
  if (const char* reason = refuse(call->rows)) return reason;
  if (call->hop < 1 || call->rows.T % call->hop) return "T is no multiple of the hop";
  if (call->length < 1 || call->points < call->length) return "the transform is shorter than the window";
  if (call->kept < call->length - call->hop) return "the past is shorter than the window without a hop";
  if (call->rows.B > 65535) return "a call takes at most 65,535 rows";
  const size_t shared = size_t(call->points) * 3 * sizeof(float2);
  if (shared > kMostShared) return "a transform has at most 8,533 points";
  if (call->rows.B == 0) return nullptr;
  return for_type(call->type, [&](auto data) { launch<decltype(data)>(*call, shared, cudaStream_t(stream)); });
}

STREAMSSM_CUDA_API const char* streamssm_cuda_roots(int64_t points, float* roots, void* stream) {
  if (points == 0) return nullptr;
  make_roots<<<parts(points, kRootThreads), kRootThreads, 0, cudaStream_t(stream)>>>(
      points, reinterpret_cast<float2*>(roots));
  return outcome();
}
