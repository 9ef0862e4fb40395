"""What the plugins answer a builder, and what they ask of the CUDA kernels, with a stand-in for those."""

from __future__ import annotations

import functools
import math

import pytest
from plugin_cases import API_TYPES, SHAPES, SIZES, TYPES, shapes_of, tensors_of, types_of
from plugin_harness import (
    BFLOAT16,
    CHW32,
    FLOAT16,
    FLOAT32,
    INPUTS,
    INT8,
    INT32,
    INT64,
    LINEAR,
    NO_BOUNDS,
    OPEN,
    SAME_BOUNDS,
    STATES,
    fields_of,
)

# ------------------------------------------------------- formats, types, shapes


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("data", TYPES)
def test_formats(harness, plugin, name, data, rows):
    inputs, outputs = types_of(name, data, rows)
    everything, count = inputs + outputs, len(inputs)
    assert harness.supports(plugin, everything, count)
    assert harness.types(plugin, inputs, len(outputs)) == outputs
    for at, kind in enumerate(everything):
        for other in {FLOAT32, FLOAT16, BFLOAT16, INT8, INT32, INT64} - {kind}:
            if at == 0 and other in TYPES:
                continue  # the first input decides
            assert not harness.supports(plugin, [*everything[:at], other, *everything[at + 1 :]], count)
        formats = [LINEAR] * len(everything)
        formats[at] = CHW32
        assert not harness.supports(plugin, everything, count, formats)


def test_wrong_numbers_of_tensors(harness, plugin, name):
    inputs, outputs = types_of(name, FLOAT32)
    assert not harness.supports(plugin, [FLOAT32, *inputs, INT32, INT32, *outputs], len(inputs) + 3)
    assert not harness.supports(plugin, [*inputs[1:], *outputs], len(inputs) - 1)
    assert harness.types(plugin, inputs[:-1], len(outputs)) is None
    assert harness.types(plugin, inputs, len(outputs) + 1) is None
    assert harness.shapes(plugin, shapes_of(name)[:-1], len(outputs)) is None
    assert "inputs and" in harness.log()


def test_output_shapes(harness, plugin, name):
    given, made = tensors_of(name)
    shapes = [tensor.shape for tensor in given]
    assert harness.shapes(plugin, shapes, len(made)) == [tensor.shape for tensor in made]


def test_a_pool_has_its_own_number_of_slots(harness, plugin, name):
    given, made = tensors_of(name, rows=2)
    for tensor in (given[list(INPUTS[name]).index(state)] for state in STATES[name]):
        tensor.dims[0] = 64
    for tensor in made[1:]:
        tensor.dims[0] = 64
    assert harness.configure(plugin, given, made), harness.log()
    assert harness.shape_change(plugin, given, made), harness.log()
    shapes = [tensor.shape for tensor in given]
    assert harness.shapes(plugin, shapes, len(made)) == [tensor.shape for tensor in made]
    given[-1].dims[0] = 3
    assert not harness.shape_change(plugin, given, made)
    assert "lengths is [3], expected [B] = [2]" in harness.log()


def _free(name: str, at: int, letter: str) -> bool:
    """Whether a size is found nowhere else, so that any value is a right one."""
    if letter == "k" or (name, letter) in {("LogMel", "F"), ("CausalConv1d", "K")}:
        return False  # depends on another size
    others = [letters for i, letters in enumerate(SHAPES[name]) if i != at]
    return not any(letter in letters for letters in others)


@pytest.mark.parametrize("step", ["configure", "configure open", "shape_change"])
def test_every_wrong_shape_is_refused(harness, plugin, name, step):
    given, made = tensors_of(name)
    ask = getattr(harness, step.split()[0])
    if step == "configure open":  # what counts is the optimum, not the bounds
        ask = functools.partial(ask, bounds=OPEN)
    assert ask(plugin, given, made), harness.log()
    for at, letters in enumerate(SHAPES[name]):
        for axis, letter in enumerate(letters):
            if _free(name, at, letter):
                continue
            given[at].dims[axis] += 1
            assert not ask(plugin, given, made), (letters, letter)
            said = harness.log()
            assert "expected" in said
            assert f"streamssm::{name} (layer)" in said
            given[at].dims[axis] -= 1
        given[at].rank += 1
        assert not ask(plugin, given, made)
        given[at].rank -= 1
    assert ask(plugin, given, made), harness.log()


MISFITS = [
    ("LogMel", 0, 1, 7, "x is [2, 7], expected a multiple of hop = 4"),
    ("LogMel", 1, 0, 17, "window is [17], expected 1 to n_fft = 16"),
    ("LogMel", 3, 1, 10, "past is [2, 10], expected at least 11 samples for a window of 15"),
    ("SlidingWindowAttention", 3, 0, 6, "inv_freq is [6], expected at most dh/2 = 5"),
    ("SlidingWindowAttention", 0, 2, 5, "expected query heads that are a multiple of the key heads"),
]


