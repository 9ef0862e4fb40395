// streamssm.native::Stack <kind, type, sizes, places, eps, dt_least, dt_most, weights> (x, states...) -> (y, next...)
// streamssm.native::TokenStack, the same with tokens for x
//
// A run of Mamba or Mamba-2 blocks that the runtime has found when it loaded a model; never part of a file. x is
// float32 [B, T, d_model], tokens are int64 [B, T], y is float32 [B, T, outputs or d_model]. States are the
// convolution's and the recurrence's of each layer in turn. `weights` is the number under which the parameters
// are lent while the session is opened; kernels/cuda/stack_api.h has the rest.
#include <memory>

#include "../cuda/stack_api.h"
#include "cuda_op.h"
#include "cuda_operators.h"
#include "lent.h"

namespace streamssm::ort {
namespace {

struct Destroy {
  void operator()(void* handle) const { streamssm_cuda_stack_destroy(handle); }
};

template <bool kTokens>
class Stack {
 public:
  static constexpr const char* name = kTokens ? "TokenStack" : "Stack";
  static constexpr Port inputs[] = {{kTokens ? int64 : float32}, {float32, variadic}};
  static constexpr Port outputs[] = {{float32, variadic}};

  explicit Stack(const Info& info) : sizes_(info.integers("sizes")) {
    if (sizes_.size() != 11) throw Failure("a stack has 11 sizes, this one " + std::to_string(sizes_.size()));
    for (const int64_t size : sizes_)
      if (size < 0 || size > INT32_MAX) throw Failure("a size of a stack is out of range");
    const std::vector<int64_t> places = info.integers("places");
    const Lent weights = lent(info.integer("weights"));
    cuda::StackModel m{};
    m.kind = int32_t(info.integer("kind")), m.type = int32_t(info.integer("type"));
    int32_t* const fields[] = {&m.layers, &m.d_model, &m.D, &m.N, &m.R, &m.K, &m.H, &m.P, &m.G, &m.inputs, &m.outputs};
    for (size_t i = 0; i < sizes_.size(); ++i) *fields[i] = int32_t(sizes_[i]);
    m.eps = info.real("eps"), m.dt_least = info.real("dt_least"), m.dt_most = info.real("dt_most");
    m.weights = weights.data, m.bytes = weights.floats * int64_t(sizeof(float));
    m.places = places.data(), m.place_count = int64_t(places.size());
    const size_t states = 2 * size_t(m.layers);
    if (info.inputs() != 1 + states || info.outputs() != 1 + states)
      throw Failure("a stack of " + std::to_string(m.layers) + " layers has two states for each");
    if ((m.inputs != 0) != kTokens) throw Failure("a stack takes tokens if it has an embedding");
    void* handle = nullptr;
    check_cuda(streamssm_cuda_stack_create(&m, &handle));
    handle_.reset(handle);
    width_ = m.outputs ? m.outputs : m.d_model;
    if (m.kind == cuda::kMamba)
      conv_ = {m.K - 1, m.D}, ssm_ = {m.N, m.D};
    else
      conv_ = {m.K - 1, m.D + 2 * int64_t(m.G) * m.N}, ssm_ = {m.H, m.N, m.P};
  }

  void compute(CudaContext& context) const {
    const Tensor x = context.input(0);
    const int64_t d_model = sizes_[1];
    expect_rank("x", x, kTokens ? "[B, T]" : "[B, T, d_model]", kTokens ? 2 : 3);
    const int64_t B = x.dims[0], T = x.dims[1];
    if (!kTokens) expect("x", x, "[B, T, d_model]", {B, T, d_model});
    const size_t layers = size_t(sizes_[0]);
    std::vector<const float*> before[2];
    std::vector<float*> after[2];
    for (size_t i = 0; i < 2 * layers; ++i) {
      const Tensor state = context.input(1 + i);
      check_state(state, B, i % 2 ? ssm_ : conv_);
      before[i % 2].push_back(state.as<float>());
      after[i % 2].push_back(context.output_like<float>(1 + i, state));
    }
    cuda::StackCall call{};
    call.B = B, call.T = T;
    call.tokens = kTokens ? x.as<int64_t>() : nullptr, call.x = kTokens ? nullptr : x.as<float>();
    call.conv = before[0].data(), call.ssm = before[1].data();
    call.next_conv = after[0].data(), call.next_ssm = after[1].data();
    call.y = context.output<float>(0, {B, T, width_});
    check_cuda(streamssm_cuda_stack_run(handle_.get(), &call, context.stream()));
  }

 private:
  static void check_state(const Tensor& state, int64_t B, const std::vector<int64_t>& item) {
    bool fits = size_t(state.rank) == item.size() + 1 && state.dims[0] == B;
    for (size_t i = 0; fits && i < item.size(); ++i) fits = state.dims[i + 1] == item[i];
    if (!fits)
      throw Failure("a state is " + show(state) + ", expected " + std::to_string(B) + " rows of " +
                    show(item.data(), item.size()));
  }

  std::vector<int64_t> sizes_, conv_, ssm_;
  int64_t width_ = 0;
  std::unique_ptr<void, Destroy> handle_;
};

}  // namespace

std::vector<const OrtCustomOp*> cuda_stacks() {
  static const detail::CudaDefinition<Stack<false>> plain;
  static const detail::CudaDefinition<Stack<true>> tokens;
  return {&plain, &tokens};
}

}  // namespace streamssm::ort
