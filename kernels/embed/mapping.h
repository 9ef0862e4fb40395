// A file in memory: mapped, so that it costs what is looked at.
#pragma once

#include <cstdint>
#include <string>

#include "error.h"

namespace streamssm::embed {

// What changes when a file is written, replaced, or renamed.
struct Stamp {
  uint64_t device = 0, inode = 0, size = 0;
  int64_t written = 0, changed = 0;
  bool operator==(const Stamp& other) const {
    return device == other.device && inode == other.inode && size == other.size && written == other.written &&
           changed == other.changed;
  }
};

class Mapping {
 public:
  // The file of this name; where not `links`, a name that is a link is refused. Throws Error.
  explicit Mapping(const std::string& path, bool links = true);
  // Memory of somebody else's, which outlives this.
  explicit Mapping(Bytes memory) : data_(memory) {}
  ~Mapping();
  Mapping(Mapping&& other) noexcept;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  Bytes data() const { return data_; }
  const std::string& path() const { return path_; }

  // Let go of the memory to which the file has been mapped so far; it is read anew if need be.
  void release() const;
  // Refuse if the name has come to mean another file, or the file was written to. Throws Error.
  void check_unchanged() const;

 private:
  Bytes data_;
  std::string path_;
  Stamp stamp_;
  bool mapped_ = false;
};

}  // namespace streamssm::embed
