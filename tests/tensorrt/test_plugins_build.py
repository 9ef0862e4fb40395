"""How the plugin library is built: which TensorRT is found, what is said, and that it compiles."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess

import plugin_builds
import pytest
from plugin_builds import PLUGINS, ROOT

needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake")
SYSTEM = any(
    os.path.exists(f"{place}/NvInferRuntime.h") for place in ("/usr/include", "/usr/include/x86_64-linux-gnu")
)
alone = pytest.mark.skipif(SYSTEM, reason="this system has headers of TensorRT, which come first")


def find(folder, *definitions, **environment):
    """What find_tensorrt.cmake says, on its own."""
    script = folder / "find.cmake"
    script.write_text(
        f'include("{PLUGINS}/find_tensorrt.cmake")\nfind_tensorrt_headers(found)\nmessage("<${{found}}>")\n'
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "TENSORRT_ROOT")}
    done = subprocess.run(
        ["cmake", *definitions, "-P", str(script)],
        env={**clean, **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def make_headers(folder, version="10.3.0", enterprise=False):
    """A folder that looks like the headers of a TensorRT."""
    folder.mkdir(parents=True)
    (folder / "NvInferRuntime.h").touch()
    names = ("MAJOR", "MINOR", "PATCH")
    pattern = "#define TRT_{0}_ENTERPRISE {1}\n#define NV_TENSORRT_{0} TRT_{0}_ENTERPRISE //!< version\n"
    plain = "#define NV_TENSORRT_{0} {1} //!< TensorRT version.\n"
    lines = [
        (pattern if enterprise else plain).format(*one) for one in zip(names, version.split("."), strict=True)
    ]
    (folder / "NvInferVersion.h").write_text("".join(lines))
    return folder


def make_environment(folder):
    """A virtual environment as cmake sees it: a Python that tells its folder of packages."""
    site = folder / "site"
    site.mkdir()
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text(f"#!/bin/sh\necho {site}\n")
    python.chmod(0o755)
    return site


@needs_cmake
@pytest.mark.parametrize(("version", "enterprise"), [("10.3.0", False), ("10.14.1", True), ("11.4.0", True)])
def test_named_headers_are_found_with_their_version(tmp_path, version, enterprise):
    folder = make_headers(tmp_path / "trt", version, enterprise)
    status, said = find(tmp_path, f"-DSTREAMSSM_TENSORRT_INCLUDE={folder}")
    assert status == 0
    assert f"TensorRT {version}: headers in {folder}" in said
    assert f"<{folder}>" in said


@needs_cmake
def test_a_named_folder_without_headers_is_an_error(tmp_path):
    """Other headers than those that were named would be a surprise."""
    other = make_headers(tmp_path / "archive" / "include")
    status, said = find(tmp_path, f"-DSTREAMSSM_TENSORRT_INCLUDE={tmp_path}", TENSORRT_ROOT=str(other.parent))
    assert status != 0
    assert f"STREAMSSM_TENSORRT_INCLUDE is {tmp_path}, where no NvInferRuntime.h is" in said


@needs_cmake
def test_nvcc_outside_the_path_is_found(tmp_path):
    """JetPack leaves it in /usr/local/cuda/bin; here a CUDA_HOME, whose nvcc is one that CMake cannot use."""
    headers = make_headers(tmp_path / "headers")
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("cmake", "g++", "cc", "c++", "make", "as", "ld", "ar", "ranlib", "sh"):
        found = shutil.which(tool)
        if found:
            (tools / tool).symlink_to(found)
    definitions = [f"-DSTREAMSSM_TENSORRT_INCLUDE={headers}", "-DCMAKE_CUDA_ARCHITECTURES=87"]
    clean = {k: v for k, v in os.environ.items() if k not in ("CUDACXX", "VIRTUAL_ENV", "TENSORRT_ROOT")}
    done = subprocess.run(
        ["cmake", "-S", str(PLUGINS), "-B", str(tmp_path / "build"), *definitions],
        env={**clean, "PATH": str(tools), "CUDA_HOME": str(nvcc.parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    cache = (tmp_path / "build" / "CMakeCache.txt").read_text()
    assert re.search(rf"^CMAKE_CUDA_COMPILER:\w+={re.escape(str(nvcc))}$", cache, re.MULTILINE)


@needs_cmake
def test_an_unpacked_archive_is_found_by_the_environment(tmp_path):
    folder = make_headers(tmp_path / "archive" / "include")
    status, said = find(tmp_path, TENSORRT_ROOT=str(tmp_path / "archive"))
    assert status == 0
    assert f"<{folder}>" in said


@needs_cmake
def test_the_folder_of_the_processor_is_looked_into(tmp_path):
    """Where JetPack's headers are: /usr/include/aarch64-linux-gnu, as the compiler names it."""
    folder = make_headers(tmp_path / "multiarch", "10.3.0", False)
    status, said = find(tmp_path, f"-DCMAKE_LIBRARY_ARCHITECTURE=../..{folder}")
    assert status == 0
    assert f"TensorRT 10.3.0: headers in /usr/include/../..{folder}" in said


