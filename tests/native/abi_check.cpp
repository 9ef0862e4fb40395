// Compared at compile time: our declaration of ONNX Runtime's C ABI with the official header.
#include <onnxruntime_c_api.h>

#include <cstddef>
#include <type_traits>

// The same names in our header: give ours others.
#define OrtStatus OurStatus
#define OrtSessionOptions OurSessionOptions
#define OrtCustomOpDomain OurCustomOpDomain
#define OrtKernelInfo OurKernelInfo
#define OrtKernelContext OurKernelContext
#define OrtShapeInferContext OurShapeInferContext
#define OrtValue OurValue
#define OrtTensorTypeAndShapeInfo OurTensorTypeAndShapeInfo
#define OrtApi OurApi
#define OrtApiBase OurApiBase
#define OrtCustomOp OurCustomOp
#include "../../kernels/ort/abi.h"
#undef OrtApi
#undef OrtApiBase
#undef OrtCustomOp

namespace ours = streamssm::ort;
namespace functions = streamssm::ort::api;

template <typename F>
struct Arity;
template <typename R, typename... A>
struct Arity<R (*)(A...)> {
  static constexpr size_t count = sizeof...(A);
};
template <typename R, typename... A>
struct Arity<R (*)(A...) noexcept> {
  static constexpr size_t count = sizeof...(A);
};

#define SAME_SLOT(name)                                                                          \
  static_assert(offsetof(OrtApi, name) == functions::name::slot * sizeof(void*), #name);         \
  static_assert(Arity<decltype(OrtApi::name)>::count == functions::name::arguments, #name " arguments")

SAME_SLOT(CreateStatus);
SAME_SLOT(GetErrorMessage);
SAME_SLOT(ReleaseStatus);
SAME_SLOT(CreateCustomOpDomain);
SAME_SLOT(CustomOpDomain_Add);
SAME_SLOT(AddCustomOpDomain);
SAME_SLOT(GetTensorMutableData);
SAME_SLOT(GetTensorElementType);
SAME_SLOT(GetDimensionsCount);
SAME_SLOT(GetDimensions);
SAME_SLOT(GetTensorTypeAndShape);
SAME_SLOT(ReleaseTensorTypeAndShapeInfo);
SAME_SLOT(KernelInfoGetAttribute_float);
SAME_SLOT(KernelInfoGetAttribute_int64);
SAME_SLOT(KernelInfoGetAttribute_string);
SAME_SLOT(KernelInfoGetAttributeArray_float);
SAME_SLOT(KernelInfoGetAttributeArray_int64);
SAME_SLOT(KernelInfo_GetInputCount);
SAME_SLOT(KernelInfo_GetOutputCount);
SAME_SLOT(KernelInfoGetConstantInput_tensor);
SAME_SLOT(KernelContext_GetInputCount);
SAME_SLOT(KernelContext_GetOutputCount);
SAME_SLOT(KernelContext_GetInput);
SAME_SLOT(KernelContext_GetOutput);
SAME_SLOT(KernelContext_ParallelFor);
#if ORT_API_VERSION >= 24
SAME_SLOT(GetTensorElementTypeAndShapeDataReference);
#endif

#define SAME_MEMBER(name)                                                                    \
  static_assert(offsetof(OrtCustomOp, name) == offsetof(OurCustomOp, name), #name);          \
  static_assert(Arity<decltype(OrtCustomOp::name)>::count == Arity<decltype(OurCustomOp::name)>::count, \
                #name " arguments")

static_assert(offsetof(OrtCustomOp, version) == offsetof(OurCustomOp, version), "version");
SAME_MEMBER(CreateKernel);
SAME_MEMBER(GetName);
SAME_MEMBER(GetExecutionProviderType);
SAME_MEMBER(GetInputType);
SAME_MEMBER(GetInputTypeCount);
SAME_MEMBER(GetOutputType);
SAME_MEMBER(GetOutputTypeCount);
SAME_MEMBER(KernelCompute);
SAME_MEMBER(KernelDestroy);
SAME_MEMBER(GetInputCharacteristic);
SAME_MEMBER(GetOutputCharacteristic);
SAME_MEMBER(GetInputMemoryType);
SAME_MEMBER(GetVariadicInputMinArity);
SAME_MEMBER(GetVariadicInputHomogeneity);
SAME_MEMBER(GetVariadicOutputMinArity);
SAME_MEMBER(GetVariadicOutputHomogeneity);
SAME_MEMBER(CreateKernelV2);
SAME_MEMBER(KernelComputeV2);
SAME_MEMBER(InferOutputShapeFn);
SAME_MEMBER(GetStartVersion);
SAME_MEMBER(GetEndVersion);
// what follows in the official structure is of version 18 and later, which is not read
static_assert(sizeof(OurCustomOp) == offsetof(OrtCustomOp, GetMayInplace), "size");

static_assert(offsetof(OrtApiBase, GetApi) == offsetof(OurApiBase, GetApi), "GetApi");
static_assert(offsetof(OrtApiBase, GetVersionString) == offsetof(OurApiBase, GetVersionString), "version");
static_assert(ORT_API_VERSION >= ours::kApiVersion, "API version");

static_assert(int(ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED) == ours::any, "any");
static_assert(int(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) == ours::float32, "float32");
static_assert(int(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8) == ours::uint8, "uint8");
static_assert(int(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8) == ours::int8, "int8");
static_assert(int(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32) == ours::int32, "int32");
static_assert(int(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) == ours::int64, "int64");
static_assert(int(ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL) == ours::boolean, "boolean");
static_assert(int(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) == ours::float16, "float16");
static_assert(int(ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16) == ours::bfloat16, "bfloat16");
static_assert(int(INPUT_OUTPUT_REQUIRED) == ours::required, "required");
static_assert(int(INPUT_OUTPUT_OPTIONAL) == ours::optional, "optional");
static_assert(int(INPUT_OUTPUT_VARIADIC) == ours::variadic, "variadic");
static_assert(int(ORT_FAIL) == ours::fail, "fail");
static_assert(int(ORT_INVALID_ARGUMENT) == ours::invalid_argument, "invalid argument");
static_assert(int(ORT_RUNTIME_EXCEPTION) == ours::runtime_exception, "runtime exception");
static_assert(int(ORT_NOT_IMPLEMENTED) == ours::not_implemented, "not implemented");
static_assert(int(OrtMemTypeDefault) == ours::kMemoryDefault, "memory");
static_assert(sizeof(OrtErrorCode) == sizeof(int) && sizeof(ONNXTensorElementDataType) == sizeof(int), "enums");

// Our registration has the type that ONNX Runtime calls, but for the names of what it points to.
static_assert(std::is_pointer_v<RegisterCustomOpsFn>, "registration");

int main() {}
