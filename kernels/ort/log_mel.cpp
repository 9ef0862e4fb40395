// LogMel <hop, n_fft, eps> (x [B, T], window [L], filters [n_fft/2 + 1, M], past [B, P])
// -> (y [B, T/hop, M], next)
#include <cfloat>
#include <cstring>
#include <memory>
#include <mutex>

#include "../cpu/log_mel_tables.h"
#include "ops.h"
#include "scratch.h"

namespace streamssm::ort {
namespace {

// Tables of one window and one set of filters, with the values they were made from.
struct Tables {
  Tables(const Tensor& window, const Tensor& filters, int64_t hop, int64_t points, float eps)
      : window(window.as<float>(), window.as<float>() + window.size()),
        filters(filters.as<float>(), filters.as<float>() + filters.size()),
        bands(filters.dims[1]),
        made(this->window.data(), window.size(), this->filters.data(), bands, hop, points, eps) {}

  bool serve(const Tensor& other_window, const Tensor& other_filters) const {
    return other_filters.dims[1] == bands && same(window, other_window) && same(filters, other_filters);
  }
  static bool same(const std::vector<float>& mine, const Tensor& other) {
    return mine.size() == size_t(other.size()) &&
           (mine.empty() || std::memcmp(mine.data(), other.data, mine.size() * sizeof(float)) == 0);
  }

  std::vector<float> window, filters;
  int64_t bands;
  LogMelTables made;
};

template <Type kData>
class LogMel {
 public:
  static constexpr const char* name = "LogMel";
  static constexpr Port inputs[] = {{kData}, {float32}, {float32}, {float32}};
  static constexpr Port outputs[] = {{kData}, {float32}};

  explicit LogMel(const Info& info)
      : kernels_(best_kernels()),
        hop_(info.integer("hop")),
        points_(info.integer("n_fft")),
        eps_(info.real("eps")) {
    if (hop_ < 1 || points_ < 1)
      throw Failure("hop is " + std::to_string(hop_) + " and n_fft " + std::to_string(points_) +
                    ", expected at least 1");
    if (!(eps_ >= FLT_MIN))
      throw Failure("eps is " + std::to_string(eps_) + ", expected a positive normal number");
    const std::optional<Tensor> window = info.constant(1), filters = info.constant(2);
    constant_ = window && filters;
    if (constant_) {
      check(*window, *filters);
      tables_ = std::make_shared<Tables>(*window, *filters, hop_, points_, eps_);
    }
  }

  void compute(Context& context) const {
    const std::shared_ptr<const Tables> tables = find_tables(context);
    const LogMelPlan& plan = tables->made.plan();
    const Tensor x = context.input(0), past = context.input(3);
    expect_rank("x", x, "[B, T]", 2);
    expect_rank("past", past, "[B, P]", 2);
    const int64_t B = x.dims[0], T = x.dims[1], P = past.dims[1], M = plan.bands;
    expect("past", past, "[B, P]", {B, P});
    if (T % hop_ != 0)
      throw Failure("x is " + show(x) + ", expected a multiple of hop = " + std::to_string(hop_));
    if (P < plan.length - hop_)
      throw Failure("past is " + show(past) + ", expected at least " + std::to_string(plan.length - hop_) +
                    " samples for a window of " + std::to_string(plan.length));
    const int64_t frames = T / hop_;
    char* y = context.output<char>(0, {B, frames, M});
    float* next = context.output<float>(1, {B, P});
    const Samples samples(kernels_, x);
    const double cost = double(2 * plan.kept * plan.columns * plan.stride + 40 * points_);
    for_parts(context, B, frames, 1, cost, [&](int64_t row, Range range) {
      if (range.first == range.last) return;
      const int64_t written = kData == float32 ? 0 : frames * M;
      Scratch::Loan scratch(scratch_, plan.scratch + written);
      float* rows = scratch.get() + plan.scratch;
      if constexpr (kData == float32) rows = reinterpret_cast<float*>(y) + row * frames * M;
      const float* before = past.as<float>() + row * P;
      kernels_.log_mel(plan, before, P, samples.row(row), {rows, M}, scratch.get(), range);
      if constexpr (kData != float32) {
        const auto narrow = kData == float16 ? kernels_.to_half : kernels_.to_bfloat16;
        narrow(rows + range.first * M, reinterpret_cast<uint16_t*>(y) + (row * frames + range.first) * M,
               (range.last - range.first) * M);
      }
    });
    for (int64_t row = 0; row < B; ++row)
      keep_samples(past.as<float>() + row * P, P, samples.row(row), T, next + row * P);
  }

 private:
  // x as float32.
  struct Samples {
    Samples(const Kernels& kernels, const Tensor& x) : T(x.dims[1]) {
      if constexpr (kData == float32) {
        data = x.as<float>();
      } else {
        const auto widen = kData == float16 ? kernels.from_half : kernels.from_bfloat16;
        widened.resize(size_t(x.size()));
        widen(x.as<uint16_t>(), widened.data(), x.size());
        data = widened.data();
      }
    }
    const float* row(int64_t i) const { return data + i * T; }
    int64_t T;
    const float* data;
    std::vector<float> widened;
  };

  void check(const Tensor& window, const Tensor& filters) const {
    expect_rank("window", window, "[L]", 1);
    expect_rank("filters", filters, "[n_fft/2 + 1, M]", 2);
    expect("filters", filters, "[n_fft/2 + 1, M]", {points_ / 2 + 1, filters.dims[1]});
    if (window.size() < 1 || window.size() > points_)
      throw Failure("window is " + show(window) + ", expected 1 to n_fft = " + std::to_string(points_));
  }

  // In a model the window and the filters are constants; where they are not, the last tables are kept.
  std::shared_ptr<const Tables> find_tables(const Context& context) const {
    if (constant_) return tables_;
    const Tensor window = context.input(1), filters = context.input(2);
    check(window, filters);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!tables_ || !tables_->serve(window, filters))
      tables_ = std::make_shared<Tables>(window, filters, hop_, points_, eps_);
    return tables_;
  }

  const Kernels& kernels_;
  int64_t hop_, points_;
  float eps_;
  bool constant_;
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const Tables> tables_;
  mutable Scratch scratch_;
};

}  // namespace

Versions log_mel() { return every_type<LogMel>(); }

}  // namespace streamssm::ort
