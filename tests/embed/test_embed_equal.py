"""libstreamssm gives the bytes that the Python runtime gives: results, snapshots, the fused graph."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from embed_library import FUSED, PLAIN, UNFUSED, Library, Model, Pool
from toy_models import TOYS

import streamssm
import streamssm.pool
from streamssm.export import export
from streamssm.export.layers import CausalConv1d, Embedding, HybridStack, Linear, Sequential
from streamssm.export.quantizer import quantize
from streamssm.native.fusion import fuse_graph
from streamssm.native.graph import graph_of
from streamssm.native.library import SWITCH
from streamssm.onnx_file import read_model_file

Array = npt.NDArray[Any]

VAD = Path(streamssm.__file__).parent / "models" / "vad.onnx"
EXPORTED = ("audio", "sensor", "tokens")
TOYS_OF = ("ema", "frames", "ahead", "tokens", "pair", "twice")
NAMES = ("vad", "int8", "int4", "wide", "apart", "reads", *EXPORTED, *(f"toy_{name}" for name in TOYS_OF))
WAYS = {FUSED: "on", UNFUSED: "unfused", PLAIN: "off"}


@pytest.fixture(scope="session")
def path_of(exported: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``path_of(name)``: a model of every kind. The tensors of ``wide`` are large enough to stay in its file,
    those of ``apart`` lie in a file of their own."""
    folder = tmp_path_factory.mktemp("all")

    @cache
    def find(name: str) -> Path:
        if name in exported:
            return exported[name]
        if name.startswith("toy_"):
            return Path(TOYS[name.removeprefix("toy_")]().write(folder))
        if name == "reads":  # the last hop of a stream is filled with N
            torch.manual_seed(6)
            network = Sequential(Embedding(5, 6), CausalConv1d(6, 3, 8, stride=4))
            export(network, folder / "reads.onnx", kind="tokens", alphabet="nucleotides", vocabulary=5)
        elif name in ("int8", "int4"):
            quantize(VAD, folder / f"{name}.onnx", name, per_layer=False)
        elif name != "vad":
            torch.manual_seed(5)
            beside = {"one_file": 0} if name == "apart" else {}
            stack = Sequential(
                Linear(6, 260), HybridStack(["mamba", "mamba2"], 260, mamba2={"headdim": 20}), Linear(260, 4)
            )
            export(stack, folder / f"{name}.onnx", kind="features", rate=50, **beside)
        return VAD if name == "vad" else folder / f"{name}.onnx"

    return find


def random_items(model: streamssm.Model, items: int, seed: int) -> Array:
    spec, rng = model.manifest.input, np.random.default_rng(seed)
    if spec.dtype == "int64":
        return rng.integers(0, spec.vocabulary or 100, (items, *spec.shape))
    return (0.3 * rng.standard_normal((items, *spec.shape))).astype(np.float32)


