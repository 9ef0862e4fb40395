// A C interface to the tables of kernels, for tests only (ctypes); no part of the library.
#include "denormals.h"
#include "kernels.h"

using namespace streamssm;

extern "C" {

const Kernels* test_kernels(const char* name) { return kernels(name); }

const char* test_best() { return kernels() ? kernels()->name : ""; }

void test_causal_conv1d(const Kernels* k, ConvShape shape, In x, const float* weight, const float* bias,
                        const float* state, Out y, float* next, Range channels) {
  k->causal_conv1d(shape, x, weight, bias, state, y, next, channels);
}

void test_selective_scan(const Kernels* k, ScanShape shape, In x, In dt, const float* A, In B, In C,
                         const float* D, const float* dt_bias, In z, const float* state, Out y, float* next,
                         Range channels) {
  k->selective_scan(shape, x, dt, A, B, C, D, dt_bias, z, state, y, next, channels);
}

void test_state_space_dual(const Kernels* k, DualShape shape, In x, In dt, const float* A, In B, In C,
                           const float* D, const float* state, Out y, float* next, Range heads) {
  k->state_space_dual(shape, x, dt, A, B, C, D, state, y, next, heads);
}

void test_sliding_window_attention(const Kernels* kernels, AttentionShape shape, In q, In k, In v,
                                   const float* cosine, const float* sine, const float* key,
                                   const float* value, int64_t position, Out y, float* next_key,
                                   float* next_value, Range kv_heads) {
  kernels->sliding_window_attention(shape, q, k, v, cosine, sine, key, value, position, y, next_key,
                                    next_value, kv_heads);
}

void test_from_half(const Kernels* k, const uint16_t* from, float* to, int64_t count) {
  k->from_half(from, to, count);
}

void test_to_half(const Kernels* k, const float* from, uint16_t* to, int64_t count) {
  k->to_half(from, to, count);
}

void test_from_bfloat16(const Kernels* k, const uint16_t* from, float* to, int64_t count) {
  k->from_bfloat16(from, to, count);
}

void test_to_bfloat16(const Kernels* k, const float* from, uint16_t* to, int64_t count) {
  k->to_bfloat16(from, to, count);
}

// The thread's floating-point control word, without the flags of what happened.
uint64_t test_float_control() {
#if defined(__x86_64__)
  uint32_t word;
  asm volatile("stmxcsr %0" : "=m"(word));
  return word & ~0x3fu;
#elif defined(__aarch64__)
  uint64_t word;
  asm volatile("mrs %0, fpcr" : "=r"(word));
  return word;
#else
  return 0;
#endif
}

// The control word inside one and inside two FlushDenormals, and after them.
void test_flush_denormals(uint64_t* words) {
  {
    const FlushDenormals outer;
    words[0] = test_float_control();
    {
      const FlushDenormals inner;
      words[1] = test_float_control();
    }
    words[2] = test_float_control();
  }
  words[3] = test_float_control();
}

}  // extern "C"
