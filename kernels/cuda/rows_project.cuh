// in_proj of many rows: the norm is a factor of a row, and each output goes its way at once. Those of the
// convolution meet the taps that were fetched before, gates become silu(z), step sizes softplus(raw + bias).
//
// Mamba's x_proj follows at once: a block multiplies its channels of the convolution's output, for the rows that it
// owns, and leaves a part of the sum for each tile of channels. So the scan needs no exchange between blocks.
#pragma once

#include "rows_product.cuh"

namespace streamssm::cuda::rows {

// With the weights of an output come its taps and a bias, of the convolution or of the step size.
//
// Outputs [gate_first, gate_end) are gates, [conv_first, conv_end) go through the convolution, those from
// dt_first on are step sizes. All bounds are even.
struct ProjectCall {
  Streams rows;
  const uint8_t* weights;
  const __half* x;  // [rows, width]: residual * norm weight * (scale by `before`)
  Squares now, before;
  int32_t width, outputs, gate_first, gate_end, conv_first, conv_end, dt_first, taps;
  float dt_least, dt_most;
  LayerState conv;
  void* u;     // [rows, conv_end - conv_first], of type Mixed
  void* gate;  // [rows, gate_end - gate_first], of type Mixed
  float* dt;   // [rows, dt_pitch]
  int32_t dt_pitch;
  const uint8_t* next_weights;  // of x_proj, [tile][blob], or null
  float* parts;                 // [tile][rows][projected]
  int32_t projected, all_rows;  // outputs of x_proj, a multiple of 16; rows in parts
  bool late;                    // admits the next kernel only when the rows are there
};

constexpr int kMostParts = 64;  // of the squares of a row

// The factor of an owned row: this layer's scale over that of the layer before, which x has. The squares come with the
// rows; thread i has row i.
template <class Tile>
struct RowFactors {
  alignas(16) float squares[Tile::kOwn][kMostParts];
  float factors[Tile::kOwn];

  __device__ void fetch(const Squares& now, int first, int rows) {
    const int each = now.count / 4;
    const float* from = now.parts + int64_t(first) * now.count;
    for (int i = threadIdx.x; i < rows * each; i += kThreads)
      copy16(&squares[i / each][i % each * 4], from + i / each * now.count + i % each * 4, true);
  }
  __device__ void find(const Squares& now, float before) {
    if (threadIdx.x >= Tile::kOwn) return;
    float sum = 0.0f;
    for (int i = 0; i < now.count; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(&squares[threadIdx.x][i]);
      sum += (v.x + v.y) + (v.z + v.w);
    }
    factors[threadIdx.x] = rsqrtf(fmaf(sum, now.mean, now.eps)) / before;
  }
};

// x_proj of one tile of channels: weights for its outputs, and the channels of the rows that a block owns.
template <class Tile>
struct Projector {
  static constexpr int kRowBytes = Tile::kWidth * 2 + 16;
  uint8_t *weights, *u;

  __host__ __device__ static uint32_t weight_bytes(int projected) { return uint32_t(projected) * Tile::kWidth * 2; }
  __host__ __device__ static uint32_t shared_bytes(int projected) { return weight_bytes(projected) + 16 * kRowBytes; }
  __device__ Projector(uint8_t* memory, int projected) : weights(memory), u(memory + weight_bytes(projected)) {}

