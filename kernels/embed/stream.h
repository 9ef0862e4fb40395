// One live sequence: re-chunks what is pushed into blocks and remembers the rest. streamssm/stream.py, in
// C++.
//
// The lane always sees whole blocks, cut at the same items however the input was split; only flush() runs a
// shorter last call. So at one block size every split of the input gives the same bytes.
#pragma once

#include <memory>
#include <vector>

#include "input_rule.h"
#include "lane.h"
#include "snapshot.h"

namespace streamssm::embed {

class Stream {
 public:
  Stream(std::shared_ptr<const Model> model, int64_t block, bool allow_nonfinite);

  // A call that throws leaves the stream as it was. `outputs` has one entry for each output of the model.
  void push(const void* items, size_t count, streamssm_frames* outputs);
  void flush(streamssm_frames* outputs);
  void reset();
  std::unique_ptr<Stream> fork() const;
  void restore(const Snapshot& snapshot);
  SavedView view() const;

  const std::shared_ptr<const Model>& model() const { return model_; }
  const Manifest& manifest() const { return model_->manifest(); }
  int64_t position() const { return position_; }
  int64_t pending() const { return fill_ + backlog_items(); }
  bool ended() const { return ended_; }
  int64_t frames_of_push(size_t count, size_t output) const;
  int64_t frames_of_flush(size_t output) const;

 private:
  class Source;

  int64_t backlog_items() const { return item_ > 0 ? int64_t(backlog_.size()) / item_ : 0; }
  void require_room(const std::vector<int64_t>& needed, streamssm_frames* outputs) const;
  void run(Source& source, streamssm_frames* outputs);
  void collect(streamssm_frames* outputs, size_t output, const float* frames, int64_t count);
  void remember();
  void go_back();

  const std::shared_ptr<const Model> model_;
  const int64_t block_, item_;  // items, bytes
  InputRule rule_;
  Lane lane_;
  int64_t position_ = 0;
  int64_t fill_ = 0;           // items waiting in the lane's input buffer, less than a block
  std::vector<char> backlog_;  // items of a stream restored at a smaller block
  bool ended_ = false;
  std::vector<int64_t> needed_,
      cursors_;               // frames of each output in this call, and where the next one belongs
  std::vector<char> before_;  // states and waiting items, to go back to
};

}  // namespace streamssm::embed
