// Makes the tables of a LogMelPlan, in double precision, for any length of the transform.
#pragma once

#include <cstdint>
#include <vector>

#include "log_mel_plan.h"

namespace streamssm {

// Owns the tables.
class LogMelTables {
 public:
  // window [length], filters [points / 2 + 1, bands] as in kernels/reference_mel.py; all sizes are at
  // least 1, and length <= points. Throws std::invalid_argument if the tables would be huge.
  LogMelTables(const float* window, int64_t length, const float* filters, int64_t bands, int64_t hop,
               int64_t points, float eps);
  LogMelTables(const LogMelTables&) = delete;
  LogMelTables& operator=(const LogMelTables&) = delete;

  const LogMelPlan& plan() const { return plan_; }

 private:
  void split_points();
  void make_matrix();
  void make_twiddles();
  void make_roots();
  void make_places();
  void make_bands(const float* filters);
  void point_at_tables();

  LogMelPlan plan_{};
  std::vector<float> window_, cosine_, sine_, twiddle_re_, twiddle_im_, roots_, band_weights_;
  std::vector<int64_t> radices_;
  std::vector<int32_t> places_, band_first_, band_width_;
};

// The last `kept` samples of past [kept] and x [T] become next, which may be past.
void keep_samples(const float* past, int64_t kept, const float* x, int64_t T, float* next);

}  // namespace streamssm
