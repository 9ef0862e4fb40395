// Parameters that the host process lends to kernels, so that they exist once.
//
// A tensor handed to a session is copied by ONNX Runtime; packed weights of half a gigabyte should
// not be. The host lends an array, names the number it gets in a node, and takes it back when the
// session is gone. A node can reach nothing but what was lent.
#pragma once

#include <cstdint>

namespace streamssm::ort {

struct Lent {
  const float* data;
  int64_t floats;
};

// What was lent under `number`. Throws Failure if nothing is.
Lent lent(int64_t number);

}  // namespace streamssm::ort
