// SelectiveScan, for one register of channels at a time:
//
//     d = softplus(dt + dt_bias)     h_n = exp(d A_n) h_n + B_n (d x)     y = (sum_n C_n h_n + D x) silu(z)
//
// Items go by in tiles, for all channels before the next tile. What belongs to an item and not to n
// is computed once a tile; then a few rows n of the state stay in registers while the tile goes by.
// The sum over n is one chain, n = 0, 1, 2, ..., carried in memory from rows to rows, so it is the
// same for every tiling.
#pragma once

#include "denormals.h"
#include "kernels.h"
#include "simd.h"

namespace streamssm::STREAMSSM_ISA {

constexpr int64_t kScanItems = 32;
constexpr float kPerOctave = 1.44269504f;  // 1 / ln 2
constexpr int kScanRegisters = 4;          // of channels in a single step
// Rows of the state held while a tile goes by: 8 with AVX-512 too, where 16 rows and their A would leave
// no registers for the constants of exp2.
#if defined(__AVX2__)
constexpr int kScanRows = 8;
#else
constexpr int kScanRows = 16;
#endif

// What the rows n share: one register of channels over a tile of items.
struct ScanTile {
  Vec step[kScanItems];    // d / ln 2: exp(d A) = 2^(step A)
  Vec inflow[kScanItems];  // d x
  Vec sum[kScanItems];     // sum_n C_n h_n so far
};

// The arguments of selective_scan, all pointers at the first item of the tile and the first channel.
struct ScanArguments {
  int64_t items, D, N, count;  // of the tile, channels of a row, state size, lanes in use
  In x, dt, B, C, z;
  Out y;
  const float *A, *skip, *dt_bias, *state;
  float* next;
};

inline Vec scan_cell(Vec step, Vec A, Vec h, Vec inflow, float B) {
  return fma(exp2(step * A), h, splat(B) * inflow);
}

// Rows n to n + kRows of the state.
template <int kRows, bool kWhole>
inline void scan_rows(const ScanArguments& a, ScanTile& tile, int64_t n) {
  Vec h[kRows], A[kRows];
  STREAMSSM_UNROLL for (int r = 0; r < kRows; ++r) {
    h[r] = load_lanes<kWhole>(a.state + (n + r) * a.D, a.count);
    A[r] = load_lanes<kWhole>(a.A + (n + r) * a.D, a.count);
  }
  for (int64_t i = 0; i < a.items; ++i) {
    const float *B = a.B.row(i) + n, *C = a.C.row(i) + n;
    const Vec step = tile.step[i], inflow = tile.inflow[i];
    Vec sum = tile.sum[i];
    STREAMSSM_UNROLL for (int r = 0; r < kRows; ++r) {
      h[r] = scan_cell(step, A[r], h[r], inflow, B[r]);
      sum = fma(splat(C[r]), h[r], sum);
    }
    tile.sum[i] = sum;
  }
  STREAMSSM_UNROLL for (int r = 0; r < kRows; ++r) store_lanes<kWhole>(a.next + (n + r) * a.D, h[r], a.count);
}

template <bool kWhole>
inline void scan_tile(const ScanArguments& a) {
  ScanTile tile;
  const Vec bias = load_lanes<kWhole>(a.dt_bias, a.count), skip = load_lanes<kWhole>(a.skip, a.count);
  for (int64_t i = 0; i < a.items; ++i) {
    const Vec d = softplus(load_lanes<kWhole>(a.dt.row(i), a.count) + bias);
    tile.step[i] = d * kPerOctave;
    tile.inflow[i] = d * load_lanes<kWhole>(a.x.row(i), a.count);
    tile.sum[i] = Vec{};
    // the next channels: rows lie pages apart, where no prefetcher of the processor follows
    __builtin_prefetch(a.dt.row(i) + kLanes);
    __builtin_prefetch(a.x.row(i) + kLanes);
    __builtin_prefetch(a.z.row(i) + kLanes);
    __builtin_prefetch(a.y.row(i) + kLanes, 1);
  }
  int64_t n = 0;
  for (; n + kScanRows <= a.N; n += kScanRows) scan_rows<kScanRows, kWhole>(a, tile, n);
  for (; n + 4 <= a.N; n += 4) scan_rows<4, kWhole>(a, tile, n);
  for (; n < a.N; ++n) scan_rows<1, kWhole>(a, tile, n);
  for (int64_t i = 0; i < a.items; ++i) {
    const Vec x = load_lanes<kWhole>(a.x.row(i), a.count), z = load_lanes<kWhole>(a.z.row(i), a.count);
    store_lanes<kWhole>(a.y.row(i), fma(skip, x, tile.sum[i]) * silu(z), a.count);
  }
}

// One item: no state is worth keeping. Several registers of channels instead, to fill the time that
// one waits for its softplus.
template <int kRegisters, bool kWhole>
inline void scan_step(const ScanArguments& a) {
  const float *B = a.B.data, *C = a.C.data;
  Vec step[kRegisters], inflow[kRegisters], sum[kRegisters];
  for (int i = 0; i < kRegisters; ++i) {
    const int64_t d = i * kLanes;
    const Vec bias = load_lanes<kWhole>(a.dt_bias + d, a.count);
    const Vec delta = softplus(load_lanes<kWhole>(a.dt.data + d, a.count) + bias);
    step[i] = delta * kPerOctave;
    inflow[i] = delta * load_lanes<kWhole>(a.x.data + d, a.count);
    sum[i] = Vec{};
  }
  for (int64_t n = 0; n < a.N; ++n)
    for (int i = 0; i < kRegisters; ++i) {
      const int64_t at = n * a.D + i * kLanes;
      const Vec A = load_lanes<kWhole>(a.A + at, a.count), before = load_lanes<kWhole>(a.state + at, a.count);
      const Vec h = scan_cell(step[i], A, before, inflow[i], B[n]);
      store_lanes<kWhole>(a.next + at, h, a.count);
      sum[i] = fma(splat(C[n]), h, sum[i]);
    }
  for (int i = 0; i < kRegisters; ++i) {
    const int64_t d = i * kLanes;
    const Vec x = load_lanes<kWhole>(a.x.data + d, a.count), z = load_lanes<kWhole>(a.z.data + d, a.count);
    const Vec skip = load_lanes<kWhole>(a.skip + d, a.count);
    store_lanes<kWhole>(a.y.data + d, fma(skip, x, sum[i]) * silu(z), a.count);
  }
}

// The tile for channels d to `last`.
inline void scan_channels(ScanArguments a, int64_t d, int64_t last) {
  const auto move = [&a](int64_t channels) {
    a.x.data += channels, a.dt.data += channels, a.z.data += channels, a.y.data += channels;
    a.A += channels, a.skip += channels, a.dt_bias += channels;
    a.state += channels, a.next += channels;
  };
  move(d);
  a.count = kLanes;
  for (; a.items == 1 && d + kScanRegisters * kLanes <= last; d += kScanRegisters * kLanes) {
    scan_step<kScanRegisters, true>(a);
    move(kScanRegisters * kLanes);
  }
  for (; d + kLanes <= last; d += kLanes) {
    a.items == 1 ? scan_step<1, true>(a) : scan_tile<true>(a);
    move(kLanes);
  }
  a.count = last - d;
  if (a.count > 0) a.items == 1 ? scan_step<1, false>(a) : scan_tile<false>(a);
}

inline void selective_scan(ScanShape s, In x, In dt, const float* A, In B, In C, const float* D,
                           const float* dt_bias, In z, const float* state, Out y, float* next,
                           Range channels) {
  const FlushDenormals flush;
  for (int64_t t = 0; t < s.T; t += kScanItems) {
    const auto at = [t](In in) { return In{in.row(t), in.stride}; };
    const int64_t items = s.T - t < kScanItems ? s.T - t : kScanItems;
    scan_channels({items, s.D, s.N, 0, at(x), at(dt), at(B), at(C), at(z), {y.row(t), y.stride},
                   A, D, dt_bias, t ? next : state, next},
                  channels.first, channels.last);
  }
  if (s.T == 0 && next != state)
    for (int64_t n = 0; n < s.N; ++n)
      __builtin_memcpy(next + n * s.D + channels.first, state + n * s.D + channels.first,
                       sizeof(float) * (channels.last - channels.first));
}

}  // namespace streamssm::STREAMSSM_ISA
