#include "stack_chain.h"

#include <algorithm>
#include <map>

#include "launch.h"

namespace streamssm::cuda::stack {
namespace {

constexpr int kThreads = 256;

template <class Data>
__global__ void __launch_bounds__(kThreads)
    look_up(const int64_t* tokens, const Data* table, int64_t width, int64_t count, float* to) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) to[i] = widen(table[tokens[i / width] * width + i % width]);
}

template <class Data>
__global__ void __launch_bounds__(kThreads) add(const Data* from, int64_t count, float* to) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) to[i] += widen(from[i]);
}

// What passes between the kernels of a layer, one layer after the other in the same memory.
struct Work {
  float* residual;
  void *normed, *out, *wide, *mixed, *small, *dt, *y, *gated;
  size_t bytes;
};

// Rows of matrices begin at multiples of 16 bytes.
int64_t padded(int64_t width) { return (width + 7) / 8 * 8; }

Work lay_out(const Weights& w, uint8_t* memory, int64_t rows) {
  size_t at = 0;
  const auto take = [&](int64_t width, int64_t element) {
    uint8_t* const place = memory + at;
    at += (size_t(rows * width * element) + 255) / 256 * 256;
    return static_cast<void*>(place);
  };
  const StackModel& m = w.m;
  const int64_t e = w.element();
  Work work{};
  work.residual = static_cast<float*>(take(m.d_model, 4));
  work.normed = take(m.d_model, e);
  work.out = take(m.d_model, e);
  work.wide = take(padded(w.projected()), e);
  work.mixed = take(w.mixed(), e);
  work.y = take(m.D, e);
  if (w.mamba())
    work.dt = take(m.D, e), work.small = take(padded(m.R + 2 * m.N), e);
  else
    work.gated = take(m.D, e);
  work.bytes = at;
  return work;
}

// One call of the chain.
struct Run {
  const Weights& w;
  const StackModel& m;
  const StackCall& c;
  const Products& products;
  cudaStream_t stream;
  Work work;
  int64_t rows;

  const void* part(const void* from, int64_t elements) const {
    return static_cast<const uint8_t*>(from) + elements * w.element();
  }

  void product(const void* weight, int64_t width, int64_t depth, const void* x, int64_t x_pitch, void* y,
               int64_t y_pitch) const {
    products.run({rows, width, depth, x_pitch, y_pitch, m.type, m.type, weight, x, y});
  }

  void norm(const Layer& layer, const void* added) const {
    const NormCall call{rows, m.d_model, m.type, m.eps, work.residual, added, layer.norm, work.normed};
    must(streamssm_cuda_norm(&call, stream));
  }

  void convolve(const Layer& layer, int at, const void* x) const {
    ConvCall call{{c.B, c.T, nullptr, nullptr}, w.mixed(), m.K, m.type, 1};
    call.x = x, call.weight = layer.conv_weight, call.bias = layer.conv_bias;
    call.state = c.conv[at], call.next = c.next_conv[at], call.y = work.mixed;
    call.x_pitch = padded(w.projected());
    must(streamssm_cuda_causal_conv1d(&call, stream));
  }

  void mamba(const Layer& layer, int at) const {
    const int64_t wide = padded(2 * m.D), small = padded(m.R + 2 * m.N);
    product(layer.in_proj, 2 * m.D, m.d_model, work.normed, m.d_model, work.wide, wide);
    convolve(layer, at, work.wide);
    product(layer.x_proj, m.R + 2 * m.N, m.D, work.mixed, m.D, work.small, small);
    product(layer.dt_proj, m.D, m.R, work.small, small, work.dt, m.D);
    ScanCall call{{c.B, c.T, nullptr, nullptr}, m.D, m.N, m.type, 0};
    call.x = work.mixed, call.dt = work.dt, call.z = part(work.wide, m.D), call.z_pitch = wide;
    call.B = part(work.small, m.R), call.C = part(work.small, m.R + m.N), call.bc_pitch = small;
    call.A = layer.A, call.skip = layer.skip, call.dt_bias = layer.dt_bias;
    call.state = c.ssm[at], call.next = c.next_ssm[at], call.y = work.y;
    must(streamssm_cuda_selective_scan(&call, stream));
    product(layer.out_proj, m.d_model, m.D, work.y, m.D, work.out, m.d_model);
  }

