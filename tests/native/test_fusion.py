"""Stretches of a model as one node: the same results, in the same file format, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from models import CONFIGS, export_model
from onnx import TensorProto, helper, numpy_helper

import streamssm
from streamssm import tolerance
from streamssm.errors import ModelFileError
from streamssm.export import build, export, model_options
from streamssm.native import Loan, fusion, pack
from streamssm.native.graph import Graph
from streamssm.native.library import SWITCH, Library

OPSETS = [
    helper.make_opsetid("", 21),
    helper.make_opsetid("com.microsoft", 1),
    helper.make_opsetid("streamssm", 1),
]

#: hybrids of every mixer, with options that change the graph
CONFIGURATIONS: dict[str, dict] = {
    "mamba wide state": {"pattern": ["mamba"], "mamba": {"d_state": 37, "d_conv": 2, "expand": 3}},
    "mamba biases": {
        "pattern": ["mamba", "mamba"],
        "mamba": {"bias": True, "conv_bias": False, "dt_rank": 3},
    },
    "mamba2 groups": {
        "pattern": ["mamba2"],
        "mamba2": {"headdim": 4, "d_state": 5, "ngroups": 2, "d_has_hdim": True, "dt_limit": [0.01, 0.3]},
    },
    "mamba2 norm first": {
        "pattern": ["mamba2"],
        "mamba2": {"headdim": 8, "norm_before_gate": True, "bias": True},
    },
    "mamba2 no norm": {"pattern": ["mamba2"], "mamba2": {"headdim": 8, "rmsnorm": False, "d_conv": 7}},
    "attention between": {
        "pattern": ["mamba", "swa", "mamba2"],
        "mamba2": {"headdim": 8},
        "swa": {"window": 6, "num_heads": 2},
        "mlp": {"hidden": 19},
    },
    "recurrent between": {"pattern": ["mamba", "gru", "mamba", "lstm", "mamba"]},
    "layer norm": {"pattern": ["mamba", "mamba2"], "mamba2": {"headdim": 8}, "norm": "layer"},
}


def configured(name: str) -> dict:
    shared = {"input": {"kind": "features", "size": 5}, "d_model": 16, "head": {"size": 3}, "block": 4}
    return shared | CONFIGURATIONS[name]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fusion")
    paths = {name: export_model(name, folder) for name in CONFIGS}
    for index, name in enumerate(CONFIGURATIONS):
        torch.manual_seed(index)
        config, paths[name] = configured(name), folder / f"{index}.onnx"
        export(build(config).eval(), paths[name], **model_options(config))
    return paths


def opened(path: Path, switch: str) -> streamssm.Model:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, switch)
        return streamssm.load(path)


def draw(model: streamssm.Model, items: int, batch: int) -> np.ndarray:
    spec, generator = model.manifest.input, np.random.default_rng(items)
    if spec.kind == "tokens":
        return generator.integers(0, 40, (batch, items))
    return generator.standard_normal((batch, items, *spec.shape)).astype(np.float32)


@pytest.mark.parametrize("name", [*CONFIGS, *CONFIGURATIONS])
def test_fused_models_equal_their_bodies(library: Library, files: dict[str, Path], name: str) -> None:
    plain, fused = opened(files[name], "off"), opened(files[name], "on")
    assert "fused" in fused.kernels
    hop = plain.manifest.input.hop
    for block, batch in ((1, 1), (5, 3), (300, 2)):
        x = draw(plain, 2 * block * hop, batch)
        streams = [model.stream(block=block * hop, batch=batch) for model in (plain, fused)]
        wanted, found = ([s.push(x[:, : block * hop]), s.push(x[:, block * hop :])] for s in streams)
        for a, b in zip(wanted, found, strict=True):
            for key in a if isinstance(a, dict) else [None]:
                left, right = (a, b) if key is None else (a[key], b[key])
                assert tolerance.within(right, left, "float32")
        for left, right in zip(streams[0].state().states, streams[1].state().states, strict=True):
            assert tolerance.within(right, left, "float32")


@pytest.mark.parametrize("name", ["mamba biases", "mamba2 groups", "mamba wide state"])
def test_results_depend_on_no_block_and_no_batch(library: Library, files: dict[str, Path], name: str) -> None:
    """One node holds the whole path of an item, and its kernels are the same for any T."""
    model = opened(files[name], "on")
    x = draw(model, 420, 3)
    results = []
    for block in (1, 4, 420):
        rows = [model.stream(block=block).push(row).tobytes() for row in x]
        together = model.stream(block=block, batch=3).push(x)
        assert [row.tobytes() for row in together] == rows
        results.append(rows)
    assert results[0] == results[1] == results[2]


def test_a_block_is_one_node(library: Library, files: dict[str, Path]) -> None:
    fused = fusion.fuse(files["mamba biases"].read_bytes(), "avx2", lambda _: 1)
    assert fused is not None
    kinds = [node.kind for node in Graph(fused.model).nodes]
    assert kinds == ["streamssm.native.Fused"]
    assert fused.nodes == 1
    assert fused.nodes_before > 30


def test_rewriting_nothing_keeps_the_model(files: dict[str, Path]) -> None:
    data = files["tokens"].read_bytes()
    graph = Graph(data)
    before, after = onnx.load_from_string(data), onnx.load_from_string(graph.rewritten(graph.nodes, []))
    for model in (before, after):
        tensors = sorted(model.graph.initializer, key=lambda tensor: tensor.name)
        del model.graph.initializer[:]
        model.graph.initializer.extend(tensors)
    used = {name for node in graph.nodes for name in node.reads}
    unused = [tensor for tensor in before.graph.initializer if tensor.name not in used]
    for tensor in unused:
        before.graph.initializer.remove(tensor)
    assert before == after


def test_the_graph_reader_agrees_with_onnx(files: dict[str, Path]) -> None:
    for path in files.values():
        model, graph = onnx.load(path), Graph(path.read_bytes())
        assert [node.op for node in graph.nodes] == [node.op_type for node in model.graph.node]
        for seen, node in zip(graph.nodes, model.graph.node, strict=True):
            assert list(seen.inputs) == list(node.input)
            assert list(seen.outputs) == list(node.output)
            for attribute in node.attribute:
                if attribute.type in (1, 2, 7):  # a float, an integer, integers
                    assert seen.attributes[attribute.name] == helper.get_attribute_value(attribute)
        for tensor in model.graph.initializer:
            value = graph.constant(tensor.name)
            assert value is not None
            assert np.array_equal(value, numpy_helper.to_array(tensor))


# One product at a time, against the definition.


def dequantised(codes: np.ndarray, scales: np.ndarray, K: int, bits: int) -> np.ndarray:
    N = codes.shape[0]
    values = codes if bits == 8 else np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    centred = values.astype(np.float64) - (128 if bits == 8 else 8)
    return (centred * scales.reshape(N, -1, 1)).reshape(N, -1)[:, :K].T


def rounded(x: np.ndarray, block: int) -> np.ndarray:
    """x in 8 bits, in blocks, as numbers again: what accuracy_level 4 multiplies with."""
    K = x.shape[-1]
    blocks = np.pad(x, [(0, 0), (0, 0), (0, -K % block)]).reshape(*x.shape[:2], -1, block)
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    numbers = np.rint(blocks * np.divide(1, scale, where=scale > 0, out=np.zeros_like(scale)))
    return (numbers * scale.astype(np.float64)).reshape(*x.shape[:2], -1)[..., :K]


def one_block(product: onnx.NodeProto, tensors: dict[str, np.ndarray], K: int, N: int) -> bytes:
    """x [B, T, K] through a convolution of width 2 that does nothing, then the product."""
    identity = np.stack([np.zeros(K, np.float32), np.ones(K, np.float32)])
    tensors = tensors | {"weight": identity, "bias": np.zeros(K, np.float32)}
    nodes = [
        helper.make_node("Identity", ["x"], ["x0"]),
        helper.make_node(
            "CausalConv1d", ["x0", "weight", "bias", "state"], ["x1", "next"], domain="streamssm", silu=0
        ),
        product,
    ]
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (
            ("x", ["batch", "items", K]),
            ("state", ["batch", 1, K]),
            ("y", ["batch", "items", N]),
            ("next", ["batch", 1, K]),
        )
    ]
    graph = helper.make_graph(
        nodes, "g", infos[:2], infos[2:], [numpy_helper.from_array(v, k) for k, v in tensors.items()]
    )
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=10).SerializeToString()


def run_fused(library: Library, model: bytes, x: np.ndarray) -> np.ndarray:
    loans: list[Loan] = []

    def lend(weights: np.ndarray) -> int:
        loans.append(Loan(library, weights))
        return loans[-1].number

    fused = fusion.fuse(model, library.instructions, lend)
    assert fused is not None
    assert fused.nodes == 1
    session = session_of(library, fused.model)
    return session.run(["y"], {"x": x, "state": np.zeros((len(x), 1, x.shape[-1]), np.float32)})[0]


def session_of(library: Library, model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library.path))
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options)


SIZES = [(1, 1), (3, 16), (16, 17), (37, 130), (130, 37), (256, 64), (300, 259)]


@pytest.mark.parametrize(("K", "N"), SIZES)
def test_product(library: Library, K: int, N: int) -> None:
    generator = np.random.default_rng(K)
    W = generator.standard_normal((K, N)).astype(np.float32)
    model = one_block(helper.make_node("MatMul", ["x1", "W"], ["y"]), {"W": W}, K, N)
    for B, T in ((1, 1), (1, 2), (2, 3), (1, 7), (1, 8), (1, 9), (3, 40), (1, 500)):
        x = generator.standard_normal((B, T, K)).astype(np.float32)
        found = run_fused(library, model, x)
        wanted = x.astype(np.float64) @ W
        assert np.abs(found - wanted).max() <= 1e-6 * K**0.5 * np.abs(wanted).max()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize(("K", "N"), SIZES)
def test_quantised_product(library: Library, K: int, N: int, bits: int, block: int) -> None:
    generator = np.random.default_rng(K + bits)
    blocks = -(-K // block)
    codes = generator.integers(0, 256, (N, blocks, block * bits // 8)).astype(np.uint8)
    scales = generator.uniform(0.001, 0.1, N * blocks).astype(np.float32)
    attributes = {"K": K, "N": N, "bits": bits, "block_size": block, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x1", "q", "s"], ["y"], domain="com.microsoft", **attributes)
    model = one_block(node, {"q": codes, "s": scales}, K, N)
    for B, T in ((1, 1), (1, 2), (2, 5), (1, 33)):
        x = generator.standard_normal((B, T, K)).astype(np.float32)
        x[:, :, : K // 3] *= 100  # scales that differ between blocks
        x[0, 0] = 0.0
        found = run_fused(library, model, x)
        wanted = rounded(x, block) @ dequantised(codes, scales, K, bits)
        assert np.abs(found - wanted).max() <= 2e-6 * (np.abs(wanted).max() + 1)


def test_packed_panels_hold_every_weight() -> None:
    W = np.arange(3 * 21, dtype=np.float32).reshape(3, 21)
    packed = pack.pack_matrix(W)
    assert packed.size == pack.matrix_floats(3, 21)
    assert np.array_equal(packed.transpose(1, 0, 2).reshape(3, 32)[:, :21], W)
    assert not packed.transpose(1, 0, 2).reshape(3, 32)[:, 21:].any()


# What must never happen.


def fused_node(**attributes: object) -> bytes:
    node = helper.make_node("Fused", ["x"], ["y"], domain=fusion.DOMAIN, **attributes)
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "t", 4]) for name in "xy"]
    graph = helper.make_graph([node], "g", info[:1], info[1:])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(fusion.DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


HEADER = [1, 1, 1, 0, 16, 4, 4]  # one buffer of 16, one input and one output of 4, no state
COPY = [0, 4, 0, 0, 0, 4, 1, 4, 0, 0, 0, 4]

BAD_PROGRAMS: dict[str, list[int]] = {
    "cut short": HEADER[:3],
    "no such buffer": [*HEADER, 0, 4, 1, 0, 0, 4],
    "a view leaves its buffer": [*HEADER, 0, 4, 0, 13, 0, 4],
    "no such input": [*HEADER, 0, 4, 0, 0, 1, 4],
    "another size": [*HEADER, 0, 4, 0, 0, 0, 5],
    "weights out of range": [*HEADER, 9, 7, 0, 0, 0, 0, 4, 0, 20],
    "negative place": [*HEADER, 9, 7, 0, 0, 0, 0, 4, 0, -1],
    "unknown function": [*HEADER, 7, 6, 0, 0, 0, 0, 4, 99],
    "unknown instruction": [*HEADER, 77, 0],
    "wrong number of arguments": [*HEADER, 0, 3, 0, 0, 0],
    "no such state": [*HEADER, 4, 10, 0, 0, 0, 0, 2, 4, 0, 0, 0, 0],
    "norm of nothing": [*HEADER, 3, 8, 0, 0, 0, 0, 4, 0, 0, 0],
}


def test_the_smallest_program_runs(library: Library) -> None:
    loan = Loan(library, pack.aligned_floats(32))
    session = session_of(library, fused_node(program=HEADER + COPY, trailing=[1, 4], weights=loan.number))
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert np.array_equal(session.run(None, {"x": x})[0], x)
    assert session.run(None, {"x": x[:, :0]})[0].shape == (2, 0, 4)


@pytest.mark.parametrize("words", BAD_PROGRAMS.values(), ids=BAD_PROGRAMS)
def test_a_bad_program_is_refused(library: Library, words: list[int]) -> None:
    loan = Loan(library, pack.aligned_floats(32))
    with pytest.raises(Exception, match="program"):
        session_of(library, fused_node(program=words, trailing=[1, 4], weights=loan.number))


def test_weights_that_nobody_lent_are_refused(library: Library) -> None:
    loan = Loan(library, pack.aligned_floats(32))
    number = loan.number
    del loan  # taken back
    for unknown in (number, 0, 10**9):
        with pytest.raises(Exception, match="no weights were lent"):
            session_of(library, fused_node(program=HEADER + COPY, trailing=[1, 4], weights=unknown))


def test_a_shape_that_does_not_fit_is_refused(library: Library) -> None:
    loan = Loan(library, pack.aligned_floats(32))
    model = onnx.load_from_string(fused_node(program=HEADER + COPY, trailing=[1, 4], weights=loan.number))
    for value in model.graph.input[0], model.graph.output[0]:
        value.type.tensor_type.shape.dim[2].dim_param = "any"
    session = session_of(library, model.SerializeToString())
    with pytest.raises(Exception, match=r"\[2, 3, 5\]"):
        session.run(None, {"x": np.zeros((2, 3, 5), np.float32)})


def test_no_file_may_hold_a_fused_node(tmp_path: Path, files: dict[str, Path]) -> None:
    model = onnx.load(files["sensor"])
    model.graph.node[0].domain = fusion.DOMAIN
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError):
        streamssm.load(tmp_path / "bad.onnx")


def test_values_that_leave_a_stretch_in_the_middle(library: Library) -> None:
    """A result and another node read what is between two fused operations."""
    K = 6
    model = onnx.load_from_string(
        one_block(helper.make_node("MatMul", ["x1", "W"], ["y"]), {"W": np.eye(K, dtype=np.float32)}, K, K)
    )
    model.graph.node.append(helper.make_node("Cos", ["x1"], ["c"]))
    model.graph.node.append(helper.make_node("Add", ["c", "y"], ["sum"]))
    for name in ("sum", "x1"):
        model.graph.output.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "items", K])
        )
    loans: list[Loan] = []

    def lend(weights: np.ndarray) -> int:
        loans.append(Loan(library, weights))
        return loans[-1].number

    fused = fusion.fuse(model.SerializeToString(), library.instructions, lend)
    assert fused is not None
    x = np.random.default_rng(0).standard_normal((1, 4, K)).astype(np.float32)
    session = session_of(library, fused.model)
    y, _, total, x1 = session.run(None, {"x": x, "state": np.zeros((1, 1, K), np.float32)})
    assert np.array_equal(x1, x)
    assert np.allclose(y, x, atol=1e-6)
    assert np.allclose(total, np.cos(x) + x, atol=1e-6)


def test_the_sum_of_two_products_belongs_to_one_of_them(library: Library) -> None:
    K = 6
    weights = {
        name: np.random.default_rng(i).standard_normal((K, K), np.float32) for i, name in enumerate("VW")
    }
    model = onnx.load_from_string(one_block(helper.make_node("MatMul", ["x1", "W"], ["w"]), weights, K, K))
    model.graph.node.append(helper.make_node("MatMul", ["x1", "V"], ["v"]))
    model.graph.node.append(helper.make_node("Add", ["w", "v"], ["y"]))
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None, K]) for name in "wv"]
    model.graph.value_info.extend(rows)
    loans: list[Loan] = []

    def lend(packed: np.ndarray) -> int:
        loans.append(Loan(library, packed))
        return loans[-1].number

    fused = fusion.fuse(model.SerializeToString(), library.instructions, lend)
    assert fused is not None
    x = np.random.default_rng(0).standard_normal((1, 4, K)).astype(np.float32)
    y = session_of(library, fused.model).run(["y"], {"x": x, "state": np.zeros((1, 1, K), np.float32)})[0]
    assert np.allclose(y, x @ weights["V"] + x @ weights["W"], atol=1e-5)


def test_switch(library: Library, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    says: Callable[[str], str] = lambda value: opened(files["sensor"], value).kernels  # noqa: E731
    assert says("on") == f"native ({library.instructions}, fused)"
    assert says("unfused") == f"native ({library.instructions})"
    assert says("off").startswith("plain ONNX")
