"""Runs StateSpaceDual through an operator of ONNX Runtime's own where our library is absent.

``com.microsoft::LinearAttention`` with the rule ``gated`` and scale 1 computes, for each head,

    S_t = exp(g_t) S_{t-1} + k_t (x) v_t        o_t = S_t^T q_t

With g = dt A, k = B, v = dt x and q = C that is the state and the output of StateSpaceDual but for
the skip D x. The state has our layout, [B, H, N, P]; a group's C serves all of its heads, its B is
repeated for each. The items are taken one by one, so nothing depends on how a stream is cut.

Faster than the function body, on one thread of an x86-64 core with AVX-512 and onnxruntime 1.31:
3.3 times at one item and 3.2 at 512 for H, P, N = 2, 64, 16; 2.7 and 1.4 for 24, 64, 128. It is
slower over many items where P is no multiple of 32 (7 times at P = 28, N = 128), and not faster
for a large state; :func:`pays` is the rule that follows.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import numpy as np

from streamssm.native.encoding import encode_model
from streamssm.native.graph import Attribute, Graph, Node, graph_of
from streamssm.native.patterns import Reader
from streamssm.onnx_file import ModelFile
from streamssm.protobuf import Buffer

DOMAIN = "com.microsoft"
OPERATOR = "LinearAttention"

_SMALL_N, _WHOLE_P, _LARGEST = 16, 32, 8192


def pays(P: int, N: int) -> bool:
    """Whether the operator was faster than the function body for every T that was measured, 1 to
    512: head dim P a multiple of 32 and at most 8192 numbers of state a head, or N at most 16."""
    return N <= _SMALL_N or (P % _WHOLE_P == 0 and N * P <= _LARGEST)


def lower_file(file: ModelFile, runtime: Any) -> bytes | None:
    """The model with every StateSpaceDual that gains replaced, or None if there is none or
    ``runtime``, the onnxruntime module, has no such operator. Large tensors stay in the file."""
    if ("streamssm", "StateSpaceDual") not in file.op_counts or not available(runtime):
        return None
    return lower_graph(graph_of(file, mapped=True))  # who has the operator maps tensors too


def lower(data: Buffer) -> bytes | None:
    """:func:`lower_graph` for a serialised model."""
    return lower_graph(Graph(data))


def lower_graph(graph: Graph) -> bytes | None:
    """The model with every StateSpaceDual that gains replaced, or None if there is none."""
    reader = Reader(graph)
    nodes: list[Node] = []
    found = False
    for node in graph.nodes:
        reader.step(node)
        replacement = _replacement(reader, node) if node.kind == "streamssm.StateSpaceDual" else None
        found |= replacement is not None
        nodes += replacement or [node]
    if not found:
        return None
    return graph.rewritten(nodes, {DOMAIN} - graph.domains)


def _replacement(reader: Reader, node: Node) -> list[Node] | None:
    """The nodes that compute what ``node`` does, or None where they would not pay."""
    x, dt, A, B, C, D, state = node.inputs
    rows, group = reader.rows(x), reader.rows(B)
    if rows is None or group is None or len(rows) != 2 or len(group) != 2:
        return None
    (H, P), (G, N) = rows, group
    if not pays(P, N) or H % G:
        return None
    made = _Maker(node.outputs[0] + "/linear_attention/")
    xs, dts, Bs, Cs = (made.one("CastLike", name, state) for name in (x, dt, B, C))
    decay = made.one("Mul", dts, A)
    inflow = made.one("Mul", xs, made.one("Unsqueeze", dts, made.integers(-1)))
    v = made.one("Reshape", inflow, made.integers(0, 0, H * P))
    if G < H:
        Bs = made.one("Unsqueeze", Bs, made.integers(3))
        Bs = made.one("Expand", Bs, made.integers(1, 1, 1, H // G, 1))
    k = made.one("Reshape", Bs, made.integers(0, 0, H * N))
    q = made.one("Reshape", Cs, made.integers(0, 0, G * N))
    flat = made.name()
    made.nodes.append(_attention((q, k, v, state, decay), (flat, node.outputs[1]), G, H))
    output = made.one("Reshape", flat, made.integers(0, 0, H, P))
    total = made.one("Add", output, made.one("Mul", xs, D))
    made.nodes.append(Node("CastLike", (total, x), (node.outputs[0],)))
    return made.nodes


def _attention(inputs: tuple[str, ...], outputs: tuple[str, ...], G: int, H: int) -> Node:
    attributes: dict[str, Attribute] = {
        "q_num_heads": G,
        "kv_num_heads": H,
        "scale": 1.0,
        "update_rule": b"gated",
    }
    return Node(OPERATOR, inputs, outputs, DOMAIN, attributes)


class _Maker:
    """Makes nodes with one output each, whose names begin with ``prefix``."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[Node] = []

    def name(self) -> str:
        """A name that is not yet taken."""
        return f"{self.prefix}{len(self.nodes)}"

    def one(self, op: str, *inputs: str) -> str:
        """The output of a new node."""
        self.nodes.append(Node(op, inputs, (self.name(),)))
        return self.nodes[-1].outputs[0]

    def integers(self, *values: int) -> str:
        """A constant."""
        self.nodes.append(Node("Constant", (), (self.name(),), attributes={"value_ints": list(values)}))
        return self.nodes[-1].outputs[0]


@cache
def available(runtime: Any) -> bool:
    """Whether the operator is there for float32 and means what this module takes it for: tried
    once, with two heads that share one query over two items and over none."""
    pair = (1, None, 2)
    shapes = {"q": (1, None, 1), "k": pair, "v": pair, "state": (1, 2, 1, 1), "decay": pair}
    node = _attention(tuple(shapes), ("y", "next"), G=1, H=2)
    model = encode_model([node], shapes, {"y": (1, None, 2), "next": (1, 2, 1, 1)}, {"": 21, DOMAIN: 1})
    feeds = {
        "q": np.array([[[2.0], [4.0]]], np.float32),
        "k": np.array([[[1.0, 3.0], [5.0, 7.0]]], np.float32),
        "v": np.array([[[1.0, -1.0], [0.5, 2.0]]], np.float32),
        "state": np.array([[[[8.0]], [[16.0]]]], np.float32),
        "decay": np.log(np.array([[[0.5, 0.25], [0.25, 1.0]]], np.float32)),
    }
    nothing = {name: value if name == "state" else value[:, :0] for name, value in feeds.items()}
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        y, state = session.run(None, feeds)
        empty, same = session.run(None, nothing)
    except Exception as error:
        logging.getLogger("streamssm").debug("no %s: %s", OPERATOR, error)
        return False
    # S: 8 / 2 + 1 = 5, 5 / 4 + 2.5 = 3.75 and 16 / 4 - 3 = 1, 1 + 14 = 15
    right = np.allclose(y, [[[10.0, 2.0], [15.0, 60.0]]]) and np.allclose(state.ravel(), [3.75, 15.0])
    return bool(right and empty.shape == (1, 0, 2) and np.array_equal(same, feeds["state"]))
