// One item through a stack of Mamba-2 blocks in one launch; see step_block.cuh for the common part.
//
// A layer has two exchanges between all blocks. First the rows B, C and dt of in_proj, which everyone
// needs: each block makes up to three of them, which travel in one word. Then the residual: the norm
// over all D gated outputs is a factor on the sum of out_proj, so its squares travel along with it.
#include "step_host.h"

namespace streamssm::cuda {
namespace {

constexpr int kWordExtra = 3;   // rows of B, C and dt of a block: what a word holds
constexpr int kMostRows = 128;  // N
constexpr int kMostStates = kMostRows * kChannels / 4 / kThreads;  // times four, of a thread

// The vectors behind out_proj in the third tile, in floats.
struct Vectors {
  int conv_bias, skip, A, gate_norm, extra_weight, extra_bias, count;  // conv_weight [K][channels] is at 0

  __host__ __device__ explicit Vectors(int K) {
    constexpr int channels = kChannels;
    conv_bias = K * channels, skip = conv_bias + channels, A = skip + channels, gate_norm = A + channels;
    extra_weight = gate_norm + channels, extra_bias = extra_weight + K * 4, count = extra_bias + 4;
  }
};

struct Parameters {
  Stack s;
  StepCall call;
  Vectors v;
  int H, P, G, N;
  float dt_least, dt_most;

  __host__ __device__ int extra() const { return 2 * G * N + H; }
};

// The rows of B, C and dt that block `block` makes.
struct Extra {
  int first, count;

  __host__ __device__ Extra(int all, int block) {
    const int each = all / kBlocks, more = all % kBlocks;
    first = block * each + (block < more ? block : more);
    count = each + (block < more);
  }
};

template <class To>
__device__ void keep_taps(const Parameters& p, To* next, int64_t stride, const float (&past)[kMostTaps - 1],
                          float now) {
#pragma unroll
  for (int k = 0; k < kMostTaps - 1; ++k)
    if (k < p.s.K - 1) next[k * stride] = k + 1 < p.s.K - 1 ? past[k + 1] : now;
}

__device__ float convolved(const Parameters& p, const float* weight, int stride, float bias,
                           const float (&past)[kMostTaps - 1], float now) {
#pragma unroll
  for (int k = 0; k < kMostTaps - 1; ++k)
    if (k < p.s.K - 1) bias = fmaf(weight[k * stride], past[k], bias);
  return silu(fmaf(weight[(p.s.K - 1) * stride], now, bias));
}

// Warp 2, one row a lane: the conv for B and C, the time step for dt; then one word for everyone.
template <class S>
__device__ void publish_extra(const Parameters& p, Shared<S>& sh, const float* vectors, int layer,
                              int64_t slot, const float (&past)[kMostTaps - 1], float scale, uint32_t exchange) {
  const int lane = threadIdx.x % 32;
  const Extra extra(p.extra(), blockIdx.x);
  float v = 0.0f;
  if (lane < extra.count) {
    const float now = total<S>(sh.partial[2 * kChannels + lane]) * scale;
    const float bias = vectors[p.v.extra_bias + lane];
    if (extra.first + lane < 2 * p.G * p.N) {
      v = convolved(p, vectors + p.v.extra_weight + lane, 4, bias, past, now);
      float* next = p.call.conv.next + layer * p.call.conv.layer_stride + slot * p.call.conv.slot_stride;
      keep_taps(p, next + p.s.D + extra.first + lane, p.s.D + 2 * p.G * p.N, past, now);
    } else {
      v = fminf(fmaxf(softplus(now + bias), p.dt_least), p.dt_most);
    }
  }
  const float b = __shfl_sync(~0u, v, 1), c = __shfl_sync(~0u, v, 2);
  v = __shfl_sync(~0u, v, 0);
  if (lane < kClusters && extra.count) publish(p.s.first_words + lane * kBlocks + blockIdx.x, v, b, c, exchange);
}

// Between the two exchanges of in_proj's rows: conv, gate, and what is for all.
template <class S>
__device__ void after_projection(const Parameters& p, Shared<S>& sh, const float* vectors, int layer,
                                 int64_t slot, const float (&past)[kMostTaps - 1], uint32_t exchange) {
  const int warp = threadIdx.x / 32, c = threadIdx.x % 32, n = kChannels, d = blockIdx.x * n + c;
  const float scale = rsqrtf(total<S>(sh.squares) / S::kModel + p.s.eps);
  if (warp == 0 && c < n) {
    const float now = total<S>(sh.partial[kChannels + c]) * scale;
    sh.x[c] = convolved(p, vectors + c, n, vectors[p.v.conv_bias + c], past, now);
    float* next = p.call.conv.next + layer * p.call.conv.layer_stride + slot * p.call.conv.slot_stride;
    if (d < p.s.D) keep_taps(p, next + d, p.s.D + 2 * p.G * p.N, past, now);
  } else if (warp == 1 && c < n) {
    sh.gate[c] = silu(total<S>(sh.partial[c]) * scale);
  } else if (warp == 2) {
    publish_extra(p, sh, vectors, layer, slot, past, scale, exchange);
  } else if (warp >= 4 && threadIdx.x - 128 < kBlocks) {
    const Extra theirs(p.extra(), threadIdx.x - 128);
    Word word[1];
    const Word* words = p.s.first_words + blockIdx.x / kRanks * kBlocks;
    collect(words + threadIdx.x - 128, 0, exchange, word);
#pragma unroll
    for (int k = 0; k < kWordExtra; ++k)
      if (k < theirs.count) sh.gathered[theirs.first + k] = word[0].v[k];
  }
}

// State number i of a thread: row n of four neighbouring channels. Four threads have the block's part of a
// row, 64 bytes, so that whole sectors of the cache are written.
struct Quad {
  int channel, n, head;
  int64_t at;  // in the slot, negative: none

