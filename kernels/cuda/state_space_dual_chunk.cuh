// What a block of the matrix form of StateSpaceDual does with a chunk of items; see state_space_dual_chunk.cu.
#pragma once

#include "copies.cuh"
#include "fragments.cuh"
#include "state_space_dual.h"

namespace streamssm::cuda {
namespace {

constexpr int kItems = 64, kTile = 16, kTiles = kItems / kTile, kParts = 4, kColumns = 16;
constexpr int64_t kFewest = 16;  // items: with fewer, the recurrence is sooner done
constexpr int64_t kSpan = 256, kLongCall = 1024;

enum Pass : int32_t { kWhole, kLast, kOutputs };  // all at once; the first and the third kernel of a long call

struct Plan {
  Pass pass;
  int stages;  // chunks that shared memory has room for
  bool aligned;
  unsigned columns;  // blocks side by side in a head
};

struct Place {
  int64_t row;          // first item of the row in the batch
  int64_t items;        // of the row that are not padding
  int64_t first, last;  // items of the span
  int64_t head, group, p;
};

template <class Data>
__device__ const Data* data(const void* from, int64_t at) {
  return static_cast<const Data*>(from) + at;
}

// kN states, kGroups * 16 columns.
template <int kNOf, int kGroupsOf, class Data>
struct Shape {
  static constexpr int kN = kNOf, kGroups = kGroupsOf, kWide = kGroups * kColumns;
  static constexpr int kThreads = 32 * kParts * kGroups;
  static constexpr int kRange = kN / 4 < 16 ? 16 : kN / 4;  // states of a part; the last parts may have none
  static constexpr int kVectors = kRange / 8;

