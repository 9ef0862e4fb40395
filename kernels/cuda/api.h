// What the CUDA library offers: plain C functions that launch work on a stream.
//
// T items, D channels, N state size, K conv width, H heads, P head dim, G groups, rows B of a batch.
// The formulas are those of kernels/reference.py. All pointers are device memory, all tensors dense.
//
// States are float32 and live in pools: row b of a batch works on slot slots[b] of `state` and leaves
// its next state in the same slot of `next`, which may be the same memory. A negative slot skips the
// row. Two rows of a call must not name one slot. Row b has lengths[b] items, at most T; the items
// after them are never read, and their outputs are zero, as are those of a skipped row. Null `slots`
// means slot b for row b; null `lengths` means T for all. Apart from state and next, nothing overlaps.
//
// Results do not depend on the other rows, on B or on the slots, and are the same in every run. How a
// sequence was cut into calls of one T does not change a bit; calls of different T differ by rounding.
#pragma once

#include <cstdint>

#if defined(__GNUC__)
#define STREAMSSM_CUDA_API extern "C" __attribute__((visibility("default")))
#else
#define STREAMSSM_CUDA_API extern "C"
#endif

namespace streamssm::cuda {

enum Type : int32_t { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };

struct Rows {
  int64_t B, T;
  const int32_t* slots;
  const int32_t* lengths;
};

// x, y [B, T, D], weight [K, D], bias [D], state [slots, K-1, D]
struct ConvCall {
  Rows rows;
  int64_t D, K;
  int32_t type, silu;
  const void* x;
  const float *weight, *bias, *state;
  float* next;
  void* y;
};

// x, dt, z, y [B, T, D], A [N, D], B, C [B, T, N], skip, dt_bias [D], state [slots, N, D]
struct ScanCall {
  Rows rows;
  int64_t D, N;
  int32_t type, reserved;
  const void *x, *dt, *B, *C, *z;
  const float *A, *skip, *dt_bias, *state;
  float* next;
  void* y;
};

// x, y [B, T, H, P], dt [B, T, H], A [H], B, C [B, T, G, N], skip [H, P], state [slots, H, N, P]
struct DualCall {
  Rows rows;
  int64_t H, P, G, N;
  int32_t type, reserved;
  const void *x, *dt, *B, *C;
  const float *A, *skip, *state;
  float* next;
  void* y;
};

}  // namespace streamssm::cuda

// Each returns null, or says what is wrong. The text needs no freeing.
STREAMSSM_CUDA_API const char* streamssm_cuda_causal_conv1d(const streamssm::cuda::ConvCall*, void* stream);
STREAMSSM_CUDA_API const char* streamssm_cuda_selective_scan(const streamssm::cuda::ScanCall*, void* stream);
STREAMSSM_CUDA_API const char* streamssm_cuda_state_space_dual(const streamssm::cuda::DualCall*, void* stream);
