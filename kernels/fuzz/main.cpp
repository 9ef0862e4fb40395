// Drives the operators' own code through a table of functions as ONNX Runtime's, with random shapes,
// types and attributes, valid and damaged. Every call must return: with results that are written in
// full, its inputs as they were, or with a status that says why not. Built with sanitizers, which
// see every access that is not.
//
//   streamssm_fuzz SECONDS [SEED [CASES]]     a seed and CASES = 1 repeats one case
#include <algorithm>
#include <chrono>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../cpu/kernels.h"
#include "cases.h"
#include "fake_runtime.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// A sanitizer that has found something ends in SIGABRT, where the case is told.
#define SANITIZER_READS extern "C" __attribute__((visibility("default"), used))
SANITIZER_READS const char* __asan_default_options() { return "abort_on_error=1"; }
SANITIZER_READS const char* __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions*, const OrtApiBase*);
extern "C" int64_t streamssm_ort_lend(const float*, int64_t) noexcept;
extern "C" void streamssm_ort_take_back(int64_t) noexcept;

namespace ort = streamssm::ort;

namespace streamssm {

const Kernels* fuzzed_kernels = nullptr;

// What the operators call in this program: see kernels/ort/ops.h.
const Kernels* kernels_of_this_process() { return fuzzed_kernels; }

}  // namespace streamssm

namespace streamssm::fuzz {
namespace {

uint64_t current_seed = 0;
const char* current_op = "none";

void tell_case(int signal) {
  std::signal(signal, SIG_DFL);
  std::fprintf(stderr, "fuzz: %s, kernels %s; repeat with: streamssm_fuzz 0 %llu 1\n", current_op,
               fuzzed_kernels->name, static_cast<unsigned long long>(current_seed));
}

[[noreturn]] void die(const std::string& why) {
  std::fprintf(stderr, "fuzz: %s\n", why.c_str());
  std::abort();
}

void require(bool condition, const char* why) {
  if (!condition) die(why);
}

unsigned control_word() {
#if defined(__x86_64__)
  return _mm_getcsr() & ~0x3fu;  // less what past operations have raised
#else
  return 0;
#endif
}

struct Counts {
  long cases = 0, computed = 0, refused = 0;
};

// One node: made, called a few times, thrown away.
class Case {
 public:
  Case(const OrtCustomOp* op, const OrtApiBase* base, Random& random)
      : op_(op), api_(base->GetApi(ort::kApiVersion)), random_(random) {}

  void run(Counts& counts) {
    const std::unique_ptr<Node> node = draw_node(op_->GetName(op_), random_);
    damaged_ = random_.chance(0.5);
    special_ = random_.chance(0.1);
    Call call = node->call(random_);
    if (damaged_) damage(call, random_);
    const std::vector<float> weights = call.lent;
    const float none = 0;
    const float* data = weights.empty() ? &none : weights.data();
    const int64_t lent = streamssm_ort_lend(data, int64_t(weights.size()));
    if (call.integers.count("weights") && call.integers["weights"] == 0) call.integers["weights"] = lent;
    set_failures(random_.chance(0.1) ? 0.03 : 0.0, &random_);
    void* kernel = make_kernel(call, counts);
    for (int64_t left = random_.between(1, 3); kernel != nullptr && left > 0; --left) {
      compute(kernel, call, counts);
      if (left > 1) call = node->call(random_);
      if (damaged_ && left > 1) damage(call, random_);
    }
    if (kernel != nullptr) op_->KernelDestroy(kernel);
    set_failures(0.0, nullptr);
    streamssm_ort_take_back(lent);
  }

 private:
  int type_of(size_t input) const { return op_->GetInputType(op_, input); }

  std::shared_ptr<OrtValue> make_value(const Call& call, size_t index) {
    auto value = std::make_shared<OrtValue>(type_of(index), call.inputs[index].dims, random_);
    value->fill(random_, special_, damaged_);
    return value;
  }

  void* make_kernel(const Call& call, Counts& counts) {
    info_ = {call.integers, call.reals, call.lists, {}, call.outputs};
    for (size_t i = 0; i < call.inputs.size(); ++i) {
      const bool constant = call.inputs[i].parameter && random_.chance(0.7);
      info_.constants.push_back(constant ? make_value(call, i) : nullptr);
    }
    void* kernel = nullptr;
    OrtStatus* status = op_->CreateKernelV2(op_, api_, &info_, &kernel);
    if (status == nullptr) return kernel;
    settle(status, counts);
    return nullptr;
  }

