// Many streams of one model in fixed slots, stepped as one batch. streamssm/pool.py and backends/slots.py, in
// C++.
//
// Slots have rows of lanes of 32 rows at most. Where no slot of a lane has to wait, the lane runs as it is;
// slots that are ready beside others that wait are copied to a lane kept for this, and their states back when
// the run has succeeded. All lanes being of one size, a stream gets the same bytes in either way, whoever
// else is there.
//
// Two locks: `states_` for whatever touches states, `waiting_` for the items that wait. A push takes the
// second only, so it does not wait for a step.
#pragma once

#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "input_rule.h"
#include "lane.h"
#include "snapshot.h"

namespace streamssm::embed {

class Pool {
 public:
  Pool(std::shared_ptr<const Model> model, size_t slots, int64_t block, int64_t limit, bool allow_nonfinite);

  size_t join(const Snapshot* snapshot);
  void leave(size_t slot);
  void reset(size_t slot);
  void push(size_t slot, const void* items, size_t count);
  void flush(size_t slot);
  size_t ready();
  int64_t waiting(size_t slot);
  // Results hold until the next call but push, waiting and ready. Where runs fail, the others are made all
  // the same, and the first failure is thrown.
  void step();
  const std::vector<streamssm_result>& results() const { return results_; }
  // Calls use(writer) with the snapshot of a slot.
  template <class Use>
  void save(size_t slot, const Use& use) {
    const std::lock_guard<std::mutex> states(states_);
    const std::lock_guard<std::mutex> waiting(waiting_);
    use(SnapshotWriter(model_->manifest(), view(slot)));
  }
  const Manifest& manifest() const { return model_->manifest(); }

 private:
  // One stream: the items that wait, in a ring.
  struct Slot {
    bool open = false, ending = false;
    int64_t position = 0;  // items accepted
    int64_t done = 0;      // items run, padding included
    int64_t first = 0;     // of those that wait, in the ring
    int64_t items = 0;     // that wait, padding included
  };

  Slot& require(size_t slot);
  bool runs(const Slot& slot) const { return slot.open && (slot.ending || slot.items >= block_); }
  void clear(size_t slot);
  void put(Slot& slot, size_t index, const char* items, int64_t count);
  void peek(const Slot& slot, size_t index, char* to, int64_t count) const;
  void drop(Slot& slot, int64_t count);
  SavedView view(size_t slot);

  Lane& lane_of(size_t slot) { return *lanes_[slot / size_t(rows_)]; }
  int64_t row_of(size_t slot) const { return int64_t(slot) % rows_; }
  char* state(Lane& lane, size_t index, int64_t row) const {
    return lane.state(index) + row * lane.state_bytes(index);
  }
  void bring(const std::vector<size_t>& slots);

  void choose();
  template <class Work>
  void attempt(const Work& work);
  void run_lanes();
  void run_lane(Lane& lane);
  void run_copies();
  void run_copy();
  void run_last();
  void run_short(int64_t items);
  void fill_in(const std::vector<size_t>& slots, const std::vector<int64_t>& rows, int64_t items);
  void deliver(size_t slot, int64_t items, const std::vector<const float*>& frames);

  const std::shared_ptr<const Model> model_;
  const int64_t block_, limit_, item_;
  const int64_t rows_;  // of a lane
  const InputRule rule_;
  const int64_t capacity_;  // items of a ring: what may wait, and the padding at the end
  std::vector<char> rings_;
  std::vector<Slot> slots_;
  std::unique_ptr<Lane> common_;
  std::vector<std::unique_ptr<Lane>> lanes_;

  std::vector<size_t> whole_, scattered_, last_, some_;  // slots of this step
  std::vector<int64_t> some_rows_;
  std::vector<const float*> frames_;
  std::vector<streamssm_result> results_;
  std::vector<streamssm_frames> result_frames_;    // of each slot, one for each output
  std::vector<std::vector<float>> result_memory_;  // of each output, a block of frames for each slot

  std::exception_ptr failure_;  // the first of this step

  std::mutex states_, waiting_;
};

}  // namespace streamssm::embed
