"""Engines that TensorRT-RTX compiles on this machine, which needs no GPU. Nothing runs them here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from graphs import one_operator
from grid import GRID, make
from operators import causal_conv1d, log_mel, selective_scan, sliding_window_attention, state_space_dual

from streamssm.cli import cli
from streamssm.errors import ExportError
from streamssm.export.graph import trace
from streamssm.tensorrt.builder import Options, build, library
from streamssm.tensorrt.dialect import NAMESPACE, PLUGIN_VERSION, name_plugins, to_dialect, version_pair
from streamssm.tensorrt.folder import open_folder
from streamssm.tensorrt.lowering import lower
from streamssm.tensorrt.profiles import Calls
from streamssm.tensorrt.targets import RTX_SMS

pytest.importorskip("tensorrt_rtx", reason="pip install 'streamssm[rtx]'")


@pytest.fixture(scope="module")
def rtx():
    return library("tensorrt_rtx")


def nothing(what: str, done: int, total: int) -> None:
    pass


def test_the_command_builds_the_built_in_model(tmp_path: Path) -> None:
    folder = tmp_path / "vad.rtx-40"
    arguments = ["export", "vad", "--format", "tensorrt", "--target", "rtx-40", "--precision", "fp16"]
    result = CliRunner().invoke(cli, [*arguments, "--block", "160,640", "--batch", "4", "-o", str(folder)])
    assert result.exit_code == 0, result.stderr
    record = open_folder(folder).record
    assert record.sm == 89
    assert record.blocks == (160, 640)
    assert all(10_000 < file.size < 10_000_000 for file in record.engines)
    assert "fp16 products" in result.stderr


def test_every_gpu_it_knows_is_in_the_table_of_targets(rtx) -> None:
    known = {int(name[2:]) for name in rtx.ComputeCapability.__members__ if name.startswith("SM")}
    assert known == set(RTX_SMS)


@pytest.mark.parametrize("sm", RTX_SMS)
def test_a_hybrid_for_every_gpu(rtx, exported: dict[str, Path], sm: int) -> None:
    data = to_dialect(exported["sensor"], rtx.__version__, False, block=4, batch=1, products=sm != 75)
    built = build(rtx, data, "features", (4,), Options(Calls((4,))), sm, nothing)
    assert len(built.data) > 10_000


def test_what_it_cannot_read_is_said_in_its_own_words(rtx) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20, "nowhere" : 1]>
        odd (float[1, 4] x) => (float[1, 4] y) { y = nowhere.Unheard (x) }"""
    )
    with pytest.raises(ExportError, match=r"cannot read the graph: .*Unheard"):
        build(rtx, model.SerializeToString(), "x", (4,), Options(Calls((4,))), 89, nothing)


# Whether a parser of NVIDIA's finds our plugins in our dialects. Creators are all that this needs: they note
# what they are asked for, and make nothing.

FIELDS = {
    "CausalConv1d": (causal_conv1d(3), {"silu": "INT32"}),
    "SelectiveScan": (selective_scan(3), {}),
    "StateSpaceDual": (state_space_dual(3), {}),
    "SlidingWindowAttention": (sliding_window_attention(3, 8, 0), {"scale": "FLOAT32"}),
    "LogMel": (log_mel(3), {"hop": "INT32", "n_fft": "INT32", "eps": "FLOAT32"}),
}


@pytest.fixture(scope="module")
def asked(rtx) -> list[tuple[str, dict[str, object]]]:
    """What creators of the names of our plugins have been asked for: the name, and the fields."""
    found = []

    class Creator(rtx.IPluginCreatorV3One):
        def __init__(self, name: str, fields: dict[str, str]) -> None:
            rtx.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = name, PLUGIN_VERSION, NAMESPACE
            kinds = {field: getattr(rtx.PluginFieldType, kind) for field, kind in fields.items()}
            empty = np.array([])
            self.field_names = rtx.PluginFieldCollection(
                [rtx.PluginField(field, empty, kind) for field, kind in kinds.items()]
            )

        def create_plugin(self, name, fields, phase):
            found.append((self.name, {field.name: field.data.tolist() for field in fields}))

    creators = [Creator(name, fields) for name, (_, fields) in FIELDS.items()]
    registry = rtx.get_plugin_registry()
    assert all(registry.register_creator(creator, NAMESPACE) for creator in creators)
    yield found
    for creator in creators:
        registry.deregister_creator(creator)


@pytest.mark.parametrize("version", ["10.3", "10.16"])
@pytest.mark.parametrize("name", FIELDS)
def test_the_parser_finds_every_plugin_in_both_dialects(rtx, asked, name: str, version: str) -> None:
    case, fields = FIELDS[name]
    model = one_operator(case)
    lowered = lower(model, model.graph.input[0].name, case.attributes.get("hop", 1), None).model
    name_plugins(lowered.graph, version_pair(version))
    network = rtx.Builder(rtx.Logger(rtx.Logger.INTERNAL_ERROR)).create_network(1)
    parser = rtx.OnnxParser(network, rtx.Logger(rtx.Logger.INTERNAL_ERROR))
    asked.clear()
    assert not parser.parse(lowered.SerializeToString())
    assert "Could not create the plugin" in parser.get_error(0).desc()
    wanted = {
        field: [np.float32(case.attributes[field]) if kind == "FLOAT32" else int(case.attributes[field])]
        for field, kind in fields.items()
    }
    assert asked == [(name, wanted)]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(GRID))
def test_every_layer_compiles_for_a_step_and_a_chunk(rtx, name: str) -> None:
    layer = make(name)
    y, _ = layer(torch.zeros(1, 0, *layer.item_shape, dtype=layer.item_dtype))
    outputs = tuple(y) if isinstance(y, dict) else ("y",)
    model = trace(layer, "x", outputs, layer.vocabulary)
    for length, calls in ((1, Calls((layer.hop,))), (5, Calls((5 * layer.hop,), 3))):
        batch = 1 if calls.batch == 1 else None
        data = lower(model, "x", layer.hop, length * layer.hop, batch).model.SerializeToString()
        build(rtx, data, "x", calls.blocks, Options(calls), 89, nothing)
