// What the library exports: the registration that ONNX Runtime calls, and a description.
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

#include "abi.h"
#include "op.h"
#include "ops.h"

#ifndef STREAMSSM_VERSION
#error "the build passes the version"
#endif

namespace streamssm::ort {
namespace {

// streamssm/native/library.py holds the same number; it changes with the meaning of an operator.
constexpr int kLibraryAbi = 1;
constexpr int kMinorWithReferences = 24;

struct Domain {
  const char* name;
  Versions ops;
};

const std::vector<Domain>& domains() {
  static const std::vector<Domain> all = [] {
    Domain ours{"streamssm", {}};
    for (const Versions& versions :
         {causal_conv1d(), selective_scan(), state_space_dual(), sliding_window_attention(), log_mel()})
      ours.ops.insert(ours.ops.end(), versions.begin(), versions.end());
    return std::vector<Domain>{ours, {"streamssm.native", fused()}};
  }();
  return all;
}

// ONNX Runtime prints a complaint when it is asked for a version it does not have.
bool has_references(const OrtApiBase* base, const OrtApi* api) {
  const char* version = base->GetVersionString();
  char* rest;
  const long major = std::strtol(version, &rest, 10);
  const long minor = *rest == '.' ? std::strtol(rest + 1, nullptr, 10) : 0;
  return (major > 1 || minor >= kMinorWithReferences) && base->GetApi(kMinorWithReferences) == api;
}

// ONNX Runtime keeps pointers to the domains, so they are made once and live on.
void add_domains(const Runtime& runtime, OrtSessionOptions* options) {
  static std::mutex mutex;
  static auto& made = *new std::map<const OrtApi*, std::vector<OrtCustomOpDomain*>>;  // never destroyed
  const std::lock_guard<std::mutex> lock(mutex);
  std::vector<OrtCustomOpDomain*>& mine = made[runtime.api()];
  while (mine.size() < domains().size()) {
    const Domain& domain = domains()[mine.size()];
    OrtCustomOpDomain* handle;
    runtime.call<api::CreateCustomOpDomain>(domain.name, &handle);
    for (const OrtCustomOp* op : domain.ops) runtime.call<api::CustomOpDomain_Add>(handle, op);
    mine.push_back(handle);
  }
  for (OrtCustomOpDomain* handle : mine) runtime.call<api::AddCustomOpDomain>(options, handle);
}

const char* type_name(int type) {
  return type == float32 ? "float32" : type == float16 ? "float16" : type == bfloat16 ? "bfloat16" : "any";
}

// The operators that a file may use, with the types of their data.
std::string operators() {
  std::map<std::string, std::string> types;
  for (const OrtCustomOp* op : domains().front().ops) {
    std::string& list = types[op->GetName(op)];
    list += (list.empty() ? "\"" : ", \"") + std::string(type_name(op->GetInputType(op, 0))) + "\"";
  }
  std::string text;
  for (const auto& [name, list] : types) text += (text.empty() ? "\"" : ", \"") + name + "\": [" + list + "]";
  return "{" + text + "}";
}

// JSON, read by streamssm/native/library.py. Instructions: null if this processor cannot run any.
std::string description() {
  const Kernels* table = kernels();
  return "{\"version\": \"" STREAMSSM_VERSION "\", \"abi\": " + std::to_string(kLibraryAbi) +
         ", \"instructions\": " + (table ? "\"" + std::string(table->name) + "\"" : "null") +
         ", \"operators\": " + operators() + "}";
}

}  // namespace
}  // namespace streamssm::ort

STREAMSSM_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace streamssm::ort;
  const OrtApi* table = base->GetApi(kApiVersion);
  if (table == nullptr) std::abort();  // older than 1.17: there is no table to make a status with
  if (has_references(base, table)) Runtime::set_references(table);
  const Runtime runtime(table);
  return detail::guarded(runtime, [&] {
    best_kernels();
    add_domains(runtime, options);
  });
}

STREAMSSM_EXPORT const char* streamssm_ort_describe() {
  static const std::string text = streamssm::ort::description();
  return text.c_str();
}
