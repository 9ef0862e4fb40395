// One item through a stack of Mamba blocks in one launch; see step_block.cuh for the common part.
//
// A layer has two exchanges between all blocks: the 80 or so outputs of x_proj, of which every block has
// a partial sum, and the residual. Between them each warp takes one channel and its states.
#include "step_host.h"

namespace streamssm::cuda {
namespace {

constexpr int kStates = 16;  // of a channel, at most

// Where things are in the third tile: matrices of float16 first, then vectors of float32.
struct ThirdTile {
  int proj_width, low_rank_width;  // padded
  int x_proj, dt_proj, vectors;    // byte offsets; out_proj [channels][d_model] is at 0
  int conv_bias, dt_bias, skip, A, bytes;  // in floats from `vectors`; conv_weight [K][channels] is at 0

  __host__ __device__ ThirdTile(int d_model, int N, int R, int K) {
    constexpr int channels = kChannels;
    proj_width = (R + 2 * N + 7) / 8 * 8, low_rank_width = (R + 7) / 8 * 8;
    x_proj = channels * d_model * 2;
    dt_proj = x_proj + channels * proj_width * 2;
    vectors = dt_proj + channels * low_rank_width * 2;
    conv_bias = K * channels, dt_bias = conv_bias + channels, skip = dt_bias + channels, A = skip + channels;
    bytes = vectors + (A + channels * N) * 4;
  }
};

struct Parameters {
  Stack s;
  StepCall call;
  ThirdTile third;
  int N, R, first_words;  // words of the first exchange that a rank owns
};

// Values of the first exchange that a rank owns.
__device__ int first_size(const Parameters& p, uint32_t rank) {
  return max(0, min(3 * p.first_words, p.R + 2 * p.N - int(rank) * 3 * p.first_words));
}

// Warp 0 has a channel a lane: the conv and its next state. Warp 1: the gate.
template <class S>
__device__ void convolve(const Parameters& p, Shared<S>& sh, const uint8_t* tile, int layer,
                         int64_t slot, const float (&past)[kMostTaps - 1], float scale) {
  constexpr int n = kChannels;
  const int c = threadIdx.x % 32, d = blockIdx.x * n + c;
  if (threadIdx.x >= 64 || c >= n) return;
  if (threadIdx.x >= 32) {
    sh.gate[c] = silu(total<S>(sh.partial[kChannels + c]) * scale);
    return;
  }
  const float* vectors = reinterpret_cast<const float*>(tile + p.third.vectors);
  const float now = total<S>(sh.partial[c]) * scale;
  float sum = vectors[p.third.conv_bias + c];
#pragma unroll
  for (int k = 0; k < kMostTaps - 1; ++k)
    if (k < p.s.K - 1) sum = fmaf(vectors[k * n + c], past[k], sum);
  sh.x[c] = silu(fmaf(vectors[(p.s.K - 1) * n + c], now, sum));
  if (d >= p.s.D) return;
  float* next = p.call.conv.next + layer * p.call.conv.layer_stride + slot * p.call.conv.slot_stride + d;
#pragma unroll
  for (int k = 0; k < kMostTaps - 1; ++k)
    if (k < p.s.K - 1) next[k * p.s.D] = k + 1 < p.s.K - 1 ? past[k + 1] : now;
}

// This block's part of every output of x_proj, to the ranks that own them.
template <class S>
__device__ void send_projected(const Parameters& p, Shared<S>& sh, const uint8_t* tile, uint32_t rank) {
  const __half* weights = reinterpret_cast<const __half*>(tile + p.third.x_proj);
  const int slice = 3 * p.first_words;
  for (int i = threadIdx.x; i < p.R + 2 * p.N; i += kThreads) {
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sum = fmaf(sh.x[c], __half2float(weights[c * p.third.proj_width + i]), sum);
    send(in_block(shared_address(&sh.first_parts[rank][i % slice]), i / slice), sum,
         in_block(shared_address(&sh.first_came), i / slice));
  }
}

// Warp 0: adds up this rank's outputs over the cluster, then gathers everyone's over the clusters.
template <class S>
__device__ void exchange_projected(const Parameters& p, Shared<S>& sh, uint32_t rank, uint32_t parity,
                                   uint32_t exchange) {
  const int lane = threadIdx.x, stride = kRanks * p.first_words;
  barrier_wait(&sh.first_came, parity);
  if (lane == 0) barrier_expect(&sh.first_came, first_size(p, rank) * 4 * kRanks);
  for (int i = lane; i < p.first_words * kClusters; i += 32) {
    const int word = i % p.first_words, copy = i / p.first_words;
    float sum[3] = {};
#pragma unroll
    for (int r = 0; r < kRanks; ++r)
#pragma unroll
      for (int k = 0; k < 3; ++k) sum[k] += sh.first_parts[r][word * 3 + k];
    Word* words = p.s.first_words + (copy * kClusters + blockIdx.x / kRanks) * stride + rank * p.first_words;
    if (word * 3 < first_size(p, rank)) publish(words + word, sum[0], sum[1], sum[2], exchange);
  }
  const Word* words = p.s.first_words + blockIdx.x / kRanks * kClusters * stride;
  for (int word = lane; word * 3 < p.R + 2 * p.N; word += 32) {
    Word parts[kClusters];
    collect(words + word, stride, exchange, parts);
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kClusters; ++i) sum += parts[i].v[k];
      sh.gathered[word * 3 + k] = sum;
    }
  }
}

