// StateSpaceDual, for one head and a few registers of its P columns at a time:
//
//     h_n = exp(dt A) h_n + B_n (dt x)     y = sum_n C_n h_n + D x
//
// Items go by in tiles: a few rows n of the state stay in registers while a tile goes by. The sum
// over n is one chain, n = 0, 1, 2, ..., carried in memory from rows to rows, so it is the same for
// every tiling. The matrix form over chunks has fewer operations, but its results depend on T.
#pragma once

#include "denormals.h"
#include "kernels.h"
#include "simd.h"

namespace streamssm::STREAMSSM_ISA {

constexpr int64_t kDualItems = 32;  // a multiple of kLanes
// Registers of state held while a tile goes by, and how many of them side by side: 8 where the
// machine has 16 registers, 16 where 32.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int kDualState = 8, kDualColumns = 2;
#else
constexpr int kDualState = 16, kDualColumns = 4;
#endif
constexpr int kStepColumns = 4;  // the same for a single item, where no state is held

// What the rows n share: kDualColumns registers of columns over a tile of items.
struct DualTile {
  Vec inflow[kDualItems][kDualColumns];  // dt x
  Vec sum[kDualItems][kDualColumns];     // sum_n C_n h_n so far
};

// One head over one tile: all pointers at its first item, its group's B and C, its first column.
struct DualArguments {
  int64_t items, P, N, count;  // of the tile, row length of the state, its rows, lanes of the last register
  In x, dt, B, C;
  Out y;
  const float *decay, *skip, *state;  // decay [items]
  float* next;
};

// Register `c` of kColumns in a row; only the last may be partly in use.
template <int kColumns, bool kWhole>
inline Vec column(const float* row, int c, int64_t count) {
  return !kWhole && c == kColumns - 1 ? load_part(row + c * kLanes, count) : load(row + c * kLanes);
}

template <int kColumns, bool kWhole>
inline void put_column(float* row, int c, Vec v, int64_t count) {
  if (!kWhole && c == kColumns - 1) {
    store_part(row + c * kLanes, v, count);
  } else {
    store(row + c * kLanes, v);
  }
}

// y = sum + D x for one item.
template <int kColumns, bool kWhole>
inline void put_output(const DualArguments& a, int64_t i, const Vec* sum) {
  for (int c = 0; c < kColumns; ++c) {
    const Vec skip = column<kColumns, kWhole>(a.skip, c, a.count);
    const Vec x = column<kColumns, kWhole>(a.x.row(i), c, a.count);
    put_column<kColumns, kWhole>(a.y.row(i), c, fma(skip, x, sum[c]), a.count);
  }
}

// Rows n to n + kRows of the state.
template <int kRows, int kColumns, bool kWhole>
inline void dual_rows(const DualArguments& a, DualTile& tile, int64_t n) {
  Vec h[kRows][kColumns];
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kColumns; ++c)
      h[r][c] = column<kColumns, kWhole>(a.state + (n + r) * a.P, c, a.count);
  for (int64_t i = 0; i < a.items; ++i) {
    const float *B = a.B.row(i) + n, *C = a.C.row(i) + n;
    const Vec decay = splat(a.decay[i]);
    Vec sum[kColumns], inflow[kColumns];
    for (int c = 0; c < kColumns; ++c) sum[c] = tile.sum[i][c];
    for (int c = 0; c < kColumns; ++c) inflow[c] = tile.inflow[i][c];
    for (int r = 0; r < kRows; ++r) {
      const Vec b = splat(B[r]), weight = splat(C[r]);
      for (int c = 0; c < kColumns; ++c) {
        h[r][c] = fma(b, inflow[c], decay * h[r][c]);
        sum[c] = fma(weight, h[r][c], sum[c]);
      }
    }
    for (int c = 0; c < kColumns; ++c) tile.sum[i][c] = sum[c];
  }
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kColumns; ++c)
      put_column<kColumns, kWhole>(a.next + (n + r) * a.P, c, h[r][c], a.count);
}

template <int kColumns, bool kWhole>
inline void dual_tile(const DualArguments& a) {
  DualTile tile;
  for (int64_t i = 0; i < a.items; ++i)
    for (int c = 0; c < kColumns; ++c) {
      tile.inflow[i][c] = splat(*a.dt.row(i)) * column<kColumns, kWhole>(a.x.row(i), c, a.count);
      tile.sum[i][c] = Vec{};
    }
  constexpr int kRows = kDualState / kColumns, kFewer = kRows >= 4 ? kRows / 4 : 1;
  int64_t n = 0;
  for (; n + kRows <= a.N; n += kRows) dual_rows<kRows, kColumns, kWhole>(a, tile, n);
  for (; n + kFewer <= a.N; n += kFewer) dual_rows<kFewer, kColumns, kWhole>(a, tile, n);
  for (; n < a.N; ++n) dual_rows<1, kColumns, kWhole>(a, tile, n);
  for (int64_t i = 0; i < a.items; ++i) put_output<kColumns, kWhole>(a, i, tile.sum[i]);
}

