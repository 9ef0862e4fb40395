// The operators on the CUDA provider: shapes are checked here, kernels/cuda does the work.
// Inputs, outputs and attributes are those of the CPU's operators in this folder.
#include <mutex>

#include "cuda_op.h"
#include "cuda_operators.h"

namespace streamssm::ort {
namespace {

template <Type kData>
class CausalConv1d {
 public:
  static constexpr const char* name = "CausalConv1d";
  static constexpr Port inputs[] = {{kData}, {float32}, {float32}, {float32}};
  static constexpr Port outputs[] = {{kData}, {float32}};

  explicit CausalConv1d(const Info& info) : silu_(info.integer("silu") != 0) {}

  void compute(CudaContext& context) const {
    const Tensor x = context.input(0), weight = context.input(1), bias = context.input(2), state = context.input(3);
    expect_rank("x", x, "[B, T, D]", 3);
    expect_rank("weight", weight, "[K, D]", 2);
    const int64_t B = x.dims[0], T = x.dims[1], D = x.dims[2], K = weight.dims[0];
    expect("weight", weight, "[K, D]", {K, D});
    expect("bias", bias, "[D]", {D});
    expect("state", state, "[B, K-1, D]", {B, K - 1, D});
    cuda::ConvCall call{{B, T, nullptr, nullptr}, D, K, cuda_type<kData>(), silu_};
    call.x = x.data, call.weight = weight.as<float>(), call.bias = bias.as<float>(), call.state = state.as<float>();
    call.y = context.output_like<void>(0, x);
    call.next = context.output_like<float>(1, state);
    check_cuda(streamssm_cuda_causal_conv1d(&call, context.stream()));
  }

 private:
  bool silu_;
};

template <Type kData>
class SelectiveScan {
 public:
  static constexpr const char* name = "SelectiveScan";
  static constexpr Port inputs[] = {{kData},   {kData},   {float32}, {kData},  {kData},
                                    {float32}, {float32}, {kData},   {float32}};
  static constexpr Port outputs[] = {{kData}, {float32}};

  explicit SelectiveScan(const Info&) {}

  void compute(CudaContext& context) const {
    const Tensor x = context.input(0), dt = context.input(1), a = context.input(2), b = context.input(3);
    const Tensor c = context.input(4), skip = context.input(5), bias = context.input(6), z = context.input(7);
    const Tensor state = context.input(8);
    expect_rank("x", x, "[B, T, D]", 3);
    expect_rank("A", a, "[N, D]", 2);
    const int64_t B = x.dims[0], T = x.dims[1], D = x.dims[2], N = a.dims[0];
    expect("dt", dt, "[B, T, D]", {B, T, D});
    expect("A", a, "[N, D]", {N, D});
    expect("B", b, "[B, T, N]", {B, T, N});
    expect("C", c, "[B, T, N]", {B, T, N});
    expect("D", skip, "[D]", {D});
    expect("dt_bias", bias, "[D]", {D});
    expect("z", z, "[B, T, D]", {B, T, D});
    expect("state", state, "[B, N, D]", {B, N, D});
    cuda::ScanCall call{{B, T, nullptr, nullptr}, D, N, cuda_type<kData>(), 0};
    call.x = x.data, call.dt = dt.data, call.B = b.data, call.C = c.data, call.z = z.data;
    call.A = a.as<float>(), call.skip = skip.as<float>(), call.dt_bias = bias.as<float>();
    call.state = state.as<float>();
    call.y = context.output_like<void>(0, x);
    call.next = context.output_like<float>(1, state);
    check_cuda(streamssm_cuda_selective_scan(&call, context.stream()));
  }
};

template <Type kData>
class StateSpaceDual {
 public:
  static constexpr const char* name = "StateSpaceDual";
  static constexpr Port inputs[] = {{kData}, {kData}, {float32}, {kData}, {kData}, {float32}, {float32}};
  static constexpr Port outputs[] = {{kData}, {float32}};

  explicit StateSpaceDual(const Info&) {}

  void compute(CudaContext& context) const {
    const Tensor x = context.input(0), dt = context.input(1), a = context.input(2), b = context.input(3);
    const Tensor c = context.input(4), skip = context.input(5), state = context.input(6);
    expect_rank("x", x, "[B, T, H, P]", 4);
    expect_rank("B", b, "[B, T, G, N]", 4);
    const int64_t B = x.dims[0], T = x.dims[1], H = x.dims[2], P = x.dims[3], G = b.dims[2], N = b.dims[3];
    expect("dt", dt, "[B, T, H]", {B, T, H});
    expect("A", a, "[H]", {H});
    expect("B", b, "[B, T, G, N]", {B, T, G, N});
    expect("C", c, "[B, T, G, N]", {B, T, G, N});
    expect("D", skip, "[H, P]", {H, P});
    expect("state", state, "[B, H, N, P]", {B, H, N, P});
    cuda::DualCall call{{B, T, nullptr, nullptr}, H, P, G, N, cuda_type<kData>(), 0};
    call.x = x.data, call.dt = dt.data, call.B = b.data, call.C = c.data;
    call.A = a.as<float>(), call.skip = skip.as<float>(), call.state = state.as<float>();
    call.y = context.output_like<void>(0, x);
    call.next = context.output_like<float>(1, state);
    check_cuda(streamssm_cuda_state_space_dual(&call, context.stream()));
  }
};

template <Type kData>
class SlidingWindowAttention {
 public:
  static constexpr const char* name = "SlidingWindowAttention";
  static constexpr Port inputs[] = {{kData}, {kData}, {kData}, {float32}, {float32}, {float32}, {int64}};
  static constexpr Port outputs[] = {{kData}, {float32}, {float32}, {int64}};

