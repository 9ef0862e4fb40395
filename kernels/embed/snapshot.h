// A stream as bytes: a safetensors file, to the byte the one that streamssm/snapshot.py writes.
#pragma once

#include <string>
#include <vector>

#include "manifest.h"

namespace streamssm::embed {

// All that a stream remembers, where it lies: the states in the manifest's order, and the items that wait, in
// parts.
struct SavedView {
  std::vector<const char*> states;
  std::vector<Bytes> pending;
  int64_t position = 0, block = 0;
  bool ended = false, allow_nonfinite = false;
};

class SnapshotWriter {
 public:
  SnapshotWriter(const Manifest& manifest, const SavedView& saved);
  size_t bytes() const { return 8 + head_.size() + body_; }
  void write(char* to) const;

 private:
  struct Part {
    std::string name;
    DType type;
    Shape shape;
    std::vector<Bytes> data;
  };

  std::string head_;
  std::vector<Part> parts_;
  size_t body_ = 0, digest_ = 0;
};

// A snapshot that was read and checked; it looks into the bytes that it was read from.
struct Snapshot {
  std::vector<Bytes> states;
  Bytes pending;
  int64_t position = 0, block = 0, items = 0;  // items that wait
  bool ended = false, allow_nonfinite = false;
};

// Throws Error: STREAMSSM_ERROR_FORMAT for a newer one, else STREAMSSM_ERROR_SNAPSHOT.
Snapshot read_snapshot(const Manifest& manifest, Bytes data);

}  // namespace streamssm::embed
