// The natural logarithm on one register.
#pragma once

#include "simd.h"

namespace streamssm::STREAMSSM_ISA {

// log x of a positive normal x within 1 ulp; minus infinity for 0 and denormals, NaN below 0 and
// for NaN, infinity for infinity. x = 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), and
// log(1 + f) = f - f^2/2 + s (f^2/2 + s^2 p(s^2)) with s = f / (2 + f): the series of 2 atanh(s).
inline Vec log(Vec x) {
  typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));  // these may wrap
  const int32_t root_half = 0x3f3504f3;
  const VecInt bits = (VecInt)((Words)x - (uint32_t)root_half);
  const Vec n = __builtin_convertvector(bits >> 23, Vec);
  const Vec f = (Vec)((bits & 0x7fffff) + root_half) - 1.0f;
  const Vec s = f / (2.0f + f), s2 = s * s, half = 0.5f * f * f;
  Vec p = splat(2.0f / 9);
  p = fma(p, s2, splat(2.0f / 7));
  p = fma(p, s2, splat(2.0f / 5));
  p = fma(p, s2, splat(2.0f / 3));
  // ln 2 in two parts: the first has few digits, so that n times it is exact
  const Vec small = fma(s, fma(p, s2, half), n * 9.05800072e-6f);
  const Vec finite = fma(n, splat(0.69313812f), f - (half - small));
  const Vec lowest = x < 0.0f ? splat(__builtin_nanf("")) : splat(-__builtin_inff());
  const Vec result = x < 1.17549435e-38f ? lowest : finite;
  return x < __builtin_inff() ? result : x;
}

}  // namespace streamssm::STREAMSSM_ISA
