"""Graphs that look like runs of Mamba blocks and are not: left as they are, or what they say."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from edited_graph import Edit
from onnx import TensorProto, helper
from test_stacks import VOCABULARY

from streamssm.errors import BackendError
from streamssm.export import build, export
from streamssm.native.graph import Graph
from streamssm.onnx_file import read_model_file

KINDS = ("mamba", "mamba2")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A language model of two blocks of each kind."""
    folder = tmp_path_factory.mktemp("attacks")
    for kind in KINDS:
        torch.manual_seed(5)
        config = {"d_model": 16, "pattern": [kind] * 2, "mamba2": {"headdim": 8, "d_state": 5}}
        config |= {"input": {"kind": "tokens", "vocabulary": VOCABULARY}, "head": {"size": VOCABULARY}}
        config["head"]["bias"] = False
        export(build(config).eval(), folder / kind, kind="tokens", vocabulary=VOCABULARY, block=4)
    return {kind: (folder / kind).read_bytes() for kind in KINDS}


@pytest.fixture
def edit(originals):
    return lambda kind: Edit(originals[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_unchanged_it_is_one_node(edit, kind):
    model = edit(kind)
    assert model.forms() == [("TokenStack", 2)]
    model.check_numbers()


def inner(model: Edit) -> list[str]:
    """All that the first block makes but its result and states."""
    first, second = (model.graph.node[:], model.residuals())
    names = []
    for node in first:
        if node == second[0]:
            return names
        names += [name for name in node.output if not name.startswith("next.") and node.op_type not in EDGES]
    raise AssertionError


EDGES = ("Gather", "Shape", "Concat")  # before the block, or of shapes


@pytest.mark.parametrize("how", ["output", "node", "subgraph"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_used_elsewhere_too_is_still_there(edit, kind, how):
    names = inner(edit(kind))
    assert len(names) > 12
    for name in names if how == "output" else names[::5]:
        model = edit(kind)
        if how == "output":
            model.show(name)
        elif how == "node":
            model.graph.node.append(helper.make_node("Cos", [name], ["seen"]))
            model.show("seen")
        else:
            branch = helper.make_graph(
                [helper.make_node("Cos", [name], ["b"])], "b", [], [onnx.ValueInfoProto(name="b")]
            )
            yes = model.constant(np.array(True))
            model.graph.node.append(
                helper.make_node("If", [yes], ["seen"], then_branch=branch, else_branch=branch)
            )
            model.show("seen")
        assert model.forms() == [("Stack", 1)], name


def swap(model, op, which, a, b):
    node = model.all(op)[which]
    node.input[a], node.input[b] = node.input[b], node.input[a]


def rename(model, op, which, new):
    model.all(op)[which].op_type = new


def clip(model, *bounds):
    for node in model.all("StateSpaceDual"):
        for low, high in bounds:
            names = [model.constant(np.float32(value)) for value in (low, high)]
            model.insert("Clip", node, 1, *names)


def no_silu(model):
    model.all("CausalConv1d")[0].attribute[0].i = 0


def skip_from_the_embedding(model):
    first, second = model.residuals()
    at = list(second.input).index(first.output[0])
    second.input[at] = model.all("Gather")[0].output[0]


def post_norm(model):
    first, _ = model.residuals()
    into = next(node for node in model.all("MatMul"))
    at = 0 if first.input[0] == model.all("Gather")[0].output[0] else 1
    first.input[at] = into.input[0]


def twice(model):
    """x + 2 f(x)"""
    first, _ = model.residuals()
    at = [model.maker(name).op_type for name in first.input].index("MatMul")
    first.input[1 - at] = first.input[at]


def split_the_other_way(model):
    split = model.maker(model.all("CausalConv1d")[0].input[0])
    split.output[0], split.output[1] = split.output[1], split.output[0]


def low_from_before(model):
    conv = model.all("CausalConv1d")[0]
    low = next(node for node in model.readers(conv.output[0]) if node.op_type == "MatMul")
    low.input[0] = conv.input[0]


def state_computed(model):
    model.insert("Relu", model.all("CausalConv1d")[0], 3)


def state_read(model):
    model.graph.node.append(helper.make_node("Cos", [model.all("CausalConv1d")[0].output[1]], ["seen"]))
    model.show("seen")


def other_gate(model):
    sigmoid = model.all("Sigmoid")[0]
    silu = model.readers(sigmoid.output[0])[0]
    sigmoid.input[0] = model.maker(silu.output[0]).input[0]
    gated = model.readers(silu.output[0])[0]
    silu.input[list(silu.input).index(sigmoid.input[0])] = next(n for n in gated.input if n != silu.output[0])


def views_crossed(model):
    """B and T in exchange for each other."""
    dual = model.all("StateSpaceDual")[0]
    for at in (0, 3, 4):
        view = model.maker(dual.input[at])
        concat = model.maker(view.input[1])
        target = list(concat.input)
        target[:2] = target[1::-1]
        name = f"crossed {at}"
        new = helper.make_node("Concat", target, [name], axis=0)
        model.graph.node.insert(list(model.graph.node).index(view), new)
        view.input[1] = name
        declared = next(port for port in model.graph.value_info if port.name == view.output[0])
        dims = declared.type.tensor_type.shape.dim
        dims[0].dim_param, dims[1].dim_param = dims[1].dim_param, dims[0].dim_param


def unnamed_next_state(model):
    scan = next(node for node in model.graph.node if node.op_type in ("SelectiveScan", "StateSpaceDual"))
    scan.output[1] = ""


BOTH = {
    "no silu": no_silu,
    "skip from the embedding": skip_from_the_embedding,
    "post norm": post_norm,
    "no residual": twice,
    "residual subtracted": lambda m: setattr(m.residuals()[0], "op_type", "Sub"),
    "state computed": state_computed,
    "state read": state_read,
    "unnamed next state": unnamed_next_state,
    "convolved twice": lambda m: m.insert("Relu", m.all("CausalConv1d")[0], 0),
    "into": lambda m: m.insert("Relu", m.all("MatMul")[0], 0),
}
ONE = {
    "mamba": {
        "B for C": lambda m: swap(m, "SelectiveScan", 0, 3, 4),
        "gate for input": split_the_other_way,
        "step size from before the convolution": low_from_before,
        "activation of the step size": lambda m: m.insert("Softplus", m.all("SelectiveScan")[0], 1),
        "gate activated twice": lambda m: m.insert("Sigmoid", m.all("SelectiveScan")[0], 7),
    },
    "mamba2": {
        "B for C": lambda m: swap(m, "StateSpaceDual", 0, 3, 4),
        "relu": lambda m: rename(m, "Softplus", 0, "Relu"),
        "tanh": lambda m: rename(m, "Sigmoid", 0, "Tanh"),
        "other gate": other_gate,
        "views crossed": views_crossed,
        "gate norm of the square root of a maximum": lambda m: rename(m, "ReduceMean", 1, "ReduceMax"),
    },
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in (*BOTH, *ONE[kind])])
def test_a_block_of_another_form_stays(edit, kind, name):
    model = edit(kind)
    (BOTH | ONE[kind])[name](model)
    forms = model.forms()
    blocks = 0 if name == "skip from the embedding" and not forms else sum(count for _, count in forms)
    assert blocks <= 1
    assert all(op == "Stack" for op, _ in forms) or name == "skip from the embedding"


@pytest.mark.parametrize("kind", KINDS)
def test_the_embedding_added_again_at_the_end_stays_in_the_graph(edit, kind):
    """A long residual around both blocks."""
    model = edit(kind)
    last = model.residuals()[1]
    model.graph.node.append(
        helper.make_node("Add", [last.output[0], model.all("Gather")[0].output[0]], ["s"])
    )
    model.show("s")
    assert model.forms() == [("Stack", 2)]
    found, _ = model.stacked()
    (node,) = (node for node in Graph(found.model).nodes if node.op == "Stack")
    assert node.attributes["sizes"][-2:] == [0, 0]  # nor the head


@pytest.mark.parametrize("kind", KINDS)
def test_norms_of_other_eps_end_a_run(edit, kind):
    for which in range(len(edit(kind).all("Sqrt"))):
        model = edit(kind)
        add = model.maker(model.all("Sqrt")[which].input[0])
        add.input[1] = model.constant(np.float32(1e-3))
        if which == len(model.all("Sqrt")) - 1:  # that of the head
            assert model.forms() == [("TokenStack", 2)]
            found, _ = model.stacked()
            assert [n.op for n in Graph(found.model).nodes][-1] == "MatMul"
        elif kind == "mamba":
            assert model.forms() == [("TokenStack", 1), ("Stack", 1)]
        else:  # a block's two norms must be of one eps
            assert sum(count for _, count in model.forms()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_equal_forms_written_otherwise_are_right(edit, kind):
    model = edit(kind)
    for node in model.residuals():
        node.input[0], node.input[1] = node.input[1], node.input[0]
    scale = model.readers(model.all("Div")[0].output[0])[0]  # a norm without a weight
    model.readers(scale.output[0])[0].input[0] = model.all("Div")[0].output[0]
    model.graph.node.remove(scale)
    assert model.forms() == [("TokenStack", 2)]
    model.check_numbers()


@pytest.mark.parametrize(
    ("bounds", "limits"),
    [
        ([(0.1, 0.4)], (0.1, 0.4)),
        ([(0.1, 0.6), (0.3, 9.0)], (0.3, 0.6)),
        ([(-3.0, 0.5)], (0.0, 0.5)),
        ([(0.1, 0.2), (0.3, 0.5)], None),  # always 0.3
        ([(0.5, 0.1)], None),
        ([(0.0, -1.0)], None),
    ],
)
def test_limits_of_the_time_step(edit, bounds, limits):
    model = edit("mamba2")
    clip(model, *bounds)
    if limits is None:
        assert model.forms() == []
        return
    assert model.forms() == [("TokenStack", 2)]
    found, _ = model.stacked()
    (node,) = (node for node in Graph(found.model).nodes if node.op == "TokenStack")
    assert (node.attributes["dt_least"], node.attributes["dt_most"]) == pytest.approx(limits)
    model.check_numbers()


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_two_blocks_share_are_read_by_both(edit, kind):
    model = edit(kind)
    first, second = model.all("CausalConv1d")
    second.input[3] = first.input[3]
    found, _ = model.stacked()
    (node,) = (node for node in Graph(found.model).nodes if node.op == "TokenStack")
    assert node.inputs[1] == node.inputs[3]
    assert len(set(node.outputs)) == len(node.outputs) == 5
    model.check_numbers()


@pytest.mark.parametrize("kind", KINDS)
def test_a_lookup_by_a_state_stays_in_the_graph(edit, kind):
    """A state may hold any number, and a kernel must not look up outside the table."""
    model = edit(kind)
    state = helper.make_tensor_value_info("p", TensorProto.INT64, ["batch", "items"])
    model.graph.input.append(state)
    model.all("Gather")[0].input[1] = "p"
    assert model.forms() == [("Stack", 2)]
    columns = edit(kind)
    columns.all("Gather")[0].attribute.append(helper.make_attribute("axis", 1))
    assert ("TokenStack", 2) not in columns.forms()


def test_a_graph_that_goes_in_circles_ends(edit):
    """Two bounds of the time step, each of the other; and what is no operator of ours fails, as where it is
    fused for the processor: the backend then runs the graph as it is."""
    model = edit("mamba2")
    clip(model, (0.1, 0.5))
    for node in model.all("Clip"):
        node.input[0] = node.output[0]
    assert model.forms() == []
    model = edit("mamba2")
    del model.all("CausalConv1d")[0].output[1]
    with pytest.raises(ValueError, match="not enough values"):
        model.forms()


@pytest.mark.parametrize("failure", [ValueError("odd"), IndexError("odd"), BackendError("a weight of 7e4")])
def test_a_graph_that_cannot_be_read_is_run_as_it_is(originals, tmp_path, monkeypatch, failure):
    """But a weight that does not fit the precision is said."""
    from streamssm.backends import cuda

    def fail(*_):
        raise failure

    monkeypatch.setattr(cuda, "stack_graph", fail)
    (path := tmp_path / "m.onnx").write_bytes(originals["mamba"])
    backend = object.__new__(cuda.CudaBackend)
    backend.runtime = onnxruntime
    kernels = SimpleNamespace(library=object())
    if isinstance(failure, BackendError):
        with pytest.raises(BackendError, match="7e4"):
            backend._open_fused(read_model_file(path), kernels, "float16")
        return
    session, why = backend._open_fused(read_model_file(path), kernels, "float32")
    assert session is None
    assert "cannot be fused" in why


def test_a_run_is_not_begun_by_a_block_of_other_sizes(edit):
    """Parameters tied between blocks are each block's own; of another size they end the run."""
    model = edit("mamba")
    first, second = (node for node in model.all("SelectiveScan"))
    second.input[2], second.input[5] = first.input[2], first.input[5]
    assert model.forms() == [("TokenStack", 2)]
    model.check_numbers()
    second.input[5] = model.constant(np.ones(1, np.float32))
    assert model.forms() == [("TokenStack", 1)]