@pytest.mark.parametrize(("name", "at", "axis", "size", "words"), MISFITS)
def test_shapes_that_match_and_do_not_fit(harness, plugin, name, at, axis, size, words):
    given, made = tensors_of(name)
    given[at].dims[axis] = size
    assert not harness.shape_change(plugin, given, made)
    assert words in harness.log()


@pytest.mark.parametrize("bounds", [SAME_BOUNDS, NO_BOUNDS])
def test_open_sizes_are_no_error_when_configuring(harness, plugin, name, bounds):
    given, made = tensors_of(name)
    given[0].dims[1] = -1
    assert harness.configure(plugin, given, made, bounds), harness.log()
    given[1].rank = -1
    assert harness.configure(plugin, given, made, bounds), harness.log()


def test_shapes_that_cannot_be(harness, plugin, name):
    """An unknown rank is told, and nothing is read by it."""
    for at in range(len(INPUTS[name])):
        given, made = tensors_of(name)
        given[at].rank = -1
        assert not harness.shape_change(plugin, given, made)
        assert "a tensor has -1 dimensions" in harness.log()


@pytest.mark.parametrize(("at", "shape"), [(0, (2,)), (2, (9,)), (0, ()), (0, (2, 8, 1))])
def test_dimensions_that_the_output_takes_from_must_be_there(harness, loaded, at, shape):
    plugin = harness.create(harness.creator(loaded, "LogMel"), fields_of("LogMel"))
    shapes = shapes_of("LogMel")
    shapes[at] = shape
    assert harness.shapes(plugin, shapes, 2) is None
    assert "expected [B, T] and [n_fft/2 + 1, M]" in harness.log()
    harness.destroy(plugin)


def test_tensors_without_bounds_are_checked_as_they_are(harness, plugin, name):
    given, made = tensors_of(name)
    assert harness.configure(plugin, given, made, NO_BOUNDS), harness.log()
    given[0].rank += 1
    assert not harness.configure(plugin, given, made, NO_BOUNDS)


# --------------------------------------------------------------------- launches


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("data", TYPES)
def test_what_is_asked_of_the_gpu(harness, fake, plugin, name, data, rows):
    given, made = tensors_of(name, data, rows)
    assert harness.shape_change(plugin, given, made), harness.log()
    fake.asked()
    assert harness.enqueue(plugin, given, made, 77), harness.log()
    line = fake.asked()[-1]
    words = line.split()
    slots, lengths = ([tensor.data for tensor in given[len(INPUTS[name]) :]] + [0, 0])[:2]
    assert words[1:5] == ["B=2", "T=8", f"slots={slots}", f"lengths={lengths}"]
    sizes = [int(word) for word in words[5:] if "=" not in word]
    s = SIZES
    expected = {
        "CausalConv1d": [s["D"], s["K"], API_TYPES[data], 1],
        "SelectiveScan": [s["D"], s["N"], API_TYPES[data]],
        "StateSpaceDual": [s["H"], s["P"], s["G"], s["N"], API_TYPES[data]],
        "SlidingWindowAttention": [s["Q"], s["V"], s["d"], s["W"], s["R"], API_TYPES[data]],
        "LogMel": [4, 16, s["L"], s["M"], s["P"], API_TYPES[data]],
    }[name]
    assert sizes[: len(expected)] == expected
    addresses = {tensor.data for tensor in [*given[: len(INPUTS[name])], *made]}
    if name == "SlidingWindowAttention":
        addresses.remove(given[3].data)  # goes into the table
    assert {size for size in sizes[len(expected) :] if size} == addresses
    if name in ("SlidingWindowAttention", "LogMel"):
        assert words[-1] in ("scale=0.250000", "eps=0.500000")


def test_the_order_of_the_tensors(harness, fake, loaded):
    """Each input where the kernel expects it: D of a scan is its skip, not its channels."""
    orders = {
        "CausalConv1d": ["x", "weight", "bias", "state", "next", "y"],
        "SelectiveScan": ["x", "dt", "B", "C", "z", "A", "D", "dt_bias", "state", "next", "y"],
        "StateSpaceDual": ["x", "dt", "B", "C", "A", "D", "state", "next", "y"],
        "SlidingWindowAttention": ["q", "k", "v", "key", "value", "next_key", "next_value", "position",
                                   "next_position", "y"],
        "LogMel": ["x", "window", "filters", "past", "next", "y"],
    }  # fmt: skip
    for name, order in orders.items():
        plugin = harness.create(harness.creator(loaded, name), fields_of(name))
        given, made = tensors_of(name)
        assert harness.shape_change(plugin, given, made)
        fake.asked()
        assert harness.enqueue(plugin, given, made), harness.log()
        asked = [int(word) for word in fake.asked()[-1].split()[5:] if "=" not in word]
        outputs = ["y", "next"] if len(made) == 2 else ["y", "next_key", "next_value", "next_position"]
        named = {
            tensor.data: one for one, tensor in zip([*INPUTS[name], *outputs], [*given, *made], strict=True)
        }
        assert [named[address] for address in asked if address in named] == order
        harness.destroy(plugin)


