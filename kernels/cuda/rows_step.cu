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
// admits its successor later.
#include "rows_host.h"

namespace streamssm::cuda::rows {
namespace {

using LargeHead = HeadTile<256, 4, 4>;  // more shared memory than some GPUs have

struct Sizes {
  int layers, d_model, D, vocabulary, taps;
  float eps;
};

// What a lane works with; everything begins at its first row.
struct Lane {
  Streams rows;
  int index, first;
  cudaStream_t stream;
  bool late;  // kernels admit the next one late
};

class Step {
 public:
  virtual ~Step() = default;
  void run(const RowsCall& call, cudaStream_t stream);

 protected:
  // `projected`: what rows_project makes of the convolution's outputs, or 0.
  Step(const Sizes& sizes, int64_t most_rows, const PackedProduct& project, int projected);
  // Weights of the two products, and the norms; `layer` is MambaLayer or Mamba2Layer.
  template <class Layer>
  void take(int index, const Layer& layer, const ProjectVectors& vectors);
  void take_ends(const float* norm, const void* embedding);
  virtual int lanes_for(int rows) const = 0;
  virtual void middle(int layer, const Lane& lane, const RowsCall& call) = 0;
  LayerState state(const Pool& pool, int layer) const {
    return {pool.state + layer * pool.layer_stride, pool.next + layer * pool.layer_stride, pool.slot_stride};
  }
  float* copy(const float* from, size_t count) {
    float* to = memory_.take<float>(count);
    check(cudaMemcpy(to, from, count * sizeof(float), cudaMemcpyDeviceToDevice));
    return to;
  }

  Device device_;
  Memory memory_;
  Sizes s_;
  int64_t most_;
  bool gated_ = false;       // the middle's outputs are to be divided by their rms
  int32_t* counters_;        // [layers][lanes]
  size_t x_proj_bytes_ = 0;  // of a layer
  ProjectCall project_{};
  FinishCall finish_{};

 private:
  void embed(const RowsCall& call, cudaStream_t stream);
  void project(int layer, const Lane& lane, const RowsCall& call, bool overlaps);
  void finish(int layer, const Lane& lane, const RowsCall& call);
  void head(const RowsCall& call, int lanes, cudaStream_t stream);
  template <class Tile>
  void head_tile(const HeadCall& call, bool overlaps, cudaStream_t stream);
  Squares squares(int layer, int first) const;
  void allow_all();
  // The shared memory of the products for a tile of rows.
  size_t project_bytes(int rows) const {
    size_t bytes = 0;
    for_rows(rows, [&](auto n) {
      using Tile = ProjectTile<n.value>;
      bytes = Tile::shared_bytes(s_.d_model / Tile::kRanks);
      if (project_.projected) bytes += Projector<Tile>::shared_bytes(project_.projected);
    });
    return bytes;
  }
  size_t finish_bytes(int rows) const {
    const int part = s_.D / FinishTile<64>::kRanks;
    size_t bytes = size_t(rows) * part / 32 * 4;
    for_rows(rows, [&](auto n) { bytes += FinishTile<n.value>::shared_bytes(part); });
    return bytes;
  }

