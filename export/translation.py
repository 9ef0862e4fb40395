"""How torch's operators become ONNX nodes: ours one to one, GRU and LSTM as the standard ones.

``torch.onnx.export`` accepts an operator with several outputs only when it carries a schema,
and inlines any onnxscript function it is given: hence ``values.Op`` here, with the function
bodies appended to the finished model (:mod:`streamssm.export.functions`).
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
import torch
from onnx.defs import OpSchema
from onnxscript import opset21 as op
from onnxscript import values

from streamssm.export import ops as _ops  # noqa: F401  registers torch.ops.streamssm
from streamssm.export.functions import DOMAIN, DOMAIN_VERSION, function

_OPSET = values.Opset(DOMAIN, DOMAIN_VERSION)
_TYPES = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]


def _operator(
    name: str, attributes: dict[str, OpSchema.AttrType], integers: tuple[str, ...] = ()
) -> values.Op:
    """The operator as a node; inputs, outputs and their order are those of its function."""
    proto = function(name)

    def parameter(index: int, formal: str) -> OpSchema.FormalParameter:
        kind = "tensor(int64)" if formal in integers else f"T{index}"
        return OpSchema.FormalParameter(formal, kind)

    inputs = [parameter(i, formal) for i, formal in enumerate(proto.input)]
    outputs = [parameter(100 + i, formal) for i, formal in enumerate(proto.output)]
    constraints = [(p.type_str, _TYPES, "") for p in inputs + outputs if not p.type_str.startswith("tensor")]
    schema = OpSchema(
        name,
        DOMAIN,
        DOMAIN_VERSION,
        inputs=inputs,
        outputs=outputs,
        type_constraints=constraints,
        attributes=[OpSchema.Attribute(key, kind) for key, kind in attributes.items()],
    )
    return values.Op(_OPSET, name, schema)


_CONV = _operator("CausalConv1d", {"silu": OpSchema.AttrType.INT})
_SCAN = _operator("SelectiveScan", {})
_DUAL = _operator("StateSpaceDual", {})
_ATTENTION = _operator(
    "SlidingWindowAttention", {"scale": OpSchema.AttrType.FLOAT}, ("position", "next_position")
)
_LOG_MEL = _operator(
    "LogMel", {"hop": OpSchema.AttrType.INT, "n_fft": OpSchema.AttrType.INT, "eps": OpSchema.AttrType.FLOAT}
)


def _causal_conv1d(x, weight, bias, state, silu: bool = False):
    return _CONV(x, weight, bias, state, silu=int(silu))


def _selective_scan(x, dt, A, B, C, D, dt_bias, z, state):
    return _SCAN(x, dt, A, B, C, D, dt_bias, z, state)


def _state_space_dual(x, dt, A, B, C, D, state):
    return _DUAL(x, dt, A, B, C, D, state)


def _sliding_window_attention(q, k, v, inv_freq, key, value, position, scale: float):
    return _ATTENTION(q, k, v, inv_freq, key, value, position, scale=scale)


def _log_mel(x, window, filters, past, hop: int, n_fft: int, eps: float):
    return _LOG_MEL(x, window, filters, past, hop=hop, n_fft=n_fft, eps=eps)


def _gates(weight, order: tuple[int, ...], size: int):
    """Reorder stacked gate blocks [gates * size, ...] along the first axis."""
    blocks = [op.Slice(weight, [gate * size], [(gate + 1) * size], [0]) for gate in order]
    return op.Concat(*blocks, axis=0)


def _recurrent_weights(weight_ih, weight_hh, bias_ih, bias_hh, order):
    size = weight_hh.shape[1]
    w, r, b_ih, b_hh = (_gates(t, order, size) for t in (weight_ih, weight_hh, bias_ih, bias_hh))
    b = op.Concat(b_ih, b_hh, axis=0)
    return op.Unsqueeze(w, [0]), op.Unsqueeze(r, [0]), op.Unsqueeze(b, [0]), size


def _at_least_one(x):
    """x [B, T, I] -> [T, B, I] with one zero item if T = 0, which ONNX Runtime's recurrent
    kernels do not survive; also T and whether there was anything."""
    T = op.Shape(x, start=1, end=2)
    zeros = op.Constant(value_ints=[0, 0, 0, 0])
    missing = op.Cast(op.Equal(T, [0]), to=onnx.TensorProto.INT64)
    pads = op.Concat(zeros, missing, op.Constant(value_ints=[0]), axis=0)
    return op.Transpose(op.Pad(x, pads), perm=[1, 0, 2]), T, op.Greater(T, [0])


def _items_first(y, T):
    """[T or 1, 1, B, D] -> [B, T, D]."""
    return op.Transpose(op.Squeeze(op.Slice(y, [0], T, [0]), [1]), perm=[1, 0, 2])


def _gru(x, weight_ih, weight_hh, bias_ih, bias_hh, h):
    # torch stacks r, z, n; ONNX wants z, r, h, and torch's reset gate acts after the matmul
    w, r, b, size = _recurrent_weights(weight_ih, weight_hh, bias_ih, bias_hh, (1, 0, 2))
    items, T, some = _at_least_one(x)
    h = op.Unsqueeze(h, [0])
    y, last = op.GRU(items, w, r, b, None, h, hidden_size=size, linear_before_reset=1)
    return _items_first(y, T), op.Squeeze(op.Where(some, last, h), [0])


def _lstm(x, weight_ih, weight_hh, bias_ih, bias_hh, h, c):
    # torch stacks i, f, g, o; ONNX wants i, o, f, c
    w, r, b, size = _recurrent_weights(weight_ih, weight_hh, bias_ih, bias_hh, (0, 3, 1, 2))
    items, T, some = _at_least_one(x)
    h, c = op.Unsqueeze(h, [0]), op.Unsqueeze(c, [0])
    y, last_h, last_c = op.LSTM(items, w, r, b, None, h, c, hidden_size=size)
    last_h, last_c = op.Where(some, last_h, h), op.Where(some, last_c, c)
    return _items_first(y, T), op.Squeeze(last_h, [0]), op.Squeeze(last_c, [0])


def _expert_linear(x, counts, weights):
    # zero rows cost a node call and no weight is touched
    pieces = op.Split(x, num_outputs=len(weights))
    if len(weights) == 1:
        pieces = [pieces]
    node = pieces[0].producer()
    # torch's recorder counts the outputs of Split by an attribute that excludes sizes
    del node.attributes["num_outputs"]
    node.resize_inputs(2)
    node.replace_input_with(1, counts)
    products = [
        op.MatMul(piece, op.Transpose(w, perm=[1, 0])) for piece, w in zip(pieces, weights, strict=True)
    ]
    return op.Concat(*products, axis=0)


def _softplus(x, beta: float = 1.0, threshold: float = 20.0):
    # torch's own translation adds a comparison and a choice for x > threshold, where ONNX's
    # softplus differs from the identity by less than float32 can hold
    return op.Softplus(x) if beta == 1.0 else op.Div(op.Softplus(op.Mul(x, beta)), beta)


def translation_table() -> dict[Callable, Callable]:
    """``custom_translation_table`` for :func:`torch.onnx.export`."""
    namespace = torch.ops.streamssm
    return {
        namespace.causal_conv1d.default: _causal_conv1d,
        namespace.selective_scan.default: _selective_scan,
        namespace.state_space_dual.default: _state_space_dual,
        namespace.sliding_window_attention.default: _sliding_window_attention,
        namespace.log_mel.default: _log_mel,
        namespace.gru.default: _gru,
        namespace.lstm.default: _lstm,
        namespace.expert_linear.default: _expert_linear,
        torch.ops.aten.softplus.default: _softplus,
    }


def append_functions(model: onnx.ModelProto) -> None:
    """Add the body of every ``streamssm`` operator that the model uses, and the opset import."""
    used = sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN})
    del model.functions[:]
    model.functions.extend(function(name) for name in used)
    if used and not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
