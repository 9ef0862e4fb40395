// The operators as plugins: inputs, outputs and attributes are those of the ONNX operators of domain
// streamssm; shapes are checked by cuda/shapes.h, and kernels/cuda does the work.
#include "operators.h"

#include <type_traits>

#include "plugin.h"

namespace streamssm::tensorrt {
namespace {

constexpr int64_t kMost = INT32_MAX;

PluginField advertise(const char* name, PluginFieldType type) { return {name, nullptr, type, 1}; }

template <typename T>
PluginField keep(const char* name, const T& value) {
  return {name, &value, std::is_same_v<T, float> ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32, 1};
}

class CausalConv1d {
 public:
  static constexpr const char* name = "CausalConv1d";
  static constexpr Port inputs[] = {
      {"x", Holds::data}, {"weight", Holds::float32}, {"bias", Holds::float32}, {"state", Holds::float32}};
  static constexpr Port outputs[] = {{"y", Holds::data}, {"next", Holds::float32}};
  static constexpr Kept kept[] = {{3, 1}};
  static std::vector<PluginField> attributes() { return {advertise("silu", PluginFieldType::kINT32)}; }

  explicit CausalConv1d(const Fields& fields) : silu_(fields.integer("silu", 0, 1)) {}
  std::vector<PluginField> fields() const { return {keep("silu", silu_)}; }

  static void output_shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder&) { out[0] = in[0]; }
  static void check(const cuda::Shape* in, bool pooled) { cuda::conv_call(in, pooled); }
  void prepare(const cuda::Shape*) {}

  void launch(const Call& c) const {
    cuda::ConvCall call = c.with_rows(cuda::conv_call(c.shapes, c.pooled));
    call.silu = silu_;
    call.x = c.in<void>(0), call.weight = c.in<float>(1), call.bias = c.in<float>(2), call.state = c.in<float>(3);
    call.y = c.out<void>(0), call.next = c.out<float>(1);
    check_cuda(streamssm_cuda_causal_conv1d(&call, c.stream));
  }

 private:
  int32_t silu_;
};

class SelectiveScan {
 public:
  static constexpr const char* name = "SelectiveScan";
  static constexpr Port inputs[] = {{"x", Holds::data},      {"dt", Holds::data},         {"A", Holds::float32},
                                    {"B", Holds::data},      {"C", Holds::data},          {"D", Holds::float32},
                                    {"dt_bias", Holds::float32}, {"z", Holds::data},      {"state", Holds::float32}};
  static constexpr Port outputs[] = {{"y", Holds::data}, {"next", Holds::float32}};
  static constexpr Kept kept[] = {{8, 1}};
  static std::vector<PluginField> attributes() { return {}; }

  explicit SelectiveScan(const Fields&) {}
  std::vector<PluginField> fields() const { return {}; }

  static void output_shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder&) { out[0] = in[0]; }
  static void check(const cuda::Shape* in, bool pooled) { cuda::scan_call(in, pooled); }
  void prepare(const cuda::Shape*) {}

  void launch(const Call& c) const {
    cuda::ScanCall call = c.with_rows(cuda::scan_call(c.shapes, c.pooled));
    call.x = c.in<void>(0), call.dt = c.in<void>(1), call.A = c.in<float>(2);
    call.B = c.in<void>(3), call.C = c.in<void>(4), call.skip = c.in<float>(5);
    call.dt_bias = c.in<float>(6), call.z = c.in<void>(7), call.state = c.in<float>(8);
    call.y = c.out<void>(0), call.next = c.out<float>(1);
    check_cuda(streamssm_cuda_selective_scan(&call, c.stream));
  }
};

class StateSpaceDual {
 public:
  static constexpr const char* name = "StateSpaceDual";
  static constexpr Port inputs[] = {{"x", Holds::data},    {"dt", Holds::data}, {"A", Holds::float32},
                                    {"B", Holds::data},    {"C", Holds::data},  {"D", Holds::float32},
                                    {"state", Holds::float32}};
  static constexpr Port outputs[] = {{"y", Holds::data}, {"next", Holds::float32}};
  static constexpr Kept kept[] = {{6, 1}};
  static std::vector<PluginField> attributes() { return {}; }

  explicit StateSpaceDual(const Fields&) {}
  std::vector<PluginField> fields() const { return {}; }

  static void output_shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder&) { out[0] = in[0]; }
  static void check(const cuda::Shape* in, bool pooled) { cuda::dual_call(in, pooled); }
  void prepare(const cuda::Shape*) {}

  void launch(const Call& c) const {
    cuda::DualCall call = c.with_rows(cuda::dual_call(c.shapes, c.pooled));
    call.x = c.in<void>(0), call.dt = c.in<void>(1), call.A = c.in<float>(2);
    call.B = c.in<void>(3), call.C = c.in<void>(4), call.skip = c.in<float>(5), call.state = c.in<float>(6);
    call.y = c.out<void>(0), call.next = c.out<float>(1);
    check_cuda(streamssm_cuda_state_space_dual(&call, c.stream));
  }
};

