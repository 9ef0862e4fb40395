"""Steps of many rows against the float64 reference: logits and states, slots, company, graphs, refusals."""

import pytest

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")

import gpu_models  # noqa: E402
import gpu_rows  # noqa: E402


class OddMamba(gpu_models.Mamba):
    """Sizes that fill no tile: the last channels share one with gates, the rank is no multiple of 16."""

    d_model, D, R, K = 384, 1024, 24, 3


class OddMamba2(gpu_models.Mamba2):
    """Groups, wide heads, step sizes with a limit and a padded row."""

    d_model, K = 384, 2
    H, P, G, N = 6, 128, 2, 20
    dt_limit = (0.005, 0.05)


KINDS = {
    "mamba": (gpu_models.Mamba, 1004),
    "mamba2": (gpu_models.Mamba2, 1004),
    "odd mamba": (OddMamba, 1001),
    "odd mamba2": (OddMamba2, 1001),
}
SLOTS = 200
WALK = 33  # so many rows of a model of mamba1_130m's shape take the walk, whose sums run in another order
TOLERANCE = 1.5e-3  # relative: what enters a product is rounded to float16, three or four times a layer


@pytest.fixture(scope="module", params=KINDS)
def rows(request, library):
    torch.manual_seed(0)
    kind, vocabulary = KINDS[request.param]
    stack = kind(layers=3, vocabulary=vocabulary, slots=SLOTS)
    if torch.cuda.get_device_capability() < (9, 0):
        with pytest.raises(RuntimeError, match="compute capability"):
            gpu_rows.Rows(library, stack, SLOTS)
        pytest.skip("steps of many rows need compute capability 9.0 or later")
    rows = gpu_rows.Rows(library, stack, SLOTS)
    yield rows
    rows.destroy()


@pytest.fixture(autouse=True)
def fresh_states(rows):
    rows.stack.conv.normal_(std=0.1), rows.stack.ssm.normal_(std=0.1)


def poison(rows):
    rows.logits.fill_(float("nan")), rows.residual.fill_(float("nan"))


def slots_of(count, skipped=()):
    slots = torch.randperm(SLOTS, device="cuda")[:count].int()
    slots[list(skipped)] = -1
    return slots


def outcome(rows, x, slots):
    """Logits, residual and next states (NaN where nothing was written) of one step out of place."""
    stack, B = rows.stack, len(x)
    target = torch.full_like(stack.conv, float("nan")), torch.full_like(stack.ssm, float("nan"))
    poison(rows)
    rows.step(rows.call(B, x=x, slots=slots, target=target))
    torch.cuda.synchronize()
    return rows.logits[:B].clone(), rows.residual[:B].clone(), *target


