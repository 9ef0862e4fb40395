// The part of ONNX Runtime's C ABI that a custom-op library uses, declared here so that the
// build needs no ONNX Runtime. The ABI is stable by design: functions are only ever appended
// to the table, so their places never change.
//
// tests/native/test_abi.py compares every number below with the official header where that is
// found. Source: onnxruntime_c_api.h, API version 17 (ONNX Runtime 1.17 and all later ones),
// and one function of version 24, used where the running version has it.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define STREAMSSM_ORT_CALL __stdcall
#else
#define STREAMSSM_ORT_CALL
#endif

extern "C" {

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;

// Not the official declaration: a table of functions, reached by streamssm::ort::Function.
struct OrtApi {
  void (*slots[1])();
};

struct OrtApiBase {
  const OrtApi*(STREAMSSM_ORT_CALL* GetApi)(uint32_t version);
  const char*(STREAMSSM_ORT_CALL* GetVersionString)();
};

// What ONNX Runtime asks of an operator; complete up to version 17. Enumerations are passed as
// int, which is what they are in C.
struct OrtCustomOp {
  uint32_t version;
  void*(STREAMSSM_ORT_CALL* CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char*(STREAMSSM_ORT_CALL* GetName)(const OrtCustomOp*);
  const char*(STREAMSSM_ORT_CALL* GetExecutionProviderType)(const OrtCustomOp*);
  int(STREAMSSM_ORT_CALL* GetInputType)(const OrtCustomOp*, size_t index);
  size_t(STREAMSSM_ORT_CALL* GetInputTypeCount)(const OrtCustomOp*);
  int(STREAMSSM_ORT_CALL* GetOutputType)(const OrtCustomOp*, size_t index);
  size_t(STREAMSSM_ORT_CALL* GetOutputTypeCount)(const OrtCustomOp*);
  void(STREAMSSM_ORT_CALL* KernelCompute)(void* kernel, OrtKernelContext*);
  void(STREAMSSM_ORT_CALL* KernelDestroy)(void* kernel);
  int(STREAMSSM_ORT_CALL* GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  int(STREAMSSM_ORT_CALL* GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  int(STREAMSSM_ORT_CALL* GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int(STREAMSSM_ORT_CALL* GetVariadicInputMinArity)(const OrtCustomOp*);
  int(STREAMSSM_ORT_CALL* GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int(STREAMSSM_ORT_CALL* GetVariadicOutputMinArity)(const OrtCustomOp*);
  int(STREAMSSM_ORT_CALL* GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus*(STREAMSSM_ORT_CALL* CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*,
                                                 void** kernel);
  OrtStatus*(STREAMSSM_ORT_CALL* KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus*(STREAMSSM_ORT_CALL* InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int(STREAMSSM_ORT_CALL* GetStartVersion)(const OrtCustomOp*);
  int(STREAMSSM_ORT_CALL* GetEndVersion)(const OrtCustomOp*);
};

}  // extern "C"

namespace streamssm::ort {

constexpr uint32_t kApiVersion = 17;

// ONNXTensorElementDataType; `any` (undefined) in a declaration admits every type.
enum Type : int {
  any = 0,
  float32 = 1,
  uint8 = 2,
  int8 = 3,
  int32 = 6,
  int64 = 7,
  boolean = 9,
  float16 = 10,
  bfloat16 = 16,
};

// OrtCustomOpInputOutputCharacteristic
enum Kind : int { required = 0, optional = 1, variadic = 2 };

// OrtErrorCode
enum Code : int { fail = 1, invalid_argument = 2, runtime_exception = 6, not_implemented = 9 };

constexpr int kMemoryDefault = 0;  // OrtMemTypeDefault

// The function of type F at one place of the table: Function<...>::of(api)(arguments).
template <size_t Slot, typename F>
struct Function;

template <size_t Slot, typename Result, typename... Arguments>
struct Function<Slot, Result(Arguments...)> {
  static constexpr size_t slot = Slot;
  static constexpr size_t arguments = sizeof...(Arguments);
  using Pointer = Result(STREAMSSM_ORT_CALL*)(Arguments...);

  static Pointer of(const OrtApi* api) { return reinterpret_cast<Pointer>(api->slots[Slot]); }
};

// Each returns null, or a status that the caller must release or pass on.
namespace api {

using CreateStatus = Function<0, OrtStatus*(int code, const char* message)>;
using GetErrorMessage = Function<2, const char*(const OrtStatus*)>;
using ReleaseStatus = Function<93, void(OrtStatus*)>;

using CreateCustomOpDomain = Function<26, OrtStatus*(const char* name, OrtCustomOpDomain**)>;
using CustomOpDomain_Add = Function<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)>;
using AddCustomOpDomain = Function<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)>;

using GetTensorMutableData = Function<51, OrtStatus*(OrtValue*, void**)>;
using GetTensorElementType = Function<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int*)>;
using GetDimensionsCount = Function<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*)>;
using GetDimensions = Function<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t count)>;
using GetTensorTypeAndShape = Function<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>;
using ReleaseTensorTypeAndShapeInfo = Function<99, void(OrtTensorTypeAndShapeInfo*)>;
// Version 24: type and shape without an allocation.
using GetTensorElementTypeAndShapeDataReference =
    Function<414, OrtStatus*(const OrtValue*, int* type, const int64_t** shape, size_t* rank)>;

using KernelInfoGetAttribute_float = Function<85, OrtStatus*(const OrtKernelInfo*, const char*, float*)>;
using KernelInfoGetAttribute_int64 = Function<86, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*)>;
using KernelInfoGetAttribute_string =
    Function<87, OrtStatus*(const OrtKernelInfo*, const char*, char*, size_t*)>;
using KernelInfoGetAttributeArray_float =
    Function<162, OrtStatus*(const OrtKernelInfo*, const char*, float*, size_t*)>;
using KernelInfoGetAttributeArray_int64 =
    Function<163, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*, size_t*)>;
using KernelInfo_GetInputCount = Function<230, OrtStatus*(const OrtKernelInfo*, size_t*)>;
using KernelInfo_GetOutputCount = Function<231, OrtStatus*(const OrtKernelInfo*, size_t*)>;
using KernelInfoGetConstantInput_tensor =
    Function<249, OrtStatus*(const OrtKernelInfo*, size_t index, int* is_constant, const OrtValue**)>;

using KernelContext_GetInputCount = Function<88, OrtStatus*(const OrtKernelContext*, size_t*)>;
using KernelContext_GetOutputCount = Function<89, OrtStatus*(const OrtKernelContext*, size_t*)>;
using KernelContext_GetInput = Function<90, OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)>;
using KernelContext_GetOutput =
    Function<91, OrtStatus*(OrtKernelContext*, size_t, const int64_t* shape, size_t rank, OrtValue**)>;
using KernelContext_ParallelFor = Function<
    274, OrtStatus*(const OrtKernelContext*, void (*)(void*, size_t), size_t total, size_t batches, void*)>;

}  // namespace api

}  // namespace streamssm::ort
