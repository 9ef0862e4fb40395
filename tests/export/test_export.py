"""The exporter and the runtime together: the file's form, and the promise on whole models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import CONFIGS, build_model
from splitting import assert_one_random_split_is_byte_equal, draw_items

import streamssm
from streamssm import tolerance
from streamssm.errors import ExportError, OutputError
from streamssm.export import OutputSpec, export
from streamssm.export.functions import OPSET
from streamssm.export.layers import (
    CausalConv1d,
    Embedding,
    Linear,
    Mamba,
    ReLU,
    Sequential,
    SlidingWindowAttention,
    StateSpec,
    StreamingLayer,
)
from streamssm.manifest import EventRule

NAMES = tuple(CONFIGS)
SPLIT_SETTINGS = settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def opened(exported: dict[str, Path], load: Callable) -> dict[str, streamssm.Model]:
    return {name: load(path) for name, path in exported.items()}


@pytest.mark.parametrize("name", NAMES)
@SPLIT_SETTINGS
@given(data=st.data())
def test_any_split_is_byte_equal(opened: dict, name: str, data: st.DataObject) -> None:
    assert_one_random_split_is_byte_equal(opened[name], data)


@pytest.mark.parametrize("name", NAMES)
def test_file_equals_the_torch_model(opened: dict, name: str) -> None:
    model, layer = opened[name], build_model(name)
    x = draw_items(model.manifest.input, 60 * layer.hop, seed=1)
    with torch.no_grad():
        reference = layer(torch.from_numpy(x)[None])[0]
    reference = next(iter(reference.values())) if isinstance(reference, dict) else reference
    for block in (layer.hop, 7 * layer.hop, 60 * layer.hop):
        assert tolerance.within(model.scan(x, block=block), reference[0].numpy(), "float32")


@pytest.mark.parametrize("name", NAMES)
def test_reset_forgets_everything(opened: dict, name: str) -> None:
    model = opened[name]
    x = draw_items(model.manifest.input, 33 * model.manifest.input.hop)
    stream = model.stream()
    first = stream.push(x)
    stream.reset()
    assert stream.push(x).tobytes() == first.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch_are_the_single_streams(opened: dict, name: str) -> None:
    model = opened[name]
    spec = model.manifest.input
    rows = np.stack([draw_items(spec, 24 * spec.hop, seed=row) for row in range(3)])
    batched = model.stream(batch=3).push(rows)
    for row in range(3):
        assert tolerance.within(batched[row], model.stream().push(rows[row]), "float32")


@pytest.mark.parametrize("name", NAMES)
def test_file_says_what_it_is(exported: dict[str, Path], name: str) -> None:
    proto, layer = onnx.load(exported[name]), build_model(name)
    manifest = streamssm.load(exported[name]).manifest
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": OPSET, "streamssm": 1}
    states = list(layer.state_spec())
    assert [value.name for value in proto.graph.input] == [manifest.input.name, *states]
    results = [output.name for output in manifest.outputs]
    assert [value.name for value in proto.graph.output] == [*results, *(f"next.{s}" for s in states)]
    for value in proto.graph.input:
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    used = {node.op_type for node in proto.graph.node if node.domain == "streamssm"}
    assert used == {function.name for function in proto.functions}
    assert manifest.parameters == sum(p.numel() for p in layer.parameters())
    assert len(manifest.errors) == 3
    assert all(error.max_rel < 1e-5 for error in manifest.errors)


def test_certified_length_goes_around_the_window_twice(tmp_path: Path) -> None:
    manifest = export(SlidingWindowAttention(4, 2, 200), tmp_path / "wide.onnx")
    assert all(error.items >= 2 * 200 for error in manifest.errors)
    stored, _ = streamssm.load(tmp_path / "wide.onnx").golden()
    assert len(stored) == 100


def test_weights_keep_their_torch_names(exported: dict[str, Path]) -> None:
    names = {value.name for value in onnx.load(exported["sensor"]).graph.initializer}
    assert {"backbone.layers.0.mixer.in_proj.weight.T", "backbone.layers.0.mixer.D"} <= names


class Noisy(StreamingLayer):
    """Traces to something else than it computes: its export must be refused."""

    item_shape = (3,)

    def forward(self, x, state=None):
        y = x if torch.compiler.is_exporting() else 1.1 * x
        return y + 0.0, self.start(x, state)


class Branching(StreamingLayer):
    """Depends on the values of its input, which no graph can follow."""

    item_shape = (3,)

    def forward(self, x, state=None):
        return (x if x.sum() > 0 else -x), self.start(x, state)


class FixedBatch(StreamingLayer):
    """Traced at a batch of 2, it stays there."""

    item_shape = (3,)

    def forward(self, x, state=None):
        return x.reshape(int(x.shape[0]), -1, 3), self.start(x, state)


def diverged() -> Linear:
    layer = Linear(3, 2)
    torch.nn.init.constant_(layer.weight, torch.nan)
    return layer


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (Noisy(), {}, "differs from the torch model by"),
        (Branching(), {}, "torch cannot trace this model"),
        (Linear(3, 2), {"kind": "tokens"}, "vocabulary="),
        (Linear(3, 2), {"outputs": (OutputSpec("a"), OutputSpec("b"))}, "the outputs given are"),
        (ReLU(), {}, "items of any shape"),
        (Linear(3, 2), {"example": np.zeros((9, 4))}, r"example has shape \[9, 4\]; give \[T, 3\] with"),
        (Linear(3, 2), {"example": np.full((9, 3), np.nan)}, "example holds NaN"),
        (Linear(3, 2), {"outputs": (OutputSpec("features"),)}, "'features' names two"),
        (Linear(3, 2).half(), {}, "torch.float16"),
        (Linear(3, 2), {"block": 0}, "block of 0"),
        (CausalConv1d(3, 2, 4, stride=2), {"block": 3}, "block of 3"),
        (torch.nn.Linear(3, 2), {}, r"not a StreamingLayer; streamssm.export.convert\(model\) makes"),
        (Linear(3, 2), {"kind": "sound"}, "'sound' is none of samples, features, tokens"),
        (Linear(3, 2), {"outputs": (OutputSpec("a", "score"),)}, "'score', none of probability"),
        (Linear(3, 2), {"rate": float("nan")}, "rate = nan"),
        (Linear(3, 2), {"kind": "tokens", "vocabulary": 5}, "does not fit the kind 'tokens'"),
        (Embedding(5, 2), {}, "does not fit the kind 'features'"),
        (Embedding(5, 2), {"kind": "tokens", "vocabulary": 9}, "beyond the model's 5"),
        (Linear(3, 2), {"outputs": ()}, "give at least one"),
        (Linear(3, 2), {"outputs": (OutputSpec(""),)}, "a name to each"),
        (Linear(3, 2), {"outputs": (OutputSpec("a", labels=("x",)),)}, "2 columns and 1 labels"),
        (Linear(3, 2), {"provenance": {"made by": object()}}, "cannot say this about itself"),
        (diverged(), {}, "weight weight holds NaN"),
        (FixedBatch(), {}, "not what the model says"),
        (Linear(3, 2), {"events": EventRule("speech", "speech")}, "reads output 'speech'"),
        (Linear(3, 2), {"events": EventRule("output", "speech", column=2)}, "column 2 of 2"),
        (Linear(3, 2), {"events": EventRule("output", "move", every=True)}, "0 labels for 2 columns"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_refused_export_writes_nothing(tmp_path: Path, layer, options: dict, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"as it was")
    with pytest.raises(ExportError, match=message):
        export(layer, path, **options)
    assert path.read_bytes() == b"as it was"
    assert list(tmp_path.iterdir()) == [path]


class Named(StreamingLayer):
    """Parameter and state have names that torch gives to the values it computes."""

    item_shape = (3,)

    def __init__(self):
        super().__init__()
        self.features = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def state_spec(self):
        return {"add": StateSpec((3,))}

    def forward(self, x, state=None):
        past = torch.cat([self.start(x, state)["add"][:, None], x], dim=1)
        return past[:, :-1] * self.features + self.features * x, {"add": past[:, -1]}


@pytest.mark.parametrize("output", ["mul", "layer.features", "é /:\n", "0"])
def test_any_name_may_be_given(tmp_path: Path, output: str) -> None:
    export(Named(), tmp_path / "named.onnx", outputs=(OutputSpec(output),))
    model = streamssm.load(tmp_path / "named.onnx")
    assert model.manifest.outputs[0].name == output
    assert [state.name for state in model.manifest.states] == ["add"]


def test_missing_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="create the folder"):
        export(Linear(3, 2), tmp_path / "none" / "model.onnx")


def test_export_is_reproducible(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = Sequential(Linear(3, 8), Mamba(8, d_state=2))
    first = export(layer, tmp_path / "a.onnx", name="same")
    second = export(layer, tmp_path / "b.onnx", name="same")
    assert first.sha256 == second.sha256
