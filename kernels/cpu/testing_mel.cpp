// A C interface to LogMel, for tests only (ctypes); no part of the library.
#include <memory>
#include <stdexcept>

#include "denormals.h"
#include "kernels.h"
#include "log_mel_tables.h"

using namespace streamssm;

extern "C" {

// Null where there can be no tables.
LogMelTables* test_log_mel_tables(const float* window, int64_t length, const float* filters, int64_t bands,
                                  int64_t hop, int64_t points, float eps) {
  try {
    return new LogMelTables(window, length, filters, bands, hop, points, eps);
  } catch (const std::invalid_argument&) {
    return nullptr;
  }
}

void test_log_mel_free(LogMelTables* tables) { delete tables; }

// Frames `frames` of x; scratch begins `shift` floats into a memory of garbage.
void test_log_mel(const Kernels* k, const LogMelTables* tables, const float* past, int64_t kept,
                  const float* x, float* y, int64_t shift, Range frames) {
  const FlushDenormals flush;
  const LogMelPlan& plan = tables->plan();
  const std::unique_ptr<float[]> scratch(new float[size_t(plan.scratch + shift)]);
  for (int64_t i = 0; i < plan.scratch + shift; ++i) scratch[size_t(i)] = __builtin_nanf("");
  k->log_mel(plan, past, kept, x, {y, plan.bands}, scratch.get() + shift, frames);
}

void test_keep_samples(const float* past, int64_t kept, const float* x, int64_t T, float* next) {
  keep_samples(past, kept, x, T, next);
}

}  // extern "C"
