// An opened model: immutable, shared by streams and threads.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "assembler.h"
#include "model_file.h"
#include "runtime.h"

namespace streamssm::embed {

// Counts results of one output: `up / down` frames for each item, the first `warmup` of them dropped, which
// belong to items before the first one.
struct FrameRule {
  int64_t up, down, warmup;
  int64_t raw(int64_t items) const { return int64_t(__int128(items) * up / down); }
  int64_t returned(int64_t items) const { return raw(items) > warmup ? raw(items) - warmup : 0; }
  int64_t total(int64_t items) const { return int64_t((__int128(items) * up + down - 1) / down); }
  // Minus the number of warm-up frames still to be dropped after `items` items.
  int64_t cursor(int64_t items) const { return raw(items) < warmup ? raw(items) - warmup : 0; }
};

class Model {
 public:
  Model(ModelFile file, const char* runtime, streamssm_kernels kernels);

  const Manifest& manifest() const { return manifest_; }
  const Session& session() const { return *session_; }
  const streamssm_info& info() const { return info_; }
  const std::vector<FrameRule>& frames() const { return frames_; }
  // Whether a step may overwrite this state with what it computes from it.
  bool in_place(const StateSpec& state) const { return in_place_.count({state.name, state.next}) > 0; }
  // `block` itself, or the model's for 0. Throws Error.
  int64_t block(int64_t block) const;

 private:
  // Parameters that the operators may read for as long as this lives.
  struct Loan {
    explicit Loan(Floats floats);
    ~Loan();
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    const Floats floats;
    const int64_t number;
  };

  void start(const ModelFile& file, std::shared_ptr<Runtime> runtime, streamssm_kernels kernels);
  void start_native(const ModelFile& file, const std::shared_ptr<Runtime>& runtime, bool fused,
                    const char* set);
  void describe();

  Manifest manifest_;
  std::vector<std::unique_ptr<Loan>> loans_;  // outlive the session
  std::unique_ptr<Session> session_;
  std::set<std::pair<std::string, std::string>> in_place_;
  std::vector<FrameRule> frames_;
  std::string kernels_;
  std::vector<std::vector<const char*>> labels_;
  std::vector<streamssm_output> outputs_;
  streamssm_info info_{};
};

}  // namespace streamssm::embed