  PackedProduct packed_project_, packed_finish_;
  uint8_t *project_weights_, *finish_weights_;
  std::vector<const float*> norms_;  // of the layers, then the last one or null
  const __half* embedding_ = nullptr;
  int project_rows_, finish_rows_, parts_;
  float *residual_, *squares_[2];
  __half* normed_;
  Lanes lanes_;
};

Step::Step(const Sizes& sizes, int64_t most_rows, const PackedProduct& project, int projected)
    : s_(sizes),
      most_(most_rows),
      packed_project_(project),
      packed_finish_(PackedProduct::of<FinishTile<64>>(sizes.d_model, sizes.D)) {
  if (s_.layers < 1) throw Unusable{"steps of many rows need at least one layer"};
  if (most_ < 1 || most_ > 65536) throw Unusable{"most_rows must be 1 to 65,536"};
  if (s_.d_model % 128) throw Unusable{"steps of many rows need a d_model in steps of 128"};
  if (s_.D % 256) throw Unusable{"steps of many rows need channels in steps of 256"};
  if (s_.taps < 1 || s_.taps > kMostTaps) throw Unusable{"steps of many rows take a convolution of at most 4 taps"};
  project_.projected = projected, project_.all_rows = int(most_);
  const size_t factors = sizeof(RowFactors<ProjectTile<64>>);  // rows_project has them besides
  project_rows_ = most_rows_of(device_, [&](int rows) { return project_bytes(rows) + factors; });
  finish_rows_ = most_rows_of(device_, [&](int rows) { return finish_bytes(rows); });
  project_weights_ = memory_.take<uint8_t>(packed_project_.bytes() * s_.layers);
  finish_weights_ = memory_.take<uint8_t>(packed_finish_.bytes() * s_.layers);
  counters_ = memory_.take<int32_t>(s_.layers * Lanes::kMost);
  parts_ = round_up(packed_finish_.tiles(), 4);
  residual_ = memory_.take<float>(most_ * s_.d_model);
  normed_ = memory_.take<__half>(most_ * s_.d_model);
  for (float*& squares : squares_) squares = memory_.take<float>(most_ * parts_);
  project_.width = s_.d_model, project_.taps = s_.taps, project_.outputs = project.outputs;
  finish_.width = s_.D, finish_.outputs = s_.d_model, finish_.eps = s_.eps;
  if (parts_ > kMostParts) throw Unusable{"the model is too wide for steps of many rows"};
  allow_all();
}

void Step::allow_all() {
  for (const int rows : {16, 32, 64})
    for_rows(rows, [&](auto n) {
      using First = ProjectTile<n.value>;
      using Second = FinishTile<n.value>;
      if (rows <= project_rows_) {
        device_.allow(rows_project<First, __half>, project_bytes(rows));
        device_.allow(rows_project<First, float>, project_bytes(rows));
      }
      if (rows <= finish_rows_) {
        device_.allow(rows_finish<Second, false>, finish_bytes(rows));
        device_.allow(rows_finish<Second, true>, finish_bytes(rows));
      }
    });
  device_.allow(rows_embed, 0);
  device_.allow_head<HeadTile<16, 1, 5>, HeadTile<32, 2, 4>, HeadTile<64, 2, 4>, HeadTile<128, 2, 3>, LargeHead>();
}

template <class Layer>
void Step::take(int index, const Layer& layer, const ProjectVectors& vectors) {
  pack_product<<<packed_project_.tiles() * packed_project_.ranks, 256>>>(
      packed_project_, static_cast<const __half*>(layer.in_proj), vectors,
      project_weights_ + packed_project_.bytes() * index);
  pack_product<<<packed_finish_.tiles() * packed_finish_.ranks, 256>>>(
      packed_finish_, static_cast<const __half*>(layer.out_proj), ProjectVectors{},
      finish_weights_ + packed_finish_.bytes() * index);
  check(cudaGetLastError());
  norms_.push_back(copy(layer.norm, s_.d_model));
}

void Step::take_ends(const float* norm, const void* embedding) {
  norms_.push_back(norm ? copy(norm, s_.d_model) : nullptr);
  embedding_ = static_cast<const __half*>(embedding);
  if (uintptr_t(embedding) % 16) throw Unusable{"the embedding must be 16-byte aligned"};
  check(cudaGetLastError());  // of the last launches
  check(cudaDeviceSynchronize());
}

// The squares of what goes into a layer.
Squares Step::squares(int layer, int first) const {
  return {squares_[layer & 1] + int64_t(first) * parts_, parts_, 1.0f / float(s_.d_model), s_.eps};
}

void Step::embed(const RowsCall& call, cudaStream_t stream) {
  const EmbedCall embed{{int(call.B), 0, call.slots}, call.tokens, call.x, embedding_, norms_[0], s_.d_model, s_.eps,
                        residual_, normed_, {squares_[0], squares_[1]}, parts_, s_.layers * Lanes::kMost, counters_};
  start(rows_embed, {unsigned(call.B), kThreads, 1, 0, false}, embed, stream);
}

void Step::project(int layer, const Lane& lane, const RowsCall& call, bool overlaps) {
  ProjectCall c = project_;
  const int64_t first = lane.first, element = gated_ ? sizeof(float) : sizeof(__half);
  c.rows = lane.rows, c.weights = project_weights_ + packed_project_.bytes() * layer;
  c.x = normed_ + first * s_.d_model;
  c.now = squares(layer, lane.first), c.before = squares(layer + 1, lane.first);
  c.conv = state(call.conv, layer);
  c.late = lane.late;
  c.u = static_cast<uint8_t*>(c.u) + first * (c.conv_end - c.conv_first) * element;
  c.gate = static_cast<uint8_t*>(c.gate) + first * (c.gate_end - c.gate_first) * element;
  if (c.dt) c.dt += first * c.dt_pitch;
  if (c.parts) c.parts += first * c.projected;
  if (c.next_weights) c.next_weights += x_proj_bytes_ * layer;
  for_rows(tile_for(c.rows.count, project_rows_), [&](auto n) {
    using Tile = ProjectTile<n.value>;
    const dim3 grid(packed_project_.tiles() * Tile::kRanks, parts(c.rows.count, n.value));
    const Launch l{grid, kThreads, Tile::kRanks, project_bytes(n.value), overlaps};
    void (*kernel)(ProjectCall) = rows_project<Tile, __half>;
    if (gated_) kernel = rows_project<Tile, float>;
    start(kernel, l, c, lane.stream);
  });
}

void Step::finish(int layer, const Lane& lane, const RowsCall& call) {
  FinishCall c = finish_;
  const int64_t first = lane.first;
  const bool last = layer + 1 == s_.layers;
  c.rows = lane.rows, c.weights = finish_weights_ + packed_finish_.bytes() * layer;
  c.x += first * s_.D;
  if (gated_) c.gate_squares += first * c.gate_parts;
  c.residual = residual_ + first * s_.d_model;
  c.next_residual = (last && call.residual ? call.residual : residual_) + first * s_.d_model;
  c.norm = last && !call.logits ? nullptr : norms_[layer + 1];
  c.normed = normed_ + first * s_.d_model;
  c.now = squares(layer, lane.first), c.next_squares = squares_[(layer + 1) & 1] + first * parts_;
  c.late = lane.late;
  for_rows(tile_for(c.rows.count, finish_rows_), [&](auto n) {
    using Tile = FinishTile<n.value>;
    const dim3 grid(packed_finish_.tiles() * Tile::kRanks, parts(c.rows.count, n.value));
    const Launch l{grid, kThreads, Tile::kRanks, finish_bytes(n.value), true};
    void (*kernel)(FinishCall) = rows_finish<Tile, false>;
    if (gated_) kernel = rows_finish<Tile, true>;
    start(kernel, l, c, lane.stream);
  });
}

template <class Tile>
void Step::head_tile(const HeadCall& call, bool overlaps, cudaStream_t stream) {
  const unsigned most = Tile::kBlocks * device_.multiprocessors;
  const dim3 grid(std::min(parts(call.vocabulary, Tile::kEntries), most), parts(call.rows, Tile::kRows));
  start(rows_head<Tile>, {grid, kThreads, 1, Tile::kSharedBytes, overlaps}, call, stream);
}

void Step::head(const RowsCall& call, int lanes, cudaStream_t stream) {
  const HeadCall c{int(call.B), s_.d_model, s_.vocabulary, normed_, embedding_, squares(s_.layers, 0),
                   squares(s_.layers + 1, 0), static_cast<__half*>(call.logits)};
  const bool overlaps = lanes == 1;
  if (call.B <= 16) return head_tile<HeadTile<16, 1, 5>>(c, overlaps, stream);
  if (call.B <= 32) return head_tile<HeadTile<32, 2, 4>>(c, overlaps, stream);
  if (call.B <= 64) return head_tile<HeadTile<64, 2, 4>>(c, overlaps, stream);
  if (call.B <= 128 || !device_.fits_head<LargeHead>()) return head_tile<HeadTile<128, 2, 3>>(c, overlaps, stream);
  head_tile<LargeHead>(c, overlaps, stream);
}

void Step::run(const RowsCall& call, cudaStream_t stream) {
  refuse(call, most_, embedding_, embedding_ && norms_.back());
  if (call.B == 0) return;
  const int B = int(call.B), lanes = lanes_for(B), each = round_up((B + lanes - 1) / lanes, kScanRows);
  embed(call, stream);
  lanes_.run(lanes, stream, [&] {
    for (int layer = 0; layer < s_.layers; ++layer)
      for (int i = 0; i < lanes; ++i) {
        const int first = i * each, count = std::min(each, B - first);
        if (count <= 0) continue;
        const Streams rows{count, call.slots ? 0 : first, call.slots ? call.slots + first : nullptr};
        const Lane lane{rows, i, first, lanes_.stream(i, stream), lanes > 1 && !gated_};
        project(layer, lane, call, layer > 0);
        middle(layer, lane, call);
        finish(layer, lane, call);
      }
  });
  if (call.logits) head(call, lanes, stream);
}

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
  }

