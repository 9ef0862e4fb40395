#include "pool.h"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <utility>

namespace streamssm::embed {
namespace {

// Rows of a lane: enough that a call costs little beside its rows, few enough that its buffers stay in the
// second level of cache. The same number as in Python, for the same bytes.
constexpr int64_t kRows = 32;
constexpr size_t kMostSlots = 1 << 20;
constexpr int64_t kMostBytes = int64_t(1) << 46, kMostLimit = int64_t(1) << 56;

using Lock = std::lock_guard<std::mutex>;

int64_t checked_limit(int64_t block, int64_t limit) {
  if (limit == 0) limit = 8 * block;
  if (limit < block)
    fail(STREAMSSM_ERROR_ARGUMENT, "limit = ", limit, " items is less than a block of ", block,
         ": no step would run");
  if (limit > kMostLimit) fail(STREAMSSM_ERROR_ARGUMENT, "limit = ", limit, " items is too large");
  return limit;
}

// Bytes of the rings of all slots: the caller's numbers times those of the file.
size_t ring_bytes(size_t slots, int64_t capacity, int64_t item) {
  int64_t bytes;
  if (__builtin_mul_overflow(capacity, item, &bytes) ||
      __builtin_mul_overflow(bytes, int64_t(slots), &bytes) || bytes > kMostBytes)
    fail(STREAMSSM_ERROR_ARGUMENT, "limit = ", capacity, " items, look-ahead included, is too large for ",
         slots, " slots");
  return size_t(bytes);
}

size_t checked_slots(size_t slots) {
  if (slots < 1 || slots > kMostSlots)
    fail(STREAMSSM_ERROR_ARGUMENT, "slots = ", slots, " is not from 1 to ", kMostSlots);
  return slots;
}

}  // namespace

Pool::Pool(std::shared_ptr<const Model> model, size_t slots, int64_t block, int64_t limit,
           bool allow_nonfinite)
    : model_(std::move(model)),
      block_(block),
      limit_(checked_limit(block, limit)),
      item_(manifest().input.width * bytes_of(manifest().input.dtype)),
      rows_(std::min(int64_t(checked_slots(slots)), kRows)),
      rule_(manifest().input, allow_nonfinite),
      capacity_(limit_ + block + manifest().lookahead + manifest().input.hop),
      rings_(ring_bytes(slots, capacity_, item_)),
      slots_(slots),
      common_(std::make_unique<Lane>(*model_, block, rows_)) {
  for (size_t first = 0; first < slots; first += size_t(rows_))
    lanes_.push_back(std::make_unique<Lane>(*model_, block, rows_, common_.get()));
  const size_t outputs = manifest().outputs.size();
  for (auto* list : {&whole_, &scattered_, &last_, &some_}) list->reserve(slots);
  some_rows_.reserve(slots);
  frames_.resize(outputs);
  results_.reserve(slots);
  result_frames_.resize(slots * outputs);
  for (size_t i = 0; i < outputs; ++i)
    result_memory_.emplace_back(slots * size_t(common_->frames(i) * manifest().outputs[i].width));
}

Pool::Slot& Pool::require(size_t slot) {
  if (slot >= slots_.size() || !slots_[slot].open)
    fail(STREAMSSM_ERROR_ARGUMENT, "there is no stream in slot ", slot, " of ", slots_.size(),
         "; join first");
  return slots_[slot];
}

void Pool::clear(size_t slot) {
  Lane& lane = lane_of(slot);
  for (size_t i = 0; i < manifest().states.size(); ++i)
    std::memset(state(lane, i, row_of(slot)), 0, size_t(lane.state_bytes(i)));
  slots_[slot] = Slot{};
}

size_t Pool::join(const Snapshot* snapshot) {
  if (snapshot != nullptr && snapshot->ended)
    fail(STREAMSSM_ERROR_ENDED, "the snapshot is of a stream that has ended; a slot takes one that goes on");
  if (snapshot != nullptr && snapshot->items > limit_)
    fail(STREAMSSM_ERROR_FULL, "the snapshot has ", snapshot->items, " items waiting, the limit is ", limit_);
  const Lock states(states_), waiting(waiting_);
  size_t slot = 0;
  while (slot < slots_.size() && slots_[slot].open) ++slot;
  if (slot == slots_.size())
    fail(STREAMSSM_ERROR_FULL, "all ", slots_.size(),
         " slots are taken; let a stream leave, or open a larger pool");
  clear(slot);
  slots_[slot].open = true;
  if (snapshot == nullptr) return slot;
  Lane& lane = lane_of(slot);
  for (size_t i = 0; i < snapshot->states.size(); ++i)
    if (!snapshot->states[i].empty())
      std::memcpy(state(lane, i, row_of(slot)), snapshot->states[i].data(), snapshot->states[i].size());
  put(slots_[slot], slot, snapshot->pending.data(), snapshot->items);
  slots_[slot].position = snapshot->position, slots_[slot].done = snapshot->position - snapshot->items;
  return slot;
}

void Pool::leave(size_t slot) {
  const Lock states(states_), waiting(waiting_);
  require(slot).open = false;
}

void Pool::reset(size_t slot) {
  const Lock states(states_), waiting(waiting_);
  require(slot);
  clear(slot);
  slots_[slot].open = true;
}

void Pool::push(size_t index, const void* items, size_t count) {
  if (count > size_t(limit_))
    fail(STREAMSSM_ERROR_FULL, "a chunk of ", count, " items is more than the limit of ", limit_);
  rule_.check(items, count);
  const Lock waiting(waiting_);
  Slot& slot = require(index);
  if (slot.ending)
    fail(STREAMSSM_ERROR_ENDED, "the stream in slot ", index, " is being flushed; step the pool");
  if (slot.items + int64_t(count) > limit_)
    fail(STREAMSSM_ERROR_FULL, "the stream in slot ", index, " has ", slot.items,
         " items waiting and was given ", count, ", its limit is ", limit_, "; step the pool");
  put(slot, index, static_cast<const char*>(items), int64_t(count));
  slot.position += int64_t(count);
}

void Pool::flush(size_t index) {
  const Lock states(states_), waiting(waiting_);
  Slot& slot = require(index);
  if (slot.ending) return;
  const int64_t hop = manifest().input.hop;
  const int64_t tail = slot.position == 0 ? 0 : (slot.items + manifest().lookahead + hop - 1) / hop * hop;
  const std::vector<int64_t> padding = manifest().input.padding(tail - slot.items);
  const char* const end = padding.empty() ? nullptr : reinterpret_cast<const char*>(padding.data());
  put(slot, index, end, tail - slot.items);
  slot.ending = true;
}

size_t Pool::ready() {
  const Lock waiting(waiting_);
  return size_t(std::count_if(slots_.begin(), slots_.end(), [this](const Slot& slot) { return runs(slot); }));
}

int64_t Pool::waiting(size_t slot) {
  const Lock waiting(waiting_);
  if (slot >= slots_.size() || !slots_[slot].open) return -1;
  return slots_[slot].position - std::min(slots_[slot].done, slots_[slot].position);
}

// The ring.

void Pool::put(Slot& slot, size_t index, const char* items, int64_t count) {
  char* const ring = rings_.data() + index * size_t(capacity_ * item_);
  const int64_t start = (slot.first + slot.items) % capacity_, first = std::min(count, capacity_ - start);
  for (const auto& [at, from, some] :
       {std::tuple(start, int64_t(0), first), std::tuple(int64_t(0), first, count - first)}) {
    if (some <= 0 || item_ == 0) continue;
    if (items == nullptr)
      std::memset(ring + at * item_, 0, size_t(some * item_));
    else
      std::memcpy(ring + at * item_, items + from * item_, size_t(some * item_));
  }
  slot.items += count;
}

void Pool::peek(const Slot& slot, size_t index, char* to, int64_t count) const {
  const char* const ring = rings_.data() + index * size_t(capacity_ * item_);
  const int64_t first = std::min(count, capacity_ - slot.first);
  if (first > 0) std::memcpy(to, ring + slot.first * item_, size_t(first * item_));
  if (count > first) std::memcpy(to + first * item_, ring, size_t((count - first) * item_));
}

void Pool::drop(Slot& slot, int64_t count) {
  slot.first = (slot.first + count) % capacity_;
  slot.items -= count, slot.done += count;
}

SavedView Pool::view(size_t index) {
  const Slot& slot = require(index);
  if (slot.ending) fail(STREAMSSM_ERROR_ENDED, "the stream in slot ", index, " is being flushed");
  SavedView saved;
  Lane& lane = lane_of(index);
  for (size_t i = 0; i < manifest().states.size(); ++i) saved.states.push_back(state(lane, i, row_of(index)));
  const char* const ring = rings_.data() + index * size_t(capacity_ * item_);
  const int64_t first = std::min(slot.items, capacity_ - slot.first);
  saved.pending = {Bytes(ring + slot.first * item_, size_t(first * item_)),
                   Bytes(ring, size_t((slot.items - first) * item_))};
  saved.position = slot.position, saved.block = block_, saved.allow_nonfinite = rule_.allow_nonfinite();
  return saved;
}

// Steps.

void Pool::step() {
  const Lock states(states_);
  results_.clear();
  failure_ = nullptr;
  choose();
  run_lanes();
  run_copies();
  run_last();
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

// Runs `work` for the slots in `some_`. Where it throws, the other runs of the step go on: one stream that
// cannot run must not stop those it does not run with. The first failure is told at the end.
template <class Work>
void Pool::attempt(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    if (!failure_)
      failure_ = std::make_exception_ptr(Error(
          error.status, say("slots ", some_.front(), " to ", some_.back(), " in one run: ", error.what())));
  } catch (...) {
    if (!failure_) failure_ = std::current_exception();
  }
}

// Slots with a whole block, and those at their end with less.
void Pool::choose() {
  const Lock waiting(waiting_);
  whole_.clear(), last_.clear(), scattered_.clear();
  for (size_t slot = 0; slot < slots_.size(); ++slot)
    if (runs(slots_[slot])) (slots_[slot].items >= block_ ? whole_ : last_).push_back(slot);
}

// Lanes on which no slot has to wait run as they are; the slots of others that are ready are `scattered_`.
void Pool::run_lanes() {
  for (auto at = whole_.begin(); at != whole_.end();) {
    const size_t lane = *at / size_t(rows_);
    some_.clear(), some_rows_.clear();
    for (; at != whole_.end() && *at / size_t(rows_) == lane; ++at)
      some_.push_back(*at), some_rows_.push_back(row_of(*at));
    size_t open = 0;
    for (size_t slot = lane * size_t(rows_); slot < std::min(slots_.size(), (lane + 1) * size_t(rows_));
         ++slot)
      open += slots_[slot].open;
    if (open != some_.size()) {
      scattered_.insert(scattered_.end(), some_.begin(), some_.end());
      continue;
    }
    attempt([&] { run_lane(*lanes_[lane]); });
  }
}

void Pool::run_lane(Lane& lane) {
  fill_in(some_, some_rows_, block_);
  lane.step();
  for (size_t i = 0; i < some_.size(); ++i) {
    for (size_t k = 0; k < frames_.size(); ++k)
      frames_[k] = lane.y(k) + some_rows_[i] * lane.frames(k) * manifest().outputs[k].width;
    deliver(some_[i], block_, frames_);
  }
}

void Pool::run_copies() {
  for (size_t first = 0; first < scattered_.size(); first += size_t(rows_)) {
    some_.assign(scattered_.begin() + int64_t(first),
                 scattered_.begin() + int64_t(std::min(first + size_t(rows_), scattered_.size())));
    attempt([&] { run_copy(); });
  }
}

void Pool::run_copy() {
  bring(some_);
  fill_in(some_, some_rows_, block_);
  common_->step();
  for (size_t i = 0; i < some_.size(); ++i) {
    Lane& lane = lane_of(some_[i]);
    for (size_t k = 0; k < manifest().states.size(); ++k)
      std::memcpy(state(lane, k, row_of(some_[i])), state(*common_, k, int64_t(i)),
                  size_t(lane.state_bytes(k)));
    for (size_t k = 0; k < frames_.size(); ++k)
      frames_[k] = common_->y(k) + int64_t(i) * common_->frames(k) * manifest().outputs[k].width;
    deliver(some_[i], block_, frames_);
  }
}

// The last items of streams that end, together where they are as many.
void Pool::run_last() {
  std::stable_sort(last_.begin(), last_.end(),
                   [this](size_t a, size_t b) { return slots_[a].items < slots_[b].items; });
  for (size_t first = 0; first < last_.size();) {
    const int64_t items = slots_[last_[first]].items;
    some_.clear();
    for (; first < last_.size() && slots_[last_[first]].items == items && some_.size() < size_t(rows_);
         ++first)
      some_.push_back(last_[first]);
    attempt([&] { run_short(items); });
  }
}

void Pool::run_short(int64_t items) {
  std::vector<std::vector<float>> made;
  if (items > 0) {
    bring(some_);
    fill_in(some_, some_rows_, items);
    made = common_->step_short(items);
  }
  for (size_t i = 0; i < some_.size(); ++i) {
    for (size_t k = 0; k < frames_.size(); ++k)
      frames_[k] =
          items == 0
              ? nullptr
              : made[k].data() + int64_t(i) * model_->frames()[k].raw(items) * manifest().outputs[k].width;
    deliver(some_[i], items, frames_);
  }
}

// Copies states to the common lane, the first to its first row; rows left over run on zeros.
void Pool::bring(const std::vector<size_t>& slots) {
  some_rows_.clear();
  for (size_t i = 0; i < slots.size(); ++i) some_rows_.push_back(int64_t(i));
  for (size_t k = 0; k < manifest().states.size(); ++k) {
    for (size_t i = 0; i < slots.size(); ++i) {
      Lane& lane = lane_of(slots[i]);
      std::memcpy(state(*common_, k, int64_t(i)), state(lane, k, row_of(slots[i])),
                  size_t(lane.state_bytes(k)));
    }
    const int64_t left = rows_ - int64_t(slots.size());
    std::memset(state(*common_, k, int64_t(slots.size())), 0, size_t(left * common_->state_bytes(k)));
  }
}

// The next items of slots to their rows of the input; zeros to rows that nobody has.
void Pool::fill_in(const std::vector<size_t>& slots, const std::vector<int64_t>& rows, int64_t items) {
  char* const x = common_->x();
  if (int64_t(slots.size()) < rows_) std::memset(x, 0, size_t(rows_ * block_ * item_));
  const Lock waiting(waiting_);
  for (size_t i = 0; i < slots.size(); ++i)
    peek(slots_[slots[i]], slots[i], x + rows[i] * block_ * item_, items);
}

// The frames that a stream returns of these: no warm-up, and none that stem from padding alone.
void Pool::deliver(size_t index, int64_t items, const std::vector<const float*>& frames) {
  const Lock waiting(waiting_);
  Slot& slot = slots_[index];
  const size_t outputs = frames.size();
  streamssm_frames* const mine = result_frames_.data() + index * outputs;
  for (size_t k = 0; k < outputs; ++k) {
    const FrameRule& rule = model_->frames()[k];
    const int64_t width = manifest().outputs[k].width, most = common_->frames(k);
    const int64_t skipped = std::min(-rule.cursor(slot.done), rule.raw(items));
    int64_t count = rule.raw(items) - skipped;
    if (slot.ending)
      count = std::clamp<int64_t>(rule.total(slot.position) - rule.returned(slot.done), 0, count);
    float* const to = result_memory_[k].data() + int64_t(index) * most * width;
    if (count > 0) std::memcpy(to, frames[k] + skipped * width, size_t(count * width) * 4);
    mine[k] = {to, size_t(most), size_t(count)};
  }
  const bool ended = items < block_;
  drop(slot, items);
  if (ended) slot.open = false;
  results_.push_back({index, ended, mine});
}

}  // namespace streamssm::embed
