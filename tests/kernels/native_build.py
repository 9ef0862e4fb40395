"""Builds kernels/cpu with its test interface into one shared library, with the system's compiler.

As a program, for cross builds:  python native_build.py OUT.so [COMPILER] [EXTRA FLAG ...]
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "kernels" / "cpu"

FLAGS = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]

#: what CMakeLists.txt compiles isa.cpp for, by machine
INSTRUCTION_SETS: dict[str, dict[str, list[str]]] = {
    "x86_64": {"avx2": AVX2, "avx512": AVX512, "avx512vnni": [*AVX512, "-mavx512vnni"]},
    "aarch64": {"neon": [], "neon_dotprod": ["-march=armv8.2-a+dotprod"]},
}


def compiler() -> str | None:
    """$CXX, else c++, g++ or clang++ of the path."""
    named = os.environ.get("CXX")
    return named or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def target(command: str) -> str:
    """The machine that the compiler builds for, as ``x86_64`` or ``aarch64``."""
    triple = subprocess.check_output([*shlex.split(command), "-dumpmachine"], text=True).strip()
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(triple.split("-")[0], triple.split("-")[0])


def build(out: Path, command: str, extra: list[str] | None = None) -> Path:
    """Compile everything into the shared library ``out``.

    Raises:
        subprocess.CalledProcessError: the compiler refused; its messages went to stderr.
    """
    base = [*shlex.split(command), *FLAGS, *WARNINGS, *(extra or [])]
    with tempfile.TemporaryDirectory() as folder:
        plain = ("dispatch", "log_mel_tables", "program_decode", "testing", "testing_mel", "testing_program")
        jobs: list[tuple[str, str, list[str]]] = [(name, f"{name}.cpp", []) for name in plain]
        for name, flags in INSTRUCTION_SETS[target(command)].items():
            mine = [*flags, f"-DSTREAMSSM_ISA={name}"]
            jobs += [(f"{name}-{source}", source, mine) for source in ("isa.cpp", "testing_isa.cpp")]
        objects = []
        for name, source, flags in jobs:
            objects.append(f"{folder}/{name}.o")
            subprocess.run([*base, *flags, "-c", str(SOURCE / source), "-o", objects[-1]], check=True)
        subprocess.run([*base, "-shared", *objects, "-o", str(out)], check=True)
    return out


def reason_not_to_build() -> str | None:
    """Why this machine cannot build the kernels, or None."""
    if not compiler():
        return "no C++ compiler; install g++ or clang++, or name one in CXX"
    if platform.machine() not in INSTRUCTION_SETS:
        return f"there are no kernels for {platform.machine()}"
    return None


if __name__ == "__main__":
    arguments = sys.argv[1:]
    build(Path(arguments[0]), arguments[1] if len(arguments) > 1 else compiler() or "c++", arguments[2:])
