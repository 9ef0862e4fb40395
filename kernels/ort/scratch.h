// Scratch memory of operators: borrowed for a call and given back, so that calls share none and allocate
// none.
//
// A host that lives in the same library may hand over memory of its own for the runs that it starts in this
// thread (Scratch::hosts): it can then be sure that a run allocates nothing, whatever runs beside it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace streamssm::ort {

class Scratch {
 public:
  struct Deleter {
    void operator()(float* memory) const { std::free(memory); }
  };
  // Floats at a multiple of 64 bytes.
  struct Piece {
    std::unique_ptr<float, Deleter> memory;
    int64_t floats = 0;

    void grow(int64_t wanted) {
      if (wanted <= floats) return;
      const size_t bytes = (size_t(wanted) * sizeof(float) + 63) / 64 * 64;
      memory.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
      floats = memory ? wanted : 0;
      if (!memory) throw std::bad_alloc();
    }
  };

  // Memory for as long as this object lives; one at a time in a thread.
  class Loan {
   public:
    Loan(Scratch& scratch, int64_t floats) : scratch_(scratch), host_(hosts()) {
      if (host_ == nullptr) own_ = scratch.take();
      piece().grow(floats);
    }
    ~Loan() {
      if (host_ == nullptr) scratch_.give(std::move(own_));
    }
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    float* get() { return piece().memory.get(); }

   private:
    Piece& piece() { return host_ == nullptr ? own_ : *host_; }

    Scratch& scratch_;
    Piece* const host_;
    Piece own_;
  };

  // The memory that a host lends to the runs of this thread; null, the default: none.
  static Piece*& hosts() {
    static thread_local Piece* piece = nullptr;
    return piece;
  }

 private:
  Piece take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return {};
    Piece piece = std::move(free_.back());
    free_.pop_back();
    return piece;
  }

  void give(Piece piece) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      free_.push_back(std::move(piece));
    } catch (const std::bad_alloc&) {  // then the next call allocates again
    }
  }

  std::mutex mutex_;
  std::vector<Piece> free_;
};

}  // namespace streamssm::ort
