// What there is for ONNX Runtime's CUDA provider.
#pragma once

#include <vector>

#include "abi.h"

namespace streamssm::ort {

// Every operator of a file, for each type of data.
std::vector<const OrtCustomOp*> cuda_operators();

// Nodes that the runtime makes when it loads a model, of the domain streamssm.native.
std::vector<const OrtCustomOp*> cuda_stacks();

}  // namespace streamssm::ort
