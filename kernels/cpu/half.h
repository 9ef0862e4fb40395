// float16 and bfloat16 to float32 and back: to the nearest, ties to even; NaN stays NaN (quiet).
// Denormal halves are kept: the conversions do not heed the flushing of denormal floats.
#pragma once

#include "simd.h"

namespace streamssm::STREAMSSM_ISA {

typedef uint16_t VecHalf __attribute__((vector_size(kLanes * sizeof(uint16_t))));
typedef uint32_t VecBits __attribute__((vector_size(kLanes * sizeof(uint32_t))));

#if defined(__AVX512F__)
inline Vec widen_half(VecHalf v) { return (Vec)_mm512_maskz_cvtph_ps(kAll, (__m256i)v); }
inline VecHalf narrow_half(Vec v) {
  return (VecHalf)_mm512_maskz_cvtps_ph(kAll, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__AVX2__)
inline Vec widen_half(VecHalf v) { return (Vec)_mm256_cvtph_ps((__m128i)v); }
inline VecHalf narrow_half(Vec v) { return (VecHalf)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
#else
inline Vec widen_half(VecHalf v) { return (Vec)vcvt_f32_f16((float16x4_t)v); }
inline VecHalf narrow_half(Vec v) { return (VecHalf)vcvt_f16_f32((float32x4_t)v); }
#endif

// A bfloat16 is the upper half of a float.
inline Vec widen_bfloat16(VecHalf v) { return (Vec)(__builtin_convertvector(v, VecBits) << 16); }

inline VecHalf narrow_bfloat16(Vec v) {
  const VecBits bits = (VecBits)v, up = bits >> 16;
  const VecBits rounded = (bits + 0x7fff + (up & 1)) >> 16;  // ties to even
  const VecBits quiet = up | 0x40;
  return __builtin_convertvector(v == v ? rounded : quiet, VecHalf);
}

template <Vec (*kWiden)(VecHalf)>
inline void widen(const uint16_t* from, float* to, int64_t count) {
  VecHalf part;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    __builtin_memcpy(&part, from + i, sizeof part);
    store(to + i, kWiden(part));
  }
  if (i == count) return;
  part = VecHalf{};
  __builtin_memcpy(&part, from + i, (count - i) * sizeof *from);
  store_part(to + i, kWiden(part), count - i);
}

template <VecHalf (*kNarrow)(Vec)>
inline void narrow(const float* from, uint16_t* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const VecHalf part = kNarrow(load(from + i));
    __builtin_memcpy(to + i, &part, sizeof part);
  }
  if (i == count) return;
  const VecHalf part = kNarrow(load_part(from + i, count - i));
  __builtin_memcpy(to + i, &part, (count - i) * sizeof *to);
}

}  // namespace streamssm::STREAMSSM_ISA
