// StateSpaceDual in matrix form, by chunks of 64 items (Dao & Gu 2024, section 6): with L(t, s) the decay from
// item s to item t,
//
//     y_t = sum_{s <= t} (C_t . B_s) L(t, s) dt_s x_s + L(t, start) C_t h + D x_t
//     h'  = L(end, start) h + sum_s L(end, s) B_s dt_s x_s
//
// on tensor cores, as exact as float32: see fragments.cuh. The state stays in registers, where the accumulators of
// products are, and what a chunk adds to it is summed apart and then added in float32, so that nothing drifts.
//
// No decay is a difference of two sums. Chunks have tiles of 16 items; L(t, s) is the decay from s to the
// end of its tile, times that of the tiles between, times that from the start of t's tile to t; within a
// tile each is summed by itself.
//
// Four warps have 16 columns of the state, a quarter of the states each, and an output is the sum of their four
// parts: of a quarter of the states, and of a tile of s. A block has 64 columns, or 16 where there would be few
// blocks or shared memory is small; the bits are the same.
//
// A call of kLongCall items and more is cut into spans of kSpan that run side by side, in three kernels:
// what each span but the last adds to a state of zero; one span after the other, the states they begin with;
// every span again, for the outputs. What they hand on waits in y, where the span's own outputs will be, and
// for the last span in `next`.
#include "state_space_dual_chunk.cuh"

namespace streamssm::cuda {
namespace {

#if __CUDA_ARCH__ >= 800

// The state of a part as its warp begins: from a pool, or what the spans before hand on.
template <class S, class Data>
__device__ void begin(const DualCall& c, const Plan& plan, const Place& at, int64_t slot, const Own& own,
                      float (&h)[S::kVectors][4]) {
  const int64_t kept = (slot * c.H + at.head) * c.N * c.P, p = at.p + own.group * kColumns;
  const float* from = plan.pass == kOutputs ? c.next : c.state;
  const bool real = slot >= 0 && plan.pass != kLast && own.part * S::kRange < S::kN;
  if (plan.pass == kOutputs && at.last < c.rows.T) {
#pragma unroll
    for (int j = 0; j < S::kVectors; ++j) {
      const int i = (own.part * S::kVectors + j) * 32 + threadIdx.x % 32;
      const float4 v = real ? *handed<Data>(c, at.row + at.first, at.head, p, i) : float4{};
      h[j][0] = v.x, h[j][1] = v.y, h[j][2] = v.z, h[j][3] = v.w;
    }
  } else {
    states<S>(own.part, p, h, [&](float& v, int64_t n, int64_t column) {
      v = real && n < c.N && column < c.P ? from[kept + n * c.P + column] : 0.0f;
    });
  }
}

template <class S, class Data>
__device__ void end(const DualCall& c, const Plan& plan, const Place& at, int64_t slot, const Own& own,
                    float (&h)[S::kVectors][4]) {
  const int64_t kept = (slot * c.H + at.head) * c.N * c.P, p = at.p + own.group * kColumns;
  if (slot < 0 || own.part * S::kRange >= S::kN || (plan.pass == kOutputs && at.last < c.rows.T)) return;
  if (plan.pass == kLast) {
#pragma unroll
    for (int j = 0; j < S::kVectors; ++j) {
      const int i = (own.part * S::kVectors + j) * 32 + threadIdx.x % 32;
      *handed<Data>(c, at.row + at.first, at.head, p, i) = {h[j][0], h[j][1], h[j][2], h[j][3]};
    }
  } else {
    states<S>(own.part, p, h, [&](float& v, int64_t n, int64_t column) {
      if (n < c.N && column < c.P) c.next[kept + n * c.P + column] = v;
    });
  }
}

template <class S, class Data>
__device__ void work(const DualCall& c, const Steps& steps, const Plan& plan, const Place& at, int64_t slot,
                     typename S::Common& common, typename S::Chunk* chunks) {
  const Own own = own_part();
  const int item = threadIdx.x / 32 % kTiles * kTile + threadIdx.x % kTile;  // whose step size a thread has
  const int64_t stop = min(at.last, at.items), ahead = plan.stages == 2 ? kItems : 0;
  const auto dt_at = [&](int64_t first) {
    const int64_t t = first + item;
    return t < stop ? *data<Data>(c.dt, (at.row + t) * steps.pitch + at.head) : zero<Data>();
  };
  Data next_dt = dt_at(at.first);
  float h[S::kVectors][4];
  begin<S, Data>(c, plan, at, slot, own, h);
  for (int i = threadIdx.x; i < S::kWide; i += S::kThreads)
    common.skip[i] = at.p + i < c.P ? c.skip[at.head * c.P + at.p + i] : 0.0f;
  const float rate = c.A[at.head];
  int64_t first = at.first - ahead;
  int stage = 0;  // of the chunk that is fetched
#pragma unroll 1
  for (; first < stop; first += kItems) {
    __syncthreads();  // nothing reads that stage any more
    if (first + ahead < stop) fetch<S, Data>(c, plan, at, first + ahead, chunks[stage]);
    copies_end();
    stage ^= plan.stages - 1;
    if (first < at.first) continue;
    const float dt = first + item < stop ? steps.size(widen(next_dt), at.head) : 0.0f;
    next_dt = dt_at(first + kItems);
    if (S::kGroups == 1 || threadIdx.x < 32 * kTiles) weigh(dt, rate, common);
    if (ahead) {
      copies_wait<1>();
    } else {
      copies_wait<0>();
    }
    __syncthreads();
    const typename S::Chunk& chunk = chunks[stage];  // of two, the one that is not being fetched
    if (plan.pass != kLast) add_part<S, Data>(chunk, common, own, h, common.sums[own.group][own.part]);
    update<S, Data>(chunk, common, own, h);
    if (plan.pass == kLast) continue;
    __syncthreads();
    finish<S, Data>(c, plan, at, first, chunk, common);
  }
  if (plan.pass != kLast) {
    __syncthreads();  // what was handed on has been read
    clear<Data>(c, at, max(first, at.first), S::kWide);
  }
  end<S, Data>(c, plan, at, slot, own, h);
}

#endif

template <int kN, int kGroups, class Data>
__global__ void __launch_bounds__(128 * kGroups, kGroups > 1 ? 1 : sizeof(Data) == 2 ? 4 : 2)
    dual_chunks(DualCall c, Steps steps, Plan plan) {
#if __CUDA_ARCH__ >= 800
  using S = Shape<kN, kGroups, Data>;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& common = *reinterpret_cast<typename S::Common*>(memory);
  auto* chunks = reinterpret_cast<typename S::Chunk*>(memory + sizeof(typename S::Common));
  const Row row = row_of(c.rows, blockIdx.x);
  const int64_t length = plan.pass == kWhole ? c.rows.T : kSpan, start = blockIdx.z / plan.columns * length;
  const int64_t head = blockIdx.y, p = int64_t(blockIdx.z % plan.columns) * S::kWide;
  const Place at{int64_t(blockIdx.x) * c.rows.T, row.items, start, min(start + length, c.rows.T), head,
                 head / (c.H / c.G), p};
  work<S, Data>(c, steps, plan, at, row.slot, common, chunks);
#endif
}

constexpr int kJoinThreads = 256, kJoinWarps = kJoinThreads / 32, kJoinSpans = 16;

// The decays of up to kJoinSpans spans from span `first` on, each the sum of its items in one order.
template <class Data>
__device__ void span_decays(const DualCall& c, const Steps& steps, int64_t row, int64_t items, int64_t first,
                            int64_t spans, float (&decay)[kJoinSpans]) {
  const int64_t head = blockIdx.y;
  const float rate = c.A[head];
  for (int k = threadIdx.x / 32; k < kJoinSpans && first + k < spans; k += kJoinWarps) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kSpan / 32; ++i) {
      const int64_t t = (first + k) * kSpan + i * 32 + threadIdx.x % 32;
      const float dt = t < items ? steps.size(widen(*data<Data>(c.dt, (row + t) * steps.pitch + head)), head) : 0.0f;
      sum += dt * kPerOctave * rate;
    }
#pragma unroll
    for (int half = 16; half > 0; half /= 2) sum += __shfl_xor_sync(~0u, sum, half);
    if (threadIdx.x % 32 == 0) decay[k] = exp2_fast(sum);
  }
}

