"""Stacks of blocks in the library against the float64 reference: every route, type and shape."""

from __future__ import annotations

import itertools

import pytest

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")

import gpu_models  # noqa: E402
import gpu_stacks  # noqa: E402
from gpu_models import native  # noqa: E402

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: relative errors of outputs and states; what passes between kernels is rounded to the type
TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}


class SmallMamba(gpu_models.Mamba):
    """Sizes that divide nothing."""

    d_model, D, N, R = 40, 72, 7, 5


class SmallMamba2(gpu_models.Mamba2):
    """Two groups, limits of the time step."""

    d_model, H, P, G, N = 40, 4, 10, 2, 12
    dt_limit = (0.01, 0.5)


class NarrowMamba(gpu_models.Mamba):
    """Those of the built-in model: B and C begin at no multiple of 16 bytes."""

    d_model, D, N, R = 80, 160, 16, 5


KINDS = {
    "narrow": NarrowMamba,
    "mamba": gpu_models.Mamba,
    "mamba2": gpu_models.Mamba2,
    "odd": SmallMamba,
    "odd2": SmallMamba2,
}
SLOTS = 9


@pytest.fixture(params=itertools.product(KINDS, TYPES), ids="-".join, scope="module")
def made(request, library):
    """A stack on the GPU, and the tolerance that its type has."""
    name, kind = request.param
    torch.manual_seed(1)
    stack = gpu_stacks.rounded(KINDS[name](layers=2, vocabulary=307, slots=SLOTS), TYPES[kind])
    resident = gpu_stacks.Resident(library, stack)
    yield resident, TOLERANCE[kind]
    resident.destroy()


@pytest.fixture
def resident(made):
    """The stack alone, with random states."""
    stack = made[0].stack
    stack.conv.normal_(std=0.3), stack.ssm.normal_(std=0.3)
    return made[0]


def tokens(resident, B, T):
    return torch.randint(resident.stack.vocabulary, (B, T), device="cuda")


def states(resident):
    return [t.clone() for t in (resident.stack.conv, resident.stack.ssm)]


def restore(resident, saved):
    for pool, state in zip((resident.stack.conv, resident.stack.ssm), saved, strict=True):
        pool.copy_(state)


def same(a, b):
    return all(torch.equal(x.view(torch.int32), y.view(torch.int32)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("B", "T"), [(1, 1), (1, 3), (SLOTS, 1), (2, 1), (3, 20), (1, 70)])
@pytest.mark.parametrize("route", ["best", *gpu_stacks.ROUTES])
def test_output_and_states(made, resident, route, B, T):
    number = gpu_stacks.ROUTES.get(route, native.BEST)
    x = tokens(resident, B, T)
    resident.run(x, number)
    if number not in (native.BEST, resident.route):
        pytest.skip("another route takes this")
    torch.manual_seed(B * T)
    resident.stack.conv.normal_(std=0.3), resident.stack.ssm.normal_(std=0.3)
    others = [t[:, B:].clone() for t in (resident.stack.conv, resident.stack.ssm)]
    assert gpu_stacks.error_of(resident, x, number, rows=3) < made[1]
    assert same(others, [t[:, B:] for t in (resident.stack.conv, resident.stack.ssm)])


@pytest.mark.parametrize(("B", "T"), [(1, 1), (4, 1), (3, 17)])
def test_rows_do_not_see_each_other_and_states_may_stay(resident, B, T):
    """Other companions, and next states elsewhere: the same bits."""
    x, before = tokens(resident, B, T), states(resident)
    wanted = resident.run(x)
    after = states(resident)
    restore(resident, before)
    target = [torch.full_like(t, float("nan")) for t in before]
    other = x.clone()
    other[1:] = tokens(resident, B, T)[1:]
    y = resident.run(other, target=target)
    assert same([y[0], target[0][:, 0], target[1][:, 0]], [wanted[0], after[0][:, 0], after[1][:, 0]])
    assert same(before, states(resident))


@pytest.mark.parametrize(("B", "T"), [(1, 1), (5, 1), (2, 9)])
def test_a_graph_gives_the_bits_of_the_calls(resident, B, T):
    x, before = tokens(resident, B, T), states(resident)
    y = torch.empty(B, T, resident.stack.vocabulary, device="cuda")
    calls = [resident.run(x, y=y).clone() for _ in range(3)]
    after = states(resident)
    restore(resident, before)
    graph = gpu_stacks.graph_of(lambda: resident.run(x, y=y))  # runs it once; capturing runs nothing
    assert torch.equal(y, calls[0])
    for wanted in calls[1:]:
        graph.replay()
        assert torch.equal(y, wanted)
    assert same(after, states(resident))


def test_no_items_leave_the_states(resident):
    before = states(resident)
    target = [torch.full_like(t, float("nan")) for t in before]
    resident.run(torch.zeros(SLOTS, 0, dtype=torch.int64, device="cuda"), target=target)
    assert same(before, target)
    resident.run(torch.zeros(0, 4, dtype=torch.int64, device="cuda"))
    assert same(before, states(resident))


@pytest.mark.parametrize(("B", "T"), [(1, 1), (5, 1), (2, 12)])
@pytest.mark.parametrize(("takes_tokens", "head"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_without_embedding_or_head(library, kind, takes_tokens, head, B, T):
    torch.manual_seed(2)
    stack = gpu_stacks.rounded(gpu_models.Mamba(layers=2, vocabulary=50, slots=5), TYPES[kind])
    stack.conv.normal_(std=0.3), stack.ssm.normal_(std=0.3)
    resident = gpu_stacks.Resident(library, stack, takes_tokens, head)
    x = tokens(resident, B, T) if takes_tokens else torch.randn(B, T, stack.d_model, device="cuda")
    assert gpu_stacks.error_of(resident, x, native.BEST) < TOLERANCE[kind]
    resident.destroy()


def test_a_growing_call_leaves_older_graphs_whole(library):
    """What passes between kernels lies in memory that all calls of a queue share."""
    stack = gpu_models.Mamba2(layers=1, vocabulary=64, slots=4)
    resident = gpu_stacks.Resident(library, stack)
    x, y = tokens(resident, 2, 3), torch.empty(2, 3, 64, device="cuda")
    wanted = resident.run(x).clone()
    queue, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(queue):
        resident.run(x, y=y)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=queue):
            resident.run(x, y=y)
        resident.run(tokens(resident, 4, 3000))
    torch.cuda.synchronize()
    stack.conv.zero_(), stack.ssm.zero_()
    graph.replay()
    assert torch.equal(y, wanted)
    resident.destroy()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "out of range"),
        ({"K": 1}, "taps"),
        ({"kind": 3}, "Mamba"),
        ({"type": 7}, "float32"),
        ({"place_count": 3}, "fewer parts"),
        ({"bytes": 1024}, "outside"),
    ],
)
def test_a_stack_that_does_not_fit_is_refused(library, monkeypatch, change, message):
    def create(model):
        for name, value in change.items():
            setattr(model, name, value)
        return native.Library.create_stack(library, model)

    stack = SmallMamba(layers=1, vocabulary=16)
    monkeypatch.setattr(library, "create_stack", create, raising=True)
    with pytest.raises(RuntimeError, match=message):
        gpu_stacks.Resident(library, stack)
