#include "lane.h"

#include <cstring>

namespace streamssm::embed {
namespace {

constexpr int64_t kLine = 64;  // bytes

// Lays out buffers one after the other: first their sizes, then their places.
class Layout {
 public:
  size_t add(int64_t bytes) {
    starts_.push_back(total_);
    if (__builtin_add_overflow(total_, rounded(bytes, kLine), &total_)) throw std::bad_alloc();
    return starts_.size() - 1;
  }
  int64_t floats() const { return total_ / 4; }
  char* place(const Floats& memory, size_t buffer) const {
    return reinterpret_cast<char*>(memory.data()) + starts_[buffer];
  }

 private:
  std::vector<int64_t> starts_;
  int64_t total_ = 0;
};

// Lends the scratch memory of a lane to a run.
struct Lending {
  explicit Lending(ort::Scratch::Piece& piece) { ort::Scratch::hosts() = &piece; }
  ~Lending() { ort::Scratch::hosts() = nullptr; }
};

Shape dims(std::initializer_list<int64_t> lead, const Shape& shape) {
  Shape all(lead);
  all.insert(all.end(), shape.begin(), shape.end());
  return all;
}

int64_t checked(int64_t a, int64_t b) {
  int64_t product;
  if (__builtin_mul_overflow(a, b, &product) || product > (int64_t(1) << 46)) throw std::bad_alloc();
  return product;
}

}  // namespace

Lane::Lane(const Model& model, int64_t block, int64_t rows, const Lane* like, bool once)
    : model_(model),
      block_(block),
      rows_(rows),
      item_(checked(model.manifest().input.width, bytes_of(model.manifest().input.dtype))) {
  const Manifest& manifest = model.manifest();
  Layout layout;
  std::vector<size_t> outputs, sides[2];
  size_t x = 0;
  if (like == nullptr) {
    x = layout.add(checked(checked(rows, block), item_));
    for (size_t i = 0; i < manifest.outputs.size(); ++i)
      outputs.push_back(
          layout.add(checked(checked(rows, frames_of(i, block)), 4 * manifest.outputs[i].width)));
  }
  for (const StateSpec& state : manifest.states)
    sides[0].push_back(layout.add(checked(rows, state.nbytes())));
  for (size_t i = 0; i < manifest.states.size(); ++i) {
    const StateSpec& state = manifest.states[i];
    sides[1].push_back(model.in_place(state) ? sides[0][i] : layout.add(checked(rows, state.nbytes())));
  }
  memory_ = Floats(layout.floats());
  x_ = like == nullptr ? layout.place(memory_, x) : like->x_;
  for (const size_t output : outputs) y_.push_back(reinterpret_cast<float*>(layout.place(memory_, output)));
  if (like != nullptr) y_ = like->y_;
  for (int side : {0, 1})
    for (const size_t state : sides[side]) states_[side].push_back(layout.place(memory_, state));
  for (int side : {0, 1}) {
    bindings_[side] = std::make_unique<Binding>(model.session());
    bind(*bindings_[side], side, x_, block, y_);
  }
  if (like == nullptr) std::memset(x_, 0, size_t(rows * block * item_));
  for (int i = 0; i < (once ? 0 : 2); ++i) step();
  clear();
}

int64_t Lane::frames_of(size_t output, int64_t items) const { return model_.frames()[output].raw(items); }

void Lane::bind(Binding& binding, int side, char* x, int64_t items, const std::vector<float*>& y) {
  const Manifest& manifest = model_.manifest();
  binding.input(manifest.input.name, manifest.input.dtype, dims({rows_, items}, manifest.input.shape), x);
  for (size_t i = 0; i < y.size(); ++i) {
    const OutputSpec& output = manifest.outputs[i];
    binding.output(output.name, DType::float32, dims({rows_, frames_of(i, items)}, output.shape), y[i]);
  }
  for (size_t i = 0; i < manifest.states.size(); ++i) {
    const StateSpec& state = manifest.states[i];
    binding.input(state.name, state.dtype, dims({rows_}, state.shape), states_[side][i]);
    binding.output(state.next, state.dtype, dims({rows_}, state.shape), states_[1 - side][i]);
  }
}

void Lane::run(const Binding& binding) {
  const Lending lending(scratch_);
  OrtStatus* status = binding.run();
  if (status != nullptr) model_.session().runtime().check(status);
}

void Lane::step() {
  run(*bindings_[side_]);
  side_ = 1 - side_;
}

std::vector<std::vector<float>> Lane::step_short(int64_t items) {
  Lane copy(model_, items, rows_, nullptr, true);
  for (int64_t row = 0; row < rows_; ++row)
    std::memcpy(copy.x_ + row * items * item_, x_ + row * block_ * item_, size_t(items * item_));
  for (size_t i = 0; i < states_[side_].size(); ++i)
    std::memcpy(copy.state(i), state(i), size_t(rows_ * state_bytes(i)));
  copy.step();
  for (size_t i = 0; i < states_[side_].size(); ++i)
    std::memcpy(state(i), copy.state(i), size_t(rows_ * state_bytes(i)));
  std::vector<std::vector<float>> outputs;
  for (size_t i = 0; i < y_.size(); ++i) {
    const int64_t floats = rows_ * copy.frames(i) * model_.manifest().outputs[i].width;
    outputs.emplace_back(copy.y_[i], copy.y_[i] + floats);
  }
  return outputs;
}

void Lane::save(char* to) const {
  for (size_t i = 0; i < states_[side_].size(); to += rows_ * state_bytes(i++))
    std::memcpy(to, state(i), size_t(rows_ * state_bytes(i)));
}

void Lane::load(const char* from) {
  for (size_t i = 0; i < states_[side_].size(); from += rows_ * state_bytes(i++))
    std::memcpy(state(i), from, size_t(rows_ * state_bytes(i)));
}

void Lane::clear() {
  for (size_t i = 0; i < states_[side_].size(); ++i) std::memset(state(i), 0, size_t(rows_ * state_bytes(i)));
}

}  // namespace streamssm::embed
