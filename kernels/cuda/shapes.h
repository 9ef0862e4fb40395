// What the operators ask of the shapes of their tensors, in one place for every runtime that calls api.h.
//
// Each function checks the tensors of one operator and answers a call with its sizes filled in; rows.slots,
// rows.lengths, the type and the pointers are the caller's. If `pooled`, the states have as many slots as
// they like, of which the rows name theirs; otherwise there is one for each row.
#pragma once

#include <cstddef>
#include <exception>
#include <initializer_list>
#include <string>
#include <utility>

#include "api.h"

namespace streamssm::cuda {

// A tensor that is not what its operator expects. The text says what it is and what was expected.
class Mismatch : public std::exception {
 public:
  explicit Mismatch(std::string text) : text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

struct Shape {
  int rank = 0;
  int64_t dims[8] = {};
};

namespace shapes {

// "[2, 3, 5]"
inline std::string show(const int64_t* dims, size_t rank) {
  std::string text = "[";
  for (size_t i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}
inline std::string show(const Shape& shape) { return show(shape.dims, size_t(shape.rank)); }

inline void expect_rank(const char* name, const Shape& shape, const char* letters, int rank) {
  if (shape.rank != rank) throw Mismatch(std::string(name) + " is " + show(shape) + ", expected " + letters);
}

// `letters` explains `wanted`, such as "[B, T, D]".
inline void expect(const char* name, const Shape& shape, const char* letters, std::initializer_list<int64_t> wanted) {
  bool same = size_t(shape.rank) == wanted.size();
  for (size_t i = 0; same && i < wanted.size(); ++i) same = shape.dims[i] == wanted.begin()[i];
  if (!same)
    throw Mismatch(std::string(name) + " is " + show(shape) + ", expected " + letters + " = " +
                   show(wanted.begin(), wanted.size()));
}

// Slots of a state: as many as it has if pooled, B otherwise.
inline int64_t slots(const Shape& state, int64_t B, bool pooled) { return pooled && state.rank ? state.dims[0] : B; }

}  // namespace shapes

// In the order of the operator's inputs: x, weight, bias, state.
inline ConvCall conv_call(const Shape* in, bool pooled = false) {
  using namespace shapes;
  expect_rank("x", in[0], "[B, T, D]", 3);
  expect_rank("weight", in[1], "[K, D]", 2);
  ConvCall call{};
  const int64_t B = in[0].dims[0], D = in[0].dims[2], K = in[1].dims[0];
  call.rows.B = B, call.rows.T = in[0].dims[1], call.D = D, call.K = K;
  if (K < 1) throw Mismatch("weight is " + show(in[1]) + ", expected at least one tap");
  expect("weight", in[1], "[K, D]", {K, D});
  expect("bias", in[2], "[D]", {D});
  expect("state", in[3], "[B, K-1, D]", {slots(in[3], B, pooled), K - 1, D});
  return call;
}

// x, dt, A, B, C, D, dt_bias, z, state
inline ScanCall scan_call(const Shape* in, bool pooled = false) {
  using namespace shapes;
  expect_rank("x", in[0], "[B, T, D]", 3);
  expect_rank("A", in[2], "[N, D]", 2);
  ScanCall call{};
  const int64_t B = in[0].dims[0], T = in[0].dims[1], D = in[0].dims[2], N = in[2].dims[0];
  call.rows.B = B, call.rows.T = T, call.D = D, call.N = N;
  expect("dt", in[1], "[B, T, D]", {B, T, D});
  expect("A", in[2], "[N, D]", {N, D});
  expect("B", in[3], "[B, T, N]", {B, T, N});
  expect("C", in[4], "[B, T, N]", {B, T, N});
  expect("D", in[5], "[D]", {D});
  expect("dt_bias", in[6], "[D]", {D});
  expect("z", in[7], "[B, T, D]", {B, T, D});
  expect("state", in[8], "[B, N, D]", {slots(in[8], B, pooled), N, D});
  return call;
}

// x, dt, A, B, C, D, state
inline DualCall dual_call(const Shape* in, bool pooled = false) {
  using namespace shapes;
  expect_rank("x", in[0], "[B, T, H, P]", 4);
  expect_rank("B", in[3], "[B, T, G, N]", 4);
  DualCall call{};
  const int64_t B = in[0].dims[0], T = in[0].dims[1], H = in[0].dims[2], P = in[0].dims[3];
  const int64_t G = in[3].dims[2], N = in[3].dims[3];
  call.rows.B = B, call.rows.T = T, call.H = H, call.P = P, call.G = G, call.N = N;
  expect("dt", in[1], "[B, T, H]", {B, T, H});
  expect("A", in[2], "[H]", {H});
  expect("B", in[3], "[B, T, G, N]", {B, T, G, N});
  expect("C", in[4], "[B, T, G, N]", {B, T, G, N});
  expect("D", in[5], "[H, P]", {H, P});
  expect("state", in[6], "[B, H, N, P]", {slots(in[6], B, pooled), H, N, P});
  if (G < 1 || H % G != 0)
    throw Mismatch("x is " + show(in[0]) + " and B " + show(in[3]) +
                   ", expected heads that are a multiple of the groups");
  return call;
}

// q, k, v, inv_freq, key, value, position
inline AttentionCall attention_call(const Shape* in, bool pooled = false) {
  using namespace shapes;
  expect_rank("q", in[0], "[B, T, Hq, dh]", 4);
  expect_rank("inv_freq", in[3], "[R/2]", 1);
  expect_rank("key", in[4], "[B, Hkv, W, dh]", 4);
  AttentionCall call{};
  const int64_t B = in[0].dims[0], T = in[0].dims[1], Hq = in[0].dims[2], dh = in[0].dims[3];
  const int64_t Hkv = in[4].dims[1], W = in[4].dims[2], half = in[3].dims[0];
  call.rows.B = B, call.rows.T = T, call.Hq = Hq, call.Hkv = Hkv, call.dh = dh, call.W = W, call.half = half;
  const int64_t S = slots(in[4], B, pooled);
  expect("k", in[1], "[B, T, Hkv, dh]", {B, T, Hkv, dh});
  expect("v", in[2], "[B, T, Hkv, dh]", {B, T, Hkv, dh});
  expect("key", in[4], "[B, Hkv, W, dh]", {S, Hkv, W, dh});
  expect("value", in[5], "[B, Hkv, W, dh]", {S, Hkv, W, dh});
  expect("position", in[6], "[B]", {S});
  if (W < 1) throw Mismatch("key is " + show(in[4]) + ", expected a window of at least 1");
  if (Hkv < 1 || Hq % Hkv != 0)
    throw Mismatch("q is " + show(in[0]) + " and key " + show(in[4]) +
                   ", expected query heads that are a multiple of the key heads");
  if (2 * half > dh)
    throw Mismatch("inv_freq is " + show(in[3]) + ", expected at most dh/2 = " + std::to_string(dh / 2));
  return call;
}

// x, window, filters, past
inline LogMelCall log_mel_call(const Shape* in, int64_t hop, int64_t points, bool pooled = false) {
  using namespace shapes;
  expect_rank("x", in[0], "[B, T]", 2);
  expect_rank("window", in[1], "[L]", 1);
  expect_rank("filters", in[2], "[n_fft/2 + 1, M]", 2);
  expect_rank("past", in[3], "[B, P]", 2);
  LogMelCall call{};
  call.rows.B = in[0].dims[0], call.rows.T = in[0].dims[1], call.hop = hop, call.points = points;
  call.length = in[1].dims[0], call.bands = in[2].dims[1], call.kept = in[3].dims[1];
  expect("filters", in[2], "[n_fft/2 + 1, M]", {points / 2 + 1, call.bands});
  expect("past", in[3], "[B, P]", {slots(in[3], call.rows.B, pooled), call.kept});
  if (call.length < 1 || call.length > points)
    throw Mismatch("window is " + show(in[1]) + ", expected 1 to n_fft = " + std::to_string(points));
  if (call.rows.T % hop != 0)
    throw Mismatch("x is " + show(in[0]) + ", expected a multiple of hop = " + std::to_string(hop));
  if (call.kept < call.length - hop)
    throw Mismatch("past is " + show(in[3]) + ", expected at least " + std::to_string(call.length - hop) +
                   " samples for a window of " + std::to_string(call.length));
  return call;
}

}  // namespace streamssm::cuda
