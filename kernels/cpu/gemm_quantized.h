// y = x W with W of 8 or 4 bits: what com.microsoft::MatMulNBits computes at accuracy_level 4.
//
// Each row of x is rounded to 8 bits in blocks of `block` inputs (scale: largest magnitude / 127);
// products are summed in integers, exactly, and each block's sum is scaled and added in float32,
// block after block. Weights are unsigned with a zero point of 128 or 8, whose share is taken off
// with the sum of the rounded inputs.
//
// A panel of 16 columns: [blocks][block / 4][16][4] bytes for 8 bits; for 4 bits
// [blocks][block / 8][16][4] bytes, the low half of a byte for the first 4 inputs of 8, the high
// half for the other 4. Scales: [panels][blocks][16]. K is padded to whole blocks with zeros in x.
#pragma once

#include "gemm.h"
#include "kernels.h"
#include "simd.h"

namespace streamssm::STREAMSSM_ISA {

// Sums of 16 columns over groups of 4 inputs.
struct Sums {
#if defined(__AVX512VNNI__)
  __m512i parts;
#elif defined(__AVX2__)
  __m256i parts[4];  // two partial sums a column
#elif defined(__ARM_FEATURE_DOTPROD)
  int32x4_t parts[4];
#elif defined(__ARM_NEON)
  int32x4_t parts[8];  // two partial sums a column
#else
  int32_t parts[kPanel];
#endif
};

// sums[n] += weights[n][0..3] . inputs[0..3]; 64 unsigned weights, 4 signed inputs.
// `Bits` 4 promises weights below 16, which fit signed bytes.
#if defined(__AVX512VNNI__)
typedef __m512i Weights;
inline Weights unpack8(const uint8_t* w) { return _mm512_loadu_si512(w); }
inline void unpack4(const uint8_t* w, Weights& low, Weights& high) {
  const __m512i both = _mm512_loadu_si512(w), mask = _mm512_set1_epi8(15);
  low = _mm512_and_si512(both, mask);
  high = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
}
template <int Bits>
inline void dot(Sums& sums, const Weights& weights, const int8_t* inputs) {
  int32_t four;
  __builtin_memcpy(&four, inputs, 4);
  sums.parts = _mm512_dpbusd_epi32(sums.parts, weights, _mm512_set1_epi32(four));
}
#else
struct Weights {
  uint8_t bytes[64];
};
inline Weights unpack8(const uint8_t* w) {
  Weights weights;
  __builtin_memcpy(weights.bytes, w, 64);
  return weights;
}
inline void unpack4(const uint8_t* w, Weights& low, Weights& high) {
  for (int i = 0; i < 64; ++i) low.bytes[i] = w[i] & 15, high.bytes[i] = w[i] >> 4;
}
template <int Bits>
inline void dot(Sums& sums, const Weights& weights, const int8_t* inputs) {
#if defined(__AVX2__)
  int32_t four;
  __builtin_memcpy(&four, inputs, 4);
  const __m256i items = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
  for (int i = 0; i < 4; ++i) {
    __m128i quarter;
    __builtin_memcpy(&quarter, weights.bytes + 16 * i, 16);
    sums.parts[i] = _mm256_add_epi32(sums.parts[i], _mm256_madd_epi16(_mm256_cvtepu8_epi16(quarter), items));
  }
#elif defined(__ARM_NEON)
  int32_t four;
  __builtin_memcpy(&four, inputs, 4);
  const int8x16_t items = vreinterpretq_s8_s32(vdupq_n_s32(four));
  for (int i = 0; i < 4; ++i) {
    // 8 bits: w - 128 is signed, and the zero point is then 0
    const uint8x16_t raw = vld1q_u8(weights.bytes + 16 * i);
    const int8x16_t w = vreinterpretq_s8_u8(Bits == 8 ? veorq_u8(raw, vdupq_n_u8(128)) : raw);
#if defined(__ARM_FEATURE_DOTPROD)
    sums.parts[i] = vdotq_s32(sums.parts[i], w, items);
#else
    sums.parts[2 * i] = vpadalq_s16(sums.parts[2 * i], vmull_s8(vget_low_s8(w), vget_low_s8(items)));
    sums.parts[2 * i + 1] = vpadalq_s16(sums.parts[2 * i + 1], vmull_s8(vget_high_s8(w), vget_high_s8(items)));
#endif
  }
#else
  for (int n = 0; n < kPanel; ++n)
    for (int k = 0; k < 4; ++k) sums.parts[n] += (int32_t)weights.bytes[4 * n + k] * inputs[k];
#endif
}
#endif

// What the weights' zero point is to dot().
template <int Bits>
constexpr int32_t zero_point() {
#if defined(__ARM_NEON)
  return Bits == 8 ? 0 : 8;
#else
  return Bits == 8 ? 128 : 8;
#endif
}

inline void whole(const Sums& sums, int32_t (&columns)[kPanel]) {
#if defined(__AVX512VNNI__) || defined(__ARM_FEATURE_DOTPROD)
  __builtin_memcpy(columns, &sums.parts, sizeof columns);
#elif defined(__AVX2__) || defined(__ARM_NEON)
  int32_t pairs[2 * kPanel];
  __builtin_memcpy(pairs, &sums.parts, sizeof pairs);
  for (int n = 0; n < kPanel; ++n) columns[n] = pairs[2 * n] + pairs[2 * n + 1];
#else
  __builtin_memcpy(columns, sums.parts, sizeof columns);
#endif
}

// Rows of x in 8 bits. `values` [M][padded K], `scales` [M][blocks], `totals` [M][blocks] (sums of values).
struct Rounded {
  const int8_t* values;
  const float* scales;
  const int32_t* totals;
  int64_t padded, blocks, block;
};

// Rounds one block of `count` inputs, zeros after them. Halves go to the even number. Magnitudes are
// compared as whole numbers, where NaN is the largest: it goes to the scale, and so to the results.
inline void round_block(const float* x, int64_t count, int64_t block, int8_t* values, float* scale, int32_t* total) {
  typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));
  VecInt largest = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const VecInt size = (VecInt)abs(count - i >= kLanes ? load(x + i) : load_part(x + i, count - i));
    largest = size > largest ? size : largest;
  }
  int32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits = largest[lane] > bits ? largest[lane] : bits;
  float top;
  __builtin_memcpy(&top, &bits, sizeof top);
  *scale = top / 127.0f;
  const float inverse = top > 0 ? 127.0f / top : 0.0f;
  int32_t sum = 0;
  for (int64_t i = 0; i < block; i += kLanes) {
    const int64_t left = count - i;
    const Vec part = left >= kLanes ? load(x + i) : left > 0 ? load_part(x + i, left) : Vec{};
    const VecInt whole = (VecInt)((Words)(part * inverse + 12582912.0f) - 0x4b400000u);
    for (int lane = 0; lane < kLanes; ++lane) sum += values[i + lane] = (int8_t)whole[lane];
  }
  *total = sum;
}

