// The functions of kernels/cuda that the plugins call, without a GPU: what was asked is kept as text, for the
// tests to read, and fake_fail makes the next launch fail. Device memory is the host's.
#include <cstdlib>
#include <cstring>
#include <string>

#include "../../kernels/cuda/api.h"
#include "../../kernels/tensorrt/tables.h"

using namespace streamssm::cuda;

namespace {

std::string asked;
const char* failure = nullptr;

const char* answer(const std::string& text) {
  asked += text + "\n";
  const char* const reason = failure;
  failure = nullptr;
  return reason;
}

std::string show(const void* address) { return std::to_string(uintptr_t(address)); }
std::string show(int64_t number) { return std::to_string(number); }

template <class... Values>
std::string row(const char* name, const Rows& rows, Values... values) {
  std::string text = std::string(name) + " B=" + show(rows.B) + " T=" + show(rows.T) + " slots=" + show(rows.slots) +
                     " lengths=" + show(rows.lengths);
  ((text += " " + show(values)), ...);
  return text;
}

}  // namespace

#define FAKE extern "C" __attribute__((visibility("default")))

// What was asked since the last call.
FAKE const char* fake_asked() {
  static std::string lent;
  lent.swap(asked);
  asked.clear();
  return lent.c_str();
}
FAKE void fake_fail() { failure = "the GPU is on fire"; }

const char* streamssm_cuda_causal_conv1d(const ConvCall* c, void*) {
  return answer(row("conv", c->rows, c->D, c->K, int64_t(c->type), int64_t(c->silu), c->x, c->weight, c->bias,
                    c->state, c->next, c->y, c->x_pitch));
}
const char* streamssm_cuda_selective_scan(const ScanCall* c, void*) {
  return answer(row("scan", c->rows, c->D, c->N, int64_t(c->type), c->x, c->dt, c->B, c->C, c->z, c->A, c->skip,
                    c->dt_bias, c->state, c->next, c->y, c->z_pitch, c->bc_pitch));
}
const char* streamssm_cuda_state_space_dual(const DualCall* c, void*) {
  return answer(row("dual", c->rows, c->H, c->P, c->G, c->N, int64_t(c->type), c->x, c->dt, c->B, c->C, c->A, c->skip,
                    c->state, c->next, c->y, c->x_pitch, c->bc_pitch));
}
const char* streamssm_cuda_sliding_window_attention(const AttentionCall* c, void*) {
  return answer(row("attention", c->rows, c->Hq, c->Hkv, c->dh, c->W, c->half, int64_t(c->type), c->q, c->k, c->v,
                    c->key, c->value, c->next_key, c->next_value, c->position, c->next_position, c->y) +
                " scale=" + std::to_string(c->scale));
}
const char* streamssm_cuda_log_mel(const LogMelCall* c, void*) {
  return answer(row("log_mel", c->rows, c->hop, c->points, c->length, c->bands, c->kept, int64_t(c->type), c->x,
                    c->window, c->filters, c->state, c->next, c->y) +
                " eps=" + std::to_string(c->eps));
}
const char* streamssm_cuda_roots(int64_t points, float*, void*) { return answer("roots " + show(points)); }
const char* streamssm_cuda_wait() { return nullptr; }
const char* streamssm_cuda_take(int64_t bytes, void** memory) {
  *memory = bytes ? std::malloc(size_t(bytes)) : nullptr;
  return nullptr;
}
void streamssm_cuda_give(void* memory) {
  asked += memory == nullptr ? "give nothing\n" : "give\n";
  std::free(memory);
}
const char* streamssm_tensorrt_rotation(const float*, int64_t half, int64_t W, float*, cudaStream_t) {
  return answer("rotation " + show(half) + " " + show(W));
}
const char* streamssm_tensorrt_forget(void* memory, int64_t bytes) {
  if (memory != nullptr) std::memset(memory, 255, size_t(bytes));
  return answer("forget " + show(bytes));
}
