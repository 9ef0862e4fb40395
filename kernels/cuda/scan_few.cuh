// SelectiveScan of few items and N <= 16: a thread has one channel, or two neighbours, and all their states.
#pragma once

#include "launch.h"

namespace streamssm::cuda {
namespace {

template <class Data>
__device__ const Data* data(const void* from, int64_t at) {
  return static_cast<const Data*>(from) + at;
}

constexpr int kFewThreads = 128, kFewStates = 16;
constexpr int64_t kFewItems = 8;  // with more, waiting for each item costs more than a tile does

// 16 numbers, or N and zeros.
template <class Data>
__device__ void read_row(const Data* from, int64_t N, float (&to)[kFewStates]) {
  alignas(16) Data raw[kFewStates];
  constexpr int kVectors = sizeof(raw) / 16;
  if (N == kFewStates && uintptr_t(from) % 16 == 0) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) reinterpret_cast<uint4*>(raw)[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
  } else {
#pragma unroll
    for (int n = 0; n < kFewStates; ++n) raw[n] = n < N ? from[n] : zero<Data>();
  }
#pragma unroll
  for (int n = 0; n < kFewStates; ++n) to[n] = widen(raw[n]);
}

template <int kPair, class T>
struct alignas(sizeof(T) * kPair) Pair {
  T v[kPair];
};

template <int kPair>
__device__ Pair<kPair, float> read_floats(const float* from) {
  return *reinterpret_cast<const Pair<kPair, float>*>(from);
}

// States pass the first level of cache by: it holds A, which all rows read.
template <int kPair>
__device__ Pair<kPair, float> read_state(const float* from) {
  Pair<kPair, float> to;
  if constexpr (kPair == 2) {
    const float2 v = __ldcg(reinterpret_cast<const float2*>(from));
    to.v[0] = v.x, to.v[1] = v.y;
  } else {
    to.v[0] = __ldcg(from);
  }
  return to;
}

// Sums of neighbours, of four, then of those two apart, then of neighbours: the order in which threads that
// share a channel, with four states each or two, add up theirs.
__device__ inline float sum_states(const float (&c)[kFewStates], const float* h, int stride) {
  float quad[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float pair[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int n = 4 * i + 2 * k;
      pair[k] = fmaf(c[n + 1], h[(n + 1) * stride], fmaf(c[n], h[n * stride], 0.0f));
    }
    quad[i] = pair[0] + pair[1];
  }
  return (quad[0] + quad[2]) + (quad[1] + quad[3]);
}

template <int kPair, class Data>
__device__ void few_item(const ScanCall& c, int64_t item, int64_t d, float (&h)[kFewStates][kPair]) {
  using Items = Pair<kPair, Data>;
  const int64_t i = item * c.D + d;
  const Items x = *reinterpret_cast<const Items*>(data<Data>(c.x, i));
  const Items dt = *reinterpret_cast<const Items*>(data<Data>(c.dt, i));
  const Items z = *reinterpret_cast<const Items*>(data<Data>(c.z, item * c.z_pitch + d));
  const Pair<kPair, float> bias = read_floats<kPair>(c.dt_bias + d), skip = read_floats<kPair>(c.skip + d);
  float row[kFewStates], step[kPair], inflow[kPair];
#pragma unroll
  for (int p = 0; p < kPair; ++p) {
    const float delta = softplus(widen(dt.v[p]) + bias.v[p]);
    step[p] = delta * kPerOctave, inflow[p] = delta * widen(x.v[p]);
  }
  read_row(data<Data>(c.B, item * c.bc_pitch), c.N, row);
#pragma unroll
  for (int n = 0; n < kFewStates; ++n) {
    if (n >= c.N) break;
    const Pair<kPair, float> A = read_floats<kPair>(c.A + n * c.D + d);
#pragma unroll
    for (int p = 0; p < kPair; ++p) h[n][p] = fmaf(exp2_fast(step[p] * A.v[p]), h[n][p], row[n] * inflow[p]);
  }
  read_row(data<Data>(c.C, item * c.bc_pitch), c.N, row);
  Items y;
#pragma unroll
  for (int p = 0; p < kPair; ++p)
    narrow(fmaf(skip.v[p], widen(x.v[p]), sum_states(row, &h[0][p], kPair)) * silu(widen(z.v[p])), &y.v[p]);
  *reinterpret_cast<Items*>(static_cast<Data*>(c.y) + i) = y;
}

template <int kPair, class Data>
__global__ void __launch_bounds__(kFewThreads, kPair == 2 ? 6 : 8) scan_few(ScanCall c, unsigned width) {
  const int64_t b = blockIdx.x / width, d = (int64_t(blockIdx.x % width) * kFewThreads + threadIdx.x) * kPair;
  if (d >= c.D) return;
  const Row row = row_of(c.rows, b);
  const int64_t kept = row.slot * c.N * c.D + d;
  float h[kFewStates][kPair] = {};
#pragma unroll
  for (int n = 0; n < kFewStates; ++n) {
    if (n >= c.N || row.slot < 0) break;
    const Pair<kPair, float> from = read_state<kPair>(c.state + kept + n * c.D);
#pragma unroll
    for (int p = 0; p < kPair; ++p) h[n][p] = from.v[p];
  }
  for (int64_t t = 0; t < c.rows.T; ++t) {
    const int64_t item = b * c.rows.T + t;
    if (t < row.items) {
      few_item<kPair, Data>(c, item, d, h);
    } else {
#pragma unroll
      for (int p = 0; p < kPair; ++p) narrow(0.0f, static_cast<Data*>(c.y) + item * c.D + d + p);
    }
  }
#pragma unroll
  for (int n = 0; n < kFewStates; ++n) {
    if (n >= c.N || row.slot < 0) break;
    Pair<kPair, float> to;
#pragma unroll
    for (int p = 0; p < kPair; ++p) to.v[p] = h[n][p];
    *reinterpret_cast<Pair<kPair, float>*>(c.next + kept + n * c.D) = to;
  }
}

// Two channels a thread where everything is aligned for it and there are rows enough to fill the GPU.
template <class Data>
void launch_few(const ScanCall& c, cudaStream_t stream) {
  const uintptr_t data = uintptr_t(c.x) | uintptr_t(c.dt) | uintptr_t(c.z) | uintptr_t(c.y);
  const uintptr_t floats = uintptr_t(c.A) | uintptr_t(c.skip) | uintptr_t(c.dt_bias) | uintptr_t(c.state) | uintptr_t(c.next);
  const bool pairs = (c.D | c.z_pitch) % 2 == 0 && data % (2 * sizeof(Data)) == 0 && floats % 8 == 0 && c.rows.B >= 256;
  const unsigned width = parts(c.D, (pairs ? 2 : 1) * kFewThreads), blocks = unsigned(c.rows.B) * width;
  if (pairs) {
    scan_few<2, Data><<<blocks, kFewThreads, 0, stream>>>(c, width);
  } else {
    scan_few<1, Data><<<blocks, kFewThreads, 0, stream>>>(c, width);
  }
}

}  // namespace
}  // namespace streamssm::cuda
