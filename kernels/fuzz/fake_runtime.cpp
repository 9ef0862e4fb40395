#include "fake_runtime.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <thread>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(start, size) ((void)(start), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(start, size) ((void)(start), (void)(size))
#endif

using streamssm::fuzz::Random;
namespace ort = streamssm::ort;

namespace {

constexpr int64_t kGuard = 256;
constexpr unsigned char kUntouched = 0xa5;  // as a float -2.9e-16, which no result is by chance

int64_t element_size(int type) {
  return type == ort::int64 ? 8 : type == ort::float16 || type == ort::bfloat16 ? 2 : 4;
}

uint16_t narrow(float value, int type) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (type == ort::bfloat16) return uint16_t(bits >> 16);
  const int exponent = int(bits >> 23 & 255) - 127 + 15;
  if (exponent <= 0) return uint16_t(bits >> 16 & 0x8000);
  if (exponent >= 31) return uint16_t((bits >> 16 & 0x8000) | 0x7c00 | (value != value));
  return uint16_t((bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 0x3ff));
}

float special_value(Random& random) {
  const float infinity = std::numeric_limits<float>::infinity();
  return random.one_of({infinity, -infinity, std::numeric_limits<float>::quiet_NaN(), 3e38f, -3e38f, 1e-40f,
                        -1e-42f, 0.0f, -0.0f, 1e10f, -1e10f});
}

}  // namespace

OrtValue::OrtValue(int type, std::vector<int64_t> dims, Random& random) : type(type), dims(std::move(dims)) {
  const int64_t shift = element_size(type) * random.between(0, 16);  // data need not be aligned
  memory_.assign(size_t(2 * kGuard + shift + bytes() + 8), kUntouched);
  data = memory_.data() + kGuard + shift;
  ASAN_POISON_MEMORY_REGION(memory_.data(), data - memory_.data());
  ASAN_POISON_MEMORY_REGION(data + bytes(), memory_.data() + memory_.size() - (data + bytes()));
}

OrtValue::~OrtValue() { ASAN_UNPOISON_MEMORY_REGION(memory_.data(), memory_.size()); }

int64_t OrtValue::size() const {
  int64_t product = 1;
  if (std::count(dims.begin(), dims.end(), 0)) return 0;
  for (const int64_t dim : dims) product *= dim;
  return product;
}

int64_t OrtValue::bytes() const { return size() * element_size(type); }

void OrtValue::fill(Random& random, bool special, bool damaged) {
  for (int64_t i = 0; i < size(); ++i) {
    if (type == ort::int64) {
      const int64_t value = damaged && random.chance(0.2) ? int64_t(random.bits()) : random.between(0, 100);
      std::memcpy(data + 8 * i, &value, 8);
      continue;
    }
    const float value = special && random.chance(0.05) ? special_value(random) : random.normal();
    const uint16_t half = narrow(value, type);
    if (type == ort::float32) std::memcpy(data + 4 * i, &value, 4);
    else std::memcpy(data + 2 * i, &half, 2);
  }
}

bool OrtValue::guards_are_intact() const {
  ASAN_UNPOISON_MEMORY_REGION(memory_.data(), memory_.size());
  const unsigned char *begin = memory_.data(), *end = begin + memory_.size();
  auto intact = [](unsigned char byte) { return byte == kUntouched; };
  return std::all_of(begin, const_cast<const unsigned char*>(data), intact) &&
         std::all_of(const_cast<const unsigned char*>(data + bytes()), end, intact);
}

bool OrtValue::is_written() const {
  const int64_t step = element_size(type);
  int64_t untouched = 0;
  for (int64_t at = 0; at < bytes(); at += step)
    untouched += std::count(data + at, data + at + step, kUntouched) == step;
  return untouched <= (step == 2 ? 1 + size() / 50 : 0);  // one of 65536 halves is it by chance
}

struct OrtTensorTypeAndShapeInfo {
  const OrtValue* value;
};

