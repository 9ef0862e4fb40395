// One item of each of many streams through a whole stack of Mamba or Mamba-2 blocks.
//
// The models are those of step_api.h: float16 matrices, float32 vectors, states and residual stream. What enters
// a matrix product is rounded to float16 once; sums, the recurrence and everything else are float32.
//
// Three kernels a layer, launched ahead of each other (programmatic dependent launch): compute capability 9.0 or
// later. `create` packs the weights once and does not read them again, except the embedding, which stays in use.
// A model belongs to the device that was current at `create`. Its steps must run one after another: on one
// stream, or ordered by events. They can be captured in a graph, which then stays valid until `destroy`. A step of
// many rows forks to streams of the model's own, and joins them.
//
// Taken are: d_model in steps of 128, at most 3,072, and channels in steps of 256; a convolution of 1 to 4 taps; Mamba
// with N = 16, Mamba-2 with heads of 32, 64 or 128 and N a multiple of 4; and what fits shared memory. `create` says
// what does not.
//
// From 33 rows on, a Mamba model of mamba1_130m's sizes (any number of layers and any vocabulary) goes through all its
// layers in one launch instead, on GPUs that can run its 128 blocks at once: see rows_walk.h.
//
// The results of a row depend neither on the other rows nor on its place, and are the same in every run; nor on B,
// except that models with such a walk add up in another order there.
#pragma once

#include "step_api.h"

namespace streamssm::cuda {

struct RowsCall {
  int64_t B;              // at most the most_rows given to `create`
  const int32_t* tokens;  // [B], indices into the embedding, or null
  const float* x;         // [B, d_model] instead of tokens; 16-byte aligned
  const int32_t* slots;   // [B], all different; null: slot b for row b; negative: the row is skipped, its outputs are 0
  Pool conv, ssm;         // in place or not; 16-byte aligned, strides multiples of 4
  float* residual;        // [B, d_model], what the last block leaves (before the last norm), or null; may be x
  void* logits;           // float16 [B, vocabulary], or null; 8-byte aligned
};

}  // namespace streamssm::cuda

// `norm` and `embedding` of a model may be null if no call gives tokens or asks for logits; the embedding is 16-byte
// aligned.
STREAMSSM_CUDA_API const char* streamssm_cuda_mamba_rows_create(const streamssm::cuda::MambaModel*, int64_t most_rows,
                                                                void** handle);
STREAMSSM_CUDA_API const char* streamssm_cuda_mamba2_rows_create(const streamssm::cuda::Mamba2Model*, int64_t most_rows,
                                                                 void** handle);
// Of either kind.
STREAMSSM_CUDA_API const char* streamssm_cuda_rows_step(void* handle, const streamssm::cuda::RowsCall*, void* stream);
STREAMSSM_CUDA_API void streamssm_cuda_rows_destroy(void* handle);
