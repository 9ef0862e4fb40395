// From a C++ class to an operator of ONNX Runtime.
//
// A class `Op` given to custom_op<Op>() has
//   static constexpr const char* name, static constexpr Port inputs[] and outputs[];
//   explicit Op(const Info&), which reads attributes and constant inputs, once for a node;
//   void compute(Context&) const, called by any number of threads at a time.
// Both may throw: the exception becomes the message of an OrtStatus and never crosses the ABI.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <new>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "abi.h"

namespace streamssm::ort {

constexpr int kMaxRank = 6;

class Failure : public std::exception {
 public:
  explicit Failure(std::string message, Code code = invalid_argument)
      : code(code), message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }
  const Code code;

 private:
  std::string message_;
};

// One input or output as an operator declares it. All that is variadic may mix types, comes
// last, and takes any number from 1 up.
struct Port {
  Type type;
  Kind kind = required;
};

// A view of a tensor; the memory is ONNX Runtime's.
struct Tensor {
  void* data = nullptr;
  Type type = any;
  int rank = 0;
  int64_t dims[kMaxRank];

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  // Elements in the dimensions from `first` on; more than can exist count as INT64_MAX.
  int64_t size(int first = 0) const {
    int64_t product = 1;
    for (int i = first; i < rank; ++i)
      if (dims[i] == 0) return 0;  // before any product: [2^62, 2^62, 0] is a shape
    for (int i = first; i < rank; ++i)
      if (__builtin_mul_overflow(product, dims[i], &product)) return INT64_MAX;
    return product;
  }
};

