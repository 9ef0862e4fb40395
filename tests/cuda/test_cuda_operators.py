"""The operators' kernels against the float64 reference: outputs and next states, on one grid.

Everything that must not be read is NaN, everything that must be written is NaN before.
"""

import itertools

import pytest

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")

from gpu_models import _f64, native, reference  # noqa: E402

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CODES = {"float32": native.FLOAT32, "float16": native.FLOAT16, "bfloat16": native.BFLOAT16}
# of an output, relative to the largest one: float32 arithmetic, then the rounding of the result
TOLERANCE = {"float32": 3e-6, "float16": 6e-4, "bfloat16": 5e-3}
STATE_TOLERANCE = 3e-6
LONG_TOLERANCE = 2e-5  # over a thousand items and more, of which states with slow decay remember all


class Conv:
    name, state_name = "causal_conv1d", "K"

    def __init__(self, D, K, silu=True):
        self.D, self.K, self.silu = D, K, silu
        self.state_shape, self.x_shape = (K - 1, D), (D,)
        self.weight, self.bias = noise(K, D), noise(D)

    def data(self, B, T, kind):
        return {"x": noise(B, T, self.D).to(kind)}

    def call(self, rows, code, data, state, following, y):
        return native.ConvCall(
            *rows,
            self.D,
            self.K,
            code,
            self.silu,
            at(data["x"]),
            at(self.weight),
            at(self.bias),
            at(state),
            at(following),
            at(y),
        )

    def expected(self, data, state):
        return reference.causal_conv1d(data["x"], _f64(self.weight), _f64(self.bias), state, self.silu)


class Scan:
    name = "selective_scan"

    def __init__(self, D, N):
        self.D, self.N = D, N
        self.state_shape = (N, D)
        self.A, self.skip, self.bias = -8 * torch.rand(N, D, device="cuda"), noise(D), noise(D)

    def data(self, B, T, kind):
        wide = {name: noise(B, T, self.D).to(kind) for name in ("x", "dt", "z")}
        return {**wide, **{name: noise(B, T, self.N).to(kind) for name in ("B", "C")}}

    def call(self, rows, code, data, state, following, y):
        inputs = [at(data[name]) for name in ("x", "dt", "B", "C", "z")]
        rest = [at(t) for t in (self.A, self.skip, self.bias, state, following, y)]
        return native.ScanCall(*rows, self.D, self.N, code, 0, *inputs, *rest)

    def expected(self, data, state):
        d, parameters = data, [_f64(t) for t in (self.A, self.skip, self.bias)]
        return reference.selective_scan(
            d["x"], d["dt"], parameters[0], d["B"], d["C"], *parameters[1:], d["z"], state
        )


class Dual:
    name = "state_space_dual"

    def __init__(self, H, P, G, N):
        self.H, self.P, self.G, self.N = H, P, G, N
        self.state_shape = (H, N, P)
        self.A, self.skip = -1 - 15 * torch.rand(H, device="cuda"), noise(H, P)

    def data(self, B, T, kind):
        groups = {name: noise(B, T, self.G, self.N).to(kind) for name in ("B", "C")}
        dt = (0.1 * torch.rand(B, T, self.H, device="cuda")).to(kind)
        return {"x": noise(B, T, self.H, self.P).to(kind), "dt": dt, **groups}

    def call(self, rows, code, data, state, following, y):
        inputs = [at(data[name]) for name in ("x", "dt", "B", "C")]
        rest = [at(t) for t in (self.A, self.skip, state, following, y)]
        return native.DualCall(*rows, self.H, self.P, self.G, self.N, code, 0, *inputs, *rest)

    def expected(self, data, state):
        d = data
        return reference.state_space_dual(
            d["x"], d["dt"], _f64(self.A), d["B"], d["C"], _f64(self.skip), state
        )


