// The walk's host side and its weights; see rows_walk.h.
#include "rows_walk.h"

#include "rows_walk.cuh"
#include "step_host.h"

namespace streamssm::cuda::rows {
namespace walk {
namespace {

__device__ inline uint32_t two_of(const __half* matrix, int64_t width, int row, int column) {
  return *reinterpret_cast<const uint32_t*>(matrix + row * width + column);
}

// A block's weights of one layer, in the order in which its warps read them; see InputProduct and OutputProduct.
__global__ void pack_walk(MambaLayer l, const float* next_norm, uint8_t* packed) {
  const int block = blockIdx.x, channel = block * kChannels, thread = threadIdx.x;
  packed += block * kLayerBytes;
  const auto *in_proj = static_cast<const __half*>(l.in_proj), *out_proj = static_cast<const __half*>(l.out_proj);
  const auto *x_proj = static_cast<const __half*>(l.x_proj), *dt_proj = static_cast<const __half*>(l.dt_proj);
  uint4* to = reinterpret_cast<uint4*>(packed);
  for (int i = thread; i < kInTiles * kTileBytes / 16; i += blockDim.x) {  // [32 of the sum][8 outputs][lane]
    const int lane = i % 32, column = i / 32 % 12, k = i / 32 / 12 * 32 + lane % 4 * 2;
    const int row = channel + column % 6 * 8 + lane / 4 + (column < 6 ? 0 : kInner);
    const auto two = [&](int more) { return two_of(in_proj, kModel, row, k + more); };
    to[i] = {two(0), two(8), two(16), two(24)};
  }
  to += kInTiles * kTileBytes / 16;
  for (int i = thread; i < kOutTiles * kTileBytes / 16; i += blockDim.x) {
    const int lane = i % 32, column = i / 32 % 3, k = i / 32 / 3 * 32 + lane % 4 * 2;
    const int row = block * kOutputs + column * 8 + lane / 4;
    const auto two = [&](int more) { return two_of(out_proj, kInner, row, k + more); };
    to[i] = {two(0), two(8), two(16), two(24)};
  }
  Small& small = *reinterpret_cast<Small*>(to + kOutTiles * kTileBytes / 16);
  for (int i = thread; i < kProjected / 8 * 96; i += blockDim.x) {
    const int lane = i % 32, row = i / 96 * 8 + lane / 4, k = channel + i / 32 % 3 * 16 + lane % 4 * 2;
    small.x_proj[i / 96][i / 32 % 3][lane] = {two_of(x_proj, kInner, row, k), two_of(x_proj, kInner, row, k + 8)};
  }
  for (int i = thread; i < kChannels / 8 * 96; i += blockDim.x) {
    const int lane = i % 32, row = channel + i / 96 * 8 + lane / 4, k = i / 32 % 3 * 16 + lane % 4 * 2;
    small.dt_proj[i / 96][i / 32 % 3][lane] = {two_of(dt_proj, kRank, row, k), two_of(dt_proj, kRank, row, k + 8)};
  }
  for (int i = thread; i < kChannels; i += blockDim.x) {
    for (int k = 0; k < kTaps; ++k) small.taps[k][i] = l.conv_weight[k * kInner + channel + i];
    for (int n = 0; n < kStates; ++n) small.A[n][i] = l.A[n * kInner + channel + i] * kPerOctave;
    small.conv_bias[i] = l.conv_bias[channel + i], small.dt_bias[i] = l.dt_bias[channel + i];
    small.skip[i] = l.skip[channel + i];
  }
  for (int i = thread; i < kOutputs; i += blockDim.x)
    small.norm[i] = next_norm ? next_norm[block * kOutputs + i] : 0.0f;
}

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// A function of the driver, found at run time; null if it is too old.
EncodeTiled encode_tiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  const auto error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? EncodeTiled(function) : nullptr;
}

// Boxes of a block's part of a slot. Where a slot has all its layers side by side, how many slots there are is not
// known, and not needed.
CUtensorMap map_of(EncodeTiled encode, const float* states, const Pool& pool, int layers) {
  CUtensorMap map;
  const int64_t slots = pool.layer_stride > pool.slot_stride ? pool.layer_stride / pool.slot_stride : 1 << 20;
  const cuuint64_t sizes[4] = {kInner, kStates, cuuint64_t(slots), cuuint64_t(layers)};
  const cuuint64_t strides[3] = {kInner * 4, cuuint64_t(pool.slot_stride) * 4, cuuint64_t(pool.layer_stride) * 4};
  const cuuint32_t box[4] = {kChannels, kStates, 1, 1}, ones[4] = {1, 1, 1, 1};
  if (encode(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, const_cast<float*>(states), sizes, strides, box, ones,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_NONE,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS)
    throw Unusable{"the states cannot be described to the copy engine"};
  return map;
}

// Calls use(number) with 16, 32 or 64 as a constant: rows of a group at a time.
template <class Use>
void for_rows(int rows, const Use& use) {
  if (rows <= 16) return use(std::integral_constant<int, 16>{});
  if (rows <= 32) return use(std::integral_constant<int, 32>{});
  use(std::integral_constant<int, 64>{});
}

// Whether all blocks of the walk run at once.
template <int kRows>
bool fits() {
  int device = 0, most = 0, multiprocessors = 0, blocks = 0;
  cudaFuncAttributes own{};
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  check(cudaFuncGetAttributes(&own, rows_walk<kRows>));
  if (own.ptxVersion < 90 || int(sizeof(Shared<kRows>)) > most) return false;
  check(cudaFuncSetAttribute(rows_walk<kRows>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<kRows>)));
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, rows_walk<kRows>, kThreads, sizeof(Shared<kRows>)));
  return blocks * multiprocessors >= kGroups * kBlocks;
}

