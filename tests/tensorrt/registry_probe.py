"""What a real registry of TensorRT does with the plugin library, in a process of its own.

python registry_probe.py HARNESS NVINFER PLUGINS [static]

The library is loaded into the registry (or, if ``static``, loaded before and left to register itself),
every plugin is made from fields, cloned, kept and remade, and asked for its formats. One JSON line says
how it went.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))
from plugin_harness import FLOAT32, INPUTS, INT64, NAMES, STATES, Harness, fields_of


def formats_of(name: str) -> tuple[list[int], int]:
    """Types of all inputs and outputs in float32, and how many are inputs."""
    inputs = [INT64 if kind == "int64" else FLOAT32 for kind in INPUTS[name].values()]
    outputs = [FLOAT32] + [INT64 if INPUTS[name][state] == "int64" else FLOAT32 for state in STATES[name]]
    return inputs + outputs, len(inputs)


def try_plugin(harness: Harness, creator: int, name: str) -> dict[str, object]:
    """One plugin through its life."""
    made = harness.create(creator, fields_of(name))
    assert made, harness.log()
    twin, remade, attached = harness.clone(made), harness.remake(creator, made), harness.attach(made)
    assert twin, harness.log()
    assert remade, harness.log()
    assert attached, harness.log()
    identities = {harness.identity(plugin) for plugin in (made, twin, remade, attached)}
    supports = all(harness.supports(plugin, *formats_of(name)) for plugin in (made, twin, remade))
    for plugin in (made, twin, remade, attached):
        harness.destroy(plugin)
    return {"identities": sorted(identities), "supports": supports, "fields": harness.attributes(creator)}


def main(harness_path: str, nvinfer: str, plugins: str, how: str = "dynamic") -> None:
    """See above."""
    harness = Harness(harness_path)
    registry, version = harness.registry(nvinfer)
    if how == "static":
        ctypes.CDLL(plugins)
    found_before = [name for name in NAMES if harness.find(registry, name)]
    handle = harness.load(registry, plugins)
    found = {name: harness.find(registry, name) for name in NAMES}
    result = {
        "version": version,
        "before": found_before,
        "loaded": bool(handle),
        "all": sorted(one for one in harness.all(registry) if one.startswith("streamssm::")),
        "other": [
            name
            for name in NAMES
            if harness.find(registry, name, "2") or harness.find(registry, name, "1", "")
        ],
        "plugins": {name: try_plugin(harness, creator, name) for name, creator in found.items() if creator},
    }
    if handle:
        harness.unload(registry, handle)
        result["after"] = [name for name in NAMES if harness.find(registry, name)]
        again = harness.load(registry, plugins)
        result["again"] = bool(again) and all(harness.find(registry, name) for name in NAMES)
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
