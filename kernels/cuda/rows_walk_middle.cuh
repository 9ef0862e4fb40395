// The walk's middle: x_proj and its exchange, dt_proj, the scan.
#pragma once

#include "rows_walk_layer.cuh"

namespace streamssm::cuda::rows::walk {

// Two channels of rows g and g + 8 in 16 x 16 fragments.
template <class S>
__device__ uint32_t& pair_in(uint4 (&fragments)[S::kRowTiles][kChannels / 16][32], int row, int channel) {
  uint4& v = fragments[row / 16][channel / 16][row % 8 * 4 + channel % 8 / 2];
  return reinterpret_cast<uint32_t*>(&v)[row % 16 / 8 + channel % 16 / 8 * 2];
}

template <class S>
__device__ void Layer<S>::multiply_channels() {
  begin_phase();
  constexpr int kTiles = (kProjected / 8 * kRowTiles + kWarps - 1) / kWarps, kSteps = kChannels / 16;
  const int tile = warp() % kRowTiles, first = warp() / kRowTiles;
  uint4 a[kSteps];
  uint2 w[kTiles][kSteps];
#pragma unroll
  for (int k = 0; k < kSteps; ++k) a[k] = sh.u[tile][k][lane()];
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
      w[n][k] = sh.small.x_proj[min(first + n * (kWarps / kRowTiles), kProjected / 8 - 1)][k][lane()];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const int j = first + n * (kWarps / kRowTiles);
    if (j >= kProjected / 8) break;
    float sum[4] = {};
#pragma unroll
    for (int k = 0; k < kSteps; ++k) multiply(sum, a[k].x, a[k].y, a[k].z, a[k].w, w[n][k].x, w[n][k].y);
    float* to = &sh.sums[tile * 16 + lane() / 4][j * 8 + lane() % 4 * 2];
    *reinterpret_cast<float2*>(to) = make_float2(sum[0], sum[1]);
    *reinterpret_cast<float2*>(to + 8 * S::kPitch) = make_float2(sum[2], sum[3]);
  }
}

template <class S>
__device__ void Layer<S>::add_owned() {
  constexpr int kOwnedWords = S::kOwned * kWords;
  const int word = thread / 4, quarter = thread % 4, row = at.block * S::kOwned + word / kWords;
  const bool mine = word < kOwnedWords && row < rows.count;
  if (at.block * S::kOwned >= rows.count) return;
  if (S::kPollsLittle && warp() == 0) {  // one word of each block, until it is there
    const int words = min(rows.count - at.block * S::kOwned, S::kOwned) * kWords;
    await_word(at.group->parts + (at.block * kBlocks + lane()) * kOwnedWords + words - 1, exchange);
  }
  if (S::kPollsLittle) sync_workers();
  Word parts[kBlocks / 4];
  const Word* from = at.group->parts + (at.block * kBlocks + quarter) * kOwnedWords + word;
  collect_words(from, 4 * kOwnedWords, exchange, [&](int) { return mine; }, parts);
  __syncwarp();
  float sum[3];
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    sum[k] = mine ? parts[0].v[k] : 0.0f;
#pragma unroll
    for (int i = 1; i < kBlocks / 4; ++i) sum[k] += mine ? parts[i].v[k] : 0.0f;
    sum[k] += __shfl_xor_sync(~0u, sum[k], 1), sum[k] += __shfl_xor_sync(~0u, sum[k], 2);
  }
  if (mine && quarter == 0)
    publish(at.group->sums + at.block * kOwnedWords + word, sum[0], sum[1], sum[2], exchange);
}

template <class S>
__device__ void Layer<S>::exchange_sums(const Taps (&taps)[kConvMine]) {
  begin_phase();
  const int all = rows.count * kWords;
  for (int i = thread; i < all; i += kWorkers) {
    const int row = i / kWords, word = i % kWords;
    const float* v = &sh.sums[row][word * 3];
    Word* to = at.group->parts + (row / S::kOwned * kBlocks + at.block) * (S::kOwned * kWords);
    publish(to + row % S::kOwned * kWords + word, v[0], v[1], v[2], exchange);
  }
#pragma unroll
  for (int k = 0; k < kConvMine; ++k) store_taps(warp() + k * kWarps, taps[k]);  // not before what all wait for
  add_owned();
  constexpr int kCount = (S::kRows * kWords + kWorkers - 1) / kWorkers;
  Word words[kCount];
  const auto wanted = [&](int i) { return thread + i * kWorkers < all; };
  if (S::kPollsLittle && warp() == 0 && lane() * S::kOwned < rows.count)  // one word of each owner
    await_word(at.group->sums + min((lane() + 1) * S::kOwned, rows.count) * kWords - 1, exchange);
  sync_workers();
  collect_words(at.group->sums + thread, kWorkers, exchange, wanted, words);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int index = thread + i * kWorkers;
    float* to = &sh.sums[index / kWords % S::kRows][index % kWords * 3];
    if (wanted(i)) to[0] = words[i].v[0], to[1] = words[i].v[1], to[2] = words[i].v[2];
  }
  sync_workers();
}

