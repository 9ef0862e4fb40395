"""Tensors for the plugin tests: one small set of sizes for each operator, and made-up addresses."""

from __future__ import annotations

from plugin_harness import BFLOAT16, FLOAT16, FLOAT32, INPUTS, INT32, INT64, STATES, Tensor

# sizes by letter; P is the head dim of a dual, and the past of a log-mel
SIZES = {"B": 2, "T": 8, "D": 6, "K": 4, "N": 3, "H": 4, "P": 13, "G": 2, "Q": 4, "V": 2, "d": 10, "W": 7,
         "R": 5, "L": 15, "F": 9, "M": 11, "k": 3}  # fmt: skip
# k is K - 1, Q and V query and key heads, F the bins of a spectrum
SHAPES = {
    "CausalConv1d": ("BTD", "KD", "D", "BkD"),
    "SelectiveScan": ("BTD", "BTD", "ND", "BTN", "BTN", "D", "D", "BTD", "BND"),
    "StateSpaceDual": ("BTHP", "BTH", "H", "BTGN", "BTGN", "HP", "BHNP"),
    "SlidingWindowAttention": ("BTQd", "BTVd", "BTVd", "R", "BVWd", "BVWd", "B"),
    "LogMel": ("BT", "L", "FM", "BP"),
}
TYPES = (FLOAT32, FLOAT16, BFLOAT16)
API_TYPES = {FLOAT32: 0, FLOAT16: 1, BFLOAT16: 2}


def shapes_of(name: str) -> list[tuple[int, ...]]:
    return [tuple(SIZES[letter] for letter in letters) for letters in SHAPES[name]]


def types_of(name: str, data: int, rows: int = 0) -> tuple[list[int], list[int]]:
    """Types of the inputs and outputs, the first ``rows`` of slots and lengths among them."""
    kinds = {"data": data, "float32": FLOAT32, "int64": INT64}
    inputs = [kinds[kind] for kind in INPUTS[name].values()] + [INT32] * rows
    return inputs, [data, *(kinds[INPUTS[name][state]] for state in STATES[name])]


def tensors_of(name: str, data: int = FLOAT32, rows: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of a call. Addresses are made up, far apart; nothing reads them."""
    inputs, outputs = types_of(name, data, rows)
    shapes = shapes_of(name) + [(SIZES["B"],)] * rows
    given = [Tensor(*one, 1 << 20 | i << 12) for i, one in enumerate(zip(inputs, shapes, strict=True))]
    y = (2, 2, SIZES["M"]) if name == "LogMel" else shapes[0]
    next_shapes = [shapes[list(INPUTS[name]).index(state)] for state in STATES[name]]
    made = [
        Tensor(*one, 1 << 24 | i << 12) for i, one in enumerate(zip(outputs, [y, *next_shapes], strict=True))
    ]
    return given, made
