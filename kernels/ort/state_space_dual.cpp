// StateSpaceDual (x [B, T, H, P], dt [B, T, H], A [H], B, C [B, T, G, N], D [H, P], state [B, H, N, P])
// -> (y, next)
#include "ops.h"

namespace streamssm::ort {
namespace {

template <Type kData>
class StateSpaceDual {
 public:
  static constexpr const char* name = "StateSpaceDual";
  static constexpr Port inputs[] = {{kData}, {kData}, {float32}, {kData}, {kData}, {float32}, {float32}};
  static constexpr Port outputs[] = {{kData}, {float32}};

  explicit StateSpaceDual(const Info& info) : kernels_(best_kernels()), A_(info, 2), D_(info, 5) {}

  void compute(Context& context) const {
    const Tensor x = context.input(0), dt = context.input(1), b = context.input(3), c = context.input(4);
    const Tensor state = context.input(6), a = A_.get(context), skip = D_.get(context);
    expect_rank("x", x, "[B, T, H, P]", 4);
    expect_rank("B", b, "[B, T, G, N]", 4);
    const int64_t B = x.dims[0], T = x.dims[1], H = x.dims[2], P = x.dims[3], G = b.dims[2], N = b.dims[3];
    expect("dt", dt, "[B, T, H]", {B, T, H});
    expect("A", a, "[H]", {H});
    expect("B", b, "[B, T, G, N]", {B, T, G, N});
    expect("C", c, "[B, T, G, N]", {B, T, G, N});
    expect("D", skip, "[H, P]", {H, P});
    expect("state", state, "[B, H, N, P]", {B, H, N, P});
    if (G < 1 || H % G != 0)
      throw Failure(std::to_string(H) + " heads of x cannot share " + std::to_string(G) + " groups of B");
    void* y = context.output_like<void>(0, x);
    float* next = context.output_like<float>(1, state);
    if (x.size() == 0 && state.size() == 0) return;
    for_parts(context, B, H, 1, 4.0 * double(T * P * (N + 1)), [&](int64_t row, Range heads) {
      for_tiles<kData>(kernels_, row, T, 2 * H * P + H + 2 * G * N, [&](Tile<kData>& tile) {
        const float* past = tile.start ? next : state.as<float>();
        const int64_t kept = row * H * N * P;
        const Range columns{heads.first * P, heads.last * P};
        const In xs = tile.in(x, H * P, columns), dts = tile.in(dt, H, heads);
        const In bs = tile.in(b, G * N), cs = tile.in(c, G * N);
        const Out out = tile.out(y, H * P);
        kernels_.state_space_dual({tile.items, H, P, G, N}, xs, dts, a.as<float>(), bs, cs, skip.as<float>(),
                                  past + kept, out, next + kept, heads);
        tile.finish(out, y, columns);
      });
    });
  }

 private:
  const Kernels& kernels_;
  Parameter A_, D_;
};

}  // namespace

Versions state_space_dual() { return every_type<StateSpaceDual>(); }

}  // namespace streamssm::ort
