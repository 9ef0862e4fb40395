"""The C and C++ sides of libstreamssm: programs, examples, header, package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from embed_library import ROOT, EmbedError, Library, build

import streamssm
from streamssm import snapshot

VAD = Path(streamssm.__file__).parent / "models" / "vad.onnx"
HEADER = ROOT / "kernels/embed/include/streamssm.h"
SPEECH = ROOT / "examples/audio/speech.wav"
MIB = 1 << 20


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False, **options)
    assert done.returncode == 0, f"{done.stdout.decode()[-2000:]}\n{done.stderr.decode()[-6000:]}"
    return done.stdout.decode()


def test_the_header_reads_in_five_minutes() -> None:
    assert len(HEADER.read_text().splitlines()) <= 300


def test_the_header_is_plain_c_and_cpp(tmp_path: Path) -> None:
    for name, compiler, standard in (("a.c", "cc", "c99"), ("a.cpp", "c++", "c++17")):
        source = tmp_path / name
        header = "streamssm.hpp" if name == "a.cpp" else "streamssm.h"
        source.write_text(f"#include <{header}>\nint main(void) {{ return 0; }}\n")
        flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", f"-I{HEADER.parent}"]
        run(compiler, f"-std={standard}", *flags, source)


def test_every_function_of_the_header_is_exported() -> None:
    declared = set(re.findall(r"STREAMSSM_API [^;]*?(streamssm_\w+)\(", HEADER.read_text(), re.DOTALL))
    listed = set(re.findall(r"(streamssm_\w+);", (HEADER.parents[1] / "exports.map").read_text()))
    assert declared == listed
    assert len(declared) > 30


@pytest.mark.parametrize("program", ["embed_exercise", "embed_exercise_debug"])
def test_everything_once(built: Path, runtime: Path, program: str) -> None:
    assert run(built / "kernels/embed" / program, VAD, runtime) == "ok\n"


@pytest.mark.parametrize("kernels", [0, 1])
@pytest.mark.parametrize("name", ["vad", "audio", "sensor"])
def test_a_push_allocates_nothing(
    built: Path, runtime: Path, exported: dict[str, Path], name: str, kernels: int
) -> None:
    folder, path = built / "kernels/embed", exported.get(name, VAD)
    environment = os.environ | {"LD_PRELOAD": str(folder / "libembed_alloc_hook.so")}
    said = run(folder / "embed_allocations", path, runtime, kernels, env=environment)
    counts = {
        Path(name).name: int(count) for count, name in (line.split(" ", 1) for line in said.splitlines())
    }
    assert any(name.startswith("libonnxruntime") for name in counts), "the hook sees nothing"
    assert [name for name in counts if not name.startswith("libonnxruntime")] == []


def test_the_library_is_small(built: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "libstreamssm.so"
    run("strip", "-s", "-o", stripped, built / "kernels/embed/libstreamssm.so")
    assert stripped.stat().st_size <= MIB


def test_the_library_asks_for_little(built: Path) -> None:
    needed = set(
        re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", built / "kernels/embed/libstreamssm.so"))
    )
    assert needed <= {
        "libc.so.6",
        "libm.so.6",
        "libdl.so.2",
        "libpthread.so.0",
        "libstdc++.so.6",
        "libgcc_s.so.1",
        "ld-linux-x86-64.so.2",
        "ld-linux-aarch64.so.1",
    }


@pytest.fixture(scope="session")
def samples() -> bytes:
    """The recorded voice as raw samples of 16 bits."""
    import soundfile

    data, rate = soundfile.read(SPEECH, dtype="int16")
    assert rate == 16000
    assert data.ndim == 1
    return bytes(data.astype("<i2").tobytes())


@pytest.mark.parametrize("example", ["vad_segments", "ring_buffer"])
def test_an_example_says_what_streamssm_run_says(
    built: Path, runtime: Path, samples: bytes, example: str
) -> None:
    wanted = run(
        sys.executable,
        "-m",
        "streamssm",
        "run",
        "vad",
        "-",
        "--input-format",
        "s16le",
        "--rate",
        16000,
        input=samples,
    )
    said = run(built / "kernels/embed" / example, VAD, runtime, input=samples)
    assert [json.loads(line) for line in said.splitlines()] == [
        json.loads(line) for line in wanted.splitlines()
    ]
    assert len(wanted.splitlines()) >= 8


def test_the_c_example_is_short() -> None:
    assert len((ROOT / "examples/embed/vad_segments.c").read_text().splitlines()) <= 45


def test_an_open_event_ends_with_the_input(built: Path, runtime: Path, samples: bytes) -> None:
    cut = samples[: 2 * 16000 * 5]
    said = run(built / "kernels/embed/vad_segments", VAD, runtime, input=cut).splitlines()
    assert json.loads(said[-1])["cut"] is True


# Bad input, by message.


def test_what_is_wrong_is_said(embed: Library, tmp_path: Path) -> None:
    good = VAD.read_bytes()
    middle = len(good) // 2  # among the weights
    newer = good.replace(b'{"format":1,', b'{"format":2,', 1)
    cases = {
        "missing.onnx": (None, 6, "cannot be read"),
        "empty.onnx": (b"", 6, "is empty"),
        "cut.onnx": (good[:-1000], 6, "truncated or damaged|0 streamssm manifests"),
        "damaged.onnx": (good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :], 8, "sha256"),
        "newer.onnx": (newer, 7, "format 2, this version reads 1"),
        "archive.onnx": (b"PK\x03\x04" + bytes(100), 6, "zip archive"),
    }
    assert newer != good
    for name, (data, status, words) in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(EmbedError, match=words) as caught:
            embed.open(tmp_path / name)
        assert caught.value.status == status, name


def test_a_missing_runtime_is_said(embed: Library, tmp_path: Path) -> None:
    with pytest.raises(EmbedError, match=r"ONNX Runtime cannot be loaded .*options.runtime") as caught:
        embed.open(VAD, runtime=b"/nonexistent/libonnxruntime.so")
    assert caught.value.status == 10
    other = tmp_path / "libother.so"
    source = tmp_path / "other.c"
    source.write_text("int nothing;\n")
    run("cc", "-shared", "-fPIC", "-o", other, source)
    with pytest.raises(EmbedError, match="no OrtGetApiBase"):
        embed.open(VAD, runtime=os.fsencode(other))


def _at(position: int) -> bytes:
    """A snapshot that nobody made by streaming."""
    model = streamssm.load("vad")
    twin = snapshot.decode(model, model.stream().snapshot())
    return snapshot.encode(model, replace(twin, state=replace(twin.state, position=position)))


def test_bad_snapshots_are_refused(embed: Library) -> None:
    stream = embed.open(VAD).stream()
    stream.push(np.zeros(500, np.float32))
    good = stream.save()
    cases = {
        "only the start": good[:100],
        "damaged": good[:-1] + bytes([good[-1] ^ 1]),
        "newer": good.replace(b'"version":"1"', b'"version":"2"', 1),
        "other model": good.replace(good[good.find(b'"sha256":"') + 10 :][:8], b"00000000"),
        "longer": good + b"x",
    }
    for name, data in cases.items():
        with pytest.raises(EmbedError) as caught:
            stream.restore(data)
        assert caught.value.status == (7 if name == "newer" else 9), name
        assert stream.save() == good, name
    with pytest.raises(EmbedError, match="further than this library counts"):
        stream.restore(_at(9 * 10**17 // 160 * 160))
    batch = streamssm.load("vad").stream(batch=2)
    with pytest.raises(EmbedError, match="2 sequences"):
        stream.restore(batch.snapshot())


# Installing.

C_USER = """
#include <stdio.h>
#include <streamssm.h>
int main(void) {
  printf("%s %d\\n", streamssm_version(), streamssm_abi() == STREAMSSM_ABI);
  return 0;
}
"""
CMAKE_USER = """
cmake_minimum_required(VERSION 3.20)
project(user C CXX)
find_package(streamssm REQUIRED)
add_executable(shared user.c)
target_link_libraries(shared streamssm::streamssm)
add_executable(static user.c)
set_target_properties(static PROPERTIES LINKER_LANGUAGE CXX)
target_link_libraries(static streamssm::static)
"""


@pytest.fixture(scope="session")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", built, "--prefix", prefix)
    return prefix


def test_an_installation_serves_cmake(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "user.c").write_text(C_USER)
    (tmp_path / "CMakeLists.txt").write_text(CMAKE_USER)
    run("cmake", "-S", tmp_path, "-B", tmp_path / "out", f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", tmp_path / "out")
    for kind in ("shared", "static"):
        assert run(tmp_path / "out" / kind) == f"{streamssm.__version__} 1\n"


def test_an_installation_serves_pkg_config(installed: Path, tmp_path: Path) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("no pkg-config")
    (found,) = installed.glob("lib*/**/pkgconfig")
    flags = run(
        "pkg-config", "--cflags", "--libs", "streamssm", env=os.environ | {"PKG_CONFIG_PATH": str(found)}
    )
    (tmp_path / "user.c").write_text(C_USER)
    (library,) = installed.glob("lib*/**/libstreamssm.so")
    run("cc", tmp_path / "user.c", "-o", tmp_path / "user", *flags.split(), f"-Wl,-rpath,{library.parent}")
    assert run(tmp_path / "user") == f"{streamssm.__version__} 1\n"


def test_the_readmes_program_compiles(tmp_path: Path) -> None:
    blocks = []
    for page in (ROOT / "README.md", ROOT / "docs/embedding.md"):
        found = re.findall(r"```(c|cpp)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        ours = [(language, text) for language, text in found if "streamssm" in text]
        assert ours, f"{page.name} has no program"
        blocks += ours
    for number, (language, text) in enumerate(blocks):
        source = tmp_path / f"block{number}.{language}"
        source.write_text(text)
        compiler = ("cc", "-std=c11") if language == "c" else ("c++", "-std=c++17")
        run(*compiler, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{HEADER.parent}", source)


# ONNX Runtime's ABI.


def test_declarations_are_those_of_the_official_header() -> None:
    folders = [
        *filter(None, [os.environ.get("STREAMSSM_ORT_HEADERS")]),
        "/usr/include/onnxruntime",
        "/usr/local/include/onnxruntime",
    ]
    folder = next((path for path in map(Path, folders) if (path / "onnxruntime_c_api.h").exists()), None)
    if folder is None:
        pytest.skip("no onnxruntime_c_api.h on this machine")
    check = Path(__file__).with_name("abi_check.cpp")
    run("c++", "-std=c++17", "-fsyntax-only", "-Wno-invalid-offsetof", "-isystem", folder, check)


# Sanitizers: minutes each.

SANITIZERS = {"address": "address,undefined", "thread": "thread"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SANITIZERS)
def test_clean_under_sanitizers(runtime: Path, kind: str) -> None:
    folder = build(
        f"embed-{kind}", f"-DSTREAMSSM_SANITIZE={SANITIZERS[kind]}", targets=("embed_exercise_debug",)
    )
    options = {
        "ASAN_OPTIONS": "detect_leaks=1",
        "TSAN_OPTIONS": f"suppressions={Path(__file__).with_name('tsan.supp')}",
    }
    said = run(folder / "kernels/embed/embed_exercise_debug", VAD, runtime, env=os.environ | options)
    assert said == "ok\n"


ARM64 = ROOT / ".cache/arm64"


@pytest.mark.slow
def test_the_same_events_on_emulated_arm64(built: Path, runtime: Path, samples: bytes) -> None:
    """Cross-built, against the arm64 ONNX Runtime that kernels/arm64.sh has fetched."""
    found = sorted(ARM64.glob("site/onnxruntime/capi/libonnxruntime.so.1*"))
    if not found or not shutil.which("qemu-aarch64-static") or not shutil.which("aarch64-linux-gnu-gcc"):
        pytest.skip("no emulated arm64 here; run make arm64 first")
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'kernels/aarch64.cmake'}"
    programs = ("embed_exercise", "vad_segments")
    folder = build("embed-arm64", toolchain, "-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc", targets=programs)
    folder = folder / "kernels/embed"
    root = ARM64 / "root"
    emulate = ["qemu-aarch64-static", "-cpu", "neoverse-n1", "-L", root, "-E", f"LD_LIBRARY_PATH={folder}"]
    wanted = run(built / "kernels/embed/vad_segments", VAD, runtime, input=samples)
    assert run(*emulate, folder / "vad_segments", VAD, found[0], input=samples) == wanted
    assert run(*emulate, folder / "embed_exercise", VAD, found[0]) == "ok\n"


@pytest.mark.slow
def test_clean_under_valgrind(built: Path, runtime: Path) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("no valgrind")
    suppressions = Path(__file__).with_name("valgrind.supp")
    options = [
        "--error-exitcode=9",
        "--leak-check=full",
        "--errors-for-leak-kinds=definite",
        f"--suppressions={suppressions}",
    ]
    program = built / "kernels/embed/embed_exercise"
    said = run("valgrind", "-q", *options, program, VAD, runtime)
    assert said.endswith("ok\n")


@pytest.mark.slow
def test_a_minute_of_damage(runtime: Path, exported: dict[str, Path]) -> None:
    folder = build("embed-address", "-DSTREAMSSM_SANITIZE=address,undefined", targets=("embed_fuzz",))
    seconds, seed = os.environ.get("SECONDS_OF_FUZZING", "60"), os.environ.get("SEED", "1")
    said = run(folder / "kernels/embed/embed_fuzz", exported["sensor"], runtime, seconds, seed)
    assert re.match(r"\d{3,} models, \d+ of them usable; \d{3,} snapshots, \d+ of them usable", said)
