#include "log_mel_tables.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace streamssm {
namespace {

// cos and -sin of 2 pi turn / points; the turn is reduced while it is whole, so no digit is lost.
struct Root {
  Root(int64_t turn, int64_t points) {
    const double angle = 6.283185307179586 * double(turn % points) / double(points);
    re = float(std::cos(angle));
    im = float(-std::sin(angle));
  }
  float re, im;
};

constexpr int64_t kMaxPoints = int64_t{1} << 20;
constexpr int64_t kMaxRows = 8192;  // the matrix takes rows^2 * 2 bytes

int64_t round_up(int64_t size) { return (size + kRow - 1) / kRow * kRow; }

// The radices of a transform of `points`, or none if it has another factor.
std::vector<int64_t> find_radices(int64_t points) {
  std::vector<int64_t> radices;
  for (const int64_t radix : {5, 4, 3, 2})
    for (; points % radix == 0; points /= radix) radices.push_back(radix);
  return points == 1 ? radices : std::vector<int64_t>{};
}

// Operations on registers for N = rows * columns, roughly: matrix, twiddles, passes.
double cost(int64_t rows, int64_t columns, const std::vector<int64_t>& radices) {
  double column = double(rows / 2 + 1) * 2 + 6;
  for (const int64_t radix : radices) column += (radix == 5 ? 10 : radix == 4 ? 4 : radix == 3 ? 6 : 2) + 6;
  return column * double(columns) * double(round_up(rows / 2 + 1) / kRow);
}

}  // namespace

LogMelTables::LogMelTables(const float* window, int64_t length, const float* filters, int64_t bands,
                           int64_t hop, int64_t points, float eps)
    : window_(window, window + length) {
  plan_.hop = hop;
  plan_.length = length;
  plan_.points = points;
  plan_.bands = bands;
  plan_.eps = eps;
  plan_.bins = points / 2 + 1;
  split_points();
  make_matrix();
  make_twiddles();
  make_roots();
  make_places();
  make_bands(filters);
  point_at_tables();
}

void LogMelTables::split_points() {
  const int64_t points = plan_.points;
  if (points > kMaxPoints) throw std::invalid_argument(std::to_string(points) + " points are too many");
  double least = 0;
  for (int64_t columns = 1; columns <= points; ++columns) {
    if (points % columns) continue;
    const std::vector<int64_t> radices = find_radices(columns);
    if (radices.empty() && columns > 1) continue;
    const double found = cost(points / columns, columns, radices);
    if (columns > 1 && found >= least) continue;
    least = found;
    plan_.rows = points / columns;
    plan_.columns = columns;
    radices_ = radices;
  }
  if (plan_.rows > kMaxRows)
    throw std::invalid_argument(std::to_string(points) + " points have too large a prime factor");
  plan_.kept = plan_.rows / 2 + 1;
  plan_.stride = round_up(plan_.kept);
}

void LogMelTables::make_matrix() {
  const int64_t rows = plan_.rows, stride = plan_.stride;
  cosine_.assign(size_t(plan_.kept * stride), 0.0f);
  sine_ = cosine_;
  for (int64_t a = 0; a < plan_.kept; ++a) {
    // a sample that is its own partner is met twice
    const float share = 2 * a % rows == 0 ? 0.5f : 1.0f;
    for (int64_t k = 0; k < plan_.kept; ++k) {
      const Root root(a * k, rows);
      cosine_[size_t(a * stride + k)] = share * root.re;
      sine_[size_t(a * stride + k)] = root.im;
    }
  }
}

void LogMelTables::make_twiddles() {
  twiddle_re_.assign(size_t(plan_.columns * plan_.stride), 0.0f);
  twiddle_im_ = twiddle_re_;
  for (int64_t b = 0; b < plan_.columns; ++b) {
    for (int64_t k = 0; k < plan_.kept; ++k) {
      const Root root(b * k, plan_.points);
      twiddle_re_[size_t(b * plan_.stride + k)] = root.re;
      twiddle_im_[size_t(b * plan_.stride + k)] = root.im;
    }
  }
}

void LogMelTables::make_roots() {
  int64_t points = plan_.columns;
  for (const int64_t radix : radices_) {
    for (int64_t p = 0; p < points / radix; ++p) {
      for (int64_t k = 1; k < radix; ++k) {
        const Root root(p * k, points);
        roots_.insert(roots_.end(), {root.re, root.im});
      }
    }
    points /= radix;
  }
}

void LogMelTables::make_places() {
  const int64_t rows = plan_.rows;
  for (int64_t bin = 0; bin < plan_.bins; ++bin) {
    const int64_t kept = bin % rows < plan_.kept ? bin : plan_.points - bin;
    places_.push_back(int32_t(kept / rows * plan_.stride + kept % rows));
  }
}

void LogMelTables::make_bands(const float* filters) {
  const int64_t bands = plan_.bands;
  for (int64_t m = 0; m < bands; ++m) {
    int64_t first = 0, last = plan_.bins;
    while (first < last && filters[first * bands + m] == 0.0f) ++first;
    while (last > first && filters[(last - 1) * bands + m] == 0.0f) --last;
    const int64_t width = round_up(last - first);
    band_first_.push_back(int32_t(first));
    band_width_.push_back(int32_t(width));
    for (int64_t i = 0; i < width; ++i)
      band_weights_.push_back(first + i < last ? filters[(first + i) * bands + m] : 0.0f);
  }
}

void LogMelTables::point_at_tables() {
  plan_.window = window_.data();
  plan_.cosine = cosine_.data();
  plan_.sine = sine_.data();
  plan_.twiddle_re = twiddle_re_.data();
  plan_.twiddle_im = twiddle_im_.data();
  plan_.radices = radices_.data();
  plan_.radix_count = int64_t(radices_.size());
  plan_.roots = roots_.data();
  plan_.places = places_.data();
  plan_.band_first = band_first_.data();
  plan_.band_width = band_width_.data();
  plan_.band_weights = band_weights_.data();
  const int64_t sums = 2 * plan_.kept * round_up(plan_.columns), spectra = 4 * plan_.columns * plan_.stride;
  plan_.scratch = kRow + round_up(plan_.points + kRow) + sums + spectra + round_up(plan_.bins + kRow);
}

void keep_samples(const float* past, int64_t kept, const float* x, int64_t T, float* next) {
  const int64_t old = std::max<int64_t>(kept - T, 0), taken = kept - old;
  if (old > 0) std::memmove(next, past + taken, size_t(old) * sizeof(float));
  if (taken > 0) std::memcpy(next + old, x + T - taken, size_t(taken) * sizeof(float));
}

}  // namespace streamssm
