// The wire format of protobuf: fields read in place, and written.
//
// An ONNX file is one protobuf message. It is never decoded as a whole: a reader steps over what it does not
// need, so a file of any size costs only what is looked at. Source: protobuf.dev, "Encoding".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "error.h"

namespace streamssm::embed {

// Not protobuf, or cut short. `what` goes on after the name of a file.
class Malformed : public std::exception {
 public:
  explicit Malformed(std::string text) : text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

// The fields of a message, one after the other:  for (Fields at(message); at.next();) ...
class Fields {
 public:
  explicit Fields(Bytes message) : message_(message) {}

  bool next() {  // throws Malformed
    if (place_ == message_.size()) return false;
    const size_t start = place_;
    const uint64_t key = varint();
    number_ = key >> 3, wire_ = int(key & 7);
    uint64_t length = 0;
    size_t first = place_;
    if (wire_ == 0) {
      integer_ = int64_t(varint());
      length = place_ - first;
    } else if (wire_ == 2) {
      length = varint();
      first = place_;
    } else if (wire_ == 1 || wire_ == 5) {
      length = wire_ == 1 ? 8 : 4;
    }
    if (number_ == 0 || wire_ == 3 || wire_ == 4 || wire_ > 5)
      throw Malformed(say("byte ", start, " of a message is no field of it"));
    if (length > message_.size() - first)
      throw Malformed(say("a field needs ", length, " bytes, ", message_.size() - first, " are left"));
    value_ = message_.substr(first, size_t(length));
    place_ = first + size_t(length);
    return true;
  }

  bool is(uint64_t number) const { return number_ == number; }
  bool is(uint64_t number, int wire) const { return number_ == number && wire_ == wire; }
  uint64_t number() const { return number_; }
  int wire() const { return wire_; }
  Bytes value() const { return value_; }        // what follows the key and the length
  int64_t integer() const { return integer_; }  // of wire type 0

  // A repeated number: one, or many packed together.
  void integers(std::vector<int64_t>& values) const {
    if (wire_ == 0) return values.push_back(integer_);
    for (Fields at(value_); at.place_ < value_.size();) values.push_back(int64_t(at.varint()));
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; place_ < message_.size() && shift < 70; shift += 7) {
      const uint64_t byte = uint8_t(message_[place_++]);
      if (shift < 64) value |= (byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    throw Malformed(say("the number before byte ", place_, " of a message does not end"));
  }

  Bytes message_, value_;
  size_t place_ = 0;
  uint64_t number_ = 0;
  int wire_ = 0;
  int64_t integer_ = 0;
};

// The last message or string in field `number`; empty if there is none.
inline Bytes last(Bytes message, uint64_t number) {
  Bytes found;
  for (Fields at(message); at.next();)
    if (at.is(number, 2)) found = at.value();
  return found;
}

inline void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += char((value & 0x7F) | 0x80);
  out += char(value);
}

inline void put_number(std::string& out, uint64_t field, int64_t value) {
  put_varint(out, field << 3);
  put_varint(out, uint64_t(value));
}

inline void put_message(std::string& out, uint64_t field, Bytes content) {
  put_varint(out, field << 3 | 2);
  put_varint(out, content.size());
  out += content;
}

// A field as it was read, written again.
inline void put_field(std::string& out, const Fields& field) {
  if (field.wire() == 2) return put_message(out, field.number(), field.value());
  put_varint(out, field.number() << 3 | uint64_t(field.wire()));
  out += field.value();
}

}  // namespace streamssm::embed