  void compute(void* kernel, const Call& call, Counts& counts) {
    OrtKernelContext context;
    for (size_t i = 0; i < call.inputs.size(); ++i)
      context.inputs.push_back(i < info_.constants.size() && info_.constants[i] ? info_.constants[i]
                                                                                : make_value(call, i));
    place_outputs(call, context);
    std::vector<std::vector<unsigned char>> before;
    for (const auto& value : context.inputs) before.emplace_back(value->data, value->data + value->bytes());
    const unsigned control = control_word();
    OrtStatus* status = op_->KernelComputeV2(kernel, &context);
    require(control == control_word(), "the floating-point settings were left changed");
    check_memory(context, before);
    if (status != nullptr) return settle(status, counts);
    ++counts.computed;
    const bool complete = !damaged_ || std::strcmp(op_->GetName(op_), "Fused") != 0;
    for (const auto& value : context.outputs)
      require(value != nullptr && (!complete || value->is_written()), "an output was not written");
  }

  void place_outputs(const Call& call, OrtKernelContext& context) {
    context.outputs.resize(call.outputs);
    context.in_place.assign(call.outputs, -1);
    for (size_t i = 0; i < call.outputs; ++i) context.types.push_back(op_->GetOutputType(op_, i));
    for (size_t i = 0; i < call.inputs.size(); ++i) {
      const int output = call.inputs[i].output;
      if (output >= 0 && random_.chance(0.5)) context.in_place[size_t(output)] = int(i);
    }
  }

  static void check_memory(const OrtKernelContext& context,
                           const std::vector<std::vector<unsigned char>>& before) {
    for (size_t i = 0; i < context.inputs.size(); ++i) {
      const OrtValue& value = *context.inputs[i];
      require(value.guards_are_intact(), "a write beside an input");
      bool changes = false;
      for (const auto& output : context.outputs) changes |= output == context.inputs[i];
      require(changes || std::equal(before[i].begin(), before[i].end(), value.data), "an input was changed");
    }
    for (const auto& value : context.outputs)
      require(value == nullptr || value->guards_are_intact(), "a write beside an output");
  }

  // A status must have a reason: the call was damaged, or a function was made to fail.
  void settle(OrtStatus* status, Counts& counts) {
    ++counts.refused;
    const std::string message = status->message;
    delete status;
    require(!message.empty(), "a status without a message");
    if (!damaged_ && !has_failed()) die("a valid call was refused: " + message);
  }

  const OrtCustomOp* op_;
  const OrtApi* api_;
  Random& random_;
  bool special_ = false, damaged_ = false;
  OrtKernelInfo info_;
};

std::vector<const OrtCustomOp*> registered(const OrtApiBase* base) {
  OrtSessionOptions options;
  if (OrtStatus* status = RegisterCustomOps(&options, base)) die("registration: " + status->message);
  std::vector<const OrtCustomOp*> ops;
  for (const OrtCustomOpDomain* domain : options.domains)
    ops.insert(ops.end(), domain->ops.begin(), domain->ops.end());
  return ops;
}

std::vector<const Kernels*> tables() {
  std::vector<const Kernels*> found;
  for (const char* name : {"avx2", "avx512", "avx512vnni", "neon", "neon_dotprod"})
    if (const Kernels* table = kernels(name)) found.push_back(table);
  return found;
}

void run(double seconds, uint64_t seed, long most) {
  const std::vector<const Kernels*> all = tables();
  if (all.empty()) die("no kernels for this processor");
  fuzzed_kernels = all.front();
  const std::vector<const OrtCustomOp*> old_ops = registered(fake_runtime(false));
  const std::vector<const OrtCustomOp*> new_ops = registered(fake_runtime(true));
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  Counts counts;
  while (counts.cases < most && (most != LONG_MAX || std::chrono::steady_clock::now() < end)) {
    Random random(current_seed = seed + uint64_t(counts.cases++));
    const bool later = random.chance(0.5);
    const auto& ops = later ? new_ops : old_ops;
    const OrtCustomOp* op = ops[size_t(random.between(0, int64_t(ops.size()) - 1))];
    current_op = op->GetName(op);
    fuzzed_kernels = all[size_t(random.between(0, int64_t(all.size()) - 1))];
    Case(op, fake_runtime(later), random).run(counts);
  }
  std::printf("fuzz: %ld nodes from seed %llu: %ld calls computed, %ld refused with a reason\n", counts.cases,
              static_cast<unsigned long long>(seed), counts.computed, counts.refused);
}

}  // namespace
}  // namespace streamssm::fuzz

int main(int count, char** arguments) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 60;
  const uint64_t seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1;
  const long most = count > 3 ? std::atol(arguments[3]) : LONG_MAX;
  std::signal(SIGABRT, streamssm::fuzz::tell_case);
  streamssm::fuzz::run(seconds, seed, most);
}
