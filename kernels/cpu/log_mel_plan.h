// What LogMel knows before the first sample: tables made once, by log_mel_tables.cpp.
//
// A frame of N points is taken apart as N = R C, sample n = C a + b, bin f = k + R j:
//
//     X[k + R j] = sum_b w_C^(b j)  w_N^(b k)  sum_a w_R^(a k) x[C a + b]        w_n = exp(-2 pi i / n)
//
// The samples are real, so the inner sum is needed for k <= R/2 only: the other bins are mirror
// images. It is a product with a small matrix, and any R will do, a large prime too. The outer sum
// is an FFT of C = 2^x 3^y 5^z points for each k (Cooley & Tukey 1965; order of Stockham). Both run
// over k in the lanes of a register.
#pragma once

#include <cstdint>

namespace streamssm {

// Lanes of the widest register: rows of tables begin at multiples of it.
constexpr int64_t kRow = 16;

struct LogMelPlan {
  int64_t hop, length, points, bands;  // samples from frame to frame, in a window; N; mel bands
  float eps;
  int64_t rows, columns;     // R, C
  int64_t kept, stride;      // R/2 + 1, and that rounded up to kRow
  const float* window;       // [length]
  const float* cosine;       // [kept, stride], by a: x[a] + x[R-a] times this is real
  const float* sine;         // [kept, stride], by a: x[a] - x[R-a] times this is imaginary
  const float* twiddle_re;   // [columns, stride], by b
  const float* twiddle_im;
  const int64_t* radices;    // 2 to 5, their product is C
  int64_t radix_count;
  const float* roots;        // for each radix r: [m, r-1] pairs (re, im)
  int64_t bins;              // N/2 + 1
  const int32_t* places;     // [bins] of each bin in [columns, stride]
  const int32_t* band_first;  // [bands] the first bin of each
  const int32_t* band_width;  // [bands] bins of each, rounded up to kRow
  const float* band_weights;  // one band after the other, padded with zeros
  int64_t scratch;            // floats that a call needs
};

}  // namespace streamssm
