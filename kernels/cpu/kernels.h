// What every instruction set provides, as one table of functions.
//
// T items, D channels, N state size, K conv width, H heads, P head dim, G groups, W window,
// R rotary dims. Each call serves one sequence. The formulas are those of kernels/reference.py.
// State is float32; `next` may be the same memory as `state`, and nothing else may overlap.
// The operations on an item, and their order, depend neither on T nor on how a sequence was cut.
#pragma once

#include <cstdint>

namespace streamssm {

struct LogMelPlan;
struct Program;
struct ProgramCall;

// A matrix with one row per item; `stride` floats lie between the starts of two rows.
struct In {
  const float* data;
  int64_t stride;
  __attribute__((always_inline)) const float* row(int64_t t) const { return data + t * stride; }
};

struct Out {
  float* data;
  int64_t stride;
  __attribute__((always_inline)) float* row(int64_t t) const { return data + t * stride; }
};

// A part [first, last) of channels or heads: the work of one thread. However the channels are
// parted at multiples of 16, or the heads anywhere, the results are the same to the bit.
struct Range {
  int64_t first, last;
};

struct ConvShape {
  int64_t T, D, K;
  bool silu;
};

struct ScanShape {
  int64_t T, D, N;
};

struct DualShape {
  int64_t T, H, P, G, N;
};

struct AttentionShape {
  int64_t T, Hq, Hkv, dh, W, R;  // R rotary dims, pairs (d, d + R/2)
  float scale;
};

struct Kernels {
  const char* name;

  // x [T, D], weight [K, D], bias [D], state [K-1, D] -> y [T, D], next [K-1, D].
  void (*causal_conv1d)(ConvShape shape, In x, const float* weight, const float* bias, const float* state,
                        Out y, float* next, Range channels);

  // x, dt, z [T, D], A [N, D], B, C [T, N], D, dt_bias [D], state [N, D] -> y [T, D], next [N, D].
  // dt is raw: softplus(dt + dt_bias) is applied here, and the gate silu(z).
  void (*selective_scan)(ScanShape shape, In x, In dt, const float* A, In B, In C, const float* D,
                         const float* dt_bias, In z, const float* state, Out y, float* next, Range channels);

  // x [T, H*P], dt [T, H] positive, A [H], B, C [T, G*N], D [H*P], state [H, N, P]
  // -> y [T, H*P], next [H, N, P].
  void (*state_space_dual)(DualShape shape, In x, In dt, const float* A, In B, In C, const float* D,
                           const float* state, Out y, float* next, Range heads);

  // q [T, Hq*dh], k, v [T, Hkv*dh]; key, value [Hkv, W, dh] rings whose slot is index % W;
  // cosine, sine [W, R/2] of distance * inv_freq; position: items seen before this call, >= 0
  // -> y [T, Hq*dh], next_key, next_value. `kv_heads` is a range of the Hkv heads.
  void (*sliding_window_attention)(AttentionShape shape, In q, In k, In v, const float* cosine,
                                   const float* sine, const float* key, const float* value, int64_t position,
                                   Out y, float* next_key, float* next_value, Range kv_heads);

  // A whole stretch of a model: see program.h.
  void (*run_program)(const Program& program, const ProgramCall& call);

  // `count` numbers to float32 and back, to the nearest, ties to even.
  void (*from_half)(const uint16_t* from, float* to, int64_t count);
  void (*to_half)(const float* from, uint16_t* to, int64_t count);
  void (*from_bfloat16)(const uint16_t* from, float* to, int64_t count);
  void (*to_bfloat16)(const float* from, uint16_t* to, int64_t count);

  // Frames of x [T] that follow past [kept], kept >= length - hop: rows `frames` of y [T / hop, bands].
  // `scratch` holds plan.scratch floats. What is kept of x for the next call: keep_samples().
  void (*log_mel)(const LogMelPlan& plan, const float* past, int64_t kept, const float* x, Out y,
                  float* scratch, Range frames);
};

// The best table this processor can run, or null: then the library must not be used.
const Kernels* kernels();

// The table called `name` if this processor can run it, else null. For tests.
const Kernels* kernels(const char* name);

}  // namespace streamssm
