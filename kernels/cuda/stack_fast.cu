#include "stack_fast.h"

namespace streamssm::cuda::stack {
namespace {

// Calls use(model) with a description of the stack, of its own kind.
template <class Use>
const char* described(const Weights& w, const Use& use) {
  const StackModel& m = w.m;
  if (w.mamba()) {
    std::vector<MambaLayer> layers;
    for (const Layer& l : w.layers)
      layers.push_back({l.norm, l.in_proj, l.x_proj, l.dt_proj, l.out_proj, l.conv_weight, l.conv_bias, l.dt_bias, l.A,
                        l.skip});
    return use(MambaModel{m.layers, m.d_model, m.D, m.N, m.R, m.K, m.outputs, 0, m.eps, layers.data(), w.norm, w.head});
  }
  std::vector<Mamba2Layer> layers;
  for (const Layer& l : w.layers)
    layers.push_back({l.norm, l.in_proj, l.out_proj, l.conv_weight, l.conv_bias, l.dt_bias, l.A, l.skip, l.gate_norm});
  return use(Mamba2Model{m.layers, m.d_model, m.H, m.P, m.G, m.N, m.K, m.outputs, m.eps, m.dt_least, m.dt_most,
                         layers.data(), w.norm, w.head});
}

struct Maker {
  Route route;
  void** handle;

  const char* operator()(const MambaModel& model) const {
    return route == kRows ? streamssm_cuda_mamba_rows_create(&model, kMostRows, handle)
                          : streamssm_cuda_mamba_create(&model, handle);
  }
  const char* operator()(const Mamba2Model& model) const {
    return route == kRows ? streamssm_cuda_mamba2_rows_create(&model, kMostRows, handle)
                          : streamssm_cuda_mamba2_create(&model, handle);
  }
};

// Pointers of all layers as one with a stride, in floats; false if they are not evenly spaced.
template <class Pointer>
bool evenly(const Pointer* pointers, int layers, int64_t& stride) {
  stride = layers > 1 ? pointers[1] - pointers[0] : 0;
  for (int i = 1; i < layers; ++i)
    if (pointers[i] - pointers[i - 1] != stride) return false;
  return stride % 4 == 0 && uintptr_t(pointers[0]) % 16 == 0;
}

bool pool_of(const float* const* before, float* const* after, int layers, int64_t row, Pool& pool) {
  int64_t stride = 0;
  if (!evenly(before, layers, pool.layer_stride) || !evenly(after, layers, stride)) return false;
  pool.state = before[0], pool.next = after[0], pool.slot_stride = row;
  return stride == pool.layer_stride && row % 4 == 0;
}

}  // namespace

bool Fast::ready(const Weights& w, Route route) {
  if (asked_) return handle_ != nullptr;
  asked_ = true;
  if (w.m.type != kFloat16 || (route == kOneLaunch && !w.m.outputs)) return false;
  destroy_ = route == kRows ? streamssm_cuda_rows_destroy
             : w.mamba()    ? streamssm_cuda_mamba_destroy
                            : streamssm_cuda_mamba2_destroy;
  if (described(w, Maker{route, &handle_}) != nullptr) handle_ = nullptr;
  return handle_ != nullptr;
}

bool pools_of(const Weights& w, const StackCall& c, Pool& conv, Pool& ssm) {
  return pool_of(c.conv, c.next_conv, w.m.layers, w.conv_floats(), conv) &&
         pool_of(c.ssm, c.next_ssm, w.m.layers, w.ssm_floats(), ssm);
}

void run_one_launch(const Weights& w, const Fast& fast, const StackCall& c, const Pool& conv, const Pool& ssm,
                    Bench& bench, cudaStream_t stream) {
  StepCall call{nullptr, c.x, nullptr, conv, ssm, c.y};
  if (w.m.inputs && w.embedding == w.head) {
    call.token = reinterpret_cast<const int32_t*>(c.tokens);  // the low half; a token is not negative
    call.x = nullptr;
  } else if (w.m.inputs) {
    float* x = reinterpret_cast<float*>(bench.memory(size_t(w.m.d_model) * sizeof(float)));
    embed(w, c, x, stream);
    call.x = x;
  }
  must(w.mamba() ? streamssm_cuda_mamba_step(fast.handle(), &call, stream)
                 : streamssm_cuda_mamba2_step(fast.handle(), &call, stream));
}

void run_rows(const Weights& w, const Fast& fast, const StackCall& c, const Pool& conv, const Pool& ssm, Bench& bench,
              cudaStream_t stream) {
  const size_t rows = size_t(c.B * w.m.d_model), floats = (rows * sizeof(float) + 255) / 256 * 256;
  uint8_t* memory = w.m.outputs ? bench.memory(floats + rows * sizeof(float)) : nullptr;
  float* residual = w.m.outputs ? reinterpret_cast<float*>(memory) : c.y;
  embed(w, c, residual, stream);
  const RowsCall call{c.B, nullptr, residual, nullptr, conv, ssm, residual, nullptr};
  must(streamssm_cuda_rows_step(fast.handle(), &call, stream));
  if (w.m.outputs) finish(w, c, residual, nullptr, memory + floats, bench.products, stream);
}

}  // namespace streamssm::cuda::stack
