"""The stacks of the CUDA library on the models of gpu_models: one object that runs any B and T on any route.

python benchmarks/gpu_stacks.py        microseconds of every route that takes a shape, checked in float64
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Iterator

import numpy as np
import torch
from gpu_models import EPS, Mamba, Mamba2, Stack, _f64, load, native, reference

TYPES = {torch.float32: native.FLOAT32, torch.float16: native.FLOAT16, torch.bfloat16: native.BFLOAT16}
ROUTES = {"chain": native.CHAIN, "one launch": native.ONE_LAUNCH, "rows": native.ROWS}
_ALIGNMENT = 256
_PARTS = {
    Mamba: (
        "norm",
        "in_proj",
        "conv_weight",
        "conv_bias",
        "x_proj",
        "dt_proj",
        "dt_bias",
        "A",
        "skip",
        "out_proj",
    ),
    Mamba2: ("norm", "in_proj", "conv_weight", "conv_bias", "dt_bias", "A", "skip", "gate_norm", "out_proj"),
}


def rounded(stack: Stack, kind: torch.dtype) -> Stack:
    """The same stack with matrices of another type."""
    for weights in stack.weights:
        weights.update({name: w.to(kind) for name, w in weights.items() if w.dtype == torch.float16})
    stack.embedding, stack._reference = stack.embedding.to(kind), None
    return stack


def _family(stack: Stack) -> type[Stack]:
    return Mamba if isinstance(stack, Mamba) else Mamba2


def _parts(stack: Stack, tokens: bool, head: bool) -> Iterator[torch.Tensor]:
    for weights in stack.weights:
        yield from (weights[name] for name in _PARTS[_family(stack)])
    if head:
        yield from (stack.norm, stack.embedding)
    elif tokens:
        yield stack.embedding


class Resident:
    """A stack in the library. ``tokens``: it has the embedding; ``head``: the last norm and the product with
    the same matrix."""

    def __init__(self, library: native.Library, stack: Stack, tokens: bool = True, head: bool = True) -> None:
        self.library, self.stack, self.tokens, self.head = library, stack, tokens, head
        blobs, places, at = [], [], 0
        for part in _parts(stack, tokens, head):
            raw = part.contiguous().view(torch.uint8).cpu().numpy().tobytes()
            places.append(at)
            blobs.append(raw + bytes(-len(raw) % _ALIGNMENT))
            at += len(blobs[-1])
        if tokens and head:
            places.append(places[-1])
        weights, table = b"".join(blobs), (ctypes.c_int64 * len(places))(*places)
        s, least, most = stack, *getattr(stack, "dt_limit", (0.0, np.inf))
        H, P, G = (getattr(s, name, 0) for name in "HPG")
        D = getattr(s, "D", H * P)
        sizes = (s.layers, s.d_model, D, s.N, getattr(s, "R", 0), s.K, H, P, G)
        kind = 1 if _family(s) is Mamba else 2
        self.handle = library.create_stack(
            native.StackModel(
                kind, TYPES[s.embedding.dtype], *sizes, s.vocabulary * tokens, s.vocabulary * head, 0,
                EPS, least, most,
                ctypes.cast(ctypes.c_char_p(weights), ctypes.c_void_p), len(weights),
                ctypes.cast(table, ctypes.c_void_p), len(places),
            )
        )  # fmt: skip

    def run(
        self,
        x: torch.Tensor,
        route: int = native.BEST,
        target: tuple[torch.Tensor, torch.Tensor] | None = None,
        y: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """y for tokens ``[B, T]`` or float32 ``x [B, T, d_model]`` on the first B slots of the stack's
        states, in place unless ``target`` names the next (conv, ssm). ``self.route`` is the one taken."""
        stack, (B, T) = self.stack, x.shape[:2]
        width = stack.vocabulary if self.head else stack.d_model
        y = torch.full((B, T, width), float("nan"), device="cuda") if y is None else y
        self.keep = [
            (ctypes.c_void_p * stack.layers)(*(state[layer].data_ptr() for layer in range(stack.layers)))
            for state in (stack.conv, stack.ssm, *(target or (stack.conv, stack.ssm)))
        ]
        pointers = [ctypes.cast(array, ctypes.c_void_p) for array in self.keep]
        given = (x.data_ptr(), None) if self.tokens else (None, x.data_ptr())
        call = native.StackCall(B, T, *given, *pointers, y.data_ptr(), route, 0)
        stream = torch.cuda.current_stream().cuda_stream
        self.route = self.library.run_stack(self.handle, call, stream)
        return y

    def expected(self, x: torch.Tensor, rows: int) -> tuple[np.ndarray, list[dict]]:
        """y of the first rows and their next states in float64, from the states as they are."""
        stack, outputs = self.stack, []
        states = [
            {"conv": _f64(conv[:rows]), "ssm": _f64(ssm[:rows])}
            for conv, ssm in zip(stack.conv, stack.ssm, strict=True)
        ]
        for t in range(x.shape[1]):
            items = _f64(stack.embedding[x[:rows, t]]) if self.tokens else _f64(x[:rows, t])
            y, states = stack.reference_step(items, states) if self.head else _residual(stack, items, states)
            outputs.append(y)
        return np.stack(outputs, 1), states

    def destroy(self) -> None:
        """Free it; its calls must be done."""
        torch.cuda.synchronize()
        self.library.destroy_stack(self.handle)


def _residual(stack: Stack, x: np.ndarray, states: list[dict]) -> tuple[np.ndarray, list[dict]]:
    """What the last block leaves, in float64."""
    if stack._reference is None:
        stack.reference_step(x, states, head=False)
    after = []
    for weights, state in zip(stack._reference[0], states, strict=True):
        y, state = stack.mixer(reference.rms_norm(x, weights["norm"], EPS), weights, state)
        x = x + y
        after.append(state)
    return x, after


def relative(got: torch.Tensor, wanted: np.ndarray) -> float:
    """The distance of two arrays over the size of the second; NaN if the first is not finite."""
    values = _f64(got)
    error = float(np.linalg.norm(values - wanted) / np.linalg.norm(wanted))
    return error if np.isfinite(values).all() else float("nan")


def error_of(resident: Resident, x: torch.Tensor, route: int, rows: int = 2) -> float:
    """The larger error of the outputs and of the states of the first rows."""
    stack = resident.stack
    rows = min(rows, len(x))
    wanted, states = resident.expected(x, rows)
    y = resident.run(x, route)
    errors = [relative(y[:rows], wanted)]
    for layer, state in enumerate(states):
        errors += [
            relative(pool[layer, :rows], state[name])
            for name, pool in (("conv", stack.conv), ("ssm", stack.ssm))
        ]
    return max(errors) if all(np.isfinite(errors)) else float("nan")


def graph_of(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """``work`` as a graph, after it was done once on the same queue: a stack takes memory by queue."""
    queue, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    queue.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(queue):
        work()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=queue):
        work()
    return graph


def microseconds(work: Callable[[], object], repeats: int = 30) -> float:
    """The median of replays."""
    graph, times = graph_of(work), []
    for _ in range(repeats + 5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 2 * 1e3)
    return statistics.median(times[5:])


SHAPES = ((1, 1), (8, 1), (64, 1), (256, 1), (1, 16), (1, 64), (16, 64), (1, 1024))


def main() -> None:
    """Print the table."""
    library = load()
    print(torch.cuda.get_device_name())
    for family, kind in ((Mamba, torch.float16), (Mamba2, torch.float16), (Mamba, torch.float32)):
        stack = rounded(family(24, 50280, slots=256), kind)
        stack.conv.normal_(std=0.1), stack.ssm.normal_(std=0.1)
        resident = Resident(library, stack)
        for B, T in SHAPES:
            found = []
            for name, route in ROUTES.items():
                x = torch.randint(stack.vocabulary, (B, T), device="cuda")
                y = torch.empty(B, T, stack.vocabulary, device="cuda")
                resident.run(x, route, y=y)
                if resident.route != route:
                    continue
                taken = microseconds(lambda: resident.run(x, route, y=y))  # noqa: B023  used at once
                checked = f" ({error_of(resident, x, route):.0e})" if T == 1 else ""
                found.append(f"{name} {taken:.0f}{checked}")
            resident.run(x, y=y)
            print(
                f"{family.kind} {kind} B={B} T={T}: {', '.join(found)}; chosen {resident.route}", flush=True
            )
        resident.destroy()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