  struct Chunk {
    alignas(16) Data B[kItems][kN + 8], C[kItems][kN + 8], x[kItems][kWide + 8];
  };
  struct Common {
    alignas(16) float sums[kGroups][kParts][kItems * kColumns];
    alignas(16) float within[kTiles][kTile][kTile];  // L(t, s) dt_s of one tile
    alignas(16) float rise[kItems];                  // from the start of an item's tile to after the item
    alignas(16) float weight[kItems];                // from the item to the end of its tile, times dt
    alignas(16) float total[kTiles];                 // logarithms (base 2) of the tiles' decays
    alignas(16) float skip[kWide];
  };
};

// What a warp has: a part of the states of 16 columns. Parts differ in work; a scheduler gets one of each.
struct Own {
  int part, group;
};

__device__ inline Own own_part() {
  const int warp = threadIdx.x / 32;
  return {(warp + warp / kParts) % kParts, warp / kParts};
}

__device__ inline int clamp_items(int64_t items) { return int(min(max(items, int64_t(0)), int64_t(kItems))); }

// Four floats of a column group's state in its part of y: number `i` of what a span hands on.
template <class Data>
__device__ float4* handed(const DualCall& c, int64_t item, int64_t head, int64_t column, int i) {
  constexpr int kPerItem = int(sizeof(Data));  // of 16 columns
  Data* y = static_cast<Data*>(c.y) + ((item + i / kPerItem) * c.H + head) * c.P + column;
  return reinterpret_cast<float4*>(y) + i % kPerItem;
}

#if __CUDA_ARCH__ >= 800

template <int kThreads, int kWidth, int kRow, class Data>
__device__ void bring(Data (&to)[kItems][kRow], const Data* from, int64_t pitch, int items, int width, bool aligned) {
  constexpr int kPart = 16 / int(sizeof(Data)), kAcross = kWidth / kPart;
  if (aligned) {
    const int i = threadIdx.x % kAcross * kPart;
    const Data* at = from + (i < width ? i : 0);
#pragma unroll 4
    for (int t = threadIdx.x / kAcross; t < kItems; t += kThreads / kAcross) {
      const bool real = t < items && i < width;
      copy16(&to[t][i], at + (real ? t * pitch : 0), real);
    }
  } else {
#pragma unroll 1
    for (int e = threadIdx.x; e < kItems * kWidth; e += kThreads) {
      const int t = e / kWidth, i = e % kWidth;
      to[t][i] = t < items && i < width ? from[t * pitch + i] : zero<Data>();
    }
  }
}

template <class S, class Data>
__device__ void fetch(const DualCall& c, const Plan& plan, const Place& at, int64_t first, typename S::Chunk& chunk) {
  const int items = clamp_items(at.items - first), N = int(c.N);
  const int64_t item = at.row + first, bc = item * c.bc_pitch + at.group * c.N;
  bring<S::kThreads, S::kN>(chunk.B, data<Data>(c.B, bc), c.bc_pitch, items, N, plan.aligned);
  if (plan.pass != kLast) bring<S::kThreads, S::kN>(chunk.C, data<Data>(c.C, bc), c.bc_pitch, items, N, plan.aligned);
  const Data* x = data<Data>(c.x, item * c.x_pitch + at.head * c.P + at.p);
  bring<S::kThreads, S::kWide>(chunk.x, x, c.x_pitch, items, int(min(c.P - at.p, int64_t(S::kWide))), plan.aligned);
}

// A warp has a tile, a lane (and the one 16 on) an item. Items that are not there have step 0.
template <class Common>
__device__ void weigh(float dt, float rate, Common& to) {
  const int lane = threadIdx.x % 32, tile = threadIdx.x / 32 % kTiles, s = lane % kTile;
  const float a = dt * kPerOctave * rate;
  float up = a, down = a;
#pragma unroll
  for (int k = 1; k < kTile; k *= 2) {
    const float below = __shfl_up_sync(~0u, up, k, kTile), above = __shfl_down_sync(~0u, down, k, kTile);
    up += s >= k ? below : 0.0f;
    down += s + k < kTile ? above : 0.0f;
  }
  const float after = __shfl_down_sync(~0u, down, 1, kTile);
  if (lane < kTile) {
    to.rise[tile * kTile + s] = exp2_fast(up);
    to.weight[tile * kTile + s] = exp2_fast(s + 1 < kTile ? after : 0.0f) * dt;
    if (s + 1 == kTile) to.total[tile] = up;
  }
  float sum = 0.0f;
#pragma unroll
  for (int t = 0; t < kTile; ++t) {
    const float next = __shfl_sync(~0u, a, t, kTile);
    sum += t > s ? next : 0.0f;
    if (t / 8 == lane / kTile) to.within[tile][t][s] = t >= s ? exp2_fast(sum) * dt : 0.0f;
  }
}

// Rows that a warp writes or reads together fall on other banks.
__device__ inline int sum_place(int t, int column) { return t * kColumns + (column ^ (t / 2 % 2 * 8)); }

template <class Data>
__device__ inline Operand<4, kFits<Data>> left_operand(const Fragment<Data>& f, int k) {
  Operand<4, kFits<Data>> a;
  a.set(0, first_of(f.v[2 * k], Data{})), a.set(1, first_of(f.v[2 * k + 1], Data{}));
  a.set(2, second_of(f.v[2 * k], Data{})), a.set(3, second_of(f.v[2 * k + 1], Data{}));
  return a;
}

template <class Data, class Pair>
__device__ inline Operand<2, kFits<Data>> right_operand(Pair v) {
  Operand<2, kFits<Data>> b;
  b.set(0, first_of(v, Data{})), b.set(1, second_of(v, Data{}));
  return b;
}

// (C_t . B_s) of a tile of t (rows) and one of s, over all states.
template <class S, class Data>
__device__ void scores_of(const typename S::Chunk& chunk, int t_tile, int s_tile, float (&scores)[2][4]) {
  const int lane = threadIdx.x % 32;
  float odd[2][4] = {}, rest[2][4] = {};
#pragma unroll 2
  for (int n = 0; n < S::kN; n += 32) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const auto B = along_rows(chunk.B, s_tile * kTile, n + 16 * k, lane);
      const auto C = along_rows(chunk.C, t_tile * kTile, n + 16 * k, lane);
      add_rows<Data>(k ? odd[0] : scores[0], rest[0], C, B, 0);
      add_rows<Data>(k ? odd[1] : scores[1], rest[1], C, B, 1);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    scores[i / 4][i % 4] += odd[i / 4][i % 4];
    if (!kFits<Data>) scores[i / 4][i % 4] += rest[i / 4][i % 4];
  }
}

// Whether one of two numbers is infinite or none, in the sign bits of the answer: exponents of ones carry there.
__device__ inline uint32_t not_finite(uint32_t v, __half) { return (v & 0x7fff7fffu) + 0x04000400u; }
__device__ inline uint32_t not_finite(uint32_t v, __nv_bfloat16) { return (v & 0x7fff7fffu) + 0x00800080u; }
__device__ inline uint32_t not_finite(float2 v, float) {
  const uint32_t one = __float_as_uint(v.x) & 0x7fffffffu, two = __float_as_uint(v.y) & 0x7fffffffu;
  return (one + 0x00800000u) | (two + 0x00800000u);
}

__device__ inline uint32_t keep_pair(uint32_t v, bool first, bool second) {
  return v & ((first ? 0xffffu : 0u) | (second ? 0xffff0000u : 0u));
}
__device__ inline float2 keep_pair(float2 v, bool first, bool second) {
  return {first ? v.x : 0.0f, second ? v.y : 0.0f};
}

// y += left x of one tile, for the items t up to `last` alone: later ones are taken as zeros.
template <class Data>
__device__ void add_left(const float (&left)[2][4], const Fragment<Data>& x, int last, float (&y)[2][4],
                         float (&rest)[2][4]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const bool first = k * 8 + 2 * t <= last, second = k * 8 + 2 * t + 1 <= last;
    Operand<4, false> a;
    a.set(0, first ? left[k][0] : 0.0f), a.set(1, first ? left[k][2] : 0.0f);
    a.set(2, second ? left[k][1] : 0.0f), a.set(3, second ? left[k][3] : 0.0f);
#pragma unroll
    for (int p = 0; p < 2; ++p)
      add_product(y[p], rest[p], a, right_operand<Data>(keep_pair(x.v[k + 2 * p], first, second)));
  }
}

