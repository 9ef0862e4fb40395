// One register of floats, whatever the machine: 16 lanes with AVX-512, 8 with AVX2, 4 with NEON.
//
// Every file that includes this one is compiled once per instruction set, inside a namespace of
// its own (STREAMSSM_ISA). Nothing here, nor in those files, may use templates or inline functions
// of the standard library: the linker keeps one copy of such a function for the whole library, and
// it could be the one compiled for AVX-512.
//
// Products are fused with additions only where fma() says so (the build passes
// -ffp-contract=off), so the same source gives the same bits in every unrolling of a loop.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#ifndef STREAMSSM_ISA
#error "compile through kernels/cpu/isa.cpp, which names the instruction set"
#endif

// Before a short loop over an array of registers: unrolled late, as GCC does of itself, the array
// goes through memory.
#if defined(__clang__)
#define STREAMSSM_UNROLL _Pragma("unroll")
#else
#define STREAMSSM_UNROLL _Pragma("GCC unroll 16")
#endif

namespace streamssm::STREAMSSM_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t VecInt __attribute__((vector_size(kLanes * sizeof(int32_t))));

#if defined(__AVX512F__)
// The masked forms of some intrinsics with every lane on: GCC 12 warns of its own header in the
// plain forms. The instructions are the same.
constexpr __mmask16 kAll = 0xffff;
#endif

inline Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// The same value, in a register from here on. GCC otherwise loads an operand anew for every use.
inline Vec in_register(Vec v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__AVX2__)
  asm("" : "+x"(v));
#elif defined(__ARM_NEON)
  asm("" : "+w"(v));
#endif
  return v;
}

inline void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

// Minus zero, not plus: x - 0 is x even for -0, so no subtraction is left of it.
inline Vec splat(float value) { return value - Vec{}; }

#if defined(__AVX2__) && !defined(__AVX512F__)
// Ones in the first `count` lanes, as the mask of a masked load.
inline __m256i first_lanes(int64_t count) {
  static const int32_t ones[2 * kLanes] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256((const __m256i*)(ones + kLanes - count));
}
#endif

// The first `count` (0 to kLanes) lanes; the others are zero and their memory is not touched.
inline Vec load_part(const float* p, int64_t count) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
#elif defined(__AVX2__)
  return (Vec)_mm256_maskload_ps(p, first_lanes(count));
#else
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
#endif
}

inline void store_part(float* p, Vec v, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)v);
#elif defined(__AVX2__)
  // by halves: the masked store is microcode on some processors
  __m128 rest = _mm256_castps256_ps128((__m256)v);
  if (count >= kLanes) return _mm256_storeu_ps(p, (__m256)v);
  if (count & 4) {
    _mm_storeu_ps(p, rest);
    rest = _mm256_extractf128_ps((__m256)v, 1);
    p += 4;
  }
  if (count & 2) {
    _mm_storel_pi((__m64*)p, rest);
    rest = _mm_movehl_ps(rest, rest);
    p += 2;
  }
  if (count & 1) _mm_store_ss(p, rest);
#else
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
#endif
}

// All lanes or the first `count`, where a loop knows at compile time which it needs.
template <bool kWhole>
inline Vec load_lanes(const float* p, int64_t count) {
  return kWhole ? load(p) : load_part(p, count);
}

template <bool kWhole>
inline void store_lanes(float* p, Vec v, int64_t count) {
  if (kWhole) {
    store(p, v);
  } else {
    store_part(p, v, count);
  }
}

// a * b + c with one rounding.
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  for (int i = 0; i < kLanes; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#endif
}

