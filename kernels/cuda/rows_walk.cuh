// The walk's kernel: three warps feed the others, which go through the layers; see rows_walk_layer.cuh.
#pragma once

#include "rows_walk_feed.cuh"
#include "rows_walk_input.cuh"
#include "rows_walk_middle.cuh"
#include "rows_walk_output.cuh"

namespace streamssm::cuda::rows::walk {

template <class S>
__device__ void compute(const Call& c, S& sh, const Place& at, uint32_t exchange) {
  int layers = 0;
  for_passes(c, at, [&](int first) {
    Layer<S> l{c, sh, at, Ring<S>{sh}, rows_from(c, first), first, 0, 0, exchange, 0, int(threadIdx.x), 0};
    l.begin();
    sync_with_helper();
    for (l.layer = 0; l.layer < c.layers; ++l.layer, ++layers) {
      l.exchange = ++exchange, l.first_tile = layers * S::kLayerTiles, l.small_parity = layers & 1;
      l.first_states = layers * S::kStateTiles;
      Taps taps[Layer<S>::kConvMine];
      l.project(taps);
      l.multiply_channels();
      sync_workers();
      l.exchange_sums(taps);
      l.find_steps();
      l.scan();
      l.finish();
    }
  });
  // all blocks of the group have read the count: this one has had something from each
  if (at.block == 0 && threadIdx.x == 0) at.group->before = exchange;
}

template <int kRows>
__global__ void __launch_bounds__(kThreads, 1) rows_walk(const __grid_constant__ Call c) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t memory[];
  using S = Shared<kRows>;
  S& sh = *reinterpret_cast<S*>(memory);
  const int warp = threadIdx.x / 32, group = blockIdx.x / kBlocks;
  const Place at{c.exchanges + group, group, int(blockIdx.x) % kBlocks};
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kRing; ++i) {
      barrier_of(&sh.full[i], 32), barrier_of(&sh.empty[i], kWarps);
      barrier_of(&sh.done[i], kThirds);
    }
    barrier_of(&sh.small_full, 1), barrier_of(&sh.small_empty, kWarps);
    barriers_ready();
    sh.told = 0;
  }
  const uint32_t before = *static_cast<volatile uint32_t*>(&at.group->before);
  __syncthreads();
  if (warp == kProducer) {
    Producer<S>{c, sh, at, int(threadIdx.x) % 32}.run();
  } else if (warp == kHelper) {
    find_factors(c, sh, at, before);
  } else if (warp == kWriter) {
    write_states(c, sh, at);
  } else {
    compute(c, sh, at, before);
  }
#endif
}

}  // namespace streamssm::cuda::rows::walk