// The same for a tile with itself that has numbers that are not finite: nothing times them is nothing, so that
// every item gets a product of its own, of the items up to it. Those before get the bits of finite numbers.
template <class Data>
__device__ void add_left_apart(const float (&left)[2][4], const Fragment<Data>& x, float (&y)[2][4],
                               float (&rest)[2][4]) {
  const int row = threadIdx.x % 32 / 4;
#pragma unroll 1
  for (int last = 0; last < kTile; ++last) {
    float all[2][4], small[2][4];
#pragma unroll
    for (int i = 0; i < 8; ++i) all[i / 4][i % 4] = y[i / 4][i % 4], small[i / 4][i % 4] = rest[i / 4][i % 4];
    add_left<Data>(left, x, last, all, small);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (row + i / 2 % 2 * 8 == last)
        y[i / 4][i % 4] = all[i / 4][i % 4], rest[i / 4][i % 4] = small[i / 4][i % 4];
  }
}

// y += what the items of a tile of s give those of a tile of t, of 16 columns.
template <class S, class Data>
__device__ void add_items(const typename S::Chunk& chunk, const typename S::Common& common, int t_tile, int s_tile,
                          int column, float gap, float (&y)[2][4], float (&rest)[2][4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  float left[2][4] = {};
  scores_of<S, Data>(chunk, t_tile, s_tile, left);
  const auto x = along_columns(chunk.x, s_tile * kTile, column, lane);
  const float upper = common.rise[t_tile * kTile + g] * gap, lower = common.rise[t_tile * kTile + g + 8] * gap;
  float mixed = 0.0f;  // not a number if a score is not finite
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int s = k * 8 + 2 * t;
    float L[4];
    if (t_tile == s_tile) {
      *reinterpret_cast<float2*>(L) = *reinterpret_cast<const float2*>(&common.within[s_tile][g][s]);
      *reinterpret_cast<float2*>(L + 2) = *reinterpret_cast<const float2*>(&common.within[s_tile][g + 8][s]);
    } else {
      const float2 weight = *reinterpret_cast<const float2*>(&common.weight[s_tile * kTile + s]);
      L[0] = upper * weight.x, L[1] = upper * weight.y, L[2] = lower * weight.x, L[3] = lower * weight.y;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) left[k][i] *= L[i], mixed = fmaf(left[k][i], 0.0f, mixed);
  }
  if (t_tile == s_tile) {
    uint32_t odd = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) odd |= not_finite(x.v[i], Data{});
    if (__any_sync(~0u, mixed != mixed || (odd & 0x80008000u))) return add_left_apart<Data>(left, x, y, rest);
  }
  add_left<Data>(left, x, kTile, y, rest);
}

