// Constants of a graph: reading their values.
#include <cstring>

#include "folding.h"

namespace streamssm::embed {
namespace {

float from_half(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3FF;
  if (exponent == 0) {
    const float value = float(mantissa) * 0x1p-24f;
    return sign ? -value : value;
  }
  const uint32_t bits = sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) | mantissa << 13;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
T read(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

}  // namespace

int64_t Tensor::size() const {
  int64_t product = 1;
  for (const int64_t dim : dims) product *= dim;  // no more than there are bytes
  return product;
}

bool Tensor::contiguous() const {
  int64_t step = 1;
  for (size_t i = dims.size(); i-- > 0; step *= dims[i])
    if (dims[i] != 1 && strides[i] != step) return false;
  return true;
}

double Tensor::number() const {
  switch (type) {
    case kFloat: return double(read<float>(data));
    case kHalf: return double(from_half(read<uint16_t>(data)));
    case kInt64: return double(read<int64_t>(data));
    case kInt32: return double(read<int32_t>(data));
    case kInt8: return double(read<int8_t>(data));
    default: return double(read<uint8_t>(data));
  }
}

std::vector<int64_t> Tensor::integers() const {
  const Tensor flat = packed();
  std::vector<int64_t> values(size_t(flat.size()));
  if (!values.empty()) std::memcpy(values.data(), flat.data, values.size() * sizeof(int64_t));
  return values;
}

float Tensor::at(int64_t element) const { return read<float>(data + element * 4); }

Tensor Tensor::packed() const {
  if (contiguous()) return *this;
  Tensor out;
  const size_t item = item_size(type);
  out.type = type, out.dims = dims;
  out.own = std::make_shared<std::string>(size_t(size()) * item, '\0');
  out.data = out.own->data();
  out.strides.assign(dims.size(), 1);
  for (size_t i = dims.size(); i-- > 1;) out.strides[i - 1] = out.strides[i] * dims[i];
  std::vector<int64_t> index(dims.size(), 0);
  for (int64_t element = 0; element < size(); ++element) {
    int64_t place = 0;
    for (size_t i = 0; i < dims.size(); ++i) place += index[i] * strides[i];
    std::memcpy(out.own->data() + size_t(element) * item, data + size_t(place) * item, item);
    for (size_t i = dims.size(); i-- > 0;) {
      if (++index[i] < dims[i]) break;
      index[i] = 0;
    }
  }
  return out;
}

}  // namespace streamssm::embed
