"""Faults that stay where they are: runs that fail, counts that overflow, misused wrappers, other locales."""

from __future__ import annotations

import ctypes as c
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from embed_library import ROOT, EmbedError, Frames, Library, Model, Pool, PoolOptions, Result
from toy_models import TOYS

import streamssm
from streamssm.manifest import Input

HERE = Path(__file__).parent
VAD = Path(streamssm.__file__).parent / "models" / "vad.onnx"
ARGUMENT, RUN = 1, 11
BAD = 99  # no token of the model, which does not say so: its run fails


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, f"{done.stdout.decode()[-2000:]}\n{done.stderr.decode()[-6000:]}"
    return done.stdout.decode()


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose run fails with a token that it does not have: its manifest states no vocabulary."""
    return TOYS["tokens"]().write(
        tmp_path_factory.mktemp("failing"), input=Input("ids", "tokens", "int64", ()), block=2
    )


def test_a_run_that_fails_changes_nothing(embed: Library, failing: Path) -> None:
    model = embed.open(failing)
    stream, twin = model.stream(), model.stream()
    for each in (stream, twin):
        each.push(np.array([0, 1, 2]))
    before = stream.save()
    for bad in ([BAD, 0, 1], [1, 0, 1, 1, BAD, 1]):  # in the first run, and behind two that were made
        with pytest.raises(EmbedError) as caught:
            stream.push(np.array(bad))
        assert caught.value.status == RUN
        assert stream.save() == before
    (ours,), (theirs,) = stream.push(np.array([3, 4, 0])), twin.push(np.array([3, 4, 0]))
    assert ours.tobytes() == theirs.tobytes()
    assert stream.save() == twin.save()


def step_of(pool: Pool) -> tuple[int, str, dict[int, bytes]]:
    """Status, message and the first output of each slot, also where the step fails."""
    results, count = c.POINTER(Result)(), c.c_size_t()
    status = pool.library.c.streamssm_pool_step(pool.handle, c.byref(results), c.byref(count))
    message = pool.library.c.streamssm_message().decode() if status else ""
    made = [pool._result(results[i]) for i in range(count.value)]
    return status, message, {slot: parts[0].tobytes() for slot, _, parts in made}


@pytest.mark.parametrize("absent", [None, 5, 35], ids=["whole lanes", "copies before", "copies behind"])
def test_a_stream_that_fails_stops_only_those_of_its_run(
    embed: Library, failing: Path, absent: int | None
) -> None:
    model = embed.open(failing)
    pool, alone = Pool(model, 70), [model.stream() for _ in range(70)]
    for slot in range(70):
        assert pool.join() == slot
        items = np.array([slot % 5, BAD if slot == 3 else 1])
        if slot != absent:
            pool.push(slot, items)
    status, message, made = step_of(pool)
    assert status == RUN
    assert "in one run" in message
    assert len(made) >= 70 - 32 - 1, "streams of other runs were stopped too"
    waiting = {slot for slot in range(70) if slot not in made and slot != absent}
    assert 3 in waiting
    assert all(embed.c.streamssm_pool_waiting(pool.handle, c.c_size_t(slot)) == 2 for slot in waiting)
    assert step_of(pool)[2] == {}, "nothing runs twice"
    embed.call("pool_reset", pool.handle, c.c_size_t(3))
    status, _, rest = step_of(pool)
    assert status == 0
    assert set(rest) == waiting - {3}
    for slot, frames in (made | rest).items():
        assert frames == alone[slot].push(np.array([slot % 5, 1]))[0].tobytes()


def pool_options(model: Model, slots: int, limit: int) -> int:
    options, handle = PoolOptions(c.sizeof(PoolOptions), 0, limit, 0), c.c_void_p()
    return int(
        model.library.c.streamssm_pool_open(
            model.handle, c.c_size_t(slots), c.byref(options), c.byref(handle)
        )
    )


@pytest.mark.parametrize(
    ("slots", "limit"),
    [
        (1 << 12, 1 << 50),
        (1 << 20, 1 << 42),
        (1, (1 << 63) - 1),
        (1, (1 << 61) + 160),
        (1 << 20, (1 << 56) - 1),
        (1, -1),
    ],
)
def test_sizes_of_a_pool_that_overflow_are_refused(embed: Library, slots: int, limit: int) -> None:
    """Their product is a small number modulo 2**64: rings of that size would be written past their end."""
    assert pool_options(embed.open(VAD), slots, limit) == ARGUMENT


def test_options_that_end_within_a_field_are_refused(embed: Library) -> None:
    model, handle = embed.open(VAD), c.c_void_p()
    for size in (1, 7, 12, 23, 5000):
        options = PoolOptions(size, 0, 0, 0)
        with pytest.raises(EmbedError, match=r"options\.size") as caught:
            embed.call("pool_open", model.handle, c.c_size_t(1), c.byref(options), c.byref(handle))
        assert caught.value.status == ARGUMENT
        assert not handle


def test_a_failed_push_leaves_no_count_of_an_earlier_one(embed: Library) -> None:
    stream = embed.open(VAD).stream()
    memory, bad = np.zeros(16, np.float32), np.full(10, np.nan, np.float32)
    outputs = (Frames * 1)(Frames(memory.ctypes.data, 16, 7))
    with pytest.raises(EmbedError, match="NaN at index 0"):
        embed.call("push", stream.handle, bad.ctypes.data_as(c.c_void_p), c.c_size_t(10), outputs)
    assert outputs[0].count == 0


def test_a_tensor_of_nothing_cannot_overflow(built: Path, runtime: Path, tmp_path: Path) -> None:
    """Shapes such as [0, 2**62, 2**62] hold no value, and strides that do not fit."""
    source = tmp_path / "counts.cpp"
    source.write_text(
        '#include "kernels/embed/folding.h"\n'
        "using streamssm::embed::count_of;\n"
        "int main() {\n"
        "  const int64_t huge = int64_t(1) << 62;\n"
        "  return count_of({0, huge, huge}) != -1 || count_of({huge, 2}) != -1 || count_of({-1}) != -1 ||\n"
        "         count_of({0, 3}) != 0 || count_of({}) != 1 || count_of({2, 3}) != 6;\n"
        "}\n"
    )
    library = built / "kernels/embed/libstreamssm.a"
    run("c++", "-std=c++17", f"-I{ROOT}", source, library, "-ldl", "-lpthread", "-o", tmp_path / "counts")
    run(tmp_path / "counts")


def test_the_wrappers_refuse_what_the_library_cannot_see(built: Path, runtime: Path, tmp_path: Path) -> None:
    library, program = built / "kernels/embed", tmp_path / "wrappers"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    include = ROOT / "kernels/embed/include"
    source = HERE / "wrappers.cpp"
    run(
        "c++",
        *flags,
        f"-I{include}",
        source,
        f"-L{library}",
        "-lstreamssm",
        f"-Wl,-rpath,{library}",
        "-o",
        program,
    )
    assert run(program, VAD, TOYS["tokens"]().write(tmp_path), runtime) == "ok\n"


def test_a_process_may_fork(built: Path, runtime: Path, tmp_path: Path) -> None:
    library, program = built / "kernels/embed", tmp_path / "after_fork"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{ROOT / 'kernels/embed/include'}"]
    linked = [f"-L{library}", "-lstreamssm", f"-Wl,-rpath,{library}"]
    run("cc", *flags, HERE / "after_fork.c", *linked, "-o", program)
    assert run(program, VAD, runtime) == "ok\n"


def test_handles_may_be_closed_when_the_program_ends(tmp_path: Path) -> None:
    program = tmp_path / "late"
    sources = (HERE / "late_close.cpp", ROOT / "kernels/embed/error.cpp")
    run("c++", "-std=c++17", "-g", "-fsanitize=address,undefined", *sources, "-o", program)
    run(program)


OTHER_LOCALE = """
import locale, sys
from pathlib import Path
import numpy as np
from embed_library import Library
if sys.argv[3]:
    locale.setlocale(locale.LC_ALL, sys.argv[3])
    assert locale.localeconv()["decimal_point"] == ","
model = Library(Path(sys.argv[1]), Path(sys.argv[2])).open(Path(sys.argv[4]))
stream = model.stream()
out = stream.push(np.linspace(-1, 1, 1000, dtype=np.float32))[0]
sys.stdout.buffer.write(out.tobytes() + stream.save())
"""


def test_numbers_are_read_in_any_locale(built: Path, runtime: Path, tmp_path: Path) -> None:
    """0.5 of a manifest and of its event rule, where the C library expects 0,5."""
    if shutil.which("localedef") is None:
        pytest.skip("no localedef")
    made = ("localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8")
    if subprocess.run(made, capture_output=True, check=False).returncode > 1:
        pytest.skip("the source of no such locale")
    library = built / "kernels/embed/libstreamssm.so"
    environment = os.environ | {"PYTHONPATH": str(HERE), "LOCPATH": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", OTHER_LOCALE, library, runtime, which, VAD],
            capture_output=True,
            check=True,
            env=environment,
        ).stdout
        for which in ("", "de_DE.UTF-8")
    ]
    assert said[0] == said[1]
    assert len(said[0]) > 1000
