// The elementwise functions of simd.h over an array, for tests only. Compiled once per instruction
// set like isa.cpp; the name of the function ends in the instruction set's.
#include "denormals.h"
#include "simd.h"
#include "simd_log.h"

using namespace streamssm::STREAMSSM_ISA;

#define STREAMSSM_JOIN2(a, b) a##b
#define STREAMSSM_JOIN(a, b) STREAMSSM_JOIN2(a, b)

template <Vec (*kFunction)(Vec)>
static void map(const float* from, float* to, int64_t count) {
  const streamssm::FlushDenormals flush;
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t part = count - i < kLanes ? count - i : kLanes;
    store_part(to + i, kFunction(load_part(from + i, part)), part);
  }
}

// function: 0 exp, 1 exp2, 2 sigmoid, 3 silu, 4 softplus, 5 log.
extern "C" void STREAMSSM_JOIN(test_map_, STREAMSSM_ISA)(int32_t function, const float* from, float* to,
                                                         int64_t count) {
  switch (function) {
    case 0:
      return map<exp>(from, to, count);
    case 1:
      return map<exp2>(from, to, count);
    case 2:
      return map<sigmoid>(from, to, count);
    case 3:
      return map<silu>(from, to, count);
    case 4:
      return map<softplus>(from, to, count);
    default:
      return map<log>(from, to, count);
  }
}
