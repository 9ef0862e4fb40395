"""Whole files: what is quantised and what is not, the promise, the golden vectors, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from splitting import assert_one_random_split_is_byte_equal, draw_items

import streamssm
from streamssm import tolerance
from streamssm.backends.cpu import import_onnxruntime
from streamssm.backends.requirements import check_version
from streamssm.checks import run_checks
from streamssm.errors import BackendError, ExportError, InputError, ManifestError, OutputError, UsageError
from streamssm.export import OutputSpec, build, export, model_options, quantize, quantizer
from streamssm.export.layers import Linear, Sequential, StreamingLayer
from streamssm.export.quantize_blocks import QuantisedMatrix
from streamssm.manifest import Weights, decode_manifest

CONFIGS: dict[str, dict[str, Any]] = {
    # a dense convolution, K = 120 and 34 in blocks of 32, every mixer, an odd number of outputs
    "sensor": {
        "input": {"kind": "features", "size": 40, "rate": 50},
        "stem": {"kernel_size": 3},
        "pattern": ["mamba", "mamba2", "swa"],
        "d_model": 34,
        "mamba2": {"headdim": 17, "d_state": 12},
        "swa": {"window": 7, "num_heads": 2, "rope_base": None},
        "head": {"size": 9, "activation": "softmax"},
        "block": 4,
    },
    # an embedding and the head that shares its matrix
    "tokens": {
        "input": {"kind": "tokens", "vocabulary": 50},
        "pattern": ["mamba"],
        "d_model": 40,
        "mlp": {"hidden": 36},
        "head": {"size": 50, "tied": True},
    },
    # samples, a front end that stays float32, one column of probability
    "audio": {
        "input": {
            "kind": "samples",
            "rate": 8000,
            "front_end": {"type": "log_mel", "window": 200, "hop": 80, "n_fft": 256, "n_mels": 36},
        },
        "pattern": ["mamba"],
        "d_model": 36,
        "head": {"size": 1, "activation": "sigmoid"},
        "block": 160,
    },
}
TYPES = ("int8", "int4")
CASES = [(name, weights) for name in CONFIGS for weights in TYPES]


def layer_of(name: str) -> torch.nn.Module:
    torch.manual_seed(len(name))
    return build(CONFIGS[name]).eval()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The float32 files."""
    folder = tmp_path_factory.mktemp("float32")
    paths = {name: folder / f"{name}.onnx" for name in CONFIGS}
    for name, path in paths.items():
        export(layer_of(name), path, **model_options(CONFIGS[name]))
    return paths


@pytest.fixture(scope="module")
def quantised(plain: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple, Path]:
    """Every model in every type, in blocks of 32."""
    folder = tmp_path_factory.mktemp("quantised")
    paths = {case: folder / f"{'_'.join(case)}.onnx" for case in CASES}
    for (name, weights), path in paths.items():
        quantize(plain[name], path, weights, block_size=32, per_layer=False)
    return paths


@pytest.fixture(scope="module")
def opened(quantised: dict[tuple, Path]) -> dict[str, streamssm.Model]:
    """The hybrid, by type."""
    return {weights: streamssm.load(quantised["sensor", weights]) for weights in TYPES}


def nodes(path: Path, kind: str) -> dict[str, onnx.NodeProto]:
    """The nodes of a kind by their second input."""
    return {node.input[1]: node for node in onnx.load(path).graph.node if node.op_type == kind}


def stored(path: Path) -> dict[str, np.ndarray]:
    return {value.name: numpy_helper.to_array(value) for value in onnx.load(path).graph.initializer}


