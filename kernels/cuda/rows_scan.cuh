// Between the two large products of a Mamba block: dt_proj and one step of the selective scan.
//
// A block takes 4 rows and an 8th of the channels. Weights and states are in shared memory before the input is there.
// It adds up what x_proj left in parts. What that hands to dt_proj goes through the tensor cores as two float16
// numbers, the value and what its rounding left over: 22 bits.
#pragma once

#include "rows_tools.cuh"

namespace streamssm::cuda::rows {

constexpr int kScanThreads = 384, kScanWarps = kScanThreads / 32;
constexpr int kScanSlices = 8, kScanRows = 4, kStates = 16;
constexpr int kStepsAtOnce = 4, kPartsAtOnce = 8;  // loads of a thread that are under way together

// A slice's weights: dt_proj as the tensor cores take it, then A / ln 2 [kStates][part], dt_bias and skip [part].
struct ScanLayout {
  int part, low_rank, projected;  // channels of a slice; R and R + 2 N rounded up to 16
  int A, bias, skip, bytes;

  __host__ __device__ ScanLayout(int D, int R) {
    part = D / kScanSlices, low_rank = (R + 15) / 16 * 16, projected = (R + 2 * kStates + 15) / 16 * 16;
    A = low_rank * part * 2;
    bias = A + kStates * part * 4, skip = bias + part * 4, bytes = skip + part * 4;
  }
  // In shared memory, behind the weights: states, sums of x_proj, step sizes.
  __host__ __device__ int states() const { return bytes; }
  __host__ __device__ int sums() const { return states() + kScanRows * kStates * part * 4; }
  __host__ __device__ int sums_pitch() const { return projected + 4; }
  __host__ __device__ int delta() const { return sums() + kScanRows * sums_pitch() * 4; }
  __host__ __device__ int shared_bytes() const { return delta() + kScanRows * part * 4; }
};

struct ScanStep {
  Streams rows;
  const uint8_t* weights;  // [slice][layout.bytes]
  const float* parts;      // of x_proj, [tile][all_rows][projected]
  int32_t tiles, all_rows;
  const __half *u, *gate;  // [rows, D]
  __half* y;
  int32_t D, R;
  LayerState ssm;
};

struct ScanBarriers {
  uint64_t weights_came, states_came;
  int64_t slots[kScanRows];
};

// Starts the copies of weights and states; the first warp only.
__device__ inline void begin_scan(const ScanStep& c, const ScanLayout& at, ScanBarriers& barriers, uint8_t* memory,
                                  int first) {
  const int lane = threadIdx.x, slice = blockIdx.x % kScanSlices;
  const int64_t slot = lane < kScanRows ? slot_of(c.rows, first + lane) : -1;
  const int real = __popc(__ballot_sync(~0u, slot >= 0));
  if (lane < kScanRows) barriers.slots[lane] = slot;
  if (lane == 0) {
    barrier_init(&barriers.weights_came), barrier_init(&barriers.states_came);
    barriers_ready();
    barrier_expect(&barriers.weights_came, at.bytes);
    barrier_expect(&barriers.states_came, real * kStates * at.part * 4);
    bulk_fetch(memory, c.weights + int64_t(slice) * at.bytes, at.bytes, &barriers.weights_came);
  }
  __syncwarp();
  for (int i = lane; i < kScanRows * kStates; i += 32) {
    const int64_t from = barriers.slots[i / kStates];
    if (from >= 0)
      bulk_fetch(memory + at.states() + i * at.part * 4,
                 c.ssm.from + from * c.ssm.stride + int64_t(i % kStates) * c.D + slice * at.part, at.part * 4,
                 &barriers.states_came);
  }
}

// Four outputs of x_proj of a row from every 4th part on; neighbouring lanes add up.
__device__ inline float4 sum_parts(const ScanStep& c, const ScanLayout& at, int row, int output, int quarter) {
  const float* parts = c.parts + int64_t(row) * at.projected + output;
  const int64_t stride = int64_t(c.all_rows) * at.projected;
  float4 sum{};
  for (int begin = quarter; begin < c.tiles; begin += 4 * kPartsAtOnce) {
    float4 v[kPartsAtOnce];
#pragma unroll
    for (int k = 0; k < kPartsAtOnce; ++k)
      v[k] = begin + 4 * k < c.tiles ? fetch4(parts + (begin + 4 * k) * stride) : float4{};
#pragma unroll
    for (int k = 0; k < kPartsAtOnce; ++k) sum.x += v[k].x, sum.y += v[k].y, sum.z += v[k].z, sum.w += v[k].w;
  }
#pragma unroll
  for (int half = 1; half < 4; half *= 2) {
    sum.x += __shfl_xor_sync(~0u, sum.x, half), sum.y += __shfl_xor_sync(~0u, sum.y, half);
    sum.z += __shfl_xor_sync(~0u, sum.z, half), sum.w += __shfl_xor_sync(~0u, sum.w, half);
  }
  return sum;
}

// The whole of x_proj, [row][output], from its parts.
__device__ inline void add_parts(const ScanStep& c, const ScanLayout& at, uint8_t* memory, int first) {
  float* sums = reinterpret_cast<float*>(memory + at.sums());
  const int quads = at.projected / 4, lane = threadIdx.x % 32;
  for (int i = threadIdx.x / 4; i - lane / 4 < kScanRows * quads; i += kScanThreads / 4) {
    const int row = i / quads, output = i % quads * 4;
    const bool real = row < kScanRows && first + row < c.rows.count;
    const float4 sum = sum_parts(c, at, real ? first + row : 0, output, lane % 4);
    if (lane % 4 == 0 && row < kScanRows) *reinterpret_cast<float4*>(sums + row * at.sums_pitch() + output) = sum;
  }
}

// Step sizes of 16 channels for all rows.
__device__ inline void step_tile(const ScanLayout& at, uint8_t* memory, int tile) {
  const int lane = threadIdx.x % 32, row = lane / 4, steps = at.low_rank / 16;
  const uint4* weights = reinterpret_cast<const uint4*>(memory) + tile * steps * 32 + lane;
  const float* low_rank = reinterpret_cast<const float*>(memory + at.sums()) + row * at.sums_pitch() + lane % 4 * 4;
  float sums[2][4] = {};
  for (int begin = 0; begin < steps; begin += kStepsAtOnce) {
    uint4 w[kStepsAtOnce];
    float4 v[kStepsAtOnce];
#pragma unroll
    for (int k = 0; k < kStepsAtOnce; ++k) {
      if (begin + k >= steps) break;
      w[k] = weights[(begin + k) * 32];
      v[k] = row < kScanRows ? *reinterpret_cast<const float4*>(low_rank + (begin + k) * 16) : float4{};
    }
#pragma unroll
    for (int k = 0; k < kStepsAtOnce; ++k) {
      if (begin + k >= steps) break;
      const uint32_t b0 = pair_of(v[k].x, v[k].y), b1 = pair_of(v[k].z, v[k].w);
      const float2 low = widen_pair(b0), high = widen_pair(b1);
      multiply(sums[0], w[k].x, w[k].y, w[k].z, w[k].w, b0, b1);
      multiply(sums[1], w[k].x, w[k].y, w[k].z, w[k].w, pair_of(v[k].x - low.x, v[k].y - low.y),
               pair_of(v[k].z - high.x, v[k].w - high.y));
    }
  }
  if (lane % 4 * 2 >= kScanRows) return;
  const float* bias = reinterpret_cast<const float*>(memory + at.bias);
  float* delta = reinterpret_cast<float*>(memory + at.delta()) + lane % 4 * 2 * at.part;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int channel = tile * 16 + half * 8 + lane / 4;
    delta[channel] = softplus(sums[0][2 * half] + sums[1][2 * half] + bias[channel]);
    delta[at.part + channel] = softplus(sums[0][2 * half + 1] + sums[1][2 * half + 1] + bias[channel]);
  }
}