def opened(
    embed: Library, path: Path, way: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[streamssm.Model, Model]:
    monkeypatch.setenv(SWITCH, WAYS[way])
    python, ours = streamssm.load(path, "cpu"), embed.open(path, way)
    assert ours.info.kernels.decode().startswith(("native", "plain ONNX"))
    if way != PLAIN and python.kernels.startswith("native"):
        assert ours.info.kernels.decode() == python.kernels
    return python, ours


def flat(result: Any) -> list[Array]:
    """Python's results as the library gives them: ``[frames, width]`` for each output."""
    parts = list(result.values()) if isinstance(result, dict) else [result]
    return [part.reshape(len(part), int(np.prod(part.shape[1:]))) for part in parts]


def assert_same(ours: list[Array], theirs: Any) -> None:
    for a, b in zip(ours, flat(theirs), strict=True):
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()


def splits(total: int, seed: int, most: int) -> list[int]:
    rng, cuts = np.random.default_rng(seed), [0]
    while cuts[-1] < total:
        cuts.append(min(total, cuts[-1] + int(rng.integers(0, most))))
    return cuts


@pytest.mark.parametrize("way", WAYS, ids=("fused", "unfused", "plain"))
@pytest.mark.parametrize("name", NAMES)
def test_results_and_snapshots_are_the_same_bytes(
    embed: Library, path_of: Callable[[str], Path], name: str, way: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, ours = opened(embed, path_of(name), way, monkeypatch)
    block = python.manifest.block
    items = random_items(python, 23 * block + 3, seed=1)
    for size in {block, 3 * python.manifest.input.hop, python.manifest.input.hop}:
        theirs, mine = python.stream(block=size), ours.stream(size)
        for start, stop in zip(cuts := splits(len(items), size, 4 * size + 5), cuts[1:], strict=False):
            assert_same(mine.push(items[start:stop]), theirs.push(items[start:stop]))
            assert mine.save() == theirs.snapshot()
            assert mine.position == theirs.position
        assert_same(mine.flush(), theirs.flush())
        assert mine.save() == theirs.snapshot()


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_goes_on_in_the_other_language(
    embed: Library, path_of: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, ours = opened(embed, path_of(name), FUSED, monkeypatch)
    block = python.manifest.block
    items = random_items(python, 20 * block, seed=2)
    whole = python.stream()
    theirs, mine = python.stream(), None
    for step, (start, stop) in enumerate(
        zip(cuts := splits(len(items), 3, 3 * block), cuts[1:], strict=False)
    ):
        wanted = whole.push(items[start:stop])
        if step % 2 == 0:
            assert_same(flat(theirs.push(items[start:stop])), wanted)
            mine = ours.resume(theirs.snapshot({"mine": "kept by Python only"}))
            continue
        assert mine is not None
        twin = mine.fork()
        assert_same(mine.push(items[start:stop]), wanted)
        assert_same(twin.push(items[start:stop]), wanted)
        theirs = python.resume(twin.save())
    assert theirs.state().position > 0


def test_a_snapshot_goes_on_at_another_block(embed: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """More items wait than the new block has: they are run first."""
    python, ours = opened(embed, VAD, FUSED, monkeypatch)
    items = random_items(python, 5000, seed=3)
    large = python.stream(block=1600)
    large.push(items[:1500])
    small = python.stream(block=160)
    small.restore(large.state())
    mine = ours.stream(160)
    mine.restore(large.snapshot())
    assert mine.save() == small.snapshot()
    assert_same(mine.push(items[1500:1501]), small.push(items[1500:1501]))
    assert_same(mine.push(items[1501:]), small.push(items[1501:]))


class Feeder:
    """Gives both pools the same items, some for each slot in a turn, until every stream has ended."""

    def __init__(self, theirs: streamssm.pool.Pool, mine: Pool, items: list[Array]) -> None:
        self.theirs, self.mine, self.items = theirs, mine, items
        self.at = [0] * len(items)
        self.rng = np.random.default_rng(len(items))
        self.got: dict[int, list[list[Array]]] = {slot: [] for slot in range(len(items))}
        self.wanted: dict[int, list[list[Array]]] = {slot: [] for slot in range(len(items))}
        self.ended: set[int] = set()

    def feed(self, slot: int) -> None:
        """Push to one that has not ended, and end it behind its last item."""
        start, last = self.at[slot], len(self.items[slot])
        if start > last:
            return
        self.at[slot] += int(self.rng.integers(0, 2 * self.theirs.block))
        for pool in (self.theirs, self.mine):
            pool.push(slot, self.items[slot][start : self.at[slot]])
            if self.at[slot] > last:
                pool.flush(slot)

    def step(self) -> None:
        """A step of both."""
        for slot, result in self.theirs.step():
            self.wanted[slot].append(flat(result))
        for slot, last, parts in self.mine.step():
            self.got[slot].append(parts)
            self.ended |= {slot} if last else set()


@pytest.mark.parametrize("slots", [1, 5, 40])
@pytest.mark.parametrize("name", ["vad", "sensor", "reads", "toy_ahead"])
def test_a_pool_gives_the_bytes_of_pythons(
    embed: Library, path_of: Callable[[str], Path], name: str, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, ours = opened(embed, path_of(name), FUSED, monkeypatch)
    block = python.manifest.block
    items = [random_items(python, 6 * block + 7 * i, seed=i) for i in range(slots)]
    both = Feeder(python.pool(slots), Pool(ours, slots, limit=64 * block), items)
    for slot in range(slots):
        both.theirs.open(slot)
        assert both.mine.join() == slot
    while len(both.ended) < slots or len(both.theirs):
        for slot in range(slots):
            both.feed(slot)
        if both.at[0] <= len(items[0]):
            assert both.mine.save(0) == both.theirs.snapshot(0)
        both.step()
    for slot in range(slots):
        outputs = zip(zip(*both.got[slot], strict=True), zip(*both.wanted[slot], strict=True), strict=True)
        assert all(np.concatenate(a).tobytes() == np.concatenate(b).tobytes() for a, b in outputs)


@pytest.mark.parametrize("instructions", ["avx2", "avx512", "avx512vnni", "neon"])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_fused_graph_is_pythons(
    built: Path,
    path_of: Callable[[str], Path],
    name: str,
    mapped: bool,
    instructions: str,
    tmp_path: Path,
) -> None:
    """The rewritten model, byte by byte, its packed parameters, and the states it may overwrite."""
    path, lent = path_of(name), []
    fused = fuse_graph(
        graph_of(read_model_file(path), mapped), instructions, lambda a: lent.append(a) or len(lent)
    )
    program = built / "kernels/embed/embed_rewrite"
    subprocess.run([program, path, instructions, str(int(mapped)), tmp_path / "out"], check=True)
    assert (tmp_path / "out.onnx").read_bytes() == (b"" if fused is None else fused.model)
    for number, array in enumerate(lent, 1):
        assert (tmp_path / f"out.{number}").read_bytes() == array.tobytes()
    states = {tuple(line.split(" ")) for line in (tmp_path / "out.states").read_text().splitlines()}
    assert states == (set() if fused is None else set(fused.in_place))


def test_info_is_that_of_the_manifest(embed: Library) -> None:
    model, manifest = embed.open(VAD), streamssm.load("vad").manifest
    info = model.info
    assert info.name == b"vad"
    assert info.sha256.decode() == manifest.sha256
    assert (info.rate, info.hop, info.block, info.lookahead) == (16000, 160, 160, 0)
    assert (info.parameters, info.state_bytes) == (manifest.parameters, manifest.state_bytes)
    assert info.event_label == b"speech"
    assert info.outputs[0].labels[0] == b"speech"
    assert (info.outputs[0].up, info.outputs[0].down, info.outputs[0].width) == (1, 160, 1)


def test_a_rule_for_several_classes_is_left_to_the_host(embed: Library) -> None:
    assert streamssm.load("wrist").manifest.events.every
    info = embed.open(VAD.with_name("wrist.onnx")).info
    assert (info.name, info.event_label) == (b"wrist", None)
    assert info.outputs[0].labels[6] == b"upright_row"
