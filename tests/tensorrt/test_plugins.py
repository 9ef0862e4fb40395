"""The plugins for TensorRT without a GPU: in real registries, and made, kept and remade from fields."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys

import plugin_builds
import pytest
from plugin_harness import (
    ATTRIBUTES,
    BUILD,
    FIELD_CHAR,
    FIELD_FLOAT32,
    FIELD_FLOAT64,
    FIELD_INT32,
    FIELD_INT64,
    INPUTS,
    NAMES,
    RUNTIME,
    STATES,
    Field,
    fields_of,
)

# ------------------------------------------------------------------ registries


@pytest.mark.parametrize("how", ["dynamic", "static"])
@pytest.mark.parametrize("major", [10, 11])
def test_a_real_registry_takes_the_library(harness_path, plugins_path, major, how):
    nvinfer = plugin_builds.lean(major)
    probe = plugin_builds.HERE / "registry_probe.py"
    command = [sys.executable, str(probe), str(harness_path), str(nvinfer), str(plugins_path), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["version"][0] == major
    # a library registers itself where the table of functions is that of its headers
    headers = json.loads(_describe(plugins_path))["tensorrt"]
    by_itself = how == "static" and headers.split(".")[0] == str(major)
    assert said["before"] == (list(NAMES) if by_itself else [])
    assert said["loaded"], done.stderr
    assert said["all"] == sorted(f"streamssm::{one} 1" for one in NAMES)
    assert said["other"] == []
    assert said["after"] == []
    assert said["again"]
    for one in NAMES:
        assert len(said["plugins"][one]["identities"]) == 1
        assert said["plugins"][one]["supports"]


def _describe(path):
    describe = ctypes.CDLL(str(path)).streamssm_tensorrt_describe
    describe.restype = ctypes.c_char_p
    return describe()


def test_the_library_describes_itself(plugins_path, loaded):
    said = json.loads(_describe(plugins_path))
    assert said["version"] == "1.2.3"
    assert said["abi"] == 1
    assert re.fullmatch(r"1\d\.\d+\.\d+", said["tensorrt"])
    assert (said["namespace"], said["plugin_version"], said["plugins"]) == ("streamssm", "1", list(NAMES))


def test_the_operators_are_those_of_the_files(name):
    """Inputs and attributes of the functions that exporting puts in every file."""
    functions = pytest.importorskip("streamssm.export.functions")
    bodies = [value for key, value in vars(functions).items() if key.isupper() and isinstance(value, str)]
    heads = [re.match(r"\s*(\w+)\s*(?:<(.*?)>)?\s*\((.*?)\)\s*=>", body, re.DOTALL) for body in bodies]
    found = {head[1]: head for head in heads if head}
    attributes, inputs = found[name][2] or "", found[name][3]
    assert [one.strip() for one in inputs.split(",")] == list(INPUTS[name])
    assert sorted(one.strip() for one in attributes.split(",") if one.strip()) == sorted(ATTRIBUTES[name])


# ------------------------------------------------------------------ attributes


def test_what_a_plugin_says_of_itself(harness, plugin, name):
    identity, metadata, kept, outputs = harness.identity(plugin).split(" | ")
    assert identity == f"streamssm::{name} 1"
    for attribute, value in ATTRIBUTES[name].items():
        assert f"{attribute}={value};" in metadata
        assert f"{attribute}:{FIELD_FLOAT32 if isinstance(value, float) else FIELD_INT32}" in kept
    assert f"streamssm_abi:{FIELD_INT32}" in kept
    assert int(outputs) == 1 + len(STATES[name])


def test_a_remade_plugin_is_the_same(harness, creator, plugin):
    for twin in (harness.clone(plugin), harness.remake(creator, plugin), harness.attach(plugin)):
        assert twin
        assert harness.identity(twin) == harness.identity(plugin)
        harness.destroy(twin)


def test_small_differences_of_an_attribute_show(harness, loaded):
    """The timing cache takes plugins of one description for the same."""
    creator = harness.creator(loaded, "LogMel")
    made = [harness.create(creator, fields_of("LogMel", eps=eps)) for eps in (1e-10, 2e-10)]
    assert len({harness.identity(plugin) for plugin in made}) == 2
    for plugin in made:
        harness.destroy(plugin)


def test_wide_fields_are_taken(harness, creator, name):
    wide = {FIELD_INT32: FIELD_INT64, FIELD_FLOAT32: FIELD_FLOAT64}
    made = harness.create(creator, [field._replace(type=wide[field.type]) for field in fields_of(name)])
    assert made, harness.log()
    same = harness.create(creator, fields_of(name))
    assert harness.identity(made) == harness.identity(same)
    harness.destroy(made)
    harness.destroy(same)


BAD_FIELDS = [
    ("CausalConv1d", [], "the attribute silu is missing"),
    ("CausalConv1d", [Field("silu", FIELD_INT32, 2)], "silu is 2, expected 0 to 1"),
    (
        "CausalConv1d",
        [Field("silu", FIELD_FLOAT32, 1.0)],
        "silu is 1 values of field type 1, expected an integer",
    ),
    (
        "CausalConv1d",
        [Field("silu", FIELD_INT32, 1, 3)],
        "silu is 3 values of field type 5, expected one value",
    ),
    (
        "CausalConv1d",
        [*fields_of("CausalConv1d"), Field("sulu", FIELD_INT32, 1)],
        "there is no attribute sulu",
    ),
    ("SelectiveScan", [Field("silu", FIELD_INT32, 1)], "there is no attribute silu"),
    ("SlidingWindowAttention", [], "the attribute scale is missing"),
    ("SlidingWindowAttention", [Field("scale", FIELD_CHAR, 1)], "expected a number"),
    ("LogMel", fields_of("LogMel", hop=0), "hop is 0, expected 1 to 2147483647"),
    ("LogMel", fields_of("LogMel", n_fft=-5), "n_fft is -5"),
]


@pytest.mark.parametrize(("name", "fields", "words"), BAD_FIELDS)
def test_bad_attributes_are_refused_with_the_layer(harness, loaded, name, fields, words):
    harness.log()
    assert harness.create(harness.creator(loaded, name), fields, layer="block.3") is None
    said = harness.log()
    assert words in said
    assert f"streamssm::{name} (block.3)" in said


@pytest.mark.parametrize("abi", [None, 0, 2])
def test_an_engine_of_another_version_is_refused(harness, creator, name, abi):
    kept = [] if abi is None else [Field("streamssm_abi", FIELD_INT32, abi)]
    harness.log()
    assert harness.create(creator, [*fields_of(name), *kept], RUNTIME) is None
    said = harness.log()
    assert f"built with version {abi or 0} of the plugins, this library has 1" in said
    assert "streamssm export" in said
    assert harness.create(creator, [*fields_of(name), *kept], BUILD)
