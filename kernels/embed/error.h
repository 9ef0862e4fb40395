// What goes wrong inside: a status of the C interface and a text that says the value seen and the remedy.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <string_view>

#include "include/streamssm.h"

namespace streamssm::embed {

using Bytes = std::string_view;  // of a file, a message, a snapshot; not always text

class Error : public std::exception {
 public:
  Error(streamssm_status status, std::string text) : status(status), text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }
  const streamssm_status status;

 private:
  std::string text_;
};

// Out of line: there are hundreds of messages.
void append(std::string& text, std::string_view part);
void append(std::string& text, const char* part);
void append(std::string& text, long long part);
void append(std::string& text, unsigned long long part);
inline void append(std::string& text, const std::string& part) { append(text, std::string_view(part)); }
inline void append(std::string& text, int part) { append(text, static_cast<long long>(part)); }
inline void append(std::string& text, unsigned part) { append(text, static_cast<unsigned long long>(part)); }
inline void append(std::string& text, long part) { append(text, static_cast<long long>(part)); }
inline void append(std::string& text, unsigned long part) {
  append(text, static_cast<unsigned long long>(part));
}

// Texts and integers as one text.
template <typename... Parts>
std::string say(const Parts&... parts) {
  std::string text;
  (append(text, parts), ...);
  return text;
}

[[noreturn]] void raise(streamssm_status status, std::string text);

template <typename... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void fail(streamssm_status status, const Parts&... parts) {
  raise(status, say(parts...));
}

// A product of sizes that a file gives. `what` names it in the failure.
int64_t times(int64_t a, int64_t b, const char* what);

}  // namespace streamssm::embed
