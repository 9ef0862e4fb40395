// Device memory of one execution context, and what is kept in it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../cuda/api.h"

// kept [3, W * half]: for which inv_freq an entry was made, then cosine and sine of distance * inv_freq, as
// streamssm_cuda_rotation makes them. Entries whose inv_freq is another one, or NaN, are made again; all
// others cost one comparison. In a CUDA graph this stays true whatever inv_freq becomes.
const char* streamssm_tensorrt_rotation(const float* inv_freq, int64_t half, int64_t W, float* kept,
                                        cudaStream_t stream);
// Every byte becomes 255, which is NaN, before anything that is launched later.
const char* streamssm_tensorrt_forget(void* memory, int64_t bytes);

namespace streamssm::tensorrt {

// Passes on what a function of the CUDA library answers.
inline void check_cuda(const char* reason) {
  if (reason != nullptr) throw std::runtime_error(reason);
}

// [rows, width] floats. A copy begins empty: memory belongs to one context.
class Table {
 public:
  Table() = default;
  Table(const Table&) {}
  Table& operator=(const Table&) = delete;
  ~Table() { drop(); }

  // Makes it that large; fill(memory, bytes) gives the new memory a meaning. If that throws, there is no table.
  template <class Fill>
  void hold(int64_t rows, int64_t width, const Fill& fill) {
    if (rows == rows_ && width == width_) return;
    drop();
    const int64_t bytes = rows * width * int64_t(sizeof(float));
    check_cuda(streamssm_cuda_take(bytes, &memory_));
    fill(static_cast<float*>(memory_), bytes);
    rows_ = rows, width_ = width;
  }

  // What hold() made.
  float* get(int64_t rows, int64_t width) const {
    if (rows != rows_ || width != width_)
      throw std::runtime_error("a table of " + std::to_string(rows) + " by " + std::to_string(width) +
                               " numbers is missing: onShapeChange comes first");
    return static_cast<float*>(memory_);
  }

 private:
  void drop() {
    if (memory_ != nullptr) streamssm_cuda_give(memory_);
    memory_ = nullptr, rows_ = width_ = 0;
  }

  void* memory_ = nullptr;
  int64_t rows_ = 0, width_ = 0;
};

}  // namespace streamssm::tensorrt
