#include "detector.h"

#include <algorithm>

namespace streamssm::embed {
namespace {

const EventRule& rule_of(const Model& model) {
  if (!model.manifest().events)
    fail(STREAMSSM_ERROR_ARGUMENT, model.manifest().name, " has no event rule; read its outputs instead");
  return *model.manifest().events;
}

// A product of a file's numbers; half of what fits, so that it may be doubled.
__int128 product(__int128 a, __int128 b) {
  __int128 made;
  if (__builtin_mul_overflow(a, b, &made) || made > (__int128(1) << 125))
    fail(STREAMSSM_ERROR_FILE, "the rate, the ratio and the event rule of the manifest have too many digits");
  return made;
}

// The least number of frames, one or more, that lasts at least so many seconds.
int64_t frames_at_least(double seconds, Fraction rate) {
  const Fraction duration = exact(seconds);
  const __int128 up = product(duration.up, rate.up), down = product(duration.down, rate.down);
  return int64_t(std::clamp<__int128>((up + down - 1) / down, 1, INT64_MAX));
}

}  // namespace

Detector::Detector(std::shared_ptr<const Model> model)
    : model_(std::move(model)),
      rule_(rule_of(*model_)),
      width_(model_->manifest().outputs[rule_.output].width),
      onset_(float(rule_.onset)),
      offset_(float(rule_.offset)) {
  const OutputSpec& output = model_->manifest().outputs[rule_.output];
  Fraction unit;
  unit.up = 1;
  if (model_->manifest().input.rate) {
    unit = rate_ = exact(*model_->manifest().input.rate);
    unit.up = rate_.up = product(rate_.up, output.up);
    unit.down = rate_.down = product(rate_.down, output.down);
  }
  min_on_ = frames_at_least(rule_.min_on, unit), min_off_ = frames_at_least(rule_.min_off, unit);
}

streamssm_event Detector::event(int64_t index, bool start, bool cut) const {
  double time = -1;
  if (rate_.up > 0) {  // rounded once, to microseconds
    const __int128 scaled = __int128(index) * 1000000 * rate_.down;
    time = double(int64_t((2 * scaled + rate_.up) / (2 * rate_.up))) / 1000000;
  }
  return {index, time, start, cut};
}

// Takes the frames; returns how many events there are, of which those are written that fit.
size_t Detector::advance(State& state, const float* frames, size_t count, streamssm_event* events,
                         size_t room) const {
  size_t found = 0;
  for (size_t i = 0; i < count; ++i) {
    const float probability = frames[int64_t(i) * width_ + rule_.column];
    // NaN is neither above nor below
    const bool changing = state.active ? probability < offset_ : probability >= onset_;
    state.run = changing ? state.run + 1 : 0;
    ++state.index;
    if (!changing || state.run < (state.active ? min_off_ : min_on_)) continue;
    if (found < room) events[found] = event(state.index - state.run, !state.active, false);
    ++found;
    state.active = !state.active, state.run = 0;
  }
  return found;
}

void Detector::push(const float* frames, size_t count, streamssm_event* events, size_t room, size_t* found) {
  State state = state_;
  *found = advance(state, frames, count, events, room);
  if (*found > room)
    fail(STREAMSSM_ERROR_ROOM, "the frames complete ", *found, " events, there is room for ", room);
  state_ = state;
}

void Detector::end(streamssm_event* ending, size_t* found) {
  *found = state_.active;
  if (state_.active) *ending = event(state_.index - 1, false, true);
  state_ = State{};
}

}  // namespace streamssm::embed
