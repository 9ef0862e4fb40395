// One item of many streams through a stack of blocks: the host's side.
//
// A layer is three kernels: rows_project, rows_scan or rows_dual, rows_finish. Each fetches its weights and states
// while the kernels before it run. What of the step itself may be fetched early:
//
// - rows_project admits its successor only after its own wait. So when a block of rows_scan or rows_dual runs, the
//   layer before is complete, and with it everything of earlier steps: states can be fetched. The same holds for
//   the blocks after it: rows_finish fetches the residual stream, and the next rows_project its convolution's state.
// - rows_embed is launched the ordinary way: it starts after everything that came before the step.
//
// Many rows go in lanes side by side, on streams of their own: while one lane waits for the latency of its products,
// another moves states. Then a kernel's early fetches delay what the other lane waits for, and (for Mamba) each kernel
// admits its successor later. For Mamba-2 a lane's states leave room in shared memory for the products of another; of
// many rows, products whose turn has come go before blocks of rows_dual that wait for a multiprocessor.
#include "rows_layers.h"

namespace streamssm::cuda::rows {
namespace {

class MambaRows : public Step {
 public:
  MambaRows(const MambaModel& m, int64_t most)
      : Step({m.layers, m.d_model, m.D, m.vocabulary, m.K, m.eps}, most,
             PackedProduct::of<ProjectTile<64>>(2 * m.D, m.d_model), ScanLayout(m.D, m.R).projected),
        layout_(m.D, m.R),
        x_proj_(PackedProduct::of_channels(m.R + 2 * m.N, m.D)) {
    if (m.N != kStates) throw Unusable{"steps of many rows of Mamba need a state size of 16"};
    if (layout_.shared_bytes() > device_.room()) throw Unusable{"the model is too wide for steps of many rows"};
    device_.allow(rows_scan, layout_.shared_bytes());
    scan_.u = memory_.take<__half>(most * m.D), scan_.gate = memory_.take<__half>(most * m.D);
    scan_.y = memory_.take<__half>(most * m.D), scan_.D = m.D, scan_.R = m.R;
    project_.conv_end = project_.gate_first = m.D, project_.gate_end = project_.dt_first = 2 * m.D;
    project_.u = const_cast<__half*>(scan_.u), project_.gate = const_cast<__half*>(scan_.gate);
    finish_.x = scan_.y;
    weights_ = memory_.take<uint8_t>(size_t(m.layers) * kScanSlices * layout_.bytes);
    x_proj_bytes_ = x_proj_.bytes();
    uint8_t* x_proj = memory_.take<uint8_t>(m.layers * x_proj_bytes_);
    float* sums = memory_.take<float>(size_t(x_proj_.ranks) * most * layout_.projected);
    project_.next_weights = x_proj, project_.parts = sums;
    scan_.parts = sums, scan_.tiles = x_proj_.ranks, scan_.all_rows = int(most);
    for (int l = 0; l < m.layers; ++l) {
      const MambaLayer& layer = m.layer[l];
      take(l, layer, {layer.conv_weight, layer.conv_bias, nullptr, 0, m.D, 2 * m.D, m.K});
      pack_scan<<<kScanSlices, 256>>>(layout_, layer, m.D, m.R, weights_ + size_t(l) * kScanSlices * layout_.bytes);
      pack_product<<<x_proj_.ranks, 256>>>(x_proj_, static_cast<const __half*>(layer.x_proj), ProjectVectors{},
                                           x_proj + x_proj_bytes_ * l);
    }
    take_ends(m.norm, m.embedding);
    walk_ = Walk::make(m, most);
  }

 private:
  Walk* walk_for(int rows) override { return walk_ && walk_->takes(rows) ? walk_.get() : nullptr; }
  Way way_for(int rows) const override {
    if (rows <= 32) return {1};
    return {rows <= 128 ? 2 : 4, true};
  }

  void middle(int layer, const Lane& lane, const RowsCall& call) override {
    ScanStep c = scan_;
    const int64_t first = int64_t(lane.first) * c.D;
    c.rows = lane.rows, c.weights = weights_ + size_t(layer) * kScanSlices * layout_.bytes;
    c.parts += int64_t(lane.first) * layout_.projected;
    c.u += first, c.gate += first, c.y += first, c.ssm = state(call.ssm, layer);
    const unsigned blocks = parts(c.rows.count, kScanRows) * kScanSlices;
    start(rows_scan, {blocks, kScanThreads, 1, size_t(layout_.shared_bytes()), true}, c, lane.stream);
  }

