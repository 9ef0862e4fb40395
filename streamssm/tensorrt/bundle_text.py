"""What people and the shell read in a bundle: README.md and build.sh."""

from __future__ import annotations

from collections.abc import Sequence

from streamssm.tensorrt.folder import EngineRecord

#: what runs engines for a Python that TensorRT has no module for, in the folder of sources
ENGINE = "tensorrt/engine"
#: the cross-built library
PLUGINS = "plugins/libstreamssm_tensorrt.aarch64.so"


def build_script(engine: EngineRecord) -> str:
    """``build.sh``."""
    if not engine.plugins:
        return _HEAD + _TAIL
    text = _HEAD + _PLUGINS + _TAIL
    values = {"SM": str(engine.sm), "VERSION": engine.plugin_version, "PACKED": PLUGINS}
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


_HEAD = """\
#!/bin/sh
# Builds the engine of this bundle on the device that will run it, and compares it with the golden vectors.
#   sh build.sh
# PYTHON, JOBS, CUDA_HOME and TENSORRT_ROOT say which Python to use, how many files to compile at once, and
# where CUDA and the headers of TensorRT are, if not where JetPack puts them.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
cuda=${CUDA_HOME:-/usr/local/cuda}
plugins=
"""
_PLUGINS = """
# on a fresh JetPack CUDA is not in the path
if [ -d "$cuda/bin" ]; then PATH=$cuda/bin:$PATH; fi
plugins=$PWD/plugins/libstreamssm_tensorrt.so
if command -v nvcc >/dev/null && command -v cmake >/dev/null; then
  mkdir -p build plugins
  # after an upgrade of CUDA or TensorRT nothing of what was built before will do
  tensorrt=$("$python" -c 'import tensorrt; print(tensorrt.__version__)' 2>/dev/null || true)
  tools="$(nvcc --version | tail -n 1) $tensorrt"
  if [ "$(cat build/tools 2>/dev/null)" != "$tools" ]; then rm -rf build/plugins "$plugins"; fi
  echo "$tools" >build/tools
  cmake -S kernels/tensorrt -B build/plugins -DCMAKE_CUDA_ARCHITECTURES=@SM@ \\
    -DSTREAMSSM_VERSION=@VERSION@ ${TENSORRT_ROOT:+-DTENSORRT_ROOT="$TENSORRT_ROOT"}
  cmake --build build/plugins --target streamssm_tensorrt -j "${JOBS:-2}"
  find build/plugins -name libstreamssm_tensorrt.so -exec cp {} "$plugins" \\;
elif [ -e "$plugins" ]; then
  echo "plugins: $plugins, built before"
elif [ -e @PACKED@ ] && [ "$(uname -m)" = aarch64 ]; then
  echo "plugins: no nvcc or no cmake here, so the library that was built elsewhere, for CUDA 13"
  plugins=$PWD/@PACKED@
else
  echo "error: the plugins need nvcc and cmake: sudo apt-get install nvidia-jetpack cmake" >&2
  exit 1
fi
"""
_TAIL = """
"$python" build.py ${plugins:+--plugins "$plugins"}
if [ -n "$plugins" ]; then
  echo "Programs find the plugins by: export STREAMSSM_TENSORRT_PLUGINS='$plugins'"
fi

# for a Python that JetPack's TensorRT has no module for; nothing else needs it
engine=$PWD/plugins/libstreamssm_engine.so
source=kernels/tensorrt/engine/engine.cpp
compiler=${CXX:-g++}
if [ -e "$source" ] && command -v "$compiler" >/dev/null; then
  mkdir -p plugins
  if "$compiler" -std=c++17 -O2 -shared -fPIC -fvisibility=hidden -I"$cuda/include" \\
    ${TENSORRT_ROOT:+-I"$TENSORRT_ROOT/include" -L"$TENSORRT_ROOT/lib"} \\
    "$source" -lnvinfer -o "$engine" 2>plugins/engine.log; then
    echo "A Python without TensorRT's module runs it by: export STREAMSSM_TENSORRT_ENGINE='$engine'"
  else
    echo "A Python without TensorRT's module cannot run it here: plugins/engine.log says why"
  fi
fi
"""


def readme(engine: EngineRecord, title: str, versions: Sequence[str]) -> str:
    """``README.md``."""
    name = f"{engine.name}.{engine.target}"
    needs = ""
    operators = "The operators of streamssm are written in TensorRT's own; no plugins are needed."
    if engine.plugins:
        needs = (
            ";\nthe CUDA compiler, cmake and TensorRT's headers: `sudo apt-get install nvidia-jetpack cmake`"
        )
        operators = (
            "The operators of streamssm run as plugins, whose sources are in `kernels/`. Programs find the\n"
            "built library by `export STREAMSSM_TENSORRT_PLUGINS=.../plugins/libstreamssm_tensorrt.so`."
        )
    return f"""\
# {engine.name} for {title}

Copy this folder to the device and run

    sh build.sh

It builds the engine, runs the golden vectors through it, prints the differences, and `OK`. Without `OK`
there is no engine. It takes some minutes, most of them for compiling. Needed on the device:
TensorRT {versions[0]} or later with its Python module, `sudo apt-get install python3-libnvinfer`{needs}.

Then the folder is an engine, for Python 3.11 or later:

    streamssm run {name} SOURCE
    model = streamssm.load("{name}")

Where that Python has no module of TensorRT's (JetPack 6 has one for 3.10), first
`export STREAMSSM_TENSORRT_ENGINE=.../plugins/libstreamssm_engine.so`, as `build.sh` says.

{operators}

An engine runs on the kind of GPU and on the version of TensorRT that built it: run `build.sh` again after an
upgrade of JetPack. Graphs are here as TensorRT {" and ".join(versions)} read them; products with weights are
{engine.precision}, states float32.

Written by `{engine.command()}` ({engine.producer}) from model {engine.model_sha256}.
"""
