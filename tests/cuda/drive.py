"""Short runs of the kernels for compute-sanitizer, which slows them down too much for the tests themselves.

    compute-sanitizer --tool racecheck --kernel-name kns=streamssm --error-exitcode 9 \
        python tests/cuda/drive.py rows walk dual scan ring conv norms step-sizes chain step

The name keeps the tool off the kernels of PyTorch and of cuBLAS, some of which do not bear it. Racecheck
fails on ``chain`` nevertheless; see docs/cuda-notes.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import gpu_models  # noqa: E402
import gpu_rows  # noqa: E402
import gpu_stacks  # noqa: E402
from gpu_models import native  # noqa: E402
from operator_cases import CASES, CODES, LONG, TYPES, Scan, int32, noise, run  # noqa: E402
from test_cuda_rows import KINDS as ROWS  # noqa: E402

MOST = 70  # rows: more than one lane


def finite(name: str, *tensors: torch.Tensor) -> None:
    """Stop if something was not written."""
    torch.cuda.synchronize()
    if not all(tensor.isfinite().all() for tensor in tensors):
        sys.exit(f"{name}: not all is finite")


def drive_rows(library: native.Library) -> None:
    """A step of several numbers of rows, one of them skipped."""
    for name, (kind, vocabulary) in ROWS.items():
        rows = gpu_rows.Rows(library, kind(layers=2, vocabulary=vocabulary, slots=MOST), MOST)
        for B in (1, 17, 64, MOST):
            slots = torch.arange(B, dtype=torch.int32, device="cuda").flip(0).contiguous()
            slots[B // 2] = -1 if B > 1 else 0
            rows.step(rows.call(B, slots=slots))
            finite(f"{name} rows {B}", rows.logits[:B], rows.residual[:B])
        rows.destroy()


def drive_walk(library: native.Library) -> None:
    """The walk with 16, 32 and 64 rows a group, and in two passes."""
    most = 260
    rows = gpu_rows.Rows(library, gpu_models.Mamba(layers=2, vocabulary=64, slots=most), most)
    for B in (40, 70, 130, most):
        slots = torch.arange(B, dtype=torch.int32, device="cuda").flip(0).contiguous()
        slots[B // 2] = -1
        rows.step(rows.call(B, slots=slots))
        finite(f"walk {B}", rows.logits[:B], rows.residual[:B])
    rows.destroy()


def drive_operators(library: native.Library, cases: dict, lengths: tuple[int, ...]) -> None:
    """Three rows with slots and lengths, in place and not."""
    for name, make in cases.items():
        op = make()
        for kind in TYPES:
            for T in lengths:
                data, pool = op.data(3, T, TYPES[kind]), noise(3, *op.state_shape)
                y, after = run(library, op, kind, data, pool, int32([2, 0, 1]), int32([T, 0, T - T // 3]))
                finite(f"{name} {kind} {T}", y, after)
                finite(f"{name} {kind} {T}", *run(library, op, kind, data, pool, in_place=False))


def drive_dual(library: native.Library) -> None:
    """Few items, chunks of 64, and several spans of 256."""
    drive_operators(library, {k: v for k, v in CASES.items() if k.startswith("dual")}, (1, 5, 40, 130, 600))


def drive_scan(library: native.Library) -> None:
    """Steps, tiles and long calls, of few channels and of many."""
    drive_operators(library, {k: v for k, v in CASES.items() if k.startswith("scan")}, (1, 5, 100))
    drive_operators(library, {k: v for k, v in LONG.items() if k.startswith("scan")}, (1100,))


def drive_ring(library: native.Library) -> None:
    """Long scans of 16-bit data, whose warps take turns: by blocks of 8, 12 and 16 channels."""
    for D, B, T, kind in (
        (784, 1, 700, "float16"),
        (520, 2, 900, "bfloat16"),
        (1544, 1, 530, "float16"),
        (2048, 1, 700, "bfloat16"),
    ):
        op = Scan(D, 16)
        data, pool = op.data(B, T, TYPES[kind]), noise(B + 1, *op.state_shape)
        y, after = run(library, op, kind, data, pool, int32([B, 0][:B]), int32([T - 5, 300][:B]))
        finite(f"ring {D} {B}", y, after)


def drive_conv(library: native.Library) -> None:
    """The convolution."""
    drive_operators(library, {k: v for k, v in CASES.items() if k.startswith("conv")}, (1, 5, 100))
    drive_operators(library, {"conv-4": LONG["conv-4"]}, (1100,))


def drive_norms(library: native.Library) -> None:
    """The norms, on rows that a warp has and on rows that a block has."""
    stream = torch.cuda.current_stream().cuda_stream
    for width in (100, 768, 1536):
        for name, kind in TYPES.items():
            residual, weight = noise(5, width), noise(width)
            x, z, y = (noise(5, width).to(kind) for _ in range(3))
            places = [t.data_ptr() for t in (residual, x, weight, y)]
            library.operator("norm", native.NormCall(5, width, CODES[name], 1e-5, *places), stream)
            places = [t.data_ptr() for t in (x, z, weight, y)]
            call = native.GateNormCall(5, width, width, CODES[name], 1e-5, *places)
            library.operator("gate_norm", call, stream)
            finite(f"norms {width} {name}", residual, y)


def drive_step_sizes(library: native.Library) -> None:
    """Step sizes that the dual and the scan make themselves."""
    stream = torch.cuda.current_stream().cuda_stream
    for name in ("float16", "bfloat16"):
        kind, code = TYPES[name], CODES[name]
        for T in (1, 40, 130, 1100):
            dual, scan, R = CASES["dual-130m"](), CASES["scan-16"](), 48
            data, pool, bias = dual.data(2, T, kind), noise(2, *dual.state_shape), noise(dual.H)
            y = torch.full_like(data["x"], float("nan"))
            call = dual.call((2, T, None, None), code, data, pool, pool, y)
            library.dual_raw(call, native.RawSteps(dual.H, 0.01, 0.2, bias.data_ptr()), stream)
            finite(f"raw {name} {T}", y, pool)
            data, pool = scan.data(2, T, kind), noise(2, *scan.state_shape)
            low, weight = noise(2, T, R).to(kind), (0.2 * noise(scan.D, R)).to(kind)
            y = torch.full_like(data["x"], float("nan"))
            call = scan.call((2, T, None, None), code, data, pool, pool, y)
            library.scan_low_rank(call, native.LowRank(R, R, low.data_ptr(), weight.data_ptr()), stream)
            finite(f"low rank {name} {T}", y, pool)


def drive_chain(library: native.Library) -> None:
    """Stacks by cuBLAS and our operators."""
    for family in (gpu_models.Mamba, gpu_models.Mamba2):
        for kind in TYPES.values():
            print(f"{family.kind} {kind}", flush=True)  # not all of cuBLAS bears racecheck
            stack = gpu_stacks.rounded(family(layers=2, vocabulary=307, slots=3), kind)
            resident = gpu_stacks.Resident(library, stack)
            for B, T in ((1, 1), (3, 1), (2, 20), (1, 70), (1, 600)):
                x = torch.randint(stack.vocabulary, (B, T), device="cuda")
                finite(f"{family.kind} {kind} {B} {T}", resident.run(x, native.CHAIN), stack.ssm)
            resident.destroy()


def drive_step(library: native.Library) -> None:
    """The steps of one launch."""
    token = torch.zeros(1, dtype=torch.int32, device="cuda")
    for family in (gpu_models.Mamba, gpu_models.Mamba2):
        stack = family(layers=2, vocabulary=1003)
        stack.create(library)
        for _ in range(2):
            stack.step(stack.call(token=token))
        finite(family.kind, stack.logits, stack.ssm)
        stack.destroy()


DRIVES = {
    "rows": drive_rows,
    "walk": drive_walk,
    "dual": drive_dual,
    "scan": drive_scan,
    "ring": drive_ring,
    "conv": drive_conv,
    "norms": drive_norms,
    "step-sizes": drive_step_sizes,
    "chain": drive_chain,
    "step": drive_step,
}


def main() -> None:
    """Run those that the command line names, or all."""
    torch.manual_seed(0)
    library = gpu_models.load()
    for name in sys.argv[1:] or DRIVES:
        DRIVES[name](library)
        print(f"{name}: done", flush=True)


if __name__ == "__main__":
    main()
