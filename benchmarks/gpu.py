"""The GPU figures: each is checked against the float64 reference in the same run.

    python benchmarks/gpu.py [--json FILE] [--only TEXT]
    python benchmarks/gpu.py --json FILE --plot FILE.svg       draws what was measured, anywhere

Times are medians of graph replays by device events. Rotating inputs keep what is measured out of the
cache where a real caller would not find it there. "of copy" is the bytes that must move, over the time,
as a fraction of the copy bandwidth measured first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator

import gpu_chain
import gpu_models
import gpu_rows
import numpy as np
import torch
from gpu_models import _f64, _random, native, reference

PEER = {  # microseconds of mamba_ssm on an H100, from the issue
    "mamba step B=1": 720, "mamba step B=64": 881, "mamba step B=256": 1295,
    "mamba2 step B=1": 679, "mamba2 step B=64": 1401, "mamba2 step B=256": 3589,
    "mamba push of 64": 20200, "mamba2 push of 64": 53000,
    "mamba prefill 4096": 20500, "mamba2 prefill 4096": 30400,
    "scan B=1 T=16384": 570, "scan B=64 T=64": 449, "scan B=1024 T=1": 80,
}  # fmt: skip
GOAL = {  # microseconds, from the issue; of a bandwidth or a floor, what follows from it
    "mamba step B=1": 260, "mamba step B=64": 380, "mamba step B=256": 700,
    "mamba2 step B=1": 260, "mamba2 step B=64": 1125, "mamba2 step B=256": 4188,
    "mamba push of 64": 900, "mamba2 push of 64": 900,
    "mamba prefill 4096": 8000, "mamba2 prefill 4096": 8000,
    "scan B=1 T=16384": 250, "scan B=64 T=64": 120, "scan B=1024 T=1": 82,
    "vad pool 4096": 2000,
}  # fmt: skip


def graph_of(work) -> torch.cuda.CUDAGraph:
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def microseconds(work, repeats: int = 200, batch: int = 5) -> float:
    """Median over repeats of `batch` replays in a row."""
    graph, times = graph_of(work), []
    for _ in range(20):
        graph.replay()
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(batch):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / batch * 1e3)
    return statistics.median(times)


def several(call, count: int = 8) -> float:
    """Microseconds of one call of a kernel among several in a graph, whose start costs some too."""
    return microseconds(lambda: [call(i) for i in range(count)], 50, 2) / count


def copy_bandwidth() -> float:
    """Bytes read and written a second by a copy of 2 GB."""
    source = torch.rand(1 << 29, device="cuda")
    target = torch.empty_like(source)
    ways = (lambda: target.copy_(source), lambda: torch.mul(source, 1.0, out=target))
    return 2 * source.nbytes / (min(microseconds(way, 20, 2) for way in ways) * 1e-6)


def error_of(got: torch.Tensor, expected: np.ndarray) -> float:
    got = _f64(got)
    error = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    return error if np.isfinite(got).all() else float("nan")


def step_row(library, stack, steps: int = 4) -> dict:
    """A few steps on fresh tokens against float64, then the time of one."""
    stack.create(library)
    states, worst = stack.states(), 0.0
    token = torch.zeros(1, dtype=torch.int32, device="cuda")
    call = stack.call(token=token)
    for _ in range(steps):
        token.random_(stack.vocabulary)
        stack.logits.fill_(float("nan"))
        stack.step(call)
        expected, states = stack.reference_step(stack.input_of(int(token)), states)
        worst = max(worst, error_of(stack.logits, expected[0]))
    worst = max(worst, *(error_of(s[0], e["ssm"][0]) for s, e in zip(stack.ssm, states, strict=True)))
    taken = microseconds(lambda: stack.step(call))
    stack.destroy()
    return {"us": taken, "bytes": stack.weight_bytes() + stack.state_bytes(), "error": worst}


def scan_row(library, B: int, T: int, D: int = 1536, N: int = 16) -> dict:
    """One call on fresh inputs against float64 (of a few rows and channels), then the time of one."""
    half, copies = torch.float16, max(1, int(2e8 // (B * T * D * 8 + B * N * D * 8)))
    A, skip, bias = -torch.rand(N, D, device="cuda") * 16, _random(D), _random(D) - 4
    sets = [
        [_random(B, T, width, dtype=half) for width in (D, D, N, N, D)] + [_random(B, N, D)]
        for _ in range(min(copies, 8))
    ]
    y = torch.full((B, T, D), float("nan"), dtype=half, device="cuda")

    def run(index: int) -> None:
        x, dt, b, c, z, state = sets[index]
        tensors = (x, dt, b, c, z, A, skip, bias, state, state, y)
        call = native.ScanCall(B, T, None, None, D, N, native.FLOAT16, 0, *(t.data_ptr() for t in tensors))
        library.operator("selective_scan", call, torch.cuda.current_stream().cuda_stream)

    d = slice(0, 8)
    x, dt, b, c, z, state = [_f64(t[:4]) for t in sets[0]]
    expected, after = reference.selective_scan(
        x[..., d], dt[..., d], _f64(A)[:, d], b, c, _f64(skip)[d], _f64(bias)[d], z[..., d], state[..., d]
    )
    run(0)
    error = max(error_of(y[:4, :, d], expected), error_of(sets[0][5][:4, :, d], after))
    assert not y.isnan().any()
    taken = several(lambda i: run(i % len(sets)))
    return {"us": taken, "bytes": 4 * B * T * D * 2 + 2 * B * T * N * 2 + 2 * B * N * D * 4, "error": error}


def dual_row(library, B: int, T: int, H: int = 24, P: int = 64, N: int = 128) -> dict:
    half = torch.float16
    A, skip = -1 - 15 * torch.rand(H, device="cuda"), _random(H, P)
    x, y = _random(B, T, H, P, dtype=half), torch.full((B, T, H, P), float("nan"), dtype=half, device="cuda")
    dt, b, c = (
        (torch.rand(B, T, H, device="cuda") * 0.1).half(),
        _random(B, T, 1, N, dtype=half),
        _random(B, T, 1, N, dtype=half),
    )
    state = _random(B, H, N, P)

    def run() -> None:
        tensors = (x, dt, b, c, A, skip, state, state, y)
        call = native.DualCall(
            B, T, None, None, H, P, 1, N, native.FLOAT16, 0, *(t.data_ptr() for t in tensors)
        )
        library.operator("state_space_dual", call, torch.cuda.current_stream().cuda_stream)

    inputs = [_f64(t[:2, :, :2]) for t in (x, dt)], [_f64(t[:2]) for t in (b, c)], _f64(state[:2, :2])
    expected, after = reference.state_space_dual(
        *inputs[0], _f64(A)[:2], *inputs[1], _f64(skip)[:2], inputs[2]
    )
    run()
    error = max(error_of(y[:2, :, :2], expected), error_of(state[:2, :2], after))
    assert not y.isnan().any()
    moved = 2 * B * T * H * P * 2 + 2 * B * T * N * 2 + 2 * B * H * N * P * 4
    return {"us": several(lambda _: run()), "bytes": moved, "error": error}


def chain_row(library, kind: type, B: int, T: int) -> dict:
    """A whole stack of 24 layers on B rows of T items each, one CUDA graph."""
    stack = kind(24, 50280 if kind is gpu_models.Mamba else 50288, slots=B)
    stack.conv.normal_(std=0.1), stack.ssm.normal_(std=0.1)
    chain = gpu_chain.Chain(library, stack, B, T)
    # of a long call: against parts of the size that another row checks against float64
    error = gpu_chain.error_of(chain) if T <= 64 else gpu_chain.difference(library, stack, T, 64)
    taken = microseconds(chain.step, 30, 2)
    assert not chain.logits.isnan().any()
    return {"us": taken, "bytes": stack.weight_bytes() + B * stack.state_bytes(), "error": error}


def rows_row(library, kind: type, B: int) -> dict:
    """One item of B rows through a stack of 24 layers, in the kernels of rows_api.h."""
    stack = kind(24, 50280 if kind is gpu_models.Mamba else 50288, slots=B)
    stack.conv.normal_(std=0.1), stack.ssm.normal_(std=0.1)
    rows = gpu_rows.Rows(library, stack, B)
    error = gpu_rows.error_of(rows, B, sorted({0, 1, B - 1}))
    call = rows.call(B)
    taken = microseconds(lambda: rows.step(call), 30, 2)
    rows.destroy()
    return {"us": taken, "bytes": stack.weight_bytes() + B * stack.state_bytes(), "error": error}


def vad_row(slots: int, steps: int = 2000) -> dict:
    """A step of a pool's backend, host to host: 10 ms of every slot. The error is against the processor."""
    import streamssm

    model, cpu = streamssm.load("vad", backend="cuda"), streamssm.load("vad", backend="cpu")
    states = model.backend.slots(160, slots)
    (call,) = states.calls(list(range(slots)), ())
    sound = 0.1 * np.random.default_rng(0).standard_normal((slots, 20 * 160)).astype(np.float32)
    outputs = []
    for at in range(0, sound.shape[1], 160):
        call.x[...] = sound[:, at : at + 160]
        outputs.append(call.run()[0][:4].copy())
    lookahead = cpu.manifest.lookahead // 160
    wanted = cpu.stream(batch=4).push(sound[:4])
    got = np.concatenate(outputs, axis=1)[:, lookahead:]
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        call.run()
        times.append((time.perf_counter() - start) * 1e6)
    error = float(np.abs(got - wanted).max())
    return {
        "us": statistics.median(times),
        "p99_us": float(np.percentile(times, 99)),
        "bytes": 0,
        "error": error,
    }


