"""``backend="cuda"`` through streams and pools: splits, graphs, snapshots, masks, fallbacks."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest

import streamssm
from streamssm.backends import cuda
from streamssm.backends.cudart import Queue
from streamssm.errors import BackendError, UsageError

MODELS = ["vad", "mamba", "mamba2", "hybrid", "words", "words2"]
ROUNDED = {"float16": ["mamba", "words", "words2"], "bfloat16": ["vad", "words2"]}
CASES = [(name, "float32") for name in MODELS] + [(name, kind) for kind in ROUNDED for name in ROUNDED[kind]]
UNFUSED = ("mamba2",)  # its norms go by groups
SHORT = 10_000  # replays by default
#: of a GPU's results beside a processor's
TOLERANCES = {
    "float32": {"rtol": 2e-4, "atol": 2e-5},
    "float16": {"rtol": 1e-2, "atol": 4e-3},
    "bfloat16": {"rtol": 5e-2, "atol": 3e-2},
}

pytestmark = pytest.mark.gpu


def load(files, name, backend="cuda", precision="float32"):
    return streamssm.load(name if name == "vad" else files[name], backend=backend, precision=precision)


def items(model, blocks, seed=0, batch=None):
    """Whole blocks of the model's own size."""
    count, spec = blocks * model.manifest.block, model.manifest.input
    shape = (count, *spec.shape) if batch is None else (batch, count, *spec.shape)
    random = np.random.default_rng(seed)
    if spec.kind == "tokens":
        return random.integers(0, spec.vocabulary, shape)
    return 0.3 * random.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def pair(request, backend, model_files):
    """The model on the GPU and on the processor."""
    name, precision = request.param
    return load(model_files, name, precision=precision), load(model_files, name, "cpu")


def tolerance(model):
    return TOLERANCES[model.backend.kernels.precision]


@pytest.fixture(scope="module")
def model(pair):
    return pair[0]


def run(stream, x, cuts):
    """What the stream gives for ``x``, pushed in these parts."""
    parts = [stream.push(x[first:last]) for first, last in itertools.pairwise([0, *cuts, len(x)])]
    return np.concatenate([*parts, stream.flush()]).tobytes()


def cuts_of(x, seed, count=7):
    return sorted(np.random.default_rng(seed).integers(0, len(x) + 1, count).tolist())


def test_our_kernels_run(model):
    kernels = model.backend.kernels
    fused = model.manifest.name not in UNFUSED
    assert model.kernels == (f"native (cuda, fused, {kernels.precision})" if fused else "native (cuda)")


@pytest.mark.parametrize("name", ["vad", "words", "words2"])
def test_blocks_by_themselves_agree_with_whole_ones(backend, model_files, name, monkeypatch):
    fused = load(model_files, name)
    monkeypatch.setenv("STREAMSSM_KERNELS", "unfused")
    apart = load(model_files, name)
    assert apart.kernels == "native (cuda)"
    x = items(fused, 12)
    np.testing.assert_allclose(fused.scan(x), apart.scan(x), **TOLERANCES["float32"])


def test_a_precision_that_nothing_has_is_refused(backend, model_files):
    with pytest.raises(BackendError, match=r"cannot run in float16: it has no Mamba.*leave out precision"):
        load(model_files, "mamba2", precision="float16")


def test_a_model_whose_values_do_not_fit_is_refused(backend):
    """The last block of the built-in model makes numbers of 10^8 and more."""
    with pytest.raises(BackendError, match=r"vad cannot run in float16: .* load with precision='bfloat16'"):
        streamssm.load("vad", backend="cuda", precision="float16")


def test_the_processor_agrees(pair):
    gpu, cpu = pair
    x = items(cpu, 40)
    np.testing.assert_allclose(gpu.scan(x), cpu.scan(x), **tolerance(gpu))
    block = 8 * cpu.manifest.block
    np.testing.assert_allclose(gpu.scan(x, block), cpu.scan(x), **tolerance(gpu))


