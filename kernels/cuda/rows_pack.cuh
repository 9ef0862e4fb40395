// Weights in the order in which the kernels of rows_step.cu read them.
#pragma once

#include "rows_project.cuh"
#include "rows_scan.cuh"

namespace streamssm::cuda::rows {

// A matrix [outputs, columns] in tiles of `width` outputs by `part` columns, each `blob` bytes; `ranks` tiles lie side
// by side. What is past the matrix is zero.
struct PackedProduct {
  int32_t outputs, columns, part, width, ranks, vectors;
  uint32_t blob;

  template <class Tile>
  static PackedProduct of(int outputs, int columns) {
    const int part = columns / Tile::kRanks;
    return {outputs, columns, part, Tile::kWidth, Tile::kRanks, Tile::kVectors, Tile::weight_bytes(part)};
  }
  // x_proj, for the tiles of channels of in_proj.
  static PackedProduct of_channels(int outputs, int columns) {
    constexpr int part = ProjectTile<64>::kWidth;
    const int width = (outputs + 15) / 16 * 16;
    return {outputs, columns, part, width, (columns + part - 1) / part, 0, uint32_t(width) * part * 2};
  }
  int tiles() const { return (outputs + width - 1) / width; }
  size_t bytes() const { return size_t(tiles()) * ranks * blob; }
};

// What comes with the weights of rows_project: taps and bias of the convolution, bias of the step sizes.
struct ProjectVectors {
  const float *taps, *conv_bias, *dt_bias;
  int32_t conv_first, conv_end, dt_first, K;
};

__device__ inline float vector_of(const ProjectVectors& v, int vector, int output, int outputs) {
  const int channel = output - v.conv_first, width = v.conv_end - v.conv_first;
  if (channel >= 0 && channel < width) {
    if (vector == kMostTaps) return v.conv_bias[channel];
    return vector < v.K ? v.taps[vector * width + channel] : 0.0f;
  }
  return vector == kMostTaps && output >= v.dt_first && output < outputs ? v.dt_bias[output - v.dt_first] : 0.0f;
}

__device__ inline uint32_t two_weights(const __half* matrix, int64_t rows, int64_t width, int64_t row, int64_t column) {
  const __half2 v = __halves2half2(row < rows && column < width ? matrix[row * width + column] : __half(0.0f),
                                   row < rows && column + 1 < width ? matrix[row * width + column + 1] : __half(0.0f));
  return *reinterpret_cast<const uint32_t*>(&v);
}

// A block a tile.
__global__ void pack_product(PackedProduct p, const __half* matrix, ProjectVectors vectors, uint8_t* packed) {
  const int steps = p.part / 32;
  const int first = int(blockIdx.x) / p.ranks * p.width, from = int(blockIdx.x) % p.ranks * p.part;
  packed += int64_t(blockIdx.x) * p.blob;
  for (int i = threadIdx.x; i < p.width / 8 * steps * 32; i += blockDim.x) {
    const int lane = i % 32, step = i / 32 % steps, row = first + i / 32 / steps * 8 + lane / 4;
    const int k = from + step * 32 + lane % 4 * 2;
    const auto two = [&](int more) { return two_weights(matrix, p.outputs, p.columns, row, k + more); };
    reinterpret_cast<uint4*>(packed)[i] = {two(0), two(8), two(16), two(24)};
  }
  float* numbers = reinterpret_cast<float*>(packed + p.width * p.part * 2);
  for (int i = threadIdx.x; i < p.vectors * p.width; i += blockDim.x)
    numbers[i] = vector_of(vectors, i / p.width, first + i % p.width, p.outputs);
}

// A block a slice; see ScanLayout and the order of the sums in step_tile.
__global__ void pack_scan(ScanLayout at, MambaLayer l, int D, int R, uint8_t* packed) {
  const int first = blockIdx.x * at.part;
  const __half* dt_proj = static_cast<const __half*>(l.dt_proj);
  packed += int64_t(blockIdx.x) * at.bytes;
  for (int i = threadIdx.x; i < at.part / 16 * (at.low_rank / 16) * 32; i += blockDim.x) {
    const int lane = i % 32, step = i / 32 % (at.low_rank / 16), tile = i / 32 / (at.low_rank / 16);
    const int row = first + tile * 16 + lane / 4, k = step * 16 + lane % 4 * 4;
    const auto two = [&](int lower, int more) { return two_weights(dt_proj, D, R, row + lower, k + more); };
    reinterpret_cast<uint4*>(packed)[i] = {two(0, 0), two(8, 0), two(0, 2), two(8, 2)};
  }
  for (int i = threadIdx.x; i < at.part; i += blockDim.x) {
    for (int n = 0; n < kStates; ++n)
      reinterpret_cast<float*>(packed + at.A)[n * at.part + i] = l.A[int64_t(n) * D + first + i] * kPerOctave;
    reinterpret_cast<float*>(packed + at.bias)[i] = l.dt_bias[first + i];
    reinterpret_cast<float*>(packed + at.skip)[i] = l.skip[first + i];
  }
}

__global__ void pack_decays(const float* A, int H, float* to) {
  for (int i = threadIdx.x; i < H; i += blockDim.x) to[i] = A[i] * kPerOctave;
}

}  // namespace streamssm::cuda::rows
