// Setting a fused step up: its place on the GPU, its memory, its launch.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "launch.h"
#include "step_block.cuh"

namespace streamssm::cuda {

struct Unusable {
  const char* reason;
};

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw Unusable{cudaGetErrorString(error)};
}

// Device memory that lives as long as a model.
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    for (void* pointer : owned_) cudaFree(pointer);
  }
  // Zeroed.
  template <class Element>
  Element* take(size_t count) {
    void* pointer = nullptr;
    check(cudaMalloc(&pointer, std::max<size_t>(count * sizeof(Element), 16)));
    owned_.push_back(pointer);
    check(cudaMemset(pointer, 0, count * sizeof(Element)));
    return static_cast<Element*>(pointer);
  }

 private:
  std::vector<void*> owned_;
};

inline int round_up(int value, int step) { return (value + step - 1) / step * step; }

// Tile sizes in bytes; each begins at a multiple of 16.
inline void lay_out(Stack& s, const int (&bytes)[3], int most_extra, int d_model) {
  int at = 0, largest = kHeadRows * d_model * 2;
  for (int i = 0; i < 3; ++i) {
    s.tile_at[i] = at;
    s.tile_bytes[i] = round_up(bytes[i], 16);
    const int whole = s.tile_bytes[i] + (i == 1 ? most_extra * d_model * 2 : 0);
    at += whole;
    largest = std::max(largest, whole + (i == 0 ? d_model * 4 : 0));
  }
  s.layer_bytes = at;
  s.slot_bytes = round_up(largest, 128);
}

inline cudaLaunchConfig_t launch_config(cudaLaunchAttribute (&attributes)[2], size_t shared, cudaStream_t stream) {
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = kRanks;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeCooperative;  // all blocks run at once, or the launch is refused
  attributes[1].val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = kBlocks;
  config.blockDim = kThreads;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return config;
}

inline void refuse_old_device() {
  int device = 0, major = 0, blocks = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device));
  if (major < 9) throw Unusable{"the fused step needs thread block clusters: compute capability 9.0 or later"};
  if (blocks < kBlocks) throw Unusable{"the fused step needs 96 multiprocessors"};
}

// Gives the ring all the shared memory there is.
template <class Kernel>
void place(Kernel kernel, Stack& s, size_t& shared) {
  int device = 0, most = 0, clusters = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel));
  // code for an older GPU, compiled anew by the driver, is an empty kernel
  if (attributes.ptxVersion < 90) throw Unusable{"the fused step needs a library built for 9.0 or later"};
  s.slots = std::min<int>(kMostSlots, (most - int(attributes.sharedSizeBytes)) / int(s.slot_bytes));
  if (s.slots < 4) throw Unusable{"the model is too wide for the fused step's shared memory"};
  shared = size_t(s.slots) * s.slot_bytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
  cudaLaunchAttribute at[2];
  cudaLaunchConfig_t config = launch_config(at, shared, nullptr);
  check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
  if (clusters < kClusters) throw Unusable{"this GPU cannot run the fused step's 12 clusters of 8 blocks at once"};
}

// Calls make() and turns what it throws into a reason.
template <class Make>
const char* guarded(const Make& make) {
  try {
    make();
    return nullptr;
  } catch (const Unusable& unusable) {
    cudaGetLastError();
    return unusable.reason;
  } catch (const std::bad_alloc&) {
    return "out of memory";
  }
}

}  // namespace streamssm::cuda
