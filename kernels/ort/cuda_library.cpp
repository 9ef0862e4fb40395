// What the CUDA library exports beside the kernels: the registration that ONNX Runtime calls, and a
// description. The CPU's library has the same in library.cpp.
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "cuda_op.h"
#include "cuda_operators.h"

#ifndef STREAMSSM_VERSION
#define STREAMSSM_VERSION "unknown"
#endif
#ifndef STREAMSSM_CUDA_ARCHS
#define STREAMSSM_CUDA_ARCHS ""
#endif

namespace streamssm::ort {
namespace {

// streamssm/backends/cuda_library.py holds the same number; it changes with the meaning of a function.
constexpr int kCudaAbi = 2;

const char* type_name(int type) {
  return type == float32 ? "float32" : type == float16 ? "float16" : "bfloat16";
}

std::string operators() {
  std::map<std::string, std::string> types;
  for (const OrtCustomOp* op : cuda_operators()) {
    std::string& list = types[op->GetName(op)];
    list += (list.empty() ? "\"" : ", \"") + std::string(type_name(op->GetInputType(op, 0))) + "\"";
  }
  std::string text;
  for (const auto& [name, list] : types) text += (text.empty() ? "\"" : ", \"") + name + "\": [" + list + "]";
  return "{" + text + "}";
}

OrtCustomOpDomain* made(const Runtime& runtime, const char* name, const std::vector<const OrtCustomOp*>& operators) {
  OrtCustomOpDomain* handle;
  runtime.call<api::CreateCustomOpDomain>(name, &handle);
  for (const OrtCustomOp* op : operators) runtime.call<api::CustomOpDomain_Add>(handle, op);
  return handle;
}

struct Domains {
  OrtCustomOpDomain *operators, *stacks;
};

// ONNX Runtime keeps the pointers to the domains, so they are made once for each runtime and live on.
const Domains& domains(const Runtime& runtime) {
  static std::mutex mutex;
  static std::map<const OrtApi*, Domains> all;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = all.find(runtime.api());
  if (found != all.end()) return found->second;
  const Domains both{made(runtime, "streamssm", cuda_operators()), made(runtime, "streamssm.native", cuda_stacks())};
  return all[runtime.api()] = both;
}

}  // namespace
}  // namespace streamssm::ort

STREAMSSM_CUDA_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace streamssm::ort;
  const OrtApi* table = base->GetApi(kApiVersion);
  if (table == nullptr) std::abort();  // older than 1.17: there is no table to make a status with
  const Runtime runtime(table);
  return detail::guarded(runtime, [&] {
    const Domains& both = domains(runtime);
    runtime.call<api::AddCustomOpDomain>(options, both.operators);
    runtime.call<api::AddCustomOpDomain>(options, both.stacks);
  });
}

STREAMSSM_CUDA_API const char* streamssm_cuda_describe() {
  static const std::string text = "{\"version\": \"" STREAMSSM_VERSION "\", \"abi\": " +
                                  std::to_string(streamssm::ort::kCudaAbi) +
                                  ", \"archs\": \"" STREAMSSM_CUDA_ARCHS "\", \"operators\": " +
                                  streamssm::ort::operators() + "}";
  return text.c_str();
}