# --- what becomes of a graph --------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_large_linear_layers_are_quantised_and_nothing_else(plain, quantised, case) -> None:
    path, bits = quantised[case], int(case[1].removeprefix("int"))
    found = nodes(path, "MatMulNBits")
    for name, node in found.items():
        assert name.endswith(".weight.q")
        assert node.input[2] == name.removesuffix(".q") + ".scale"
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        assert (attributes["bits"], attributes["block_size"], attributes["accuracy_level"]) == (bits, 32, 4)
        assert attributes["K"] >= 32
        assert attributes["N"] >= 8
    before, after = stored(plain[case[0]]), stored(path)
    kept = before.keys() & after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in kept)
    assert {name.rpartition(".weight.")[0] for name in found} == {
        "sensor": {
            "stem0",
            "head",
            *(f"backbone.layers.{i}.mixer.{part}" for i in (0, 1) for part in ("in_proj", "out_proj")),
            "backbone.layers.0.mixer.x_proj",
            *(f"backbone.layers.2.mixer.{part}_proj" for part in "qkvo"),
        },
        "tokens": {
            "head",
            *(f"backbone.layers.0.mixer.{part}_proj" for part in ("in", "x", "out")),
            *(f"backbone.layers.0.mlp.{part}" for part in ("fc1", "fc2")),
        },
        "audio": {"stem", *(f"backbone.layers.0.mixer.{part}_proj" for part in ("in", "x", "out"))},
    }[case[0]]


