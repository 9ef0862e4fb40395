"""Root-mean-square norms as exporters write them: five nodes, or six with a weight."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from streamssm.native.graph import Node
from streamssm.native.values import Array, Shape, Values


def other_input(node: Node, name: str) -> str:
    """The input of a node of two that is not ``name``."""
    return node.inputs[1] if node.inputs[0] == name else node.inputs[0]


@dataclass(frozen=True, eq=False)
class Norm:
    """x / sqrt(mean(x^2) + eps) of every row of ``shape``, times a weight if it has a ``name``."""

    x: str
    result: str
    shape: Shape
    eps: float
    name: str
    weight: Array
    nodes: tuple[Node, ...]


def match_norm(values: Values, node: Node) -> Norm | None:
    """The norm that begins with this node, a Pow."""
    x = node.inputs[0]
    shape = values.rows(x)
    mean = values.only(node.outputs[0], "ReduceMean")
    if values.scalar(node.inputs[1]) != 2.0 or shape is None or mean is None or len(mean.inputs) != 2:
        return None
    rank = len(shape) + 2
    if values.integers(mean.inputs[1]) not in ([-1], [rank - 1]) or mean.attributes.get("keepdims", 1) != 1:
        return None
    add = values.only(mean.outputs[0], "Add")
    root = None if add is None else values.only(add.outputs[0], "Sqrt")
    divide = None if root is None else values.only(root.outputs[0], "Div")
    if add is None or root is None or divide is None or divide.inputs != (x, root.outputs[0]):
        return None
    eps = values.scalar(other_input(add, mean.outputs[0]))
    if eps is None or eps < np.finfo(np.float32).tiny:  # denormal numbers are zero here
        return None
    nodes, result = (node, mean, add, root, divide), divide.outputs[0]
    scale = values.only(result, "Mul")
    if scale is not None:
        name = other_input(scale, result)
        found = values.floats(name, *shape)
        if found is not None:
            return Norm(x, scale.outputs[0], shape, eps, name, found, (*nodes, scale))
    return Norm(x, result, shape, eps, "", np.ones(prod(shape), np.float32), nodes)
