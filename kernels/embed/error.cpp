#include "error.h"

namespace streamssm::embed {

void append(std::string& text, std::string_view part) { text += part; }
void append(std::string& text, const char* part) { text += part; }
void append(std::string& text, long long part) { text += std::to_string(part); }
void append(std::string& text, unsigned long long part) { text += std::to_string(part); }

void raise(streamssm_status status, std::string text) { throw Error(status, std::move(text)); }

int64_t times(int64_t a, int64_t b, const char* what) {
  int64_t product;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product) || product > (int64_t(1) << 56))
    fail(STREAMSSM_ERROR_FILE, what, " is too large: ", a, " x ", b);
  return product;
}

}  // namespace streamssm::embed
