// TensorRT's engines as plain functions, for a Python that TensorRT has no module for: JetPack 6 has one for Python
// 3.10 only. Built on the device by build.sh of a bundle; used by streamssm/tensorrt/engine_library.py.
//
// A call that fails returns 0 or null, and engine_error says why. Nothing is thrown across.
#include <NvInferRuntime.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#define STREAMSSM_ENGINE_API extern "C" __attribute__((visibility("default")))

namespace {

using nvinfer1::Dims64;

class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR || text.size() > 400) return;
    try {
      text += (text.empty() ? "" : " ") + std::string(message);
    } catch (...) {
      text.clear();
    }
  }
  std::string text;
};

Logger logger;  // of the process: a backend calls under its own lock

struct Engine {
  std::unique_ptr<nvinfer1::IRuntime> runtime;
  std::unique_ptr<nvinfer1::ICudaEngine> engine;
};

Engine& engine_of(void* handle) { return *static_cast<Engine*>(handle); }
nvinfer1::IExecutionContext& context_of(void* handle) { return *static_cast<nvinfer1::IExecutionContext*>(handle); }

}  // namespace

STREAMSSM_ENGINE_API int32_t engine_abi() { return 1; }

// As 100300 for 10.3.0.
STREAMSSM_ENGINE_API int32_t engine_tensorrt() { return getInferLibVersion(); }

STREAMSSM_ENGINE_API const char* engine_error() { return logger.text.c_str(); }

STREAMSSM_ENGINE_API void* engine_open(const void* data, size_t size) {
  logger.text.clear();
  auto made = std::make_unique<Engine>();
  made->runtime.reset(nvinfer1::createInferRuntime(logger));
  if (made->runtime) made->engine.reset(made->runtime->deserializeCudaEngine(data, size));
  return made->engine ? made.release() : nullptr;
}

STREAMSSM_ENGINE_API void engine_close(void* handle) { delete static_cast<Engine*>(handle); }

STREAMSSM_ENGINE_API int64_t engine_memory(void* handle) { return engine_of(handle).engine->getDeviceMemorySizeV2(); }

STREAMSSM_ENGINE_API int32_t engine_tensors(void* handle) { return engine_of(handle).engine->getNbIOTensors(); }

STREAMSSM_ENGINE_API const char* engine_tensor(void* handle, int32_t index) {
  return engine_of(handle).engine->getIOTensorName(index);
}

// 1 for an input, 2 for an output.
STREAMSSM_ENGINE_API int32_t engine_mode(void* handle, const char* name) {
  return engine_of(handle).engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT ? 1 : 2;
}

// The number of nvinfer1::DataType.
STREAMSSM_ENGINE_API int32_t engine_dtype(void* handle, const char* name) {
  return int32_t(engine_of(handle).engine->getTensorDataType(name));
}

// The number of dimensions, which go to `dims`, of at least 8; -1 for an open one.
STREAMSSM_ENGINE_API int32_t engine_dims(void* handle, const char* name, int64_t* dims) {
  const Dims64 shape = engine_of(handle).engine->getTensorShape(name);
  for (int32_t i = 0; i < shape.nbDims; ++i) dims[i] = shape.d[i];
  return shape.nbDims;
}

// An execution context that works in `memory`, which several may share if one runs at a time.
STREAMSSM_ENGINE_API void* engine_context(void* handle) {
  logger.text.clear();
  return engine_of(handle).engine->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED);
}

STREAMSSM_ENGINE_API void context_close(void* handle) { delete &context_of(handle); }

STREAMSSM_ENGINE_API void context_memory(void* handle, void* memory, int64_t size) {
  context_of(handle).setDeviceMemoryV2(memory, size);
}

STREAMSSM_ENGINE_API int32_t context_profile(void* handle, int32_t profile, void* stream) {
  return context_of(handle).setOptimizationProfileAsync(profile, static_cast<cudaStream_t>(stream));
}

STREAMSSM_ENGINE_API int32_t context_shape(void* handle, const char* name, const int64_t* dims, int32_t count) {
  Dims64 shape{};
  if (count > Dims64::MAX_DIMS) return 0;
  shape.nbDims = count;
  for (int32_t i = 0; i < count; ++i) shape.d[i] = dims[i];
  return context_of(handle).setInputShape(name, shape);
}

STREAMSSM_ENGINE_API int32_t context_address(void* handle, const char* name, void* address) {
  return context_of(handle).setTensorAddress(name, address);
}

STREAMSSM_ENGINE_API int32_t context_run(void* handle, void* stream) {
  logger.text.clear();
  return context_of(handle).enqueueV3(static_cast<cudaStream_t>(stream));
}

STREAMSSM_ENGINE_API int32_t plugin_known(const char* name, const char* version, const char* space) {
  nvinfer1::IPluginRegistry* const registry = getPluginRegistry();
  return registry != nullptr && registry->getCreator(name, version, space) != nullptr;
}

STREAMSSM_ENGINE_API int32_t plugin_load(const char* path) {
  logger.text.clear();
  nvinfer1::IPluginRegistry* const registry = getPluginRegistry();
  return registry != nullptr && registry->loadLibrary(path) != nullptr;
}
