#include "runtime.h"

#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <mutex>

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

namespace streamssm::embed {
namespace {

using namespace ort;  // the names of the ABI

constexpr int kOldestMajor = 1, kOldestMinor = 20;
constexpr int kSequential = 0, kWarnings = 2, kSilent = 4;
constexpr int kArenaAllocator = 1, kDefaultMemory = 0;
constexpr size_t kLongest = 400;  // of a message of ONNX Runtime's

#if defined(__APPLE__)
constexpr const char* kNames[] = {"libonnxruntime.1.dylib", "libonnxruntime.dylib"};
#else
constexpr const char* kNames[] = {"libonnxruntime.so.1", "libonnxruntime.so"};
#endif

std::mutex logger_lock;
streamssm_logger logger_function = nullptr;
void* logger_user = nullptr;

// On one line, of bounded length.
std::string one_line(const char* text) {
  std::string line;
  for (; *text != '\0' && line.size() < kLongest; ++text) {
    const bool space = *text == ' ' || *text == '\n' || *text == '\t' || *text == '\r';
    if (!space)
      line += *text;
    else if (!line.empty() && line.back() != ' ')
      line += ' ';
  }
  return *text == '\0' ? line : line + "...";
}

void STREAMSSM_ORT_CALL pass_on(void*, int severity, const char*, const char*, const char*,
                                const char* message) {
  try {
    log(severity > 3 ? 3 : severity, one_line(message));
  } catch (...) {  // no memory for a message that nobody asked for
  }
}

using GetBase = const OrtApiBase*(STREAMSSM_ORT_CALL*)();

GetBase symbol_in(void* library) { return reinterpret_cast<GetBase>(::dlsym(library, "OrtGetApiBase")); }

const OrtApiBase* base_of(const char* path) {
  // it reports on its use otherwise, and keeps an identifier in the home folder
  ::setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  if (path == nullptr)
    if (const GetBase loaded = symbol_in(RTLD_DEFAULT)) return loaded();
  std::string tried;
  for (const char* name : kNames) {
    if (path != nullptr) name = path;
    ::dlerror();
    void* library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) {
      if (const GetBase found = symbol_in(library)) return found();
      fail(STREAMSSM_ERROR_RUNTIME, name, " is no ONNX Runtime: it has no OrtGetApiBase");
    }
    const char* why = ::dlerror();
    tried += (tried.empty() ? "" : "; ") + one_line(why == nullptr ? name : why);
    if (path != nullptr) break;
  }
  fail(STREAMSSM_ERROR_RUNTIME, "ONNX Runtime cannot be loaded (", tried,
       "); install it, or name its library in "
       "options.runtime. In Python's wheel it is onnxruntime/capi/libonnxruntime.so.1.*");
}

}  // namespace

void set_logger(streamssm_logger logger, void* user) noexcept {
  const std::lock_guard<std::mutex> lock(logger_lock);
  logger_function = logger, logger_user = user;
}

void log(int level, const std::string& text) noexcept {
  streamssm_logger function;
  void* user;
  {
    const std::lock_guard<std::mutex> lock(logger_lock);
    function = logger_function, user = logger_user;
  }
  if (function == nullptr) return;
  try {
    function(user, level, text.c_str());
  } catch (...) {  // a logger in C++ that throws: nobody here may
  }
}

std::shared_ptr<Runtime> Runtime::open(const char* path) {
  // One environment for each library, as long as a model uses it.
  static std::mutex mutex;
  static std::map<const OrtApiBase*, std::weak_ptr<Runtime>> opened;
  const std::lock_guard<std::mutex> lock(mutex);
  const OrtApiBase* base = base_of(path);
  std::weak_ptr<Runtime>& known = opened[base];
  std::shared_ptr<Runtime> runtime = known.lock();
  if (!runtime) known = runtime = std::shared_ptr<Runtime>(new Runtime(base));
  return runtime;
}

Runtime::Runtime(const OrtApiBase* base) : base_(base) {
  if (base == nullptr) fail(STREAMSSM_ERROR_RUNTIME, "this ONNX Runtime gives no interface");
  version_ = base->GetVersionString();
  char* rest = nullptr;
  major_ = int(std::strtol(version_.c_str(), &rest, 10));
  if (*rest == '.') minor_ = int(std::strtol(rest + 1, nullptr, 10));
  if (!at_least(kOldestMajor, kOldestMinor))
    fail(STREAMSSM_ERROR_RUNTIME, "ONNX Runtime ", version_, " is too old; install ", kOldestMajor, ".",
         kOldestMinor, " or later");
  api_ = base->GetApi(kApiVersion);
  if (api_ == nullptr)
    fail(STREAMSSM_ERROR_RUNTIME, "ONNX Runtime ", version_, " has no interface of version ", kApiVersion);
  call<api::CreateEnvWithCustomLogger>(pass_on, static_cast<void*>(nullptr), kWarnings, "streamssm",
                                       &environment_);
  call<api::CreateCpuMemoryInfo>(kArenaAllocator, kDefaultMemory, &memory_);
}

Runtime::~Runtime() {
  if (memory_ != nullptr) api::ReleaseMemoryInfo::of(api_)(memory_);
  if (environment_ != nullptr) api::ReleaseEnv::of(api_)(environment_);
}

