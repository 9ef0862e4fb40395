// Builds a program for streamssm.native::Fused: streamssm/native/program.py and pack.py, in C++. The native
// side of a program is kernels/cpu/program.h.
//
// An Assembler takes the operations of a stretch of a graph one after the other, gives their values places in
// buffers, and packs the parameters. A value is a row of floats for every item; a view of a value (a part of
// its columns) costs nothing.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../cpu/program.h"
#include "graph.h"

namespace streamssm::embed {

constexpr int64_t kPanel = 16;  // columns of a panel of packed weights; floats to which places are aligned

inline int64_t rounded(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
inline int64_t panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// Floats at a multiple of 64 bytes, zeros at first.
class Floats {
 public:
  explicit Floats(int64_t count);
  float* data() const { return memory_.get(); }
  int64_t size() const { return count_; }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  int64_t count_;
  std::unique_ptr<float, Free> memory_;
};

// Weights in the order in which the kernels read them; `to` holds zeros.
void pack_matrix(const Tensor& matrix, float* to);                                         // [K, N]
void pack_codes(const Tensor& codes, int64_t N, int64_t blocks, int64_t bits, float* to);  // MatMulNBits
void pack_scales(const Tensor& scales, int64_t N, int64_t blocks, float* to);              // [N, blocks]
void pack_row(const Tensor& values, float* to);

class Assembler {
 public:
  using Pack = std::function<void(float* to)>;

  // `uses` says how often each value is still read; a buffer is free for others once nothing reads it.
  explicit Assembler(std::map<std::string, int64_t> uses) : uses_(std::move(uses)) {}

  // Values.
  void define(const std::string& name, int64_t width);
  void alias(const std::string& name, const std::string& source, int64_t offset = 0);
  void release(const std::vector<std::string>& names);

  // Parameters: their place. Those with one key are stored once.
  int64_t weights(const std::string& key, int64_t floats, Pack pack);
  int64_t vector(const std::string& key, int64_t width, Pack pack);  // with one vector of slack after it

  enum Ports { kInputs, kOutputs, kStates };
  int64_t port(Ports kind, int64_t size);  // the number of a further one

  // Instructions. An argument is an integer, or a value: its buffer and offset.
  struct Argument {
    Argument(int64_t value) : value(value) {}                     // NOLINT(google-explicit-constructor)
    Argument(const std::string& name) : value(0), name(&name) {}  // NOLINT(google-explicit-constructor)
    int64_t value;
    const std::string* name = nullptr;
  };
  void emit(Code code, const std::vector<Argument>& arguments);

  int64_t buffers() const { return int64_t(widths_.size()); }
  int64_t most_ports() const;
  std::vector<int64_t> words() const;  // the program as the native side decodes it
  // All parameters. `release` is called when what they were read from is no longer needed in memory.
  Floats packed(const std::function<void()>& release) const;

 private:
  struct View {
    int64_t buffer, offset;
  };
  struct Packer {
    int64_t place, floats;
    Pack pack;
  };

  std::map<std::string, int64_t> uses_;
  std::map<std::string, View> views_;
  std::map<int64_t, int64_t> readers_;  // of each buffer in use
  std::vector<int64_t> free_, widths_, ports_[3], code_;
  std::map<std::string, int64_t> places_;
  std::vector<Packer> packers_;
  int64_t floats_ = 0;
};

}  // namespace streamssm::embed