CASES = {
    "conv-1": lambda: Conv(70, 1),
    "conv-2": lambda: Conv(33, 2, silu=False),
    "conv-4": lambda: Conv(1536, 4),
    "conv-7": lambda: Conv(64, 7),
    "scan-1": lambda: Scan(5, 1),
    "scan-16": lambda: Scan(1536, 16),
    "scan-16-odd": lambda: Scan(77, 16),
    "scan-24": lambda: Scan(40, 24),
    "scan-80": lambda: Scan(40, 80),
    "dual-130m": lambda: Dual(24, 64, 1, 128),
    "dual-small": lambda: Dual(4, 8, 2, 16),
    "dual-odd": lambda: Dual(6, 7, 3, 37),
    "dual-wide": lambda: Dual(2, 20, 1, 160),
}
LENGTHS = (0, 1, 2, 3, 16, 33, 130)


def noise(*shape):
    return torch.randn(*shape, device="cuda")


def at(tensor):
    return None if tensor is None else tensor.data_ptr()


def run(library, op, kind, data, state, slots=None, lengths=None, in_place=True):
    """y and the pool after a call; y is NaN before."""
    B, T = next(iter(data.values())).shape[:2]
    y = torch.full_like(data["x"], float("nan"))
    following = state if in_place else torch.full_like(state, float("nan"))
    call = op.call((B, T, at(slots), at(lengths)), CODES[kind], data, state, following, y)
    library.operator(op.name, call, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    return y, following


def close(got, expected, tolerance):
    got = _f64(got)
    assert got.shape == expected.shape
    if got.size:
        error = abs(got - expected).max() / max(abs(expected).max(), 1e-30)
        assert error < tolerance, error


def int32(values):
    return torch.tensor(values, dtype=torch.int32, device="cuda")


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


LONG = {"conv-4": CASES["conv-4"], "dual": lambda: Dual(3, 32, 1, 128), "dual-wide": CASES["dual-130m"],
        "dual-64": lambda: Dual(2, 48, 2, 64), "dual-odd": CASES["dual-odd"], "scan": lambda: Scan(192, 16),
        "scan-8": lambda: Scan(128, 8), "scan-24": lambda: Scan(64, 24), "scan-many": lambda: Scan(780, 16),
        "scan-odd": lambda: Scan(771, 5)}  # fmt: skip


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


@pytest.mark.parametrize(("D", "B", "T"), [(1536, 1, 2600), (784, 1, 2048), (772, 2, 2049)])
def test_warps_in_turn_give_the_bits_of_one_pass(library, D, B, T):
    """Long scans by scan_ring.cuh and, with a pitch it does not take, by scan_stream.cuh; cut anywhere."""
    op = Scan(D, 16)
    data, pool = op.data(B, T, torch.float16), noise(B + 1, *op.state_shape)
    slots, lengths = int32([B - b for b in range(B)]), int32([T - 37, T // 2][:B])
    y, after = run(library, op, "float16", data, pool.clone(), slots, lengths)
    wide = {name: torch.zeros(B, T, 20, dtype=torch.float16, device="cuda") for name in ("B", "C")}
    for name, tensor in wide.items():
        tensor[..., :16] = data[name]
    got, state = torch.full_like(y, float("nan")), pool.clone()
    rows = (B, T, at(slots), at(lengths))
    call = op.call(rows, CODES["float16"], {**data, **wide}, state, state, got)
    call.bc_pitch = 20
    library.operator(op.name, call, torch.cuda.current_stream().cuda_stream)
    assert torch.equal(got.view(torch.int16), y.view(torch.int16))
    assert torch.equal(state, after)
    whole, whole_state = run(library, op, "float16", data, pool[:B].clone())
    state, parts = pool[:B].clone(), []
    for first, last in itertools.pairwise([0, 513, 520, T]):
        part = {k: v[:, first:last].contiguous() for k, v in data.items()}
        parts.append(run(library, op, "float16", part, state)[0])
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
