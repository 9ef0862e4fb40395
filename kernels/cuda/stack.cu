// A stack in device memory, and which kernels take a call; see stack_api.h.
#include <string>

#include "stack_fast.h"

namespace streamssm::cuda::stack {
namespace {

constexpr int64_t kPlace = 16;  // what the parts of the weights begin at a multiple of

// Takes the parts of the weights in their order, and checks that each lies within them.
class Parts {
 public:
  Parts(const StackModel& m, const uint8_t* memory) : m_(m), memory_(memory) {}

  const uint8_t* take(int64_t elements, int64_t element) {
    if (at_ >= m_.place_count) throw Failed{"a stack has fewer parts than its sizes ask for"};
    const int64_t place = m_.places[at_++];
    if (place < 0 || place % kPlace != 0 || place > m_.bytes || elements > (m_.bytes - place) / element)
      throw Failed{"a part of a stack lies outside its weights"};
    return memory_ + place;
  }
  const float* floats(int64_t count) { return reinterpret_cast<const float*>(take(count, sizeof(float))); }
  void end() const {
    if (at_ != m_.place_count) throw Failed{"a stack has more parts than its sizes ask for"};
  }

 private:
  const StackModel& m_;
  const uint8_t* memory_;
  int64_t at_ = 0;
};

Layer layer_of(const Weights& w, Parts& parts) {
  const StackModel& m = w.m;
  const int64_t e = w.element(), d = m.d_model, D = m.D, low = m.R + 2 * int64_t(m.N);
  Layer l;
  l.norm = parts.floats(d);
  l.in_proj = parts.take(w.projected() * d, e);
  l.conv_weight = parts.floats(m.K * w.mixed());
  l.conv_bias = parts.floats(w.mixed());
  if (w.mamba()) l.x_proj = parts.take(low * D, e), l.dt_proj = parts.take(D * m.R, e);
  l.dt_bias = parts.floats(w.mamba() ? D : m.H);
  l.A = parts.floats(w.mamba() ? m.N * D : m.H);
  l.skip = parts.floats(D);
  if (!w.mamba()) l.gate_norm = parts.floats(D);
  l.out_proj = parts.take(d * D, e);
  return l;
}

// What is wrong with the sizes, or null. The limits keep every product of two sizes within an int.
const char* refuse(const StackModel& m) {
  constexpr int32_t kMost = 1 << 20;
  if (m.kind != kMamba && m.kind != kMamba2) return "a stack is of Mamba (1) or Mamba-2 (2) blocks";
  if (m.type < kFloat32 || m.type > kBfloat16) return "a stack is float32 (0), float16 (1) or bfloat16 (2)";
  for (const int32_t size : {m.layers, m.d_model, m.D, m.N})
    if (size < 1 || size > kMost) return "a size of a stack is out of range";
  for (const int32_t size : {m.R, m.H, m.P, m.G, m.inputs, m.outputs})
    if (size < 0 || size > kMost) return "a size of a stack is out of range";
  if (m.K < 2 || m.K > 64) return "the convolution of a stack has 2 to 64 taps";
  if (m.kind == kMamba) return m.R < 1 ? "a size of a stack is out of range" : nullptr;
  if (m.G < 1 || m.H < 1 || int64_t(m.H) * m.P != m.D || m.H % m.G != 0)
    return "the heads and groups of a stack do not fit its width";
  return nullptr;
}

// Whether the norms take rows of this width.
void try_norms(const Weights& w) {
  const NormCall norm{0, w.m.d_model, w.m.type, w.m.eps, nullptr, nullptr, nullptr, nullptr};
  must(streamssm_cuda_norm(&norm, nullptr));
  const GateNormCall gate{0, w.m.D, w.m.D, w.m.type, w.m.eps, nullptr, nullptr, nullptr, nullptr};
  if (!w.mamba()) must(streamssm_cuda_gate_norm(&gate, nullptr));
}

class Stack {
 public:
  explicit Stack(const StackModel& given) {
    must(refuse(given));
    must(no_products());
    void* memory = nullptr;
    must(cudaMalloc(&memory, size_t(given.bytes)));
    memory_.reset(memory);
    must(cudaMemcpy(memory, given.weights, size_t(given.bytes), cudaMemcpyHostToDevice));
    must(cudaStreamSynchronize(nullptr));
    w_.m = given;
    read(Parts(given, static_cast<const uint8_t*>(memory)));
    w_.m.weights = w_.m.places = nullptr;
    try_norms(w_);
  }

