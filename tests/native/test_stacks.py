"""Runs of blocks as one node for a GPU: found, packed and described so that the node's own attributes are
enough to compute what the file computes. The kernels are tested where there is a GPU (tests/cuda)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import streamssm
from streamssm.errors import BackendError
from streamssm.export import build, export
from streamssm.kernels import reference
from streamssm.native.graph import Graph
from streamssm.native.stacks import PRECISIONS, rounded, stack_graph

VOCABULARY = 29
INPUT = "tokens"
_FIRST = ("norm", "in_proj", "conv_weight", "conv_bias")
NAMES = {
    1: (*_FIRST, "x_proj", "dt_proj", "dt_bias", "A", "skip", "out_proj"),
    2: (*_FIRST, "dt_bias", "A", "skip", "gate_norm", "out_proj"),
}
CONFIGS = {
    "mamba": {"pattern": ["mamba"] * 3, "mamba": {"d_state": 7, "dt_rank": 3}},
    "mamba untied": {"pattern": ["mamba"] * 2, "head": {"bias": False}},
    "mamba2": {"pattern": ["mamba2"] * 3, "mamba2": {"headdim": 8, "d_state": 5}},
    "mamba2 limits": {"pattern": ["mamba2"], "mamba2": {"headdim": 8, "d_state": 5, "dt_limit": [0.02, 0.3]}},
    "mamba2 least": {"pattern": ["mamba2"], "mamba2": {"headdim": 8, "d_state": 5, "dt_limit": [0.03, None]}},
    "mamba2 channels": {"pattern": ["mamba2"], "mamba2": {"headdim": 4, "d_state": 5, "d_has_hdim": True}},
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A language model of a configuration, as a file."""
    folder = tmp_path_factory.mktemp("stacks")

    def make(name, config):
        path = folder / f"{name}.onnx"
        if not path.exists():
            torch.manual_seed(3)
            model = build(
                {
                    "d_model": 16,
                    "head": {"tied": True, "bias": False},
                    **config,
                    "input": {"kind": "tokens", "vocabulary": VOCABULARY},
                }
                | {"head": {"size": VOCABULARY, **config.get("head", {"tied": True, "bias": False})}}
            )
            for name_, value in model.named_parameters():  # nothing at its neutral start
                if value.ndim == 1 and "A_log" not in name_:
                    value.data += 0.2 * torch.randn_like(value)
            export(model.eval(), path, kind="tokens", vocabulary=VOCABULARY, block=4)
        return path

    return make


def stacked(path, precision="float32", vocabulary=VOCABULARY):
    """The rewritten graph, and the arrays that were lent."""
    lent = []

    def lend(weights):
        lent.append(weights)
        return len(lent)

    found = stack_graph(Graph(path.read_bytes()), precision, (INPUT, vocabulary), lend)
    return found, lent


class Node:
    """A node read back from its attributes alone, in float64."""

    def __init__(self, node, lent):
        a = node.attributes
        self.kind, self.eps, self.limits = a["kind"], a["eps"], (a["dt_least"], a["dt_most"])
        names = ["layers", "d", "D", "N", "R", "K", "H", "P", "G", "inputs", "outputs"]
        self.n = dict(zip(names, a["sizes"], strict=True))
        self.memory, self.type = lent[a["weights"] - 1].view(np.uint8), a["type"]
        self.places = iter(a["places"])
        self.layers = [self.layer() for _ in range(self.n["layers"])]
        n = self.n
        self.norm = self.take(n["d"]) if n["outputs"] else None
        self.head = self.take(n["outputs"], n["d"], matrix=True) if n["outputs"] else None
        self.embedding = self.take(n["inputs"], n["d"], matrix=True) if n["inputs"] else None
        assert next(self.places, None) is None

    def take(self, *shape, matrix=False):
        place, count = next(self.places), math.prod(shape)
        assert place % 16 == 0
        if not (matrix and self.type):
            values = self.memory[place : place + 4 * count].view(np.float32)
        elif self.type == 1:
            values = self.memory[place : place + 2 * count].view(np.float16)
        else:
            words = self.memory[place : place + 2 * count].view(np.uint16).astype(np.uint32)
            values = (words << 16).view(np.float32)
        return values.reshape(shape).astype(np.float64)

    def layer(self):
        n = self.n
        wide = n["D"] if self.kind == 1 else n["D"] + 2 * n["G"] * n["N"]
        into = 2 * n["D"] if self.kind == 1 else n["D"] + wide + n["H"]
        shapes = {
            "norm": (n["d"],), "in_proj": (into, n["d"]), "conv_weight": (n["K"], wide), "conv_bias": (wide,),
            "x_proj": (n["R"] + 2 * n["N"], n["D"]), "dt_proj": (n["D"], n["R"]),
            "dt_bias": (n["D"] if self.kind == 1 else n["H"],), "skip": (n["D"],), "gate_norm": (n["D"],),
            "A": (n["N"], n["D"]) if self.kind == 1 else (n["H"],), "out_proj": (n["d"], n["D"]),
        }  # fmt: skip
        return {name: self.take(*shapes[name], matrix=name.endswith("proj")) for name in NAMES[self.kind]}

    def mixer(self, x, w, state):
        named = {f"{k}.weight" if k.endswith("proj") else k: v for k, v in w.items()}
        named |= {"conv1d.weight": w["conv_weight"].T[:, None], "conv1d.bias": w["conv_bias"], "D": w["skip"]}
        named["A_log"] = np.log(-w["A"]).T
        if self.kind == 1:
            return reference.mamba_mixer_step(x, {**named, "dt_proj.bias": w["dt_bias"]}, state)
        named["norm.weight"] = w["gate_norm"]
        options = {"ngroups": self.n["G"], "dt_limit": self.limits, "eps": self.eps}
        return reference.mamba2_mixer_step(x, named, state, norm_group_size=self.n["D"], **options)

    def run(self, tokens):
        """Logits [T, outputs]."""
        states, outputs = [None] * self.n["layers"], []
        for token in tokens:
            x = self.embedding[token][None]
            for layer, w in enumerate(self.layers):
                y, states[layer] = self.mixer(reference.rms_norm(x, w["norm"], self.eps), w, states[layer])
                x = x + y
            outputs.append(reference.rms_norm(x, self.norm, self.eps)[0] @ self.head.T)
        return np.array(outputs)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_language_model_is_one_node_that_says_all(exported, name, precision):
    path = exported(name, CONFIGS[name])
    found, lent = stacked(path, precision)
    (node,) = Graph(found.model).nodes
    assert (node.kind, found.stacks) == ("streamssm.native.TokenStack", 1)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 12)
    wanted = streamssm.load(path, backend="cpu").scan(tokens)
    error = abs(Node(node, lent).run(tokens) - wanted).max() / abs(wanted).max()
    assert error < {"float32": 2e-5, "float16": 3e-3, "bfloat16": 3e-2}[precision]
    assert (error > 1e-6) == (precision != "float32")
    tied = "tied" not in name.split("un")[-1]
    assert (node.attributes["places"][-1] == node.attributes["places"][-2]) == tied


