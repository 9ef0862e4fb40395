// Draws for the fuzz target; one seed makes one case.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <random>

namespace streamssm::fuzz {

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  int64_t between(int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(engine_);
  }
  bool chance(double probability) { return std::bernoulli_distribution(probability)(engine_); }
  float normal() { return std::normal_distribution<float>()(engine_); }
  uint64_t bits() { return engine_(); }

  template <typename T>
  T one_of(std::initializer_list<T> choices) {
    return choices.begin()[between(0, int64_t(choices.size()) - 1)];
  }

  // A dimension: mostly small, often an edge.
  int64_t size(int64_t least = 0) {
    if (chance(0.15)) return least;
    if (chance(0.15)) return least + 1;
    return between(least, chance(0.1) ? least + 80 : least + 20);
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace streamssm::fuzz
