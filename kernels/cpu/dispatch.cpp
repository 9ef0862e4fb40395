// Picks the table of functions for the processor at hand. Compiled with the baseline's flags.
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace streamssm {

#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512vnni {
extern const Kernels table;
}
#elif defined(__aarch64__)
namespace neon {
extern const Kernels table;
}
namespace neon_dotprod {
extern const Kernels table;
}
#endif

namespace {

#if defined(__x86_64__)

// Not among the names that __builtin_cpu_supports knows in every compiler.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

// __builtin_cpu_supports also asks whether the operating system saves the registers.
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

#elif defined(__aarch64__)

bool has_neon() { return true; }  // part of the architecture

bool has_dotprod() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
  return true;  // every processor that macOS on arm64 runs on
#else
  return false;
#endif
}

#endif

struct Candidate {
  const Kernels* table;
  bool (*supported)();
};

// The best first.
const Candidate candidates[] = {
#if defined(__x86_64__)
    {&avx512vnni::table, has_avx512vnni},
    {&avx512::table, has_avx512},
    {&avx2::table, has_avx2},
#elif defined(__aarch64__)
    {&neon_dotprod::table, has_dotprod},
    {&neon::table, has_neon},
#endif
    {nullptr, nullptr},  // an array must not be empty
};

}  // namespace

const Kernels* kernels() {
  for (const Candidate& candidate : candidates)
    if (candidate.table && candidate.supported()) return candidate.table;
  return nullptr;
}

const Kernels* kernels(const char* name) {
  for (const Candidate& candidate : candidates)
    if (candidate.table && !std::strcmp(candidate.table->name, name))
      return candidate.supported() ? candidate.table : nullptr;
  return nullptr;
}

}  // namespace streamssm
