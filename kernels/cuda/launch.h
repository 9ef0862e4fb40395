// What the launchers share: choosing the version of a kernel for a data type, and what CUDA answers.
#pragma once

#include <cuda_runtime.h>

#include "numbers.cuh"

namespace streamssm::cuda {

inline const char* outcome() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Calls launch(T{}) with the C++ type of the data.
template <class Launch>
const char* for_type(int32_t type, const Launch& launch) {
  switch (type) {
    case kFloat32:
      launch(float{});
      return outcome();
    case kFloat16:
      launch(__half{});
      return outcome();
    case kBfloat16:
      launch(__nv_bfloat16{});
      return outcome();
    default:
      return "the data must be float32 (0), float16 (1) or bfloat16 (2)";
  }
}

// What is wrong with the rows of a call, or null.
inline const char* refuse(const Rows& rows) {
  if (rows.B < 0 || rows.T < 0) return "B and T must not be negative";
  if (rows.B > INT32_MAX) return "a call takes at most 2^31 - 1 rows";
  return nullptr;
}

// Whether what this GPU runs of a kernel was compiled for a compute capability before `least` (80 is 8.0). The driver
// makes code for newer GPUs from such code, in which what is written for newer ones alone is missing.
template <class Kernel>
bool compiled_before(Kernel* kernel, int least) {
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess) return attributes.ptxVersion < least;
  cudaGetLastError();
  return false;
}

inline unsigned parts(int64_t whole, int64_t part) { return unsigned((whole + part - 1) / part); }

}  // namespace streamssm::cuda
