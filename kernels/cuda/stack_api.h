// A run of Mamba or Mamba-2 blocks, each norm .. residual, on any number of rows and items: what a model's own
// nodes compute, in fewer launches. Which kernels run is chosen by B and T alone, so that one shape gives the
// same bits in every run: see Route.
//
// Matrices and what is handed from one kernel to the next are of `type`; vectors, states, the residual stream
// and all sums are float32. Work goes to one CUDA stream and can be captured in a graph once a call of that shape
// has run on that stream. A stack belongs to the device that was current at `create`, and its calls must run one
// after another, as must those of all stacks on one stream.
#pragma once

#include "api.h"

namespace streamssm::cuda {

enum StackKind : int32_t { kMamba = 1, kMamba2 = 2 };

// D channels, N state size, K taps, R rank of the time step (Mamba); H heads of P channels in G groups (Mamba-2).
//
// `weights` is host memory, which `create` copies; `places` are the offsets in bytes of its parts, each a multiple
// of 16. For every layer: norm [d_model], in_proj [2 D, d_model], conv_weight [K, D], conv_bias [D],
// x_proj [R + 2 N, D], dt_proj [D, R], dt_bias [D], A [N, D], skip [D], out_proj [d_model, D]; or norm,
// in_proj [2 D + 2 G N + H, d_model], conv_weight [K, D + 2 G N], conv_bias, dt_bias [H], A [H], skip [D],
// gate_norm [D], out_proj. Then norm [d_model] and head [outputs, d_model] where there are outputs, then the
// embedding [inputs, d_model] where there are inputs; it may be at the place of the head.
struct StackModel {
  int32_t kind, type, layers, d_model, D, N, R, K, H, P, G, inputs, outputs, reserved;
  float eps, dt_least, dt_most;
  const void* weights;
  int64_t bytes;
  const int64_t* places;
  int64_t place_count;
};

enum Route : int32_t {
  kBest = 0,       // float16: one launch for one item of one row, the kernels for rows for one item of up to 256
  kChain = 1,      // products by cuBLAS, the rest by the operators
  kOneLaunch = 2,  // step_api.h
  kRows = 3,       // rows_api.h
};

// conv [B, K-1, channels], ssm [B, N, D] or [B, H, N, P] of each layer: host arrays of pointers to device memory.
// `next` may be the same memory. Row b is slot b.
struct StackCall {
  int64_t B, T;
  const int64_t* tokens;  // [B, T], indices into the embedding, or
  const float* x;         // [B, T, d_model]
  const float* const *conv, *const *ssm;
  float* const *next_conv, *const *next_ssm;
  float* y;               // [B, T, outputs], or [B, T, d_model] of the residual stream
  int32_t route, reserved;
};

}  // namespace streamssm::cuda

STREAMSSM_CUDA_API const char* streamssm_cuda_stack_create(const streamssm::cuda::StackModel*, void** handle);
STREAMSSM_CUDA_API const char* streamssm_cuda_stack_run(void* handle, const streamssm::cuda::StackCall*, void* stream);
STREAMSSM_CUDA_API void streamssm_cuda_stack_destroy(void* handle);
// What the last call ran on: a Route.
STREAMSSM_CUDA_API int32_t streamssm_cuda_stack_route(void* handle);
