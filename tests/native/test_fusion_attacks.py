"""Graphs that a file may hold though our exporter writes none like them: fused or not, the results
are those of the plain graph. Each case was once wrong, failed, crashed or did not end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from native_session import open_session
from onnx import TensorProto, helper, numpy_helper

import streamssm
from streamssm import tolerance
from streamssm.export import build, export, model_options
from streamssm.export.functions import function
from streamssm.native import Loan, fusion
from streamssm.native.library import SWITCH, Library
from streamssm.onnx_file import seal

Dims = Sequence[int | str | None]
node = helper.make_node

D, B, T, PAST = 8, 2, 6, 3
ROWS: Dims = ("batch", "items", D)
STATE: Dims = ("batch", PAST, D)
OPSETS = [
    helper.make_opsetid(domain, 21 if not domain else 1) for domain in ("", "com.microsoft", "streamssm")
]


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


TENSORS = {
    "taps": draw(PAST + 1, D),
    "bias": draw(D),
    "W": draw(D, D),
    "V": draw(D, D),
    "one": np.array([1]),
    "two": np.array([2]),
    "last": np.array([-1]),
}


def conv(x: str, y: str, state: str = "s", following: str = "next.s", taps: str = "taps") -> onnx.NodeProto:
    return node("CausalConv1d", [x, taps, "bias", state], [y, following], domain="streamssm", silu=0)


#: a recurrence and enough steps that a stretch is worth it, from "b" to "y"
TAIL = [conv("b", "c"), node("Relu", ["c"], ["d"]), node("Tanh", ["d"], ["y"])]


def graph(
    nodes: Sequence[onnx.NodeProto],
    tensors: Mapping[str, np.ndarray] | None = None,
    inputs: Mapping[str, Dims] | None = None,
    outputs: Mapping[str, Dims] | None = None,
    values: Mapping[str, Dims] | None = None,
    D: int = D,
) -> onnx.ModelProto:
    rows, state = ("batch", "items", D), ("batch", PAST, D)
    ins, outs, inner = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims)) for name, dims in ports.items()]
        for ports in (
            {"x": rows, "s": state} | dict(inputs or {}),
            {"y": rows, "next.s": state} | dict(outputs or {}),
            values or {},
        )
    )
    stored = [numpy_helper.from_array(value, name) for name, value in (TENSORS | dict(tensors or {})).items()]
    body = helper.make_graph(list(nodes), "g", ins, outs, stored, value_info=inner)
    model = helper.make_model(body, opset_imports=OPSETS, ir_version=10)
    ours = {part.op_type for part in nodes if part.domain == "streamssm"}
    model.functions.extend(function(name) for name in sorted(ours))
    return model


def fused(model: onnx.ModelProto, library: Library) -> tuple[onnxruntime.InferenceSession, list[Loan], int]:
    """A session on what becomes of the model, what it borrows, and its number of nodes."""
    loans: list[Loan] = []

    def lend(weights: np.ndarray) -> int:
        loans.append(Loan(library, weights))
        return loans[-1].number

    result = fusion.fuse(model.SerializeToString(), library.instructions, lend)
    if result is None:
        return open_session(model, library), loans, len(model.graph.node)
    return open_session(onnx.load_from_string(result.model), library), loans, result.nodes


def check(library: Library, model: onnx.ModelProto, **feeds: np.ndarray) -> int:
    """Compare with the plain graph; returns the number of nodes after fusion."""
    width = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    feeds = {"x": draw(B, T, width), "s": draw(B, PAST, width)} | feeds
    wanted = open_session(model, None).run(None, feeds)
    session, loans, nodes = fused(model, library)
    assert {port.name for port in session.get_inputs()} == feeds.keys()
    found = session.run([port.name for port in model.graph.output], feeds)
    for a, b in zip(wanted, found, strict=True):
        assert tolerance.within(b, a, "float32")
    del loans
    return nodes


# Parameters.


def test_a_matrix_that_is_also_the_taps_of_a_convolution(library: Library) -> None:
    shared = {"taps": draw(4, 4), "bias": draw(4)}
    first = [node("MatMul", ["x", "taps"], ["a"]), conv("a", "b"), node("Relu", ["b"], ["y"])]
    after = [conv("x", "a"), node("MatMul", ["a", "taps"], ["b"]), node("Relu", ["b"], ["y"])]
    for nodes in (first, after):
        assert check(library, graph(nodes, shared, D=4)) == 1


@pytest.mark.parametrize("shared", ["codes", "scales"])
def test_quantised_products_that_share_a_tensor(library: Library, shared: str) -> None:
    """Of different sizes, so packed in different ways."""

    def product(x: str, y: str, codes: str, scales: str, **sizes: int) -> onnx.NodeProto:
        inputs = [x, codes, scales]
        return node("MatMulNBits", inputs, [y], domain="com.microsoft", accuracy_level=4, **sizes)

    generator = np.random.default_rng(0)
    tensors = {
        "taps": draw(PAST + 1, 16),
        "bias": draw(16),
        "q": generator.integers(0, 256, (16, 1, 16)).astype(np.uint8),
        "r": generator.integers(0, 256, (8, 2, 16)).astype(np.uint8),
        "scale": generator.uniform(0.001, 0.01, 16).astype(np.float32),
        "wide": draw(16, 32),
        "narrow": draw(16, 8),
    }
    other = (
        {"bits": 4, "block_size": 32, "N": 16} if shared == "codes" else {"bits": 8, "block_size": 16, "N": 8}
    )
    codes = "q" if shared == "codes" else "r"
    nodes = [
        conv("x", "a"),
        product("a", "b", "q", "scale", K=16, N=16, bits=8, block_size=16),
        node("MatMul", ["a", "wide"], ["w"]),
        product("w", "c", codes, "scale", K=32, **other),
        *([node("MatMul", ["b", "narrow"], ["b2"])] if shared == "scales" else []),
        node("Add", ["b2" if shared == "scales" else "b", "c"], ["sum"]),
        node("MatMul", ["sum", "back"], ["y"]),
    ]
    tensors["back"] = draw(8 if shared == "scales" else 16, 16)
    model = graph(nodes, tensors, D=16)
    feeds = {"x": draw(B, T, 16), "s": draw(B, PAST, 16)}
    wanted = open_session(model, None).run(None, feeds)
    session, _loans, nodes_after = fused(model, library)
    assert nodes_after == 1
    assert tolerance.within(session.run(None, feeds)[0], wanted[0], "int8")


def test_tensors_that_are_also_inputs_or_outputs(library: Library) -> None:
    nodes = [node("MatMul", ["x", "W"], ["b"]), *TAIL]
    model = graph(nodes, outputs={"W": (D, D)})
    assert check(library, model) == 1
    model = graph(nodes)  # an input with a default need not be given
    model.graph.input.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, [D, D]))
    assert check(library, model) == 1


# Which values are rows, and of which B and T.


@pytest.mark.parametrize("length", ["first", None])
@pytest.mark.parametrize("meet", ["Add", "Mul", "residual", "gate"])
def test_one_item_that_is_added_to_all(library: Library, length: str | None, meet: str) -> None:
    before = {
        "residual": [node("MatMul", ["x", "W"], ["a"])],
        "gate": [node("Sigmoid", ["x"], ["g"]), node("Mul", ["x", "g"], ["a"])],
    }.get(meet, [node("Relu", ["x"], ["a"])])
    one = [
        node("Slice", ["x", "one", "two", "one"], ["r"]),
        node({"residual": "Add", "gate": "Mul"}.get(meet, meet), ["a", "r"], ["b"]),
    ]
    check(library, graph([*before, *one, *TAIL], values={"r": ("batch", length, D)}))


def test_a_table_looked_up_by_a_state(library: Library) -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Gather", ["W", "p"], ["r"]), node("Add", ["a", "r"], ["b"])]
    model = graph([*nodes, *TAIL])
    model.graph.input.append(helper.make_tensor_value_info("p", TensorProto.INT64, ["batch", 1]))
    check(library, model, p=np.array([[1], [3]]))


def test_a_state_whose_length_the_graph_leaves_open(library: Library) -> None:
    dims = {"k": ("batch", "n", D)}
    nodes = [node("Identity", ["k"], ["next.k"]), node("Add", ["x", "k"], ["b"]), *TAIL]
    check(library, graph(nodes, inputs=dims, outputs={"next.k": dims["k"]}), k=draw(B, 1, D))


def test_items_before_the_batch(library: Library) -> None:
    """Reshaped as if B came first."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("Shape", ["x"], ["bt"], start=0, end=2),
        node("Concat", ["bt", "eight"], ["target"], axis=0),
        node("Relu", ["t"], ["u"]),
        node("Reshape", ["u", "target"], ["b"]),
    ]
    model = graph([*nodes, *TAIL], {"eight": np.array([D])}, values={"t": ("items", "batch", D)})
    check(library, model)


