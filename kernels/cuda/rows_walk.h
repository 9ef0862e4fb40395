// One launch that walks all layers of a Mamba stack with one item of each of many rows.
//
// The other kernels of rows_step.cu are three a layer, and at 256 rows the memory idles while they hand on. Here 32
// blocks form a group that owns up to 64 rows and walks on its own: while one group multiplies, another moves states.
// It is built for one shape, that of mamba1_130m; other models take the other kernels.
#pragma once

#include <memory>

#include "rows_api.h"
#include "rows_tools.cuh"

namespace streamssm::cuda::rows {

// What comes before and after the layers: the residual stream as rows_embed leaves it, and what rows_head takes.
struct WalkEnds {
  const float* residual;  // [B, d_model]
  Squares first;          // of the rows of `residual`
  const float* norm;      // of the first layer
  __half* normed;         // [B, d_model], of the last norm, or null
};

class Walk {
 public:
  // Null if the model has another shape, never so many rows, or the GPU no room for it.
  static std::unique_ptr<Walk> make(const MambaModel& model, int64_t most_rows);
  virtual ~Walk() = default;
  // Whether it is faster than the other kernels, as measured on an H100.
  virtual bool takes(int rows) const = 0;
  virtual void run(const RowsCall& call, const WalkEnds& ends, cudaStream_t stream) = 0;
  // What rows_head needs of the rows: squares now, and those whose scale `normed` has.
  virtual Squares now() const = 0;
  virtual Squares before() const = 0;
};

}  // namespace streamssm::cuda::rows