  ScanLayout layout_;
  PackedProduct x_proj_;
  ScanStep scan_{};
  uint8_t* weights_;
  std::unique_ptr<Walk> walk_;
};

class Mamba2Rows : public Step {
 public:
  Mamba2Rows(const Mamba2Model& m, int64_t most)
      : Step({m.layers, m.d_model, m.H * m.P, m.vocabulary, m.K, m.eps}, most,
             PackedProduct::of<ProjectTile<64>>(2 * m.H * m.P + 2 * m.G * m.N + m.H, m.d_model), 0) {
    refuse_shape(m);
    const int D = m.H * m.P, width = D + 2 * m.G * m.N;
    dual_.H = m.H, dual_.P = m.P, dual_.G = m.G, dual_.N = m.N, dual_.dt_pitch = round_up(m.H, 4);
    if (shared_bytes<kAlone>() > device_.room()) throw Unusable{"the model is too wide for steps of many rows"};
    device_.allow(rows_dual<kAlone>, shared_bytes<kAlone>());
    device_.allow(rows_dual<kBeside>, shared_bytes<kBeside>());
    gated_ = true;
    float *mixed = memory_.take<float>(most * width), *gate = memory_.take<float>(most * D);
    float* dt = memory_.take<float>(most * dual_.dt_pitch);
    dual_.mixed = mixed, dual_.gate = gate, dual_.dt = dt;
    dual_.y = memory_.take<__half>(most * D), dual_.squares = memory_.take<float>(most * D / 32);
    project_.gate_end = project_.conv_first = D, project_.conv_end = project_.dt_first = D + width;
    project_.u = mixed, project_.gate = gate, project_.dt = dt, project_.dt_pitch = dual_.dt_pitch;
    project_.dt_least = m.dt_least, project_.dt_most = m.dt_most;
    finish_.x = dual_.y, finish_.gate_squares = dual_.squares, finish_.gate_parts = D / 32;
    for (int l = 0; l < m.layers; ++l) take_layer(l, m.layer[l], D, width, m.K);
    take_ends(m.norm, m.embedding);
  }

 private:
  // Items in the ring of rows_dual: beside other lanes, whose products are to find room, fewer.
  static constexpr int kAlone = 3, kBeside = 2;
  struct Vectors {
    const float *A, *skip, *gate_norm;
  };

  template <int kRing>
  int shared_bytes() const {
    return DualLayout(dual_, kRing).shared_bytes();
  }

  static void refuse_shape(const Mamba2Model& m) {
    if (m.P != 32 && m.P != 64 && m.P != 128) throw Unusable{"steps of many rows need heads of 32, 64 or 128"};
    if (m.G < 1 || m.H % m.G || m.N % 4 || m.N < 4) throw Unusable{"H must be a multiple of G, and N of 4"};
  }

  void take_layer(int l, const Mamba2Layer& layer, int D, int width, int K) {
    take(l, layer, {layer.conv_weight, layer.conv_bias, layer.dt_bias, D, D + width, D + width, K});
    float* A = memory_.take<float>(dual_.H);
    pack_decays<<<1, 256>>>(layer.A, dual_.H, A);
    vectors_.push_back({A, copy(layer.skip, D), copy(layer.gate_norm, D)});
  }

  Way way_for(int rows) const override {
    if (rows <= 16) return {1};
    if (rows <= 64) return {2};
    return {rows <= 128 ? 2 : rows <= 192 ? 3 : 4, false, true};
  }

  void middle(int layer, const Lane& lane, const RowsCall& call) override {
    DualStep c = dual_;
    const int64_t first = lane.first, D = c.H * c.P;
    c.rows = lane.rows, c.ssm = state(call.ssm, layer);
    c.mixed += first * (D + 2 * c.G * c.N), c.gate += first * D, c.dt += first * c.dt_pitch;
    c.y += first * D, c.squares += first * (D / 32);
    c.dealt = counters_ + layer * Lanes::kMost + lane.index;
    c.A = vectors_[layer].A, c.skip = vectors_[layer].skip, c.gate_norm = vectors_[layer].gate_norm;
    if (lane.way.lanes == 1)
      dual<kAlone>(c, lane.stream);
    else
      dual<kBeside>(c, lane.stream);
  }
  template <int kRing>
  void dual(const DualStep& c, cudaStream_t stream) {
    const unsigned blocks = std::min(c.rows.count * c.H, device_.multiprocessors);
    start(rows_dual<kRing>, {blocks, kThreads, 1, size_t(shared_bytes<kRing>()), true}, c, stream);
  }

  DualStep dual_{};
  std::vector<Vectors> vectors_;
};

}  // namespace
}  // namespace streamssm::cuda::rows

using namespace streamssm::cuda;

STREAMSSM_CUDA_API const char* streamssm_cuda_mamba_rows_create(const MambaModel* model, int64_t most_rows,
                                                                void** handle) {
  *handle = nullptr;
  return guarded([&] { *handle = static_cast<rows::Step*>(new rows::MambaRows(*model, most_rows)); });
}

STREAMSSM_CUDA_API const char* streamssm_cuda_mamba2_rows_create(const Mamba2Model* model, int64_t most_rows,
                                                                 void** handle) {
  *handle = nullptr;
  return guarded([&] { *handle = static_cast<rows::Step*>(new rows::Mamba2Rows(*model, most_rows)); });
}

STREAMSSM_CUDA_API const char* streamssm_cuda_rows_step(void* handle, const RowsCall* call, void* stream) {
  return guarded([&] { static_cast<rows::Step*>(handle)->run(*call, cudaStream_t(stream)); });
}

STREAMSSM_CUDA_API void streamssm_cuda_rows_destroy(void* handle) { delete static_cast<rows::Step*>(handle); }
