"""Large weights: in a file beside the model, read one at a time, compared with the model they are of."""

from __future__ import annotations

import os
import subprocess
import sys
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
from torch import nn

import streamssm
from streamssm.atomic import move_into_place
from streamssm.checks import run_checks
from streamssm.errors import ExportError, IntegrityError, OutputError
from streamssm.export import build, export, model_options, quantize
from streamssm.export.layers import Linear, StreamingLayer
from streamssm.export.parameters import parameters_of, reference
from streamssm.manifest import ROUNDING
from streamssm.onnx_file import read_model_file

WIDE = {
    "input": {"kind": "tokens", "vocabulary": 900},
    "pattern": ["mamba", "swa"],
    "d_model": 320,
    "swa": {"window": 6, "num_heads": 4},
    "head": {"size": 900, "tied": True},
}


def wide() -> StreamingLayer:
    torch.manual_seed(3)
    return build(WIDE).eval()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One model as one file and as two; its matrices are above the size that stays in its file."""
    folder = tmp_path_factory.mktemp("wide")
    one, two = folder / "one.onnx", folder / "two.onnx"
    export(wide(), one, name="wide", **model_options(WIDE))
    export(wide(), two, name="wide", one_file=0, **model_options(WIDE))
    return one, two


def test_two_files_are_the_one_in_two_parts(pair, load: Callable):
    one, two = pair
    side = two.with_name("two.onnx.data")
    assert sorted(p.name for p in two.parent.iterdir()) == ["one.onnx", "two.onnx", "two.onnx.data"]
    assert two.stat().st_size < 0.05 * one.stat().st_size < side.stat().st_size
    x = draw_items(load(one).manifest.input, 40)
    assert load(one).scan(x, block=4).tobytes() == load(two).scan(x, block=4).tobytes()
    (recorded,) = read_model_file(two).manifest.external
    assert (recorded.name, recorded.size) == (side.name, side.stat().st_size)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_split_of_two_files_is_byte_equal(pair, load: Callable, data: st.DataObject):
    assert_one_random_split_is_byte_equal(load(pair[1]), data)


def test_both_forms_pass_the_checks_and_the_onnx_checker(pair):
    for path in pair:
        assert {check.verdict for check in run_checks(streamssm.load(path), splits=5)} == {"pass"}
        onnx.checker.check_model(os.fspath(path), full_check=True)


def test_large_tensors_are_aligned_in_either_file(pair):
    one, two = (path.read_bytes() for path in pair)
    for value in onnx.load(pair[0]).graph.initializer:
        if len(value.raw_data) >= 1 << 16:
            assert one.index(value.raw_data) % 64 == 0
    model = onnx.load_from_string(two)
    for value in model.graph.initializer:
        if value.external_data:
            assert int({entry.key: entry.value for entry in value.external_data}["offset"]) % 64 == 0


def test_a_matrix_of_an_embedding_and_a_head_is_stored_once(pair):
    model = onnx.load(pair[0])
    stored = {value.name: tuple(value.dims) for value in model.graph.initializer}
    assert [shape for shape in stored.values() if 900 in shape] == [(900, 320)]
    assert stored["embedding.weight"] == (900, 320)
    (node,) = (node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in stored)
    assert list(node.output) == ["head.weight.T"]


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_model_of_two_files_is_quantised_like_one(pair, tmp_path, weights):
    reports = [quantize(path, tmp_path / path.name, weights, per_layer=False) for path in pair]
    first, second = (streamssm.load(tmp_path / path.name) for path in pair)
    x = draw_items(first.manifest.input, 30)
    assert first.scan(x).tobytes() == second.scan(x).tobytes()
    assert reports[0].bytes[0] == pytest.approx(reports[1].bytes[0], rel=0.01)
    assert {"head.weight", "backbone.layers.0.mixer.in_proj.weight"} <= {
        layer.name for layer in reports[1].layers
    }


def test_reproducible_in_two_files(pair, tmp_path):
    again = export(wide(), tmp_path / "two.onnx", name="wide", one_file=0, **model_options(WIDE))
    assert again.sha256 == read_model_file(pair[1]).manifest.sha256


def test_replacing_one_form_by_the_other(tmp_path):
    path = tmp_path / "m.onnx"
    for one_file in (0, 1 << 30, 0):
        export(Linear(30, 20), path, one_file=one_file)
        assert bool(streamssm.load(path).manifest.external) == (one_file == 0)


def test_a_failure_while_placing_leaves_the_old_pair(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    export(Linear(30, 20), path, one_file=0)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    replace = os.replace

    def fail_for_the_model(source, target):
        if Path(target) == path and not Path(source).name.startswith("."):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_for_the_model)
    with pytest.raises(OutputError, match="No space left"):
        export(Linear(30, 20), path, one_file=0)
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    streamssm.load(path)


def test_a_pair_that_was_torn_apart_is_noticed(tmp_path):
    path, side = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    export(Linear(30, 20), path, one_file=0)
    old = side.read_bytes()
    export(Linear(30, 20), path, one_file=0)
    side.write_bytes(old)
    with pytest.raises(IntegrityError):
        streamssm.load(path)


def test_moving_nothing_onto_a_folder(tmp_path):
    (tmp_path / "new").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError):
        move_into_place([(tmp_path / "new", tmp_path / "folder")])


# Weights that are read when they are wanted.


def on_meta(layer: StreamingLayer) -> tuple[StreamingLayer, dict[str, Callable]]:
    """The model without values, and functions that read them."""
    values = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    weights = {name: (lambda value=value: value) for name, value in values.items()}
    with torch.device("meta"):
        empty = build(WIDE)
    return empty.eval(), weights


def test_weights_come_from_where_the_caller_says(pair, tmp_path):
    empty, weights = on_meta(wide())
    manifest = export(empty, tmp_path / "m.onnx", name="wide", weights=weights, **model_options(WIDE))
    assert manifest.sha256 == read_model_file(pair[0]).manifest.sha256
    assert all(parameter.is_meta for parameter in empty.parameters())


def test_one_of_the_names_of_a_shared_weight_will_do(tmp_path):
    empty, weights = on_meta(wide())
    weights["head.weight"] = weights.pop("embedding.weight")
    export(empty, tmp_path / "m.onnx", weights=weights, **model_options(WIDE))


def infinite() -> torch.Tensor:
    value = torch.zeros(320)
    value[7] = torch.inf
    return value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("backbone.norm_f.weight", None, "backbone.norm_f.weight is on the meta device"),
        (
            "backbone.norm.weight",
            lambda: torch.zeros(1),
            "holds 'backbone.norm.weight', which the model has not",
        ),
        ("backbone.norm_f.weight", lambda: torch.zeros(319), r"has shape \[319\], the model \[320\]"),
        ("backbone.norm_f.weight", lambda: torch.zeros(320).half(), "has dtype torch.float16"),
        ("backbone.norm_f.weight", lambda: torch.full((320,), torch.nan), "norm_f.weight holds NaN"),
        ("backbone.norm_f.weight", infinite, "holds NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, name, value, message):
    empty, weights = on_meta(wide())
    if value is None:
        del weights[name]
    else:
        weights[name] = value
    with pytest.raises(ExportError, match=message):
        export(empty, tmp_path / "m.onnx", weights=weights, **model_options(WIDE))
    assert not list(tmp_path.iterdir())


def test_a_buffer_without_values_is_refused(tmp_path):
    layer = Linear(3, 2)
    layer.register_buffer("scale", torch.zeros(2, device="meta"))
    with pytest.raises(ExportError, match="buffer scale is on the meta device"):
        export(layer, tmp_path / "m.onnx")


def test_the_model_is_left_as_it_is(tmp_path):
    layer = wide().train()
    before = {name: (value.data_ptr(), value.clone()) for name, value in layer.state_dict().items()}
    export(layer, tmp_path / "m.onnx", **model_options(WIDE))
    assert layer.training
    assert all(parameter.requires_grad for parameter in layer.parameters())
    for name, value in layer.state_dict().items():
        assert value.data_ptr() == before[name][0]
        assert torch.equal(value, before[name][1])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_reference_that_reads_its_weights_late_is_the_reference(name, dtype, monkeypatch):
    layer = build_model(name)
    x = torch.from_numpy(draw_items_of(layer))[None]
    x = x.to(dtype) if x.is_floating_point() else x
    results = []
    for small in (1 << 24, 0):
        monkeypatch.setattr("streamssm.export.parameters.SMALL", small)
        late = reference(layer, parameters_of(layer, None), dtype)
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in late.init_state(1).items()}
        with torch.no_grad():
            y, _ = late(x, state)
        results.append(y)
    assert results[0].dtype == dtype
    torch.testing.assert_close(*results, rtol=1e-10 if dtype == torch.float64 else 1e-4, atol=1e-5)


def draw_items_of(layer: StreamingLayer) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (9 * layer.hop, *layer.item_shape)
    if layer.vocabulary:
        return rng.integers(0, layer.vocabulary, shape)
    return rng.standard_normal(shape).astype(np.float32)


def test_late_weights_of_torch_s_own_recurrent_layers(monkeypatch):
    class Own(StreamingLayer):
        item_shape = (3,)

        def __init__(self):
            super().__init__()
            self.inner = nn.GRU(3, 4, batch_first=True)

        def forward(self, x, state=None):
            return self.inner(x)[0], self.start(x, state)

    layer, x = Own(), torch.randn(1, 5, 3, dtype=torch.float64)
    monkeypatch.setattr("streamssm.export.parameters.SMALL", 0)
    with torch.no_grad():
        y = reference(layer, parameters_of(layer, None))(x, {})[0]
        torch.testing.assert_close(y, layer.double()(x, {})[0])


# Verification.


class Converted(Linear):
    """A layer that knows what it was made from."""

    off = 0.0

    def reference(self, x):
        return nn.functional.linear(x, self.weight, self.bias) * (1 + self.off)


def test_the_file_is_compared_with_the_original_too(tmp_path):
    errors = export(Converted(3, 2), tmp_path / "m.onnx").errors
    ways = ["whole", "random splits", "single steps"]
    origins = ["float64", "the original"]
    assert [e.name for e in errors] == [f"{way} against {origin}" for way in ways for origin in origins]
    assert all(error.items >= 256 and error.max_rel < 1e-5 for error in errors)


def test_a_file_that_is_not_the_original_is_refused(tmp_path):
    layer = Converted(3, 2)
    layer.off = 1e-3
    with pytest.raises(ExportError, match="differs from the original torch module by"):
        export(layer, tmp_path / "m.onnx")
    layer.reference = lambda x: x
    with pytest.raises(ExportError, match=r"of the original has shape \[256, 3\]"):
        export(layer, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_without_verification_nothing_is_run(tmp_path):
    layer = Converted(3, 2)
    layer.off = 1.0
    manifest = export(layer, tmp_path / "m.onnx", verify=False)
    model = streamssm.load(tmp_path / "m.onnx")
    assert manifest.errors == ()
    assert model.golden() is None


class Amplifying(StreamingLayer):
    """Takes a small difference of large numbers, so that float32 is far from float64."""

    item_shape = (3,)
    gain = 1e5

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 1 / 3))

    def forward(self, x, state=None):
        return (x + self.gain) * self.weight - self.gain / 3, self.start(x, state)


def test_a_model_that_amplifies_rounding_is_judged_by_its_own(tmp_path):
    manifest = export(Amplifying(), tmp_path / "m.onnx")
    own = next(error for error in manifest.errors if error.name == ROUNDING)
    assert own.max_rel == manifest.rounding > 1e-4
    assert {check.verdict for check in run_checks(streamssm.load(tmp_path / "m.onnx"), splits=3)} == {"pass"}
    wild = Amplifying()
    wild.gain = 1e8
    with pytest.raises(ExportError, match="differs from the torch model"):
        export(wild, tmp_path / "wild.onnx")


def test_the_imposed_window_is_in_the_manifest(tmp_path):
    assert export(Linear(3, 2), tmp_path / "m.onnx", window_imposed=64).window_imposed == 64
    assert read_model_file(tmp_path / "m.onnx").manifest.window_imposed == 64


# Memory.

MEASURE = """
import sys, torch
torch.set_num_threads(1)
from streamssm.export import export
from streamssm.export.layers import Embedding, Head, Mamba, Sequential
def model(width, tokens):
    with torch.device("meta"):
        layers = {"embedding": Embedding(tokens, width), "mixer": Mamba(width)}
        return Sequential(layers | {"head": Head(width, tokens, bias=False)}).eval()
def run(width, tokens):
    empty = model(width, tokens)
    def read(name, shape):
        torch.manual_seed(hash(name) % 1000)
        return torch.empty(shape).normal_(0, 0.02)
    weights = {n: (lambda n=n, s=p.shape: read(n, s)) for n, p in empty.named_parameters()}
    export(empty, sys.argv[1], kind="tokens", vocabulary=tokens, weights=weights, one_file=int(sys.argv[2]))
    return 4 * sum(p.numel() for p in empty.parameters())
def peak():  # what getrusage says is inherited from the process that started this one
    with open("/proc/self/status") as said:
        return next(int(line.split()[1]) * 1024 for line in said if line.startswith("VmHWM"))
run(32, 50)
before = peak()
size = run(1024, 12000)
print((peak() - before) / size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
@pytest.mark.parametrize("one_file", [1 << 40, 0])
def test_exporting_takes_little_more_than_the_weights(tmp_path, one_file):
    """122 MB of weights, each matrix a third of them: above what a tiny export takes."""
    command = [sys.executable, "-c", MEASURE, os.fspath(tmp_path / "m.onnx"), str(one_file)]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert float(done.stdout) < 2.2
