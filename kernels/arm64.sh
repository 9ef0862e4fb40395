#!/bin/sh
# Cross-builds the wheel for arm64 and runs the kernel and contract tests in it, under user-mode
# emulation: sh kernels/arm64.sh [WORK_FOLDER]
#
# Needs Debian, with its cross compiler, emulator and CMake (run as root, the script installs them),
# a network for packages, and in $PYTHON a Python with this package's [dev] extra, which exports the
# models under test. All else stays in the work folder, and what is there is not fetched again.
# binfmt_misc is not needed. Ten minutes on an idle core.
set -eu
cd "$(dirname "$0")/.."
work=${1:-.cache/arm64}
python=${PYTHON:-.venv/bin/python}
release=3.11  # of Python: Debian 12
mkdir -p "$work"
work=$(cd "$work" && pwd)
root=$work/root site=$work/site

say() { printf '\n== %s\n' "$*" >&2; }
fail() { printf 'arm64: %s\n' "$*" >&2; exit 1; }

tools() {
  missing=
  command -v aarch64-linux-gnu-g++ >/dev/null || missing="$missing g++-aarch64-linux-gnu"
  command -v qemu-aarch64-static >/dev/null || missing="$missing qemu-user-static"
  command -v cmake >/dev/null || missing="$missing cmake"
  command -v dpkg-deb >/dev/null || fail "this script needs Debian: there is no dpkg-deb"
  [ -x "$python" ] || fail "there is no $python; run make test first, or name one in PYTHON"
  [ -z "$missing" ] && return
  [ "$(id -u)" = 0 ] || fail "missing:$missing; install with: sudo apt-get install$missing"
  say "installing$missing"
  # shellcheck disable=SC2086
  apt-get -q -y install $missing
}

# An arm64 Python from Debian's packages, unpacked and not installed: enough for an emulator that
# looks there first. apt keeps its own books in the work folder.
emulated_root() {
  [ -x "$root/usr/bin/python$release" ] && return
  say "fetching an arm64 Python $release"
  apt=$work/apt
  mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial" "$root"
  : >"$apt/status"
  set -- -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$apt/state" \
    -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=
  apt-get "$@" update
  apt-get "$@" -y --no-install-recommends --download-only install "python$release" libstdc++6
  for package in "$apt"/cache/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
  [ -x "$root/usr/bin/python$release" ] || fail "Debian here has no python$release"
}

# ONNX Runtime reads the processor's description, and fails on that of the machine underneath.
describe_processor() {
  mkdir -p "$root/proc"
  for n in $(seq 0 "$(($(nproc --all) - 1))"); do
    printf 'processor\t: %s\nBogoMIPS\t: 50.00\n' "$n"
    printf 'Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp\n'
    printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n\n'
  done >"$root/proc/cpuinfo"
}

# $1 is the folder, the rest what to install for arm64. Only wheels, so nothing is run.
install_arm64() {
  folder=$1
  shift
  "$python" -m pip --disable-pip-version-check -q install --upgrade --target "$folder" \
    --only-binary=:all: --implementation cp --python-version "$release" --platform linux_aarch64 \
    --platform manylinux2014_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 "$@"
}

packages() {
  [ "$site/.installed" -nt constraints.txt ] && return
  say "fetching the arm64 wheels of what the tests need"
  install_arm64 "$site" -c constraints.txt click msgspec numpy onnx onnxruntime rich rich-click safetensors \
    hypothesis pytest
  touch "$site/.installed"
}

wheel() {
  say "cross-building the wheel"
  rm -rf "$work/wheels" "$work/package"
  _PYTHON_HOST_PLATFORM=linux-aarch64 CMAKE_TOOLCHAIN_FILE=$PWD/kernels/aarch64.cmake \
    "$python" -m pip --disable-pip-version-check -q wheel --no-deps -w "$work/wheels" .
  install_arm64 "$work/package" --no-deps "$work"/wheels/streamssm-*.whl
  [ -f "$work/package/streamssm/native/libstreamssm_ort.so" ] || fail "the wheel was built without its library"
  "$python" tests/kernels/native_build.py "$work/kernels.so" aarch64-linux-gnu-g++
}

models() {
  say "exporting the test models"
  mkdir -p "$work/models"
  PYTHONPATH=tests/export "$python" -c 'if True:
    import pathlib, sys, models
    for name in models.CONFIGS:
        models.export_model(name, pathlib.Path(sys.argv[1]))' "$work/models"
}

# The emulated processor has dot products, as every one since 2018; `old` has none.
emulate() {
  QEMU_CPU=${QEMU_CPU:-neoverse-n1} ORT_DISABLE_TELEMETRY=1 \
    PYTHONPATH=$work/package:$site PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 \
    STREAMSSM_TEST_KERNELS=$work/kernels.so HYPOTHESIS_STORAGE_DIRECTORY=$work/hypothesis \
    qemu-aarch64-static -L "$root" "$root/usr/bin/python$release" "$@"
}

run_tests() {
  emulate -m pytest -p no:cacheprovider -o addopts= --import-mode=prepend -q "$@"
}

tests() {
  say "kernels"
  run_tests tests/kernels/test_native_cpu.py tests/kernels/test_native_mel.py tests/kernels/test_native_program.py
  say "kernels on a processor without dot products"
  QEMU_CPU=cortex-a53 run_tests tests/kernels/test_native_cpu.py -k "best or definition"
  say "operators in ONNX Runtime"
  run_tests tests/native/test_native_operators.py
  for kernels in on unfused off; do
    for model in streamssm/models/vad.onnx "$work"/models/*.onnx; do
      say "contract of $(basename "$model"), STREAMSSM_KERNELS=$kernels"
      STREAMSSM_KERNELS=$kernels emulate -m streamssm check --splits 10 "$model"
    done
  done
}

tools
emulated_root
describe_processor
packages
wheel
models
tests
say "arm64: all passed"