inline void round_rows(int64_t M, int64_t K, int64_t block, In x, int8_t* values, float* scales, int32_t* totals) {
  const int64_t blocks = (K + block - 1) / block;
  for (int64_t m = 0; m < M; ++m)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t start = b * block, count = K - start < block ? K - start : block;
      round_block(x.row(m) + start, count, block, values + (m * blocks + b) * block, scales + m * blocks + b,
                  totals + m * blocks + b);
    }
}

template <int Bits, int Rows, int Panels>
void quantized_tile(const Rounded& x, const uint8_t* weights, const float* scales, const Finish& finish, Out y,
                    int64_t row, int64_t panel) {
  const int64_t bytes = x.block * kPanel * Bits / 8;
  if (x.blocks < 1 || x.block < 8) __builtin_unreachable();  // or the sums would be kept in memory for that case
  Vec results[Rows][Panels][kVecs];
  for (int r = 0; r < Rows; ++r)
    for (int p = 0; p < Panels; ++p)
      for (int v = 0; v < kVecs; ++v) results[r][p][v] = Vec{};
  for (int64_t b = 0; b < x.blocks; ++b) {
    Sums sums[Rows][Panels] = {};
    const uint8_t* w[Panels];
    const int8_t* items[Rows];
    for (int p = 0; p < Panels; ++p) w[p] = weights + ((panel + p) * x.blocks + b) * bytes;
    for (int r = 0; r < Rows; ++r) items[r] = x.values + (row + r) * x.padded + b * x.block;
    if (Bits == 8) {
      for (int64_t k = 0; k < x.block; k += 4) {
        Weights columns[Panels];
        for (int p = 0; p < Panels; ++p) columns[p] = unpack8(w[p] + k * kPanel);
        for (int r = 0; r < Rows; ++r)
          for (int p = 0; p < Panels; ++p) dot<Bits>(sums[r][p], columns[p], items[r] + k);
      }
    } else {
      for (int64_t k = 0; k < x.block; k += 8) {
        Weights low[Panels], high[Panels];
        for (int p = 0; p < Panels; ++p) unpack4(w[p] + k * (kPanel / 2), low[p], high[p]);
        for (int r = 0; r < Rows; ++r)
          for (int p = 0; p < Panels; ++p) {
            dot<Bits>(sums[r][p], low[p], items[r] + k);
            dot<Bits>(sums[r][p], high[p], items[r] + k + 4);
          }
      }
    }
    for (int r = 0; r < Rows; ++r) {
      const int32_t zero = zero_point<Bits>() * x.totals[(row + r) * x.blocks + b];
      const float scale = x.scales[(row + r) * x.blocks + b];
      for (int p = 0; p < Panels; ++p) {
        int32_t columns[kPanel];
        whole(sums[r][p], columns);
        for (int v = 0; v < kVecs; ++v) {
          VecInt part;
          __builtin_memcpy(&part, columns + v * kLanes, sizeof part);
          const Vec dots = __builtin_convertvector(part - zero, Vec);
          const Vec factors = load(scales + ((panel + p) * x.blocks + b) * kPanel + v * kLanes) * scale;
          results[r][p][v] = fma(dots, factors, results[r][p][v]);
        }
      }
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int p = 0; p < Panels; ++p) finish_panel(results[r][p], finish, row + r, (panel + p) * kPanel, y);
}

#if defined(__AVX512VNNI__)
constexpr int kDotRows = 8, kDotPanels = 2, kDotRowPanels = 4;
#else
constexpr int kDotRows = 2, kDotPanels = 1, kDotRowPanels = 2;
#endif

typedef void (*QuantizedTile)(const Rounded&, const uint8_t*, const float*, const Finish&, Out, int64_t, int64_t);

template <int Bits, int Panels>
QuantizedTile quantized_tile_of(int rows) {
  static const QuantizedTile tiles[] = {
      quantized_tile<Bits, 1, Panels>, quantized_tile<Bits, 2, Panels>,
#if defined(__AVX512VNNI__)
      quantized_tile<Bits, 3, Panels>, quantized_tile<Bits, 4, Panels>, quantized_tile<Bits, 5, Panels>,
      quantized_tile<Bits, 6, Panels>, quantized_tile<Bits, 7, Panels>, quantized_tile<Bits, 8, Panels>,
#endif
  };
  return tiles[rows - 1];
}

template <int Bits>
void gemm_quantized(int64_t M, int64_t N, const Rounded& x, const uint8_t* weights, const float* scales,
                    const Finish& finish, Out y) {
  const int64_t panels = (N + kPanel - 1) / kPanel;
  if (M == 1) {
    int64_t panel = 0;
    for (; panel + kDotRowPanels <= panels; panel += kDotRowPanels)
      quantized_tile<Bits, 1, kDotRowPanels>(x, weights, scales, finish, y, 0, panel);
    static const QuantizedTile rests[] = {
        quantized_tile<Bits, 1, 1>,
#if defined(__AVX512VNNI__)
        quantized_tile<Bits, 1, 2>, quantized_tile<Bits, 1, 3>,
#endif
    };
    if (panel < panels) rests[panels - panel - 1](x, weights, scales, finish, y, 0, panel);
    return;
  }
  const int64_t tiles = (M + kDotRows - 1) / kDotRows;
  for (int64_t panel = 0; panel < panels; panel += kDotPanels) {
    const bool wide = panel + kDotPanels <= panels;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t start = M * tile / tiles, rows = M * (tile + 1) / tiles - start;
      const QuantizedTile run = wide ? quantized_tile_of<Bits, kDotPanels>((int)rows) : quantized_tile_of<Bits, 1>((int)rows);
      run(x, weights, scales, finish, y, start, panel);
    }
  }
}

}  // namespace streamssm::STREAMSSM_ISA
