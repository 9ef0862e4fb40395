"""Builds the engine of a bundle on the device that will run it, and compares it with the golden vectors.

This file is copied into bundles as build.py. It runs on the device's own Python (3.10 or later) with the
TensorRT of the device, and with nothing else: no numpy, no streamssm. ``build.sh`` runs it after it has
built the plugins.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

try:  # beside this file in a bundle, or in the package
    from compare import Refusal, say, verify  # type: ignore[import-not-found]
    from local import compute_capability  # type: ignore[import-not-found]
except ImportError:
    from streamssm.tensorrt.compare_on_device import Refusal, say, verify
    from streamssm.tensorrt.local import compute_capability

HERE = os.path.dirname(os.path.abspath(__file__))
BUNDLE, ENGINE = "bundle.json", "engine.json"
CACHE = "timing.cache"
#: that of streamssm.tensorrt.folder
FORMAT = 1


Bundle = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, compare, and write engine.json; 0 if the engine may be used."""
    parser = argparse.ArgumentParser(description="Builds the engine of this bundle, and verifies it.")
    parser.add_argument("--plugins", help="the library of plugins that build.sh has built")
    given = parser.parse_args(arguments)
    try:
        run(HERE, given.plugins)
    except Refusal as refusal:
        sys.stderr.write(f"error: {refusal}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"error: {error}; is the disk full, or the folder not yours?\n")
        return 1
    return 0


def run(folder: str, plugins: str | None) -> None:
    """Everything, in the folder of the bundle."""
    bundle = read_bundle(folder)
    check_gpu(bundle)
    trt = load_tensorrt(bundle)
    logger = trt.Logger(trt.Logger.WARNING)
    if bundle["engine"]["plugins"]:
        load_plugins(trt, plugins)
    # what is left of an older build must not be taken for this one
    if os.path.exists(os.path.join(folder, ENGINE)):
        os.remove(os.path.join(folder, ENGINE))
    engines = []
    for name, onnx, blocks in chosen(bundle, trt.__version__):
        seconds = build(trt, logger, folder, name, os.path.join(folder, onnx), blocks, bundle)
        engines.append((name, seconds))
        say(f"built {name} in {seconds:.1f} s")
    built = [(name, blocks) for name, _, blocks in chosen(bundle, trt.__version__)]
    verify(trt, logger, folder, bundle["bound"], built, bundle["batch"][0])
    write_record(folder, bundle, trt.__version__, engines)
    say(f"OK. Run it: streamssm run {shlex.quote(folder)} SOURCE")


# The bundle.


def read_bundle(folder: str) -> Bundle:
    """bundle.json, with every file that it names verified."""
    try:
        with open(os.path.join(folder, BUNDLE), encoding="utf-8") as file:
            bundle: Bundle = json.load(file)
    except (OSError, ValueError) as error:
        raise Refusal(f"{BUNDLE} cannot be read ({error}); copy the bundle again") from error
    if not isinstance(bundle, dict) or bundle.get("format") != FORMAT:
        raise Refusal(f"{BUNDLE} is not of format {FORMAT}; copy the bundle again")
    for name, recorded in sorted(bundle["files"].items()):
        path = os.path.join(folder, *name.split("/"))
        if not os.path.isfile(path) or digest(path) != recorded["sha256"]:
            raise Refusal(f"{path} is missing or not the one that was packed; copy the bundle again")
    return bundle


def digest(path: str) -> str:
    """sha256 of a file."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            total.update(part)
    return total.hexdigest()


def check_gpu(bundle: Bundle) -> None:
    """Refuse another kind of GPU than the bundle is for."""
    sm, wanted = compute_capability(), bundle["engine"]["sm"]
    if sm is None:
        raise Refusal(f"there is no NVIDIA GPU here; this bundle is for sm_{wanted}")
    if sm != wanted:
        raise Refusal(
            "this GPU is sm_{}, the bundle is for sm_{} ({}); write one for it: {}".format(
                sm, wanted, bundle["engine"]["target"], bundle["command"]
            )
        )


def load_tensorrt(bundle: Bundle) -> Any:
    """The module, of a version that a graph in the bundle is for."""
    try:
        import tensorrt  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise Refusal(
            f"python3 has no TensorRT ({error}); on a Jetson: sudo apt-get install python3-libnvinfer"
        ) from error
    least = min(map(version_of, bundle["dialects"]))
    if version_of(tensorrt.__version__) < least:
        raise Refusal(
            "TensorRT {} is too old, the bundle needs {}.{} or later; upgrade JetPack".format(
                tensorrt.__version__, *least
            )
        )
    return tensorrt


def version_of(text: str) -> tuple[int, ...]:
    """Major and minor."""
    return tuple(int(part) for part in text.split(".")[:2])


def chosen(bundle: Bundle, version: str) -> list[tuple[str, str, list[int]]]:
    """Engine, ONNX file and blocks of each engine, in the newest dialect that this version knows."""
    known = [name for name in bundle["dialects"] if version_of(name) <= version_of(version)]
    files = bundle["dialects"][max(known, key=version_of)]
    return [(entry["engine"], entry["onnx"], entry["blocks"]) for entry in files]


def load_plugins(trt: Any, path: str | None) -> None:
    """Have TensorRT know the plugins."""
    if path is None or not os.path.isfile(path):
        raise Refusal(f"the plugins are not built ({path}); run build.sh, which builds them")
    registry = trt.get_plugin_registry()
    try:
        ctypes.CDLL(path)  # the library registers its creators with a TensorRT that is there
    except OSError as error:
        raise Refusal(
            f"the plugins cannot be loaded ({error}); if they are of another JetPack, remove {path} and run "
            "build.sh again"
        ) from error
    if registry.get_creator("SelectiveScan", "1", "streamssm") is None:
        registry.load_library(path)
    if registry.get_creator("SelectiveScan", "1", "streamssm") is None:
        raise Refusal(f"TensorRT {trt.__version__} did not take the plugins in {path}; build them anew")


# Building.


def build(
    trt: Any, logger: Any, folder: str, name: str, onnx: str, blocks: Sequence[int], bundle: Bundle
) -> float:
    """Compile one ONNX file to an engine; seconds."""
    builder = trt.Builder(logger)
    # from TensorRT 11 on there are no other networks, and the flag is gone
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    with open(onnx, "rb") as file:
        if not parser.parse(file.read()):
            faults = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
            raise Refusal(f"TensorRT {trt.__version__} cannot read {onnx}: {faults}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    add_profiles(builder, config, network, blocks, bundle)
    cache_path = os.path.join(folder, CACHE)
    cache = use_cache(config, read(cache_path) if os.path.exists(cache_path) else b"")
    began = time.time()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Refusal(f"TensorRT {trt.__version__} could not build {onnx}; its own words are above")
    with open(os.path.join(folder, name), "wb") as file:
        file.write(bytes(plan))
    with open(cache_path, "wb") as file:
        file.write(bytes(cache.serialize()))
    return round(time.time() - began, 3)


def use_cache(config: Any, known: bytes) -> Any:
    """The cache of measured kernels; one of another TensorRT is not taken, and an empty one is used."""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def read(path: str) -> bytes:
    """A file's bytes."""
    with open(path, "rb") as file:
        return file.read()


def add_profiles(builder: Any, config: Any, network: Any, blocks: Sequence[int], bundle: Bundle) -> None:
    """A profile for each block, if the graph leaves anything open."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    if not any(-1 in tuple(tensor.shape) for tensor in tensors):
        return
    least, usual, most = bundle["batch"]
    for block in blocks:
        profile = builder.create_optimization_profile()
        for tensor in tensors:
            items = block if tensor.name == bundle["engine"]["input"] else None
            shapes = [filled(tuple(tensor.shape), batch, items) for batch in (least, usual, most)]
            profile.set_shape(tensor.name, *shapes)
        config.add_optimization_profile(profile)


def filled(dims: Sequence[int], batch: int, items: int | None) -> tuple[int, ...]:
    """A shape with what it leaves open: the number of sequences first, then the block."""
    shape = list(dims)
    if shape and shape[0] == -1:
        shape[0] = batch
    if items is not None and shape[1] == -1:
        shape[1] = items
    return tuple(shape)


# The record.


def write_record(folder: str, bundle: Bundle, version: str, engines: Sequence[tuple[str, float]]) -> None:
    """engine.json: from here on the folder is an engine folder."""
    record: dict[str, Any] = dict(bundle["engine"], version=version, profiles=[], engines=[])
    for name, seconds in engines:
        path = os.path.join(folder, name)
        size = os.path.getsize(path)
        record["engines"].append({"name": name, "size": size, "sha256": digest(path), "seconds": seconds})
    for name, _, blocks in chosen(bundle, version):
        for index, block in enumerate(blocks):
            entry = {"engine": name, "index": index, "block": block, "batch": bundle["batch"]}
            record["profiles"].append(entry)
    draft = os.path.join(folder, "." + ENGINE)
    with open(draft, "w", encoding="utf-8") as file:
        json.dump(record, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, os.path.join(folder, ENGINE))


if __name__ == "__main__":
    sys.exit(main())