 private:
  // Measured on an H100, as for Mamba-2.
  int lanes_for(int rows) const override { return rows <= 32 ? 1 : rows <= 128 ? 2 : Lanes::kMost; }

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
};

class Mamba2Rows : public Step {
 public:
  Mamba2Rows(const Mamba2Model& m, int64_t most)
      : Step({m.layers, m.d_model, m.H * m.P, m.vocabulary, m.K, m.eps}, most,
             PackedProduct::of<ProjectTile<64>>(2 * m.H * m.P + 2 * m.G * m.N + m.H, m.d_model), 0) {
    refuse_shape(m);
    const int D = m.H * m.P, width = D + 2 * m.G * m.N;
    dual_.H = m.H, dual_.P = m.P, dual_.G = m.G, dual_.N = m.N, dual_.dt_pitch = round_up(m.H, 4);
    shared_ = DualLayout(dual_).shared_bytes();
    if (shared_ > device_.room()) throw Unusable{"the model is too wide for steps of many rows"};
    device_.allow(rows_dual, shared_);
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
  struct Vectors {
    const float *A, *skip, *gate_norm;
  };

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

  int lanes_for(int rows) const override { return rows <= 64 ? 1 : 2; }

  void middle(int layer, const Lane& lane, const RowsCall& call) override {
    DualStep c = dual_;
    const int64_t first = lane.first, D = c.H * c.P;
    c.rows = lane.rows, c.ssm = state(call.ssm, layer);
    c.mixed += first * (D + 2 * c.G * c.N), c.gate += first * D, c.dt += first * c.dt_pitch;
    c.y += first * D, c.squares += first * (D / 32);
    c.dealt = counters_ + layer * Lanes::kMost + lane.index;
    c.A = vectors_[layer].A, c.skip = vectors_[layer].skip, c.gate_norm = vectors_[layer].gate_norm;
    const unsigned blocks = std::min(c.rows.count * c.H, device_.multiprocessors);
    start(rows_dual, {blocks, kThreads, 1, size_t(shared_), true}, c, lane.stream);
  }

  DualStep dual_{};
  int shared_;
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
