// SelectiveScan (x, dt [B, T, D], A [N, D], B, C [B, T, N], D, dt_bias [D], z [B, T, D], state [B, N, D])
// -> (y, next)
#include "ops.h"

namespace streamssm::ort {
namespace {

template <Type kData>
class SelectiveScan {
 public:
  static constexpr const char* name = "SelectiveScan";
  static constexpr Port inputs[] = {{kData},   {kData},   {float32}, {kData},  {kData},
                                    {float32}, {float32}, {kData},   {float32}};
  static constexpr Port outputs[] = {{kData}, {float32}};

  explicit SelectiveScan(const Info& info)
      : kernels_(best_kernels()), A_(info, 2), D_(info, 5), dt_bias_(info, 6) {}

  void compute(Context& context) const {
    const Tensor x = context.input(0), dt = context.input(1), b = context.input(3), c = context.input(4);
    const Tensor z = context.input(7), state = context.input(8);
    const Tensor a = A_.get(context), skip = D_.get(context), bias = dt_bias_.get(context);
    expect_rank("x", x, "[B, T, D]", 3);
    expect_rank("A", a, "[N, D]", 2);
    const int64_t B = x.dims[0], T = x.dims[1], D = x.dims[2], N = a.dims[0];
    expect("dt", dt, "[B, T, D]", {B, T, D});
    expect("A", a, "[N, D]", {N, D});
    expect("B", b, "[B, T, N]", {B, T, N});
    expect("C", c, "[B, T, N]", {B, T, N});
    expect("D", skip, "[D]", {D});
    expect("dt_bias", bias, "[D]", {D});
    expect("z", z, "[B, T, D]", {B, T, D});
    expect("state", state, "[B, N, D]", {B, N, D});
    void* y = context.output_like<void>(0, x);
    float* next = context.output_like<float>(1, state);
    if (x.size() == 0 && state.size() == 0) return;
    // an exponential costs as much as eight products
    for_parts(context, B, D, 16, 8.0 * double(T * (N + 2)), [&](int64_t row, Range channels) {
      for_tiles<kData>(kernels_, row, T, 4 * D + 2 * N, [&](Tile<kData>& tile) {
        const float* past = tile.start ? next : state.as<float>();
        const int64_t kept = row * N * D;
        const In xs = tile.in(x, D, channels), dts = tile.in(dt, D, channels), zs = tile.in(z, D, channels);
        const In bs = tile.in(b, N), cs = tile.in(c, N);
        const Out out = tile.out(y, D);
        kernels_.selective_scan({tile.items, D, N}, xs, dts, a.as<float>(), bs, cs, skip.as<float>(),
                                bias.as<float>(), zs, past + kept, out, next + kept, channels);
        tile.finish(out, y, channels);
      });
    });
  }

 private:
  const Kernels& kernels_;
  Parameter A_, D_, dt_bias_;
};

}  // namespace

Versions selective_scan() { return every_type<SelectiveScan>(); }

}  // namespace streamssm::ort
