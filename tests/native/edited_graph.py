"""An exported model's graph, with ways to change it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from test_stacks import VOCABULARY
from test_stacks import Node as Stack

from streamssm.native.graph import Graph
from streamssm.native.stacks import stack_graph


class Edit:
    """A model's graph, with ways to change it."""

    def __init__(self, data: bytes):
        self.model = onnx.load_from_string(data)
        self.graph = self.model.graph

    def all(self, op: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if node.op_type == op]

    def maker(self, name: str) -> onnx.NodeProto:
        return next(node for node in self.graph.node if name in node.output)

    def readers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if name in node.input]

    def constant(self, value: np.ndarray) -> str:
        name = f"constant {len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def insert(self, op: str, node: onnx.NodeProto, at: int, *more: str, **attributes: object) -> None:
        """An operation between a node and its input."""
        name = f"{op} {len(self.graph.node)}"
        new = helper.make_node(op, [node.input[at], *more], [name], **attributes)
        self.graph.node.insert(list(self.graph.node).index(node), new)
        node.input[at] = name

    def show(self, name: str) -> None:
        """Make a value an output of the graph."""
        self.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))

    def residuals(self) -> list[onnx.NodeProto]:
        mixed = {node.output[0] for node in self.all("MatMul")}
        return [node for node in self.all("Add") if mixed.intersection(node.input)]

    def stacked(self, vocabulary: int | None = VOCABULARY):
        lent: list[np.ndarray] = []

        def lend(weights):
            lent.append(weights)
            return len(lent)

        graph = Graph(self.model.SerializeToString())
        return stack_graph(graph, "float32", ("tokens", vocabulary), lend), lent

    def forms(self) -> list[tuple[str, int]]:
        """Each stack's operator and number of blocks."""
        found, _ = self.stacked()
        if found is None:
            return []
        nodes = [node for node in Graph(found.model).nodes if node.domain == "streamssm.native"]
        assert sum(node.attributes["sizes"][0] for node in nodes) == found.blocks
        return [(node.op, node.attributes["sizes"][0]) for node in nodes]

    def check_numbers(self) -> None:
        """One stack for the whole model, which gives what the edited file gives."""
        found, lent = self.stacked()
        (node,) = (node for node in Graph(found.model).nodes if node.domain == "streamssm.native")
        tokens = np.random.default_rng(2).integers(0, VOCABULARY, 9)
        session = onnxruntime.InferenceSession(
            self.model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        feeds = {"tokens": tokens[None]}
        for port in session.get_inputs()[1:]:
            feeds[port.name] = np.zeros([1, *port.shape[1:]], np.float32)
        wanted = session.run(["output"], feeds)[0][0]
        np.testing.assert_allclose(Stack(node, lent).run(tokens), wanted, rtol=1e-4, atol=1e-5)
