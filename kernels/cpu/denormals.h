// Denormal numbers are treated as zero, in and out, while a FlushDenormals lives.
//
// A decaying state passes through the denormals, where some processors compute a hundred times
// slower. The setting belongs to the thread, so it is put back exactly: NumPy or the host program
// must not find its arithmetic changed. Nesting is cheap: the inner one sees that nothing is to do.
#pragma once

#include <cstdint>

namespace streamssm {

class FlushDenormals {
 public:
  // Always inlined: an out-of-line copy could be one compiled for another instruction set.
  [[gnu::always_inline]] inline FlushDenormals() : before_(read()) {
    if ((before_ & kFlush) != kFlush) write(before_ | kFlush);
  }
  [[gnu::always_inline]] inline ~FlushDenormals() {
    if ((before_ & kFlush) != kFlush) write(before_);
  }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
#if defined(__x86_64__)
  using Word = uint32_t;
  static constexpr Word kFlush = 1u << 15 | 1u << 6;  // FTZ and DAZ of MXCSR
  [[gnu::always_inline]] static inline Word read() {
    Word word;
    asm volatile("stmxcsr %0" : "=m"(word));
    return word;
  }
  // "memory": neither loads nor stores, and so no arithmetic between them, move across.
  [[gnu::always_inline]] static inline void write(Word word) {
    asm volatile("ldmxcsr %0" : : "m"(word) : "memory");
  }
#elif defined(__aarch64__)
  using Word = uint64_t;
  static constexpr Word kFlush = uint64_t{1} << 24;  // FZ of FPCR, in and out
  [[gnu::always_inline]] static inline Word read() {
    Word word;
    asm volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  [[gnu::always_inline]] static inline void write(Word word) {
    asm volatile("msr fpcr, %0" : : "r"(word) : "memory");
  }
#else
  using Word = uint32_t;
  static constexpr Word kFlush = 0;
  [[gnu::always_inline]] static inline Word read() { return 0; }
  [[gnu::always_inline]] static inline void write(Word) {}
#endif

  const Word before_;
};

}  // namespace streamssm
