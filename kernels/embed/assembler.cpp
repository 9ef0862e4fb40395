#include "assembler.h"

#include <algorithm>
#include <cstring>

namespace streamssm::embed {
namespace {

constexpr int64_t kLargePart = 1 << 18;  // floats

float float_at(const Tensor& tensor, int64_t element) {
  float value;
  std::memcpy(&value, tensor.data + element * 4, sizeof value);
  return value;
}

}  // namespace

Floats::Floats(int64_t count) : count_(count) {
  const size_t bytes = size_t(rounded(std::max<int64_t>(count, 1) * 4, 64));
  memory_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
  if (!memory_) throw std::bad_alloc();
  std::memset(memory_.get(), 0, bytes);
}

void pack_matrix(const Tensor& matrix, float* to) {
  const int64_t K = matrix.dims[0], N = matrix.dims[1], down = matrix.strides[0], across = matrix.strides[1];
  for (int64_t first = 0; first < N; first += kPanel) {
    const int64_t columns = std::min(kPanel, N - first);
    for (int64_t k = 0; k < K; ++k, to += kPanel)
      for (int64_t n = 0; n < columns; ++n) to[n] = float_at(matrix, k * down + (first + n) * across);
  }
}

// 8 bits: [panels, blocks, block / 4, 16, 4] bytes. 4 bits: [panels, blocks, block / 8, 16, 4], the low half
// of a byte for the first 4 inputs of 8, the high half for the other 4.
void pack_codes(const Tensor& codes, int64_t N, int64_t blocks, int64_t bits, float* to) {
  const int64_t bytes = codes.size() / (N * blocks), nothing = bits == 8 ? 128 : 0x88;
  const auto code = [&](int64_t n, int64_t block, int64_t i) {
    return n < N ? uint8_t(codes.data[(n * blocks + block) * bytes + i]) : uint8_t(nothing);
  };
  uint8_t* out = reinterpret_cast<uint8_t*>(to);
  for (int64_t first = 0; first < panels(N) * kPanel; first += kPanel)
    for (int64_t block = 0; block < blocks; ++block)
      for (int64_t group = 0; group < bytes / 4; ++group)
        for (int64_t n = first; n < first + kPanel; ++n)
          for (int64_t i = 0; i < 4; ++i) {
            if (bits == 8) {
              *out++ = code(n, block, 4 * group + i);
              continue;
            }
            // nibbles 8 group + i and 8 group + 4 + i
            const uint8_t low = code(n, block, 4 * group + i / 2),
                          high = code(n, block, 4 * group + 2 + i / 2);
            const int shift = i % 2 ? 4 : 0;
            *out++ = uint8_t((low >> shift & 15) | (high >> shift & 15) << 4);
          }
}

void pack_scales(const Tensor& scales, int64_t N, int64_t blocks, float* to) {
  for (int64_t first = 0; first < N; first += kPanel)
    for (int64_t block = 0; block < blocks; ++block, to += kPanel)
      for (int64_t n = first; n < std::min(first + kPanel, N); ++n)
        to[n - first] = float_at(scales, n * blocks + block);
}

void pack_row(const Tensor& values, float* to) {
  const Tensor flat = values.packed();
  if (flat.size() > 0) std::memcpy(to, flat.data, size_t(flat.size()) * 4);
}

void Assembler::define(const std::string& name, int64_t width) {
  width = rounded(width, kPanel);
  auto best = free_.end();
  for (auto at = free_.begin(); at != free_.end(); ++at) {
    const int64_t have = widths_[size_t(*at)];
    if (have >= width && (best == free_.end() || have < widths_[size_t(*best)])) best = at;
  }
  int64_t buffer = int64_t(widths_.size());
  if (best != free_.end()) {
    buffer = *best;
    free_.erase(best);
  } else {
    widths_.push_back(width);
  }
  views_[name] = {buffer, 0};
  readers_[buffer] = uses_[name];
}

void Assembler::alias(const std::string& name, const std::string& source, int64_t offset) {
  const View view = views_.at(source);
  views_[name] = {view.buffer, view.offset + offset};
  readers_[view.buffer] += uses_[name];
}

void Assembler::release(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    const int64_t buffer = views_.at(name).buffer;
    if (--readers_[buffer] == 0) free_.push_back(buffer);
  }
}

int64_t Assembler::weights(const std::string& key, int64_t floats, Pack pack) {
  const auto [place, fresh] = places_.insert({key, floats_});
  if (fresh) {
    packers_.push_back({floats_, floats, std::move(pack)});
    floats_ += rounded(floats, kPanel);
  }
  return place->second;
}

int64_t Assembler::vector(const std::string& key, int64_t width, Pack pack) {
  return weights(say(key, '\0' + std::to_string(width)), rounded(width, kPanel) + kPanel, std::move(pack));
}

int64_t Assembler::port(Ports kind, int64_t size) {
  ports_[kind].push_back(size);
  return int64_t(ports_[kind].size()) - 1;
}

void Assembler::emit(Code code, const std::vector<Argument>& arguments) {
  code_.push_back(int64_t(code));
  const size_t count = code_.size();
  code_.push_back(0);
  for (const Argument& argument : arguments) {
    if (argument.name == nullptr) {
      code_.push_back(argument.value);
      continue;
    }
    const View view = views_.at(*argument.name);
    code_.push_back(view.buffer), code_.push_back(view.offset);
  }
  code_[count] = int64_t(code_.size() - count - 1);
}

int64_t Assembler::most_ports() const {
  return int64_t(std::max({ports_[0].size(), ports_[1].size(), ports_[2].size()}));
}

std::vector<int64_t> Assembler::words() const {
  const std::vector<int64_t>* const lists[] = {&widths_, &ports_[kInputs], &ports_[kOutputs],
                                               &ports_[kStates]};
  std::vector<int64_t> words;
  for (const auto* list : lists) words.push_back(int64_t(list->size()));
  for (const auto* list : lists) words.insert(words.end(), list->begin(), list->end());
  words.insert(words.end(), code_.begin(), code_.end());
  return words;
}

Floats Assembler::packed(const std::function<void()>& release) const {
  Floats all(std::max(floats_, kPanel));
  for (const Packer& packer : packers_) {
    packer.pack(all.data() + packer.place);
    if (packer.floats >= kLargePart) release();
  }
  return all;
}

}  // namespace streamssm::embed
