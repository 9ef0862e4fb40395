// Decides whether items may enter a stream: whole or not at all.
#pragma once

#include <cstdint>
#include <cstring>

#include "manifest.h"

namespace streamssm::embed {

class InputRule {
 public:
  InputRule(const InputSpec& spec, bool allow_nonfinite) : spec_(spec), allow_nonfinite_(allow_nonfinite) {}

  bool allow_nonfinite() const { return allow_nonfinite_; }
  void allow_nonfinite(bool allow) { allow_nonfinite_ = allow; }

  // Throws Error with the first number that may not enter.
  void check(const void* items, size_t count) const {
    const size_t numbers = count * size_t(spec_.width);
    const char* data = static_cast<const char*>(items);
    const bool bad = spec_.dtype == DType::int64 ? spec_.vocabulary > 0 && beyond(data, numbers)
                                                 : !allow_nonfinite_ && nonfinite(data, numbers);
    if (bad) refuse(data, numbers);
  }

 private:
  static uint32_t bits(const char* data, size_t i) {
    uint32_t value;
    std::memcpy(&value, data + 4 * i, sizeof value);
    return value;
  }
  static bool is_nonfinite(uint32_t bits) { return (bits & 0x7F800000u) == 0x7F800000u; }

  static bool nonfinite(const char* data, size_t numbers) {
    bool bad = false;
    for (size_t i = 0; i < numbers; ++i) bad |= is_nonfinite(bits(data, i));
    return bad;
  }
  bool beyond(const char* data, size_t numbers) const {
    bool bad = false;
    for (size_t i = 0; i < numbers; ++i) {
      uint64_t token;  // seen as unsigned, a negative number is a large one
      std::memcpy(&token, data + 8 * i, sizeof token);
      bad |= token >= uint64_t(spec_.vocabulary);
    }
    return bad;
  }

  [[noreturn, gnu::cold, gnu::noinline]] void refuse(const char* data, size_t numbers) const {
    size_t i = 0;
    if (spec_.dtype == DType::int64) {
      while (i < numbers && !beyond(data + 8 * i, 1)) ++i;
      int64_t token;
      std::memcpy(&token, data + 8 * i, sizeof token);
      fail(STREAMSSM_ERROR_INPUT, "the chunk holds ", token, " at index ", i, "; tokens go from 0 to ",
           spec_.vocabulary - 1);
    }
    while (i < numbers && !is_nonfinite(bits(data, i))) ++i;
    const uint32_t found = bits(data, i);
    fail(STREAMSSM_ERROR_INPUT, "the chunk holds ",
         found & 0x7FFFFF ? "NaN"
         : found >> 31    ? "-infinity"
                          : "infinity",
         " at index ", i, "; replace it, or set allow_nonfinite in the options of the stream");
  }

  const InputSpec& spec_;
  bool allow_nonfinite_;
};

}  // namespace streamssm::embed
