// What the fused steps of Mamba and Mamba-2 share: 96 blocks, one a multiprocessor, each the owner of
// 16 channels of every layer, in 12 clusters of 8. (The GPUs seen have room for 15 such clusters, and for
// 7 of 16 blocks: how many multiprocessors a processing cluster has differs from one GPU to the next.)
//
// Per layer a block needs three tiles of its own weights: rows of in_proj for its channels, more such
// rows, and its channels' columns of out_proj with all that is small. A ring in shared memory holds the
// next tiles, layers ahead, so memory is read without pause while the blocks wait for each other.
//
// All sums run in one fixed order: the same step gives the same bits. They are taken cluster by cluster,
// so GPUs that allow different cluster sizes differ by rounding.
#pragma once

#include <cuda_fp16.h>

#include "numbers.cuh"
#include "step_api.h"
#include "step_sync.cuh"

namespace streamssm::cuda {

constexpr int kRanks = 8;  // blocks of a cluster
constexpr int kClusters = 12;
constexpr int kBlocks = kRanks * kClusters;
constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;
constexpr int kChannels = 16;  // of a block
constexpr int kMostExtra = 4;      // rows that a tile may have besides
constexpr int kMostSlots = 12;
constexpr int kMostTaps = 4;
constexpr int kHeadRows = kWarps;           // of a tile of the head: one a warp
constexpr int kRefiller = kThreads - 32;    // the thread that keeps the ring full: its warp has least to do

// What the blocks have to know of a stack.
struct Stack {
  int layers, D, K, vocabulary, head_rows, slots;
  uint32_t slot_bytes, layer_bytes, tile_at[3], tile_bytes[3];
  float eps;
  const uint8_t* packed;  // [blocks][layers][layer_bytes]
  const float* norms;     // [layers + 1][d_model]
  const __half* embedding;
  // Of the two exchanges of a layer. What all blocks read is there once for each cluster: polled by all
  // 96 blocks, a few lines of the cache took 2 us to get a word in between.
  Word *first_words, *second_words, *square_words;
  uint32_t* exchanges;                              // how many there were before this step
};

// kModel values are shared out among the blocks of a cluster in slices.
template <int kModelSize>
struct Shape {
  static constexpr int kModel = kModelSize;
  static_assert(kModel % (kRanks * 12) == 0, "slices are whole words and whole vectors");
  static constexpr int kSlice = kModel / kRanks;
  static constexpr int kWords = kSlice / 3;
  static constexpr int kShare = kWords <= 16 ? 2 : 1;  // lanes that share a word
  static constexpr int kSlices = kModel / 64;          // of the input, for the warps
  static constexpr int kPerWarp = (kSlices + kWarps - 1) / kWarps;
};

template <class S>
struct Shared {
  uint64_t full[kMostSlots], residual_came, first_came, second_came;
  alignas(16) float residual[S::kModel];
  alignas(16) float partial[2 * kChannels + kMostExtra][S::kSlices];
  alignas(16) float squares[S::kSlices];
  alignas(16) float x[kChannels], gate[kChannels], y[kChannels];
  alignas(16) float first_parts[kRanks][24];
  alignas(16) float second_parts[kRanks][S::kSlice];
  alignas(16) float slice[S::kSlice];
  float square_parts[kRanks];
  alignas(16) float gathered[384];  // what the first exchange brought
  alignas(16) float sums[kWarps][kChannels];
  float states[16][kChannels + 1];
};

// The tiles of this block in the order of their use. All threads take them; thread kRefiller refills.
struct Ring {
  uint8_t* memory;
  uint64_t* full;
  int slots, slot = 0, free_slot = 0, next = 0;
  uint32_t parity = 0, slot_bytes;

