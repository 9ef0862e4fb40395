// ONNX Runtime, loaded when a model is opened, and what it runs.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "error.h"
#include "manifest.h"
#include "session_abi.h"

namespace streamssm::embed {

// Tells the program's logger, if it has set one.
void log(int level, const std::string& text) noexcept;
void set_logger(streamssm_logger logger, void* user) noexcept;

// What ONNX Runtime calls an input or output of a graph; a dimension that is not fixed is -1.
struct SessionPort {
  std::string name;
  int type = 0;
  Shape dims;
};

class Runtime {
 public:
  // The library at `path`, or by default one that is loaded already, or one that the loader finds. It stays
  // loaded.
  static std::shared_ptr<Runtime> open(const char* path);
  ~Runtime();

  const OrtApi* api() const { return api_; }
  const OrtApiBase* base() const { return base_; }
  const std::string& version() const { return version_; }
  bool at_least(int major, int minor) const { return major_ > major || (major_ == major && minor_ >= minor); }
  OrtEnv* environment() const { return environment_; }
  OrtMemoryInfo* memory() const { return memory_; }

  // Throws Error with the text of a status, which it releases.
  void check(OrtStatus* status) const {
    if (status != nullptr) raise(status);
  }
  template <class F, typename... Arguments>
  void call(Arguments... arguments) const {
    check(F::of(api_)(arguments...));
  }

 private:
  explicit Runtime(const OrtApiBase* base);
  [[noreturn, gnu::cold, gnu::noinline]] void raise(OrtStatus* status) const;

  const OrtApiBase* base_;
  const OrtApi* api_ = nullptr;
  std::string version_;
  int major_ = 0, minor_ = 0;
  OrtEnv* environment_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
};

class Session {
 public:
  // `folder` is where tensors lie that the model refers to; where `operators`, ours are part of the session.
  Session(std::shared_ptr<Runtime> runtime, Bytes model, const std::string& folder, bool operators);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const Runtime& runtime() const { return *runtime_; }
  OrtSession* get() const { return session_; }
  std::vector<SessionPort> inputs() const;
  std::vector<SessionPort> outputs() const;

 private:
  template <class Count, class Name, class Type>
  std::vector<SessionPort> ports() const;

  std::shared_ptr<Runtime> runtime_;
  OrtSession* session_ = nullptr;
};

// What a run reads and writes: memory of the caller's, bound once.
class Binding {
 public:
  explicit Binding(const Session& session);
  ~Binding();
  Binding(const Binding&) = delete;
  Binding& operator=(const Binding&) = delete;

  void input(const std::string& name, DType type, const Shape& shape, void* data);
  void output(const std::string& name, DType type, const Shape& shape, void* data);
  OrtStatus* run() const { return run_(session_.get(), nullptr, binding_); }

 private:
  OrtValue* value(DType type, const Shape& shape, void* data) const;

  const Session& session_;
  OrtIoBinding* binding_ = nullptr;
  ort::api::RunWithBinding::Pointer run_;
};

}  // namespace streamssm::embed
