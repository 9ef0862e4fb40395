// y = x W (+ bias) (+ what is added), W packed in panels of 16 columns.
//
// M rows, K inputs, N outputs. A panel of a float32 matrix is [K][16], the matrix [ceil(N/16)][K][16],
// padded with zeros: every load is contiguous. Each output is one chain of fused multiply-adds
// over k in order, started at zero, whatever M is and however the rows are cut into tiles.
// Rows of y hold at least ceil(N/16) * 16 floats; the padding is written too.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace streamssm::STREAMSSM_ISA {

constexpr int kPanel = 16;
constexpr int kVecs = kPanel / kLanes;  // registers a panel's width takes

// Tiles of rows x panels whose sums fit the registers.
#if defined(__AVX512F__)
constexpr int kTileRows = 8, kTilePanels = 2, kRowPanels = 8;
#elif defined(__AVX2__)
constexpr int kTileRows = 6, kTilePanels = 1, kRowPanels = 4;
#else
constexpr int kTileRows = 6, kTilePanels = 1, kRowPanels = 4;
#endif

// What happens to a finished row of 16 sums.
struct Finish {
  const float* bias;  // [padded N] or null
  In added;           // rows to add, data null if none
};

inline void finish_panel(Vec (&sums)[kVecs], const Finish& finish, int64_t row, int64_t column, Out y) {
  for (int v = 0; v < kVecs; ++v) {
    Vec result = sums[v];
    int64_t at = column + v * kLanes;
    if (finish.bias) result += load(finish.bias + at);
    if (finish.added.data) result += load(finish.added.row(row) + at);
    store(y.row(row) + at, result);
  }
}

// A part [first, last) of the inputs. What was summed over those before it is in y.
struct Inputs {
  int64_t K, first, last;
};

// One tile: Rows rows from `row` on, Panels panels from `panel` on.
template <int Rows, int Panels>
void gemm_tile(Inputs inputs, In x, const float* weights, const Finish& finish, Out y, int64_t row,
               int64_t panel) {
  if (inputs.first >= inputs.last) __builtin_unreachable();  // or the sums would be kept in memory for it
  Vec sums[Rows][Panels][kVecs];
  for (int r = 0; r < Rows; ++r)
    for (int p = 0; p < Panels; ++p)
      for (int v = 0; v < kVecs; ++v)
        sums[r][p][v] = inputs.first ? load(y.row(row + r) + (panel + p) * kPanel + v * kLanes) : Vec{};
  const float* w = weights + panel * inputs.K * kPanel;
  const float* rows[Rows];
  for (int r = 0; r < Rows; ++r) rows[r] = x.row(row + r);
  for (int64_t k = inputs.first; k < inputs.last; ++k) {
    Vec columns[Panels][kVecs];
    for (int p = 0; p < Panels; ++p)
      for (int v = 0; v < kVecs; ++v) columns[p][v] = load(w + (p * inputs.K + k) * kPanel + v * kLanes);
    for (int r = 0; r < Rows; ++r) {
      Vec item = splat(rows[r][k]);
      for (int p = 0; p < Panels; ++p)
        for (int v = 0; v < kVecs; ++v) sums[r][p][v] = fma(item, columns[p][v], sums[r][p][v]);
    }
  }
  const Finish done = inputs.last == inputs.K ? finish : Finish{nullptr, {nullptr, 0}};
  for (int r = 0; r < Rows; ++r)
    for (int p = 0; p < Panels; ++p) finish_panel(sums[r][p], done, row + r, (panel + p) * kPanel, y);
}

typedef void (*GemmTile)(Inputs, In, const float*, const Finish&, Out, int64_t, int64_t);

template <int Panels>
GemmTile gemm_tile_of(int rows) {
  static const GemmTile tiles[] = {
      gemm_tile<1, Panels>, gemm_tile<2, Panels>, gemm_tile<3, Panels>, gemm_tile<4, Panels>,
      gemm_tile<5, Panels>, gemm_tile<6, Panels>,
#if defined(__AVX512F__)
      gemm_tile<7, Panels>, gemm_tile<8, Panels>,
#endif
  };
  return tiles[rows - 1];
}

// One row: as many panels at a time as there are sums to hide the latency of an addition, then
// all that are left together.
inline void gemm_row(int64_t K, int64_t panels, In x, const float* weights, const Finish& finish, Out y,
                     int64_t row) {
  static const GemmTile rests[] = {
      gemm_tile<1, 1>, gemm_tile<1, 2>, gemm_tile<1, 3>,
#if defined(__AVX512F__)
      gemm_tile<1, 4>, gemm_tile<1, 5>, gemm_tile<1, 6>, gemm_tile<1, 7>,
#endif
  };
  const Inputs all = {K, 0, K};
  int64_t panel = 0;
  for (; panel + kRowPanels <= panels; panel += kRowPanels)
    gemm_tile<1, kRowPanels>(all, x, weights, finish, y, row, panel);
  if (panel < panels) rests[panels - panel - 1](all, x, weights, finish, y, row, panel);
}

// Bytes of a tile's rows that stay in the first level of cache, and of weights in the second.
constexpr int64_t kRowBytes = 24 * 1024, kWeightBytes = 384 * 1024;

// Weights are taken in chunks of panels that stay in the second level of cache while every tile of
// rows passes, and a tile's rows stay in the first while every panel of the chunk does. So that
// they do, many inputs are taken in parts; a sum goes on where it stood, bit for bit.
inline void gemm(int64_t M, int64_t K, int64_t N, In x, const float* weights, const Finish& finish, Out y) {
  const int64_t panels = (N + kPanel - 1) / kPanel;
  if (M == 1) return gemm_row(K, panels, x, weights, finish, y, 0);
  const int64_t most = kRowBytes / (4 * kTileRows), parts = (K + most - 1) / most;
  const int64_t tiles = (M + kTileRows - 1) / kTileRows;
  for (int64_t part = 0; part < parts; ++part) {
    const Inputs inputs = {K, K * part / parts, K * (part + 1) / parts};
    const int64_t held = kWeightBytes / ((inputs.last - inputs.first) * kPanel * 4) / kTilePanels * kTilePanels;
    const int64_t chunk = held < kTilePanels ? kTilePanels : held;
    for (int64_t start = 0; start < panels; start += chunk) {
      const int64_t stop = panels - start < chunk ? panels : start + chunk;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t row = M * tile / tiles;
        const int rows = (int)(M * (tile + 1) / tiles - row);
        int64_t panel = start;
        for (const GemmTile run = gemm_tile_of<kTilePanels>(rows); panel + kTilePanels <= stop; panel += kTilePanels)
          run(inputs, x, weights, finish, y, row, panel);
        for (const GemmTile run = gemm_tile_of<1>(rows); panel < stop; ++panel)
          run(inputs, x, weights, finish, y, row, panel);
      }
    }
  }
}

}  // namespace streamssm::STREAMSSM_ISA