@pytest.mark.parametrize("B", [1, 2, 7, 16, 17, 32, 33, 64, 65, 128, 129, 200])
def test_a_step_follows_the_reference(rows, B):
    """Logits and states of the first, the last and some middle rows, tokens in, states in place."""
    checked = sorted({0, B // 2, B - 1})
    for _ in range(2):
        assert gpu_rows.error_of(rows, B, checked) < TOLERANCE
    assert rows.residual[:B].isfinite().all()


def test_rows_that_take_no_part_stay_as_they_are(rows):
    before = rows.stack.conv.clone(), rows.stack.ssm.clone()
    slots = slots_of(9, skipped=range(9))
    rows.step(rows.call(9, slots=slots))
    torch.cuda.synchronize()
    assert torch.equal(rows.stack.conv, before[0])
    assert torch.equal(rows.stack.ssm, before[1])
    rows.step(rows.call(20))
    torch.cuda.synchronize()
    assert torch.equal(rows.stack.conv[:, 20:], before[0][:, 20:])
    assert torch.equal(rows.stack.ssm[:, 20:], before[1][:, 20:])


def same(got, wanted):
    return torch.equal(got.nan_to_num(-1), wanted.nan_to_num(-1))


def test_the_same_bits_again_and_nothing_else_touched(rows):
    x, slots = torch.randn(197, rows.stack.d_model, device="cuda"), slots_of(197, skipped=(5, 69))
    logits, residual, conv, ssm = outcome(rows, x, slots)
    for again, first in zip(outcome(rows, x, slots), (logits, residual, conv, ssm), strict=True):
        assert same(again, first)
    assert not logits[[5, 69]].any()
    assert not residual[[5, 69]].any()
    untouched = torch.ones(SLOTS, dtype=torch.bool, device="cuda")
    untouched[slots[slots >= 0].long()] = False
    assert ssm[:, untouched].isnan().all()
    assert conv[:, untouched].isnan().all()


@pytest.mark.parametrize("whole", [197, WALK - 1])
def test_the_same_bits_alone_and_in_company(rows, whole):
    """Among few rows and among many; models that have no walk have the same bits in both."""
    x, slots = torch.randn(whole, rows.stack.d_model, device="cuda"), slots_of(whole, skipped=(5,))
    logits, residual, conv, ssm = outcome(rows, x, slots)
    walks = (rows.stack.kind, rows.stack.D if rows.stack.kind == "mamba" else 0) == ("mamba", 1536)
    for chosen in (
        [3],
        [0, 9],
        list(range(4, 21)),
        list(range(10, 50)),
        list(range(69, -1, -1)),
        list(range(100, 165)),
        list(range(150)),
    ):
        if max(chosen) >= whole or (walks and (len(chosen) < WALK) != (whole < WALK)):
            continue
        part = outcome(rows, x[chosen].contiguous(), slots[chosen].contiguous())
        mine = slots[chosen][slots[chosen] >= 0].long()
        assert torch.equal(part[0], logits[chosen])
        assert torch.equal(part[1], residual[chosen])
        assert torch.equal(part[2][:, mine], conv[:, mine])
        assert torch.equal(part[3][:, mine], ssm[:, mine])


@pytest.mark.parametrize("B", [20, 40, 70, 150])
def test_rows_that_are_not_finite_reach_no_other(rows, B):
    x, slots = torch.randn(B, rows.stack.d_model, device="cuda"), slots_of(B)
    wanted = outcome(rows, x, slots)[:2]
    x[7], x[11, 5] = float("nan"), float("inf")
    got = outcome(rows, x, slots)[:2]
    others = [i for i in range(B) if i not in (7, 11)]
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one[others], other[others])
        assert one[7].isnan().all()


@pytest.mark.parametrize("B", [257, 600])
def test_more_rows_than_go_at_a_time(library, B):
    """What the walk does in several passes, of a size that divides nothing."""
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("steps of many rows need compute capability 9.0 or later")
    torch.manual_seed(0)
    rows = gpu_rows.Rows(library, gpu_models.Mamba(layers=2, vocabulary=64, slots=B), B)
    rows.stack.conv.normal_(std=0.1), rows.stack.ssm.normal_(std=0.1)
    assert gpu_rows.error_of(rows, B, [0, B // 2, B - 1]) < TOLERANCE
    x, slots = torch.randn(B, 768, device="cuda"), torch.randperm(B, device="cuda").int()
    whole = outcome(rows, x, slots)
    for first in (0, B - 90):
        chosen = slice(first, first + 90)
        part = outcome(rows, x[chosen].contiguous(), slots[chosen].contiguous())
        assert torch.equal(part[0], whole[0][chosen])
        assert torch.equal(part[3][:, slots[chosen].long()], whole[3][:, slots[chosen].long()])
    rows.destroy()


def test_residual_without_logits_and_in_place(rows):
    x, slots = torch.randn(40, rows.stack.d_model, device="cuda"), slots_of(40)
    _, wanted, conv, ssm = outcome(rows, x, slots)
    rows.residual[:40] = x
    call = rows.call(40, x=rows.residual, slots=slots, head=False)
    rows.step(call)
    torch.cuda.synchronize()
    assert torch.equal(rows.residual[:40], wanted)
    assert torch.equal(rows.stack.conv[:, slots.long()], conv[:, slots.long()])
    assert torch.equal(rows.stack.ssm[:, slots.long()], ssm[:, slots.long()])


def test_a_smaller_model_takes_nothing_from_it(rows, library):
    """What kernels may use is a setting of the whole process."""
    x, slots = torch.randn(64, rows.stack.d_model, device="cuda"), slots_of(64)
    wanted = outcome(rows, x, slots)[1]
    sizes = {"d_model": 128, "D": 256, "R": 8, "H": 4, "P": 64, "G": 1}
    small = type("Small", (type(rows.stack),), sizes)(layers=1, vocabulary=8)
    gpu_rows.Rows(library, small, 1).destroy()
    assert torch.equal(outcome(rows, x, slots)[1], wanted)


@pytest.mark.parametrize("B", [3, 64, 130, 200])
def test_graph_replays_are_the_steps_themselves(rows, B):
    stack, steps = rows.stack, 200
    start = stack.conv.clone(), stack.ssm.clone()
    call = rows.call(B)
    rows.step(call)
    stack.conv.copy_(start[0]), stack.ssm.copy_(start[1])
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        rows.step(call)
    assert torch.equal(stack.ssm, start[1])
    results = []
    for step in (graph.replay, lambda: rows.step(call)):
        stack.conv.copy_(start[0]), stack.ssm.copy_(start[1])
        poison(rows)
        for i in range(steps):
            rows.tokens.fill_(i % stack.vocabulary)
            step()
        results.append([t.clone() for t in (rows.logits[:B], stack.conv, stack.ssm)])
    assert not results[0][0].isnan().any()
    for replayed, stepped in zip(*results, strict=True):
        assert torch.equal(replayed, stepped)


def test_bad_calls_are_refused(rows):
    with pytest.raises(RuntimeError, match="more rows"):
        rows.step(rows.call(SLOTS + 1))
    call = rows.call(1)
    call.x = rows.residual.data_ptr()
    with pytest.raises(RuntimeError, match="either tokens or x"):
        rows.step(call)
    call = rows.call(1)
    call.ssm_slot += 2
    with pytest.raises(RuntimeError, match="multiples of 4"):
        rows.step(call)
    for field in ("conv_state", "conv_next", "ssm_state", "ssm_next", "residual", "logits"):
        call = rows.call(1)
        setattr(call, field, getattr(call, field) + 4)
        with pytest.raises(RuntimeError, match="aligned"):
            rows.step(call)


def test_no_rows_are_no_work(rows):
    before = rows.stack.ssm.clone()
    rows.step(rows.call(0))
    torch.cuda.synchronize()
    assert torch.equal(rows.stack.ssm, before)
