// CausalConv1d <silu> (x [B, T, D], weight [K, D], bias [D], state [B, K-1, D]) -> (y, next)
#include "ops.h"

namespace streamssm::ort {
namespace {

template <Type kData>
class CausalConv1d {
 public:
  static constexpr const char* name = "CausalConv1d";
  static constexpr Port inputs[] = {{kData}, {float32}, {float32}, {float32}};
  static constexpr Port outputs[] = {{kData}, {float32}};

  explicit CausalConv1d(const Info& info)
      : kernels_(best_kernels()), silu_(info.integer("silu") != 0), weight_(info, 1), bias_(info, 2) {}

  void compute(Context& context) const {
    const Tensor x = context.input(0), weight = weight_.get(context), bias = bias_.get(context);
    const Tensor state = context.input(3);
    expect_rank("x", x, "[B, T, D]", 3);
    expect_rank("weight", weight, "[K, D]", 2);
    const int64_t B = x.dims[0], T = x.dims[1], D = x.dims[2], K = weight.dims[0];
    expect("weight", weight, "[K, D]", {K, D});
    expect("bias", bias, "[D]", {D});
    expect("state", state, "[B, K-1, D]", {B, K - 1, D});
    void* y = context.output_like<void>(0, x);
    float* next = context.output_like<float>(1, state);
    if (x.size() == 0 && state.size() == 0) return;
    for_parts(context, B, D, 16, double(T * K), [&](int64_t row, Range channels) {
      for_tiles<kData>(kernels_, row, T, 2 * D, [&](Tile<kData>& tile) {
        const float* past = tile.start ? next : state.as<float>();
        const int64_t kept = row * (K - 1) * D;
        const In in = tile.in(x, D, channels);
        const Out out = tile.out(y, D);
        kernels_.causal_conv1d({tile.items, D, K, silu_}, in, weight.as<float>(), bias.as<float>(),
                               past + kept, out, next + kept, channels);
        tile.finish(out, y, channels);
      });
    });
  }

 private:
  const Kernels& kernels_;
  bool silu_;
  Parameter weight_, bias_;
};

}  // namespace

Versions causal_conv1d() { return every_type<CausalConv1d>(); }

}  // namespace streamssm::ort