  __device__ Quad(const Parameters& p, int i) {
    const int index = threadIdx.x + i * kThreads;
    channel = index % (kChannels / 4) * 4, n = index / (kChannels / 4);
    const int d = blockIdx.x * kChannels + channel;
    head = d / p.P;
    at = n < p.N && d < p.s.D ? (int64_t(head) * p.N + n) * p.P + d % p.P : -1;
  }
};

struct Past {
  float conv[kMostTaps - 1];
  float4 h[kMostStates];
};

__device__ Past fetch_past(const Parameters& p, int layer, int64_t slot) {
  Past past{};
  if (layer >= p.s.layers) return past;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, width = p.s.D + 2 * p.G * p.N;
  const Extra extra(p.extra(), blockIdx.x);
  int d = -1;
  if (warp == 0 && lane < kChannels) d = blockIdx.x * kChannels + lane;
  if (warp == 2 && lane < extra.count) d = p.s.D + extra.first + lane;
  if (d >= (warp == 0 ? p.s.D : width)) d = -1;
  const float* conv = p.call.conv.state + layer * p.call.conv.layer_stride + slot * p.call.conv.slot_stride;
  const float* ssm = p.call.ssm.state + layer * p.call.ssm.layer_stride + slot * p.call.ssm.slot_stride;
#pragma unroll
  for (int k = 0; k < kMostTaps - 1; ++k)
    if (k < p.s.K - 1 && d >= 0) past.conv[k] = conv[int64_t(k) * width + d];
#pragma unroll
  for (int i = 0; i < kMostStates; ++i) {
    const Quad quad(p, i);
    if (quad.at >= 0) past.h[i] = *reinterpret_cast<const float4*>(ssm + quad.at);
  }
  return past;
}

// Over the threads of a warp whose numbers differ by multiples of `least`.
template <int least = 1>
__device__ float warp_sum(float v) {
#pragma unroll
  for (int half = 16; half >= least; half /= 2) v += __shfl_xor_sync(~0u, v, half);
  return v;
}

// A warp has 8 rows n: the states and the sums of their outputs.
template <class S>
__device__ void update_states(const Parameters& p, Shared<S>& sh, const float* vectors, Past& past,
                              float* ssm) {
#pragma unroll
  for (int i = 0; i < kMostStates; ++i) {
    const Quad quad(p, i);
    float4 h = past.h[i], sum{};
    if (quad.at >= 0) {
      const int group = quad.head / (p.H / p.G);
      const float dt = sh.gathered[2 * p.G * p.N + quad.head];
      const float decay = exp2_fast(dt * kPerOctave * vectors[p.v.A + quad.channel]);
      const float B = dt * sh.gathered[group * p.N + quad.n], C = sh.gathered[(p.G + group) * p.N + quad.n];
      const float4 x = *reinterpret_cast<const float4*>(sh.x + quad.channel);
      h = {fmaf(decay, h.x, B * x.x), fmaf(decay, h.y, B * x.y), fmaf(decay, h.z, B * x.z), fmaf(decay, h.w, B * x.w)};
      __stcg(reinterpret_cast<float4*>(ssm + quad.at), h);  // split in four, stores cost 3 us a layer
      sum = {C * h.x, C * h.y, C * h.z, C * h.w};
    }
    sum = {warp_sum<4>(sum.x), warp_sum<4>(sum.y), warp_sum<4>(sum.z), warp_sum<4>(sum.w)};
    if (threadIdx.x % 32 < 4 && quad.n < p.N) *reinterpret_cast<float4*>(&sh.sums[quad.n / 8][quad.channel]) = sum;
  }
}

// Warp 0, a channel a lane: outputs, gated and weighted; their squares go to the cluster's first rank.
template <class S>
__device__ void gate_outputs(const Parameters& p, Shared<S>& sh, const float* vectors, uint32_t rank) {
  const int c = threadIdx.x;
  float gated = 0.0f;
  if (c < kChannels) {
    float y = vectors[p.v.skip + c] * sh.x[c];
    for (int i = 0; i < p.N / 8; ++i) y += sh.sums[i][c];
    gated = y * sh.gate[c];
    sh.y[c] = gated * vectors[p.v.gate_norm + c];
  }
  const float squares = warp_sum(gated * gated);
  if (c == 0)
    send(in_block(shared_address(&sh.square_parts[rank]), 0), squares, in_block(shared_address(&sh.second_came), 0));
}

template <class S>
__device__ void one_layer(const Parameters& p, Shared<S>& sh, Ring& ring, int layer, int64_t slot,
                          uint32_t rank, uint32_t exchange, uint64_t policy, float (&residual)[3], Past& past) {
  Past now = past;
  past = fetch_past(p, layer + 1, slot);
  const int n = kChannels, extra = Extra(p.extra(), blockIdx.x).count;
  const uint8_t *tile0 = ring.take(), *tile1 = ring.take();
  project(sh, reinterpret_cast<const float*>(tile0), tile0 + S::kModel * 4, tile1, extra, [&] {
    if (layer) barrier_wait(&sh.residual_came, (layer - 1) % 2);
    top_up<S>(p.s, ring, 2, 3 * layer - 1, extra, policy);
    if (layer == 0) return;
    if (threadIdx.x == 0) barrier_expect(&sh.residual_came, S::kModel * 4);
  });
  __syncthreads();
  const uint8_t* tile2 = ring.take();
  const float* vectors = reinterpret_cast<const float*>(tile2 + n * S::kModel * 2);
  after_projection(p, sh, vectors, layer, slot, now.conv, exchange + 1);
  __syncthreads();
  top_up<S>(p.s, ring, 1, 3 * layer + 2, extra, policy);
  update_states(p, sh, vectors, now, p.call.ssm.next + layer * p.call.ssm.layer_stride + slot * p.call.ssm.slot_stride);
  __syncthreads();
  if (threadIdx.x < 32) gate_outputs(p, sh, vectors, rank);
  __syncthreads();
  send_outputs(sh, tile2, rank);
  if (threadIdx.x < 32) exchange_residual<S, true>(p.s, sh, rank, layer % 2, exchange + 2, residual);
}

template <class S>
__global__ void __launch_bounds__(kThreads, 1) mamba2_step(const __grid_constant__ Parameters p) {
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
  begin(p.s, sh, ring, p.call, rank, Extra(p.extra(), blockIdx.x).count, 0, true, policy, residual);
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

// One layer's tiles for block blockIdx.x. Channels past D stay zero.
__global__ void pack_layer(Parameters p, Mamba2Layer l, int layer, int d_model) {
  const Stack& s = p.s;
  uint8_t* to = const_cast<uint8_t*>(s.packed) + (int64_t(blockIdx.x) * s.layers + layer) * s.layer_bytes;
  const int n = kChannels, first = blockIdx.x * n, here = min(n, max(0, s.D - first)), width = s.D + 2 * p.G * p.N;
  const Extra extra(p.extra(), blockIdx.x);
  const __half *in_proj = static_cast<const __half*>(l.in_proj), *out_proj = static_cast<const __half*>(l.out_proj);
  __half* tile[3];
  for (int i = 0; i < 3; ++i) tile[i] = reinterpret_cast<__half*>(to + s.tile_at[i]);
  for (int64_t i = threadIdx.x; i < here * d_model; i += blockDim.x) {
    tile[0][i] = in_proj[int64_t(first) * d_model + i];
    tile[1][i] = in_proj[int64_t(s.D + first) * d_model + i];
    tile[2][i] = out_proj[i % d_model * s.D + first + i / d_model];
  }
  for (int64_t i = threadIdx.x; i < extra.count * d_model; i += blockDim.x)
    tile[1][n * d_model + i] = in_proj[int64_t(2 * s.D + extra.first) * d_model + i];
  float* vectors = reinterpret_cast<float*>(tile[2] + n * d_model);
  for (int c = threadIdx.x; c < here; c += blockDim.x) {
    for (int k = 0; k < s.K; ++k) vectors[k * n + c] = l.conv_weight[k * width + first + c];
    vectors[p.v.conv_bias + c] = l.conv_bias[first + c];
    vectors[p.v.skip + c] = l.skip[first + c];
    vectors[p.v.A + c] = l.A[(first + c) / p.P];
    vectors[p.v.gate_norm + c] = l.gate_norm[first + c];
  }
  for (int i = threadIdx.x; i < extra.count; i += blockDim.x) {
    const int row = extra.first + i, time = row - 2 * p.G * p.N;
    for (int k = 0; time < 0 && k < s.K; ++k) vectors[p.v.extra_weight + k * 4 + i] = l.conv_weight[k * width + s.D + row];
    vectors[p.v.extra_bias + i] = time < 0 ? l.conv_bias[s.D + row] : l.dt_bias[time];
  }
}

using Kernel = void (*)(Parameters);

Parameters parameters_of(const Mamba2Model& m) {
  Stack s{};
  s.layers = m.layers, s.D = m.H * m.P, s.K = m.K, s.vocabulary = m.vocabulary, s.eps = m.eps;
  s.head_rows = (m.vocabulary + kBlocks - 1) / kBlocks;
  s.embedding = static_cast<const __half*>(m.embedding);
  return {s, {}, Vectors(m.K), m.H, m.P, m.G, m.N, m.dt_least, m.dt_most};
}

void refuse(const Mamba2Model& m, const Parameters& p) {
  refuse_old_device();
  if (m.d_model != 768) throw Unusable{"the fused Mamba-2 step is built for d_model 768"};
  if (p.s.D > kBlocks * kChannels) throw Unusable{"the fused Mamba-2 step takes at most 1536 channels"};
  if (m.K > kMostTaps || m.K < 1) throw Unusable{"the fused step takes a convolution of at most 4 taps"};
  // below one row a block, a block could run ahead of another that nobody awaits
  if (p.extra() > kWordExtra * kBlocks || p.extra() < kBlocks)
    throw Unusable{"the fused Mamba-2 step takes 2 G N + H of 96 to 288"};
  if (m.P % 4 || m.N % 8 || m.N > kMostRows)
    throw Unusable{"the fused Mamba-2 step takes P in steps of 4 and N in steps of 8, up to 128"};
}

struct Mamba2 {
  Memory memory;
  Parameters parameters;
  Kernel kernel = mamba2_step<Shape<768>>;
  size_t shared;

  explicit Mamba2(const Mamba2Model& m) : parameters(parameters_of(m)) {
    refuse(m, parameters);
    Stack& s = parameters.s;
    const int rows = kChannels * m.d_model * 2;
    lay_out(s, {rows, rows, rows + parameters.v.count * 4}, kWordExtra, m.d_model);
    place(kernel, s, shared);
    s.packed = memory.take<uint8_t>(size_t(kBlocks) * s.layers * s.layer_bytes);
    float* norms = memory.take<float>(size_t(s.layers + 1) * m.d_model);
    s.norms = norms;
    s.first_words = memory.take<Word>(size_t(kBlocks) * kClusters);
    s.second_words = memory.take<Word>(size_t(kBlocks) * 64);
    s.square_words = memory.take<Word>(kBlocks);
    s.exchanges = memory.take<uint32_t>(1);
    for (int l = 0; l <= s.layers; ++l) {
      const float* norm = l < s.layers ? m.layer[l].norm : m.norm;
      check(cudaMemcpy(norms + size_t(l) * m.d_model, norm, m.d_model * 4, cudaMemcpyDeviceToDevice));
      if (l < s.layers) pack_layer<<<kBlocks, 256>>>(parameters, m.layer[l], l, m.d_model);
    }
    check(cudaDeviceSynchronize());
  }
};

}  // namespace
}  // namespace streamssm::cuda

using namespace streamssm::cuda;

STREAMSSM_CUDA_API const char* streamssm_cuda_mamba2_create(const Mamba2Model* model, void** handle) {
  *handle = nullptr;
  return guarded([&] { *handle = new Mamba2(*model); });
}

STREAMSSM_CUDA_API const char* streamssm_cuda_mamba2_step(void* handle, const StepCall* call, void* stream) {
  const Mamba2& m = *static_cast<const Mamba2*>(handle);
  Parameters parameters = m.parameters;
  parameters.call = *call;
  return guarded([&] {
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t config = launch_config(attributes, m.shared, cudaStream_t(stream));
    check(cudaLaunchKernelEx(&config, m.kernel, parameters));
  });
}

STREAMSSM_CUDA_API void streamssm_cuda_mamba2_destroy(void* handle) { delete static_cast<Mamba2*>(handle); }