// 16 threads have a channel: its time step, its states (one a thread) and its output.
template <class S>
__device__ void scan_channel(const Parameters& p, Shared<S>& sh, const uint8_t* tile, float h) {
  const int c = threadIdx.x / kStates, n = threadIdx.x % kStates;
  const __half* low_rank = reinterpret_cast<const __half*>(tile + p.third.dt_proj) + c * p.third.low_rank_width;
  const float* vectors = reinterpret_cast<const float*>(tile + p.third.vectors);
  const bool real = n < p.N;
  const float A = real ? vectors[p.third.A + c * p.N + n] : 0.0f;
  const float B = real ? sh.gathered[p.R + n] : 0.0f, C = real ? sh.gathered[p.R + p.N + n] : 0.0f;
  float dt = 0.0f;
  for (int r = n; r < p.R; r += kStates) dt = fmaf(__half2float(low_rank[r]), sh.gathered[r], dt);
#pragma unroll
  for (int half = kStates / 2; half > 0; half /= 2) dt += __shfl_xor_sync(~0u, dt, half);
  const float delta = softplus(dt + vectors[p.third.dt_bias + c]), x = sh.x[c];
  h = fmaf(exp2_fast(delta * kPerOctave * A), h, B * (delta * x));
  sh.states[n][c] = h;
  float sum = C * h;
#pragma unroll
  for (int half = kStates / 2; half > 0; half /= 2) sum += __shfl_xor_sync(~0u, sum, half);
  if (n == 0) sh.y[c] = fmaf(vectors[p.third.skip + c], x, sum) * sh.gate[c];
}

// Writes the next states, a row of channels to 16 threads: written in part, a sector of the cache costs
// several times as much.
template <class S>
__device__ void keep_states(const Parameters& p, const Shared<S>& sh, float* next) {
  const int n = threadIdx.x / kChannels, c = threadIdx.x % kChannels, d = blockIdx.x * kChannels + c;
  if (n < p.N && d < p.s.D) next[int64_t(n) * p.s.D + d] = sh.states[n][c];
}

// What a thread fetches of the states, a layer before they are needed.
struct Past {
  float conv[kMostTaps - 1], h;
};

// Where the state of this thread is in a slot, or -1.
__device__ int64_t state_at(const Parameters& p) {
  const int c = threadIdx.x / kStates, n = threadIdx.x % kStates, d = blockIdx.x * kChannels + c;
  return c < kChannels && d < p.s.D && n < p.N ? int64_t(n) * p.s.D + d : -1;
}

__device__ Past fetch_past(const Parameters& p, int layer, int64_t slot) {
  Past past{};
  if (layer >= p.s.layers) return past;
  const int c = threadIdx.x, d = blockIdx.x * kChannels + c;
  const float* conv = p.call.conv.state + layer * p.call.conv.layer_stride + slot * p.call.conv.slot_stride;
  const float* ssm = p.call.ssm.state + layer * p.call.ssm.layer_stride + slot * p.call.ssm.slot_stride;
#pragma unroll
  for (int k = 0; k < kMostTaps - 1; ++k)
    if (k < p.s.K - 1 && c < kChannels && d < p.s.D) past.conv[k] = conv[k * p.s.D + d];
  if (state_at(p) >= 0) past.h = ssm[state_at(p)];
  return past;
}

