"""The GPU figures: each is checked against the float64 reference in the same run.

    python benchmarks/gpu.py [--json FILE]

Times are medians of graph replays by device events. Rotating inputs keep what is measured out of the
cache where a real caller would not find it there. "of copy" is the bytes that must move, over the time,
as a fraction of the copy bandwidth measured first.
"""

from __future__ import annotations

import argparse
import json
import statistics

import gpu_models
import numpy as np
import torch
from gpu_models import _f64, _random, native, reference

PEER = {  # microseconds of the best peer on an H100, from the issue
    "mamba step B=1": 720, "mamba2 step B=1": 679,
    "scan B=1 T=16384": 570, "scan B=64 T=64": 449, "scan B=1024 T=1": 80,
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
    time = microseconds(lambda: stack.step(call))
    stack.destroy()
    return {"us": time, "bytes": stack.weight_bytes() + stack.state_bytes(), "error": worst}


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
    time = microseconds(lambda: [run(i) for i in range(len(sets))], 50, 2) / len(sets)
    return {"us": time, "bytes": 4 * B * T * D * 2 + 2 * B * T * N * 2 + 2 * B * N * D * 4, "error": error}


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
    return {"us": microseconds(run, 50, 2), "bytes": moved, "error": error}


def table(library, only: str) -> dict[str, dict]:
    rows = {
        "mamba step B=1": lambda: step_row(library, gpu_models.Mamba(24, 50280)),
        "mamba2 step B=1": lambda: step_row(library, gpu_models.Mamba2(24, 50288)),
        "scan B=1 T=64": lambda: scan_row(library, 1, 64),
        "scan B=1 T=16384": lambda: scan_row(library, 1, 16384),
        "scan B=64 T=64": lambda: scan_row(library, 64, 64),
        "scan B=1024 T=1": lambda: scan_row(library, 1024, 1),
        "dual B=1 T=64": lambda: dual_row(library, 1, 64),
        "dual B=1 T=4096": lambda: dual_row(library, 1, 4096),
        "dual B=256 T=1": lambda: dual_row(library, 256, 1),
    }
    results = {}
    for name, measure in rows.items():
        if only not in name:
            continue
        try:
            results[name] = measure()
        except RuntimeError as error:
            results[name] = {"failed": str(error)}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    arguments = parser.parse_args()
    torch.manual_seed(torch.seed() % 2**31)
    library, bandwidth = gpu_models.load(), copy_bandwidth()
    device = torch.cuda.get_device_name()
    print(f"{device}, copy {bandwidth / 1e12:.2f} TB/s")
    print(f"{'':20} {'us':>9} {'floor':>8} {'of copy':>8} {'peer':>7} {'error':>9}")
    results = table(library, arguments.only)
    for name, row in results.items():
        if "failed" in row:
            print(f"{name:20} {row['failed']}")
            continue
        floor = row["bytes"] / bandwidth * 1e6
        row |= {"floor_us": floor, "of_copy": floor / row["us"]}
        peer = PEER.get(name, "-")
        print(
            f"{name:20} {row['us']:9.1f} {floor:8.1f} {floor / row['us']:8.2f} {peer:>7} {row['error']:9.1e}"
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"device": device, "copy_bytes_per_s": bandwidth, "rows": results}, file, indent=1)


if __name__ == "__main__":
    main()