def test_half_floats_are_no_rows(library: Library) -> None:
    nodes = [node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), conv("h", "c"), node("Relu", ["c"], ["d"])]
    nodes += [node("Tanh", ["d"], ["e"]), node("Cast", ["e"], ["y"], to=TensorProto.FLOAT)]
    model = graph(nodes)
    for name in "hcde":
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT16, list(ROWS)))
    session, _, _ = fused(model, library)
    session.run(None, {"x": draw(B, T, D), "s": draw(B, PAST, D)})


def norm(eps: np.ndarray, power: np.ndarray) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    nodes = [
        *(node("Pow", ["a", "power"], ["p"]), node("ReduceMean", ["p", "last"], ["m"])),
        *(node("Add", ["m", "eps"], ["e"]), node("Sqrt", ["e"], ["q"]), node("Div", ["a", "q"], ["n"])),
    ]
    return nodes, {"eps": eps, "power": power}


@pytest.mark.parametrize("odd", ["eps", "power"])
def test_constants_that_add_a_dimension(library: Library, odd: str) -> None:
    values = {"eps": np.float32(1e-5), "power": np.float32(2)}
    nodes, tensors = norm(**values | {odd: values[odd].reshape(1, 1, 1, 1)})
    nodes = [node("Relu", ["x"], ["a"]), *nodes, node("Squeeze", ["n", "zero"], ["b"]), *TAIL]
    check(library, graph(nodes, tensors | {"zero": np.array([0])}))