// As the scalar idiom a < b ? a : b: a NaN in `a` gives b, a NaN in `b` stays.
inline Vec min(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_min_ps(kAll, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

inline Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_max_ps(kAll, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

inline Vec abs(Vec x) { return (Vec)((VecInt)x & 0x7fffffff); }

// v in the first `count` lanes, `other` in the rest.
inline Vec first_or(Vec v, int64_t count, float other) {
  static const int32_t index[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  VecInt lane;
  __builtin_memcpy(&lane, index, sizeof lane);
  return lane < (VecInt{} + (int32_t)count) ? v : splat(other);
}

// The sum of the lanes, in a fixed order (halves, quarters, ...).
inline float sum(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// x rounded to whole numbers n, and m * 2^n for m around 1 and a normal or infinite result. The
// two are one step apart, and how they are best done differs: AVX-512 has both as instructions;
// elsewhere, adding 1.5 * 2^23 rounds and leaves n in the low bits, ready for the exponent.
#if defined(__AVX512F__)
inline Vec nearest(Vec x) { return (Vec)_mm512_maskz_roundscale_ps(kAll, (__m512)x, 8); }
inline Vec times_power(Vec m, Vec n) { return (Vec)_mm512_maskz_scalef_ps(kAll, (__m512)m, (__m512)n); }
#else
constexpr float kRound = 12582912.0f;
inline Vec nearest(Vec x) { return (x + kRound) - kRound; }
inline Vec times_power(Vec m, Vec n) { return (Vec)((VecInt)m + ((VecInt)(n + kRound) << 23)); }
#endif

// e^x within 1.1 ulp for x in [-87.33, 88.72]; 0 below, infinity above, NaN for NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r = 1 + r + r^2 p(r), p minimax within 4e-9.
inline Vec exp(Vec x) {
  const Vec low = splat(-87.33654f), high = splat(88.72283f);
  const Vec inside = min(high, max(low, x));
  const Vec n = nearest(inside * 1.44269504f);
  Vec r = fma(n, splat(-0.693359375f), inside);  // ln 2 in two parts: the product with n is exact
  r = fma(n, splat(2.12194440e-4f), r);
  Vec p = splat(1.38149660257e-3f);
  p = fma(p, r, splat(8.36864634146e-3f));
  p = fma(p, r, splat(4.1668374374e-2f));
  p = fma(p, r, splat(1.66665213898e-1f));
  p = fma(p, r, splat(4.99999935487e-1f));
  p = fma(p, r * r, r) + 1.0f;
  const Vec scaled = times_power(p, n);
  const Vec above = x <= high ? scaled : x + __builtin_inff();  // a NaN is not left to the exponent
  return x < low ? Vec{} : above;
}

// 2^x within 2 ulp for x in [-126, 128), exactly 1 at 0; a denormal or 0 below, infinity from 128, and
// infinity or NaN for NaN. For decays: cheaper than exp. Needs FlushDenormals, which makes the
// denormals 0.
// x = n + f with |f| <= 1/2; 2^f = 1 + f p(f), p minimax within 1e-7.
inline Vec exp2(Vec x) {
#if defined(__AVX512F__)
  const Vec n = nearest(x), f = x - n;
#else
  const Vec inside = max(splat(-127.0f), min(x, splat(128.0f)));
  const Vec shifted = inside + kRound, f = inside - (shifted - kRound);
#endif
  Vec p = splat(1.32652264934e-3f);
  p = fma(p, f, splat(9.67123170888e-3f));
  p = fma(p, f, splat(5.55072847669e-2f));
  p = fma(p, f, splat(2.40222481281e-1f));
  p = fma(p, f, splat(6.93146986011e-1f));
  p = fma(p, f, splat(1.0f));
#if defined(__AVX512F__)
  return times_power(p, n);
#else
  // n is in the low bits of shifted; the exponent becomes 0 for n = -127, all ones for 128
  return (Vec)((VecInt)p + ((VecInt)shifted << 23));
#endif
}

// 1 / (1 + e^-x) within 2.5 ulp.
inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

// x / (1 + e^-x) within 2.6 ulp.
inline Vec silu(Vec x) { return x / (1.0f + exp(-x)); }

// log(1 + e^x) = max(x, 0) + log1p(u), u = e^-|x|; log1p(u) = 2 atanh(w / 2), w = u / (1 + u / 2) at
// most 2/3; 2 atanh(w / 2) / w is a minimax polynomial in w^2 within 4e-9. Within 3.5 ulp.
inline Vec softplus(Vec x) {
  const Vec u = exp(-abs(x));
  const Vec w = u / fma(u, splat(0.5f), splat(1.0f));
  const Vec w2 = w * w;
  Vec p = splat(0.140891675524f / 256);
  p = fma(p, w2, splat(0.139803013544f / 64));
  p = fma(p, w2, splat(0.200124551427f / 16));
  p = fma(p, w2, splat(0.33333157341f / 4));
  p = fma(p, w2, splat(1.0f));
  return fma(w, p, max(Vec{}, x));  // max: NaN stays
}

}  // namespace streamssm::STREAMSSM_ISA
