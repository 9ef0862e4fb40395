// LogMel: window, power spectrum, mel filters, logarithm; the transform is that of log_mel_plan.h.
//
// Frames are taken one by one, so nothing depends on how many there are.
#pragma once

#include "kernels.h"
#include "lane_sums.h"
#include "log_mel_plan.h"
#include "simd.h"
#include "simd_log.h"

namespace streamssm::STREAMSSM_ISA {

struct LogMelScratch {
  float* frame;           // [points], then zeros
  float *plus, *minus;    // [kept, columns]: sums and differences of a pair of rows of the frame
  float *re, *im;         // [columns, stride]
  float *next_re, *next_im;
  float* power;           // [bins], then zeros
};

inline int64_t rounded(int64_t size) { return (size + kRow - 1) / kRow * kRow; }

inline LogMelScratch divide_scratch(const LogMelPlan& plan, float* scratch) {
  const int64_t sums = plan.kept * rounded(plan.columns), spectrum = plan.columns * plan.stride;
  float* at = scratch + (-(uintptr_t)scratch / sizeof(float)) % kRow;
  LogMelScratch s;
  s.frame = at;
  s.plus = at += rounded(plan.points + kRow);
  s.minus = at += sums;
  s.re = at += sums;
  s.im = at += spectrum;
  s.next_re = at += spectrum;
  s.next_im = at += spectrum;
  s.power = at + spectrum;
  return s;
}

// out[i] = x[i] * window[i]
inline void apply_window(const float* x, const float* window, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(x + i) * load(window + i));
  const int64_t rest = count - i;
  if (rest > 0) store_part(out + i, load_part(x + i, rest) * load_part(window + i, rest), rest);
}

inline void pair_rows(const LogMelPlan& plan, const LogMelScratch& s) {
  const int64_t R = plan.rows, C = plan.columns, width = rounded(C);
  for (int64_t a = 0; a < plan.kept; ++a) {
    const float *row = s.frame + a * C, *partner = s.frame + (a ? R - a : 0) * C;
    for (int64_t b = 0; b < C; b += kLanes) {  // past the end of a row: lanes that nobody reads
      const Vec x = load(row + b), other = load(partner + b);
      store(s.plus + a * width + b, x + other);
      store(s.minus + a * width + b, x - other);
    }
  }
}

// The inner sums of kColumns columns from b on, with the twiddles of the outer ones.
template <int kColumns>
inline void transform_columns(const LogMelPlan& plan, const LogMelScratch& s, int64_t b) {
  const int64_t width = rounded(plan.columns), stride = plan.stride;
  for (int64_t k = 0; k < plan.kept; k += kLanes) {
    Vec re[kColumns] = {}, im[kColumns] = {};
    for (int64_t a = 0; a < plan.kept; ++a) {
      const Vec cosine = load(plan.cosine + a * stride + k), sine = load(plan.sine + a * stride + k);
      for (int i = 0; i < kColumns; ++i) {
        re[i] = fma(splat(s.plus[a * width + b + i]), cosine, re[i]);
        im[i] = fma(splat(s.minus[a * width + b + i]), sine, im[i]);
      }
    }
    for (int i = 0; i < kColumns; ++i) {
      const int64_t at = (b + i) * stride + k;
      const Vec c = load(plan.twiddle_re + at), d = load(plan.twiddle_im + at);
      store(s.re + at, fma(re[i], c, -(im[i] * d)));
      store(s.im + at, fma(re[i], d, im[i] * c));
    }
  }
}

struct Complex {
  Vec re, im;
};
inline Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
inline Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
inline Complex operator*(float a, Complex b) { return {a * b.re, a * b.im}; }
inline Complex turn(Complex a) { return {a.im, -a.re}; }  // -i a
inline Complex rotate(Complex a, const float* root) {
  return {fma(a.re, splat(root[0]), -(a.im * root[1])), fma(a.re, splat(root[1]), a.im * root[0])};
}
// a + x b + y c
inline Complex mix(Complex a, float x, Complex b, float y, Complex c) {
  return {fma(splat(y), c.re, fma(splat(x), b.re, a.re)), fma(splat(y), c.im, fma(splat(x), b.im, a.im))};
}

// x becomes its discrete Fourier transform.
template <int kRadix>
inline void butterfly(Complex* x) {
  if constexpr (kRadix == 2) {
    const Complex a = x[0];
    x[0] = a + x[1];
    x[1] = a - x[1];
  } else if constexpr (kRadix == 3) {
    const Complex sum = x[1] + x[2], difference = 0.866025404f * turn(x[1] - x[2]);
    const Complex middle = mix(x[0], -0.5f, sum, 0.0f, sum);
    x[0] = x[0] + sum;
    x[1] = middle + difference;
    x[2] = middle - difference;
  } else if constexpr (kRadix == 4) {
    const Complex a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = turn(x[1] - x[3]);
    x[0] = a + c;
    x[1] = b + d;
    x[2] = a - c;
    x[3] = b - d;
  } else {
    static_assert(kRadix == 5, "radices are 2 to 5");
    constexpr float c1 = 0.309016994f, c2 = -0.809016994f, s1 = 0.951056516f, s2 = 0.587785252f;
    const Complex a = x[1] + x[4], b = x[2] + x[3], c = turn(x[1] - x[4]), d = turn(x[2] - x[3]);
    const Complex near = mix(x[0], c1, a, c2, b), far = mix(x[0], c2, a, c1, b);
    const Complex zero = {};
    const Complex e = mix(zero, s1, c, s2, d), f = mix(zero, s2, c, -s1, d);
    x[0] = x[0] + a + b;
    x[1] = near + e;
    x[2] = far + f;
    x[3] = far - f;
    x[4] = near - e;
  }
}

