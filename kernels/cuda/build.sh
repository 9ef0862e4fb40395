#!/bin/sh
# Builds libstreamssm_cuda.so with nvcc. From the repository root:  sh kernels/cuda/build.sh [FOLDER]
# ARCHS names the GPUs (default: all that are supported; the newest also as PTX for later ones), JOBS how
# many sources are compiled at a time.
set -eu
out=${1:-build/cuda}
archs=${ARCHS:-"75 80 86 89 90 100 120"}
jobs=${JOBS:-4}
mkdir -p "$out"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
flags="-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden"
flags="$flags -DSTREAMSSM_VERSION=\"$version\" -DSTREAMSSM_CUDA_ARCHS=\"$(echo "$archs" | tr ' ' ,)\""
last=
for arch in $archs; do
  flags="$flags -gencode=arch=compute_$arch,code=sm_$arch"
  last=$arch
done
flags="$flags -gencode=arch=compute_$last,code=compute_$last"
# objects that were made in another way, for other GPUs say, are of no use
made="$(command -v nvcc) $flags"
[ "$(cat "$out/flags" 2>/dev/null)" = "$made" ] || rm -f "$out"/*.o
echo "$made" >"$out/flags"
objects=
running=
count=0
# Stops if one of those that run has failed; its object, of an older source, must not be linked.
finish() {
  for job in $running; do
    wait "$job" || exit 1
  done
  running=
}
for source in kernels/cuda/*.cu kernels/ort/cuda_*.cpp kernels/ort/lent.cpp; do
  object=$out/$(basename "$source").o
  objects="$objects $object"
  [ "$object" -nt "$source" ] && [ -z "$(find kernels/cuda kernels/ort -name '*.*h' -newer "$object")" ] &&
    [ -z "$(find kernels/ort -name '*.h' -newer "$object")" ] && continue
  # shellcheck disable=SC2086
  nvcc $flags -c "$source" -o "$object" &
  running="$running $!"
  count=$((count + 1))
  [ $((count % jobs)) -ne 0 ] || finish
done
finish
# shellcheck disable=SC2086
nvcc -shared -cudart static -ldl -o "$out/libstreamssm_cuda.so" $objects
echo "$out/libstreamssm_cuda.so"