def test_tokens_that_may_lie_outside_are_looked_up_in_the_graph(exported):
    path = exported("mamba", CONFIGS["mamba"])
    for vocabulary in (None, VOCABULARY + 1):
        nodes = Graph(stacked(path, vocabulary=vocabulary)[0].model).nodes
        assert [node.kind for node in nodes] == ["Gather", "streamssm.native.Stack"]


def features(tmp_path, config, head=True):
    torch.manual_seed(4)
    whole = {"input": {"kind": "features", "size": 5, "rate": 50}, "d_model": 16, **config}
    path = tmp_path / "model.onnx"
    export(build(whole | ({"head": {"size": 3}} if head else {})).eval(), path, rate=50.0, block=4)
    return path


@pytest.mark.parametrize(
    ("config", "kinds", "blocks"),
    [
        ({"pattern": ["mamba", "mamba2", "mamba2", "mamba"]}, [1, 2, 1], 4),
        ({"pattern": ["mamba", "swa", "mamba"], "swa": {"window": 5, "num_heads": 2}}, [1, 1], 2),
        ({"pattern": ["mamba", "mamba"], "mlp": {}}, [1, 1], 2),
        ({"pattern": ["mamba"], "mamba": {"bias": True}}, [], 0),
        ({"pattern": ["mamba2", "mamba"], "mamba2": {"ngroups": 2}}, [1], 1),
        ({"pattern": ["mamba2"], "mamba2": {"norm_before_gate": True}}, [], 0),
        ({"pattern": ["mamba2"], "mamba2": {"rmsnorm": False}}, [], 0),
        ({"pattern": ["mamba"], "mamba": {"inner_norm": 1e-5}}, [], 0),
    ],
)
def test_runs_among_other_layers(tmp_path, config, kinds, blocks):
    """Only whole blocks of the usual form, in runs of one kind; all else stays."""
    options = {"mamba2": {"headdim": 8, "d_state": 6, **config.get("mamba2", {})}}
    found, lent = stacked(features(tmp_path, config | options), "float16", None)
    if not kinds:
        assert found is None
        return
    nodes = [node for node in Graph(found.model).nodes if node.domain == "streamssm.native"]
    assert [node.attributes["kind"] for node in nodes] == kinds
    assert found.blocks == blocks
    for node in nodes:
        Node(node, lent)


def test_a_result_in_between_ends_a_run(exported, tmp_path):
    """What another node or an output reads is not swallowed."""
    import onnx

    model = onnx.load(exported("mamba", CONFIGS["mamba"]))
    add = next(node for node in model.graph.node if node.op_type == "Add" and "linear" in node.input[1])
    model.graph.output.append(onnx.helper.make_tensor_value_info(add.output[0], 1, ["batch", "items", 16]))
    path = tmp_path / "more.onnx"
    path.write_bytes(model.SerializeToString())
    found, _ = stacked(path)
    assert [node.kind for node in Graph(found.model).nodes] == [
        "streamssm.native.TokenStack",
        "streamssm.native.Stack",
    ]


def test_rounding_is_to_the_nearest():
    rng = np.random.default_rng(6)
    values = np.concatenate(
        [rng.standard_normal(5000) * 10.0 ** rng.integers(-6, 5, 5000), [0.0, -0.0, 65504.0]]
    )
    values = values.astype(np.float32).reshape(-1, 1)
    for name, kind in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        fits = values[abs(values) <= 65504].reshape(-1, 1) if name == "float16" else values
        wanted = torch.from_numpy(fits).to(kind).view(torch.int16).numpy().view(np.uint16)
        assert (rounded(fits, name) == wanted).all()


@pytest.mark.parametrize(
    ("value", "precision"), [(7e4, "float16"), (np.inf, "float16"), (3.4e38, "bfloat16")]
)
def test_a_weight_that_does_not_fit_is_refused(value, precision):
    with pytest.raises(BackendError, match=f"does not fit {precision}; load with precision='float32'"):
        rounded(np.array([[1.0, value]], np.float32), precision)