template <class S>
__device__ void one_layer(const Parameters& p, Shared<S>& sh, Ring& ring, int layer, int64_t slot,
                          uint32_t rank, uint32_t exchange, uint64_t policy, float (&residual)[3], Past& past) {
  const Past now = past;
  past = fetch_past(p, layer + 1, slot);
  const uint8_t *tile0 = ring.take(), *tile1 = ring.take();
  project(sh, reinterpret_cast<const float*>(tile0), tile0 + S::kModel * 4, tile1, 0, [&] {
    if (layer) barrier_wait(&sh.residual_came, (layer - 1) % 2);
    top_up<S>(p.s, ring, 2, 3 * layer - 1, 0, policy);
    if (layer == 0) return;
    if (threadIdx.x == 0) barrier_expect(&sh.residual_came, S::kModel * 4);
  });
  __syncthreads();
  const uint8_t* tile2 = ring.take();
  convolve(p, sh, tile2, layer, slot, now.conv, rsqrtf(total<S>(sh.squares) / S::kModel + p.s.eps));
  __syncthreads();
  send_projected(p, sh, tile2, rank);
  if (threadIdx.x < 32) exchange_projected(p, sh, rank, layer % 2, exchange + 1);
  __syncthreads();
  top_up<S>(p.s, ring, 1, 3 * layer + 2, 0, policy);
  float* ssm = p.call.ssm.next + layer * p.call.ssm.layer_stride + slot * p.call.ssm.slot_stride;
  if (threadIdx.x < kChannels * kStates)
    scan_channel(p, sh, tile2, now.h);
  __syncthreads();
  keep_states(p, sh, ssm);
  send_outputs(sh, tile2, rank);
  if (threadIdx.x < 32) exchange_residual<S, false>(p.s, sh, rank, layer % 2, exchange + 2, residual);
}

template <class S>
__global__ void __launch_bounds__(kThreads, 1) mamba_step(const __grid_constant__ Parameters p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  __shared__ Shared<S> sh;
  extern __shared__ __align__(128) uint8_t tiles[];
  const int64_t slot = p.call.slot ? *p.call.slot : 0;
  if (slot < 0) return;
  const uint32_t rank = cluster_rank(), before = *p.s.exchanges;
  const uint64_t policy = passing_policy();
  Ring ring{tiles, sh.full, p.s.slots};
  ring.slot_bytes = p.s.slot_bytes;
  float residual[3];
  begin(p.s, sh, ring, p.call, rank, 0, first_size(p, rank) * 4 * kRanks, false, policy, residual);
  Past past = fetch_past(p, 0, slot);
  for (int layer = 0; layer < p.s.layers; ++layer)
    one_layer(p, sh, ring, layer, slot, rank, before + 2 * layer, policy, residual, past);
  if (p.s.layers) barrier_wait(&sh.residual_came, (p.s.layers - 1) % 2);
  head(p.s, sh, ring, p.call.logits, policy);
  if (blockIdx.x == 0 && threadIdx.x == 0) *p.s.exchanges = before + 2 * p.s.layers;
  cluster_sync();  // no block leaves while another might still write to it
#endif
}

// ------------------------------------------------------------------------------------ weights

__device__ __half weight_at(const void* matrix, int64_t row, int64_t width, int64_t column) {
  return static_cast<const __half*>(matrix)[row * width + column];
}

// One layer's tiles for block blockIdx.x. Channels past D stay zero.
__global__ void pack_layer(Stack s, ThirdTile t, MambaLayer l, int layer, int d_model, int N, int R) {
  uint8_t* to = const_cast<uint8_t*>(s.packed) + (int64_t(blockIdx.x) * s.layers + layer) * s.layer_bytes;
  constexpr int n = kChannels;
  const int first = blockIdx.x * n, here = min(n, max(0, s.D - first)), width = R + 2 * N;
  for (int i = threadIdx.x; i < here * d_model; i += blockDim.x) {
    const int c = i / d_model, k = i % d_model;
    reinterpret_cast<__half*>(to + s.tile_at[0])[i] = weight_at(l.in_proj, first + c, d_model, k);
    reinterpret_cast<__half*>(to + s.tile_at[1])[i] = weight_at(l.in_proj, s.D + first + c, d_model, k);
    reinterpret_cast<__half*>(to + s.tile_at[2])[i] = weight_at(l.out_proj, k, s.D, first + c);
  }
  to += s.tile_at[2];
  for (int i = threadIdx.x; i < here * width; i += blockDim.x)
    reinterpret_cast<__half*>(to + t.x_proj)[i / width * t.proj_width + i % width] =
        weight_at(l.x_proj, i % width, s.D, first + i / width);
  for (int i = threadIdx.x; i < here * R; i += blockDim.x)
    reinterpret_cast<__half*>(to + t.dt_proj)[i / R * t.low_rank_width + i % R] =
        weight_at(l.dt_proj, first + i / R, R, i % R);
  float* vectors = reinterpret_cast<float*>(to + t.vectors);
  for (int c = threadIdx.x; c < here; c += blockDim.x) {
    for (int k = 0; k < s.K; ++k) vectors[k * n + c] = l.conv_weight[k * s.D + first + c];
    for (int i = 0; i < N; ++i) vectors[t.A + c * N + i] = l.A[i * s.D + first + c];
    vectors[t.conv_bias + c] = l.conv_bias[first + c];
    vectors[t.dt_bias + c] = l.dt_bias[first + c];
    vectors[t.skip + c] = l.skip[first + c];
  }
}

