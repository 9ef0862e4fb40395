#!/bin/sh
# Builds libstreamssm_cuda.so with nvcc. From the repository root:  sh kernels/cuda/build.sh [FOLDER]
# ARCHS names the GPUs (default: all that are supported; the newest also as PTX for later ones).
set -eu
out=${1:-build/cuda}
archs=${ARCHS:-"75 80 86 89 90 100 120"}
mkdir -p "$out"
flags="-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden --threads 0"
last=
for arch in $archs; do
  flags="$flags -gencode=arch=compute_$arch,code=sm_$arch"
  last=$arch
done
flags="$flags -gencode=arch=compute_$last,code=compute_$last"
objects=
jobs=
for source in kernels/cuda/*.cu; do
  object=$out/$(basename "$source" .cu).o
  objects="$objects $object"
  [ "$object" -nt "$source" ] && [ -z "$(find kernels/cuda -name '*.*h' -newer "$object")" ] && continue
  # shellcheck disable=SC2086
  nvcc $flags -c "$source" -o "$object" &
  jobs="$jobs $!"
done
for job in $jobs; do wait "$job"; done
# shellcheck disable=SC2086
nvcc -shared -cudart static -o "$out/libstreamssm_cuda.so" $objects
echo "$out/libstreamssm_cuda.so"
