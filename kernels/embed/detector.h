// Probabilities to start and end events, with hysteresis: streamssm/events.py, in C++.
#pragma once

#include <memory>

#include "model.h"

namespace streamssm::embed {

class Detector {
 public:
  explicit Detector(std::shared_ptr<const Model> model);

  // Throws Error where `room` is too small; `found` says what is needed.
  void push(const float* frames, size_t count, streamssm_event* events, size_t room, size_t* found);
  void end(streamssm_event* event, size_t* found);

 private:
  // What is remembered: a few integers, so that a call can be tried on a copy.
  struct State {
    int64_t index = 0;  // frames seen
    int64_t run = 0;    // latest frames in a row that speak for a change
    bool active = false;
  };

  size_t advance(State& state, const float* frames, size_t count, streamssm_event* events, size_t room) const;
  streamssm_event event(int64_t index, bool start, bool cut) const;

  const std::shared_ptr<const Model> model_;
  const EventRule rule_;
  const int64_t width_;
  Fraction rate_;  // frames per second; 0: no clock
  int64_t min_on_, min_off_;
  float onset_, offset_;
  State state_;
};

}  // namespace streamssm::embed
