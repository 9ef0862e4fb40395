// A C interface to programs, for tests only (ctypes); no part of the library.
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "denormals.h"
#include "kernels.h"
#include "program.h"
#include "program_decode.h"

using namespace streamssm;

extern "C" {

// Runs a program once, its scratch full of NaN. False where it is refused: the reason is in `message`.
bool test_program(const Kernels* k, const int64_t* words, int64_t count, const float* weights,
                  int64_t weight_floats, int64_t B, int64_t T, const float* const* inputs,
                  const float* const* states, float* const* outputs, float* const* next, char* message) {
  try {
    const DecodedProgram program(words, count, weight_floats);
    const int64_t floats = scratch_floats(program.view(), B, T);
    float* scratch = static_cast<float*>(std::aligned_alloc(64, size_t(floats * 4 + 63) / 64 * 64));
    for (int64_t i = 0; i < floats; ++i) scratch[i] = __builtin_nanf("");
    {
      const FlushDenormals flush;
      k->run_program(program.view(), {B, T, inputs, states, outputs, next, weights, scratch});
    }
    std::free(scratch);
    return true;
  } catch (const std::invalid_argument& error) {
    std::strncpy(message, error.what(), 255);
    return false;
  }
}

}  // extern "C"
