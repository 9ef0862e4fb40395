// SelectiveScan of one item of many rows, N = 16: what counts is the states, read and written once.
//
// A block stays with one slice of channels and takes row after row. While a thread works on a row, the
// states of its two channels in the next row are on their way to its own part of shared memory, so that the
// memory is never idle; A stays in registers.
#pragma once

#include "copies.cuh"
#include "scan_few.cuh"

namespace streamssm::cuda {
namespace {

constexpr int kStepThreads = 128, kStepStates = 16;
constexpr int kStepSlice = 2 * kStepThreads;  // channels of a block
constexpr int kStepBlocks = 4;                // of a multiprocessor
constexpr int64_t kStepRows = 3;              // rows of a block, at least

// One row's inputs of a thread, as they are in memory.
template <class Data>
struct StepInputs {
  Pair<2, Data> x, dt, z;
  alignas(16) Data B[kStepStates], C[kStepStates];
  Row row;
};

template <class Data>
__device__ void read_all(const Data* from, Data (&to)[kStepStates]) {
#pragma unroll
  for (int i = 0; i < int(sizeof(to) / 16); ++i)
    reinterpret_cast<uint4*>(to)[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
}

template <class Data>
__device__ void fetch_step(const ScanCall& c, int64_t b, int64_t d, StepInputs<Data>& in, float2 (*states)[kStepThreads]) {
  in.row = row_of(c.rows, b);
  const int64_t i = b * c.D + d, kept = max(in.row.slot, int64_t(0)) * kStepStates * c.D + d;
#pragma unroll
  for (int n = 0; n < kStepStates; ++n) copy8(&states[n][threadIdx.x], c.state + kept + n * c.D);
  copies_end();
  in.x = *reinterpret_cast<const Pair<2, Data>*>(data<Data>(c.x, i));
  in.dt = *reinterpret_cast<const Pair<2, Data>*>(data<Data>(c.dt, i));
  in.z = *reinterpret_cast<const Pair<2, Data>*>(data<Data>(c.z, b * c.z_pitch + d));
  read_all(data<Data>(c.B, b * c.bc_pitch), in.B);
  read_all(data<Data>(c.C, b * c.bc_pitch), in.C);
}

template <class Data>
__device__ void do_step(const ScanCall& c, int64_t b, int64_t d, const StepInputs<Data>& in, const float2 (&A)[kStepStates],
                        float2 bias, float2 skip, const float2 (*states)[kStepThreads]) {
  const bool real = in.row.items > 0;
  const float first = real ? softplus(widen(in.dt.v[0]) + bias.x) : 0.0f;
  const float second = real ? softplus(widen(in.dt.v[1]) + bias.y) : 0.0f;
  const float inflow[2] = {first * widen(in.x.v[0]), second * widen(in.x.v[1])};
  const float step[2] = {first * kPerOctave, second * kPerOctave};
  float* next = c.next + max(in.row.slot, int64_t(0)) * kStepStates * c.D + d;
  float pair[2][8];
#pragma unroll
  for (int n = 0; n < kStepStates; ++n) {
    float2 h = states[n][threadIdx.x];
    if (real) {
      const float B = widen(in.B[n]), C = widen(in.C[n]);
      h.x = fmaf(exp2_fast(step[0] * A[n].x), h.x, B * inflow[0]);
      h.y = fmaf(exp2_fast(step[1] * A[n].y), h.y, B * inflow[1]);
      pair[0][n / 2] = fmaf(C, h.x, n % 2 ? pair[0][n / 2] : 0.0f);
      pair[1][n / 2] = fmaf(C, h.y, n % 2 ? pair[1][n / 2] : 0.0f);
    }
    if (in.row.slot >= 0) *reinterpret_cast<float2*>(next + n * c.D) = h;
  }
  Pair<2, Data> y{zero<Data>(), zero<Data>()};
  if (real) {
    float sum[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      float quad[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) quad[i] = pair[k][2 * i] + pair[k][2 * i + 1];
      sum[k] = (quad[0] + quad[2]) + (quad[1] + quad[3]);  // the order of sum_states
    }
    narrow(fmaf(skip.x, widen(in.x.v[0]), sum[0]) * silu(widen(in.z.v[0])), &y.v[0]);
    narrow(fmaf(skip.y, widen(in.x.v[1]), sum[1]) * silu(widen(in.z.v[1])), &y.v[1]);
  }
  *reinterpret_cast<Pair<2, Data>*>(static_cast<Data*>(c.y) + b * c.D + d) = y;
}

template <class Data>
__global__ void __launch_bounds__(kStepThreads, kStepBlocks) scan_step(ScanCall c, int slices) {
  __shared__ float2 states[2][kStepStates][kStepThreads];
  const int64_t d = int64_t(blockIdx.x % slices) * kStepSlice + 2 * threadIdx.x, stride = gridDim.x / slices;
  if (d >= c.D) return;  // no thread waits for another
  const float2 bias = *reinterpret_cast<const float2*>(c.dt_bias + d), skip = *reinterpret_cast<const float2*>(c.skip + d);
  float2 A[kStepStates];
#pragma unroll
  for (int n = 0; n < kStepStates; ++n) A[n] = *reinterpret_cast<const float2*>(c.A + n * c.D + d);
  StepInputs<Data> now, then;
  int64_t b = blockIdx.x / slices;
  if (b >= c.rows.B) return;
  fetch_step(c, b, d, now, states[0]);
  for (int side = 0; b < c.rows.B; b += stride, side ^= 1) {
    if (b + stride < c.rows.B) {
      fetch_step(c, b + stride, d, then, states[side ^ 1]);
      copies_wait<1>();
    } else {
      copies_wait<0>();
    }
    do_step(c, b, d, now, A, bias, skip, states[side]);
    now = then;
  }
}

inline int multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

// Whether there are rows enough, and everything is aligned.
template <class Data>
bool steps_stream(const ScanCall& c) {
  const uintptr_t data = uintptr_t(c.x) | uintptr_t(c.dt) | uintptr_t(c.z) | uintptr_t(c.y);
  const uintptr_t floats = uintptr_t(c.A) | uintptr_t(c.skip) | uintptr_t(c.dt_bias) | uintptr_t(c.state) | uintptr_t(c.next);
  const bool whole = (c.D | c.z_pitch) % 2 == 0 && c.bc_pitch * sizeof(Data) % 16 == 0;
  const bool aligned = data % (2 * sizeof(Data)) == 0 && floats % 8 == 0 && (uintptr_t(c.B) | uintptr_t(c.C)) % 16 == 0;
  const int64_t slices = parts(c.D, kStepSlice), blocks = int64_t(kStepBlocks) * multiprocessors();
  return c.rows.T == 1 && c.N == kStepStates && whole && aligned && slices <= blocks &&
         c.rows.B * slices >= kStepRows * blocks;
}

template <class Data>
void launch_step(const ScanCall& c, cudaStream_t stream) {
  const unsigned slices = parts(c.D, kStepSlice), blocks = unsigned(kStepBlocks * multiprocessors()) / slices * slices;
  scan_step<Data><<<blocks, kStepThreads, 0, stream>>>(c, int(slices));
}

}  // namespace
}  // namespace streamssm::cuda
