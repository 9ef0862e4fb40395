#!/bin/sh
# Cross-builds the plugin library for arm64 Linux with CUDA 13 (JetPack 7: Orin is sm_87, Thor sm_110), and, where
# an emulator is, has a real registry of TensorRT on arm64 load it: sh kernels/tensorrt/cross.sh [FOLDER]
#
# Needs Debian's g++-aarch64-linux-gnu, nvcc 13.0 and fetch.sh; for the emulation qemu-user-static, and an arm64
# Python as kernels/arm64.sh leaves in .cache/arm64. JetPack 6 has CUDA 12: there the library is built on the
# device. ARCHS names the GPUs, JOBS how many sources are compiled at a time.
set -eu
cd "$(dirname "$0")/../.."
out=${1:-build/tensorrt-aarch64}
archs=${ARCHS:-"87 110"}
jobs=${JOBS:-2}
fetched=$(CROSS=1 sh kernels/tensorrt/fetch.sh)
compiler=${CROSS_CXX:-aarch64-linux-gnu-g++}
headers=$fetched/headers/kernel_lens/include/tensorrt
cuda=$fetched/cuda-aarch64/nvidia/cu13
nvcc=$(command -v nvcc) || { echo "cross: there is no nvcc" >&2; exit 1; }
toolkit=$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')
mkdir -p "$out"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
defines="-DSTREAMSSM_VERSION=\"$version\" -DSTREAMSSM_CUDA_ARCHS=\"$(echo "$archs" | tr ' ' ,)\""

flags="-ccbin $compiler -std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden -Xfatbin -compress-all"
# the kernels' headers are the same for every processor; those of this nvcc lie elsewhere
flags="$flags -I$cuda/include -isystem $toolkit/include -isystem $toolkit/include/cccl"
for arch in $archs; do flags="$flags -gencode=arch=compute_$arch,code=sm_$arch"; done

# for other GPUs or in another version nothing of what was built before will do
[ "$(cat "$out/settings" 2>/dev/null)" = "$archs $version" ] || rm -f "$out"/*.o
echo "$archs $version" >"$out/settings"

newer() { [ "$1" -nt "$2" ] && [ -z "$(find kernels/cuda kernels/tensorrt -name '*.*h' -newer "$1")" ]; }

objects=
running=
count=0
for source in kernels/cuda/causal_conv1d*.cu kernels/cuda/log_mel*.cu kernels/cuda/runtime*.cu \
  kernels/cuda/scan_*.cu kernels/cuda/selective_scan*.cu kernels/cuda/sliding_window_attention*.cu \
  kernels/cuda/state_space_dual*.cu kernels/tensorrt/*.cu kernels/tensorrt/*.cpp; do
  [ -e "$source" ] || continue
  object=$out/$(basename "$source").o
  objects="$objects $object"
  newer "$object" "$source" && continue
  case $source in
    # shellcheck disable=SC2086
    *.cu) "$nvcc" $flags -c "$source" -o "$object" & ;;
    # shellcheck disable=SC2086
    *) "$compiler" -std=c++17 -O2 -fPIC -fvisibility=hidden -Wall -Wextra -Werror $defines \
      -isystem "$headers" -isystem "$cuda/include" -isystem "$toolkit/include" -c "$source" -o "$object" & ;;
  esac
  running="$running $!"
  count=$((count + 1))
  [ $((count % jobs)) -eq 0 ] && { for job in $running; do wait "$job"; done; running=; }
done
for job in $running; do wait "$job"; done
# shellcheck disable=SC2086
"$compiler" -shared -o "$out/libstreamssm_tensorrt.so" $objects -static-libgcc -static-libstdc++ \
  -Wl,--version-script=kernels/tensorrt/exports.map -Wl,--gc-sections -Wl,-z,defs -Wl,-z,nodelete \
  "$cuda/lib/libcudart_static.a" -lrt -lpthread -ldl
echo "$out/libstreamssm_tensorrt.so"

root=.cache/arm64/root
if command -v qemu-aarch64-static >/dev/null && [ -x "$root/usr/bin/python3.11" ]; then
  "$compiler" -std=c++17 -O1 -fPIC -shared -isystem "$headers" -isystem "$cuda/include" -isystem "$toolkit/include" \
    -static-libgcc -static-libstdc++ tests/tensorrt/plugin_harness.cpp -o "$out/libharness.so" -ldl
  lean=$fetched/lean-10-aarch64/tensorrt_lean_libs/libnvinfer_lean.so.10
  LD_LIBRARY_PATH=$root/usr/lib/aarch64-linux-gnu qemu-aarch64-static -L "$root" "$root/usr/bin/python3.11" \
    tests/tensorrt/registry_probe.py "$out/libharness.so" "$lean" "$out/libstreamssm_tensorrt.so"
else
  echo "not tried in a registry: no qemu-aarch64-static, or kernels/arm64.sh has not run" >&2
fi