  __device__ void keep(int own, int column, uint32_t v) const {
    *reinterpret_cast<uint32_t*>(u + own * kRowBytes + column * 2) = v;
  }
  // A warp multiplies every 8th tile of 8 outputs. Rows that are not owned are never read.
  __device__ void run(const ProjectCall& c, int first) const {
    constexpr int kSteps = Tile::kWidth / 32;
    const int lane = threadIdx.x % 32;
    const uint32_t x = shared_address(u) + lane % 16 * kRowBytes + lane / 16 * 16;
    uint32_t a[2 * kSteps][4];
#pragma unroll
    for (int k = 0; k < 2 * kSteps; ++k) load_matrices(x + k * 32, a[k]);
    for (int tile = threadIdx.x / 32; tile < c.projected / 8; tile += kThreads / 32) {
      float sum[4] = {};
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        const uint4 w = reinterpret_cast<const uint4*>(weights)[(tile * kSteps + k) * 32 + lane];
        multiply(sum, a[2 * k][0], a[2 * k][1], a[2 * k][2], a[2 * k][3], w.x, w.y);
        multiply(sum, a[2 * k + 1][0], a[2 * k + 1][1], a[2 * k + 1][2], a[2 * k + 1][3], w.z, w.w);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int own = lane / 4 + half * 8, row = first + own;
        if (own >= Tile::kOwn || row >= c.rows.count) continue;
        float* to = c.parts + (int64_t(blockIdx.x / Tile::kRanks) * c.all_rows + row) * c.projected;
        *reinterpret_cast<float2*>(to + tile * 8 + lane % 4 * 2) = make_float2(sum[2 * half], sum[2 * half + 1]);
      }
    }
  }
};

// Two neighbouring outputs of a row: what is fetched before they are there.
struct ProjectPair {
  int64_t slot;
  int own, column, output;
  float2 past[kMostTaps - 1];
};

template <class Tile>
__device__ ProjectPair pair_at(const ProjectCall& c, int index) {
  ProjectPair pair{-1};
  pair.own = index / (Tile::kWidth / 2), pair.column = index % (Tile::kWidth / 2) * 2;
  pair.output = blockIdx.x / Tile::kRanks * Tile::kWidth + pair.column;
  if (pair.own >= Tile::kOwn) return pair;
  pair.slot = slot_of(c.rows, blockIdx.y * Tile::kRows + blockIdx.x % Tile::kRanks * Tile::kOwn + pair.own);
  const int channel = pair.output - c.conv_first, width = c.conv_end - c.conv_first;
  const bool conv = pair.slot >= 0 && channel >= 0 && channel < width;
  const float* past = c.conv.from + pair.slot * c.conv.stride + channel;
#pragma unroll
  for (int k = 0; k < kMostTaps - 1; ++k)
    pair.past[k] = conv && k < c.taps - 1 ? fetch2(past + int64_t(k) * width) : float2{};
  return pair;
}

__device__ inline void keep(__half* to, float2 v) { *reinterpret_cast<uint32_t*>(to) = pair_of(v.x, v.y); }
__device__ inline void keep(float* to, float2 v) { *reinterpret_cast<float2*>(to) = v; }

template <class Mixed, int kStride>
__device__ float2 convolve_pair(const ProjectCall& c, const ProjectPair& pair, const float* vectors, int64_t row,
                                float2 now) {
  const int channel = pair.output - c.conv_first, width = c.conv_end - c.conv_first;
  float2 sum = *reinterpret_cast<const float2*>(vectors + kMostTaps * kStride);
  float* next = c.conv.to + pair.slot * c.conv.stride + channel;
#pragma unroll
  for (int k = 0; k < kMostTaps; ++k) {
    if (k >= c.taps) break;
    const float2 w = *reinterpret_cast<const float2*>(vectors + k * kStride);
    const float2 v = k < kMostTaps - 1 && k < c.taps - 1 ? pair.past[min(k, kMostTaps - 2)] : now;
    sum.x = fmaf(w.x, v.x, sum.x), sum.y = fmaf(w.y, v.y, sum.y);
    if (k > 0 && pair.slot >= 0) *reinterpret_cast<float2*>(next + (k - 1) * int64_t(width)) = v;
  }
  const float2 u{silu(sum.x), silu(sum.y)};
  keep(static_cast<Mixed*>(c.u) + row * width + channel, u);
  return u;
}

