// Decodes and checks programs: see program.h.
#pragma once

#include <cstdint>
#include <vector>

#include "program.h"

namespace streamssm {

// A program that owns its lists. Not copied or moved once view() was taken.
class DecodedProgram {
 public:
  // `words`: counts of buffers, inputs, outputs and states; their lists; then for each instruction
  // its code, the number of its arguments, and these. Everything an instruction touches must exist
  // and be large enough, `weight_floats` included; throws std::invalid_argument otherwise.
  DecodedProgram(const int64_t* words, int64_t count, int64_t weight_floats);

  const Program& view() const { return view_; }

 private:
  std::vector<int64_t> buffers_, inputs_, outputs_, states_;
  std::vector<Instruction> code_;
  Program view_{};
};

}  // namespace streamssm