@pytest.mark.parametrize("eps", [0.0, 1e-42])
def test_a_norm_among_denormal_numbers(library: Library, eps: float) -> None:
    nodes, tensors = norm(np.float32(eps), np.float32(2))
    model = graph([node("Identity", ["x"], ["a"]), *nodes, node("Identity", ["n"], ["b"]), *TAIL], tensors)
    check(library, model, x=np.full((B, T, D), 1e-20, np.float32))


# Steps.


def test_nodes_that_two_steps_could_take(library: Library) -> None:
    products = [node("MatMul", ["c", name], [name + "c"]) for name in "WV"]
    nodes = [node("Relu", ["x"], ["b"]), TAIL[0], *products, node("Add", ["Wc", "Vc"], ["y"])]
    known = dict.fromkeys(("b", "c", "Wc", "Vc"), ROWS)
    assert check(library, graph(nodes, values=known)) == 1
    nodes = [node("Relu", ["x"], ["b"]), TAIL[0], node("Tanh", ["c"], ["d"])]
    for name in "cd":
        nodes += [node("Sigmoid", [name], [name + "1"]), node("Mul", [name, name + "1"], [name + "2"])]
    known = dict.fromkeys(("b", "c", "d", "c1", "d1", "c2", "d2"), ROWS)
    assert check(library, graph([*nodes, node("Mul", ["c2", "d2"], ["y"])], values=known)) == 1


@pytest.mark.parametrize("tap", ["t0", "t1", "t2"])
def test_a_tap_of_a_window_that_is_needed_elsewhere(library: Library, tap: str) -> None:
    tensors = {name: np.array([value]) for name, value in (("zero", 0), ("m2", -2), ("end", 2**63 - 1))}
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Concat", ["k", "a"], ["full"], axis=1),
        node("Slice", ["full", "zero", "m2", "one"], ["t0"]),
        node("Slice", ["full", "one", "last", "one"], ["t1"]),
        node("Slice", ["full", "two", "end", "one"], ["t2"]),
        node("Slice", ["full", "m2", "end", "one"], ["next.k"]),
        node("Concat", ["t0", "t1", "t2"], ["u"], axis=2),
        node("MatMul", ["u", "U"], ["b"]),
        node("Cos", [tap], ["z"]),
    ]
    dims = ("batch", 2, D)
    model = graph([*nodes, *TAIL], tensors | {"U": draw(3 * D, D)}, {"k": dims}, {"next.k": dims, "z": ROWS})
    check(library, model, k=draw(B, 2, D))


@pytest.mark.parametrize("op", ["Max", "Min"])
@pytest.mark.parametrize("other", ["x", "w"])
def test_a_nan_is_not_lost(library: Library, op: str, other: str) -> None:
    x, w = draw(B, T, D), draw(B, T, D)
    (x if other == "x" else w)[0, 1, 2] = np.nan
    nodes = [node(op, ["x", "w"], ["b"]), *TAIL]
    check(library, graph(nodes, inputs={"w": ROWS}), x=x, w=w)


# Names and order.


def test_next_states_that_are_left_out_or_read(library: Library) -> None:
    silent = [conv("x", "b"), TAIL[0], *TAIL[1:]]
    silent[1] = conv("b", "c", following="")
    session_or_error(library, graph(silent))
    # one as rows of the stretch that makes it
    nodes = [conv("x", "a", following="n", taps="short"), node("Add", ["n", "a"], ["b"])]
    nodes += [node("Relu", ["b"], ["y"]), node("Identity", ["n"], ["next.s"])]
    model = graph(nodes, {"short": draw(2, D)}, values={"n": ("batch", "past", D)})
    for port in (model.graph.input[1], model.graph.output[1]):
        port.type.tensor_type.shape.dim[1].dim_param = "past"
    check(library, model, s=draw(B, 1, D))


