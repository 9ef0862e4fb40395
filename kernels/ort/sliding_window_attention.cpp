// SlidingWindowAttention <scale> (q [B, T, Hq, dh], k, v [B, T, Hkv, dh], inv_freq [R/2],
//   key, value [B, Hkv, W, dh], position [B]) -> (y, next_key, next_value, next_position)
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>

#include "ops.h"

namespace streamssm::ort {
namespace {

// cos and sin of distance * inv_freq [W, R/2], computed in double: float32 angles lose 1e-5 at W = 1000.
struct Rotation {
  Rotation(int64_t W, const Tensor& inv_freq)
      : W(W), frequencies(inv_freq.as<float>(), inv_freq.as<float>() + inv_freq.size()) {
    const size_t half = frequencies.size();
    cosine.resize(size_t(W) * half);
    sine.resize(size_t(W) * half);
    for (size_t i = 0; i < cosine.size(); ++i) {
      const double angle = double(i / half) * double(frequencies[i % half]);
      cosine[i] = float(std::cos(angle));
      sine[i] = float(std::sin(angle));
    }
  }
  bool serves(int64_t window, const Tensor& inv_freq) const {
    return window == W && frequencies.size() == size_t(inv_freq.size()) &&
           (frequencies.empty() ||
            std::memcmp(frequencies.data(), inv_freq.data, frequencies.size() * sizeof(float)) == 0);
  }

  int64_t W;
  std::vector<float> frequencies, cosine, sine;
};

template <Type kData>
class SlidingWindowAttention {
 public:
  static constexpr const char* name = "SlidingWindowAttention";
  static constexpr Port inputs[] = {{kData}, {kData}, {kData}, {float32}, {float32}, {float32}, {int64}};
  static constexpr Port outputs[] = {{kData}, {float32}, {float32}, {int64}};

  explicit SlidingWindowAttention(const Info& info)
      : kernels_(best_kernels()), scale_(info.real("scale")), inv_freq_(info, 3) {}

  void compute(Context& context) const {
    const Tensor q = context.input(0), k = context.input(1), v = context.input(2);
    const Tensor inv_freq = inv_freq_.get(context);
    const Tensor key = context.input(4), value = context.input(5), position = context.input(6);
    const AttentionShape shape = check(q, k, v, inv_freq, key, value, position);
    const int64_t B = q.dims[0], T = shape.T, dh = shape.dh, per_kv = shape.Hq / shape.Hkv;
    const int64_t Q = shape.Hq * dh, K = shape.Hkv * dh;
    void* y = context.output_like<void>(0, q);
    float* next_key = context.output_like<float>(1, key);
    float* next_value = context.output_like<float>(2, value);
    int64_t* next_position = context.output_like<int64_t>(3, position);
    const int64_t* seen = position.as<int64_t>();
    if (q.size() != 0 || key.size() != 0) {
      const std::shared_ptr<const Rotation> rotation = rotate(shape.W, inv_freq);
      const double cost = 3.0 * double(T) * double(shape.W) * double(per_kv * dh);
      for_parts(context, B, shape.Hkv, 1, cost, [&](int64_t row, Range heads) {
        for_tiles<kData>(kernels_, row, T, 2 * Q + 2 * K, [&](Tile<kData>& tile) {
          const int64_t kept = row * shape.W * K;
          const float* keys = (tile.start ? next_key : key.as<float>()) + kept;
          const float* values = (tile.start ? next_value : value.as<float>()) + kept;
          const Range in{heads.first * dh, heads.last * dh}, out{in.first * per_kv, in.last * per_kv};
          const In qs = tile.in(q, Q, out), ks = tile.in(k, K, in), vs = tile.in(v, K, in);
          const Out ys = tile.out(y, Q);
          AttentionShape part = shape;
          part.T = tile.items;
          kernels_.sliding_window_attention(part, qs, ks, vs, rotation->cosine.data(), rotation->sine.data(),
                                            keys, values, seen[row] + tile.start, ys, next_key + kept,
                                            next_value + kept, heads);
          tile.finish(ys, y, out);
        });
      });
    }
    for (int64_t row = 0; row < B; ++row) next_position[row] = seen[row] + T;
  }

 private:
  AttentionShape check(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& inv_freq,
                       const Tensor& key, const Tensor& value, const Tensor& position) const {
    expect_rank("q", q, "[B, T, Hq, dh]", 4);
    expect_rank("key", key, "[B, Hkv, W, dh]", 4);
    expect_rank("inv_freq", inv_freq, "[R/2]", 1);
    const int64_t B = q.dims[0], T = q.dims[1], Hq = q.dims[2], dh = q.dims[3];
    const int64_t Hkv = key.dims[1], W = key.dims[2], R = 2 * inv_freq.dims[0];
    expect("k", k, "[B, T, Hkv, dh]", {B, T, Hkv, dh});
    expect("v", v, "[B, T, Hkv, dh]", {B, T, Hkv, dh});
    expect("key", key, "[B, Hkv, W, dh]", {B, Hkv, W, dh});
    expect("value", value, "[B, Hkv, W, dh]", {B, Hkv, W, dh});
    expect("position", position, "[B]", {B});
    if (Hkv < 1 || Hq % Hkv != 0)
      throw Failure(std::to_string(Hq) + " heads of q cannot share " + std::to_string(Hkv) + " heads of k");
    if (W < 1) throw Failure("key is " + show(key) + ": a window of no items");
    if (R > dh)
      throw Failure("inv_freq turns " + std::to_string(R) + " dimensions, a head has " + std::to_string(dh));
    for (int64_t row = 0; row < B; ++row) {
      const int64_t seen = position.as<int64_t>()[row];
      if (seen < 0 || seen > std::numeric_limits<int64_t>::max() - T - W)
        throw Failure("position[" + std::to_string(row) + "] is " + std::to_string(seen) +
                      ", expected the number of items seen so far");
    }
    return {T, Hq, Hkv, dh, W, R, scale_};
  }

  // The table of the last window and frequencies: in a model they never change.
  std::shared_ptr<const Rotation> rotate(int64_t W, const Tensor& inv_freq) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!rotation_ || !rotation_->serves(W, inv_freq)) rotation_ = std::make_shared<Rotation>(W, inv_freq);
    return rotation_;
  }

  const Kernels& kernels_;
  float scale_;
  Parameter inv_freq_;
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const Rotation> rotation_;
};

}  // namespace

Versions sliding_window_attention() { return every_type<SlidingWindowAttention>(); }

}  // namespace streamssm::ort
