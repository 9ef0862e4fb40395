// The three warps of the walk that do not compute: one fills the ring, one brings states back, one finds the factors of
// the norm.
#pragma once

#include "rows_walk_sync.cuh"

namespace streamssm::cuda::rows::walk {

// The rows of a pass of a group.
__device__ inline Streams rows_from(const Call& c, int first) {
  const int count = min(c.each, c.rows.count - first);
  return {count, c.rows.slots ? 0 : c.rows.first + first, c.rows.slots ? c.rows.slots + first : nullptr};
}

// Calls use(first row) for the passes of a group.
template <class Use>
__device__ void for_passes(const Call& c, const Place& at, const Use& use) {
  for (int first = at.group_index * c.each; first < c.rows.count; first += kGroups * c.each) use(first);
}

// Fills the tiles in the order of their use, as far ahead as there is room. All lanes arrive for each tile.
template <class S>
struct Producer {
  const Call& c;
  S& sh;
  const Place& at;
  int lane, tile = 0, layers_begun = 0;

  // The place of the next tile, once it is free and no more than `ahead` tiles are under way.
  __device__ int place(int ahead) {
    const int slot = tile % S::kRing, before = tile - ahead;
    if (before >= 0) barrier_wait(&sh.full[before % S::kRing], before / S::kRing & 1);
    barrier_wait(&sh.empty[slot], (tile / S::kRing & 1) ^ 1);
    ++tile;
    return slot;
  }
  __device__ void weights(const uint8_t* from, int count) {
    for (int i = 0; i < count; ++i) {
      const int slot = place(S::kPace.weights);
      if (lane == 0) {
        barrier_expect(&sh.full[slot], kTileBytes);
        bulk_fetch(sh.ring[slot], from + i * kTileBytes, kTileBytes, &sh.full[slot]);
      } else {
        arrive(&sh.full[slot]);
      }
    }
  }
  __device__ void small(const uint8_t* from) {
    barrier_wait(&sh.small_empty, (layers_begun & 1) ^ 1);
    if (lane == 0) {
      barrier_expect(&sh.small_full, sizeof(Small));
      bulk_fetch(&sh.small, from, sizeof(Small), &sh.small_full);
    }
  }
  __device__ void states(const Streams& rows, int layer) {
    for (int first = 0; first < S::kRows; first += kTileRows) {
      const int64_t from = lane < kTileRows ? slot_of(rows, first + lane) : -1;
      const int real = __popc(__ballot_sync(~0u, from >= 0)), slot = place(S::kPace.states);
      if (lane == 0) {
        barrier_expect(&sh.full[slot], real * kRowBytes);
      } else {
        arrive(&sh.full[slot]);
      }
      __syncwarp();
      uint8_t* to = sh.ring[slot] + lane * kRowBytes;
      if (from >= 0) fetch_states(to, c.states, at.block, int(from), layer, &sh.full[slot]);
    }
  }
  // Brings the convolution's taps near.
  __device__ void taps(const Streams& rows, const Pool& pool, int layer) const {
    const float* taps = pool.state + layer * pool.layer_stride + at.block * kChannels;
    for (int i = lane; i < rows.count * (kTaps - 1); i += 32) {
      const int64_t slot = slot_of(rows, i / (kTaps - 1));
      if (slot >= 0) prefetch(taps + slot * pool.slot_stride + i % (kTaps - 1) * kInner, kChannels * 4);
    }
  }
  __device__ void run() {
    for_passes(c, at, [&](int first) {
      const Streams rows = rows_from(c, first);
      for (int layer = 0; layer < c.layers; ++layer, ++layers_begun) {
        const uint8_t* from = c.packed + (int64_t(layer) * kBlocks + at.block) * kLayerBytes;
        weights(from, kInTiles);
        small(from + (kInTiles + kOutTiles) * kTileBytes);
        taps(rows, c.conv, layer);
        states(rows, layer);
        weights(from + kInTiles * kTileBytes, kOutTiles);
      }
    });
  }
};

// Brings tiles of states back when they have been worked on, and frees them a little later.
template <class S>
__device__ void write_states(const Call& c, S& sh, const Place& at) {
  constexpr int kLag = 2;
  const int lane = threadIdx.x % 32;
  int layers = 0, states = 0;
  for_passes(c, at, [&](int first_row) {
    const Streams rows = rows_from(c, first_row);
    for (int layer = 0; layer < c.layers; ++layer, ++layers) {
      const int first = layers * S::kLayerTiles + kInTiles;
      const auto free = [&](int tile) {
        __syncwarp();
        if (lane < kWarps) arrive(&sh.empty[(first + tile) % S::kRing]);
      };
      for (int tile = 0; tile < S::kStateTiles; ++tile, ++states) {
        const int64_t to = lane < kTileRows ? slot_of(rows, tile * kTileRows + lane) : -1;
        barrier_wait(&sh.done[states % S::kRing], states / S::kRing & 1);
        while (tile >= S::kPace.stored_early && *static_cast<volatile int*>(&sh.told) <= layers) __nanosleep(100);
        const uint8_t* from = sh.ring[(first + tile) % S::kRing] + lane * kRowBytes;
        if (to >= 0) store_states(from, c.next_states, at.block, int(to), layer);
        stores_end();
        stores_read<kLag>();
        if (tile >= kLag) free(tile - kLag);
      }
      stores_read<0>();
      for (int tile = S::kStateTiles - kLag; tile < S::kStateTiles; ++tile) free(tile);
    }
  });
  stores_wait();
}

// The factors of a layer's rows: its own 1 / rms over that which x has. Joins sync_with_helper() at the beginning of a
// pass and once a layer.
template <class S>
__device__ void find_factors(const Call& c, S& sh, const Place& at, uint32_t exchange) {
  constexpr int kMine = (S::kRows + 31) / 32;  // rows of a lane
  const int lane = threadIdx.x % 32;
  const float* squares = &at.group->squares[0][lane % S::kRows];
  for_passes(c, at, [&](int first) {
    sync_with_helper();
    for (int layer = 0; layer < c.layers; ++layer) {
      await_part<S::kRowTiles>(at, kX, 0, lane, ++exchange);
      __syncwarp();
      float parts[kMine][kBlocks];
#pragma unroll
      for (int k = 0; k < kMine; ++k)
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) parts[k][i] = fetch(squares + i * kMostRows + k * 32);
#pragma unroll
      for (int k = 0; k < kMine; ++k) {
        const int row = lane + k * 32;
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) sum += parts[k][i];
        if (row >= S::kRows) continue;
        const float scale = rsqrtf(fmaf(sum, 1.0f / kModel, c.eps));
        sh.factor[row] = scale / sh.scale[row];
        sh.scale[row] = scale;
        if (layer + 1 == c.layers && c.normed && at.block == 0 && first + row < c.rows.count && row < c.each)
          c.scaled_by[int64_t(first + row) * kBlocks] = sum;
      }
      sync_with_helper();
    }
  });
}

}  // namespace streamssm::cuda::rows::walk