// Two neighbouring channels of one row: states, output, gate.
__device__ inline void scan_pair(const ScanStep& c, const ScanLayout& at, const uint8_t* memory, int row, int channel,
                                 int64_t slot, float2 x, float2 gate, int64_t out) {
  const auto vector = [&](int offset, int index) {
    return *reinterpret_cast<const float2*>(memory + offset + (index * at.part + channel) * 4);
  };
  const float* sums = reinterpret_cast<const float*>(memory + at.sums()) + row * at.sums_pitch() + c.R;
  const float2 delta = vector(at.delta(), row), skip = vector(at.skip, 0);
  const float2 inflow{delta.x * x.x, delta.y * x.y};
  float* next = c.ssm.to + slot * c.ssm.stride + blockIdx.x % kScanSlices * at.part + channel;
  float2 quad[4] = {};
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    float2 h[4], A[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) h[k] = vector(at.states(), row * kStates + q * 4 + k), A[k] = vector(at.A, q * 4 + k);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float B = sums[q * 4 + k], C = sums[kStates + q * 4 + k];
      h[k].x = fmaf(exp2_fast(delta.x * A[k].x), h[k].x, B * inflow.x);
      h[k].y = fmaf(exp2_fast(delta.y * A[k].y), h[k].y, B * inflow.y);
      quad[q].x = fmaf(C, h[k].x, quad[q].x);
      quad[q].y = fmaf(C, h[k].y, quad[q].y);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) __stcs(reinterpret_cast<float2*>(next + int64_t(q * 4 + k) * c.D), h[k]);
  }
  const float2 sum{(quad[0].x + quad[2].x) + (quad[1].x + quad[3].x),
                   (quad[0].y + quad[2].y) + (quad[1].y + quad[3].y)};
  const float2 y{fmaf(skip.x, x.x, sum.x) * gate.x, fmaf(skip.y, x.y, sum.y) * gate.y};
  *reinterpret_cast<uint32_t*>(c.y + out) = pair_of(y.x, y.y);
}