// A part of the outputs of 16 columns. Items that are not there are worked on like others, as zeros. The loop
// stays one: unrolled, the code of this kernel did not fit where instructions are kept.
template <class S, class Data>
__device__ void add_part(const typename S::Chunk& chunk, const typename S::Common& common, const Own& own,
                         const float (&h)[S::kVectors][4], float* sums) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const bool has_states = own.part * S::kRange < S::kN;
  Operand<2, false> state[S::kVectors][2];
#pragma unroll
  for (int i = 0; i < S::kVectors * 4; ++i) state[i / 4][i / 2 % 2].set(i % 2, h[i / 4][i % 4]);
  float before = 0.0f, between = 0.0f;
#pragma unroll 1
  for (int tile = 0; tile < kTiles; ++tile) {
    float y[2][4] = {}, rest[2][4] = {};
    if (has_states) {
#pragma unroll
      for (int j = 0; j < S::kVectors; j += 2) {
        const auto C = along_rows(chunk.C, tile * kTile, own.part * S::kRange + j * 8, lane);
#pragma unroll
        for (int k = 0; k < 2; ++k)
#pragma unroll
          for (int p = 0; p < 2; ++p) add_product(y[p], rest[p], left_operand(C, k), state[j + k][p]);
      }
      const float start = exp2_fast(before);
      const float rise[2] = {common.rise[tile * kTile + g] * start, common.rise[tile * kTile + g + 8] * start};
#pragma unroll
      for (int i = 0; i < 8; ++i) y[i / 4][i % 4] *= rise[i / 2 % 2], rest[i / 4][i % 4] *= rise[i / 2 % 2];
    }
    if (tile >= own.part)
      add_items<S, Data>(chunk, common, tile, own.part, own.group * kColumns, exp2_fast(between), y, rest);
    before += common.total[tile];
    if (tile > own.part) between += common.total[tile];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float2* to = reinterpret_cast<float2*>(sums + sum_place(tile * kTile + g + i % 2 * 8, i / 2 * 8 + 2 * t));
      *to = {y[i / 2][i % 2 * 2] + rest[i / 2][i % 2 * 2], y[i / 2][i % 2 * 2 + 1] + rest[i / 2][i % 2 * 2 + 1]};
    }
  }
}

