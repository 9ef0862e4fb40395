// Launching the kernels of a step of many rows: which tiles, how many lanes, what overlaps.
#pragma once

#include <type_traits>

#include "rows_dual.cuh"
#include "rows_finish.cuh"
#include "rows_head.cuh"
#include "rows_pack.cuh"
#include "rows_project.cuh"
#include "step_host.h"

namespace streamssm::cuda::rows {

struct Launch {
  dim3 grid;
  int threads, cluster;
  size_t shared;
  bool overlaps;     // may start before its predecessor has ended
  int priority = 0;  // the less, the sooner its blocks start if others wait too
};

template <class Call>
void start(void (*kernel)(Call), const Launch& l, const Call& call, cudaStream_t stream) {
  cudaLaunchAttribute attributes[3];
  cudaLaunchConfig_t config{};
  config.gridDim = l.grid, config.blockDim = unsigned(l.threads), config.dynamicSmemBytes = l.shared;
  config.stream = stream, config.attrs = attributes;
  if (l.cluster > 1) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeClusterDimension;
    a.val.clusterDim.x = unsigned(l.cluster), a.val.clusterDim.y = a.val.clusterDim.z = 1;
  }
  if (l.priority) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributePriority;
    a.val.priority = l.priority;
  }
  if (l.overlaps) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    a.val.programmaticStreamSerializationAllowed = 1;
  }
  check(cudaLaunchKernelEx(&config, kernel, call));
}

// Calls use(number) with 16, 32 or 64 as a constant.
template <class Use>
void for_rows(int rows, const Use& use) {
  switch (rows) {
    case 16:
      return use(std::integral_constant<int, 16>{});
    case 32:
      return use(std::integral_constant<int, 32>{});
    default:
      return use(std::integral_constant<int, 64>{});
  }
}

// The smallest tile that has all rows, or the largest that there is.
inline int tile_for(int rows, int most) { return std::min(rows <= 16 ? 16 : rows <= 32 ? 32 : 64, most); }

struct Device {
  int multiprocessors = 0, shared = 0, first_priority = 0;

  Device() {
    int device = 0, major = 0, last_priority = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetStreamPriorityRange(&last_priority, &first_priority));
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    if (major < 9) throw Unusable{"steps of many rows need compute capability 9.0 or later"};
  }
  int room() const { return shared - 256; }  // a kernel has a little besides
  // All shared memory that there is: kernels that overlap share a multiprocessor only if they agree on its split, and
  // the limit is that of all models, so a small one must not lower it.
  template <class Kernel>
  void allow(Kernel kernel, size_t needed) const {
    cudaFuncAttributes own{};
    check(cudaFuncGetAttributes(&own, kernel));
    if (own.ptxVersion < 90) throw Unusable{"steps of many rows need a library built for 9.0 or later"};
    const int most = std::max(int(needed), shared - int(own.sharedSizeBytes));
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  }
  template <class Tile>
  bool fits_head() const {
    return Tile::kSharedBytes <= size_t(room());
  }
  // Those that fit.
  template <class... Tiles>
  void allow_head() const {
    ((fits_head<Tiles>() ? allow(rows_head<Tiles>, Tiles::kSharedBytes) : void()), ...);
  }
};

// The largest tile of rows for which bytes_of(rows) is there.
template <class Bytes>
int most_rows_of(const Device& device, const Bytes& bytes_of) {
  for (const int rows : {64, 32, 16})
    if (bytes_of(rows) <= size_t(device.room())) return rows;
  throw Unusable{"the model is too wide for steps of many rows"};
}

// Throws what is wrong with a call.
inline void refuse(const RowsCall& call, int64_t most, bool can_embed, bool can_read) {
  const auto aligned = [](const void* p) { return uintptr_t(p) % 16 == 0; };
  if (call.B < 0 || call.B > most) throw Unusable{"more rows than the model was created for"};
  if (!call.tokens == !call.x) throw Unusable{"a call gives either tokens or x"};
  if (call.tokens && !can_embed) throw Unusable{"tokens need a model with an embedding"};
  if (call.logits && !can_read) throw Unusable{"logits need a model with an embedding and a last norm"};
  for (const Pool& pool : {call.conv, call.ssm}) {
    if (!aligned(pool.state) || !aligned(pool.next)) throw Unusable{"states must be 16-byte aligned"};
    if (pool.layer_stride % 4 || pool.slot_stride % 4) throw Unusable{"strides of states must be multiples of 4"};
  }
  if (!aligned(call.x) || !aligned(call.residual)) throw Unusable{"x and residual must be 16-byte aligned"};
  if (uintptr_t(call.logits) % 8) throw Unusable{"logits must be 8-byte aligned"};
}

// Side streams for lanes of rows that run beside each other.
class Lanes {
 public:
  static constexpr int kMost = 4;
  Lanes() {
    for (int i = 0; i + 1 < kMost; ++i) {
      check(cudaStreamCreateWithFlags(&sides_[i], cudaStreamNonBlocking));
      check(cudaEventCreateWithFlags(&done_[i], cudaEventDisableTiming));
    }
    check(cudaEventCreateWithFlags(&begun_, cudaEventDisableTiming));
  }
  Lanes(const Lanes&) = delete;
  Lanes& operator=(const Lanes&) = delete;
  ~Lanes() {
    for (int i = 0; i + 1 < kMost; ++i) {
      if (sides_[i]) cudaStreamDestroy(sides_[i]);
      if (done_[i]) cudaEventDestroy(done_[i]);
    }
    if (begun_) cudaEventDestroy(begun_);
  }
  // The stream of a lane; lane 0 is the caller's.
  cudaStream_t stream(int lane, cudaStream_t caller) const { return lane ? sides_[lane - 1] : caller; }
  // Calls work() between fork and join. They are joined after a failure too: nothing of a step outlives it, and no
  // stream stays in a capture.
  template <class Work>
  void run(int lanes, cudaStream_t caller, const Work& work) {
    const char* failed = guarded([&] { fork(lanes, caller), work(); });
    const cudaError_t joined = join(lanes, caller);
    if (failed) throw Unusable{failed};
    check(joined);
  }

 private:
  void fork(int lanes, cudaStream_t caller) {
    if (lanes > 1) check(cudaEventRecord(begun_, caller));
    for (int i = 1; i < lanes; ++i) check(cudaStreamWaitEvent(sides_[i - 1], begun_, 0));
  }
  cudaError_t join(int lanes, cudaStream_t caller) {
    cudaError_t first = cudaSuccess;
    for (int i = 1; i < lanes; ++i)
      for (const cudaError_t error :
           {cudaEventRecord(done_[i - 1], sides_[i - 1]), cudaStreamWaitEvent(caller, done_[i - 1], 0)})
        if (first == cudaSuccess) first = error;
    return first;
  }

  cudaStream_t sides_[kMost - 1] = {};
  cudaEvent_t done_[kMost - 1] = {}, begun_ = nullptr;
};

}  // namespace streamssm::cuda::rows
