// Every operator for ONNX Runtime's CUDA provider, for each type of data.
#pragma once

#include <vector>

#include "abi.h"

namespace streamssm::ort {

std::vector<const OrtCustomOp*> cuda_operators();

}  // namespace streamssm::ort
