// SelectiveScan:
//
//     d = softplus(dt + dt_bias)     h_n = exp(d A_n) h_n + B_n (d x)     y = (sum_n C_n h_n + D x) silu(z)
//
// Few items: one thread a channel or two, its states in registers (scan_few.cuh), or for one item of many
// rows a stream of states (scan_step.cuh). More items: one pass (scan_stream.cuh), of many items by warps that
// take turns (scan_ring.cuh), or, of many rows, tiles (scan_tile.cuh). States too large for registers: a
// plain loop over memory, here.
//
// Sums over the states run in the same order in the first five, which therefore give the same bits. Long
// calls of few channels are cut into chunks that run side by side, with one pass more; T and D decide that.
#include "launch.h"
#include "scan_few.cuh"
#include "scan_ring.cuh"
#include "scan_step.cuh"
#include "scan_stream.cuh"
#include "scan_tile.cuh"

namespace streamssm::cuda {
namespace {

constexpr int kWideThreads = 128;
constexpr int64_t kLongPass = 256;  // items from which on a pass goes by larger tiles
constexpr int64_t kRingItems = 512;  // items from which on warps may take turns

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

// Groups of four channels of a block of warps in a ring with which a call is soonest done; 0 if one pass is.
// Blocks run in rounds. In microseconds of an H100: what a round takes to start and for each item, and what one pass
// takes for each item, with one block of 16 channels a multiprocessor or with two.
int ring_groups(const ScanCall& c) {
  struct Round {
    int groups;
    float start, item;
  };
  constexpr Round kRounds[] = {{2, 4.0f, 0.0115f}, {3, 5.0f, 0.0141f}, {4, 5.0f, 0.0182f}};
  constexpr float kStart = 3.0f, kPassStart = 4.0f, kPassOne = 0.0225f, kPassTwo = 0.039f;
  const auto rounds = [&](int channels) {
    const int64_t blocks = c.rows.B * parts(c.D, channels);
    return (blocks + multiprocessors() - 1) / multiprocessors();
  };
  const float T = float(c.rows.T);
  const int64_t pass = rounds(16);
  float best = kPassStart + T * (float(pass / 2) * kPassTwo + float(pass % 2) * kPassOne);
  int groups = 0;
  for (const Round& r : kRounds)
    if (const float taken = kStart + float(rounds(4 * r.groups)) * (r.start + r.item * T); taken < best)
      best = taken, groups = r.groups;
  return groups;
}

// Whether warps in a ring took the call.
template <class Data>
bool try_ring(const ScanCall& c, cudaStream_t stream) {
  if constexpr (sizeof(Data) == 2) {
    const uintptr_t brought = uintptr_t(c.x) | uintptr_t(c.dt) | uintptr_t(c.z) | uintptr_t(c.B) | uintptr_t(c.C);
    const bool aligned = brought % 16 == 0 && (c.D | c.z_pitch | c.bc_pitch) % 8 == 0 && uintptr_t(c.y) % 4 == 0;
    if (c.rows.T < kRingItems || !streams<Data>(c, kLongCall) || c.N != kFewStates || !aligned) return false;
    if (c.rows.B * c.rows.T > INT32_MAX) return false;
    const int groups = ring_groups(c);
    if (groups == 2) return launch_ring<Ring<2>, Data>(c, stream);
    if (groups == 3) return launch_ring<Ring<3>, Data>(c, stream);
    if (groups == 4) return launch_ring<Ring<4>, Data>(c, stream);
  }
  return false;
}

template <class Data>
void launch(const ScanCall& c, cudaStream_t stream) {
  if (try_ring<Data>(c, stream)) return;
  if (steps_stream<Data>(c)) {
    launch_step<Data>(c, stream);
  } else if (c.N <= kFewStates && c.rows.T <= kFewItems) {
    launch_few<Data>(c, stream);
  } else if (streams<Data>(c, kLongCall)) {
    if (sizeof(Data) == 2 && c.rows.T >= kLongPass) {
      launch_stream<64, false, Data>(c, {}, stream);
    } else {
      launch_stream<32, false, Data>(c, {}, stream);
    }
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

namespace {

ScanCall filled(ScanCall c) {
  if (c.z_pitch == 0) c.z_pitch = c.D;
  if (c.bc_pitch == 0) c.bc_pitch = c.N;
  return c;
}

const char* refuse(const ScanCall& c) {
  if (const char* reason = refuse(c.rows)) return reason;
  if (c.N < 0 || c.D < 0) return "N and D must not be negative";
  if (c.D > 65535 * 16) return "a call takes at most 1,048,560 channels";
  if (c.rows.T > 65535 * kChunk) return "a call takes at most 16 million items";
  return nullptr;
}

int major_version() {
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  return major;
}

template <class Data>
bool fits(const ScanCall& c, const LowRank& low) {
  const bool rows = (uintptr_t(low.low) | uintptr_t(low.weight)) % 8 == 0 && low.pitch % 4 == 0;
  const bool sizes = low.R >= 0 && low.R <= kLowMost && low.R % 16 == 0;
  return can_stream<Data>(c) && rows && sizes && major_version() >= 8 &&
         !compiled_before(scan_stream<Streaming<3, 32, true>, Data>, 80);
}

}  // namespace

STREAMSSM_CUDA_API const char* streamssm_cuda_selective_scan(const ScanCall* given, void* stream) {
  const ScanCall call = filled(*given);
  if (const char* reason = refuse(call)) return reason;
  if (call.rows.B == 0 || call.D == 0) return nullptr;
  return for_type(call.type, [&](auto data) { launch<decltype(data)>(call, cudaStream_t(stream)); });
}

STREAMSSM_CUDA_API const char* streamssm_cuda_selective_scan_low_rank(const ScanCall* given, const LowRank* low,
                                                                      void* stream) {
  ScanCall call = filled(*given);
  call.dt = nullptr;
  if (const char* reason = refuse(call)) return reason;
  if (call.type != kFloat16 && call.type != kBfloat16)
    return "step sizes by a product are for float16 and bfloat16 data";
  if (!fits<__half>(call, *low)) return "step sizes by a product: sizes, addresses or the GPU do not fit (see api.h)";
  if (call.rows.B == 0 || call.D == 0) return nullptr;
  return for_type(call.type, [&](auto v) {
    if constexpr (sizeof(v) == 2) launch_stream<32, true, decltype(v)>(call, *low, cudaStream_t(stream));
  });
}
