#include "json.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace streamssm::embed {
namespace {

constexpr int kMostNested = 64;
constexpr size_t kMostKeys = 1 << 14;  // of one object; they are compared with each other

// The code point that begins at `at`, which moves past it; -1 if there is none.
int32_t code_point(Bytes bytes, size_t& at) {
  const uint8_t first = uint8_t(bytes[at]);
  const int length = first < 0x80                    ? 1
                     : first >= 0xC2 && first < 0xE0 ? 2
                     : (first & 0xF0) == 0xE0        ? 3
                     : first >= 0xF0 && first < 0xF5 ? 4
                                                     : 0;
  if (length == 0 || bytes.size() - at < size_t(length)) return -1;
  int32_t point = length == 1 ? first : first & (0xFF >> (length + 1));
  for (int i = 1; i < length; ++i) {
    const uint8_t byte = uint8_t(bytes[at + size_t(i)]);
    if ((byte & 0xC0) != 0x80) return -1;
    point = point << 6 | (byte & 0x3F);
  }
  const int32_t least = length == 3 ? 0x800 : length == 4 ? 0x10000 : 0;
  if (point < least || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) return -1;
  at += size_t(length);
  return point;
}

void put_utf8(std::string& out, uint32_t point) {
  if (point < 0x80) {
    out += char(point);
    return;
  }
  const int more = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
  static constexpr uint32_t lead[] = {0, 0xC0, 0xE0, 0xF0};
  out += char(lead[more] | point >> (6 * more));
  for (int i = more - 1; i >= 0; --i) out += char(0x80 | (point >> (6 * i) & 0x3F));
}

class Parser {
 public:
  Parser(Bytes text, streamssm_status status, const char* what) : text_(text), status_(status), what_(what) {}

  Json whole() {
    Json json = value(0);
    space();
    if (at_ != text_.size()) refuse("something follows its end");
    return json;
  }

 private:
  [[noreturn]] void refuse(const char* why) const {
    fail(status_, what_, " is no JSON that can be read: ", why, " at byte ", at_);
  }

  void space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r'))
      ++at_;
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(char wanted) {
    space();
    if (at_ == text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }
  void expect(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) refuse("no value");
    at_ += word.size();
  }

  Json value(int depth) {
    if (depth > kMostNested) refuse("too deep a nesting");
    space();
    Json json;
    switch (peek()) {
      case '{': return object(depth);
      case '[': return list(depth);
      case '"':
        json.kind = Json::Kind::text;
        json.text = string();
        return json;
      case 't':
      case 'f':
        json.kind = Json::Kind::boolean;
        json.boolean = peek() == 't';
        expect(json.boolean ? "true" : "false");
        return json;
      case 'n': expect("null"); return json;
      default: return number();
    }
  }

  Json object(int depth) {
    Json json;
    json.kind = Json::Kind::object;
    ++at_;
    if (take('}')) return json;
    do {
      space();
      if (peek() != '"') refuse("no key");
      std::string key = string();
      if (json.find(key) != nullptr) refuse("a key that comes twice");
      if (!take(':')) refuse("no colon");
      if (json.object.size() == kMostKeys) refuse("too many keys");
      json.object.emplace_back(std::move(key), value(depth + 1));
    } while (take(','));
    if (!take('}')) refuse("an object that does not end");
    return json;
  }

  Json list(int depth) {
    Json json;
    json.kind = Json::Kind::list;
    ++at_;
    if (take(']')) return json;
    do json.list.push_back(value(depth + 1));
    while (take(','));
    if (!take(']')) refuse("a list that does not end");
    return json;
  }

  size_t digits() {
    const size_t start = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ - start;
  }

  Json number() {
    const size_t start = at_;
    if (peek() == '-') ++at_;
    const bool zero = peek() == '0';
    const size_t whole = digits();
    bool real = false;
    if (whole == 0 || (zero && whole > 1)) refuse("no value");
    if (peek() == '.') {
      ++at_, real = true;
      if (digits() == 0) refuse("no digit after a point");
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_, real = true;
      if (peek() == '+' || peek() == '-') ++at_;
      if (digits() == 0) refuse("no exponent");
    }
    return converted(text_.substr(start, at_ - start), real);
  }

