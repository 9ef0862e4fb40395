// SlidingWindowAttention: softmax over the last W items, this one included, rotary by distance.
//
//     score_j = scale <q, R_-age k_j>     y = sum_j exp(score_j - max) v_j / sum_j exp(score_j - max)
//
// A block takes one item and one key head with all its query heads: the items before the call come from
// the ring, those of the call from k and v, so all items go at once. The ring is written by a second
// kernel: in place, blocks of the first might still be reading it. Keys are taken from the oldest on, in
// chunks, with the maximum carried along (Milakov & Gimelshein 2018): where a call began changes no bit.
#include "launch.h"

namespace streamssm::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kKeys = 128;           // of a chunk
constexpr float kLargest = 3.4e38f;  // bounds the scores: infinities would subtract to NaN
constexpr size_t kMostShared = 200 << 10;

__device__ inline float warp_sum(float v) {
#pragma unroll
  for (int half = 16; half > 0; half /= 2) v += __shfl_xor_sync(~0u, v, half);
  return v;
}

__device__ inline float warp_max(float v) {
#pragma unroll
  for (int half = 16; half > 0; half /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, half));
  return v;
}

// Where the keys and values of one head of one row are.
template <class Data>
struct Past {
  const Data *k, *v;         // item 0 of the call
  const float *key, *value;  // slot 0 of the ring
  int64_t seen, stride;      // items before the call; elements from one item of k to the next

  __device__ float at(const Data* fresh, const float* ring, const AttentionCall& c, int64_t item, int64_t d) const {
    return item >= seen ? widen(fresh[(item - seen) * stride + d]) : ring[item % c.W * c.dh + d];
  }
  __device__ float key_at(const AttentionCall& c, int64_t i, int64_t d) const { return at(k, key, c, i, d); }
  __device__ float value_at(const AttentionCall& c, int64_t i, int64_t d) const { return at(v, value, c, i, d); }
};

// Of the queries of a block: [per] heads.
struct Heads {
  int per;
  float *q, *sum;                 // [per, dh]
  float *score;                   // [per, kKeys]
  float *largest, *total, *keep;  // [per]
};

// A warp takes a key: turned once, multiplied with every query.
template <class Data>
__device__ void score_keys(const AttentionCall& c, const Past<Data>& past, const Heads& h, int64_t first,
                           int64_t newest, int count) {
  const int lane = threadIdx.x % 32;
  for (int j = threadIdx.x / 32; j < count; j += kWarps) {
    const int64_t i = first + j, age = newest - i;
    for (int head = 0; head < h.per; ++head) {
      const float* q = h.q + head * c.dh;
      float sum = 0.0f;
      for (int64_t d = lane; d < c.half; d += 32) {
        const float cosine = c.cosine[age * c.half + d], sine = c.sine[age * c.half + d];
        const float k1 = past.key_at(c, i, d), k2 = past.key_at(c, i, c.half + d);
        sum = fmaf(q[d], fmaf(k2, sine, k1 * cosine), sum);
        sum = fmaf(q[c.half + d], fmaf(k2, cosine, -(k1 * sine)), sum);
      }
      for (int64_t d = 2 * c.half + lane; d < c.dh; d += 32) sum = fmaf(q[d], past.key_at(c, i, d), sum);
      sum = warp_sum(sum) * c.scale;
      if (lane == 0) h.score[head * kKeys + j] = fminf(kLargest, fmaxf(-kLargest, sum));
    }
  }
}

// A warp takes a query head: scores become exp(score - largest).
__device__ inline void weigh(const Heads& h, int count) {
  const int lane = threadIdx.x % 32;
  for (int head = threadIdx.x / 32; head < h.per; head += kWarps) {
    float *score = h.score + head * kKeys, top = h.largest[head], sum = 0.0f;
    for (int j = lane; j < count; j += 32) top = fmaxf(top, score[j]);
    top = warp_max(top);
    for (int j = lane; j < count; j += 32) {
      score[j] = exp_fast(score[j] - top);
      sum += score[j];
    }
    sum = warp_sum(sum);
    __syncwarp();
    if (lane == 0) {
      h.keep[head] = exp_fast(h.largest[head] - top);
      h.total[head] = fmaf(h.total[head], h.keep[head], sum);
      h.largest[head] = top;
    }
  }
}

template <class Data>
__device__ void add_values(const AttentionCall& c, const Past<Data>& past, const Heads& h, int64_t first, int count) {
  for (int64_t e = threadIdx.x; e < h.per * c.dh; e += kThreads) {
    const int64_t head = e / c.dh, d = e % c.dh;
    const float* weight = h.score + head * kKeys;
    float sum = h.sum[e] * h.keep[head];
#pragma unroll 8
    for (int j = 0; j < count; ++j) sum = fmaf(weight[j], past.value_at(c, first + j, d), sum);
    h.sum[e] = sum;
  }
}