constexpr int kFewestRows = 33;  // below, the other kernels are as fast or faster, on an H100

class Mamba : public Walk {
 public:
  Mamba(const MambaModel& m, int64_t most) {
    uint8_t* packed = memory_.take<uint8_t>(size_t(m.layers) * kBlocks * kLayerBytes);
    for (int l = 0; l < m.layers; ++l) {
      const float* norm = l + 1 < m.layers ? m.layer[l + 1].norm : m.norm;
      pack_walk<<<kBlocks, 256>>>(m.layer[l], norm, packed + l * kBlocks * kLayerBytes);
    }
    check(cudaGetLastError());
    call_.layers = m.layers, call_.eps = m.eps, call_.packed = packed;
    call_.exchanges = memory_.take<Exchanges>(kGroups);
    call_.now = memory_.take<float>(most * kBlocks), call_.scaled_by = memory_.take<float>(most * kBlocks);
    check(cudaDeviceSynchronize());
  }

  bool takes(int rows) const override { return rows >= kFewestRows; }
  Squares now() const override { return {call_.now, kBlocks, 1.0f / kModel, call_.eps}; }
  Squares before() const override { return {call_.scaled_by, kBlocks, 1.0f / kModel, call_.eps}; }

  void run(const RowsCall& call, const WalkEnds& ends, cudaStream_t stream) override {
    Call c = call_;
    const int B = int(call.B), passes = (B + kGroups * kMostRows - 1) / (kGroups * kMostRows);
    c.rows = {B, 0, call.slots};
    c.each = (B + kGroups * passes - 1) / (kGroups * passes);
    c.conv = call.conv;
    c.states = map_of(encode_, call.ssm.state, call.ssm, c.layers);
    c.next_states = map_of(encode_, call.ssm.next, call.ssm, c.layers);
    c.residual = ends.residual, c.first = ends.first, c.norm = ends.norm;
    c.next_residual = call.residual, c.normed = ends.normed;
    for_rows(c.each, [&](auto rows) {
      cudaLaunchAttribute cooperative[1];
      cooperative[0].id = cudaLaunchAttributeCooperative, cooperative[0].val.cooperative = 1;
      cudaLaunchConfig_t config{};
      config.gridDim = kGroups * kBlocks, config.blockDim = kThreads;
      config.dynamicSmemBytes = sizeof(Shared<rows.value>), config.stream = stream;
      config.attrs = cooperative, config.numAttrs = 1;
      check(cudaLaunchKernelEx(&config, rows_walk<rows.value>, c));
    });
  }

 private:
  Memory memory_;
  EncodeTiled encode_ = encode_tiled();
  Call call_{};
};

}  // namespace
}  // namespace walk

std::unique_ptr<Walk> Walk::make(const MambaModel& m, int64_t most) {
  using namespace walk;
  const bool shape = m.d_model == kModel && m.D == kInner && m.N == kStates && m.R == kRank && m.K == kTaps;
  if (!shape || most < kFewestRows || !encode_tiled()) return nullptr;
  if (!fits<16>() || !fits<32>() || !fits<64>()) return nullptr;
  return std::make_unique<walk::Mamba>(m, most);
}

}  // namespace streamssm::cuda::rows