// One item: its sums stay in registers, and every state is read and written once.
template <int kColumns, bool kWhole>
inline void dual_step(const DualArguments& a) {
  const float *B = a.B.data, *C = a.C.data;
  const Vec decay = splat(*a.decay);
  Vec sum[kColumns], inflow[kColumns];
  for (int c = 0; c < kColumns; ++c) {
    inflow[c] = splat(*a.dt.data) * column<kColumns, kWhole>(a.x.data, c, a.count);
    sum[c] = Vec{};
  }
  for (int64_t n = 0; n < a.N; ++n) {
    const Vec b = splat(B[n]), weight = splat(C[n]);
    for (int c = 0; c < kColumns; ++c) {
      const Vec before = column<kColumns, kWhole>(a.state + n * a.P, c, a.count);
      const Vec h = fma(b, inflow[c], decay * before);
      put_column<kColumns, kWhole>(a.next + n * a.P, c, h, a.count);
      sum[c] = fma(weight, h, sum[c]);
    }
  }
  put_output<kColumns, kWhole>(a, 0, sum);
}

template <int kColumns>
inline void dual_columns(const DualArguments& a) {
  const bool whole = a.count == kLanes;
  if (a.items == 1) {
    whole ? dual_step<kColumns, true>(a) : dual_step<kColumns, false>(a);
  } else if constexpr (kColumns <= kDualColumns) {
    whole ? dual_tile<kColumns, true>(a) : dual_tile<kColumns, false>(a);
  }
}

inline void dual_head(DualArguments a) {
  const int64_t most = (a.items == 1 ? kStepColumns : kDualColumns) * kLanes;
  for (int64_t left = a.P; left > 0; left -= most) {
    const int64_t width = left < most ? left : most, columns = (width + kLanes - 1) / kLanes;
    a.count = width - (columns - 1) * kLanes;
    switch (columns) {
      case 1:
        dual_columns<1>(a);
        break;
      case 2:
        dual_columns<2>(a);
        break;
      case 3:
        dual_columns<3>(a);
        break;
      default:
        dual_columns<4>(a);
    }
    a.x.data += width, a.y.data += width, a.skip += width;
    a.state += width, a.next += width;
  }
}

// decay[i] = exp(dt[i] A[i]) of `count` <= kDualItems heads, for one item.
inline void decays_of_heads(const float* dt, const float* A, int64_t count, float* decay) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t part = count - i < kLanes ? count - i : kLanes;
    store(decay + i, exp(load_part(dt + i, part) * load_part(A + i, part)));
  }
}

// decay[i] = exp(dt_i A) of `count` <= kDualItems items, for one head.
inline void decays_of_items(In dt, float A, int64_t count, float* decay) {
  float row[kDualItems];
  for (int64_t i = 0; i < count; ++i) row[i] = *dt.row(i);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t part = count - i < kLanes ? count - i : kLanes;
    store(decay + i, exp(load_part(row + i, part) * A));
  }
}

// One tile of items.
inline void dual_heads(const DualShape& s, int64_t items, In x, In dt, const float* A, In B, In C,
                       const float* D, const float* state, Out y, float* next, Range heads) {
  const auto at = [](In in, int64_t column) { return In{in.data + column, in.stride}; };
  float decay[kDualItems];
  for (int64_t h = heads.first; h < heads.last; ++h) {
    const int64_t group = h / (s.H / s.G) * s.N, cells = h * s.N * s.P, left = heads.last - h;
    const int64_t ahead = items == 1 ? (h - heads.first) % kDualItems : 0;
    if (items > 1) {
      decays_of_items(at(dt, h), A[h], items, decay);
    } else if (ahead == 0) {
      decays_of_heads(dt.data + h, A + h, left < kDualItems ? left : kDualItems, decay);
    }
    dual_head({items, s.P, s.N, 0, at(x, h * s.P), at(dt, h), at(B, group), at(C, group),
               {y.data + h * s.P, y.stride}, decay + ahead, D + h * s.P, state + cells, next + cells});
  }
}

inline void state_space_dual(DualShape s, In x, In dt, const float* A, In B, In C, const float* D,
                             const float* state, Out y, float* next, Range heads) {
  const FlushDenormals flush;
  for (int64_t t = 0; t < s.T; t += kDualItems) {
    const auto at = [t](In in) { return In{in.row(t), in.stride}; };
    dual_heads(s, s.T - t < kDualItems ? s.T - t : kDualItems, at(x), at(dt), A, at(B), at(C), D,
               t ? next : state, {y.row(t), y.stride}, next, heads);
  }
  const int64_t cells = s.N * s.P;
  if (s.T == 0 && next != state)
    __builtin_memcpy(next + heads.first * cells, state + heads.first * cells,
                     sizeof(float) * cells * (heads.last - heads.first));
}

}  // namespace streamssm::STREAMSSM_ISA