// The states after the chunk, of a part of 16 columns.
template <class S, class Data>
__device__ void update(const typename S::Chunk& chunk, const typename S::Common& common, const Own& own,
                       float (&h)[S::kVectors][4]) {
  if (own.part * S::kRange >= S::kN) return;
  const int lane = threadIdx.x % 32, t = lane % 4;
  float added[S::kVectors][4] = {}, rest[S::kVectors][4] = {}, left = 0.0f;
#pragma unroll 1
  for (int tile = kTiles - 1; tile >= 0; --tile) {
    const float after = exp2_fast(left);
    left += common.total[tile];
    const auto x = along_columns(chunk.x, tile * kTile, own.group * kColumns, lane);
    Operand<4, false> inflow[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float2 weight = *reinterpret_cast<const float2*>(&common.weight[tile * kTile + k * 8 + 2 * t]);
      const float one = weight.x * after, two = weight.y * after;
      inflow[k].set(0, first_of(x.v[k], Data{}) * one), inflow[k].set(1, first_of(x.v[k + 2], Data{}) * one);
      inflow[k].set(2, second_of(x.v[k], Data{}) * two), inflow[k].set(3, second_of(x.v[k + 2], Data{}) * two);
    }
#pragma unroll
    for (int j = 0; j < S::kVectors; j += 2) {
      const auto B = along_columns(chunk.B, tile * kTile, own.part * S::kRange + j * 8, lane);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        add_product(added[j + i / 2], rest[j + i / 2], inflow[i % 2], right_operand<Data>(B.v[i]));
    }
  }
  const float decay = exp2_fast(left);
#pragma unroll
  for (int i = 0; i < S::kVectors * 4; ++i)
    h[i / 4][i % 4] = fmaf(decay, h[i / 4][i % 4], added[i / 4][i % 4] + rest[i / 4][i % 4]);
}

template <class S, class Data>
__device__ void finish(const DualCall& c, const Plan& plan, const Place& at, int64_t first,
                       const typename S::Chunk& chunk, const typename S::Common& common) {
  constexpr int kPer = 8, kAcross = S::kWide / kPer;
  const int items = clamp_items(at.items - first), left = clamp_items(at.last - first);
  const int64_t width = c.P - at.p, pitch = c.H * c.P;
  Data* y = static_cast<Data*>(c.y) + ((at.row + first) * c.H + at.head) * c.P + at.p;
#pragma unroll 1
  for (int e = threadIdx.x; e < left * kAcross; e += S::kThreads) {
    const int t = e / kAcross, column = e % kAcross * kPer, place = sum_place(t, column % kColumns);
    float sum[kPer];
#pragma unroll
    for (int i = 0; i < kParts; ++i)
#pragma unroll
      for (int k = 0; k < kPer; k += 4) {
        const float4 v = *reinterpret_cast<const float4*>(&common.sums[column / kColumns][i][place + k]);
        const float part[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int m = 0; m < 4; ++m) sum[k + m] = i == 0 ? part[m] : sum[k + m] + part[m];
      }
    alignas(16) Data x[kPer], out[kPer];
#pragma unroll
    for (int k = 0; k < int(sizeof(x) / 16); ++k)
      reinterpret_cast<uint4*>(x)[k] = reinterpret_cast<const uint4*>(&chunk.x[t][column])[k];
#pragma unroll
    for (int k = 0; k < kPer; ++k)
      narrow(t < items ? fmaf(common.skip[column + k], widen(x[k]), sum[k]) : 0.0f, &out[k]);
    Data* to = y + t * pitch + column;
    if (plan.aligned && column + kPer <= width) {
#pragma unroll
      for (int k = 0; k < int(sizeof(out) / 16); ++k)
        reinterpret_cast<uint4*>(to)[k] = reinterpret_cast<uint4*>(out)[k];
    } else {
#pragma unroll
      for (int k = 0; k < kPer; ++k)
        if (column + k < width) to[k] = out[k];
    }
  }
}

// Outputs of padding, from item `first` on.
template <class Data>
__device__ void clear(const DualCall& c, const Place& at, int64_t first, int wide) {
  const int width = int(min(c.P - at.p, int64_t(wide)));
  Data* y = static_cast<Data*>(c.y) + (at.row * c.H + at.head) * c.P + at.p;
  for (int64_t t = first; t < at.last; ++t)
    for (int i = threadIdx.x; i < width; i += int(blockDim.x)) y[t * c.H * c.P + i] = zero<Data>();
}

// Calls visit(state, n, p) for every state of a thread: number i of vector j of a part.
template <class S, class Visit>
__device__ void states(int part, int64_t p, float (&h)[S::kVectors][4], const Visit& visit) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < S::kVectors; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      visit(h[j][i], part * S::kRange + j * 8 + lane % 4 * 2 + i % 2, p + lane / 4 + i / 2 * 8);
}

#endif

}  // namespace
}  // namespace streamssm::cuda
