// Where the plugins say what went wrong: TensorRT's logger, its error recorder, or else the standard error stream.
#pragma once

#include <NvInferRuntime.h>

#include <exception>
#include <string>

namespace streamssm::tensorrt {

// TensorRT gives this to a library that it loads; null takes it back.
void find_loggers_with(nvinfer1::ILoggerFinder* finder) noexcept;

void report(const std::string& text, nvinfer1::IErrorRecorder* recorder = nullptr) noexcept;

// A reference to an error recorder, or to none: while there is one, the application keeps the recorder.
class Recorder {
 public:
  explicit Recorder(nvinfer1::IErrorRecorder* recorder) noexcept : recorder_(recorder) {
    if (recorder_ != nullptr) recorder_->incRefCount();
  }
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;
  ~Recorder() {
    if (recorder_ != nullptr) recorder_->decRefCount();
  }
  nvinfer1::IErrorRecorder* get() const noexcept { return recorder_; }

 private:
  nvinfer1::IErrorRecorder* recorder_;
};

// Runs `work`. What it throws is reported, with `who` before it, and the answer is false: nothing crosses
// into TensorRT.
template <class Work>
bool guarded(const std::string& who, nvinfer1::IErrorRecorder* recorder, const Work& work) noexcept {
  try {
    work();
    return true;
  } catch (const std::exception& error) {
    report(who + ": " + error.what(), recorder);
  } catch (...) {
    report(who + ": unknown exception", recorder);
  }
  return false;
}

}  // namespace streamssm::tensorrt
