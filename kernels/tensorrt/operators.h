// The creators of all plugins.
#pragma once

#include <NvInferRuntime.h>

#include <vector>

namespace streamssm::tensorrt {

// They live as long as the library.
const std::vector<nvinfer1::IPluginCreatorInterface*>& creators();

}  // namespace streamssm::tensorrt