  __device__ const uint8_t* take() {
    barrier_wait(full + slot, parity);
    const uint8_t* tile = memory + slot * slot_bytes;
    if (++slot == slots) slot = 0, parity ^= 1;
    return tile;
  }
};

template <class S>
__device__ int head_rows_of(const Stack& s) {
  return max(0, min(s.head_rows, s.vocabulary - int(blockIdx.x) * s.head_rows));
}

// Starts the copy of tile number ring.next; thread kRefiller only. `extra` more rows are in tile 1.
template <class S>
__device__ void refill(const Stack& s, Ring& ring, int extra, uint64_t policy) {
  const int i = ring.next, rows = head_rows_of<S>(s), first = (i - 3 * s.layers) * kHeadRows;
  if (first >= rows) return;
  constexpr uint32_t kRow = S::kModel * sizeof(__half), kNorm = S::kModel * sizeof(float);
  uint8_t* to = ring.memory + ring.free_slot * ring.slot_bytes;
  uint64_t* full = ring.full + ring.free_slot;
  if (i < 3 * s.layers) {
    const int layer = i / 3, tile = i % 3;
    const uint8_t* from = s.packed + (int64_t(blockIdx.x) * s.layers + layer) * s.layer_bytes + s.tile_at[tile];
    const uint32_t bytes = s.tile_bytes[tile] + (tile == 1 ? extra * kRow : 0), norm = tile == 0 ? kNorm : 0;
    barrier_expect(full, bytes + norm);
    if (norm) bulk_copy(to, s.norms + int64_t(layer) * S::kModel, norm, full, policy);
    bulk_copy(to + norm, from, bytes, full, policy);
  } else {
    const uint32_t bytes = min(kHeadRows, rows - first) * kRow;
    barrier_expect(full, bytes);
    bulk_copy(to, s.embedding + (int64_t(blockIdx.x) * s.head_rows + first) * S::kModel, bytes, full, policy);
  }
  ++ring.next;
  if (++ring.free_slot == ring.slots) ring.free_slot = 0;
}

// Up to `most` tiles more, where `freed` tiles have been used by all warps. Called by all threads.
//
// Tiles are asked for right after an exchange, no more than arrive before the next: they fill the queues of
// the L2 cache, and an exchange waited up to 3 us behind a burst of them.
template <class S>
__device__ void top_up(const Stack& s, Ring& ring, int most, int freed, int extra, uint64_t policy) {
  if (threadIdx.x != kRefiller) return;
  for (int i = 0; i < most && ring.next < freed + ring.slots; ++i) refill<S>(s, ring, extra, policy);
}

// Eight weights times eight values.
__device__ inline float dot8(const uint8_t* weights, const float* x, float sum) {
  const uint4 w = *reinterpret_cast<const uint4*>(weights);
  const __half2* h = reinterpret_cast<const __half2*>(&w);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 f = __half22float2(h[i]);
    sum = fmaf(f.x, x[2 * i], sum);
    sum = fmaf(f.y, x[2 * i + 1], sum);
  }
  return sum;
}

__device__ inline void load8(const float* from, float (&to)[8]) {
  *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(from);
  *reinterpret_cast<float4*>(to + 4) = *reinterpret_cast<const float4*>(from + 4);
}

// Each warp multiplies its slice of the normed residual with all rows of two tiles: partial sums in
// sh.partial (rows of the second tile from kChannels on, then the extra ones) and of squares in
// sh.squares.
template <class S, class Ready>
__device__ void project(Shared<S>& sh, const float* norm, const uint8_t* tile0, const uint8_t* tile1, int extra,
                        const Ready& ready) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 8;
  float weight[S::kPerWarp][8], v[8] = {}, square = 0.0f, more = 0.0f;
#pragma unroll
  for (int i = 0; i < S::kPerWarp; ++i)
    if (warp + i * kWarps < S::kSlices) load8(norm + (warp + i * kWarps) * 64 + lane % 8 * 8, weight[i]);
  ready();  // the residual is there
#pragma unroll
  for (int i = 0; i < S::kPerWarp; ++i) {
    const int slice = warp + i * kWarps, at = slice * 64 + lane % 8 * 8;
    if (slice >= S::kSlices) break;
    float x[8];
    load8(sh.residual + at, x);
#pragma unroll
    for (int k = 0; k < 8; ++k) square = fmaf(x[k], x[k], square), x[k] *= weight[i][k];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int row = j % 4 * 4 + group;
      v[j] = dot8((j < 4 ? tile0 : tile1) + (row * S::kModel + at) * 2, x, v[j]);
    }
    if (group < extra) more = dot8(tile1 + ((kChannels + group) * S::kModel + at) * 2, x, more);
  }
  if (warp >= S::kSlices) return;
