"""The operators' kernels against the float64 reference: outputs and next states, on one grid.

Everything that must not be read is NaN, everything that must be written is NaN before.
"""

import itertools

import pytest

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")

from gpu_models import _f64, native, reference  # noqa: E402
from operator_cases import (  # noqa: E402
    CASES,
    CODES,
    LONG,
    LONG_TOLERANCE,
    STATE_TOLERANCE,
    TOLERANCE,
    TYPES,
    Dual,
    at,
    close,
    int32,
    noise,
    run,
)  # fmt: skip

LENGTHS = (0, 1, 2, 3, 16, 33, 130)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_output_and_state(library, case, kind, T):
    op = CASES[case]()
    data, state = op.data(3, T, TYPES[kind]), noise(3, *op.state_shape)
    expected_y, expected_state = op.expected({k: _f64(v) for k, v in data.items()}, _f64(state))
    for in_place in (False, True):
        y, after = run(library, op, kind, data, state, in_place=in_place)
        close(y, expected_y, TOLERANCE[kind])
        close(after, expected_state, STATE_TOLERANCE)


@pytest.mark.parametrize("T", [1, 5, 40, 100])
@pytest.mark.parametrize("case", CASES)
def test_slots_and_lengths(library, case, T):
    """Rows find their slots; skipped rows and padding read nothing, write zeros; other slots stay."""
    op = CASES[case]()
    slots, lengths = [4, -1, 0, 2], [T, T, T // 2, 0]
    data, pool = op.data(4, T, torch.float32), noise(6, *op.state_shape)
    for tensor in data.values():
        for row, length in enumerate(lengths):
            tensor[row, 0 if slots[row] < 0 else length :] = float("nan")
    pool[[1, 3, 5]] = float("nan")
    before = pool.clone()
    y, pool = run(library, op, "float32", data, pool, int32(slots), int32(lengths))
    for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        length = 0 if slot < 0 else length
        assert not y[row, length:].any()
        if slot < 0:
            continue
        items = {k: _f64(v[row : row + 1, :length]) for k, v in data.items()}
        expected_y, expected_state = op.expected(items, _f64(before[slot : slot + 1]))
        close(y[row : row + 1, :length], expected_y, TOLERANCE["float32"])
        close(pool[slot : slot + 1], expected_state, STATE_TOLERANCE)
    untouched = [1, 3, 5]
    assert torch.equal(pool[untouched].view(torch.int32), before[untouched].view(torch.int32))


CUTS = {  # from 16 items on StateSpaceDual counts chunks of 64 from the beginning of a call
    "dual": [[0, 64, 256], [0, 128, 192, 256], [0, 2, 9, 15]],
    "": [[0, 2, 50, 100], [0, 31, 64, 98, 100]],
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_splits_are_byte_equal(library, case, kind):
    """Calls of two items or more: wherever a sequence is cut, the bits are the same."""
    op = CASES[case]()
    for cuts in CUTS["dual" if case in ("dual-130m", "dual-small", "dual-odd") else ""]:
        data, start = op.data(2, cuts[-1], TYPES[kind]), noise(2, *op.state_shape)
        whole, whole_state = run(library, op, kind, data, start.clone())
        state, parts = start.clone(), []
        for first, last in itertools.pairwise(cuts):
            part = {k: v[:, first:last].contiguous() for k, v in data.items()}
            parts.append(run(library, op, kind, part, state)[0])
        assert torch.equal(torch.cat(parts, 1).view(torch.uint8), whole.view(torch.uint8))
        assert torch.equal(state, whole_state)


@pytest.mark.parametrize("T", [1, 20, 100])
@pytest.mark.parametrize("case", CASES)
def test_a_row_does_not_see_the_others(library, case, T):
    op = CASES[case]()
    data, state = op.data(9, T, torch.float16), noise(9, *op.state_shape)
    alone = {k: v[4:5].contiguous() for k, v in data.items()}
    y, after = run(library, op, "float16", data, state.clone())
    y_alone, after_alone = run(library, op, "float16", alone, state[4:5].clone())
    assert torch.equal(y[4:5].view(torch.int16), y_alone.view(torch.int16))
    assert torch.equal(after[4:5], after_alone)


@pytest.mark.parametrize("T", [1024, 1300, 1400, 2048])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("case", LONG)
def test_long_calls(library, case, kind, T):
    """Cut into chunks that run side by side: output and state, in place, with slots and lengths."""
    op = LONG[case]()
    slots, lengths = [2, -1, 0], [T, T, T - 700]
    data, pool = op.data(3, T, TYPES[kind]), noise(3, *op.state_shape)
    for tensor in data.values():
        tensor[1], tensor[2, lengths[2] :] = float("nan"), float("nan")
    before = pool.clone()
    y, pool = run(library, op, kind, data, pool, int32(slots), int32(lengths))
    again, state = run(library, op, kind, data, before.clone(), int32(slots), int32(lengths))
    assert torch.equal(y.view(torch.uint8), again.view(torch.uint8))
    assert torch.equal(pool, state)
    assert torch.equal(pool[1], before[1])
    assert not y[1].any()
    assert not y[2, lengths[2] :].any()
    for row in (0, 2):
        items = {k: _f64(v[row : row + 1, : lengths[row]]) for k, v in data.items()}
        expected_y, expected_state = op.expected(items, _f64(before[slots[row] : slots[row] + 1]))
        close(y[row : row + 1, : lengths[row]], expected_y, max(TOLERANCE[kind], LONG_TOLERANCE))
        close(pool[slots[row] : slots[row] + 1], expected_state, LONG_TOLERANCE)


@pytest.mark.parametrize("T", [1, 40])
@pytest.mark.parametrize("case", ["conv-4", "scan-16", "dual-130m"])
def test_parts_of_wider_tensors(library, case, T):
    """Pitches: the same bits as from dense tensors."""
    op = CASES[case]()
    data, state = op.data(2, T, torch.float16), noise(2, *op.state_shape)
    y, after = run(library, op, "float16", data, state.clone())
    wide = {
        k: torch.full((2, T, v[0, 0].numel() + 16), float("nan"), dtype=v.dtype, device="cuda")
        for k, v in data.items()
    }
    for name, tensor in data.items():
        wide[name][..., :-16] = tensor.flatten(2)
    names = {"conv-4": ["x"], "scan-16": ["z", "B", "C"], "dual-130m": ["x", "B", "C"]}[case]
    got = torch.full_like(y, float("nan"))
    call = op.call(
        (2, T, None, None), CODES["float16"], {**data, **{n: wide[n] for n in names}}, state, state, got
    )
    pitch = {name: wide[name].shape[2] for name in names}
    for field, name in (("x_pitch", "x"), ("z_pitch", "z"), ("bc_pitch", "B")):
        if name in pitch and any(field == entry[0] for entry in call._fields_):
            setattr(call, field, pitch[name])
    library.operator(op.name, call, torch.cuda.current_stream().cuda_stream)
    assert torch.equal(got, y)
    assert torch.equal(state, after)


@pytest.mark.parametrize("T", [1, 9, 40, 1100])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("case", ["dual-130m", "dual-odd", "dual-wide"])
def test_raw_step_sizes(library, case, kind, T):
    """StateSpaceDual that makes its step sizes, of which padding has none."""
    op = CASES[case]()
    data, pool = op.data(2, T, TYPES[kind]), noise(2, *op.state_shape)
    raw, bias = noise(2, T, op.H + 3).to(TYPES[kind]), noise(op.H) - 4
    lengths = [T, T // 2]
    held = int32(lengths)
    raw[1, lengths[1] :] = float("nan")
    dt = torch.nn.functional.softplus(raw[..., : op.H].double() + bias.double()).clamp(0.01, 0.2)
    expected = []
    for b, n in enumerate(lengths):
        items = {k: _f64(v[b : b + 1, :n]) for k, v in data.items()}
        items["dt"] = _f64(dt[b : b + 1, :n])
        expected.append(op.expected(items, _f64(pool[b : b + 1])))
    y = torch.full_like(data["x"], float("nan"))
    call = op.call((2, T, None, at(held)), CODES[kind], {**data, "dt": raw}, pool, pool, y)
    steps = native.RawSteps(op.H + 3, 0.01, 0.2, at(bias))
    library.dual_raw(call, steps, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert not y[1, lengths[1] :].any()
    for b, n in enumerate(lengths):
        close(y[b : b + 1, :n], expected[b][0], max(TOLERANCE[kind], LONG_TOLERANCE if T > 1000 else 0))
        close(pool[b : b + 1], expected[b][1], LONG_TOLERANCE if T > 1000 else STATE_TOLERANCE)


@pytest.mark.parametrize("T", [15, 64, 4096])
@pytest.mark.parametrize("slow", [1e-5, 1e-3, 1.0, 100.0])
def test_decays_keep_what_is_small(library, slow, T):
    """Small steps after large ones, states that remember thousands of items: nothing is lost or drifts."""
    op = Dual(3, 16, 1, 64)
    op.A = -torch.tensor([slow, 1.0, 0.3], device="cuda")
    data, pool = op.data(1, T, torch.float32), noise(1, *op.state_shape)
    data["dt"][:, ::7] *= 1e4
    data["x"][:, ::7] = 0
    expected_y, expected_state = op.expected({k: _f64(v) for k, v in data.items()}, _f64(pool))
    y, after = run(library, op, "float32", data, pool)
    for head in range(3):
        close(y[:, :, head], expected_y[:, :, head], LONG_TOLERANCE)
        close(after[:, head], expected_state[:, head], LONG_TOLERANCE)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("name", "place"), [("x", (3, 5)), ("B", (0, 7)), ("C", (0, 9)), ("dt", (3,))])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stay_behind(library, kind, name, place, value):
    """They reach no earlier item, no other row and, if they are of a head, no other head."""
    op, item = CASES["dual-130m"](), 74
    data, pool = op.data(2, 100, TYPES[kind]), noise(2, *op.state_shape)
    y, after = run(library, op, kind, data, pool.clone())
    data[name][(0, item, *place)] = value
    spoilt, state = run(library, op, kind, data, pool.clone())
    assert torch.equal(spoilt[0, :item], y[0, :item])
    assert not torch.equal(spoilt[0, item:], y[0, item:])
    assert torch.equal(spoilt[1], y[1])
    assert torch.equal(state[1], after[1])
    if name == "x" and value != value:
        assert spoilt[0, item:, 3, 5].isnan().all()
    if name in ("x", "dt"):
        spoilt[0, :, 3], state[0, 3] = y[0, :, 3], after[0, 3]
        assert torch.equal(spoilt, y)
        assert torch.equal(state, after)


@pytest.mark.parametrize("width", [768, 1536, 2048, 100])
@pytest.mark.parametrize("kind", TYPES)
def test_norms(library, kind, width):
    """The residual stream with its norm, with something added and without; the gated norm, with a pitch."""
    rows, code, stream = 5, CODES[kind], torch.cuda.current_stream().cuda_stream
    residual, weight = noise(rows, width), noise(width)
    x, z, added = (noise(rows, n).to(TYPES[kind]) for n in (width, width + 24, width))
    for term in (None, added):
        y, got = torch.full_like(x, float("nan")), residual.clone()
        library.operator(
            "norm", native.NormCall(rows, width, code, 1e-5, at(got), at(term), at(weight), at(y)), stream
        )
        expected = _f64(residual) + (0 if term is None else _f64(term))
        close(got, expected, STATE_TOLERANCE)
        close(y, reference.rms_norm(expected, _f64(weight), 1e-5), TOLERANCE[kind])
    y = torch.full_like(x, float("nan"))
    call = native.GateNormCall(rows, width, width + 24, code, 1e-5, at(x), at(z), at(weight), at(y))
    library.operator("gate_norm", call, stream)
    expected = reference.rms_norm(_f64(x), _f64(weight), 1e-5, gate=_f64(z)[:, :width])
    close(y, expected, TOLERANCE[kind])