// The states that the spans begin with, in the place of what they added. A thread has four states.
template <class Data>
__global__ void __launch_bounds__(kJoinThreads) dual_join(DualCall c, Steps steps, int padded) {
  __shared__ float decay[kJoinSpans];
  const Row row = row_of(c.rows, blockIdx.x);
  if (row.slot < 0) return;
  const int64_t first_item = int64_t(blockIdx.x) * c.rows.T, head = blockIdx.y;
  const int64_t spans = (c.rows.T + kSpan - 1) / kSpan - 1;  // that hand on
  const int each = 4 * padded, i = int(blockIdx.z) * kJoinThreads + threadIdx.x, vector = i % each / 32, lane = i % 32;
  const int64_t column = i / each * int64_t(kColumns);
  const bool real = column < c.P;
  const int64_t kept = (row.slot * c.H + head) * c.N * c.P;
  float h[4] = {};
  for (int k = 0; k < 4; ++k) {
    const int64_t n = vector * 8 + lane % 4 * 2 + k % 2, p = column + lane / 4 + k / 2 * 8;
    if (real && n < c.N) h[k] = c.state[kept + n * c.P + p];
  }
  for (int64_t first = 0; first < spans; first += kJoinSpans) {
    __syncthreads();
    span_decays<Data>(c, steps, first_item, row.items, first, spans, decay);
    __syncthreads();
    if (!real) continue;
    for (int at = 0; at < kJoinSpans && first + at < spans; at += 4) {
      float4 added[4];
      float4* place[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        place[k] = handed<Data>(c, first_item + (first + at + k) * kSpan, head, column, i % each);
        if (first + at + k < spans) added[k] = *place[k];
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (first + at + k >= spans) break;
        *place[k] = {h[0], h[1], h[2], h[3]};
        const float d = decay[at + k];
        h[0] = fmaf(d, h[0], added[k].x), h[1] = fmaf(d, h[1], added[k].y);
        h[2] = fmaf(d, h[2], added[k].z), h[3] = fmaf(d, h[3], added[k].w);
      }
    }
  }
  for (int k = 0; k < 4; ++k) {
    const int64_t n = vector * 8 + lane % 4 * 2 + k % 2, p = column + lane / 4 + k / 2 * 8;
    if (real && n < c.N) c.next[kept + n * c.P + p] = h[k];
  }
}

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, which, device);
  return value;
}