  void mamba2(const Layer& layer, int at) const {
    const int64_t wide = padded(w.projected()), groups = int64_t(m.G) * m.N;
    product(layer.in_proj, w.projected(), m.d_model, work.normed, m.d_model, work.wide, wide);
    convolve(layer, at, part(work.wide, m.D));
    DualCall call{{c.B, c.T, nullptr, nullptr}, m.H, m.P, m.G, m.N, m.type, 0};
    call.x = work.mixed, call.dt = part(work.wide, m.D + w.mixed()), call.A = layer.A, call.skip = layer.skip;
    call.B = part(work.mixed, m.D), call.C = part(work.mixed, m.D + groups);
    call.state = c.ssm[at], call.next = c.next_ssm[at], call.y = work.y;
    call.x_pitch = call.bc_pitch = w.mixed();
    const RawSteps steps{wide, m.dt_least, m.dt_most, layer.dt_bias};
    must(streamssm_cuda_state_space_dual_raw(&call, &steps, stream));
    const GateNormCall gate{rows, m.D, wide, m.type, m.eps, work.y, work.wide, layer.gate_norm, work.gated};
    must(streamssm_cuda_gate_norm(&gate, stream));
    product(layer.out_proj, m.d_model, m.D, work.gated, m.D, work.out, m.d_model);
  }
};

}  // namespace

Bench::~Bench() {
  for (void* memory : owned_) cudaFree(memory);
}

std::shared_ptr<Bench> Bench::on(cudaStream_t stream) {
  static std::mutex mutex;
  static std::map<cudaStream_t, std::weak_ptr<Bench>> all;
  const std::lock_guard<std::mutex> lock(mutex);
  std::weak_ptr<Bench>& place = all[stream];
  std::shared_ptr<Bench> bench = place.lock();
  if (!bench) place = bench = std::make_shared<Bench>(stream);
  return bench;
}

uint8_t* Bench::memory(size_t bytes) {
  if (bytes > size_) {
    const size_t size = std::max(bytes, size_ + size_ / 2);  // few pieces, however the calls grow
    void* piece = nullptr;
    must(cudaMalloc(&piece, size));
    owned_.push_back(piece);
    size_ = size;
  }
  return owned_.empty() ? nullptr : static_cast<uint8_t*>(owned_.back());
}

void embed(const Weights& w, const StackCall& c, float* to, cudaStream_t stream) {
  const int64_t count = c.B * c.T * w.m.d_model;
  if (!w.m.inputs) {
    must(cudaMemcpyAsync(to, c.x, size_t(count) * sizeof(float), cudaMemcpyDeviceToDevice, stream));
    return;
  }
  must(for_type(w.m.type, [&](auto data) {
    using Data = decltype(data);
    look_up<<<parts(count, kThreads), kThreads, 0, stream>>>(c.tokens, static_cast<const Data*>(w.embedding),
                                                             int64_t(w.m.d_model), count, to);
  }));
}

void finish(const Weights& w, const StackCall& c, float* residual, const void* added, void* normed,
            const Products& products, cudaStream_t stream) {
  const StackModel& m = w.m;
  const int64_t rows = c.B * c.T;
  const NormCall call{rows, m.d_model, m.type, m.eps, residual, added, w.norm, normed};
  must(streamssm_cuda_norm(&call, stream));
  products.run({rows, m.outputs, m.d_model, m.d_model, m.outputs, m.type, kFloat32, w.head, normed, c.y});
}

void run_chain(const Weights& w, const StackCall& c, Bench& bench, cudaStream_t stream) {
  const int64_t rows = c.B * c.T;
  const size_t bytes = lay_out(w, nullptr, rows).bytes;
  Run run{w, w.m, c, bench.products, stream, lay_out(w, bench.memory(bytes), rows), rows};
  if (!w.m.outputs) run.work.residual = c.y;
  embed(w, c, run.work.residual, stream);
  const void* added = nullptr;
  for (int at = 0; at < w.m.layers; ++at) {
    run.norm(w.layers[size_t(at)], added);
    if (w.mamba())
      run.mamba(w.layers[size_t(at)], at);
    else
      run.mamba2(w.layers[size_t(at)], at);
    added = run.work.out;
  }
  if (w.m.outputs) return finish(w, c, run.work.residual, added, run.work.normed, bench.products, stream);
  const int64_t count = rows * w.m.d_model;
  must(for_type(w.m.type, [&](auto data) {
    using Data = decltype(data);
    add<<<parts(count, kThreads), kThreads, 0, stream>>>(static_cast<const Data*>(added), count, c.y);
  }));
}

}  // namespace streamssm::cuda::stack
