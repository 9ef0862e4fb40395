// SelectiveScan:
//
//     d = softplus(dt + dt_bias)     h_n = exp(d A_n) h_n + B_n (d x)     y = (sum_n C_n h_n + D x) silu(z)
//
// Few items: one thread a channel or two, its states in registers (scan_few.cuh), or for one item of many
// rows a stream of states (scan_step.cuh). More items: tiles
// (scan_tile.cuh). States too large for registers: a plain loop over memory, here.
//
// Sums over the states run in the same order in the first three, which therefore give the same bits. Long
// calls are cut into chunks that run side by side, with one pass more; T alone decides that.
#include "launch.h"
#include "scan_few.cuh"
#include "scan_step.cuh"
#include "scan_tile.cuh"

namespace streamssm::cuda {
namespace {

constexpr int kWideThreads = 128;

// Any N, any T: one thread a channel, its states in memory.
template <class Data>
__global__ void __launch_bounds__(kWideThreads) scan_wide(ScanCall c) {
  const int64_t b = blockIdx.x, d = int64_t(blockIdx.y) * kWideThreads + threadIdx.x;
  if (d >= c.D) return;
  const Row row = row_of(c.rows, b);
  const float* state = c.state + row.slot * c.N * c.D + d;
  float* next = c.next + row.slot * c.N * c.D + d;
  if (row.slot >= 0 && state != next)
    for (int64_t n = 0; n < c.N; ++n) next[n * c.D] = state[n * c.D];
  for (int64_t t = 0; t < c.rows.T; ++t) {
    const int64_t item = b * c.rows.T + t, i = item * c.D + d;
    if (t >= row.items) {
      narrow(0.0f, static_cast<Data*>(c.y) + i);
      continue;
    }
    const float x = widen(*data<Data>(c.x, i)), delta = softplus(widen(*data<Data>(c.dt, i)) + c.dt_bias[d]);
    float sum = 0.0f;
    for (int64_t n = 0; n < c.N; ++n) {
      const float decay = exp2_fast(delta * kPerOctave * c.A[n * c.D + d]);
      const float h = fmaf(decay, next[n * c.D], widen(*data<Data>(c.B, item * c.bc_pitch + n)) * (delta * x));
      next[n * c.D] = h;
      sum = fmaf(widen(*data<Data>(c.C, item * c.bc_pitch + n)), h, sum);
    }
    narrow(fmaf(c.skip[d], x, sum) * silu(widen(*data<Data>(c.z, item * c.z_pitch + d))), static_cast<Data*>(c.y) + i);
  }
}

template <class Data>
void launch(const ScanCall& c, cudaStream_t stream) {
  if (steps_stream<Data>(c)) {
    launch_step<Data>(c, stream);
  } else if (c.N <= kFewStates && c.rows.T <= kFewItems) {
    launch_few<Data>(c, stream);
  } else if (c.N <= 16) {
    launch_tiles<4, sizeof(Data) == 2 ? 64 : 32, Data>(c, stream);
  } else if (c.N <= 32) {
    launch_tiles<8, sizeof(Data) == 2 ? 32 : 16, Data>(c, stream);
  } else {
    scan_wide<Data><<<dim3(unsigned(c.rows.B), parts(c.D, kWideThreads)), kWideThreads, 0, stream>>>(c);
  }
}

}  // namespace
}  // namespace streamssm::cuda

using namespace streamssm::cuda;

STREAMSSM_CUDA_API const char* streamssm_cuda_selective_scan(const ScanCall* given, void* stream) {
  ScanCall filled = *given;
  if (filled.z_pitch == 0) filled.z_pitch = filled.D;
  if (filled.bc_pitch == 0) filled.bc_pitch = filled.N;
  const ScanCall* const call = &filled;
  if (const char* reason = refuse(call->rows)) return reason;
  if (call->N < 0 || call->D < 0) return "N and D must not be negative";
  if (call->D > 65535 * 16) return "a call takes at most 1,048,560 channels";
  if (call->rows.T > 65535 * kChunk) return "a call takes at most 16 million items";
  if (call->rows.B == 0 || call->D == 0) return nullptr;
  return for_type(call->type, [&](auto data) { launch<decltype(data)>(*call, cudaStream_t(stream)); });
}
