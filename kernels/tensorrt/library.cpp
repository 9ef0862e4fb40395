// What the plugin library exports: the two functions that TensorRT calls in a library it loads
// (IPluginRegistry::loadLibrary, trtexec --dynamicPlugins), and a description. A library that somebody else
// loads (dlopen, trtexec --staticPlugins) registers itself.
//
// The library is not linked against TensorRT: it finds the one that the process has, be it the whole, the lean
// or the dispatching runtime.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <atomic>
#include <string>

#include "fields.h"
#include "operators.h"
#include "plugin.h"
#include "report.h"

#ifndef STREAMSSM_VERSION
#define STREAMSSM_VERSION "unknown"
#endif
#ifndef STREAMSSM_CUDA_ARCHS
#define STREAMSSM_CUDA_ARCHS ""
#endif

#define STREAMSSM_TENSORRT_API extern "C" __attribute__((visibility("default")))

namespace streamssm::tensorrt {
namespace {

constexpr int kMajor = NV_TENSORRT_MAJOR, kMinor = NV_TENSORRT_MINOR, kPatch = NV_TENSORRT_PATCH;

template <class Function>
Function* symbol(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

// The registry of the TensorRT in this process, if there is one and its table of functions is that of the
// headers: version 11 moved them.
nvinfer1::IPluginRegistry* registry() {
  const std::string suffix = ".so." + std::to_string(kMajor);
  void* libraries[] = {RTLD_DEFAULT, nullptr, nullptr, nullptr};
  const char* const names[] = {"libnvinfer", "libnvinfer_lean", "libnvinfer_dispatch"};
  for (int i = 0; i < 3; ++i) libraries[i + 1] = dlopen((names[i] + suffix).c_str(), RTLD_LAZY | RTLD_NOLOAD);
  for (int i = 0; i < 4; ++i) {
    if (i > 0 && libraries[i] == nullptr) continue;
    const auto version = symbol<int32_t()>(libraries[i], "getInferLibMajorVersion");
    const auto found = symbol<nvinfer1::IPluginRegistry*()>(libraries[i], "getPluginRegistry");
    if (version != nullptr && found != nullptr && version() == kMajor) return found();
  }
  return nullptr;
}

// Where the library registered itself, until TensorRT asks for the creators.
std::atomic<nvinfer1::IPluginRegistry*> registered{nullptr};

__attribute__((constructor)) void register_all() {
  nvinfer1::IPluginRegistry* const found = registry();
  if (found == nullptr) return;
  for (nvinfer1::IPluginCreatorInterface* creator : creators()) found->registerCreator(*creator, kNamespace);
  registered.store(found);
}

}  // namespace
}  // namespace streamssm::tensorrt

using namespace streamssm::tensorrt;

STREAMSSM_TENSORRT_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { find_loggers_with(finder); }

// TensorRT registers what this answers, and refuses a library of whose creators one is registered already.
STREAMSSM_TENSORRT_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  if (nvinfer1::IPluginRegistry* const mine = registered.exchange(nullptr))
    for (nvinfer1::IPluginCreatorInterface* creator : creators()) mine->deregisterCreator(*creator);
  count = int32_t(creators().size());
  return creators().data();
}

STREAMSSM_TENSORRT_API const char* streamssm_tensorrt_describe() {
  static const std::string text = [] {
    std::string names;
    for (nvinfer1::IPluginCreatorInterface* creator : creators())
      names += (names.empty() ? "\"" : ", \"") +
               std::string(static_cast<nvinfer1::IPluginCreatorV3One*>(creator)->getPluginName()) + "\"";
    return "{\"version\": \"" STREAMSSM_VERSION "\", \"abi\": " + std::to_string(kAbi) +
           ", \"archs\": \"" STREAMSSM_CUDA_ARCHS "\", \"tensorrt\": \"" + std::to_string(kMajor) + "." +
           std::to_string(kMinor) + "." + std::to_string(kPatch) + "\", \"namespace\": \"" + kNamespace +
           "\", \"plugin_version\": \"" + kVersion + "\", \"plugins\": [" + names + "]}";
  }();
  return text.c_str();
}