#pragma unroll
  for (int half = 4; half > 0; half /= 2) {
    square += __shfl_xor_sync(~0u, square, half);
    more += __shfl_xor_sync(~0u, more, half);
  }
  const float sum = scatter_sum<8>(v, lane);
  if (lane == 0) sh.squares[warp] = square;
  if (lane % 8 == 0) sh.partial[2 * kChannels + group][warp] = more;
  sh.partial[lane % 8 / 4 * kChannels + lane % 4 * 4 + group][warp] = sum;
}

template <class S>
__device__ float total(const float (&parts)[S::kSlices]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < S::kSlices; i += 4) {
    const float4 p = *reinterpret_cast<const float4*>(&parts[i]);
    sum += (p.x + p.y) + (p.z + p.w);
  }
  return sum;
}

// The sum over this block's channels of y times out_proj, sent to the ranks that own the outputs.
template <class S>
__device__ void send_outputs(Shared<S>& sh, const uint8_t* columns, uint32_t rank) {
  constexpr int kSlice = S::kSlice;
  const __half* weights = reinterpret_cast<const __half*>(columns);
  const uint32_t parts = shared_address(&sh.second_parts[rank][0]), came = shared_address(&sh.second_came);
  for (int o = 2 * threadIdx.x; o < S::kModel; o += 2 * kThreads) {
    float2 sum{};
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const float2 w = __half22float2(*reinterpret_cast<const __half2*>(weights + c * S::kModel + o));
      sum.x = fmaf(sh.y[c], w.x, sum.x);
      sum.y = fmaf(sh.y[c], w.y, sum.y);
    }
    send(in_block(parts + o % kSlice * 4, o / kSlice), sum, in_block(came, o / kSlice));
  }
}

// Warp 0: adds up this rank's slice over the cluster, then over all clusters, adds it to the residual
// that each lane keeps of its words, and sends the new residual to the whole cluster.
// With kSquares the sum is first scaled by 1 / sqrt(mean of squares + eps), of D squares.
template <class S, bool kSquares>
__device__ void exchange_residual(const Stack& s, Shared<S>& sh, uint32_t rank, uint32_t parity,
                                  uint32_t exchange, float (&residual)[3]) {
  constexpr int kWordLanes = 32 / S::kShare, kSources = kRanks / S::kShare, kOthers = kClusters / S::kShare;
  const int lane = threadIdx.x, word = lane % kWordLanes, part = lane / kWordLanes;
  const int cluster = blockIdx.x / kRanks, own = min(word, S::kWords - 1);
  barrier_wait(&sh.second_came, parity);
  if (lane == 0)
    barrier_expect(&sh.second_came, (S::kSlice + (kSquares && rank == 0)) * 4 * kRanks);
  float sum[3] = {};
#pragma unroll
  for (int i = 0; i < kSources; ++i)
#pragma unroll
    for (int k = 0; k < 3; ++k) sum[k] += sh.second_parts[part * kSources + i][own * 3 + k];
  if constexpr (S::kShare == 2)
#pragma unroll
    for (int k = 0; k < 3; ++k) sum[k] += __shfl_xor_sync(~0u, sum[k], 16);
  Word* words = s.second_words + rank * S::kWords + own;
  if (part == 0 && word < S::kWords) publish(words + cluster * kRanks * S::kWords, sum[0], sum[1], sum[2], exchange);
  float scale = 1.0f;
  if constexpr (kSquares) {
    if (rank == 0 && lane < kRanks) {  // a copy for each rank
      float squares = 0.0f;
      for (int i = 0; i < kRanks; ++i) squares += sh.square_parts[i];
      publish(s.square_words + lane * kClusters + cluster, squares, 0.0f, 0.0f, exchange);
    }
    Word squares[kClusters];
    collect(s.square_words + rank * kClusters, 1, exchange, squares);
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < kClusters; ++i) all += squares[i].v[0];
    scale = rsqrtf(all / float(s.D) + s.eps);
  }
  Word others[kOthers];
  collect(words + part * kOthers * kRanks * S::kWords, kRanks * S::kWords, exchange, others);
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < kOthers; ++i) all += others[i].v[k];
    if constexpr (S::kShare == 2) all += __shfl_xor_sync(~0u, all, 16);
    residual[k] = fmaf(all, scale, residual[k]);
    if (word < S::kWords) sh.slice[own * 3 + k] = residual[k];
  }
  __syncwarp();
  constexpr int kVectors = S::kSlice / 4;
  const uint32_t to = shared_address(&sh.residual[rank * S::kSlice]), came = shared_address(&sh.residual_came);
