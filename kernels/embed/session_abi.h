// The part of ONNX Runtime's C ABI that opens and runs a model, beside what kernels/ort/abi.h declares for
// operators. tests/embed/abi_check.cpp compares every number with the official header where that is found.
// Source: onnxruntime_c_api.h, API version 17.
#pragma once

#include "../ort/abi.h"

extern "C" {

struct OrtEnv;
struct OrtSession;
struct OrtRunOptions;
struct OrtIoBinding;
struct OrtMemoryInfo;
struct OrtAllocator;
struct OrtTypeInfo;

using OrtLoggingFunction = void(STREAMSSM_ORT_CALL*)(void* param, int severity, const char* category,
                                                     const char* logid, const char* code_location,
                                                     const char* message);

}  // extern "C"

namespace streamssm::ort::api {

using CreateEnvWithCustomLogger =
    Function<4, OrtStatus*(OrtLoggingFunction, void* param, int severity, const char* logid, OrtEnv**)>;
using DisableTelemetryEvents = Function<6, OrtStatus*(const OrtEnv*)>;
using CreateSessionFromArray =
    Function<8, OrtStatus*(const OrtEnv*, const void*, size_t, const OrtSessionOptions*, OrtSession**)>;
using CreateSessionOptions = Function<10, OrtStatus*(OrtSessionOptions**)>;
using SetSessionExecutionMode = Function<13, OrtStatus*(OrtSessionOptions*, int)>;
using SetSessionLogSeverityLevel = Function<22, OrtStatus*(OrtSessionOptions*, int)>;
using SetIntraOpNumThreads = Function<24, OrtStatus*(OrtSessionOptions*, int)>;
using SetInterOpNumThreads = Function<25, OrtStatus*(OrtSessionOptions*, int)>;
using SessionGetInputCount = Function<30, OrtStatus*(const OrtSession*, size_t*)>;
using SessionGetOutputCount = Function<31, OrtStatus*(const OrtSession*, size_t*)>;
using SessionGetInputTypeInfo = Function<33, OrtStatus*(const OrtSession*, size_t, OrtTypeInfo**)>;
using SessionGetOutputTypeInfo = Function<34, OrtStatus*(const OrtSession*, size_t, OrtTypeInfo**)>;
using SessionGetInputName = Function<36, OrtStatus*(const OrtSession*, size_t, OrtAllocator*, char**)>;
using SessionGetOutputName = Function<37, OrtStatus*(const OrtSession*, size_t, OrtAllocator*, char**)>;
using CreateTensorWithDataAsOrtValue =
    Function<49, OrtStatus*(const OrtMemoryInfo*, void* data, size_t bytes, const int64_t* shape, size_t rank,
                            int type, OrtValue**)>;
using CastTypeInfoToTensorInfo =
    Function<55, OrtStatus*(const OrtTypeInfo*, const OrtTensorTypeAndShapeInfo**)>;
using CreateCpuMemoryInfo = Function<69, OrtStatus*(int allocator, int memory, OrtMemoryInfo**)>;
using AllocatorFree = Function<76, OrtStatus*(OrtAllocator*, void*)>;
using GetAllocatorWithDefaultOptions = Function<78, OrtStatus*(OrtAllocator**)>;
using ReleaseEnv = Function<92, void(OrtEnv*)>;
using ReleaseMemoryInfo = Function<94, void(OrtMemoryInfo*)>;
using ReleaseSession = Function<95, void(OrtSession*)>;
using ReleaseValue = Function<96, void(OrtValue*)>;
using ReleaseTypeInfo = Function<98, void(OrtTypeInfo*)>;
using ReleaseSessionOptions = Function<100, void(OrtSessionOptions*)>;
using AddSessionConfigEntry =
    Function<130, OrtStatus*(OrtSessionOptions*, const char* key, const char* value)>;
using RunWithBinding = Function<133, OrtStatus*(OrtSession*, const OrtRunOptions*, const OrtIoBinding*)>;
using CreateIoBinding = Function<134, OrtStatus*(OrtSession*, OrtIoBinding**)>;
using ReleaseIoBinding = Function<135, void(OrtIoBinding*)>;
using BindInput = Function<136, OrtStatus*(OrtIoBinding*, const char* name, const OrtValue*)>;
using BindOutput = Function<137, OrtStatus*(OrtIoBinding*, const char* name, const OrtValue*)>;

}  // namespace streamssm::ort::api
