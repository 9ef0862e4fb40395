// Steps of many rows of both kinds of models: the ends, the two large products of a layer, lanes of rows.
#pragma once

#include "rows_host.h"
#include "rows_walk.h"

namespace streamssm::cuda::rows {

using LargeHead = HeadTile<256, 4, 4>;  // more shared memory than some GPUs have

struct Sizes {
  int layers, d_model, D, vocabulary, taps;
  float eps;
};

// How the rows of a step are worked on.
struct Way {
  int lanes;            // side by side
  bool late = false;    // kernels admit the next one late
  bool urgent = false;  // products go before what waits of other lanes
};

// What a lane works with; everything begins at its first row.
struct Lane {
  Streams rows;
  int index, first;
  cudaStream_t stream;
  Way way;
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
  virtual Way way_for(int rows) const = 0;  // measured on an H100
  virtual void middle(int layer, const Lane& lane, const RowsCall& call) = 0;
  // All layers in one launch, for the models and numbers of rows that have it.
  virtual Walk* walk_for(int) { return nullptr; }
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
  void head(const RowsCall& call, const Squares& now, const Squares& before, bool overlaps, cudaStream_t stream);
  template <class Tile>
  void head_tile(const HeadCall& call, bool overlaps, cudaStream_t stream);
  Squares squares(int layer, int first) const;
  int priority(const Lane& lane) const { return lane.way.urgent ? device_.first_priority : 0; }
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

inline Step::Step(const Sizes& sizes, int64_t most_rows, const PackedProduct& project, int projected)
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

inline void Step::allow_all() {
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

inline void Step::take_ends(const float* norm, const void* embedding) {
  norms_.push_back(norm ? copy(norm, s_.d_model) : nullptr);
  embedding_ = static_cast<const __half*>(embedding);
  if (uintptr_t(embedding) % 16) throw Unusable{"the embedding must be 16-byte aligned"};
  check(cudaGetLastError());  // of the last launches
  check(cudaDeviceSynchronize());
}

// The squares of what goes into a layer.
inline Squares Step::squares(int layer, int first) const {
  return {squares_[layer & 1] + int64_t(first) * parts_, parts_, 1.0f / float(s_.d_model), s_.eps};
}

inline void Step::embed(const RowsCall& call, cudaStream_t stream) {
  const EmbedCall embed{{int(call.B), 0, call.slots}, call.tokens, call.x, embedding_, norms_[0], s_.d_model, s_.eps,
                        residual_, normed_, {squares_[0], squares_[1]}, parts_, s_.layers * Lanes::kMost, counters_};
  start(rows_embed, {unsigned(call.B), kThreads, 1, 0, false}, embed, stream);
}

inline void Step::project(int layer, const Lane& lane, const RowsCall& call, bool overlaps) {
  ProjectCall c = project_;
  const int64_t first = lane.first, element = gated_ ? sizeof(float) : sizeof(__half);
  c.rows = lane.rows, c.weights = project_weights_ + packed_project_.bytes() * layer;
  c.x = normed_ + first * s_.d_model;
  c.now = squares(layer, lane.first), c.before = squares(layer + 1, lane.first);
  c.conv = state(call.conv, layer);
  c.late = lane.way.late;
  c.u = static_cast<uint8_t*>(c.u) + first * (c.conv_end - c.conv_first) * element;
  c.gate = static_cast<uint8_t*>(c.gate) + first * (c.gate_end - c.gate_first) * element;
  if (c.dt) c.dt += first * c.dt_pitch;
  if (c.parts) c.parts += first * c.projected;
  if (c.next_weights) c.next_weights += x_proj_bytes_ * layer;
  for_rows(tile_for(c.rows.count, project_rows_), [&](auto n) {
    using Tile = ProjectTile<n.value>;
    const dim3 grid(packed_project_.tiles() * Tile::kRanks, parts(c.rows.count, n.value));
    const Launch l{grid, kThreads, Tile::kRanks, project_bytes(n.value), overlaps, priority(lane)};
    void (*kernel)(ProjectCall) = rows_project<Tile, __half>;
    if (gated_) kernel = rows_project<Tile, float>;
    start(kernel, l, c, lane.stream);
  });
}

inline void Step::finish(int layer, const Lane& lane, const RowsCall& call) {
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
  c.late = lane.way.late;
  for_rows(tile_for(c.rows.count, finish_rows_), [&](auto n) {
    using Tile = FinishTile<n.value>;
    const dim3 grid(packed_finish_.tiles() * Tile::kRanks, parts(c.rows.count, n.value));
    const Launch l{grid, kThreads, Tile::kRanks, finish_bytes(n.value), true, priority(lane)};
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

inline void Step::head(const RowsCall& call, const Squares& now, const Squares& before, bool overlaps,
                       cudaStream_t stream) {
  const HeadCall c{int(call.B), s_.d_model, s_.vocabulary, normed_, embedding_, now, before,
                   static_cast<__half*>(call.logits)};
  if (call.B <= 16) return head_tile<HeadTile<16, 1, 5>>(c, overlaps, stream);
  if (call.B <= 32) return head_tile<HeadTile<32, 2, 4>>(c, overlaps, stream);
  if (call.B <= 64) return head_tile<HeadTile<64, 2, 4>>(c, overlaps, stream);
  if (call.B <= 128 || !device_.fits_head<LargeHead>()) return head_tile<HeadTile<128, 2, 3>>(c, overlaps, stream);
  head_tile<LargeHead>(c, overlaps, stream);
}

inline void Step::run(const RowsCall& call, cudaStream_t stream) {
  refuse(call, most_, embedding_, embedding_ && norms_.back());
  if (call.B == 0) return;
  const int B = int(call.B);
  const Way way = way_for(B);
  const int each = round_up((B + way.lanes - 1) / way.lanes, kScanRows);
  embed(call, stream);
  if (Walk* walk = walk_for(B)) {
    walk->run(call, {residual_, squares(0, 0), norms_[0], call.logits ? normed_ : nullptr}, stream);
    if (call.logits) head(call, walk->now(), walk->before(), false, stream);
    return;
  }
  lanes_.run(way.lanes, stream, [&] {
    for (int layer = 0; layer < s_.layers; ++layer)
      for (int i = 0; i < way.lanes; ++i) {
        const int first = i * each, count = std::min(each, B - first);
        if (count <= 0) continue;
        const Streams rows{count, call.slots ? 0 : first, call.slots ? call.slots + first : nullptr};
        const Lane lane{rows, i, first, lanes_.stream(i, stream), way};
        project(layer, lane, call, layer > 0);
        middle(layer, lane, call);
        finish(layer, lane, call);
      }
  });
  if (call.logits) head(call, squares(s_.layers, 0), squares(s_.layers + 1, 0), way.lanes == 1, stream);
}

}  // namespace streamssm::cuda::rows
