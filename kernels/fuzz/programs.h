// Valid programs of the fused node: see kernels/cpu/program.h.
#pragma once

#include <cstdint>
#include <vector>

#include "random.h"

namespace streamssm::fuzz {

struct DrawnProgram {
  std::vector<int64_t> inputs, outputs, states;  // sizes, as the program lists them
  std::vector<int64_t> words, trailing;
  std::vector<float> weights;
};

// A chain of instructions from one input to one output.
DrawnProgram draw_program(Random& random);

}  // namespace streamssm::fuzz
