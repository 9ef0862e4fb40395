"""SelectiveScan's kernels for many rows, for long calls, and with step sizes of their own making."""

import itertools

import pytest

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")

from gpu_models import _f64, native  # noqa: E402
from operator_cases import (  # noqa: E402
    CODES,
    LONG_TOLERANCE,
    TOLERANCE,
    TYPES,
    Scan,
    at,
    close,
    int32,
    noise,
    run,
)  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_many_rows(library, kind):
    """A step of hundreds of rows gives each what it gets alone; skipped and empty rows keep their state."""
    op, B = Scan(1536, 16), 300
    data, pool = op.data(B, 1, TYPES[kind]), noise(B, *op.state_shape)
    slots = torch.randperm(B, device="cuda").int()
    lengths = torch.ones(B, dtype=torch.int32, device="cuda")
    slots[7], lengths[11] = -1, 0
    before = pool.clone()
    y, pool = run(library, op, kind, data, pool, slots, lengths)
    for row in (0, 1, 150, 299):
        alone = {k: v[row : row + 1].contiguous() for k, v in data.items()}
        slot = int(slots[row])
        y_alone, state = run(library, op, kind, alone, before[slot : slot + 1].clone())
        assert torch.equal(y[row].view(torch.uint8), y_alone[0].view(torch.uint8))
        assert torch.equal(pool[slot], state[0])
    assert not y[7].any()
    assert not y[11].any()
    assert torch.equal(pool[int(slots[11])], before[int(slots[11])])
    unnamed = sorted(set(range(B)) - set(slots.tolist()))
    assert torch.equal(pool[unnamed], before[unnamed])


# by blocks of 12, 8, 16, 12 and 12 channels; of the odd blocks of 12 the copies begin four channels earlier
IN_TURN = [(1536, 1, 2600), (784, 1, 1025), (2048, 1, 1500), (776, 3, 1024), (1544, 1, 530)]


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize(("D", "B", "T"), IN_TURN)
def test_warps_in_turn_give_the_bits_of_one_pass(library, kind, D, B, T):
    """Long scans by scan_ring.cuh and, with a pitch it does not take, by scan_stream.cuh; cut anywhere."""
    op = Scan(D, 16)
    data, pool = op.data(B, T, TYPES[kind]), noise(B + 1, *op.state_shape)
    slots, lengths = int32([B - b for b in range(B)]), int32([T - 37, T // 2, T][:B])
    y, after = run(library, op, kind, data, pool.clone(), slots, lengths)
    wide = {name: torch.zeros(B, T, 20, dtype=TYPES[kind], device="cuda") for name in ("B", "C")}
    for name, tensor in wide.items():
        tensor[..., :16] = data[name]
    got, state = torch.full_like(y, float("nan")), pool.clone()
    rows = (B, T, at(slots), at(lengths))
    call = op.call(rows, CODES[kind], {**data, **wide}, state, state, got)
    call.bc_pitch = 20
    library.operator(op.name, call, torch.cuda.current_stream().cuda_stream)
    assert torch.equal(got.view(torch.int16), y.view(torch.int16))
    assert torch.equal(state, after)
    whole, whole_state = run(library, op, kind, data, pool[:B].clone())
    state, parts = pool[:B].clone(), []
    for first, last in itertools.pairwise([0, 513, 520, T]):
        part = {k: v[:, first:last].contiguous() for k, v in data.items()}
        parts.append(run(library, op, kind, part, state)[0])
    assert torch.equal(torch.cat(parts, 1).view(torch.int16), whole.view(torch.int16))
    assert torch.equal(state, whole_state)


@pytest.mark.parametrize("T", [1, 33, 100, 1100])
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(1536, 16, 48), (68, 16, 16), (40, 5, 64)], ids=str)
def test_step_sizes_by_a_product(library, kind, shape, T):
    """SelectiveScan that makes its step sizes: against float64, whatever the number of rows, cut anywhere."""
    D, N, R = shape
    op, B, kept = Scan(D, N), 9, R + 2 * N + (-2 * N) % 4
    data, pool = op.data(B, T, TYPES[kind]), noise(B, *op.state_shape)
    low, weight = noise(B, T, kept).to(TYPES[kind]), (0.2 * noise(D, R)).to(TYPES[kind])
    lengths = [T] * (B - 1) + [T // 2]

    def run_low(rows, first, last, state, lengths=None):
        part = {k: v[rows, first:last].contiguous() for k, v in data.items()}
        numbers, held = low[rows, first:last].contiguous(), None if lengths is None else int32(lengths)
        y = torch.full_like(part["x"], float("nan"))
        call = op.call((len(y), last - first, None, at(held)), CODES[kind], part, state, state, y)
        steps = native.LowRank(R, kept, at(numbers), at(weight))
        library.scan_low_rank(call, steps, torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        return y, state

    low[B - 1, lengths[-1] :] = float("nan")
    y, after = run_low(slice(None), 0, T, pool.clone(), lengths)
    assert not y[B - 1, lengths[-1] :].any()
    for row in (0, B - 1):
        n = lengths[row]
        items = {k: _f64(v[row : row + 1, :n]) for k, v in data.items()}
        items["dt"] = _f64(low[row : row + 1, :n, :R]) @ _f64(weight).T
        expected_y, expected_state = op.expected(items, _f64(pool[row : row + 1]))
        close(y[row : row + 1, :n], expected_y, TOLERANCE[kind])
        close(after[row : row + 1], expected_state, LONG_TOLERANCE)
    cut, state = T // 3, pool[:1].clone()
    parts = [run_low(slice(0, 1), first, last, state)[0] for first, last in ((0, cut), (cut, T))]
    assert torch.equal(torch.cat(parts, 1).view(torch.int16), y[:1].view(torch.int16))
    assert torch.equal(state, after[:1])
