// SlidingWindowAttention: softmax over the last W items, this one included, rotary by distance.
//
//     score_j = scale <q, R_-age k_j>     y = sum_j exp(score_j - max) v_j / sum_j exp(score_j - max)
//
// Keys lie un-rotated in the ring and are turned by their age, from a table: exact at any position.
// Items are taken one by one, each written into the ring and then attending to it, so that the ring
// may be updated in place and T changes nothing. The visible items are taken from the oldest on, in
// blocks of kBlock; the maximum is carried from block to block (Milakov & Gimelshein 2018).
//
// Several query heads of one key head are taken together: a key is loaded and turned once.
#pragma once

#include "denormals.h"
#include "kernels.h"
#include "lane_sums.h"
#include "simd.h"

namespace streamssm::STREAMSSM_ISA {

constexpr int64_t kBlock = 64;       // keys: a multiple of kLanes
constexpr int kHeads = 4;            // query heads taken together, at most
constexpr float kLargest = 3.4e38f;  // bounds the scores: infinities would subtract to NaN
// Keys taken together in a product: 2 where the machine has 16 registers, 4 where 32.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int kTogether = 2;
#else
constexpr int kTogether = 4;
#endif

struct AttendArguments {
  int64_t dh, half, W;  // half = R / 2
  const float *q, *cosine, *sine, *keys, *values;
  float* y;  // the sum of the weighted values so far; heads are dh apart, as in q
  float scale;
};

// Keys of the ring: `count` of them from slot `first` on, the first one `age` items old.
struct Keys {
  int64_t first, age, count;
};

// Carried from block to block for each head.
struct Softmax {
  float largest, total;  // score; sum of exp(score - largest)
  float keep;            // factor for what was summed before the last block
};

// out[h * kLanes + i] = the lanes of <q_h, R_-(age - i) k[i]> for kKeys keys, a query loaded once for all.
template <int kQueries, int kKeys, bool kWhole>
inline void dot_keys(const AttendArguments& a, const float* const* k, int64_t age, Vec* out) {
  const auto get = [](const float* p, int64_t count) { return in_register(load_lanes<kWhole>(p, count)); };
  const float *cosine = a.cosine + age * a.half, *sine = a.sine + age * a.half;
  Vec sum[kQueries][kKeys];
  STREAMSSM_UNROLL for (int h = 0; h < kQueries; ++h)
    STREAMSSM_UNROLL for (int i = 0; i < kKeys; ++i) sum[h][i] = Vec{};
  for (int64_t d = 0; d < a.half; d += kLanes) {
    const int64_t count = a.half - d < kLanes ? a.half - d : kLanes;
    Vec first[kKeys], second[kKeys];
    STREAMSSM_UNROLL for (int i = 0; i < kKeys; ++i) {
      const Vec c = get(cosine - i * a.half + d, count), s = get(sine - i * a.half + d, count);
      const Vec k1 = get(k[i] + d, count), k2 = get(k[i] + a.half + d, count);
      first[i] = fma(k2, s, k1 * c);
      second[i] = fma(k2, c, -(k1 * s));
    }
    STREAMSSM_UNROLL for (int h = 0; h < kQueries; ++h) {
      const float* q = a.q + h * a.dh + d;
      const Vec q1 = get(q, count), q2 = get(q + a.half, count);
      STREAMSSM_UNROLL for (int i = 0; i < kKeys; ++i) sum[h][i] = fma(q1, first[i], sum[h][i]);
      STREAMSSM_UNROLL for (int i = 0; i < kKeys; ++i) sum[h][i] = fma(q2, second[i], sum[h][i]);
    }
  }
  for (int64_t d = 2 * a.half; d < a.dh; d += kLanes) {
    const int64_t count = a.dh - d < kLanes ? a.dh - d : kLanes;
    Vec plain[kKeys];
    STREAMSSM_UNROLL for (int i = 0; i < kKeys; ++i) plain[i] = get(k[i] + d, count);
    STREAMSSM_UNROLL for (int h = 0; h < kQueries; ++h) {
      const Vec q = get(a.q + h * a.dh + d, count);
      STREAMSSM_UNROLL for (int i = 0; i < kKeys; ++i) sum[h][i] = fma(q, plain[i], sum[h][i]);
    }
  }
  STREAMSSM_UNROLL for (int h = 0; h < kQueries; ++h)
    STREAMSSM_UNROLL for (int i = 0; i < kKeys; ++i) out[h * kLanes + i] = sum[h][i];
}

// The products of up to kLanes keys from `next` on, which moves on, the first one `age` items old.
template <int kQueries, bool kWhole>
inline void dot_lanes(const AttendArguments& a, const float*& next, int64_t age, int64_t count, Vec* out) {
  const float *k[kTogether], *end = a.keys + a.W * a.dh;
  for (int64_t i = 0; i < count;) {
    const int64_t together = count - i < kTogether ? 1 : kTogether;
    for (int64_t n = 0; n < together; ++n) {
      k[n] = next;
      next = next + a.dh == end ? a.keys : next + a.dh;
    }
    if (together == kTogether) {
      dot_keys<kQueries, kTogether, kWhole>(a, k, age - i, out + i);
    } else {
      dot_keys<kQueries, 1, kWhole>(a, k, age - i, out + i);
    }
    i += together;
  }
  for (int h = 0; h < kQueries; ++h)
    for (int64_t i = count; i < kLanes; ++i) out[h * kLanes + i] = Vec{};
}

// The scores of a block of keys; of lanes past the last key, minus infinity.
template <int kQueries, bool kWhole>
inline void score_block(const AttendArguments& a, const Keys& keys, Vec (*score)[kBlock / kLanes]) {
  Vec products[kQueries * kLanes];
  const float* next = a.keys + keys.first * a.dh;
  for (int64_t j = 0; j < keys.count; j += kLanes) {
    const int64_t count = keys.count - j < kLanes ? keys.count - j : kLanes;
    dot_lanes<kQueries, kWhole>(a, next, keys.age - j, count, products);
    for (int h = 0; h < kQueries; ++h) {
      const Vec scaled = lane_sums<kLanes / 2>(products + h * kLanes) * a.scale;
      const Vec bounded = min(splat(kLargest), max(splat(-kLargest), scaled));
      score[h][j / kLanes] = first_or(bounded, count, -__builtin_inff());
    }
  }
}

// Scores become exp(score - largest).
inline void weigh(Vec* score, int64_t keys, Softmax& softmax) {
  const int64_t registers = (keys + kLanes - 1) / kLanes;
  Vec top = splat(-kLargest);
  for (int64_t i = 0; i < registers; ++i) top = max(score[i], top);
  float lanes[kLanes], largest = softmax.largest;
  store(lanes, top);
  for (int i = 0; i < kLanes; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  Vec sums{};
  for (int64_t i = 0; i < registers; ++i) {
    score[i] = exp(score[i] - largest);
    sums += score[i];
  }
  softmax.keep = exp(splat(softmax.largest - largest))[0];
  softmax.total = __builtin_fmaf(softmax.total, softmax.keep, sum(sums));
  softmax.largest = largest;
}

// y[d ...] = keep y[d ...] + sum_j weight_j v_j[d ...] over the block, kColumns registers of dims.
template <int kQueries, int kColumns, bool kWhole>
inline void add_values(const AttendArguments& a, const Keys& keys, const float (*weight)[kBlock],
                       const Softmax* softmax, int64_t d, int64_t count) {
  Vec sum[kQueries][kColumns];
  for (int h = 0; h < kQueries; ++h)
    for (int c = 0; c < kColumns; ++c)
      sum[h][c] = load_lanes<kWhole>(a.y + h * a.dh + d + c * kLanes, count) * softmax[h].keep;
  int64_t slot = keys.first;
  for (int64_t j = 0; j < keys.count; ++j) {
    const float* v = a.values + slot * a.dh + d;
    Vec value[kColumns];
    for (int c = 0; c < kColumns; ++c) value[c] = load_lanes<kWhole>(v + c * kLanes, count);
    for (int h = 0; h < kQueries; ++h)
      for (int c = 0; c < kColumns; ++c) sum[h][c] = fma(splat(weight[h][j]), value[c], sum[h][c]);
    slot = slot + 1 == a.W ? 0 : slot + 1;
  }
  for (int h = 0; h < kQueries; ++h)
    for (int c = 0; c < kColumns; ++c) store_lanes<kWhole>(a.y + h * a.dh + d + c * kLanes, sum[h][c], count);
}

template <int kQueries, bool kWhole>
inline void attend_block(const AttendArguments& a, const Keys& keys, Softmax* softmax) {
  Vec score[kQueries][kBlock / kLanes];
  float weight[kQueries][kBlock];
  score_block<kQueries, kWhole>(a, keys, score);
  for (int h = 0; h < kQueries; ++h) {
    weigh(score[h], keys.count, softmax[h]);
    for (int64_t j = 0; j < keys.count; j += kLanes) store(weight[h] + j, score[h][j / kLanes]);
  }
  int64_t d = 0;
  for (; d + 4 * kLanes <= a.dh; d += 4 * kLanes)
    add_values<kQueries, 4, true>(a, keys, weight, softmax, d, kLanes);
  for (; d + 2 * kLanes <= a.dh; d += 2 * kLanes)
    add_values<kQueries, 2, true>(a, keys, weight, softmax, d, kLanes);
  for (; d + kLanes <= a.dh; d += kLanes) add_values<kQueries, 1, true>(a, keys, weight, softmax, d, kLanes);
  if (d < a.dh) add_values<kQueries, 1, false>(a, keys, weight, softmax, d, a.dh - d);
}

// kQueries heads over the `visible` items that end in ring slot `newest`.
template <int kQueries, bool kWhole>
inline void attend_heads(const AttendArguments& a, int64_t newest, int64_t visible) {
  Softmax softmax[kQueries];
  for (Softmax& one : softmax) one = {-kLargest, 0.0f, 0.0f};
  for (int64_t i = 0; i < kQueries * a.dh; ++i) a.y[i] = 0.0f;
  for (int64_t age = visible - 1; age >= 0; age -= kBlock) {
    const int64_t slot = newest - age, count = age + 1 < kBlock ? age + 1 : kBlock;
    attend_block<kQueries, kWhole>(a, {slot < 0 ? slot + a.W : slot, age, count}, softmax);
  }
  for (int h = 0; h < kQueries; ++h)
    for (int64_t d = 0; d < a.dh; ++d) a.y[h * a.dh + d] /= softmax[h].total;
}

template <bool kWhole>
inline void attend_item(AttendArguments a, int64_t heads, int64_t newest, int64_t visible) {
  for (; heads > 0; heads -= kHeads) {
    switch (heads) {
      case 1:
        return attend_heads<1, kWhole>(a, newest, visible);
      case 2:
        return attend_heads<2, kWhole>(a, newest, visible);
      case 3:
        return attend_heads<3, kWhole>(a, newest, visible);
      default:
        attend_heads<kHeads, kWhole>(a, newest, visible);
    }
    a.q += kHeads * a.dh;
    a.y += kHeads * a.dh;
  }
}

inline void sliding_window_attention(AttentionShape s, In q, In k, In v, const float* cosine,
                                     const float* sine, const float* key, const float* value,
                                     int64_t position, Out y, float* next_key, float* next_value,
                                     Range kv_heads) {
  const FlushDenormals flush;
  const int64_t ring = s.W * s.dh, heads = s.Hq / s.Hkv;
  const bool whole = s.R / 2 % kLanes == 0 && (s.dh - s.R) % kLanes == 0;
  for (int64_t g = kv_heads.first; g < kv_heads.last; ++g) {
    float *keys = next_key + g * ring, *values = next_value + g * ring;
    if (next_key != key) __builtin_memcpy(keys, key + g * ring, sizeof(float) * ring);
    if (next_value != value) __builtin_memcpy(values, value + g * ring, sizeof(float) * ring);
    int64_t slot = position % s.W, visible = position < s.W ? position : s.W;
    for (int64_t t = 0; t < s.T; ++t) {
      __builtin_memcpy(keys + slot * s.dh, k.row(t) + g * s.dh, sizeof(float) * s.dh);
      __builtin_memcpy(values + slot * s.dh, v.row(t) + g * s.dh, sizeof(float) * s.dh);
      visible = visible < s.W ? visible + 1 : s.W;
      const int64_t column = g * heads * s.dh;
      const AttendArguments a = {s.dh, s.R / 2, s.W,    q.row(t) + column, cosine,
                                 sine, keys,    values, y.row(t) + column, s.scale};
      whole ? attend_item<true>(a, heads, slot, visible) : attend_item<false>(a, heads, slot, visible);
      slot = slot + 1 == s.W ? 0 : slot + 1;
    }
  }
}

}  // namespace streamssm::STREAMSSM_ISA
