#include "lent.h"

#include <map>
#include <mutex>
#include <string>

#include "ops.h"

namespace streamssm::ort {
namespace {

struct Shelf {
  std::mutex mutex;
  std::map<int64_t, Lent> arrays;
  int64_t last = 0;
};

Shelf& shelf() {
  static Shelf all;
  return all;
}

}  // namespace

Lent lent(int64_t number) {
  const std::lock_guard<std::mutex> lock(shelf().mutex);
  const auto found = shelf().arrays.find(number);
  if (found == shelf().arrays.end())
    throw Failure("no weights were lent under the number " + std::to_string(number));
  return found->second;
}

}  // namespace streamssm::ort

// The number that an array is lent under; 0 if it cannot be. It must stay where it is until it is taken back.
STREAMSSM_EXPORT int64_t streamssm_ort_lend(const float* data, int64_t floats) noexcept try {
  using namespace streamssm::ort;
  if (data == nullptr || floats < 0) return 0;
  const std::lock_guard<std::mutex> lock(shelf().mutex);
  shelf().arrays[++shelf().last] = {data, floats};
  return shelf().last;
} catch (...) {
  return 0;
}

STREAMSSM_EXPORT void streamssm_ort_take_back(int64_t number) noexcept try {
  using namespace streamssm::ort;
  const std::lock_guard<std::mutex> lock(shelf().mutex);
  shelf().arrays.erase(number);
} catch (...) {
}
