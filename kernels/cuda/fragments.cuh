// Products of small matrices on tensor cores, from sm_80 on: 16 x 8 numbers of float32 at a time.
//
// An operand is float32 of which the hardware takes the first 11 bits of the fraction (tf32). float16 and
// bfloat16 data fit in that exactly. What does not fit is split into two parts whose sum it is to 2^-22, and
// the products of the parts are added; that of the two small parts is below what is kept, and left out.
//
// A thread (g, t) = (lane / 4, lane % 4) has two neighbours along the sum in a register of a fragment. They
// stand for the elements t and t + 4 of the hardware's own order, in both operands: a sum may be permuted.
// With that, the accumulators of one product are an operand of the next as they are.
#pragma once

#include <type_traits>

#include "numbers.cuh"

namespace streamssm::cuda {
namespace {

// 16 x 16 elements of a tile in shared memory.
template <class Data>
struct Fragment {
  uint32_t v[4];  // two elements each
};
template <>
struct Fragment<float> {
  float2 v[4];
};

__device__ inline float first_of(uint32_t v, __half) { return __low2float(*reinterpret_cast<const __half2*>(&v)); }
__device__ inline float second_of(uint32_t v, __half) { return __high2float(*reinterpret_cast<const __half2*>(&v)); }
__device__ inline float first_of(uint32_t v, __nv_bfloat16) { return __uint_as_float(v << 16); }
__device__ inline float second_of(uint32_t v, __nv_bfloat16) { return __uint_as_float(v & 0xffff0000u); }
__device__ inline float first_of(float2 v, float) { return v.x; }
__device__ inline float second_of(float2 v, float) { return v.y; }

// kCount registers of an operand; exact ones have no small part.
template <int kCount, bool kExact>
struct Operand {
  uint32_t large[kCount], small[kExact ? 1 : kCount];

  __device__ void set(int i, float v) {
    if constexpr (kExact) {
      large[i] = __float_as_uint(v);
    } else {
      large[i] = (__float_as_uint(v) + 0x1000u) & 0xffffe000u;
      small[i] = __float_as_uint(v - __uint_as_float(large[i]));
    }
  }
};

template <class Data>
constexpr bool kFits = !std::is_same<Data, float>::value;

#if __CUDA_ARCH__ >= 800

__device__ inline uint32_t shared_address(const void* at) { return uint32_t(__cvta_generic_to_shared(at)); }

// Sums along a row of the tile: v[0] row g, elements 2t and 2t + 1; v[1] row g + 8; v[2] and v[3] eight elements on.
template <int kRows, int kRow, class Data>
__device__ inline Fragment<Data> along_rows(const Data (&tile)[kRows][kRow], int row, int column, int lane) {
  Fragment<Data> f;
  if constexpr (kFits<Data>) {
    const uint32_t at = shared_address(&tile[row + lane % 16][column + lane / 16 * 8]);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(f.v[0]), "=r"(f.v[1]), "=r"(f.v[2]), "=r"(f.v[3])
                 : "r"(at));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      f.v[i] = *reinterpret_cast<const float2*>(&tile[row + lane / 4 + i % 2 * 8][column + i / 2 * 8 + lane % 4 * 2]);
  }
  return f;
}

// Sums along a column of the tile: v[0] rows 2t and 2t + 1, column g; v[1] eight rows on; v[2] and v[3] column g + 8.
template <int kRows, int kRow, class Data>
__device__ inline Fragment<Data> along_columns(const Data (&tile)[kRows][kRow], int row, int column, int lane) {
  Fragment<Data> f;
  if constexpr (kFits<Data>) {
    const uint32_t at = shared_address(&tile[row + lane % 16][column + lane / 16 * 8]);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(f.v[0]), "=r"(f.v[1]), "=r"(f.v[2]), "=r"(f.v[3])
                 : "r"(at));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row + i % 2 * 8 + lane % 4 * 2, c = column + i / 2 * 8 + lane / 4;
      f.v[i] = {tile[r][c], tile[r + 1][c]};
    }
  }
  return f;
}

// d += a b over eight elements.
__device__ inline void add_product(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The small parts' products go to `rest`, which may be `d`: apart, they lose nothing to a large d.
template <bool kExactA, bool kExactB>
__device__ void add_product(float (&d)[4], float (&rest)[4], const Operand<4, kExactA>& a,
                            const Operand<2, kExactB>& b) {
  if constexpr (!kExactA) add_product(rest, a.small, b.large);
  if constexpr (!kExactB) add_product(rest, a.large, b.small);
  add_product(d, a.large, b.large);
}

// d += a b' over the 16 elements of a row of both; eight rows of b: the first (half = 0) or the last (1).
template <class Data>
__device__ inline void add_rows(float (&d)[4], float (&rest)[4], const Fragment<Data>& a, const Fragment<Data>& b,
                                int half) {
  if constexpr (std::is_same<Data, __half>::value) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.v[0]), "r"(a.v[1]), "r"(a.v[2]), "r"(a.v[3]), "r"(b.v[half]), "r"(b.v[half + 2]));
  } else if constexpr (kFits<Data>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.v[0]), "r"(a.v[1]), "r"(a.v[2]), "r"(a.v[3]), "r"(b.v[half]), "r"(b.v[half + 2]));
  } else {
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
      Operand<4, false> left;
      Operand<2, false> right;
      left.set(0, a.v[k].x), left.set(1, a.v[k + 1].x), left.set(2, a.v[k].y), left.set(3, a.v[k + 1].y);
      right.set(0, b.v[half + k].x), right.set(1, b.v[half + k].y);
      add_product(d, rest, left, right);
    }
  }
}

#endif

}  // namespace
}  // namespace streamssm::cuda