def table(library, only: str) -> Iterator[tuple[str, dict]]:
    """The rows, one after the other as they are measured."""
    mamba, mamba2 = gpu_models.Mamba, gpu_models.Mamba2
    rows = {
        "mamba step B=1": lambda: step_row(library, mamba(24, 50280)),
        "mamba step B=64": lambda: rows_row(library, mamba, 64),
        "mamba step B=256": lambda: rows_row(library, mamba, 256),
        "mamba2 step B=1": lambda: step_row(library, mamba2(24, 50288)),
        "mamba2 step B=64": lambda: rows_row(library, mamba2, 64),
        "mamba2 step B=256": lambda: rows_row(library, mamba2, 256),
        "mamba push of 64": lambda: chain_row(library, mamba, 1, 64),
        "mamba2 push of 64": lambda: chain_row(library, mamba2, 1, 64),
        "mamba prefill 4096": lambda: chain_row(library, mamba, 1, 4096),
        "mamba2 prefill 4096": lambda: chain_row(library, mamba2, 1, 4096),
        "scan B=1 T=64": lambda: scan_row(library, 1, 64),
        "scan B=1 T=4096": lambda: scan_row(library, 1, 4096),
        "scan B=1 T=16384": lambda: scan_row(library, 1, 16384),
        "scan B=64 T=64": lambda: scan_row(library, 64, 64),
        "scan B=64 T=1": lambda: scan_row(library, 64, 1),
        "scan B=256 T=1": lambda: scan_row(library, 256, 1),
        "scan B=1024 T=1": lambda: scan_row(library, 1024, 1),
        "dual B=1 T=64": lambda: dual_row(library, 1, 64),
        "dual B=1 T=4096": lambda: dual_row(library, 1, 4096),
        "dual B=64 T=1": lambda: dual_row(library, 64, 1),
        "dual B=256 T=1": lambda: dual_row(library, 256, 1),
        "vad pool 4096": lambda: vad_row(4096),
    }
    for name, measure in rows.items():
        if only not in name:
            continue
        try:
            yield name, measure()
        except (RuntimeError, ImportError) as error:
            yield name, {"failed": str(error)}
        torch.cuda.empty_cache()