def session_or_error(library: Library, model: onnx.ModelProto) -> None:
    """ONNX Runtime may refuse it, but nothing may crash."""
    try:
        session, _loans, _ = fused(model, library)
    except Exception as error:
        assert "INVALID_GRAPH" in str(error)  # noqa: PT017  either is right
        return
    session.run(None, {"x": draw(B, T, D), "s": draw(B, PAST, D)})


def test_outputs_that_are_left_out_have_no_place_in_the_order(library: Library) -> None:
    def layer_norm(x: str, y: str) -> onnx.NodeProto:
        return node("LayerNormalization", [x, "bias", "bias"], [y, "", y + "i"], axis=-1)

    nodes = [
        *(node("Identity", ["x"], ["a"]), conv("a", "a1", "r", "next.r"), node("Relu", ["a1"], ["a2"])),
        *(layer_norm("a2", "l"), node("Add", ["a1", "l"], ["b"]), conv("b", "c"), node("Relu", ["c"], ["d"])),
        *(node("Tanh", ["d"], ["e"]), layer_norm("e", "y"), node("Add", ["li", "yi"], ["i"])),
    ]
    model = graph(nodes, None, {"r": STATE}, {"next.r": STATE, "i": ("batch", "items", 1)})
    check(library, model, r=draw(B, PAST, D))


def test_nodes_that_depend_on_each_other_end(library: Library) -> None:
    """Two stretches and what stands between them, in an order that hides it."""
    between = [node("Relu", ["a1"], ["a2"]), node("Cos", ["a2"], ["l"])]
    nodes = [node("Add", ["a1", "l"], ["b"]), *TAIL, conv("x", "a1", "r", "next.r"), *between]
    known = dict.fromkeys(("a1", "a2", "l", "b"), ROWS)
    model = graph(nodes, inputs={"r": STATE}, outputs={"next.r": STATE}, values=known)
    with pytest.raises((ValueError, KeyError)):  # and the backend falls back on the plain graph
        fused(model, library)


def test_a_constant_of_a_type_unknown_here(library: Library) -> None:
    value = numpy_helper.from_array(np.array([1.5]))
    nodes = [
        node("ConstantOfShape", ["one"], ["k"], value=value),
        node("Cast", ["x"], ["x64"], to=TensorProto.DOUBLE),
        node("Add", ["x64", "k"], ["b64"]),
        node("Cast", ["b64"], ["b"], to=TensorProto.FLOAT),
    ]
    check(library, graph([*nodes, *TAIL], values={"b": ROWS}))


# States that steps overwrite.


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two Mamba blocks, each of which leaves the state of the other."""
    config = {"input": {"kind": "features", "size": 5}, "d_model": 16, "head": {"size": 3}, "block": 4}
    config |= {"pattern": ["mamba", "mamba"]}
    path = tmp_path_factory.mktemp("crossed") / "m.onnx"
    torch.manual_seed(0)
    export(build(config).eval(), path, **model_options(config))
    model = onnx.load(path)
    names = [port.name for port in model.graph.output if port.name.startswith("next.")]
    swapped = {name: name.replace(".0.", ".9.").replace(".1.", ".0.").replace(".9.", ".1.") for name in names}
    for part in model.graph.node:
        for at, name in enumerate(part.output):
            part.output[at] = swapped.get(name, name)
    manifest = next(entry for entry in model.metadata_props if entry.key == "streamssm")
    manifest.value = manifest.value.replace(json.loads(manifest.value)["sha256"], "0" * 64)
    path.write_bytes(seal(model.SerializeToString()))
    return path


def test_crossed_states_are_not_overwritten(
    library: Library, crossed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = draw(40, 5)
    monkeypatch.setenv(SWITCH, "off")
    wanted = streamssm.load(crossed).stream().push(x)
    monkeypatch.setenv(SWITCH, "on")
    model = streamssm.load(crossed)
    assert "fused" in model.kernels
    for in_place in (False, True):
        assert tolerance.within(model.stream(in_place=in_place).push(x), wanted, "float32")


def test_a_state_that_is_also_an_output_is_not_overwritten(library: Library) -> None:
    nodes = [node("Relu", ["x"], ["b"]), *TAIL]
    for outputs in ({}, {"s": STATE}):
        result = fusion.fuse(graph(nodes, outputs=outputs).SerializeToString(), "avx2", lambda _: 1)
        assert result is not None
        assert result.in_place == (frozenset() if outputs else {("s", "next.s")})