@needs_cmake
@alone
def test_a_package_with_headers_is_found(tmp_path):
    site = make_environment(tmp_path)
    folder = make_headers(site / "someone" / "include" / "tensorrt", "10.14.1", True)
    status, said = find(tmp_path, VIRTUAL_ENV=str(tmp_path))
    assert status == 0
    assert f"TensorRT 10.14.1: headers in {folder}" in said


@needs_cmake
@alone
def test_a_pip_install_without_headers_is_named(tmp_path):
    site = make_environment(tmp_path)
    (site / "tensorrt_libs").mkdir()
    (site / "tensorrt_libs" / "libnvinfer.so.10").touch()
    status, said = find(tmp_path, VIRTUAL_ENV=str(tmp_path))
    assert status != 0
    assert f"a pip install of TensorRT ({site}/tensorrt_libs/libnvinfer.so.10), which has no headers" in said
    assert "-DSTREAMSSM_TENSORRT_INCLUDE=FOLDER" in said


@needs_cmake
@alone
def test_headers_that_are_too_old_are_passed_by(tmp_path):
    folder = make_headers(tmp_path / "old", "8.6.1")
    status, said = find(tmp_path, f"-DSTREAMSSM_TENSORRT_INCLUDE={folder}")
    assert status != 0
    assert f"TensorRT 8.6.1 in {folder} is too old: the plugins need 10.3" in said
    assert "libnvinfer-headers-dev" in said


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_tables_compile(tmp_path):
    command = [
        "nvcc",
        "-std=c++17",
        "--ptx",
        "-arch=compute_87",
        str(PLUGINS / "tables.cu"),
        "-o",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


STAND_IN = """#!/bin/sh
# a compiler that makes empty objects and notes down for which GPUs
[ "$1" = --dryrun ] && echo '#$ TOP=/nowhere' >&2 && exit
echo "$*" >>{log}
while [ $# -gt 0 ]; do [ "$1" = -o ] && : >"$2"; shift; done
"""


@pytest.mark.skipif(
    not (plugin_builds.FETCHED / "lean-10-aarch64" / ".done").exists(),
    reason="CROSS=1 sh fetch.sh has not run",
)
def test_a_cross_build_for_other_gpus_begins_again(tmp_path):
    log, tools = tmp_path / "log", tmp_path / "tools"
    tools.mkdir()
    for tool in ("nvcc", "cross-g++"):
        (tools / tool).write_text(STAND_IN.format(log=log))
        (tools / tool).chmod(0o755)
    path = f"{tools}:/usr/bin:/bin"
    compiled = []
    for archs in ("87", "87", "110"):
        log.write_text("")
        subprocess.run(  # an emulator, where there is one, will not like what this makes
            ["sh", str(PLUGINS / "cross.sh"), str(tmp_path / "out")],
            env={**os.environ, "PATH": path, "CROSS_CXX": "cross-g++", "ARCHS": archs},
            capture_output=True,
            timeout=60,
        )
        lines = log.read_text().splitlines()
        kernels = [line for line in lines if ".cu " in line]
        assert all(f"sm_{archs}" in line for line in kernels)
        compiled.append(len(kernels))
    assert compiled[0] == compiled[2] > 5
    assert compiled[1] == 0


@needs_cmake
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("source", ["kernels/tensorrt", "."])
def test_the_whole_library_builds_and_loads(tmp_path, source):
    """By itself, as in a bundle, and as a target of the project; with all kernels, for one kind of GPU."""
    definitions = [f"-DSTREAMSSM_TENSORRT_INCLUDE={plugin_builds.headers()}", "-DCMAKE_CUDA_ARCHITECTURES=87"]
    definitions.append("-DCMAKE_CXX_FLAGS=-Werror")
    whole = ["-DSTREAMSSM_TENSORRT=ON"] if source == "." else []
    subprocess.run(["cmake", "-S", str(ROOT / source), "-B", str(tmp_path), *definitions, *whole], check=True)
    target = ["--target", "streamssm_tensorrt", "-j", "2"]
    subprocess.run(["cmake", "--build", str(tmp_path), *target], check=True)
    (library,) = tmp_path.rglob("libstreamssm_tensorrt.so")
    describe = ctypes.CDLL(str(library)).streamssm_tensorrt_describe
    describe.restype = ctypes.c_char_p
    said = json.loads(describe())
    assert said["archs"] == "87"
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True
    )
    exported = {line.split()[-1] for line in symbols.stdout.splitlines()}
    ours = {"streamssm_tensorrt_describe", "streamssm_cuda_keep_rows"}
    assert exported == {"getCreators", "setLoggerFinder", *ours}
    needed = subprocess.run(
        ["readelf", "-d", str(library)], capture_output=True, text=True, check=True
    ).stdout
    assert "nvinfer" not in needed
    assert "libcudart" not in needed