#pragma unroll
  for (int first = 0; first < kVectors * kRanks; first += 32) {
    const int i = first + lane, at = i % kVectors * 4, other = i / kVectors;
    if (i < kVectors * kRanks)
      send(in_block(to + at * 4, other), *reinterpret_cast<const float4*>(sh.slice + at), in_block(came, other));
  }
}

// The last norm and the product with this block's rows of the embedding.
template <class S>
__device__ void head(const Stack& s, Shared<S>& sh, Ring& ring, float* logits, uint64_t policy) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float* norm = s.norms + int64_t(s.layers) * S::kModel;
  float x[S::kModel / 256][8], square = 0.0f;
#pragma unroll
  for (int i = 0; i < S::kModel / 256; ++i) {
    float weight[8];
    load8(sh.residual + i * 256 + lane * 8, x[i]);
    load8(norm + i * 256 + lane * 8, weight);
#pragma unroll
    for (int k = 0; k < 8; ++k) square = fmaf(x[i][k], x[i][k], square), x[i][k] *= weight[k];
  }
#pragma unroll
  for (int half = 16; half > 0; half /= 2) square += __shfl_xor_sync(~0u, square, half);
  const float scale = rsqrtf(square / S::kModel + s.eps);
  const int rows = head_rows_of<S>(s);
  for (int row = warp; row - warp < rows; row += kHeadRows) {
    const uint8_t* tile = ring.take();
    float sum = 0.0f;
    if (row < rows) {
#pragma unroll
      for (int i = 0; i < S::kModel / 256; ++i) sum = dot8(tile + (warp * S::kModel + i * 256 + lane * 8) * 2, x[i], sum);
#pragma unroll
      for (int half = 16; half > 0; half /= 2) sum += __shfl_xor_sync(~0u, sum, half);
      if (lane == 0) logits[int64_t(blockIdx.x) * s.head_rows + row] = sum * scale;
    }
    __syncthreads();
    top_up<S>(s, ring, 2, 3 * s.layers + row / kHeadRows + 1, 0, policy);
  }
}

// Barriers, the first tiles, and the input as residual, of which warp 0 keeps this rank's words.
template <class S>
__device__ void begin(const Stack& s, Shared<S>& sh, Ring& ring, const StepCall& call, uint32_t rank,
                      int extra, uint32_t first_bytes, bool squares, uint64_t policy, float (&residual)[3]) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < s.slots; ++i) barrier_init(sh.full + i);
    barrier_init(&sh.residual_came), barrier_init(&sh.first_came), barrier_init(&sh.second_came);
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
    barrier_expect(&sh.residual_came, S::kModel * 4);
    barrier_expect(&sh.first_came, first_bytes);
    barrier_expect(&sh.second_came, (S::kSlice + (squares && rank == 0)) * 4 * kRanks);
  }
  __syncthreads();
  top_up<S>(s, ring, 5, 0, extra, policy);
  const auto input = [&](int i) {
    return call.token ? __half2float(s.embedding[int64_t(*call.token) * S::kModel + i]) : call.x[i];
  };
  for (int i = threadIdx.x; i < S::kModel; i += kThreads) sh.residual[i] = input(i);
  for (int i = threadIdx.x; i < kRanks * S::kSlice; i += kThreads) (&sh.second_parts[0][0])[i] = 0.0f;
  const int word = threadIdx.x % (32 / S::kShare);
  for (int k = 0; threadIdx.x < 32 && k < 3; ++k) {
    const int i = rank * S::kSlice + word * 3 + k;
    residual[k] = word < S::kWords && i < S::kModel ? input(i) : 0.0f;
  }
  cluster_sync();
}

}  // namespace streamssm::cuda
