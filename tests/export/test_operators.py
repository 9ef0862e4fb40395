"""The ONNX bodies and the torch forms of every operator against the float64 definitions:
outputs and final states, over T = 0, chunk and window edges, carried states, old streams."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from one_node import DATA, assert_close, expected, one_node_model, single
from operators import (
    CASES,
    Case,
    case_name,
    causal_conv1d,
    log_mel,
    selective_scan,
    sliding_window_attention,
    state_space_dual,
)

from streamssm.export import ops
from streamssm.export.functions import OPERATORS


@pytest.fixture(scope="module")
def sessions() -> dict:
    return {}


def run_body(case: Case, sessions: dict) -> list[np.ndarray]:
    key = (case.operator, *case.attributes.values())
    if key not in sessions:
        model = one_node_model(case)
        onnx.checker.check_model(model, full_check=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        sessions[key] = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return sessions[key].run(None, single(case))


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_onnx_body_is_the_definition(case: Case, sessions: dict) -> None:
    assert_close(run_body(case, sessions), expected(case), "float32")


@pytest.mark.parametrize("case", CASES, ids=case_name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_torch_form_is_the_definition(case: Case, dtype: torch.dtype) -> None:
    inputs = [torch.from_numpy(v) for v in single(case, str(dtype).removeprefix("torch.")).values()]
    found = getattr(ops, case.reference_name)(*inputs, **case.attributes)
    assert_close([t.numpy() for t in found], expected(case), str(dtype).removeprefix("torch."))


def test_attention_is_as_exact_after_10_to_15_items(sessions: dict) -> None:
    W, old = 8, 8 * 10**15
    young = sliding_window_attention(5, W, W + 3)
    aged = replace(young, inputs=young.inputs | {"position": young.inputs["position"] + old})
    *results, position = run_body(young, sessions)
    *aged_results, aged_position = run_body(aged, sessions)
    assert [a.tobytes() for a in results] == [b.tobytes() for b in aged_results]
    assert np.array_equal(position + old, aged_position)


@pytest.mark.parametrize("operator", OPERATORS)
def test_state_stays_float32_with_half_precision_data(operator: str) -> None:
    case = next(c for c in CASES if c.operator == operator and next(iter(c.inputs.values())).shape[1] >= 3)
    inputs = [
        torch.from_numpy(value).to(torch.bfloat16) if name in DATA else torch.from_numpy(value)
        for name, value in single(case).items()
    ]
    y, *following = getattr(ops, case.reference_name)(*inputs, **case.attributes)
    assert y.dtype == torch.bfloat16
    assert all(t.dtype in (torch.float32, torch.int64) for t in following)
    assert_close([y.float().numpy()], expected(case)[:1], "bfloat16")


SMALL = [
    causal_conv1d(4, B=1, D=2, K=3),
    selective_scan(5, B=1, D=2, N=2),
    state_space_dual(66, B=1, H=2, P=1, N=1),
    sliding_window_attention(7, 3, 2, B=1, heads=(2, 1), dh=4, R=2),
    log_mel(3, window=6, hop=4, n_fft=7, B=1, M=2),
]


@pytest.mark.parametrize("case", SMALL, ids=case_name)
def test_gradients_agree_with_finite_differences(case: Case) -> None:
    inputs = [torch.from_numpy(v.copy()) for v in case.inputs.values()]
    inputs = [v.requires_grad_() if v.is_floating_point() else v for v in inputs]

    def call(*arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = getattr(ops, case.reference_name)(*arguments, **case.attributes)
        return tuple(value for value in results if value.is_floating_point())

    assert torch.autograd.gradcheck(call, inputs)


def test_attention_survives_scores_below_any_mask(sessions: dict) -> None:
    case = sliding_window_attention(3, 8, 0, R=0)
    case.inputs["q"][:], case.inputs["k"][:] = -1e18, 1e16
    assert_close(run_body(case, sessions)[:1], expected(case)[:1], "float32")
