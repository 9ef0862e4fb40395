#include "report.h"

#include <atomic>
#include <cstdio>

namespace streamssm::tensorrt {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> loggers{nullptr};

}  // namespace

void find_loggers_with(nvinfer1::ILoggerFinder* finder) noexcept { loggers.store(finder); }

void report(const std::string& text, nvinfer1::IErrorRecorder* recorder) noexcept {
  if (recorder != nullptr) recorder->reportError(nvinfer1::ErrorCode::kINVALID_ARGUMENT, text.c_str());
  nvinfer1::ILoggerFinder* const finder = loggers.load();
  nvinfer1::ILogger* const logger = finder != nullptr ? finder->findLogger() : nullptr;
  if (logger != nullptr) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, text.c_str());
  } else {
    std::fprintf(stderr, "%s\n", text.c_str());
  }
}

}  // namespace streamssm::tensorrt