// `vectors` is where the numbers of the first of the two outputs are. Returns what goes on to x_proj.
template <class Mixed, int kStride>
__device__ float2 use_pair(const ProjectCall& c, const ProjectPair& pair, const float* vectors, int64_t row, float2 v) {
  if (pair.output >= c.conv_first && pair.output < c.conv_end) {
    return convolve_pair<Mixed, kStride>(c, pair, vectors, row, v);
  } else if (pair.output >= c.gate_first && pair.output < c.gate_end) {
    Mixed* gate = static_cast<Mixed*>(c.gate) + row * (c.gate_end - c.gate_first) + pair.output - c.gate_first;
    keep(gate, {silu(v.x), silu(v.y)});
  } else if (pair.output >= c.dt_first && pair.output < c.outputs) {
    const int head = pair.output - c.dt_first, heads = c.outputs - c.dt_first;
    float* dt = c.dt + row * c.dt_pitch + head;
    const float2 bias = *reinterpret_cast<const float2*>(vectors + kMostTaps * kStride);
    dt[0] = fminf(fmaxf(softplus(v.x + bias.x), c.dt_least), c.dt_most);
    if (head + 1 < heads) dt[1] = fminf(fmaxf(softplus(v.y + bias.y), c.dt_least), c.dt_most);
  }
  return {};
}

template <class Tile, class Mixed>
__global__ void __launch_bounds__(kThreads, 2) rows_project(const __grid_constant__ ProjectCall c) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ Barriers barriers;
  __shared__ RowFactors<Tile> factors;
  constexpr int kPairs = (Tile::kOwn * Tile::kWidth / 2 + kThreads - 1) / kThreads;
  const ProductMemory<Tile> m(memory, c.width / Tile::kRanks);
  const Projector<Tile> next(m.rest(), c.projected);
  const int tile = blockIdx.x / Tile::kRanks, rank = blockIdx.x % Tile::kRanks;
  const int first = blockIdx.y * Tile::kRows + rank * Tile::kOwn, owned = owned_rows<Tile>(rank, c.rows.count);
  const bool projects = c.next_weights && tile * Tile::kWidth < c.conv_end;  // the channels come first then
  const uint32_t more = projects ? next.weight_bytes(c.projected) : 0;
  begin_product<Tile>(m, barriers, c.weights, c.rows.count, next.weights, c.next_weights + int64_t(tile) * more, more);
  ProjectPair pairs[kPairs];
#pragma unroll
  for (int i = 0; i < kPairs; ++i) pairs[i] = pair_at<Tile>(c, threadIdx.x + i * kThreads);
  // what belongs to the layer before was complete when this kernel was admitted
  const float before = int(threadIdx.x) < owned ? scale_of(c.before, first + threadIdx.x) : 1.0f;
  __syncthreads();
  barrier_wait(&barriers.weights_came, 0);
  Multiplier<Tile, false> multiplier(m, nullptr);
  await_previous();
  if (!c.late) admit_next();
  factors.fetch(c.now, first, owned);
  fetch_rows<Tile>(m, c.x, c.width, blockIdx.y * Tile::kRows, c.rows.count);
  finish_product<Tile>(m, barriers, c.rows.count, c.late, multiplier, [&] { factors.find(c.now, before); });
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int row = first + pairs[i].own;
    if (pairs[i].own >= Tile::kOwn || row >= c.rows.count) continue;
    const float2 sum = owned_sum<Tile>(m, pairs[i].own, pairs[i].column);
    const float f = factors.factors[pairs[i].own], *vectors = m.vectors() + pairs[i].column;
    const float2 u = use_pair<Mixed, Tile::kWidth>(c, pairs[i], vectors, row, {sum.x * f, sum.y * f});
    if (projects) next.keep(pairs[i].own, pairs[i].column, pair_of(u.x, u.y));
  }
  if (projects) {
    __syncthreads();
    next.run(c, first);
  }
#endif
}

}  // namespace streamssm::cuda::rows
