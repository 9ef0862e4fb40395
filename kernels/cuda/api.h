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
// StateSpaceDual from 16 items on counts its chunks from the beginning of a call, and so do the long calls of
// SelectiveScan of few channels: there every call but the last must be full (no lengths) for that.
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

// A pitch is how many elements lie between two items of a tensor that is part of a wider one; 0: it is dense.

// x, y [B, T, D], weight [K, D], bias [D], state [slots, K-1, D]
struct ConvCall {
  Rows rows;
  int64_t D, K;
  int32_t type, silu;
  const void* x;
  const float *weight, *bias, *state;
  float* next;
  void* y;
  int64_t x_pitch;
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
  int64_t z_pitch, bc_pitch;
};

// Step sizes that a SelectiveScan makes itself: dt = low weight' summed in float32, low [B, T, R] with a pitch,
// weight [D, R]; its own dt is not read. float16 and bfloat16 only, N at most 16, R at most 64 and a multiple of
// 16, D and z_pitch multiples of 4, rows of low and weight on multiples of 8 bytes, sm_80 or later.
struct LowRank {
  int64_t R, pitch;
  const void *low, *weight;
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
  int64_t x_pitch, bc_pitch;
};

// Step sizes that a StateSpaceDual makes itself: dt = softplus(raw + bias) within [least, most], in float32. Its
// dt is then raw [B, T, H], with a pitch.
struct RawSteps {
  int64_t pitch;
  float least, most;
  const float* bias;
};

// q, y [B, T, Hq, dh], k, v [B, T, Hkv, dh], cosine, sine [W, half] (see the function below),
// key, value [slots, Hkv, W, dh], position [slots]
struct AttentionCall {
  Rows rows;
  int64_t Hq, Hkv, dh, W, half;
  int32_t type;
  float scale;
  const void *q, *k, *v;
  const float *cosine, *sine, *key, *value;
  float *next_key, *next_value;
  const int64_t* position;
  int64_t* next_position;
  void* y;
};

// x [B, T], window [length], filters [points / 2 + 1, bands], roots [points] (see the function below),
// state [slots, kept], y [B, T / hop, bands]. T and all lengths are multiples of hop.
struct LogMelCall {
  Rows rows;
  int64_t hop, points, length, bands, kept;
  int32_t type;
  float eps;
  const void* x;
  const float *window, *filters, *roots, *state;
  float* next;
  void* y;
};

// Between two matrix products of a stack of Mamba blocks; rows are items, of any sequence.
//
// residual [rows, width] += added (unless null); y = residual / rms * weight, of type `type`.
struct NormCall {
  int64_t rows, width;
  int32_t type;
  float eps;
  float* residual;
  const void* added;
  const float* weight;
  void* y;
};

// y = v / rms(v) * weight, v = x silu(z); x, y [rows, width], z with a pitch
struct GateNormCall {
  int64_t rows, width, z_pitch;
  int32_t type;
  float eps;
  const void *x, *z;
  const float* weight;
  void* y;
};

// dt [rows, H] = softplus(raw + bias) within [least, most], raw with a pitch
struct StepSizeCall {
  int64_t rows, H, pitch;
  int32_t type;
  float least, most;
  const void* raw;
  const float* bias;
  void* dt;
};

// One state of all rows of a batch: row b begins at from + b * bytes.
struct KeptState {
  const void* from;
  void* to;
  int64_t bytes;  // of a row: a multiple of 4
};

}  // namespace streamssm::cuda

// Each returns null, or says what is wrong. The text needs no freeing.
STREAMSSM_CUDA_API const char* streamssm_cuda_causal_conv1d(const streamssm::cuda::ConvCall*, void* stream);
STREAMSSM_CUDA_API const char* streamssm_cuda_selective_scan(const streamssm::cuda::ScanCall*, void* stream);
STREAMSSM_CUDA_API const char* streamssm_cuda_selective_scan_low_rank(const streamssm::cuda::ScanCall*,
                                                                      const streamssm::cuda::LowRank*, void* stream);
STREAMSSM_CUDA_API const char* streamssm_cuda_state_space_dual(const streamssm::cuda::DualCall*, void* stream);
STREAMSSM_CUDA_API const char* streamssm_cuda_state_space_dual_raw(const streamssm::cuda::DualCall*,
                                                                   const streamssm::cuda::RawSteps*, void* stream);
STREAMSSM_CUDA_API const char* streamssm_cuda_sliding_window_attention(const streamssm::cuda::AttentionCall*,
                                                                       void* stream);
STREAMSSM_CUDA_API const char* streamssm_cuda_log_mel(const streamssm::cuda::LogMelCall*, void* stream);

// cosine and sine of distance * inv_freq [half] for the distances 0 to W - 1: [W, half] each.
STREAMSSM_CUDA_API const char* streamssm_cuda_rotation(const float* inv_freq, int64_t half, int64_t W, float* cosine,
                                                       float* sine, void* stream);
// exp(-2 pi i k / points) for k from 0 on: [points] pairs.
STREAMSSM_CUDA_API const char* streamssm_cuda_roots(int64_t points, float* roots, void* stream);

STREAMSSM_CUDA_API const char* streamssm_cuda_norm(const streamssm::cuda::NormCall*, void* stream);
STREAMSSM_CUDA_API const char* streamssm_cuda_gate_norm(const streamssm::cuda::GateNormCall*, void* stream);
STREAMSSM_CUDA_API const char* streamssm_cuda_step_size(const streamssm::cuda::StepSizeCall*, void* stream);

// Copies the states of every row b with active[b] == 0; `states` and `active` are device memory.
STREAMSSM_CUDA_API const char* streamssm_cuda_keep_rows(const streamssm::cuda::KeptState* states, int64_t count,
                                                        const uint8_t* active, int64_t B, void* stream);
// Device memory for tables that outlive a call.
STREAMSSM_CUDA_API const char* streamssm_cuda_take(int64_t bytes, void** memory);
STREAMSSM_CUDA_API void streamssm_cuda_give(void* memory);
// Until everything given to the device so far is done.
STREAMSSM_CUDA_API const char* streamssm_cuda_wait();

// JSON: version, abi, the GPUs that there is code for, and the operators for ONNX Runtime.
STREAMSSM_CUDA_API const char* streamssm_cuda_describe();
