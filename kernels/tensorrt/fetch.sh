#!/bin/sh
# Fetches what tests/tensorrt needs to try the plugins without a GPU: headers of TensorRT and CUDA, and two
# lean runtimes of TensorRT; 90 MB of wheels, unpacked and not installed. sh kernels/tensorrt/fetch.sh [FOLDER]
# With CROSS=1 also what kernels/tensorrt/cross.sh needs.
set -eu
cd "$(dirname "$0")/../.."
folder=${1:-.cache/tensorrt}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$folder"

# $1 is the folder, $2 the package, the rest options of pip.
unpack() {
  to=$folder/$1 package=$2
  shift 2
  [ -e "$to/.done" ] && return
  rm -rf "$to"
  "$python" -m pip --disable-pip-version-check -q download --no-deps --only-binary=:all: -d "$to" "$@" "$package"
  "$python" -c 'import pathlib, sys, zipfile
for wheel in pathlib.Path(sys.argv[1]).glob("*.whl"):
    zipfile.ZipFile(wheel).extractall(sys.argv[1])
    wheel.unlink()' "$to"
  touch "$to/.done"
}

linux() {
  for tag in manylinux_2_28 manylinux_2_27 manylinux2014; do printf -- '--platform %s_%s ' "$tag" "$1"; done
}

unpack headers kernel-lens==2.0.1  # holds the headers of TensorRT 10.14
# shellcheck disable=SC2046
unpack lean-10 tensorrt-lean-cu13-libs==10.16.1.11 $(linux "$(uname -m)")
# shellcheck disable=SC2046
unpack lean-11 tensorrt-lean-cu13-libs==11.4.0.106 $(linux "$(uname -m)")
# the headers of CUDA, for a machine without nvcc
# shellcheck disable=SC2046
unpack cuda-runtime nvidia-cuda-runtime==13.0.96 $(linux "$(uname -m)") --platform "manylinux_2_17_$(uname -m)"
# shellcheck disable=SC2046
unpack cuda-crt nvidia-cuda-crt==13.0.88 $(linux "$(uname -m)") --platform "manylinux_2_17_$(uname -m)"
if [ "${CROSS:-}" = 1 ]; then
  # shellcheck disable=SC2046
  unpack cuda-aarch64 nvidia-cuda-runtime==13.0.96 $(linux aarch64) --platform manylinux_2_17_aarch64
  # shellcheck disable=SC2046
  unpack lean-10-aarch64 tensorrt-lean-cu13-libs==10.16.1.11 $(linux aarch64) --platform manylinux_2_35_aarch64
fi
echo "$folder"
