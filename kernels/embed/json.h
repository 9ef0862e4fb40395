// JSON, read strictly (RFC 8259): no comments, no trailing commas, no key twice, text in UTF-8, and no
// nesting deeper than kMostNested. Enough for manifests and the headers of snapshots.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "error.h"

namespace streamssm::embed {

class Json {
 public:
  enum class Kind { null, boolean, integer, real, text, list, object };

  // Throws Error(status) with the place of what is wrong.
  static Json parse(Bytes text, streamssm_status status, const char* what);

  Kind kind = Kind::null;
  bool boolean = false;
  int64_t integer = 0;  // of an integer
  double real = 0;      // of an integer too
  std::string text;
  std::vector<Json> list;
  std::vector<std::pair<std::string, Json>> object;  // in the order of the file

  const Json* find(std::string_view key) const;
};

// A string with its quotes, as Python's json.dumps writes it: everything beyond ASCII escaped.
void put_json(std::string& out, std::string_view text);

// Whether bytes are UTF-8 (no overlong forms, no surrogates).
bool is_utf8(Bytes bytes);

}  // namespace streamssm::embed
