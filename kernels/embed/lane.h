// The buffers of one stream, or of some rows of a pool: input block, outputs of the last step, states.
//
// Every buffer is bound once, to the input or output it serves, so a step is one call. The state has two
// sides, read and written in turn; what the last node of the graph may overwrite (see fusion.h) has only one.
// Buffers start at multiples of 64 bytes: a result must not depend on where a buffer happens to lie.
#pragma once

#include <memory>
#include <vector>

#include "../ort/scratch.h"
#include "model.h"

namespace streamssm::embed {

class Lane {
 public:
  // States at zero; `like` lends its x and y, where it has as many rows and outlives this lane. Unless it is
  // to be used `once`, what a run allocates only once is allocated now: scratch memory, and ONNX Runtime's
  // own.
  Lane(const Model& model, int64_t block, int64_t rows, const Lane* like = nullptr, bool once = false);

  int64_t rows() const { return rows_; }
  int64_t item_bytes() const { return item_; }
  // Input [rows, block, ...]; an output of the last step [rows, frames, ...]; a state [rows, ...].
  char* x() const { return x_; }
  const float* y(size_t output) const { return y_[output]; }
  int64_t frames(size_t output) const { return frames_of(output, block_); }
  char* state(size_t index) const { return states_[side_][index]; }
  int64_t state_bytes(size_t index) const { return model_.manifest().states[index].nbytes(); }  // of a row

  // Run the whole input block; where that fails, the states are as they were. Throws Error.
  void step();
  // Run the first `items` of the block of every row; gives outputs [rows, frames, ...].
  std::vector<std::vector<float>> step_short(int64_t items);

  // All states of a lane, one after the other.
  int64_t all_state_bytes() const { return rows_ * model_.manifest().state_bytes; }
  void save(char* to) const;
  void load(const char* from);
  void clear();  // states to zero

 private:
  int64_t frames_of(size_t output, int64_t items) const;
  void bind(Binding& binding, int side, char* x, int64_t items, const std::vector<float*>& y);
  void run(const Binding& binding);

  const Model& model_;
  const int64_t block_, rows_, item_;
  Floats memory_{0};
  char* x_ = nullptr;
  std::vector<float*> y_;
  std::vector<char*> states_[2];
  int side_ = 0;
  ort::Scratch::Piece scratch_;
  std::unique_ptr<Binding> bindings_[2];
};

}  // namespace streamssm::embed