def test_tied_head_is_quantised_and_its_embedding_is_not(plain, quantised) -> None:
    for weights in TYPES:
        tensors = stored(quantised["tokens", weights])
        assert tensors["embedding.weight"].dtype == np.float32
        assert "head.weight.T" not in tensors
        assert tensors["head.weight.q"].shape == (50, 2, 32 * int(weights[3:]) // 8)
    assert "head.weight.T" in stored(plain["tokens"])


class Spectrum(StreamingLayer):
    """A front end as a product with a constant that is no weight."""

    item_shape = (40,)

    def __init__(self):
        super().__init__()
        self.register_constant("fourier", torch.randn(40, 36, dtype=torch.float64))

    def forward(self, x, state=None):
        return (x @ self.fourier.to(x.dtype)).square(), self.start(x, state)


def test_small_matrices_and_the_front_end_stay(plain, tmp_path) -> None:
    kept = quantize(plain["audio"], tmp_path / "a.onnx", per_layer=False).kept
    assert kept["head.weight"] == "36 x 1, less than 32 x 8"
    assert kept["backbone.layers.0.mixer.dt_proj.weight"].startswith("3 x 72")
    torch.manual_seed(0)
    export(Sequential(Spectrum(), Linear(36, 8)), tmp_path / "b.onnx")
    report = quantize(tmp_path / "b.onnx", tmp_path / "c.onnx", per_layer=False)
    assert report.kept == {"0.fourier": "front end"}
    assert [layer.name for layer in report.layers] == ["1.weight"]


# --- what the file computes ---------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_golden_vectors_are_exact_products_with_the_rounded_weights(quantised, case) -> None:
    """The torch model with the file's weights put into it gives them, to float32's accuracy."""
    layer, path = layer_of(case[0]), quantised[case]
    tensors = stored(path)
    for name, node in nodes(path, "MatMulNBits").items():
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        matrix = QuantisedMatrix(
            tensors[name],
            tensors[node.input[2]],
            attributes["K"],
            attributes["bits"],
            attributes["block_size"],
        )
        module, _, parameter = name.removesuffix(".q").rpartition(".")
        owner = layer.get_submodule(module)
        weight = torch.from_numpy(matrix.restored().T)
        if owner.weight.ndim == 3:
            weight = weight.unflatten(1, (owner.weight.shape[2], -1)).permute(0, 2, 1)
        setattr(owner, parameter, torch.nn.Parameter(weight))
    x, outputs = streamssm.load(path).golden()
    with torch.no_grad():
        y = layer(torch.from_numpy(x)[None])[0][0].numpy()
    assert tolerance.within(next(iter(outputs.values())), y, "float32")


@pytest.mark.parametrize("case", CASES)
def test_check_passes(quantised, case) -> None:
    verdicts = {check.name: check for check in run_checks(streamssm.load(quantised[case]), splits=5)}
    assert {check.verdict for check in verdicts.values()} == {"pass"}, verdicts


@pytest.mark.parametrize("weights", TYPES)
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_split_is_byte_equal(opened, weights, data) -> None:
    assert_one_random_split_is_byte_equal(opened[weights], data)


@pytest.mark.parametrize("case", CASES)
def test_no_items_move_nothing(quantised, case) -> None:
    manifest = streamssm.load(quantised[case]).manifest
    session = import_onnxruntime().InferenceSession(quantised[case], providers=["CPUExecutionProvider"])
    spec = manifest.input
    states = {s.name: np.full((2, *s.shape), 1, s.dtype) for s in manifest.states}
    y, *following = session.run(None, {spec.name: np.zeros((2, 0, *spec.shape), spec.dtype), **states})
    assert y.shape == (2, 0, *manifest.outputs[0].shape)
    for before, after in zip(states.values(), following, strict=True):
        assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize("case", CASES)
def test_the_file_records_what_it_is(plain, quantised, case) -> None:
    before, after = (streamssm.load(path).manifest for path in (plain[case[0]], quantised[case]))
    assert before.weights == Weights()
    assert after.weights == Weights(case[1], 32)
    assert after.provenance["float32 file"] == before.sha256
    assert (after.name, after.states, after.outputs) == (before.name, before.states, before.outputs)
    float32, *exact = after.errors
    assert float32.name == "against the float32 file"
    assert float32.max_rel > 1e-4  # an honest figure: rounding does change the outputs
    assert [error.name.rpartition(" against ")[2] for error in exact] == ["exact products"] * 3
    assert all(error.max_rel < tolerance.tolerance(case[1]).rtol for error in exact)


# --- the report ---------------------------------------------------------------------------


def test_report_measures_each_layer_and_all(plain, tmp_path) -> None:
    source, path, steps = plain["tokens"], tmp_path / "q.onnx", []
    model = streamssm.load(source)
    x = np.stack([draw_items(model.manifest.input, 60, seed) for seed in (1, 2)])
    labels = model.scan(x).argmax(-1)  # what float32 says: it scores 1
    labels[1, 50:] = -1
    report = quantize(source, path, "int4", data=(x, labels), progress=lambda *step: steps.append(step))
    assert json.loads(json.dumps(report.to_dict()))["weights"] == "int4"
    assert (report.source_sha256, report.sha256) == (model.sha256, streamssm.load(path).sha256)
    assert report.bytes == (source.stat().st_size, path.stat().st_size)
    assert report.bytes[1] < report.bytes[0]
    assert (report.metric, report.baseline, report.items) == ("accuracy", 1.0, 120)
    found = streamssm.load(path).scan(x)
    assert report.total.metric == np.mean((found.argmax(-1) == labels)[labels >= 0])
    assert report.total.max_abs == pytest.approx(np.abs(found - model.scan(x)).max(), rel=1e-4)
    assert {step[0] for step in steps} == {"rounding", "measuring single layers"}
    assert len(report.layers) == 6
    for layer in report.layers:
        assert 0.02 < layer.weight_error < 0.15
        assert 0 < layer.effect.rms < 2 * report.total.rms
        assert layer.effect.metric <= 1
    assert 0.02 < report.weight_error < 0.15


def test_one_column_is_scored_by_auc_and_callables_by_themselves(plain, tmp_path) -> None:
    x = draw_items(streamssm.load(plain["audio"]).manifest.input, 4000)
    y = streamssm.load(plain["audio"]).scan(x)[:, 0]
    labels = y > np.median(y)
    np.savez(tmp_path / "set.npz", x=x, labels=labels)
    report = quantize(plain["audio"], tmp_path / "q.onnx", data=tmp_path / "set.npz", per_layer=False)
    assert (report.metric, report.baseline) == ("auc", 1.0)
    assert 0.9 < report.total.metric <= 1

    def agreement(result: np.ndarray, given: np.ndarray) -> float:
        assert result.shape == (1, 50, 1)
        return float(((result[..., 0] > 0.5) == given).mean())

    own = quantize(plain["audio"], tmp_path / "q.onnx", data=(x, labels), metric=agreement, per_layer=False)
    assert own.metric == "agreement"
    assert own.layers[0].effect is None


def test_quantising_is_reproducible(plain, tmp_path) -> None:
    for name in "ab":
        quantize(plain["tokens"], tmp_path / name, "int4", per_layer=False)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_excluded_layers_stay_as_they_are(plain, tmp_path) -> None:
    path = tmp_path / "q.onnx"
    report = quantize(plain["tokens"], path, exclude=["head.*", "*.x_proj.weight"], per_layer=False)
    names = ("backbone.layers.0.mixer.x_proj.weight", "head.weight")
    assert streamssm.load(path).manifest.weights.excluded == names
    assert {name: report.kept[name] for name in names} == dict.fromkeys(names, "excluded")
    before, after = stored(plain["tokens"]), stored(path)
    assert all(before[f"{name}.T"].tobytes() == after[f"{name}.T"].tobytes() for name in names)


@pytest.fixture
def tried(monkeypatch) -> list[list[str]]:
    """The quantised layers of every draft; those with what a scan reads among them are refused."""
    found: list[list[str]] = []
    plainly = quantizer.certify

    def certify(draft: Path, *rest: object) -> tuple[object, ...]:
        found.append(nodes(draft, "MatMulNBits"))
        if any("x_proj" in node for node in found[-1]):
            raise ExportError("output 'label' differs")
        return plainly(draft, *rest)

    monkeypatch.setattr(quantizer, "certify", certify)
    return found


X_PROJ = "backbone.layers.0.mixer.x_proj.weight"


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_what_a_scan_reads_stays_float32_where_the_file_is_refused_with_it(
    plain, tmp_path, tried, weights
) -> None:
    path, said = tmp_path / "q.onnx", []
    report = quantize(
        plain["tokens"], path, weights, exclude=["head.*"], progress=lambda *step: said.append(step)
    )
    assert set(tried[0]) - set(tried[1]) == {X_PROJ + ".q"}
    assert report.kept[X_PROJ] == "read by a scan, which amplifies its rounding"
    assert report.kept["head.weight"] == "excluded"
    assert streamssm.load(path).manifest.weights.excluded == ("head.weight",)
    assert X_PROJ not in {layer.name for layer in report.layers}
    assert set(nodes(path, "MatMulNBits")) == set(tried[1])
    assert len(said) == len(set(said))  # nothing is rounded, or shown, twice


def test_what_is_refused_without_what_a_scan_reads_is_said_with_both(plain, tmp_path, monkeypatch) -> None:
    def certify(draft: Path, *_: object) -> tuple[object, ...]:
        raise ExportError(f"output 'label' of {len(nodes(draft, 'MatMulNBits'))} layers differs")

    monkeypatch.setattr(quantizer, "certify", certify)
    many = len(quantize_layers(plain["tokens"]))
    said = rf"of {many - 1} layers differs: the model amplifies.*; tried with x_proj rounded, then in float32"
    with pytest.raises(ExportError, match=said):
        quantize(plain["tokens"], tmp_path / "none.onnx", "int4", per_layer=False)
    assert not (tmp_path / "none.onnx").exists()


def quantize_layers(source: Path) -> list[str]:
    proto = onnx.load(source)
    return [layer.name for layer in quantizer._choose(quantizer.linear_layers(proto), ())[0]]


def test_a_refusal_stays_where_a_scan_reads_nothing_rounded(plain, tmp_path, tried, monkeypatch) -> None:
    report = quantize(plain["tokens"], tmp_path / "q.onnx", exclude=["*.x_proj.*"], per_layer=False)
    assert report.kept[X_PROJ] == "excluded"
    assert len(tried) == 1
    monkeypatch.setattr(quantizer, "SCAN_INPUTS", "other")
    with pytest.raises(ExportError, match=r"'label' differs: the model amplifies"):
        quantize(plain["tokens"], tmp_path / "none.onnx", "int4", per_layer=False)
    assert len(tried) == 2
    assert not (tmp_path / "none.onnx").exists()


# --- what is refused ----------------------------------------------------------------------

X = np.zeros((20, 40), np.float32)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"weights": "int5"}, UsageError, "choose int8 or int4"),
        ({"block_size": 48}, UsageError, "choose one of"),
        ({"exclude": ["heads.*"]}, UsageError, "'heads.*' matches no linear layer; there are stem0.weight"),
        ({"exclude": ["*"]}, ExportError, "nothing to quantise"),
        ({"data": np.zeros((5, 39), np.float32)}, UsageError, r"give x as \[T, 40\] or \[B, T, 40\]"),
        ({"data": np.full((5, 40), np.nan, np.float32)}, InputError, "holds nan"),
        ({"data": "missing.npz"}, UsageError, "missing.npz is no .npy or .npz file"),
        ({"metric": "accuracy"}, UsageError, "a metric needs labels"),
        ({"data": (X, np.zeros(20)), "metric": "auc"}, UsageError, "auc scores one column"),
        ({"data": (X, np.zeros(19))}, InputError, "one label for each output item"),
        ({"data": (X, np.full(20, -1))}, InputError, "nothing to score"),
        ({"data": (X, np.full(20, 99))}, InputError, "labels hold 99; accuracy of .* takes 0 to"),
        ({"data": (X, np.full(20, 0.5))}, InputError, "labels hold 0.5"),
    ],
    ids=lambda value: "",
)
def test_refused_and_nothing_written(plain, tmp_path, options: dict, kind: type, message: str) -> None:
    path = tmp_path / "q.onnx"
    path.write_bytes(b"as it was")
    with pytest.raises(kind, match=message):
        quantize(plain["sensor"], path, **options)
    assert path.read_bytes() == b"as it was"
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_cannot_be_quantised(plain, quantised, tmp_path) -> None:
    with pytest.raises(ExportError, match="already holds int8 weights; quantise the float32 file"):
        quantize(quantised["tokens", "int8"], tmp_path / "q.onnx", "int4")
    with pytest.raises(UsageError, match="over itself"):
        quantize(plain["tokens"], plain["tokens"])
    with pytest.raises(OutputError, match="create the folder"):
        quantize(plain["tokens"], tmp_path / "none" / "q.onnx")
    export(Linear(3, 2), tmp_path / "small.onnx", outputs=(OutputSpec("y"),))
    with pytest.raises(ExportError, match=r"weight: 3 x 2, less than 32 x 8\); use the float32 file"):
        quantize(tmp_path / "small.onnx", tmp_path / "q.onnx")
    export(Linear(40, 8), tmp_path / "features.onnx")
    data = (np.zeros((9, 40), np.float32), np.zeros(9))
    with pytest.raises(UsageError, match="give a callable"):
        quantize(tmp_path / "features.onnx", tmp_path / "q.onnx", data=data)


def test_an_old_onnxruntime_is_named(quantised) -> None:
    manifest = streamssm.load(quantised["tokens", "int8"]).manifest
    for version in ("1.20.1", "1.22.2", "unknown"):
        with pytest.raises(BackendError, match=rf"need onnxruntime 1.23 or later; {version} is installed"):
            check_version(Path("q.onnx"), manifest, version)
    for version in ("1.23.0", "1.31.1", "2.0"):
        check_version(Path("q.onnx"), manifest, version)
    check_version(Path("q.onnx"), streamssm.load(quantised["tokens", "int4"]).manifest, "1.20.1")


def test_manifests_without_the_field_are_read_and_contradictions_are_not(plain) -> None:
    text = json.loads(streamssm.load(plain["tokens"]).manifest.encode())
    weights = text.pop("weights")
    assert weights == {"dtype": "float32", "block_size": 0, "excluded": []}
    assert decode_manifest(json.dumps(text)).weights == Weights()
    for wrong in ({"dtype": "int8"}, {"dtype": "float32", "block_size": 32}, {"dtype": "int2"}):
        with pytest.raises(ManifestError):
            decode_manifest(json.dumps({**text, "weights": wrong}))
