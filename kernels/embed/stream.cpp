#include "stream.h"

#include <algorithm>
#include <cstring>

namespace streamssm::embed {

// Items one after the other: those of the backlog, then those of the caller, or zeros.
class Stream::Source {
 public:
  Source(const char* backlog, int64_t waiting, const char* items, int64_t count, int64_t item)
      : backlog_(backlog), items_(items), waiting_(waiting), count_(count), item_(item) {}

  int64_t left() const { return waiting_ + count_; }
  void take(char* to, int64_t count) {
    const int64_t first = std::min(count, waiting_), rest = count - first;
    if (first > 0) std::memcpy(to, backlog_, size_t(first * item_));
    backlog_ += first * item_, waiting_ -= first, count_ -= rest;
    if (rest == 0) return;
    if (items_ == nullptr) {
      std::memset(to + first * item_, 0, size_t(rest * item_));
    } else {
      std::memcpy(to + first * item_, items_, size_t(rest * item_));
      items_ += rest * item_;
    }
  }

 private:
  const char *backlog_, *items_;
  int64_t waiting_, count_;
  const int64_t item_;
};

Stream::Stream(std::shared_ptr<const Model> model, int64_t block, bool allow_nonfinite)
    : model_(std::move(model)),
      block_(block),
      item_(manifest().input.width * bytes_of(manifest().input.dtype)),
      rule_(manifest().input, allow_nonfinite),
      lane_(*model_, block, 1),
      needed_(model_->frames().size()),
      cursors_(model_->frames().size()),
      before_(size_t(lane_.all_state_bytes() + block * item_)) {}

int64_t Stream::frames_of_push(size_t count, size_t output) const {
  const FrameRule& rule = model_->frames()[output];
  const int64_t start = position_ - pending(), stop = start + (pending() + int64_t(count)) / block_ * block_;
  return rule.returned(stop) - rule.returned(start);
}

int64_t Stream::frames_of_flush(size_t output) const {
  if (ended_ || position_ == 0) return 0;
  const FrameRule& rule = model_->frames()[output];
  return rule.total(position_) - rule.returned(position_ - pending());
}

void Stream::require_room(const std::vector<int64_t>& needed, streamssm_frames* outputs) const {
  bool fits = true;
  for (size_t i = 0; i < needed.size(); ++i) {
    outputs[i].count = size_t(needed[i]);
    fits = fits && (outputs[i].data == nullptr || outputs[i].room >= size_t(needed[i]));
  }
  if (fits) return;
  std::string counts;
  for (size_t i = 0; i < needed.size(); ++i)
    counts += say(i ? ", " : "", needed[i], " (room for ",
                  outputs[i].data ? outputs[i].room : size_t(needed[i]), ")");
  fail(STREAMSSM_ERROR_ROOM, "the results need more room: ", counts,
       " frames; nothing of the chunk was used");
}

void Stream::push(const void* items, size_t count, streamssm_frames* outputs) {
  for (size_t i = 0; i < needed_.size(); ++i) outputs[i].count = 0;  // no count of an earlier call
  if (ended_) fail(STREAMSSM_ERROR_ENDED, "the stream ended at item ", position_, "; reset it to start anew");
  if (count > size_t(INT64_MAX / 4) / size_t(std::max<int64_t>(item_, 1)) ||
      int64_t(count) > INT64_MAX / 4 - position_)
    fail(STREAMSSM_ERROR_ARGUMENT, "a chunk of ", count, " items is too large");
  rule_.check(items, count);
  for (size_t i = 0; i < needed_.size(); ++i) needed_[i] = frames_of_push(count, i);
  require_room(needed_, outputs);
  // one run fails as a whole; of several, the first may be done when the second fails
  const bool several = (pending() + int64_t(count)) / block_ > 1;
  if (several) remember();
  try {
    Source source(backlog_.data(), backlog_items(), static_cast<const char*>(items), int64_t(count), item_);
    run(source, outputs);
  } catch (...) {
    for (size_t i = 0; i < needed_.size(); ++i) outputs[i].count = 0;
    if (several) go_back();
    throw;
  }
  backlog_.clear();
  position_ += int64_t(count);
}

// Run every block that the source completes and keep the rest; `fill_` is what then waits. If a run throws,
// it is as it was before the first.
void Stream::run(Source& source, streamssm_frames* outputs) {
  const std::vector<FrameRule>& rules = model_->frames();
  for (size_t i = 0; i < rules.size(); ++i) cursors_[i] = rules[i].cursor(position_ - pending());
  char* const x = lane_.x();
  int64_t fill = fill_;
  while (fill + source.left() >= block_) {
    source.take(x + fill * item_, block_ - fill);
    lane_.step();
    for (size_t i = 0; i < rules.size(); ++i) collect(outputs, i, lane_.y(i), lane_.frames(i));
    fill = 0;
  }
  const int64_t rest = source.left();
  source.take(x + fill * item_, rest);
  fill_ = fill + rest;
}

// Append frames to the results at the cursor, cut to what is wanted.
void Stream::collect(streamssm_frames* outputs, size_t output, const float* frames, int64_t count) {
  const int64_t width = manifest().outputs[output].width, at = cursors_[output];
  const int64_t start = std::max<int64_t>(at, 0), stop = std::min(at + count, needed_[output]);
  cursors_[output] = at + count;
  if (start >= stop || outputs[output].data == nullptr) return;
  std::memcpy(outputs[output].data + start * width, frames + (start - at) * width,
              size_t((stop - start) * width) * 4);
}

void Stream::flush(streamssm_frames* outputs) {
  if (ended_ || position_ == 0) {
    for (size_t i = 0; i < needed_.size(); ++i) outputs[i].count = 0;
    ended_ = true;
    return;
  }
  for (size_t i = 0; i < needed_.size(); ++i) needed_[i] = frames_of_flush(i);
  require_room(needed_, outputs);
  const int64_t hop = manifest().input.hop, waiting = pending();
  const int64_t tail = (waiting + manifest().lookahead + hop - 1) / hop * hop;
  const std::vector<int64_t> padding = manifest().input.padding(tail - waiting);
  const char* const end = padding.empty() ? nullptr : reinterpret_cast<const char*>(padding.data());
  remember();
  try {
    Source source(backlog_.data(), backlog_items(), end, tail - waiting, item_);
    run(source, outputs);
    if (fill_ > 0) {
      const std::vector<std::vector<float>> frames = lane_.step_short(fill_);
      for (size_t i = 0; i < frames.size(); ++i)
        collect(outputs, i, frames[i].data(), model_->frames()[i].raw(fill_));
    }
  } catch (...) {
    for (size_t i = 0; i < needed_.size(); ++i) outputs[i].count = 0;
    fill_ = waiting - backlog_items();
    go_back();
    throw;
  }
  backlog_.clear();
  fill_ = 0, ended_ = true;
}

void Stream::remember() {
  lane_.save(before_.data());
  if (fill_ > 0) std::memcpy(before_.data() + lane_.all_state_bytes(), lane_.x(), size_t(fill_ * item_));
}

void Stream::go_back() {
  lane_.load(before_.data());
  if (fill_ > 0) std::memcpy(lane_.x(), before_.data() + lane_.all_state_bytes(), size_t(fill_ * item_));
}

void Stream::reset() {
  lane_.clear();
  backlog_.clear();
  position_ = 0, fill_ = 0, ended_ = false;
}

SavedView Stream::view() const {
  SavedView saved;
  for (size_t i = 0; i < manifest().states.size(); ++i) saved.states.push_back(lane_.state(i));
  saved.pending = {backlog_.empty() ? Bytes(lane_.x(), size_t(fill_ * item_))
                                    : Bytes(backlog_.data(), backlog_.size())};
  saved.position = position_, saved.block = block_, saved.ended = ended_;
  saved.allow_nonfinite = rule_.allow_nonfinite();
  return saved;
}

std::unique_ptr<Stream> Stream::fork() const {
  auto twin = std::make_unique<Stream>(model_, block_, rule_.allow_nonfinite());
  twin->lane_.clear();
  for (size_t i = 0; i < manifest().states.size(); ++i)
    std::memcpy(twin->lane_.state(i), lane_.state(i), size_t(lane_.state_bytes(i)));
  if (fill_ > 0) std::memcpy(twin->lane_.x(), lane_.x(), size_t(fill_ * item_));
  twin->backlog_ = backlog_;
  twin->position_ = position_, twin->fill_ = fill_, twin->ended_ = ended_;
  return twin;
}

void Stream::restore(const Snapshot& snapshot) {
  std::vector<char> backlog;
  if (snapshot.items >= block_) backlog.assign(snapshot.pending.begin(), snapshot.pending.end());
  for (size_t i = 0; i < snapshot.states.size(); ++i)
    if (!snapshot.states[i].empty())
      std::memcpy(lane_.state(i), snapshot.states[i].data(), snapshot.states[i].size());
  fill_ = backlog.empty() ? snapshot.items : 0;
  if (fill_ > 0) std::memcpy(lane_.x(), snapshot.pending.data(), size_t(fill_ * item_));
  backlog_ = std::move(backlog);
  position_ = snapshot.position, ended_ = snapshot.ended;
}

}  // namespace streamssm::embed
