"""The fused steps against the float64 reference: logits and states, slots, graphs, long replays."""

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
