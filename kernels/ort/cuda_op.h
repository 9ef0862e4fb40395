// From a C++ class to an operator of ONNX Runtime's CUDA provider; see op.h for what the class has.
// Here compute() gets a CudaContext: tensors are device memory, work goes to stream().
#pragma once

#include "../cuda/api.h"
#include "../cuda/shapes.h"
#include "op.h"

namespace streamssm::ort {

namespace api {

using KernelContext_GetGPUComputeStream = Function<193, OrtStatus*(const OrtKernelContext*, void** stream)>;

}  // namespace api

class CudaContext : public Context {
 public:
  CudaContext(const Runtime& runtime, OrtKernelContext* context) : Context(runtime, context) {
    runtime.call<api::KernelContext_GetGPUComputeStream>(static_cast<const OrtKernelContext*>(context), &stream_);
  }

  void* stream() const { return stream_; }

 private:
  void* stream_ = nullptr;
};

// Passes on what a function of the CUDA library answers.
inline void check_cuda(const char* reason) {
  if (reason != nullptr) throw Failure(reason, runtime_exception);
}

template <Type kData>
constexpr cuda::Type cuda_type() {
  return kData == float32 ? cuda::kFloat32 : kData == float16 ? cuda::kFloat16 : cuda::kBfloat16;
}

// The inputs of a call, and their shapes for cuda/shapes.h.
template <int kCount>
struct Inputs {
  explicit Inputs(const Context& context) {
    for (int i = 0; i < kCount; ++i) {
      tensors[i] = context.input(size_t(i));
      shapes[i].rank = tensors[i].rank;
      for (int d = 0; d < tensors[i].rank; ++d) shapes[i].dims[d] = tensors[i].dims[d];
    }
  }
  const Tensor& operator[](int i) const { return tensors[i]; }

  // check(shapes); what does not fit becomes this runtime's failure.
  template <class Check>
  auto sizes(const Check& check) const {
    try {
      return check(shapes);
    } catch (const cuda::Mismatch& mismatch) {
      throw Failure(mismatch.what());
    }
  }

  Tensor tensors[kCount];
  cuda::Shape shapes[kCount];
};

// Device memory that lives as long as a node.
class Table {
 public:
  Table() = default;
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;
  ~Table() { streamssm_cuda_give(memory_); }

  // Memory for `count` floats; what was in it is lost if it grows.
  float* hold(int64_t count) {
    if (count > count_) {
      streamssm_cuda_give(memory_);
      memory_ = nullptr, count_ = 0;
      check_cuda(streamssm_cuda_take(count * int64_t(sizeof(float)), &memory_));
      count_ = count;
    }
    return static_cast<float*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  int64_t count_ = 0;
};

namespace detail {

// What Definition asks of an operator; only CudaDefinition calls it.
template <class Op>
struct OnDevice : Op {
  using Op::Op;
  void compute(Context& context) const { Op::compute(static_cast<CudaContext&>(context)); }
};

template <class Op>
struct CudaDefinition : Definition<OnDevice<Op>> {
  static OrtStatus* compute_on_device(void* kernel, OrtKernelContext* raw) {
    const auto* self = static_cast<const Kernel<OnDevice<Op>>*>(kernel);
    return guarded(self->runtime, [&] {
      CudaContext context(self->runtime, raw);
      self->op.compute(context);
    });
  }

  CudaDefinition() {
    this->GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return "CUDAExecutionProvider"; };
    this->KernelComputeV2 = compute_on_device;
  }
};

}  // namespace detail

template <template <Type> class Op>
std::vector<const OrtCustomOp*> every_cuda_type() {
  static const detail::CudaDefinition<Op<float32>> single;
  static const detail::CudaDefinition<Op<float16>> half;
  static const detail::CudaDefinition<Op<bfloat16>> brain;
  return {&single, &half, &brain};
}

}  // namespace streamssm::ort