  explicit SlidingWindowAttention(const Info& info)
      : scale_(info.real("scale")), constant_(info.constant(3).has_value()) {}

  void compute(CudaContext& context) const {
    const Tensor q = context.input(0), k = context.input(1), v = context.input(2), inv_freq = context.input(3);
    const Tensor key = context.input(4), value = context.input(5), position = context.input(6);
    expect_rank("q", q, "[B, T, Hq, dh]", 4);
    expect_rank("key", key, "[B, Hkv, W, dh]", 4);
    expect_rank("inv_freq", inv_freq, "[R/2]", 1);
    const int64_t B = q.dims[0], T = q.dims[1], Hq = q.dims[2], dh = q.dims[3];
    const int64_t Hkv = key.dims[1], W = key.dims[2], half = inv_freq.dims[0];
    expect("k", k, "[B, T, Hkv, dh]", {B, T, Hkv, dh});
    expect("v", v, "[B, T, Hkv, dh]", {B, T, Hkv, dh});
    expect("key", key, "[B, Hkv, W, dh]", {B, Hkv, W, dh});
    expect("value", value, "[B, Hkv, W, dh]", {B, Hkv, W, dh});
    expect("position", position, "[B]", {B});
    cuda::AttentionCall call{{B, T, nullptr, nullptr}, Hq, Hkv, dh, W, half, cuda_type<kData>(), scale_};
    call.q = q.data, call.k = k.data, call.v = v.data;
    call.key = key.as<float>(), call.value = value.as<float>(), call.position = position.as<int64_t>();
    call.y = context.output_like<void>(0, q);
    call.next_key = context.output_like<float>(1, key);
    call.next_value = context.output_like<float>(2, value);
    call.next_position = context.output_like<int64_t>(3, position);
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool made = constant_ && W <= made_;
    call.cosine = table_.hold(2 * W * half);
    call.sine = call.cosine + W * half;
    if (!made)
      check_cuda(streamssm_cuda_rotation(inv_freq.as<float>(), half, W, const_cast<float*>(call.cosine),
                                         const_cast<float*>(call.sine), context.stream()));
    made_ = W;
    check_cuda(streamssm_cuda_sliding_window_attention(&call, context.stream()));
  }

 private:
  float scale_;
  bool constant_;
  mutable std::mutex mutex_;
  mutable Table table_;
  mutable int64_t made_ = 0;
};

template <Type kData>
class LogMel {
 public:
  static constexpr const char* name = "LogMel";
  static constexpr Port inputs[] = {{kData}, {float32}, {float32}, {float32}};
  static constexpr Port outputs[] = {{kData}, {float32}};

  explicit LogMel(const Info& info)
      : hop_(info.integer("hop")), points_(info.integer("n_fft")), eps_(info.real("eps")) {
    if (hop_ < 1 || points_ < 1)
      throw Failure("hop is " + std::to_string(hop_) + " and n_fft " + std::to_string(points_) +
                    ", expected at least 1");
    check_cuda(streamssm_cuda_roots(points_, roots_.hold(2 * points_), nullptr));
    check_cuda(streamssm_cuda_wait());  // the stream that a node is made on is not that of its calls
  }

  void compute(CudaContext& context) const {
    const Tensor x = context.input(0), window = context.input(1), filters = context.input(2), past = context.input(3);
    expect_rank("x", x, "[B, T]", 2);
    expect_rank("past", past, "[B, P]", 2);
    expect_rank("window", window, "[L]", 1);
    expect_rank("filters", filters, "[n_fft/2 + 1, M]", 2);
    const int64_t B = x.dims[0], T = x.dims[1], P = past.dims[1], M = filters.dims[1], L = window.dims[0];
    expect("filters", filters, "[n_fft/2 + 1, M]", {points_ / 2 + 1, M});
    expect("past", past, "[B, P]", {B, P});
    if (L < 1 || L > points_)
      throw Failure("window is " + show(window) + ", expected 1 to n_fft = " + std::to_string(points_));
    if (T % hop_ != 0)
      throw Failure("x is " + show(x) + ", expected a multiple of hop = " + std::to_string(hop_));
    if (P < L - hop_)
      throw Failure("past is " + show(past) + ", expected at least " + std::to_string(L - hop_) +
                    " samples for a window of " + std::to_string(L));
    cuda::LogMelCall call{{B, T, nullptr, nullptr}, hop_, points_, L, M, P, cuda_type<kData>(), eps_};
    call.x = x.data, call.window = window.as<float>(), call.filters = filters.as<float>();
    call.roots = roots_.hold(2 * points_), call.state = past.as<float>();
    call.y = context.output<void>(0, {B, T / hop_, M});
    call.next = context.output_like<float>(1, past);
    check_cuda(streamssm_cuda_log_mel(&call, context.stream()));
  }

 private:
  int64_t hop_, points_;
  float eps_;
  mutable Table roots_;
};

}  // namespace

std::vector<const OrtCustomOp*> cuda_operators() {
  std::vector<const OrtCustomOp*> all;
  for (const auto& versions :
       {every_cuda_type<CausalConv1d>(), every_cuda_type<SelectiveScan>(), every_cuda_type<StateSpaceDual>(),
        every_cuda_type<SlidingWindowAttention>(), every_cuda_type<LogMel>()})
    all.insert(all.end(), versions.begin(), versions.end());
  return all;
}

}  // namespace streamssm::ort
