// A stack as a chain of matrix products and operators, for any B and T.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "stack_api.h"
#include "stack_products.h"

namespace streamssm::cuda::stack {

// A layer's parameters in device memory; those of the other kind are null.
struct Layer {
  const float* norm = nullptr;
  const void *in_proj = nullptr, *x_proj = nullptr, *dt_proj = nullptr, *out_proj = nullptr;
  const float *conv_weight = nullptr, *conv_bias = nullptr, *dt_bias = nullptr, *A = nullptr, *skip = nullptr;
  const float* gate_norm = nullptr;
};

// Sizes, and the parameters of every layer.
struct Weights {
  StackModel m;  // its pointers to host memory are not used
  std::vector<Layer> layers;
  const float* norm = nullptr;
  const void *head = nullptr, *embedding = nullptr;

  bool mamba() const { return m.kind == kMamba; }
  int64_t element() const { return m.type == kFloat32 ? 4 : 2; }
  int64_t mixed() const { return mamba() ? m.D : m.D + 2 * int64_t(m.G) * m.N; }  // channels of the convolution
  int64_t projected() const { return mamba() ? 2 * int64_t(m.D) : m.D + mixed() + m.H; }
  int64_t conv_floats() const { return (m.K - 1) * mixed(); }  // of a row
  int64_t ssm_floats() const { return int64_t(m.N) * m.D; }
};

// What all stacks on one CUDA stream share, one after the other: products, and memory for what passes between
// kernels.
class Bench {
 public:
  explicit Bench(cudaStream_t stream) : products(stream) {}
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;
  ~Bench();

  static std::shared_ptr<Bench> on(cudaStream_t stream);

  // At least so many bytes. What was given before stays where it is: a captured graph may use it.
  uint8_t* memory(size_t bytes);

  const Products products;
  std::mutex mutex;

 private:
  std::vector<void*> owned_;
  size_t size_ = 0;
};

// The input as float32 rows, from the embedding or as given.
void embed(const Weights&, const StackCall&, float* to, cudaStream_t stream);

// The last norm and the product with the head: `residual` to call.y. `added` is added to it first, unless null;
// `normed` is room for a row each.
void finish(const Weights&, const StackCall&, float* residual, const void* added, void* normed, const Products&,
            cudaStream_t stream);

void run_chain(const Weights&, const StackCall&, Bench&, cudaStream_t stream);

}  // namespace streamssm::cuda::stack
