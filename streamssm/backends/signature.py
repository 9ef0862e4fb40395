"""Compares the graph that a backend opened with what the manifest says about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from streamssm.errors import ManifestError
from streamssm.manifest import Manifest

#: what a graph calls the dtypes that a manifest may name
GRAPH_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}

_DYNAMIC = -1


@dataclass(frozen=True)
class Port:
    """One input or output of a graph; a dimension that is not fixed is no integer."""

    name: str
    type: str
    shape: tuple[object, ...]


def check_signature(path: Path, manifest: Manifest, inputs: Iterable[Port], outputs: Iterable[Port]) -> None:
    """Compare names, dtypes and shapes.

    Raises:
        ManifestError: they differ; says which one, and both values.
    """
    wanted_in = {manifest.input.name: (manifest.input.dtype, (_DYNAMIC, _DYNAMIC, *manifest.input.shape))}
    wanted_out = {o.name: ("float32", (_DYNAMIC, _DYNAMIC, *o.shape)) for o in manifest.outputs}
    for state in manifest.states:
        wanted_in[state.name] = wanted_out[state.next] = (state.dtype, (_DYNAMIC, *state.shape))
    ports = 1 + len(manifest.outputs) + 2 * len(manifest.states)
    if len(wanted_in) + len(wanted_out) != ports:
        raise ManifestError(
            f"{path}: the manifest uses one name for two inputs or two outputs; export it again"
        )
    _compare(path, "input", wanted_in, {port.name: port for port in inputs})
    _compare(path, "output", wanted_out, {port.name: port for port in outputs})


def _compare(
    path: Path, side: str, wanted: Mapping[str, tuple[str, tuple[int, ...]]], ports: Mapping[str, Port]
) -> None:
    if wanted.keys() != ports.keys():
        raise ManifestError(
            f"{path}: the manifest lists the {side}s {sorted(wanted)}, the graph has {sorted(ports)}; "
            "export the model again"
        )
    for name, (dtype, shape) in wanted.items():
        port = ports[name]
        if port.type != GRAPH_TYPES[dtype] or not _fits(shape, port.shape):
            raise ManifestError(
                f"{path}: {side} {name} should be {GRAPH_TYPES[dtype]} {_show(shape)}, "
                f"the graph has {port.type} {_show(port.shape)}; export the model again"
            )


def _fits(wanted: tuple[int, ...], seen: tuple[object, ...]) -> bool:
    """A dimension the graph leaves open fits any size; a batch or time axis must be open."""
    return len(wanted) == len(seen) and all(
        not isinstance(have, int) or want == have for want, have in zip(wanted, seen, strict=True)
    )


def _show(shape: tuple[object, ...]) -> str:
    return "[" + ", ".join("any" if size == _DYNAMIC else str(size) for size in shape) + "]"
