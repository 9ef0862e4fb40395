// The walk's layer, phase by phase. A block has 48 channels: their outputs of in_proj, convolution, x_proj's part of
// the sum, dt_proj, scan; and 24 outputs of out_proj with that slice of the residual stream, which never leaves it.
//
// Three exchanges a layer within a group: parts of x_proj (an owner of each row adds them up and tells all), the gated
// outputs y, and x for the next layer. What is handed on to a later layer is not overwritten too early: a block writes
// again only after it has had from all others what they send after their last read.
//
// A row's numbers are formed in one order, whatever the number of rows and of those in a group.
#pragma once

#include "rows_walk_products.cuh"

namespace streamssm::cuda::rows::walk {

// The taps that two channels of rows g and g + 8 carry.
struct Taps {
  float2 past[2][kTaps - 1];
};

// The work of the warps that compute, in one layer of one pass.
template <class S>
struct Layer {
  const Call& c;
  S& sh;
  Place at;
  Ring<S> ring;
  Streams rows;
  int first_row, layer, first_tile;  // the first of the layer's tiles in the ring
  uint32_t exchange, small_parity;
  int thread, first_states;  // first_states: the number of the layer's first tile of states

  static constexpr int kRowTiles = S::kRowTiles;
  static constexpr int kConvFragments = kChannels / 8 * kRowTiles;  // as many are gates
  static constexpr int kMine = (2 * kConvFragments + kWarps - 1) / kWarps;
  static constexpr int kConvMine = (kConvFragments + kWarps - 1) / kWarps;

  __device__ int warp() const { return thread / 32; }
  __device__ int lane() const { return thread % 32; }
  // Keeps the compiler from finding all addresses of all phases before the first layer: they would fill the registers.
  __device__ void begin_phase() { asm volatile("" : "+r"(thread), "+r"(at.block), "+r"(first_tile)); }

  __device__ Taps load_taps(int fragment) const;
  __device__ void store_taps(int fragment, const Taps& taps) const;
  // `past` becomes that of the next item.
  __device__ float2 convolve(int channel, float2 (&past)[kTaps - 1], float2 now) const;
  // Fragment `fragment` of in_proj's outputs becomes u or a gate.
  __device__ void use_outputs(int fragment, const float4& sum, Taps& taps);
  __device__ void project(Taps (&taps)[kConvMine]);
  // This block's part of x_proj.
  __device__ void multiply_channels();
  // Adds up a word of an owned row, four threads each, and tells all blocks.
  __device__ void add_owned();
  // x_proj of all rows from all blocks.
  __device__ void exchange_sums(const Taps (&taps)[kConvMine]);
  // dt_proj: what it takes goes through the tensor cores as two float16 numbers, the value and what its rounding left.
  __device__ void find_steps();
  // Two neighbouring channels of a row: states, output, gate. `states` are those of the row, as the producer put them.
  __device__ void scan_pair(uint8_t* states, int row, int channel);
  // A warp has 32 pairs of channels at a time, a third of a tile.
  __device__ void scan();
  // Sends 16 rows of this block's slice of the residual stream, times the next norm's weight and a scale near its own.
  __device__ void send_rows(const float4 (&v)[kOutputs / 8], const float* norm, uint32_t as);
  __device__ float2 squares_of(const float4 (&v)[kOutputs / 8]) const;
  // What the last layer leaves.
  __device__ void write_ends(const float4 (&v)[kOutputs / 8]);
  __device__ void finish();
  // Before the first layer.
  __device__ void begin();
};

}  // namespace streamssm::cuda::rows::walk