def test_a_state_in_place_apart_and_astray(harness, fake, plugin, name):
    given, made = tensors_of(name)
    assert harness.shape_change(plugin, given, made)
    state, following = given[list(INPUTS[name]).index(STATES[name][0])], made[1]
    size = (8 if state.type == INT64 else 4) * math.prod(state.shape)
    for address in (state.data, state.data + size, state.data - size):
        following.data = address
        assert harness.enqueue(plugin, given, made), harness.log()
    fake.asked()
    for address in (state.data + 4, state.data + size - 4, state.data - size + 4):
        following.data = address
        assert not harness.enqueue(plugin, given, made)
        assert f"{STATES[name][0]} and its next overlap" in harness.log()
    assert fake.asked() == []


def test_a_launch_that_fails_is_told(harness, fake, plugin, name):
    given, made = tensors_of(name)
    assert harness.shape_change(plugin, given, made)
    fake.fail()
    assert not harness.enqueue(plugin, given, made)
    assert f"streamssm::{name} (layer): the GPU is on fire" in harness.log()
    assert harness.enqueue(plugin, given, made), harness.log()


def test_refusals_reach_the_recorder_which_is_held(harness, plugin, name):
    before = harness.recorder_references()
    attached = harness.attach_recorded(plugin)
    assert harness.recorder_references() == before + 1
    twin = harness.clone(attached)
    assert harness.recorder_references() == before + 2
    given, made = tensors_of(name)
    given[0].rank += 1
    harness.recorded()
    for one in (attached, twin):
        assert not harness.shape_change(one, given, made)
        said = harness.recorded()
        assert f"streamssm::{name} (layer)" in said
        assert "expected" in said
    for one in (attached, twin):
        harness.destroy(one)
    assert harness.recorder_references() == before
    harness.log()


def test_a_table_that_was_not_filled_is_made_again(harness, fake, loaded):
    """Not taken for a good one when the shapes change next."""
    for name, filling in (("LogMel", "roots 16"), ("SlidingWindowAttention", "forget 420")):
        plugin = harness.create(harness.creator(loaded, name), fields_of(name))
        given, made = tensors_of(name)
        fake.asked()
        fake.fail()
        assert not harness.shape_change(plugin, given, made)
        assert "the GPU is on fire" in harness.log()
        assert not harness.enqueue(plugin, given, made)
        assert "onShapeChange comes first" in harness.log()
        assert harness.shape_change(plugin, given, made), harness.log()
        assert fake.asked().count(filling) == 2
        assert harness.enqueue(plugin, given, made), harness.log()
        harness.destroy(plugin)
        assert fake.asked()[-1] == "give"


def test_rotations_of_other_sizes_are_forgotten(harness, fake, loaded):
    """As many numbers in another layout are not the same table."""
    name = "SlidingWindowAttention"
    plugin = harness.create(harness.creator(loaded, name), fields_of(name))
    given, made = tensors_of(name)
    for half, window in ((2, 6), (3, 4), (0, 4), (3, 4)):
        given[3].dims[0] = half
        for state in (*given[4:6], *made[1:3]):
            state.dims[2] = window
        for _ in range(2):
            assert harness.shape_change(plugin, given, made), harness.log()
            assert harness.enqueue(plugin, given, made), harness.log()
    assert [line for line in fake.asked() if line.startswith("forget")] == [
        "forget 144", "forget 144", "forget 0", "forget 144",
    ]  # fmt: skip
    harness.destroy(plugin)


def test_a_plugin_without_tables_gives_nothing_back(harness, fake, creator, name):
    harness.destroy(harness.create(creator, fields_of(name)))
    assert fake.asked() == []


def test_tables_belong_to_a_context(harness, fake, loaded):
    mel = harness.create(harness.creator(loaded, "LogMel"), fields_of("LogMel"))
    given, made = tensors_of("LogMel")
    assert not harness.enqueue(mel, given, made)
    assert "onShapeChange comes first" in harness.log()
    for _ in range(2):  # the roots are made once
        assert harness.shape_change(mel, given, made)
        assert harness.enqueue(mel, given, made), harness.log()
    assert [line for line in fake.asked() if line.startswith("roots")] == ["roots 16"]
    twin = harness.attach(mel)
    assert not harness.enqueue(twin, given, made)
    harness.log()
    assert harness.shape_change(twin, given, made)
    assert "roots 16" in fake.asked()
    for plugin in (twin, mel):
        harness.destroy(plugin)


def test_rotation_is_looked_at_in_every_call(harness, fake, loaded):
    """Whether inv_freq changed is seen on the device, so that a recorded graph sees it as well."""
    plugin = harness.create(
        harness.creator(loaded, "SlidingWindowAttention"), fields_of("SlidingWindowAttention")
    )
    given, made = tensors_of("SlidingWindowAttention")
    assert harness.shape_change(plugin, given, made)
    for _ in range(2):
        assert harness.enqueue(plugin, given, made), harness.log()
    assert [line for line in fake.asked() if line.startswith("rotation")] == ["rotation 5 7"] * 2
    harness.destroy(plugin)