def plot(report: dict, path: str) -> None:
    """Ours, the peer and the floor for each row, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    rows = {name: row for name, row in report["rows"].items() if "us" in row}
    figure, axes = plt.subplots(figsize=(9, 0.3 * len(rows) + 1.2))
    places = np.arange(len(rows))[::-1]
    axes.barh(places, [row["us"] for row in rows.values()], 0.6, color="#3b6ea5", label="streamssm")
    for values, marker, color, label in (
        (PEER, "o", "#b5533c", "mamba_ssm"),
        (GOAL, "|", "#222222", "goal"),
        (
            {name: row["floor_us"] for name, row in rows.items() if row["bytes"]},
            "<",
            "#4a9a62",
            "memory floor",
        ),
    ):
        seen = [(values[name], place) for name, place in zip(rows, places, strict=True) if name in values]
        axes.scatter(*zip(*seen, strict=True), marker=marker, color=color, label=label, zorder=3)
    axes.set_yticks(places, rows)
    axes.set_xscale("log")
    axes.set_xlabel(f"microseconds on one {report['device']}, {report['date']}")
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def show(name: str, row: dict, bandwidth: float) -> None:
    """Print a row, with what its bytes would take, which is added to it."""
    if "failed" in row:
        print(f"{name:20} {row['failed']}", flush=True)
        return
    floor = row["bytes"] / bandwidth * 1e6
    row |= {"floor_us": floor, "of_copy": floor / row["us"]}
    goal, peer = GOAL.get(name, "-"), PEER.get(name, "-")
    print(
        f"{name:20} {row['us']:9.1f} {floor:8.1f} {floor / row['us']:8.2f} {goal:>7} {peer:>7} "
        f"{row['error']:9.1e}" + (f"  p99 {row['p99_us']:.0f}" if "p99_us" in row else ""),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--plot", help="draw the figures of the file that --json names, measured before")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    arguments = parser.parse_args()
    if arguments.plot:
        with open(arguments.json) as file:
            plot(json.load(file), arguments.plot)
        return
    torch.manual_seed(torch.seed() % 2**31)
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    library, bandwidth = gpu_models.load(), copy_bandwidth()
    device = torch.cuda.get_device_name()
    print(f"{device}, copy {bandwidth / 1e12:.2f} TB/s")
    print(f"{'':20} {'us':>9} {'floor':>8} {'of copy':>8} {'goal':>7} {'peer':>7} {'error':>9}")
    report = {
        "device": device, "copy_bytes_per_s": bandwidth, "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__, "cuda": torch.version.cuda, "rows": {},
    }  # fmt: skip
    for name, row in table(library, arguments.only):
        report["rows"][name] = row
        show(name, row, bandwidth)
        if arguments.json:
            with open(arguments.json, "w") as file:
                json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
