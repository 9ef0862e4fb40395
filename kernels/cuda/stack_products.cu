#include "stack_products.h"

#include <dlfcn.h>

namespace streamssm::cuda::stack {
namespace {

// The part of cuBLAS that is used, declared here so that the build needs no more than nvcc. Handles, types and
// modes are plain numbers in its C interface; source: the reference of cuBLAS 12 and 13.
struct Cublas {
  int (*create)(void** handle);
  int (*destroy)(void* handle);
  int (*set_stream)(void* handle, cudaStream_t stream);
  int (*set_workspace)(void* handle, void* memory, size_t bytes);
  int (*set_math)(void* handle, int mode);
  int (*gemm)(void* handle, int a_op, int b_op, int m, int n, int k, const void* alpha, const void* a, int a_type,
              int a_pitch, const void* b, int b_type, int b_pitch, const void* beta, void* c, int c_type, int c_pitch,
              int compute, int algorithm);
};

constexpr int kPlain = 0, kTransposed = 1;
constexpr int kComputeFloat32 = 68;        // CUBLAS_COMPUTE_32F: float32 is not rounded to TF32
constexpr int kDefaultAlgorithm = -1;      // CUBLAS_GEMM_DEFAULT
constexpr int kFullSums = 16;              // CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION
constexpr size_t kWorkspace = 32u << 20;   // what cuBLAS asks for on sm_90; more than elsewhere

int data_type(int32_t type) { return type == kFloat32 ? 0 : type == kFloat16 ? 2 : 14; }  // CUDA_R_32F, _16F, _16BF

void* open_cublas() {
  for (const int mode : {RTLD_NOLOAD | RTLD_LAZY, RTLD_LAZY})
    for (const char* name : {"libcublas.so.13", "libcublas.so.12"})
      if (void* library = dlopen(name, mode)) return library;
  return nullptr;
}

template <class F>
bool find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  return function != nullptr;
}

struct Found {
  Cublas table{};
  const char* missing = nullptr;

  Found() {
    void* library = open_cublas();
    if (library == nullptr) {
      missing = "cuBLAS is not found (libcublas.so.13)";
      return;
    }
    const bool whole = find(library, "cublasCreate_v2", table.create) && find(library, "cublasDestroy_v2", table.destroy) &&
                       find(library, "cublasSetStream_v2", table.set_stream) &&
                       find(library, "cublasSetWorkspace_v2", table.set_workspace) &&
                       find(library, "cublasSetMathMode", table.set_math) && find(library, "cublasGemmEx", table.gemm);
    if (!whole) missing = "this cuBLAS lacks a function that is needed (version 12 or 13)";
  }
};

const Found& found() {
  static const Found only;
  return only;
}

void good(int status) {
  if (status != 0) throw Failed{"cuBLAS refused a matrix product"};
}

}  // namespace

const char* no_products() { return found().missing; }

Products::Products(cudaStream_t stream) {
  must(no_products());
  const Cublas& cublas = found().table;
  void *handle = nullptr, *workspace = nullptr;
  good(cublas.create(&handle));
  handle_.reset(handle);
  must(cudaMalloc(&workspace, kWorkspace));
  workspace_.reset(workspace);
  good(cublas.set_stream(handle, stream));  // which forgets the workspace
  good(cublas.set_workspace(handle, workspace, kWorkspace));
  good(cublas.set_math(handle, kFullSums));
}

void Products::Destroy::operator()(void* handle) const { found().table.destroy(handle); }

// cuBLAS counts columns first: what is [rows, depth] here is [depth, rows] there.
void Products::run(const Product& p) const {
  if (p.rows == 0 || p.width == 0) return;
  const float one = 1.0f, none = 0.0f;
  good(found().table.gemm(handle_.get(), kTransposed, kPlain, int(p.width), int(p.rows), int(p.depth), &one, p.weight,
                          data_type(p.type), int(p.depth), p.x, data_type(p.type), int(p.x_pitch), &none, p.y,
                          data_type(p.y_type), int(p.y_pitch), kComputeFloat32, kDefaultAlgorithm));
}

}  // namespace streamssm::cuda::stack