namespace streamssm::fuzz {
namespace {

double failure_probability = 0;
Random* failure_random = nullptr;
bool failed = false;

OrtStatus* make_status(int code, const char* message) { return new OrtStatus{code, message}; }

// Null, or now and then a failure that has no reason.
OrtStatus* perhaps() {
  if (failure_probability == 0 || !failure_random->chance(failure_probability)) return nullptr;
  failed = true;
  return make_status(ort::fail, "made to fail");
}

const char* message_of(const OrtStatus* status) { return status->message.c_str(); }
void release_status(OrtStatus* status) { delete status; }

OrtStatus* create_domain(const char* name, OrtCustomOpDomain** out) {
  static std::vector<std::unique_ptr<OrtCustomOpDomain>> all;
  all.push_back(std::make_unique<OrtCustomOpDomain>());
  all.back()->name = name;
  *out = all.back().get();
  return nullptr;
}
OrtStatus* add_to_domain(OrtCustomOpDomain* domain, const OrtCustomOp* op) {
  domain->ops.push_back(op);
  return nullptr;
}
OrtStatus* add_domain(OrtSessionOptions* options, OrtCustomOpDomain* domain) {
  options->domains.push_back(domain);
  return nullptr;
}

OrtStatus* tensor_data(OrtValue* value, void** out) {
  *out = value->data;
  return perhaps();
}
OrtStatus* type_and_shape(const OrtValue* value, OrtTensorTypeAndShapeInfo** out) {
  if (OrtStatus* status = perhaps()) return status;
  *out = new OrtTensorTypeAndShapeInfo{value};
  return nullptr;
}
void release_type_and_shape(OrtTensorTypeAndShapeInfo* info) { delete info; }
OrtStatus* element_type(const OrtTensorTypeAndShapeInfo* info, int* out) {
  *out = info->value->type;
  return perhaps();
}
OrtStatus* rank(const OrtTensorTypeAndShapeInfo* info, size_t* out) {
  *out = info->value->dims.size();
  return perhaps();
}
OrtStatus* dimensions(const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t count) {
  std::copy_n(info->value->dims.begin(), std::min(count, info->value->dims.size()), out);
  return perhaps();
}
OrtStatus* shape_reference(const OrtValue* value, int* type, const int64_t** shape, size_t* count) {
  *type = value->type, *shape = value->dims.data(), *count = value->dims.size();
  return perhaps();
}

template <typename T>
OrtStatus* attribute(const std::map<std::string, T>& all, const char* name, T* out) {
  const auto found = all.find(name);
  if (found == all.end()) return make_status(ort::fail, "no such attribute");
  *out = found->second;
  return perhaps();
}
OrtStatus* real(const OrtKernelInfo* info, const char* name, float* out) {
  return attribute(info->reals, name, out);
}
OrtStatus* integer(const OrtKernelInfo* info, const char* name, int64_t* out) {
  return attribute(info->integers, name, out);
}
OrtStatus* integers(const OrtKernelInfo* info, const char* name, int64_t* out, size_t* size) {
  const auto found = info->lists.find(name);
  if (found == info->lists.end()) return make_status(ort::fail, "no such attribute");
  const std::vector<int64_t>& list = found->second;
  if (out != nullptr && *size < list.size()) return make_status(ort::invalid_argument, "too small");
  if (out != nullptr) std::copy(list.begin(), list.end(), out);
  *size = list.size();
  return perhaps();
}
OrtStatus* info_inputs(const OrtKernelInfo* info, size_t* out) {
  *out = info->constants.size();
  return perhaps();
}
OrtStatus* info_outputs(const OrtKernelInfo* info, size_t* out) {
  *out = info->outputs;
  return perhaps();
}
OrtStatus* constant(const OrtKernelInfo* info, size_t index, int* is_constant, const OrtValue** out) {
  if (index >= info->constants.size()) return make_status(ort::invalid_argument, "no such input");
  *out = info->constants[index].get();
  *is_constant = *out != nullptr;
  return perhaps();
}

OrtStatus* context_inputs(const OrtKernelContext* context, size_t* out) {
  *out = context->inputs.size();
  return perhaps();
}
OrtStatus* context_outputs(const OrtKernelContext* context, size_t* out) {
  *out = context->types.size();
  return perhaps();
}
OrtStatus* input(const OrtKernelContext* context, size_t index, const OrtValue** out) {
  if (index >= context->inputs.size()) return make_status(ort::invalid_argument, "no such input");
  *out = context->inputs[index].get();
  return perhaps();
}
bool is_allocatable(const int64_t* shape, size_t count) {
  if (std::any_of(shape, shape + count, [](int64_t dim) { return dim < 0; })) return false;
  double size = 1;
  for (size_t i = 0; i < count; ++i) size *= double(shape[i]);
  return size < 1e8;
}
OrtStatus* output(OrtKernelContext* context, size_t index, const int64_t* shape, size_t count,
                  OrtValue** out) {
  if (index >= context->types.size()) return make_status(ort::invalid_argument, "no such output");
  if (!is_allocatable(shape, count)) return make_status(ort::fail, "no such shape, or too large");
  if (OrtStatus* status = perhaps()) return status;
  const std::vector<int64_t> dims(shape, shape + count);
  const int from = context->in_place[index];
  if (from >= 0 && context->inputs[size_t(from)]->dims == dims) {
    context->outputs[index] = context->inputs[size_t(from)];
  } else {
    context->in_place[index] = -1;
    Random random(index + count);
    context->outputs[index] = std::make_shared<OrtValue>(context->types[index], dims, random);
  }
  *out = context->outputs[index].get();
  return nullptr;
}

// Two threads, one from either end.
OrtStatus* parallel(const OrtKernelContext*, void (*work)(void*, size_t), size_t total, size_t, void* data) {
  if (OrtStatus* status = perhaps()) return status;
  std::thread other([&] {
    for (size_t i = total; i > total / 2; --i) work(data, i - 1);
  });
  for (size_t i = 0; i < total / 2; ++i) work(data, i);
  other.join();
  return nullptr;
}

[[noreturn]] void unexpected() {
  std::fputs("fuzz: a function was called that the library does not declare\n", stderr);
  std::abort();
}

constexpr size_t kSlots = 500;

struct Table {
  Table() {
    std::fill(std::begin(slots), std::end(slots), unexpected);
    set<ort::api::CreateStatus>(make_status);
    set<ort::api::GetErrorMessage>(message_of);
    set<ort::api::ReleaseStatus>(release_status);
    set<ort::api::CreateCustomOpDomain>(create_domain);
    set<ort::api::CustomOpDomain_Add>(add_to_domain);
    set<ort::api::AddCustomOpDomain>(add_domain);
    set<ort::api::GetTensorMutableData>(tensor_data);
    set<ort::api::GetTensorTypeAndShape>(type_and_shape);
    set<ort::api::ReleaseTensorTypeAndShapeInfo>(release_type_and_shape);
    set<ort::api::GetTensorElementType>(element_type);
    set<ort::api::GetDimensionsCount>(rank);
    set<ort::api::GetDimensions>(dimensions);
    set<ort::api::GetTensorElementTypeAndShapeDataReference>(shape_reference);
    set<ort::api::KernelInfoGetAttribute_float>(real);
    set<ort::api::KernelInfoGetAttribute_int64>(integer);
    set<ort::api::KernelInfoGetAttributeArray_int64>(integers);
    set<ort::api::KernelInfo_GetInputCount>(info_inputs);
    set<ort::api::KernelInfo_GetOutputCount>(info_outputs);
    set<ort::api::KernelInfoGetConstantInput_tensor>(constant);
    set<ort::api::KernelContext_GetInputCount>(context_inputs);
    set<ort::api::KernelContext_GetOutputCount>(context_outputs);
    set<ort::api::KernelContext_GetInput>(input);
    set<ort::api::KernelContext_GetOutput>(output);
    set<ort::api::KernelContext_ParallelFor>(parallel);
  }
  template <class F>
  void set(typename F::Pointer function) {
    slots[F::slot] = reinterpret_cast<void (*)()>(function);
  }
  void (*slots[kSlots])();
};

// One table for each version, so that the library can tell them apart.
const Table old_table, new_table;

const OrtApi* old_api(uint32_t version) {
  return version < 24 ? reinterpret_cast<const OrtApi*>(old_table.slots) : nullptr;
}
const OrtApi* new_api(uint32_t) { return reinterpret_cast<const OrtApi*>(new_table.slots); }

const OrtApiBase old_base{old_api, [] { return "1.20.1"; }};
const OrtApiBase new_base{new_api, [] { return "1.31.1"; }};

}  // namespace

const OrtApiBase* fake_runtime(bool later) { return later ? &new_base : &old_base; }

void set_failures(double probability, Random* random) {
  failure_probability = probability;
  failure_random = random;
  failed = false;
}

bool has_failed() { return failed; }

}  // namespace streamssm::fuzz
