// Compiled once per instruction set, with its flags and -DSTREAMSSM_ISA=name.
#include "simd.h"
#include "kernels.h"

#include "causal_conv1d.h"
#include "half.h"
#include "log_mel.h"
#include "program_run.h"
#include "selective_scan.h"
#include "sliding_window_attention.h"
#include "state_space_dual.h"

namespace streamssm::STREAMSSM_ISA {

#define STREAMSSM_TEXT2(x) #x
#define STREAMSSM_TEXT(x) STREAMSSM_TEXT2(x)

extern const Kernels table = {
    STREAMSSM_TEXT(STREAMSSM_ISA), causal_conv1d, selective_scan, state_space_dual, sliding_window_attention,
    run_program, widen<widen_half>, narrow<narrow_half>, widen<widen_bfloat16>, narrow<narrow_bfloat16>,
    log_mel,
};

}  // namespace streamssm::STREAMSSM_ISA
