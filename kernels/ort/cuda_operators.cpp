// The operators on the CUDA provider: cuda/shapes.h checks what comes in, kernels/cuda does the work.
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
    const Inputs<4> in(context);
    cuda::ConvCall call = in.sizes([](const cuda::Shape* shapes) { return cuda::conv_call(shapes); });
    call.type = cuda_type<kData>(), call.silu = silu_;
    call.x = in[0].data, call.weight = in[1].as<float>(), call.bias = in[2].as<float>();
    call.state = in[3].as<float>();
    call.y = context.output_like<void>(0, in[0]);
    call.next = context.output_like<float>(1, in[3]);
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
    const Inputs<9> in(context);
    cuda::ScanCall call = in.sizes([](const cuda::Shape* shapes) { return cuda::scan_call(shapes); });
    call.type = cuda_type<kData>();
    call.x = in[0].data, call.dt = in[1].data, call.B = in[3].data, call.C = in[4].data, call.z = in[7].data;
    call.A = in[2].as<float>(), call.skip = in[5].as<float>(), call.dt_bias = in[6].as<float>();
    call.state = in[8].as<float>();
    call.y = context.output_like<void>(0, in[0]);
    call.next = context.output_like<float>(1, in[8]);
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
    const Inputs<7> in(context);
    cuda::DualCall call = in.sizes([](const cuda::Shape* shapes) { return cuda::dual_call(shapes); });
    call.type = cuda_type<kData>();
    call.x = in[0].data, call.dt = in[1].data, call.B = in[3].data, call.C = in[4].data;
    call.A = in[2].as<float>(), call.skip = in[5].as<float>(), call.state = in[6].as<float>();
    call.y = context.output_like<void>(0, in[0]);
    call.next = context.output_like<float>(1, in[6]);
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
    const Inputs<7> in(context);
    cuda::AttentionCall call = in.sizes([](const cuda::Shape* shapes) { return cuda::attention_call(shapes); });
    call.type = cuda_type<kData>(), call.scale = scale_;
    call.q = in[0].data, call.k = in[1].data, call.v = in[2].data;
    call.key = in[4].as<float>(), call.value = in[5].as<float>(), call.position = in[6].as<int64_t>();
    call.y = context.output_like<void>(0, in[0]);
    call.next_key = context.output_like<float>(1, in[4]);
    call.next_value = context.output_like<float>(2, in[5]);
    call.next_position = context.output_like<int64_t>(3, in[6]);
    const int64_t W = call.W, half = call.half;
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool made = constant_ && W == made_;  // another window lies differently
    if (!made) made_ = 0;                       // nor does what is half done count
    call.cosine = table_.hold(2 * W * half);
    call.sine = call.cosine + W * half;
    if (!made)
      check_cuda(streamssm_cuda_rotation(in[3].as<float>(), half, W, const_cast<float*>(call.cosine),
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
    const Inputs<4> in(context);
    cuda::LogMelCall call =
        in.sizes([&](const cuda::Shape* shapes) { return cuda::log_mel_call(shapes, hop_, points_); });
    call.type = cuda_type<kData>(), call.eps = eps_;
    call.x = in[0].data, call.window = in[1].as<float>(), call.filters = in[2].as<float>();
    call.roots = roots_.hold(2 * points_), call.state = in[3].as<float>();
    call.y = context.output<void>(0, {call.rows.B, call.rows.T / hop_, call.bands});
    call.next = context.output_like<float>(1, in[3]);
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
