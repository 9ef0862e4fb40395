"""``streamssm info``: what a model file says, read without running it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import rich_click as click

if TYPE_CHECKING:
    from rich.table import Table

    from streamssm.manifest import Manifest, StateTensor
    from streamssm.onnx_file import ModelFile


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def info(model: str, as_json: bool) -> None:
    """Show what goes into MODEL, what comes out, what a stream remembers, and where it is from.

    The file is read and its hash verified, but not run: no backend is needed. Of an engine folder or a
    bundle it shows what it was built for, and whether it fits this machine.
    """
    from streamssm.model import find
    from streamssm.onnx_file import read_model_file

    path = find(model)
    if path.is_dir():
        from streamssm.cli.info_engine import show_folder

        show_folder(path, as_json)
        return
    file = read_model_file(path)
    if as_json:
        _print_json(file)
    else:
        _print_tables(file)


def _print_json(file: ModelFile) -> None:
    import json

    import msgspec

    from streamssm.report import algorithmic_latency

    manifest = file.manifest
    report = {
        "path": str(file.path),
        "file_bytes": file.nbytes,
        **msgspec.to_builtins(manifest),
        "state_bytes": manifest.state_bytes,
        "layers": [
            {"name": name, "bytes": sum(state.nbytes for state in states)}
            for name, states in _layers(manifest.states).items()
        ],
        "algorithmic_latency": algorithmic_latency(manifest, manifest.block),
        "operators": _operators(file),
        "kernels": _kernels(file),
        "golden": file.golden is not None,
    }
    click.echo(json.dumps(report, indent=2))


def _print_tables(file: ModelFile) -> None:
    from streamssm.cli.show import show

    show(_overview(file))
    for table in (_states(file.manifest), _errors(file.manifest)):
        if table is not None:
            show("", table)


def _overview(file: ModelFile) -> Table:
    from streamssm.cli.show import binary_size, table
    from streamssm.report import latency_text

    m = file.manifest
    rows = {
        "model": m.name,
        "description": m.description,
        "in": _input(m),
        **{f"out {output.name}": _output(m, index) for index, output in enumerate(m.outputs)},
        "events": _events(m),
        "latency": latency_text(m, m.block),
        "counts": f"hop {m.input.hop}, look-ahead {m.lookahead}, block {m.block} items",
        "state": f"{m.state_bytes} bytes a stream in {len(m.states)} tensors",
        "parameters": f"{m.parameters:,}",
        "weights": _weights(m),
        "file": f"{file.path}, {binary_size(file.path.stat().st_size)}",
        "weights in": ", ".join(f"{side.name}, {binary_size(side.size)}" for side in m.external),
        "sha256": m.sha256,
        "licence": m.license or "not stated",
        "producer": m.producer,
        "operators": ", ".join(f"{name} {count}".strip() for name, count in _operators(file).items()),
        "kernels": _kernels(file),
        "golden vectors": "yes" if file.golden is not None else "none",
        **{f"from {key}": _plain(value) for key, value in m.provenance.items()},
    }
    return table([], [(key, value) for key, value in rows.items() if value])


def _input(m: Manifest) -> str:
    spec = m.input
    shape = ", ".join(["T", *map(str, spec.shape)])
    parts = [f"{spec.kind} {spec.name!r}, {spec.dtype} [{shape}]"]
    if spec.rate is not None:
        parts.append(f"{spec.rate:g} items a second")
    if spec.vocabulary is not None:
        parts.append(f"vocabulary {spec.vocabulary}")
    if spec.alphabet:
        parts.append(f"alphabet {spec.alphabet}")
    if spec.end:
        parts.append(f"texts end with {', '.join(map(str, spec.end))}")
    if spec.front_end:
        parts.append(f"front end in the graph: {spec.front_end}")
    return ", ".join(parts)


def _output(m: Manifest, index: int) -> str:
    output = m.outputs[index]
    shape = ", ".join(["F", *map(str, output.shape)])
    parts = [f"{output.kind}, float32 [{shape}]", f"{output.per_item} items for each in"]
    if m.input.rate is not None:
        parts.append(f"{float(m.input.rate * output.per_item):g} a second")
    if output.labels:
        parts.append("labels " + ", ".join(output.labels))
    return ", ".join(parts)


def _weights(m: Manifest) -> str:
    stored = m.weights
    if stored.dtype == "float32":
        return ""
    kept = f"; on request float32: {', '.join(stored.excluded)}" if stored.excluded else ""
    return f"{stored.dtype} in blocks of {stored.block_size}{kept}"


def _events(m: Manifest) -> str:
    rule = m.events
    if rule is None:
        return ""
    unit = "s" if m.input.rate is not None else "items"
    return (
        f"{rule.label}: {rule.output} {'every column' if rule.every else f'column {rule.column}'}, "
        f"starts at {rule.onset:g} for {rule.min_on:g} {unit}, "
        f"ends below {rule.offset:g} for {rule.min_off:g} {unit}"
    )


def _states(m: Manifest) -> Table | None:
    from streamssm.cli.show import table

    if not m.states:
        return None
    rows: list[tuple[str, str, str, str]] = []
    for name, states in _layers(m.states).items():
        total = sum(state.nbytes for state in states)
        what = ", ".join(
            f"{state.name.rpartition('.')[2]} {state.dtype} {list(state.shape)}" for state in states
        )
        rows.append((name, str(total), f"{total / max(1, m.state_bytes):.0%}", what))
    return table(["layer", "bytes", "share", "state"], rows)


def _errors(m: Manifest) -> Table | None:
    from streamssm.cli.show import table

    if not m.errors:
        return None
    rows = [(e.name, f"{e.max_abs:.2g}", f"{e.max_rel:.2g}", str(e.items)) for e in m.errors]
    return table(["certified error", "absolute", "relative", "items"], rows)


def _layers(states: Iterable[StateTensor]) -> dict[str, list[StateTensor]]:
    """States by the layer that owns them: the name up to its last part."""
    layers: dict[str, list[StateTensor]] = {}
    for state in states:
        layers.setdefault(state.name.rpartition(".")[0] or state.name, []).append(state)
    return layers


def _operators(file: ModelFile) -> Mapping[str, int]:
    """How often each operator occurs; those of ours carry their domain."""
    counts = file.op_counts
    return {
        f"{domain}.{name}" if domain else name: count
        for (domain, name), count in sorted(counts.items(), key=lambda entry: (entry[0][0] == "", entry[0]))
    }


def _kernels(file: ModelFile) -> str:
    """What a session on this machine would run the operators on."""
    from streamssm.native import choose

    return str(choose(file.op_counts))


def _plain(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)
