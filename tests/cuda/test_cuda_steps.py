"""The fused steps against the float64 reference: logits and states, slots, graphs, long replays."""

import ctypes
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")

import gpu_models  # noqa: E402

KINDS = {"mamba": gpu_models.Mamba, "mamba2": gpu_models.Mamba2}
TOLERANCE = 1e-5  # of logits and states, relative to the largest


@pytest.fixture(params=KINDS)
def stack(request, library):
    torch.manual_seed(0)
    stack = KINDS[request.param](layers=3, vocabulary=1003, slots=4)
    try:
        stack.create(library)
    except RuntimeError as error:
        pytest.skip(str(error))
    stack.conv.normal_(), stack.ssm.normal_()
    yield stack
    stack.destroy()


def int32(value):
    return torch.tensor([value], dtype=torch.int32, device="cuda")


def close(got, expected):
    error = abs(got.double().cpu().numpy() - expected).max() / abs(expected).max()
    assert error < TOLERANCE, error


def check_states(stack, slot, expected):
    for layer, state in enumerate(expected):
        close(stack.conv[layer, slot], state["conv"][0])
        close(stack.ssm[layer, slot], state["ssm"][0])


def test_steps_follow_the_reference(stack):
    states, slot = stack.states(2), int32(2)
    others = [0, 1, 3]
    before = stack.conv[:, others].clone(), stack.ssm[:, others].clone()
    for token in (5, 1002, 0, 77):
        stack.logits.fill_(float("nan"))
        stack.step(stack.call(token=int32(token), slot=slot))
        expected, states = stack.reference_step(stack.input_of(token), states)
        close(stack.logits, expected[0])
        check_states(stack, 2, states)
    assert torch.equal(stack.conv[:, others], before[0])
    assert torch.equal(stack.ssm[:, others], before[1])


def test_a_vector_for_input_and_states_out_of_place(stack):
    x = torch.randn(1, stack.d_model, device="cuda")
    expected, states = stack.reference_step(x.double().cpu().numpy(), stack.states(0))
    before = stack.conv.clone(), stack.ssm.clone()
    target = torch.full_like(stack.conv, float("nan")), torch.full_like(stack.ssm, float("nan"))
    stack.step(stack.call(x=x, target=target))
    assert torch.equal(stack.conv, before[0])
    assert torch.equal(stack.ssm, before[1])
    stack.conv, stack.ssm = target
    close(stack.logits, expected[0])
    check_states(stack, 0, states)


def test_a_negative_slot_does_nothing(stack):
    before = stack.conv.clone(), stack.ssm.clone()
    stack.step(stack.call(token=int32(1), slot=int32(-1)))
    torch.cuda.synchronize()
    assert torch.equal(stack.conv, before[0])
    assert torch.equal(stack.ssm, before[1])
    assert stack.logits.isnan().all()


@pytest.mark.parametrize("steps", [300, pytest.param(100_000, marks=pytest.mark.slow)])
def test_graph_replays_are_the_steps_themselves(stack, steps):
    """States in place, replayed blindly: bits as without a graph. The capture runs nothing."""
    token, slot = int32(3), int32(1)
    start = stack.conv.clone(), stack.ssm.clone()
    call = stack.call(token=token, slot=slot)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        stack.step(call)
    assert torch.equal(stack.ssm, start[1])
    for step in range(steps):
        token.fill_(step % stack.vocabulary)
        graph.replay()
    replayed = stack.logits.clone(), stack.conv.clone(), stack.ssm.clone()
    stack.conv.copy_(start[0]), stack.ssm.copy_(start[1])
    for step in range(steps):
        token.fill_(step % stack.vocabulary)
        stack.step(call)
    assert not stack.logits.isnan().any()
    for got, expected in zip(replayed, (stack.logits, stack.conv, stack.ssm), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("source", ["step_mamba", "step_mamba2", "rows_step"])
def test_code_for_an_older_gpu_is_refused(library, source, tmp_path):
    """The driver compiles it anew, but what needs 9.0 was left out of it: a step would do nothing."""
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("another reason comes first before 9.0")
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    older = tmp_path / "older.so"
    target = "-gencode=arch=compute_80,code=compute_80"
    command = ["nvcc", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", target]
    needed = [
        f"kernels/cuda/{name}.cu" for name in {"rows_step": ("rows_step", "rows_walk")}.get(source, (source,))
    ]
    subprocess.run([*command, *needed, "-o", older], cwd=gpu_models.ROOT, check=True)
    name = {"rows_step": "mamba_rows_create"}.get(source, source.removeprefix("step_") + "_create")
    create = getattr(ctypes.CDLL(str(older)), f"streamssm_cuda_{name}")
    create.restype = ctypes.c_char_p
    stack = KINDS["mamba2" if source == "step_mamba2" else "mamba"](layers=1, vocabulary=8)
    layer = stack.layer_type(**{name: tensor.data_ptr() for name, tensor in stack.weights[0].items()})
    model, handle = ctypes.byref(stack.model((stack.layer_type * 1)(layer))), ctypes.c_void_p()
    rows = [ctypes.c_int64(1)] if source == "rows_step" else []
    assert b"built for 9.0 or later" in create(model, *rows, ctypes.byref(handle))
