// Matrix products by cuBLAS, which is not linked: whoever runs a model on a GPU has it in the process already, or
// it is looked for by name when the first stack is made.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>

#include "api.h"

namespace streamssm::cuda::stack {

struct Failed {
  const char* reason;
};

inline void must(const char* reason) {
  if (reason != nullptr) throw Failed{reason};
}
inline void must(cudaError_t error) {
  if (error != cudaSuccess) throw Failed{cudaGetErrorString(error)};
}

// y [rows, width] = x [rows, depth] times the transpose of weight [width, depth]; pitches in elements. Sums are
// float32, in an order that depends on the shape alone.
struct Product {
  int64_t rows, width, depth, x_pitch, y_pitch;
  int32_t type, y_type;
  const void *weight, *x;
  void* y;
};

// One handle with its workspace, for one CUDA stream.
class Products {
 public:
  explicit Products(cudaStream_t stream);
  void run(const Product&) const;

 private:
  struct Free {
    void operator()(void* memory) const { cudaFree(memory); }
  };
  struct Destroy {
    void operator()(void* handle) const;
  };
  std::unique_ptr<void, Free> workspace_;  // outlives the handle
  std::unique_ptr<void, Destroy> handle_;
};

// Why there are no products in this process, or null.
const char* no_products();

}  // namespace streamssm::cuda::stack
