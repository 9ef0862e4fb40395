// What the two forms of StateSpaceDual share: step sizes, and who takes which call.
#pragma once

#include "launch.h"

namespace streamssm::cuda {

// Step sizes as they are, or if there is a bias from raw ones (see RawSteps).
struct Steps {
  int64_t pitch;  // from item to item
  const float* bias;
  float least, most;

  __device__ float size(float v, int64_t head) const {
    return bias ? fminf(fmaxf(softplus(v + bias[head]), least), most) : v;
  }
};

// Whether the matrix form takes a call: T, the sizes and the GPU decide, nothing else.
bool in_chunks(const DualCall& c);

const char* launch_chunks(const DualCall& c, const Steps& steps, cudaStream_t stream);

}  // namespace streamssm::cuda
