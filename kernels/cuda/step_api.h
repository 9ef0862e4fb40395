// One item of one stream through a whole stack of Mamba or Mamba-2 blocks, in one launch.
//
// Matrices are float16, row-major [out, in] as in the checkpoints; vectors and states are float32; the
// residual stream and all sums are float32 too. conv_weight [K, D], A [N, D] (Mamba) or [H] (Mamba-2),
// negative, as for the operators. The weights are read by `create` only.
//
// A model belongs to the device that was current at `create`. Its steps must run one after another:
// on one stream, or ordered by events. They can be captured in a graph.
#pragma once

#include "api.h"

namespace streamssm::cuda {

struct MambaLayer {
  const float* norm;                                  // [d_model]
  const void *in_proj, *x_proj, *dt_proj, *out_proj;  // float16
  const float *conv_weight, *conv_bias, *dt_bias, *A, *skip;
};

struct MambaModel {
  int32_t layers, d_model, D, N, R, K, vocabulary, reserved;
  float eps;
  const MambaLayer* layer;  // host memory
  const float* norm;        // [d_model], before the head
  const void* embedding;    // float16 [vocabulary, d_model], also the head; stays in use
};

struct Mamba2Layer {
  const float* norm;
  const void *in_proj, *out_proj;  // float16; rows z, x, B, C, dt
  const float *conv_weight, *conv_bias, *dt_bias, *A, *skip, *gate_norm;  // skip [H * P], gate_norm [D]
};

struct Mamba2Model {
  int32_t layers, d_model, H, P, G, N, K, vocabulary;
  float eps, dt_least, dt_most;
  const Mamba2Layer* layer;
  const float* norm;
  const void* embedding;
};

// States: layer l of slot s begins at state + l * layer_stride + s * slot_stride floats.
struct Pool {
  const float* state;
  float* next;  // may be the same as state
  int64_t layer_stride, slot_stride;
};

struct StepCall {
  const int32_t* token;  // index into the embedding, or null
  const float* x;        // [d_model] instead of a token
  const int32_t* slot;   // null: slot 0; negative: nothing is done
  Pool conv, ssm;
  float* logits;  // [vocabulary]
};

}  // namespace streamssm::cuda

STREAMSSM_CUDA_API const char* streamssm_cuda_mamba_create(const streamssm::cuda::MambaModel*, void** handle);
STREAMSSM_CUDA_API const char* streamssm_cuda_mamba_step(void* handle, const streamssm::cuda::StepCall*, void* stream);
STREAMSSM_CUDA_API void streamssm_cuda_mamba_destroy(void* handle);
STREAMSSM_CUDA_API const char* streamssm_cuda_mamba2_create(const streamssm::cuda::Mamba2Model*, void** handle);
STREAMSSM_CUDA_API const char* streamssm_cuda_mamba2_step(void* handle, const streamssm::cuda::StepCall*, void* stream);
STREAMSSM_CUDA_API void streamssm_cuda_mamba2_destroy(void* handle);