// "[2, 3, 5]"
inline std::string show(const int64_t* dims, size_t rank) {
  std::string text = "[";
  for (size_t i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}
inline std::string show(const Tensor& tensor) { return show(tensor.dims, size_t(tensor.rank)); }

[[noreturn, gnu::cold, gnu::noinline]] inline void refuse_shape(const char* name, const Tensor& tensor,
                                                                const char* letters, const int64_t* wanted,
                                                                size_t rank) {
  throw Failure(std::string(name) + " is " + show(tensor) + ", expected " + letters + " = " +
                show(wanted, rank));
}

[[noreturn, gnu::cold, gnu::noinline]] inline void refuse_rank(const char* name, const Tensor& tensor,
                                                               const char* letters) {
  throw Failure(std::string(name) + " is " + show(tensor) + ", expected " + letters);
}

// Refuses a tensor whose shape is not `wanted`, which `letters` explains, such as "[B, K-1, D]".
inline void expect(const char* name, const Tensor& tensor, const char* letters,
                   std::initializer_list<int64_t> wanted) {
  bool same = size_t(tensor.rank) == wanted.size();
  for (size_t i = 0; same && i < wanted.size(); ++i) same = tensor.dims[i] == wanted.begin()[i];
  if (!same) refuse_shape(name, tensor, letters, wanted.begin(), wanted.size());
}

inline void expect_rank(const char* name, const Tensor& tensor, const char* letters, int rank) {
  if (tensor.rank != rank) refuse_rank(name, tensor, letters);
}

// The functions of the running ONNX Runtime.
class Runtime {
 public:
  explicit Runtime(const OrtApi* api) : api_(api), references_(has_references(api)) {}

  const OrtApi* api() const { return api_; }

  template <class F, typename... Arguments>
  void call(Arguments... arguments) const {
    if (OrtStatus* status = F::of(api_)(arguments...)) raise(status);
  }

  // A null value, which an absent optional input is, gives a tensor without data of type `any`.
  Tensor view(const OrtValue* value) const {
    Tensor tensor;
    if (value == nullptr) return tensor;
    tensor.data = data(value);
    if (!references_) {
      view_by_copy(value, tensor);
      return tensor;
    }
    const int64_t* dims;
    size_t rank;
    int type;
    call<api::GetTensorElementTypeAndShapeDataReference>(value, &type, &dims, &rank);
    set_rank(tensor, rank);
    tensor.type = Type(type);
    for (size_t i = 0; i < rank; ++i) tensor.dims[i] = dims[i];
    check_dims(tensor);
    return tensor;
  }

  void* data(const OrtValue* value) const {
    void* memory;
    call<api::GetTensorMutableData>(const_cast<OrtValue*>(value), &memory);
    return memory;
  }

  OrtStatus* status(Code code, const char* message) const {
    return api::CreateStatus::of(api_)(code, message);
  }

  // Says that this table reaches version 24; see the registration.
  static void set_references(const OrtApi* api) { newest().store(api); }

 private:
  static std::atomic<const OrtApi*>& newest() {
    static std::atomic<const OrtApi*> table{nullptr};
    return table;
  }
  static bool has_references(const OrtApi* api) { return newest().load() == api; }

  static void set_rank(Tensor& tensor, size_t rank) {
    if (rank > size_t(kMaxRank))
      throw Failure("a tensor has " + std::to_string(rank) + " dimensions, at most " +
                    std::to_string(kMaxRank) + " are supported");
    tensor.rank = int(rank);
  }

  // Every dimension is below 2^31, so that products of two cannot overflow, not even beside a zero.
  static void check_dims(const Tensor& tensor) {
    int64_t bits = 0;
    for (int i = 0; i < tensor.rank; ++i) bits |= tensor.dims[i];
    if (uint64_t(bits) >> 31) throw Failure("a tensor of " + show(tensor) + " is too large");
  }

  [[gnu::noinline]] void view_by_copy(const OrtValue* value, Tensor& tensor) const {
    OrtTensorTypeAndShapeInfo* info;
    call<api::GetTensorTypeAndShape>(value, &info);
    struct Release {
      const OrtApi* api;
      OrtTensorTypeAndShapeInfo* info;
      ~Release() { api::ReleaseTensorTypeAndShapeInfo::of(api)(info); }
    } release{api_, info};
    int type;
    size_t rank;
    call<api::GetTensorElementType>(info, &type);
    call<api::GetDimensionsCount>(info, &rank);
    set_rank(tensor, rank);
    tensor.type = Type(type);
    call<api::GetDimensions>(info, tensor.dims, rank);
    check_dims(tensor);
  }

  [[noreturn, gnu::cold, gnu::noinline]] void raise(OrtStatus* status) const {
    std::string message = api::GetErrorMessage::of(api_)(status);
    api::ReleaseStatus::of(api_)(status);
    throw Failure(message, runtime_exception);
  }

  const OrtApi* api_;
  bool references_;
};

// What a node says about itself when its kernel is made.
class Info {
 public:
  Info(const Runtime& runtime, const OrtKernelInfo* info) : runtime_(runtime), info_(info) {}

  const Runtime& runtime() const { return runtime_; }

  int64_t integer(const char* name) const {
    int64_t value;
    runtime_.call<api::KernelInfoGetAttribute_int64>(info_, name, &value);
    return value;
  }
  float real(const char* name) const {
    float value;
    runtime_.call<api::KernelInfoGetAttribute_float>(info_, name, &value);
    return value;
  }
  std::vector<int64_t> integers(const char* name) const {
    return array<api::KernelInfoGetAttributeArray_int64, std::vector<int64_t>>(name);
  }
  std::vector<float> reals(const char* name) const {
    return array<api::KernelInfoGetAttributeArray_float, std::vector<float>>(name);
  }
  std::string text(const char* name) const {
    std::string value = array<api::KernelInfoGetAttribute_string, std::string>(name);
    if (!value.empty() && value.back() == '\0') value.pop_back();
    return value;
  }

  size_t inputs() const { return count<api::KernelInfo_GetInputCount>(); }
  size_t outputs() const { return count<api::KernelInfo_GetOutputCount>(); }

  // An input whose value is part of the model. Its memory lives as long as the session.
  std::optional<Tensor> constant(size_t index) const {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    runtime_.call<api::KernelInfoGetConstantInput_tensor>(info_, index, &is_constant, &value);
    if (!is_constant || value == nullptr) return std::nullopt;
    return runtime_.view(value);
  }

 private:
  template <class F, class Array>
  Array array(const char* name) const {
    size_t size = 0;  // the first call asks for the size; some versions call that an error
    if (OrtStatus* status = F::of(runtime_.api())(info_, name, nullptr, &size))
      api::ReleaseStatus::of(runtime_.api())(status);
    Array values(size, {});
    runtime_.call<F>(info_, name, values.data(), &size);
    values.resize(size);
    return values;
  }

  template <class F>
  size_t count() const {
    size_t value = 0;
    runtime_.call<F>(info_, &value);
    return value;
  }

  const Runtime& runtime_;
  const OrtKernelInfo* info_;
};

// The inputs and outputs of one call.
class Context {
 public:
  Context(const Runtime& runtime, OrtKernelContext* context) : runtime_(runtime), context_(context) {}

  const Runtime& runtime() const { return runtime_; }

  size_t inputs() const {
    size_t count;
    runtime_.call<api::KernelContext_GetInputCount>(context_, &count);
    return count;
  }
  size_t outputs() const {
    size_t count;
    runtime_.call<api::KernelContext_GetOutputCount>(context_, &count);
    return count;
  }

  Tensor input(size_t index) const { return runtime_.view(value(index)); }

  // Without type and shape, which cost more than the pointer: for an input known to be constant.
  template <typename T>
  const T* data(size_t index) const {
    return static_cast<const T*>(runtime_.data(value(index)));
  }

  // Memory for an output; null data if nobody reads an optional one.
  template <typename T>
  T* output(size_t index, const int64_t* dims, size_t rank) {
    OrtValue* value = nullptr;
    runtime_.call<api::KernelContext_GetOutput>(context_, index, dims, rank, &value);
    return value == nullptr ? nullptr : static_cast<T*>(runtime_.data(value));
  }
  template <typename T>
  T* output(size_t index, std::initializer_list<int64_t> dims) {
    return output<T>(index, dims.begin(), dims.size());
  }
  template <typename T>
  T* output_like(size_t index, const Tensor& tensor) {
    return output<T>(index, tensor.dims, size_t(tensor.rank));
  }

  // work(i) for every i in [0, total), by the session's own threads; it must not throw.
  template <class Work>
  void parallel(size_t total, const Work& work) const {
    auto body = [](void* data, size_t i) { (*static_cast<const Work*>(data))(i); };
    if (total == 1) return work(0);
    runtime_.call<api::KernelContext_ParallelFor>(context_, static_cast<void (*)(void*, size_t)>(body), total,
                                                  size_t{0}, const_cast<Work*>(&work));
  }

 private:
  const OrtValue* value(size_t index) const {
    const OrtValue* value;
    runtime_.call<api::KernelContext_GetInput>(context_, index, &value);
    return value;
  }

  const Runtime& runtime_;
  OrtKernelContext* context_;
};

namespace detail {

// Runs `work`; what it throws becomes a status.
template <class Work>
OrtStatus* guarded(const Runtime& runtime, const Work& work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const Failure& failure) {
    return runtime.status(failure.code, failure.what());
  } catch (const std::bad_alloc&) {
    return runtime.status(fail, "out of memory");
  } catch (const std::exception& error) {
    return runtime.status(fail, error.what());
  } catch (...) {
    return runtime.status(fail, "unknown exception");
  }
}

template <class Op>
struct Kernel {
  Kernel(const Runtime& runtime, const OrtKernelInfo* info) : runtime(runtime), op(Info(runtime, info)) {}
  const Runtime runtime;
  const Op op;
};

template <class Op>
struct Definition : OrtCustomOp {
  // past the end a variadic declaration goes on
  template <size_t N>
  static const Port& port(const Port (&ports)[N], size_t index) {
    return ports[index < N ? index : N - 1];
  }

  static OrtStatus* create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    const Runtime runtime(api);
    return guarded(runtime, [&] { *kernel = new Kernel<Op>(runtime, info); });
  }

  static OrtStatus* compute(void* kernel, OrtKernelContext* raw) {
    const auto* self = static_cast<const Kernel<Op>*>(kernel);
    return guarded(self->runtime, [&] {
      Context context(self->runtime, raw);
      self->op.compute(context);
    });
  }

  Definition() : OrtCustomOp{} {
    version = kApiVersion;
    GetName = [](const OrtCustomOp*) { return Op::name; };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU
    GetInputType = [](const OrtCustomOp*, size_t i) -> int { return port(Op::inputs, i).type; };
    GetInputTypeCount = [](const OrtCustomOp*) { return std::extent_v<decltype(Op::inputs)>; };
    GetOutputType = [](const OrtCustomOp*, size_t i) -> int { return port(Op::outputs, i).type; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return std::extent_v<decltype(Op::outputs)>; };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t i) -> int { return port(Op::inputs, i).kind; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t i) -> int { return port(Op::outputs, i).kind; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return kMemoryDefault; };
    GetVariadicInputMinArity = GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicInputHomogeneity = GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return 1; };
    CreateKernelV2 = create;
    KernelComputeV2 = compute;
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel<Op>*>(kernel); };
  }
};

}  // namespace detail

// The definition that ONNX Runtime is given; it lives as long as the library.
template <class Op>
const OrtCustomOp* custom_op() {
  static const detail::Definition<Op> definition;
  return &definition;
}

}  // namespace streamssm::ort