  Json converted(Bytes digits, bool real) {
    Json json;
    const char* const end = digits.data() + digits.size();
    json.kind = real ? Json::Kind::real : Json::Kind::integer;
    if (std::from_chars(digits.data(), end, json.real).ec != std::errc() || !std::isfinite(json.real))
      refuse("a number that is too large");
    if (!real && std::from_chars(digits.data(), end, json.integer).ec != std::errc())
      refuse("an integer of more than 64 bits");
    return json;
  }

  std::string string() {
    std::string out;
    for (++at_; at_ < text_.size();) {
      const char c = text_[at_];
      if (c == '"') {
        ++at_;
        return out;
      }
      if (c == '\\') {
        escape(out);
        continue;
      }
      if (uint8_t(c) < 0x20) refuse("a control character in a text");
      const size_t start = at_;
      if (code_point(text_, at_) < 0) refuse("a text that is no UTF-8");
      out += text_.substr(start, at_ - start);
    }
    refuse("a text that does not end");
  }

  void escape(std::string& out) {
    static constexpr std::string_view from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
    at_ += 2;
    const char kind = at_ <= text_.size() ? text_[at_ - 1] : '\0';
    if (kind == 'u') return unicode(out);
    const size_t place = kind == '\0' ? from.npos : from.find(kind);
    if (place == from.npos) refuse("an escape that is none");
    out += to[place];
  }

  uint32_t hex() {
    uint32_t value = 0;
    const Bytes digits = text_.substr(std::min(at_, text_.size()), 4);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (digits.size() < 4 || error != std::errc() || end != digits.data() + 4)
      refuse("an escape that is none");
    at_ += 4;
    return value;
  }

  void unicode(std::string& out) {
    uint32_t point = hex();
    if (point >= 0xD800 && point < 0xDC00) {
      if (text_.substr(at_, 2) != "\\u") refuse("half of a character");
      at_ += 2;
      const uint32_t low = hex();
      if (low < 0xDC00 || low >= 0xE000) refuse("half of a character");
      point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
    } else if (point >= 0xDC00 && point < 0xE000) {
      refuse("half of a character");
    }
    put_utf8(out, point);
  }

  const Bytes text_;
  const streamssm_status status_;
  const char* const what_;
  size_t at_ = 0;
};

void put_escape(std::string& out, uint32_t unit) {
  static constexpr char digits[] = "0123456789abcdef";
  out += "\\u";
  for (int shift = 12; shift >= 0; shift -= 4) out += digits[unit >> shift & 15];
}

}  // namespace

Json Json::parse(Bytes text, streamssm_status status, const char* what) {
  return Parser(text, status, what).whole();
}

const Json* Json::find(std::string_view key) const {
  for (const auto& [name, value] : object)
    if (name == key) return &value;
  return nullptr;
}

bool is_utf8(Bytes bytes) {
  for (size_t at = 0; at < bytes.size();)
    if (code_point(bytes, at) < 0) return false;
  return true;
}

void put_json(std::string& out, std::string_view text) {
  static constexpr std::string_view from = "\"\\\b\f\n\r\t", to = "\"\\bfnrt";
  out += '"';
  for (size_t at = 0; at < text.size();) {
    const char c = text[at];
    const size_t place = from.find(c);
    if (place != from.npos) {
      out += '\\', out += to[place], ++at;
    } else if (c >= ' ' && c <= '~') {
      out += c, ++at;
    } else {
      const int32_t point = code_point(text, at);
      if (point < 0) fail(STREAMSSM_ERROR_INTERNAL, "a text that is no UTF-8");
      if (point >= 0x10000) put_escape(out, 0xD7C0u + uint32_t(point >> 10));
      put_escape(out, point >= 0x10000 ? 0xDC00u | (uint32_t(point) & 0x3FF) : uint32_t(point));
    }
  }
  out += '"';
}

}  // namespace streamssm::embed
