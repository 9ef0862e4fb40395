// The kernels that take a whole stack in one launch, or in a few, behind one face: what they need of a model, and
// when they can be used.
#pragma once

#include "rows_api.h"
#include "stack_chain.h"

namespace streamssm::cuda::stack {

// A resident model of step_api.h or rows_api.h.
class Fast {
 public:
  Fast() = default;
  Fast(const Fast&) = delete;
  Fast& operator=(const Fast&) = delete;
  ~Fast() {
    if (handle_ != nullptr) destroy_(handle_);
  }

  // Whether it is there; made at the first question. Without a word about it if it cannot be: the chain can do all.
  bool ready(const Weights&, Route route);
  void* handle() const { return handle_; }

 private:
  bool asked_ = false;
  void* handle_ = nullptr;
  void (*destroy_)(void*) = nullptr;
};

constexpr int64_t kMostRows = 256;

// The states of all layers as one pool, where they lie evenly and at multiples of 16 bytes.
bool pools_of(const Weights&, const StackCall&, Pool& conv, Pool& ssm);

void run_one_launch(const Weights&, const Fast&, const StackCall&, const Pool& conv, const Pool& ssm, Bench&,
                    cudaStream_t);
void run_rows(const Weights&, const Fast&, const StackCall&, const Pool& conv, const Pool& ssm, Bench&, cudaStream_t);

}  // namespace streamssm::cuda::stack
