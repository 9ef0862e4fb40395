// SHA-256 (FIPS 180-4).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "error.h"

namespace streamssm::embed {

class Sha256 {
 public:
  void update(Bytes bytes);
  std::string hex();  // the digest; nothing may follow

 private:
  void block(const uint8_t* bytes);

  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint8_t rest_[64];
  size_t fill_ = 0;
  uint64_t total_ = 0;
};

// The digest of bytes that record their own at `start`, 64 digits that count as zeros.
std::string digest_with_own(Bytes bytes, size_t start);

constexpr size_t kDigits = 64;

}  // namespace streamssm::embed
