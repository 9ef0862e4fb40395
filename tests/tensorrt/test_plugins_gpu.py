"""The plugins on a GPU, through IPluginV3's own calls, against the float64 reference: outputs and states.

STREAMSSM_TENSORRT_PLUGINS and STREAMSSM_TENSORRT_HARNESS name libraries built elsewhere; otherwise
build/tensorrt/libstreamssm_tensorrt.so is taken, and the harness is compiled.

What must be written is NaN before, what must not be read is NaN.
"""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import plugin_builds
import pytest
from plugin_harness import BFLOAT16, FLOAT16, FLOAT32, INT32, INT64, Harness, Tensor, fields_of

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU that PyTorch can use", allow_module_level=True)

from plugin_ops import CASES, Attention, f64, noise, reference  # noqa: E402

KINDS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CODES = {
    torch.float32: FLOAT32,
    torch.float16: FLOAT16,
    torch.bfloat16: BFLOAT16,
    torch.int32: INT32,
    torch.int64: INT64,
}
# of a tensor, relative to its largest element: float32 arithmetic, then the rounding of the result
TOLERANCE = {"float32": 5e-6, "float16": 6e-4, "bfloat16": 5e-3}
STATE_TOLERANCE = 5e-6
LONG_TOLERANCE = 2e-5  # over a thousand items and more
LENGTHS = (0, 1, 2, 3, 16, 33, 64, 130, 1024, 4096)


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    given = os.environ.get("STREAMSSM_TENSORRT_HARNESS")
    return Harness(given or str(plugin_builds.build_harness(tmp_path_factory.mktemp("harness"))))


@pytest.fixture(scope="module")
def loaded(harness):
    path = Path(
        os.environ.get(
            "STREAMSSM_TENSORRT_PLUGINS", plugin_builds.ROOT / "build/tensorrt/libstreamssm_tensorrt.so"
        )
    )
    if not path.is_file():
        pytest.skip(f"no {path}: cmake -S kernels/tensorrt -B build/tensorrt && cmake --build build/tensorrt")
    return harness.open(str(path))


@pytest.fixture(params=CASES)
def op(request):
    torch.manual_seed(sum(map(ord, request.param)))
    return CASES[request.param]()


@pytest.fixture
def context(harness, loaded, op):
    """The plugin as TensorRT runs it: made from a node, kept in an engine, attached to a context."""
    creator = harness.creator(loaded, op.name)
    made = harness.create(creator, fields_of(op.name, **op.attributes))
    assert made, harness.log()
    remade = harness.remake(creator, made)
    attached = harness.attach(remade)
    for plugin in (made, remade):
        harness.destroy(plugin)
    yield attached
    torch.cuda.synchronize()
    harness.destroy(attached)


def described(tensors):
    return [Tensor(CODES[t.dtype], tuple(t.shape), t.data_ptr()) for t in tensors]


def start(op, slots):
    """Random states; streams of attention are of several ages."""
    return [
        noise(slots, *shape) if shape else torch.arange(slots, device="cuda") * 9 for shape in op.state_shapes
    ]


def poisoned(state):
    return torch.full_like(state, -1) if state.dtype == torch.int64 else torch.full_like(state, float("nan"))