template <class Data>
bool aligned(const DualCall& c) {
  constexpr int64_t kPart = 16 / int64_t(sizeof(Data));
  const uintptr_t addresses = uintptr_t(c.x) | uintptr_t(c.B) | uintptr_t(c.C) | uintptr_t(c.y);
  return addresses % 16 == 0 && (c.P | c.N | c.x_pitch | c.bc_pitch) % kPart == 0;
}

constexpr int64_t kFillsGpu = 200;  // blocks of 64 columns that leave no part of it idle

template <int kN, int kGroups, class Data>
bool try_shape(const DualCall& c, const Steps& steps, Pass pass, int64_t spans, cudaStream_t stream) {
  using S = Shape<kN, kGroups, Data>;
  constexpr size_t kLeast = 99 * 1024;  // shared memory of a block on every GPU from sm_80 on
  static_assert(kGroups > 1 || sizeof(typename S::Common) + sizeof(typename S::Chunk) <= kLeast, "always fits");
  const unsigned columns = parts(c.P, S::kWide);
  if (kGroups > 1 && (c.P <= 2 * kColumns || c.rows.B * c.H * spans * columns < kFillsGpu)) return false;
  const int64_t room = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const auto bytes = [](int stages) {
    return int64_t(sizeof(typename S::Common) + stages * sizeof(typename S::Chunk));
  };
  if (bytes(1) > room) return false;
  const int64_t length = pass == kWhole ? c.rows.T : kSpan;
  const int stages = length > kItems && bytes(2) <= room ? 2 : 1;
  const Plan plan{pass, stages, aligned<Data>(c), columns};
  cudaFuncSetAttribute(dual_chunks<kN, kGroups, Data>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes(stages)));
  const dim3 grid(unsigned(c.rows.B), unsigned(c.H), columns * unsigned(spans));
  dual_chunks<kN, kGroups, Data><<<grid, S::kThreads, size_t(bytes(stages)), stream>>>(c, steps, plan);
  return true;
}

template <int kN, class Data>
void launch_pass(const DualCall& c, const Steps& steps, Pass pass, int64_t spans, cudaStream_t stream) {
  if constexpr (sizeof(Data) == 2)
    if (try_shape<kN, 4, Data>(c, steps, pass, spans, stream)) return;
  try_shape<kN, 1, Data>(c, steps, pass, spans, stream);
}

template <int kN, class Data>
void launch_states(const DualCall& c, const Steps& steps, cudaStream_t stream) {
  const int64_t spans = (c.rows.T + kSpan - 1) / kSpan;
  const bool hands_on = c.P % kColumns == 0 && uintptr_t(c.y) % 16 == 0 && spans * parts(c.P, kColumns) <= 65535;
  if (c.rows.T < kLongCall || !hands_on) return launch_pass<kN, Data>(c, steps, kWhole, 1, stream);
  launch_pass<kN, Data>(c, steps, kLast, spans - 1, stream);
  const dim3 grid(unsigned(c.rows.B), unsigned(c.H), parts(c.P * kN / 4, kJoinThreads));
  dual_join<Data><<<grid, kJoinThreads, 0, stream>>>(c, steps, kN);
  launch_pass<kN, Data>(c, steps, kOutputs, spans, stream);
}

}  // namespace

bool in_chunks(const DualCall& c) {
  return c.rows.T >= kFewest && c.N <= 128 && c.P <= 65535 * kColumns &&
         attribute(cudaDevAttrComputeCapabilityMajor) >= 8 && !compiled_before(dual_chunks<32, 1, float>, 80);
}

const char* launch_chunks(const DualCall& c, const Steps& steps, cudaStream_t stream) {
  return for_type(c.type, [&](auto v) {
    using Data = decltype(v);
    if (c.N <= 32) {
      launch_states<32, Data>(c, steps, stream);
    } else if (c.N <= 64) {
      launch_states<64, Data>(c, steps, stream);
    } else {
      launch_states<128, Data>(c, steps, stream);
    }
  });
}

}  // namespace streamssm::cuda