// One pass of the outer transform, from re, im to next_re, next_im: m groups of butterflies, `span`
// of each side by side.
template <int kRadix>
inline void pass(const LogMelPlan& plan, const LogMelScratch& s, int64_t m, int64_t span,
                 const float* roots) {
  const int64_t row = span * plan.stride;
  for (int64_t p = 0; p < m; ++p, roots += 2 * (kRadix - 1)) {
    for (int64_t q = 0; q < span; ++q) {
      for (int64_t k = 0; k < plan.kept; k += kLanes) {
        const int64_t from = p * row + q * plan.stride + k, to = p * kRadix * row + q * plan.stride + k;
        Complex x[kRadix];
        for (int j = 0; j < kRadix; ++j) {
          const int64_t at = from + j * m * row;
          x[j] = {load(s.re + at), load(s.im + at)};
        }
        butterfly<kRadix>(x);
        for (int j = 0; j < kRadix; ++j) {
          const Complex y = p && j ? rotate(x[j], roots + 2 * (j - 1)) : x[j];
          store(s.next_re + to + j * row, y.re);
          store(s.next_im + to + j * row, y.im);
        }
      }
    }
  }
}

// The outer transforms; the result lies in re, im of what is returned.
inline LogMelScratch transform_rows(const LogMelPlan& plan, LogMelScratch s) {
  int64_t points = plan.columns, span = 1;
  const float* roots = plan.roots;
  for (int64_t i = 0; i < plan.radix_count; ++i) {
    const int64_t radix = plan.radices[i], m = points / radix;
    if (radix == 2) pass<2>(plan, s, m, span, roots);
    if (radix == 3) pass<3>(plan, s, m, span, roots);
    if (radix == 4) pass<4>(plan, s, m, span, roots);
    if (radix == 5) pass<5>(plan, s, m, span, roots);
    roots += 2 * m * (radix - 1);
    points = m;
    span *= radix;
    s = {s.frame, s.plus, s.minus, s.next_re, s.next_im, s.re, s.im, s.power};
  }
  return s;
}

// The power of s.frame by bins.
inline void power_spectrum(const LogMelPlan& plan, LogMelScratch s) {
  pair_rows(plan, s);
  int64_t b = 0;
  for (; b + 4 <= plan.columns; b += 4) transform_columns<4>(plan, s, b);
  for (; b < plan.columns; ++b) transform_columns<1>(plan, s, b);
  s = transform_rows(plan, s);
  for (int64_t i = 0; i < plan.columns * plan.stride; i += plan.stride) {
    for (int64_t k = 0; k < plan.kept; k += kLanes) {
      const Vec re = load(s.re + i + k), im = load(s.im + i + k);
      store(s.re + i + k, fma(re, re, im * im));
    }
  }
  for (int64_t bin = 0; bin < plan.bins; ++bin) s.power[bin] = s.re[plan.places[bin]];
}

inline void log_bands(const LogMelPlan& plan, const float* power, float* y) {
  const float* weights = plan.band_weights;
  for (int64_t m = 0; m < plan.bands; m += kLanes) {
    const int64_t count = plan.bands - m < kLanes ? plan.bands - m : kLanes;
    Vec products[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) {
      const float* bins = power + plan.band_first[m + i];
      for (int64_t j = 0; j < plan.band_width[m + i]; j += kLanes)
        products[i] = fma(load(weights + j), load(bins + j), products[i]);
      weights += plan.band_width[m + i];
    }
    store_part(y + m, log(lane_sums<kLanes / 2>(products) + plan.eps), count);
  }
}

inline void log_mel(const LogMelPlan& plan, const float* past, int64_t kept, const float* x, Out y,
                    float* scratch, Range frames) {
  const LogMelScratch s = divide_scratch(plan, scratch);
  for (int64_t i = plan.length; i < plan.points + kRow; ++i) s.frame[i] = 0.0f;
  for (int64_t i = plan.bins; i < plan.bins + kRow; ++i) s.power[i] = 0.0f;
  for (int64_t f = frames.first; f < frames.last; ++f) {
    const int64_t first = plan.hop * (f + 1) - plan.length;  // in x; what is below 0 lies in the past
    int64_t old = first < 0 ? -first : 0;
    old = old < plan.length ? old : plan.length;
    if (old > 0) apply_window(past + kept + first, plan.window, old, s.frame);
    apply_window(x + first + old, plan.window + old, plan.length - old, s.frame + old);
    power_spectrum(plan, s);
    log_bands(plan, s.power, y.row(f));
  }
}

}  // namespace streamssm::STREAMSSM_ISA