def empty_output(op, data):
    x = data[op.data_names[0]]
    shape = (x.shape[0], x.shape[1] // op.hop, op.filters.shape[1]) if op.name == "LogMel" else x.shape
    return torch.full(shape, float("nan"), dtype=x.dtype, device="cuda")


def run(harness, context, op, data, states, rows=(), in_place=True, change=True):
    """y and the states after a call on PyTorch's stream."""
    y = empty_output(op, data)
    after = states if in_place else [poisoned(state) for state in states]
    inputs, outputs = described([*op.inputs(data, states), *rows]), described([y, *after])
    if change:
        assert harness.shape_change(context, inputs, outputs), harness.log()
    assert harness.enqueue(context, inputs, outputs, torch.cuda.current_stream().cuda_stream), harness.log()
    return y, after


def close(got, expected, tolerance):
    got = f64(got)
    assert got.shape == expected.shape
    if got.size:
        error = abs(got - expected).max() / max(abs(expected).max(), 1e-30)
        assert error < tolerance, error


def check(y, after, expected, kind, T):
    least = LONG_TOLERANCE if T >= 1000 else 0.0
    close(y, expected[0], max(TOLERANCE[kind], least))
    for state, wanted in zip(after, expected[1:], strict=True):
        if state.dtype == torch.int64:
            assert state.tolist() == wanted.tolist()
        else:
            close(state, wanted, max(STATE_TOLERANCE, least))


def typed(op, B, T, kind):
    return {name: tensor.to(KINDS[kind]) for name, tensor in op.data(B, T * op.hop).items()}


def doubles(data):
    return {name: f64(tensor) for name, tensor in data.items()}


def same(a, b):
    if a.numel() == 0:
        return a.shape == b.shape
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", LENGTHS)
def test_output_and_state(harness, context, op, T, kind):
    """In place and on two addresses."""
    B = 2 if T >= 1000 else 3
    data, states = typed(op, B, T, kind), start(op, B)
    expected = op.expected(doubles(data), [f64(state) for state in states])
    apart = run(harness, context, op, data, states, in_place=False)
    check(*apart, expected, kind, T)
    in_place = run(harness, context, op, data, states)
    assert same(in_place[0], apart[0])
    assert all(same(a, b) for a, b in zip(in_place[1], apart[1], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_one_context_for_all_lengths(harness, context, op, kind):
    """Shapes change from call to call, states stay at one address: the calls add up to the whole."""
    cuts = [0, 1, 2, 66, 67, 71, 200, 200, 201]
    data, states = typed(op, 2, cuts[-1], kind), start(op, 2)
    expected = op.expected(doubles(data), [f64(state) for state in states])
    parts = []
    for first, last in itertools.pairwise(cuts):
        part = {name: tensor[:, first * op.hop : last * op.hop].contiguous() for name, tensor in data.items()}
        parts.append(run(harness, context, op, part, states)[0])
    check(torch.cat(parts, 1), states, expected, kind, 0)


@pytest.mark.parametrize("T", [1, 20])
def test_slots_and_lengths(harness, context, op, T):
    """Rows find their slots; skipped rows and padding read nothing and write zeros; other slots stay."""
    slots, lengths = [4, -1, 0, 2], [T, T, T // 2, 0]
    data, pool = typed(op, 4, T, "float32"), start(op, 6)
    for tensor in data.values():
        for row, length in enumerate(lengths):
            tensor[row, 0 if slots[row] < 0 else length * op.hop :] = float("nan")
    untouched = [1, 3, 5]
    for state in pool:
        if state.dtype != torch.int64:
            state[untouched] = float("nan")
    before = [state.clone() for state in pool]
    samples = [length * op.hop for length in lengths]
    rows = [torch.tensor(values, dtype=torch.int32, device="cuda") for values in (slots, samples)]
    y, pool = run(harness, context, op, data, pool, rows)
    for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        length = 0 if slot < 0 else length
        assert not y[row, length:].any()
        if slot < 0:
            continue
        items = {name: f64(tensor[row : row + 1, : length * op.hop]) for name, tensor in data.items()}
        expected = op.expected(items, [f64(state[slot : slot + 1]) for state in before])
        check(y[row : row + 1, :length], [state[slot : slot + 1] for state in pool], expected, "float32", T)
    for state, old in zip(pool, before, strict=True):
        assert same(state[untouched], old[untouched])


@pytest.mark.parametrize("T", [1, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_graphs(harness, context, op, T, kind):
    """A recorded call, replayed with new data and the state in place, gives the bits of calls one by one."""
    chunks, states = [typed(op, 2, T, kind) for _ in range(3)], start(op, 2)
    eager = [state.clone() for state in states]
    expected = [run(harness, context, op, chunk, eager)[0] for chunk in chunks]
    data, recorded, y = (
        typed(op, 2, T, kind),
        [state.clone() for state in states],
        empty_output(op, chunks[0]),
    )
    inputs, outputs = described(op.inputs(data, recorded)), described([y, *recorded])
    assert harness.shape_change(context, inputs, outputs), harness.log()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        assert harness.enqueue(context, inputs, outputs, torch.cuda.current_stream().cuda_stream), (
            harness.log()
        )
    for state, first in zip(recorded, states, strict=True):
        state.copy_(first)
    for chunk, wanted in zip(chunks, expected, strict=True):
        for name, tensor in data.items():
            tensor.copy_(chunk[name])
        y.fill_(float("nan"))
        graph.replay()
        assert same(y, wanted)
    assert all(same(a, b) for a, b in zip(recorded, eager, strict=True))


def test_two_contexts_at_a_time(harness, context, op):
    """Each on its own stream, with its own tables."""
    twin = harness.attach(context)
    data, states = typed(op, 2, 40, "float16"), start(op, 2)
    wanted = run(harness, context, op, data, [state.clone() for state in states])
    torch.cuda.synchronize()
    streams, results = [torch.cuda.Stream(), torch.cuda.Stream()], []
    for stream, plugin in zip(streams, (context, twin), strict=True):
        with torch.cuda.stream(stream):
            results.append(run(harness, plugin, op, data, [state.clone() for state in states]))
    torch.cuda.synchronize()
    for y, after in results:
        assert same(y, wanted[0])
        assert all(same(a, b) for a, b in zip(after, wanted[1], strict=True))
    harness.destroy(twin)


def test_frequencies_that_change_under_a_graph(harness, loaded):
    """The table of rotations follows what lies at the address of inv_freq."""
    op = Attention(2, 1, 16, 9, 16)
    creator = harness.creator(loaded, op.name)
    context = harness.create(creator, fields_of(op.name, **op.attributes))
    data, states = typed(op, 1, 12, "float32"), start(op, 1)
    first = [state.clone() for state in states]
    y = empty_output(op, data)
    inputs, outputs = described(op.inputs(data, states)), described([y, *states])
    run(harness, context, op, data, [state.clone() for state in states])  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        assert harness.enqueue(context, inputs, outputs, torch.cuda.current_stream().cuda_stream), (
            harness.log()
        )
    for base in (10000.0, 100.0, 500000.0):
        op.inv_freq.copy_(torch.tensor(reference.rotary_frequencies(16, base)))
        for state, old in zip(states, first, strict=True):
            state.copy_(old)
        graph.replay()
        check(y, states, op.expected(doubles(data), [f64(state) for state in first]), "float32", 12)
    torch.cuda.synchronize()
    harness.destroy(context)


def test_what_a_launch_costs_the_processor(harness, context, op, capsys):
    """A step through enqueue: shapes and addresses are checked each time."""
    data, states = typed(op, 1, 1, "float16"), start(op, 1)
    y, _ = run(harness, context, op, data, states)
    inputs, outputs = described(op.inputs(data, states)), described([y, *states])
    stream, times = torch.cuda.current_stream().cuda_stream, 300
    best = 1.0
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        assert harness.enqueue(context, inputs, outputs, stream, times), harness.log()
        best = min(best, (time.perf_counter() - began) / times)
    with capsys.disabled():
        print(f"\n{op.name}: {1e6 * best:.1f} us a launch")
    assert best < 100e-6