template <class S>
__device__ void Layer<S>::find_steps() {
  begin_phase();
  constexpr int kTiles = (kChannels / 8 * kRowTiles + kWarps - 1) / kWarps;
  const int tile = warp() % kRowTiles, row = tile * 16 + lane() / 4, column = lane() % 4 * 2;
  float delta[kTiles][4] = {};
  uint32_t value[kRank / 16][4], rest[kRank / 16][4];
#pragma unroll
  for (int k = 0; k < kRank / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 v = *reinterpret_cast<const float2*>(&sh.sums[row + i % 2 * 8][k * 16 + i / 2 * 8 + column]);
      value[k][i] = pair_of(v.x, v.y);
      const float2 kept = widen_pair(value[k][i]);
      rest[k][i] = pair_of(v.x - kept.x, v.y - kept.y);
    }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const int j = warp() / kRowTiles + n * (kWarps / kRowTiles);
    if (j >= kChannels / 8) break;
    float small[4] = {};
#pragma unroll
    for (int k = 0; k < kRank / 16; ++k) {
      const uint2 w = sh.small.dt_proj[j][k][lane()];
      multiply(delta[n], value[k][0], value[k][1], value[k][2], value[k][3], w.x, w.y);
      multiply(small, rest[k][0], rest[k][1], rest[k][2], rest[k][3], w.x, w.y);
    }
    const float2 bias = *reinterpret_cast<const float2*>(&sh.small.dt_bias[j * 8 + column]);
#pragma unroll
    for (int i = 0; i < 4; ++i) delta[n][i] = softplus(delta[n][i] + small[i] + (i % 2 ? bias.y : bias.x));
  }
  sync_workers();  // all have read what dt_proj takes
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const int j = warp() / kRowTiles + n * (kWarps / kRowTiles);
    if (j >= kChannels / 8) break;
    float* to = &sh.sums[row][j * 8 + column];
    *reinterpret_cast<float2*>(to) = make_float2(delta[n][0], delta[n][1]);
    *reinterpret_cast<float2*>(to + 8 * S::kPitch) = make_float2(delta[n][2], delta[n][3]);
  }
  sync_workers();
}

template <class S>
__device__ void Layer<S>::scan_pair(uint8_t* states, int row, int channel) {
  uint32_t& gate = pair_in<S>(sh.gate, row, channel);
  const int64_t slot = sh.slots[row];
  if (slot < 0) {
    gate = 0;
    return;
  }
  const float* sums = sh.sums[row];
  const float2 delta = *reinterpret_cast<const float2*>(sums + channel);
  const float2 x = widen_pair(pair_in<S>(sh.u, row, channel)), inflow{delta.x * x.x, delta.y * x.y};
  // all loads before the first store, which they could not pass
  float2 h[kStates], A[kStates], quad[4] = {};
  float4 B[kStates / 4], C[kStates / 4];
#pragma unroll
  for (int n = 0; n < kStates; ++n) {
    h[n] = *reinterpret_cast<const float2*>(states + (n * kChannels + channel) * 4);
    A[n] = *reinterpret_cast<const float2*>(&sh.small.A[n][channel]);
  }
#pragma unroll
  for (int q = 0; q < kStates / 4; ++q) {
    B[q] = *reinterpret_cast<const float4*>(sums + kRank + q * 4);
    C[q] = *reinterpret_cast<const float4*>(sums + kRank + kStates + q * 4);
  }
#pragma unroll
  for (int n = 0; n < kStates; ++n) {
    const float b = (&B[n / 4].x)[n % 4], out = (&C[n / 4].x)[n % 4];
    h[n].x = fmaf(exp2_fast(delta.x * A[n].x), h[n].x, b * inflow.x);
    h[n].y = fmaf(exp2_fast(delta.y * A[n].y), h[n].y, b * inflow.y);
    quad[n / 4].x = fmaf(out, h[n].x, quad[n / 4].x), quad[n / 4].y = fmaf(out, h[n].y, quad[n / 4].y);
  }
#pragma unroll
  for (int n = 0; n < kStates; ++n) *reinterpret_cast<float2*>(states + (n * kChannels + channel) * 4) = h[n];
  const float2 sum{(quad[0].x + quad[2].x) + (quad[1].x + quad[3].x),
                   (quad[0].y + quad[2].y) + (quad[1].y + quad[3].y)};
  const float2 skip = *reinterpret_cast<const float2*>(&sh.small.skip[channel]), z = widen_pair(gate);
  gate = pair_of(fmaf(skip.x, x.x, sum.x) * z.x, fmaf(skip.y, x.y, sum.y) * z.y);
}

template <class S>
__device__ void Layer<S>::scan() {
  begin_phase();
  constexpr int kTasks = S::kStateTiles * kThirds;
  for (int task = warp(); task < kTasks; task += kWarps) {
    const int tile = task / kThirds, index = task % kThirds * 32 + lane(), row = index / (kChannels / 2);
    ring.await_tile(first_tile + kInTiles + tile);
    uint8_t* states = ring.memory(first_tile + kInTiles + tile) + row * kRowBytes;
    scan_pair(states, tile * kTileRows + row, index % (kChannels / 2) * 2);
    before_copies();
    __syncwarp();
    if (lane() == 0) arrive(&sh.done[(first_states + tile) % S::kRing]);
  }
  sync_workers();
  if (warp() < kRowTiles) {
#pragma unroll
    for (int k = 0; k < kChannels / 16; ++k)
      __stcg(&at.group->y[warp()][at.block * (kChannels / 16) + k][lane()], sh.gate[warp()][k][lane()]);
    tell(at, kY, warp(), exchange);
    if (thread == 0) *static_cast<volatile int*>(&sh.told) = first_states / S::kStateTiles + 1;
  }
}

}  // namespace streamssm::cuda::rows::walk
