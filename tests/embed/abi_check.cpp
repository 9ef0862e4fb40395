// Compared at compile time: kernels/embed/session_abi.h with the official header.
#include <onnxruntime_c_api.h>

#include <cstddef>

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
#define OrtEnv OurEnv
#define OrtSession OurSession
#define OrtRunOptions OurRunOptions
#define OrtIoBinding OurIoBinding
#define OrtMemoryInfo OurMemoryInfo
#define OrtAllocator OurAllocator
#define OrtTypeInfo OurTypeInfo
#define OrtLoggingFunction OurLoggingFunction
#include "../../kernels/embed/session_abi.h"
#undef OrtApi

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

#define SAME_SLOT(name)                                                                  \
  static_assert(offsetof(OrtApi, name) == functions::name::slot * sizeof(void*), #name); \
  static_assert(Arity<decltype(OrtApi::name)>::count == functions::name::arguments, #name " arguments")

SAME_SLOT(CreateEnvWithCustomLogger);
SAME_SLOT(DisableTelemetryEvents);
SAME_SLOT(CreateSessionFromArray);
SAME_SLOT(CreateSessionOptions);
SAME_SLOT(SetSessionExecutionMode);
SAME_SLOT(SetSessionLogSeverityLevel);
SAME_SLOT(SetIntraOpNumThreads);
SAME_SLOT(SetInterOpNumThreads);
SAME_SLOT(SessionGetInputCount);
SAME_SLOT(SessionGetOutputCount);
SAME_SLOT(SessionGetInputTypeInfo);
SAME_SLOT(SessionGetOutputTypeInfo);
SAME_SLOT(SessionGetInputName);
SAME_SLOT(SessionGetOutputName);
SAME_SLOT(CreateTensorWithDataAsOrtValue);
SAME_SLOT(CastTypeInfoToTensorInfo);
SAME_SLOT(CreateCpuMemoryInfo);
SAME_SLOT(AllocatorFree);
SAME_SLOT(GetAllocatorWithDefaultOptions);
SAME_SLOT(ReleaseEnv);
SAME_SLOT(ReleaseMemoryInfo);
SAME_SLOT(ReleaseSession);
SAME_SLOT(ReleaseValue);
SAME_SLOT(ReleaseTypeInfo);
SAME_SLOT(ReleaseSessionOptions);
SAME_SLOT(AddSessionConfigEntry);
SAME_SLOT(RunWithBinding);
SAME_SLOT(CreateIoBinding);
SAME_SLOT(ReleaseIoBinding);
SAME_SLOT(BindInput);
SAME_SLOT(BindOutput);

static_assert(ORT_LOGGING_LEVEL_WARNING == 2 && ORT_LOGGING_LEVEL_FATAL == 4 && ORT_SEQUENTIAL == 0 &&
                  OrtArenaAllocator == 1 && OrtMemTypeDefault == 0,
              "enumerations of runtime.cpp");