template <class Data>
__global__ void __launch_bounds__(kThreads) attend(AttentionCall c) {
  extern __shared__ float shared[];
  const int64_t t = blockIdx.x, b = blockIdx.y, kv = blockIdx.z, per = c.Hq / c.Hkv;
  const Row row = row_of(c.rows, b);
  Data* y = static_cast<Data*>(c.y) + ((b * c.rows.T + t) * c.Hq + kv * per) * c.dh;
  if (t >= row.items) {
    for (int64_t e = threadIdx.x; e < per * c.dh; e += kThreads) y[e] = zero<Data>();
    return;
  }
  Heads h{int(per), shared, shared + per * c.dh, shared + 2 * per * c.dh};
  h.largest = h.score + per * kKeys, h.total = h.largest + per, h.keep = h.total + per;
  const int64_t fresh = (b * c.rows.T * c.Hkv + kv) * c.dh, ring = (row.slot * c.Hkv + kv) * c.W * c.dh;
  const Past<Data> past{static_cast<const Data*>(c.k) + fresh, static_cast<const Data*>(c.v) + fresh, c.key + ring,
                        c.value + ring, c.position[row.slot], c.Hkv * c.dh};
  const Data* q = static_cast<const Data*>(c.q) + ((b * c.rows.T + t) * c.Hq + kv * per) * c.dh;
  for (int64_t e = threadIdx.x; e < per * c.dh; e += kThreads) h.q[e] = widen(q[e]), h.sum[e] = 0.0f;
  for (int64_t e = threadIdx.x; e < per; e += kThreads) h.largest[e] = -kLargest, h.total[e] = 0.0f;
  __syncthreads();
  const int64_t newest = past.seen + t, oldest = max(int64_t(0), newest - c.W + 1);
  for (int64_t first = oldest; first <= newest; first += kKeys) {
    const int count = int(min(newest - first + 1, int64_t(kKeys)));
    score_keys(c, past, h, first, newest, count);
    __syncthreads();
    weigh(h, count);
    __syncthreads();
    add_values(c, past, h, first, count);
    __syncthreads();
  }
  for (int64_t e = threadIdx.x; e < per * c.dh; e += kThreads) narrow(h.sum[e] / h.total[e / c.dh], y + e);
}

// One slot of the ring: the newest item of the call that belongs there, or what it held.
template <class Data>
__global__ void __launch_bounds__(kThreads) keep_ring(AttentionCall c) {
  const int64_t b = blockIdx.y, kv = blockIdx.z, e = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const Row row = row_of(c.rows, b);
  if (e >= c.W * c.dh || row.slot < 0) return;
  const int64_t slot = e / c.dh, d = e % c.dh, seen = c.position[row.slot];
  const int64_t at = (row.slot * c.Hkv + kv) * c.W * c.dh + e;
  const int64_t end = seen + row.items, behind = (end - 1 - slot) % c.W;  // from the last item back to this slot's
  const int64_t item = end - 1 - behind;
  if (row.items && slot < end && item >= seen) {
    const int64_t from = ((b * c.rows.T + item - seen) * c.Hkv + kv) * c.dh + d;
    c.next_key[at] = widen(static_cast<const Data*>(c.k)[from]);
    c.next_value[at] = widen(static_cast<const Data*>(c.v)[from]);
  } else if (c.key != c.next_key || c.value != c.next_value) {
    c.next_key[at] = c.key[at];
    c.next_value[at] = c.value[at];
  }
}

// After all others, which read the positions.
__global__ void count_items(AttentionCall c) {
  const int64_t b = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (b >= c.rows.B) return;
  const Row row = row_of(c.rows, b);
  if (row.slot >= 0) c.next_position[row.slot] = c.position[row.slot] + row.items;
}

__global__ void rotation(const float* inv_freq, int64_t half, int64_t W, float* cosine, float* sine) {
  const int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= half * W) return;
  double s, c;  // float32 angles lose 1e-5 at W = 1000
  sincos(double(e / half) * double(inv_freq[e % half]), &s, &c);
  cosine[e] = float(c);
  sine[e] = float(s);
}

template <class Data>
const char* launch(const AttentionCall& c, cudaStream_t stream) {
  const unsigned B = unsigned(c.rows.B), Hkv = unsigned(c.Hkv);
  const int64_t per = c.Hq / c.Hkv;
  const size_t shared = size_t(2 * per * c.dh + per * kKeys + 3 * per) * sizeof(float);
  if (shared > kMostShared) return "too many query heads share a key head";
  if (shared > (48 << 10)) cudaFuncSetAttribute(attend<Data>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
  if (c.rows.T && c.dh) attend<Data><<<dim3(unsigned(c.rows.T), B, Hkv), kThreads, shared, stream>>>(c);
  if (c.dh) keep_ring<Data><<<dim3(parts(c.W * c.dh, kThreads), B, Hkv), kThreads, 0, stream>>>(c);
  count_items<<<parts(B, kThreads), kThreads, 0, stream>>>(c);
  return nullptr;
}

}  // namespace
}  // namespace streamssm::cuda

using namespace streamssm::cuda;

STREAMSSM_CUDA_API const char* streamssm_cuda_sliding_window_attention(const AttentionCall* call, void* stream) {
  if (const char* reason = refuse(call->rows)) return reason;
  if (call->Hkv < 1 || call->Hq % call->Hkv) return "the query heads must be a multiple of the key heads";
  if (call->W < 1 || call->dh < 0 || 2 * call->half > call->dh) return "W, dh or the rotary dimensions are off";
  if (call->rows.B > 65535 || call->Hkv > 65535) return "a call takes at most 65,535 rows and key heads";
  if (call->rows.B == 0) return nullptr;
  const char* reason = nullptr;
  const char* failed = for_type(
      call->type, [&](auto data) { reason = launch<decltype(data)>(*call, cudaStream_t(stream)); });
  return reason ? reason : failed;
}

STREAMSSM_CUDA_API const char* streamssm_cuda_rotation(const float* inv_freq, int64_t half, int64_t W, float* cosine,
                                                       float* sine, void* stream) {
  if (half * W == 0) return nullptr;
  rotation<<<parts(half * W, kThreads), kThreads, 0, cudaStream_t(stream)>>>(inv_freq, half, W, cosine, sine);
  return outcome();
}