// Two channels of x and of the gate, as they are in memory.
struct ScanInput {
  uint32_t x, gate;
};

__device__ inline ScanInput scan_input(const ScanStep& c, int64_t at) {
  return {fetch_pair(c.u + at), fetch_pair(c.gate + at)};
}

// Thread by thread through the pairs of channels; the input of a thread's first pair is there already.
__device__ inline void scan_rows(const ScanStep& c, const ScanLayout& at, const uint8_t* memory,
                                 const ScanBarriers& barriers, int first, ScanInput input) {
  const int half = at.part / 2;
  for (int i = threadIdx.x; i < kScanRows * half; i += kScanThreads) {
    const int row = i / half, channel = i % half * 2;
    const int64_t slot = barriers.slots[row];
    const int64_t out = int64_t(first + row) * c.D + blockIdx.x % kScanSlices * at.part + channel;
    if (first + row >= c.rows.count) return;
    if (slot < 0) {
      *reinterpret_cast<uint32_t*>(c.y + out) = 0;
      continue;
    }
    if (i != int(threadIdx.x)) input = scan_input(c, out);
    scan_pair(c, at, memory, row, channel, slot, widen_pair(input.x), widen_pair(input.gate), out);
  }
}

__global__ void __launch_bounds__(kScanThreads) rows_scan(const __grid_constant__ ScanStep c) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ ScanBarriers barriers;
  const ScanLayout at(c.D, c.R);
  const int first = blockIdx.x / kScanSlices * kScanRows, warp = threadIdx.x / 32, half = at.part / 2;
  admit_next();
  if (warp == 0) begin_scan(c, at, barriers, memory, first);
  const int row = first + threadIdx.x / half;
  const bool has = int(threadIdx.x) < kScanRows * half && row < c.rows.count;
  const int64_t mine = int64_t(row) * c.D + blockIdx.x % kScanSlices * at.part + threadIdx.x % half * 2;
  __syncthreads();
  barrier_wait(&barriers.weights_came, 0);
  await_previous();
  ScanInput input{};
  if (has) input = scan_input(c, mine);
  add_parts(c, at, memory, first);
  __syncthreads();
  for (int tile = warp; tile < at.part / 16; tile += kScanWarps) step_tile(at, memory, tile);
  __syncthreads();
  barrier_wait(&barriers.states_came, 0);
  scan_rows(c, at, memory, barriers, first, input);
#endif
}

}  // namespace streamssm::cuda::rows