class SlidingWindowAttention {
 public:
  static constexpr const char* name = "SlidingWindowAttention";
  static constexpr Port inputs[] = {{"q", Holds::data},        {"k", Holds::data},        {"v", Holds::data},
                                    {"inv_freq", Holds::float32}, {"key", Holds::float32}, {"value", Holds::float32},
                                    {"position", Holds::int64}};
  static constexpr Port outputs[] = {{"y", Holds::data},
                                     {"next_key", Holds::float32},
                                     {"next_value", Holds::float32},
                                     {"next_position", Holds::int64}};
  static constexpr Kept kept[] = {{4, 1}, {5, 2}, {6, 3}};
  static std::vector<PluginField> attributes() { return {advertise("scale", PluginFieldType::kFLOAT32)}; }

  explicit SlidingWindowAttention(const Fields& fields) : scale_(fields.real("scale")) {}
  std::vector<PluginField> fields() const { return {keep("scale", scale_)}; }

  static void output_shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder&) { out[0] = in[0]; }
  static void check(const cuda::Shape* in, bool pooled) { cuda::attention_call(in, pooled); }
  // What is kept is laid out by half: another half, and nothing of it is true.
  void prepare(const cuda::Shape* in) {
    rotation_.hold(3 * in[4].dims[2], in[3].dims[0], [](float* memory, int64_t bytes) {
      check_cuda(streamssm_tensorrt_forget(memory, bytes));
    });
  }

  void launch(const Call& c) const {
    cuda::AttentionCall call = c.with_rows(cuda::attention_call(c.shapes, c.pooled));
    const int64_t entries = call.W * call.half;
    float* const kept_rotation = rotation_.get(3 * call.W, call.half);
    check_cuda(streamssm_tensorrt_rotation(c.in<float>(3), call.half, call.W, kept_rotation, c.stream));
    call.cosine = kept_rotation + entries, call.sine = kept_rotation + 2 * entries, call.scale = scale_;
    call.q = c.in<void>(0), call.k = c.in<void>(1), call.v = c.in<void>(2);
    call.key = c.in<float>(4), call.value = c.in<float>(5), call.position = c.in<int64_t>(6);
    call.y = c.out<void>(0), call.next_key = c.out<float>(1), call.next_value = c.out<float>(2);
    call.next_position = c.out<int64_t>(3);
    check_cuda(streamssm_cuda_sliding_window_attention(&call, c.stream));
  }

 private:
  float scale_;
  Table rotation_;
};

class LogMel {
 public:
  static constexpr const char* name = "LogMel";
  static constexpr Port inputs[] = {
      {"x", Holds::data}, {"window", Holds::float32}, {"filters", Holds::float32}, {"past", Holds::float32}};
  static constexpr Port outputs[] = {{"y", Holds::data}, {"next", Holds::float32}};
  static constexpr Kept kept[] = {{3, 1}};
  static std::vector<PluginField> attributes() {
    return {advertise("hop", PluginFieldType::kINT32), advertise("n_fft", PluginFieldType::kINT32),
            advertise("eps", PluginFieldType::kFLOAT32)};
  }

  explicit LogMel(const Fields& fields)
      : hop_(fields.integer("hop", 1, kMost)), points_(fields.integer("n_fft", 1, kMost)), eps_(fields.real("eps")) {}
  std::vector<PluginField> fields() const { return {keep("hop", hop_), keep("n_fft", points_), keep("eps", eps_)}; }

  void output_shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder& expressions) const {
    if (in[0].nbDims != 2 || in[2].nbDims != 2)  // dimensions that are not there must not be looked at
      throw cuda::Mismatch("x has " + std::to_string(in[0].nbDims) + " dimensions and filters " +
                           std::to_string(in[2].nbDims) + ", expected [B, T] and [n_fft/2 + 1, M]");
    out[0].nbDims = 3;
    out[0].d[0] = in[0].d[0];
    out[0].d[1] = expressions.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *in[0].d[1],
                                        *expressions.constant(hop_));
    out[0].d[2] = in[2].d[1];
  }
  void check(const cuda::Shape* in, bool pooled) const { cuda::log_mel_call(in, hop_, points_, pooled); }

  void prepare(const cuda::Shape*) {
    roots_.hold(points_, 2, [&](float* memory, int64_t) {
      check_cuda(streamssm_cuda_roots(points_, memory, nullptr));
      check_cuda(streamssm_cuda_wait());  // the streams of the calls do not wait for that one
    });
  }

  void launch(const Call& c) const {
    cuda::LogMelCall call = c.with_rows(cuda::log_mel_call(c.shapes, hop_, points_, c.pooled));
    call.eps = eps_, call.roots = roots_.get(points_, 2);
    call.x = c.in<void>(0), call.window = c.in<float>(1), call.filters = c.in<float>(2), call.state = c.in<float>(3);
    call.y = c.out<void>(0), call.next = c.out<float>(1);
    check_cuda(streamssm_cuda_log_mel(&call, c.stream));
  }

 private:
  int32_t hop_, points_;
  float eps_;
  Table roots_;
};

}  // namespace

// Never freed: a registry may hold them when the process ends.
const std::vector<nvinfer1::IPluginCreatorInterface*>& creators() {
  static const auto* const all = new std::vector<nvinfer1::IPluginCreatorInterface*>{
      new Creator<CausalConv1d>, new Creator<SelectiveScan>, new Creator<StateSpaceDual>,
      new Creator<SlidingWindowAttention>, new Creator<LogMel>};
  return *all;
}

}  // namespace streamssm::tensorrt
