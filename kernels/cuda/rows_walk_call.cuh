// Sizes and memory of the walk (rows_walk.h).
#pragma once

#include <cuda.h>

#include "rows_tools.cuh"

namespace streamssm::cuda::rows::walk {

constexpr int kModel = 768, kInner = 1536, kStates = 16, kRank = 48, kTaps = 4;
constexpr int kGroups = 4, kBlocks = 32;  // groups of blocks
constexpr int kChannels = kInner / kBlocks, kOutputs = kModel / kBlocks;  // of a block
constexpr int kProjected = kRank + 2 * kStates;
constexpr int kWords = (kProjected + 2) / 3;  // of a row's outputs of x_proj
constexpr int kMostRows = 64;                 // of a group

constexpr int kWarps = 8, kProducer = kWarps, kHelper = kWarps + 1, kWriter = kWarps + 2;
constexpr int kThreads = 32 * (kWarps + 3), kWorkers = 32 * kWarps;

// The ring. A layer is so many tiles in the order of their use: weights of in_proj, states of 4 rows each, weights of
// out_proj.
constexpr int kTileBytes = 12288;
constexpr int kInTiles = 2 * kChannels * kModel * 2 / kTileBytes;
constexpr int kOutTiles = kOutputs * kInner * 2 / kTileBytes;
constexpr int kTileRows = 4, kRowBytes = kStates * kChannels * 4;
constexpr int kThirds = kTileRows * kChannels / 2 / 32;  // a warp takes 32 pairs of channels of a tile at a time
constexpr int kQuarters = 4, kParts = kWarps;  // that the sums of in_proj and out_proj are split in
static_assert(kInTiles == 12 && kOutTiles == 6 && kTileRows * kRowBytes == kTileBytes, "");

// A layer's small numbers for one block.
struct Small {
  uint2 x_proj[kProjected / 8][kChannels / 16][32];  // as the tensor cores take them
  uint2 dt_proj[kChannels / 8][kRank / 16][32];
  float taps[kTaps][kChannels], conv_bias[kChannels];
  float A[kStates][kChannels], dt_bias[kChannels], skip[kChannels];  // A / ln 2
  float norm[kOutputs];                                              // of the norm after this layer
};
static_assert(sizeof(Small) % 16 == 0, "bulk copies");
constexpr int64_t kLayerBytes = int64_t(kInTiles + kOutTiles) * kTileBytes + sizeof(Small);

// What a group exchanges. `x` and `y` are fragments of 16 x 16 numbers as the tensor cores take them, x in halves.
struct Exchanges {
  uint2 x[kMostRows / 16][kModel / 8][32];
  uint4 y[kMostRows / 16][kInner / 16][32];
  float squares[kBlocks][kMostRows];          // of the residual stream, a part from each block
  Word parts[kBlocks * kMostRows * kWords];   // of x_proj, [owner][block][owned row][word]
  Word sums[kMostRows * kWords];              // [row][word]
  uint32_t flags[kBlocks][2][kMostRows / 16][kBlocks];  // [reader][x or y][16 rows][writer]: the last exchange
  uint32_t before;                            // how many exchanges there were before this step
};

struct Call {
  Streams rows;  // all
  int32_t each, layers;  // rows of a group at a time
  float eps;
  const uint8_t* packed;  // [layer][block][kLayerBytes]
  Exchanges* exchanges;   // [kGroups]
  Pool conv;
  CUtensorMap states, next_states;  // [layer][slot][kStates][kInner], a block's part of a slot at a time
  // the ends
  const float *residual, *norm;
  Squares first;
  float* next_residual;    // or null
  __half* normed;          // or null; then the squares are not written either
  float *now, *scaled_by;  // squares [rows, kBlocks]
};

// How many tiles the ring has; how many of weights and of states may be under way at a time, since more of them delay
// the exchanges; and how many of states are stored before y is sent, which the others would delay. Measured on an H100.
struct Pace {
  int ring, weights, states, stored_early;
};
constexpr Pace pace_of(int rows) {
  return rows == 64 ? Pace{14, 3, 2, 6} : rows == 32 ? Pace{15, 3, 1, 2} : Pace{16, 2, 1, 2};
}

template <int kRows_>
struct Shared {
  static constexpr int kRows = kRows_, kRowTiles = kRows / 16;
  static constexpr Pace kPace = pace_of(kRows);
  static constexpr int kRing = kPace.ring;
  static constexpr int kOwned = (kRows + kBlocks - 1) / kBlocks;  // rows whose outputs of x_proj a block adds up
  // Until a block has what it waits for in x_proj's exchange, it polls one word of each source, not all of them.
  static constexpr bool kPollsLittle = kRows > 32;
  static constexpr int kStateTiles = kRows / kTileRows, kLayerTiles = kInTiles + kStateTiles + kOutTiles;
  static constexpr int kPitch = kProjected + 4;  // of sums

  alignas(128) uint8_t ring[kRing][kTileBytes];
  alignas(16) Small small;
  uint4 u[kRowTiles][kChannels / 16][32], gate[kRowTiles][kChannels / 16][32];  // gate becomes y
  float4 residual[kRowTiles][kOutputs / 8][32];
  float sums[kRows][kPitch];  // of x_proj; step sizes replace the first kRank
  float scale[kRows], factor[kRows];
  int64_t slots[kRows];
  uint64_t full[kRing], empty[kRing], done[kRing], small_full, small_empty;
  int told;  // in how many layers y has been sent
};

static_assert(sizeof(Shared<64>) <= 227 * 1024, "what a block can have");
static_assert(sizeof(Shared<32>) <= 227 * 1024, "what a block can have");
static_assert(sizeof(Shared<16>) <= 227 * 1024, "what a block can have");

// Where a block is.
struct Place {
  Exchanges* group;
  int group_index, block;
};

}  // namespace streamssm::cuda::rows::walk