using Kernel = void (*)(Parameters);

struct Mamba {
  Memory memory;
  Parameters parameters;
  Kernel kernel = mamba_step<Shape<768>>;
  size_t shared;

  explicit Mamba(const MambaModel& m);
};

Stack stack_of(const MambaModel& m) {
  Stack s{};
  s.layers = m.layers, s.D = m.D, s.K = m.K, s.vocabulary = m.vocabulary, s.eps = m.eps;
  s.head_rows = (m.vocabulary + kBlocks - 1) / kBlocks;
  s.embedding = static_cast<const __half*>(m.embedding);
  return s;
}

Mamba::Mamba(const MambaModel& m) : parameters{stack_of(m), {}, ThirdTile(m.d_model, m.N, m.R, m.K), m.N, m.R, 0} {
  Stack& s = parameters.s;
  const ThirdTile& third = parameters.third;
  refuse_old_device();
  if (m.d_model != 768) throw Unusable{"the fused step is built for d_model 768"};
  if (m.D > kBlocks * kChannels) throw Unusable{"the fused step takes at most 1536 channels"};
  if (m.N > kStates || m.K > kMostTaps || m.K < 1 || m.R + 2 * m.N > 192)
    throw Unusable{"the fused step takes N <= 16, K <= 4 and R + 2 N <= 192"};
  lay_out(s, {kChannels * m.d_model * 2, kChannels * m.d_model * 2, third.bytes}, 0, m.d_model);
  place(kernel, s, shared);
  parameters.first_words = (parts(m.R + 2 * m.N, 3) + kRanks - 1) / kRanks;
  s.packed = memory.take<uint8_t>(size_t(kBlocks) * s.layers * s.layer_bytes);
  float* norms = memory.take<float>(size_t(s.layers + 1) * m.d_model);
  s.norms = norms;
  s.first_words = memory.take<Word>(size_t(kBlocks) * kClusters * parameters.first_words);
  s.second_words = memory.take<Word>(size_t(kBlocks) * 64);
  s.exchanges = memory.take<uint32_t>(1);
  for (int l = 0; l <= s.layers; ++l) {
    const float* norm = l < s.layers ? m.layer[l].norm : m.norm;
    check(cudaMemcpy(norms + size_t(l) * m.d_model, norm, m.d_model * 4, cudaMemcpyDeviceToDevice));
    if (l < s.layers) pack_layer<<<kBlocks, 256>>>(s, third, m.layer[l], l, m.d_model, m.N, m.R);
  }
  check(cudaDeviceSynchronize());
}

}  // namespace
}  // namespace streamssm::cuda

using namespace streamssm::cuda;

STREAMSSM_CUDA_API const char* streamssm_cuda_mamba_create(const MambaModel* model, void** handle) {
  *handle = nullptr;
  return guarded([&] { *handle = new Mamba(*model); });
}

STREAMSSM_CUDA_API const char* streamssm_cuda_mamba_step(void* handle, const StepCall* call, void* stream) {
  const Mamba& m = *static_cast<const Mamba*>(handle);
  Parameters parameters = m.parameters;
  parameters.call = *call;
  return guarded([&] {
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t config = launch_config(attributes, m.shared, cudaStream_t(stream));
    check(cudaLaunchKernelEx(&config, m.kernel, parameters));
  });
}

STREAMSSM_CUDA_API void streamssm_cuda_mamba_destroy(void* handle) { delete static_cast<Mamba*>(handle); }