void Runtime::raise(OrtStatus* status) const {
  const std::string text = one_line(api::GetErrorMessage::of(api_)(status));
  api::ReleaseStatus::of(api_)(status);
  fail(STREAMSSM_ERROR_RUN, "onnxruntime ", version_, ": ", text);
}

Session::Session(std::shared_ptr<Runtime> runtime, Bytes model, const std::string& folder, bool operators)
    : runtime_(std::move(runtime)) {
  const Runtime& ort = *runtime_;
  OrtSessionOptions* made = nullptr;
  ort.call<api::CreateSessionOptions>(&made);
  const auto release = [&ort](OrtSessionOptions* options) {
    api::ReleaseSessionOptions::of(ort.api())(options);
  };
  const std::unique_ptr<OrtSessionOptions, decltype(release)> options(made, release);
  ort.call<api::SetIntraOpNumThreads>(made, 1);
  ort.call<api::SetInterOpNumThreads>(made, 1);
  ort.call<api::SetSessionExecutionMode>(made, kSequential);
  ort.call<api::SetSessionLogSeverityLevel>(made, kSilent);  // every failure is told, with its text
  // a waiting thread that spins burns a whole core between two chunks of a live stream
  for (const char* key : {"session.intra_op.allow_spinning", "session.inter_op.allow_spinning"})
    ort.call<api::AddSessionConfigEntry>(made, key, "0");
  if (!folder.empty())
    ort.call<api::AddSessionConfigEntry>(made, "session.model_external_initializers_file_folder_path",
                                         folder.c_str());
  if (operators) ort.check(RegisterCustomOps(made, ort.base()));
  ort.call<api::CreateSessionFromArray>(ort.environment(), static_cast<const void*>(model.data()),
                                        model.size(), made, &session_);
}

Session::~Session() {
  if (session_ != nullptr) api::ReleaseSession::of(runtime_->api())(session_);
}

std::vector<SessionPort> Session::inputs() const {
  return ports<api::SessionGetInputCount, api::SessionGetInputName, api::SessionGetInputTypeInfo>();
}

std::vector<SessionPort> Session::outputs() const {
  return ports<api::SessionGetOutputCount, api::SessionGetOutputName, api::SessionGetOutputTypeInfo>();
}

template <class Count, class Name, class Type>
std::vector<SessionPort> Session::ports() const {
  const Runtime& ort = *runtime_;
  size_t count = 0;
  OrtAllocator* allocator = nullptr;
  ort.call<Count>(session_, &count);
  ort.call<api::GetAllocatorWithDefaultOptions>(&allocator);
  std::vector<SessionPort> ports(count);
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    OrtTypeInfo* type = nullptr;
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;
    ort.call<Name>(session_, i, allocator, &name);
    ports[i].name = name;
    ort.call<api::AllocatorFree>(allocator, static_cast<void*>(name));
    ort.call<Type>(session_, i, &type);
    const auto release = [&ort](OrtTypeInfo* info) { api::ReleaseTypeInfo::of(ort.api())(info); };
    const std::unique_ptr<OrtTypeInfo, decltype(release)> owner(type, release);
    ort.call<api::CastTypeInfoToTensorInfo>(const_cast<const OrtTypeInfo*>(type), &tensor);
    if (tensor == nullptr) continue;
    size_t rank = 0;
    ort.call<api::GetTensorElementType>(tensor, &ports[i].type);
    ort.call<api::GetDimensionsCount>(tensor, &rank);
    ports[i].dims.resize(rank);
    ort.call<api::GetDimensions>(tensor, ports[i].dims.data(), rank);
  }
  return ports;
}

Binding::Binding(const Session& session)
    : session_(session), run_(api::RunWithBinding::of(session.runtime().api())) {
  session.runtime().call<api::CreateIoBinding>(session.get(), &binding_);
}

Binding::~Binding() {
  if (binding_ != nullptr) api::ReleaseIoBinding::of(session_.runtime().api())(binding_);
}

OrtValue* Binding::value(DType type, const Shape& shape, void* data) const {
  const Runtime& ort = session_.runtime();
  int64_t bytes = bytes_of(type);
  for (const int64_t size : shape) bytes *= size;
  OrtValue* value = nullptr;
  ort.call<api::CreateTensorWithDataAsOrtValue>(const_cast<const OrtMemoryInfo*>(ort.memory()), data,
                                                size_t(bytes), shape.data(), shape.size(), int(type), &value);
  return value;
}

void Binding::input(const std::string& name, DType type, const Shape& shape, void* data) {
  const Runtime& ort = session_.runtime();
  OrtValue* bound = value(type, shape, data);
  OrtStatus* status = api::BindInput::of(ort.api())(binding_, name.c_str(), bound);
  api::ReleaseValue::of(ort.api())(bound);
  ort.check(status);
}

void Binding::output(const std::string& name, DType type, const Shape& shape, void* data) {
  const Runtime& ort = session_.runtime();
  OrtValue* bound = value(type, shape, data);
  OrtStatus* status = api::BindOutput::of(ort.api())(binding_, name.c_str(), bound);
  api::ReleaseValue::of(ort.api())(bound);
  ort.check(status);
}

}  // namespace streamssm::embed