  void run(const StackCall& c, cudaStream_t stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!bench_ || stream_ != stream) bench_ = Bench::on(stream), stream_ = stream;
    const std::lock_guard<std::mutex> turn(bench_->mutex);
    if (c.B < 0 || c.T < 0) throw Failed{"B and T must not be negative"};
    if (c.B * c.T == 0) return keep(c, stream);
    Pool conv{}, ssm{};
    last_ = route(c, conv, ssm);
    if (last_ == kOneLaunch) return run_one_launch(w_, one_launch_, c, conv, ssm, *bench_, stream);
    if (last_ == kRows) return run_rows(w_, rows_, c, conv, ssm, *bench_, stream);
    run_chain(w_, c, *bench_, stream);
  }

  Route last() const { return last_; }

 private:
  void read(Parts parts) {
    const int64_t d = w_.m.d_model;
    for (int i = 0; i < w_.m.layers; ++i) w_.layers.push_back(layer_of(w_, parts));
    if (w_.m.outputs) w_.norm = parts.floats(d), w_.head = parts.take(w_.m.outputs * d, w_.element());
    if (w_.m.inputs) w_.embedding = parts.take(w_.m.inputs * d, w_.element());
    parts.end();
  }

  Route route(const StackCall& c, Pool& conv, Pool& ssm) {
    const bool any = c.route == kBest, one = c.B == 1;
    if (c.T != 1 || c.B > kMostRows || c.route == kChain || !pools_of(w_, c, conv, ssm)) return kChain;
    if (one && (any || c.route == kOneLaunch) && one_launch_.ready(w_, kOneLaunch)) return kOneLaunch;
    if ((any || c.route == kRows) && rows_.ready(w_, kRows)) return kRows;
    return kChain;
  }

  // No items: the states stay what they are.
  void keep(const StackCall& c, cudaStream_t stream) const {
    const auto copy = [&](float* to, const float* from, int64_t floats) {
      if (to != from && floats != 0)
        must(cudaMemcpyAsync(to, from, size_t(floats) * sizeof(float), cudaMemcpyDeviceToDevice, stream));
    };
    for (int i = 0; i < w_.m.layers; ++i) {
      copy(c.next_conv[i], c.conv[i], c.B * w_.conv_floats());
      copy(c.next_ssm[i], c.ssm[i], c.B * w_.ssm_floats());
    }
  }

  struct Free {
    void operator()(void* memory) const { cudaFree(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  Weights w_;
  Fast one_launch_, rows_;
  std::shared_ptr<Bench> bench_;
  cudaStream_t stream_ = nullptr;
  std::mutex mutex_;
  Route last_ = kBest;
};

// Calls work() and turns what it throws into a reason.
template <class Work>
const char* guarded(const Work& work) {
  try {
    work();
    return nullptr;
  } catch (const Failed& failed) {
    cudaGetLastError();
    return failed.reason;
  } catch (const std::bad_alloc&) {
    return "out of memory";
  }
}

}  // namespace
}  // namespace streamssm::cuda::stack

using namespace streamssm::cuda;

STREAMSSM_CUDA_API const char* streamssm_cuda_stack_create(const StackModel* model, void** handle) {
  *handle = nullptr;
  return stack::guarded([&] { *handle = new stack::Stack(*model); });
}

STREAMSSM_CUDA_API const char* streamssm_cuda_stack_run(void* handle, const StackCall* call, void* stream) {
  return stack::guarded([&] { static_cast<stack::Stack*>(handle)->run(*call, cudaStream_t(stream)); });
}

STREAMSSM_CUDA_API void streamssm_cuda_stack_destroy(void* handle) { delete static_cast<stack::Stack*>(handle); }

STREAMSSM_CUDA_API int32_t streamssm_cuda_stack_route(void* handle) {
  return static_cast<const stack::Stack*>(handle)->last();
}