def test_any_split_gives_the_same_bytes(model):
    x = items(model, 12)[: -max(1, model.manifest.input.hop // 3)]
    for block in (model.manifest.block, 3 * model.manifest.block):
        whole = model.scan(x, block).tobytes()
        for seed in range(6):
            assert run(model.stream(block), x, cuts_of(x, seed)) == whole


def test_graphs_change_no_byte(model, monkeypatch):
    x = items(model, 60)
    with_graphs, stream = model.scan(x).tobytes(), model.stream()
    got = run(stream, x, [])
    assert any(stream._lane._step._graphs)
    monkeypatch.setattr(model.backend, "graphs", False)
    plain = model.stream()
    assert got == with_graphs == run(plain, x, [])
    assert not any(plain._lane._step._graphs)


@pytest.mark.parametrize("steps", [SHORT, pytest.param(100_000, marks=pytest.mark.slow)])
def test_long_replays_are_the_steps_themselves(model, steps, monkeypatch):
    """Every tenth state of a long stream, and the last, beside steps without graphs."""
    block, x = model.manifest.block, items(model, 64)
    chunks = [x[at : at + block] for at in range(0, len(x), block)]
    replayed = model.stream()
    monkeypatch.setattr(model.backend, "graphs", False)
    plain = model.stream()
    for step in range(steps):
        monkeypatch.setattr(model.backend, "graphs", True)
        got = replayed.push(chunks[step % 64])
        monkeypatch.setattr(model.backend, "graphs", False)
        assert got.tobytes() == plain.push(chunks[step % 64]).tobytes(), step
    assert all(replayed._lane._step._graphs)
    assert replayed.snapshot() == plain.snapshot()


def test_snapshots_cross_devices(pair):
    """The bytes of the state are the same on both sides, and either goes on with what the other left."""
    x, half = items(pair[0], 20), 10 * pair[0].manifest.block + 1
    for here, there in (pair, pair[::-1]):
        stream = here.stream()
        stream.push(x[:half])
        saved = stream.snapshot()
        moved = there.resume(saved)
        assert moved.snapshot() == saved
        rest = np.concatenate([moved.push(x[half:]), moved.flush()])
        wanted = np.concatenate([stream.push(x[half:]), stream.flush()])
        np.testing.assert_allclose(rest, wanted, **tolerance(pair[0]))
        back = here.resume(there.resume(saved).snapshot())
        assert np.concatenate([back.push(x[half:]), back.flush()]).tobytes() == wanted.tobytes()


def test_reset_and_fork(model):
    x = items(model, 9)
    stream = model.stream()
    first = stream.push(x)
    twin = stream.fork()
    assert twin.push(x).tobytes() == stream.push(x).tobytes()
    stream.reset()
    assert stream.push(x).tobytes() == first.tobytes()


def test_rows_of_a_batch_do_not_see_each_other(model):
    x = items(model, 10, batch=5)
    whole = model.scan(x)
    x[[0, 2, 4]] = items(model, 10, seed=9, batch=3)
    other = model.scan(x)
    assert other[[1, 3]].tobytes() == whole[[1, 3]].tobytes()
    np.testing.assert_allclose(whole[1], model.scan(x[1]), **tolerance(model))


def test_a_stream_of_a_pool_does_not_see_the_others(model):
    """Alone, in company, in another slot: the same bytes; idle streams keep their state, byte for byte."""
    block, x = model.manifest.block, items(model, 12)
    chunks = [x[at : at + block] for at in range(0, len(x), block)]

    def collect(pool, key, results):
        return [y.tobytes() for found, y in results if found == key]

    with model.pool(6) as pool:
        pool.open("alone")
        alone = []
        for chunk in chunks:
            pool.push("alone", chunk)
            alone += collect(pool, "alone", pool.step())
    random = np.random.default_rng(5)
    with model.pool(6) as pool:
        for key in "abcd":
            pool.open(key)
        pool.open("ours")
        ours = []
        for step, chunk in enumerate(chunks):
            for key in random.permutation(list("abcd"))[: step % 4].tolist():
                pool.push(key, items(model, 1, seed=step))
            before = {key: pool.snapshot(key) for key in "abcd" if not pool.pending(key)}
            pool.push("ours", chunk)
            ours += collect(pool, "ours", pool.step())
            for key, saved in before.items():
                assert pool.snapshot(key) == saved
        assert ours == alone
        moved = pool.snapshot("ours")
    with model.pool(6) as pool:
        pool.open("other")
        pool.open("ours", moved)
        assert pool.snapshot("ours") == moved
        pool.reset("ours")
        again = []
        for chunk in chunks:
            pool.push("ours", chunk)
            again += collect(pool, "ours", pool.step())
        assert again == alone


def test_the_last_items_of_a_pool(model):
    x = items(model, 5)[: -max(1, model.manifest.block // 2)]
    with model.pool(3) as pool:
        pool.open("a"), pool.open("b")
        pool.push("a", x)
        pool.flush("a")
        parts = []
        while "a" in pool:
            parts += [y for key, y in pool.step() if key == "a"]
    np.testing.assert_allclose(np.concatenate(parts), model.scan(x), **tolerance(model))


def test_a_failed_capture_is_said_and_changes_no_byte(backend, model_files, monkeypatch, caplog):
    model = load(model_files, "mamba")
    x = items(model, 10)
    wanted = model.scan(x).tobytes()

    def refuse(self, work, host):
        raise BackendError("no graphs today")

    monkeypatch.setattr(Queue, "capture", refuse)
    with caplog.at_level(logging.WARNING, "streamssm"):
        assert model.scan(x).tobytes() == wanted
        assert model.scan(x).tobytes() == wanted
    assert [record.getMessage() for record in caplog.records if "no graphs today" in record.getMessage()] == [
        "mamba runs without CUDA graphs, more slowly: no graphs today"
    ]


@pytest.mark.parametrize("name", MODELS)
def test_without_our_kernels(backend, model_files, name, monkeypatch):
    """The bodies in the file run on the GPU too, pools included."""
    cpu = load(model_files, name, "cpu")
    monkeypatch.setenv("STREAMSSM_KERNELS", "off")
    model = load(model_files, name)
    assert str(model.backend.kernels) == "plain ONNX: STREAMSSM_KERNELS=off"
    x = items(model, 6)
    np.testing.assert_allclose(model.scan(x), cpu.scan(x), **TOLERANCES["float32"])
    with model.pool(3) as pool:
        pool.open("idle"), pool.open("ours")
        before, parts = pool.snapshot("idle"), []
        for at in range(0, len(x), model.manifest.block):
            pool.push("ours", x[at : at + model.manifest.block])
            parts += [y for _, y in pool.step()]
        assert pool.snapshot("idle") == before
    np.testing.assert_allclose(
        np.concatenate(parts), cpu.scan(x)[: sum(map(len, parts))], **TOLERANCES["float32"]
    )


def test_rows_of_a_pool_are_its_results(model):
    """Arrays of all streams at once: the bytes of the streams one by one."""
    block, x = model.manifest.block, items(model, 6, batch=5)
    keys = tuple(range(5))
    with model.pool(5) as pool, model.pool(5) as other:
        for key in keys:
            pool.open(key), other.open(key)
        for at in range(0, x.shape[1], block):
            pool.push_rows(keys, x[:, at : at + block])
            other.push_rows(keys, x[:, at : at + block])
            (rows,) = pool.step_rows()
            assert rows.keys == keys
            for key, (same, y), found in zip(keys, other.step(), rows.outputs, strict=True):
                assert key == same
                assert y.tobytes() == found.tobytes()


def test_a_small_model_stays_on_the_processor(backend):
    assert streamssm.load("vad").backend.name == "cpu"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "cpu", "precision": "float16"}, "precision='float16' is for backend='cuda', not 'cpu'"),
        ({"backend": "cuda", "precision": "float8"}, "no precision 'float8'; choose one of float32, float16"),
    ],
)
def test_a_precision_out_of_place_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        streamssm.load("vad", **options)


@pytest.mark.skipif(cuda.unavailable() is None, reason="there is a GPU")
def test_a_missing_gpu_is_said():
    with pytest.raises(BackendError, match=r"the GPU cannot be used: .*; or choose backend='cpu'"):
        streamssm.load("vad", backend="cuda")
    assert streamssm.load("vad", backend="auto").backend.name == "cpu"


def test_auto_says_once_why_a_gpu_is_not_used(monkeypatch, caplog):
    class Runtime:
        @staticmethod
        def get_available_providers():
            return ["CUDAExecutionProvider"]

    monkeypatch.setattr(cuda, "unavailable", lambda: "it is asleep")
    monkeypatch.setattr(cuda, "import_onnxruntime", Runtime)
    monkeypatch.setattr("streamssm.backends._LARGE", 0)
    cuda.usable.cache_clear()
    with caplog.at_level(logging.WARNING, "streamssm"):
        assert [streamssm.load("vad").backend.name for _ in range(2)] == ["cpu", "cpu"]
    cuda.usable.cache_clear()
    assert [record.getMessage() for record in caplog.records] == ["the GPU is not used: it is asleep"]
