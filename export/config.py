"""A whole model from a small JSON or TOML config.

    input    {"kind": "features", "size": 8, "rate": 50}
             {"kind": "samples", "rate": 16000, "front_end": {"type": "log_mel", "window": 400, ...}}
             {"kind": "tokens", "vocabulary": 256, "alphabet": "bytes"}; or nucleotides, or none
             features and samples may add "normalise": {"time_constant": 100}
    stem     options of one CausalConv1d to d_model, or a list of them; a Linear without it
    pattern  the mixers, with their options under "mamba", "mamba2", "swa", "gru", "lstm";
             "d_model", "mlp", "norm" and "eps" as in HybridStack
    head     {"size": 4, "activation": "softmax", "labels": [...], "bias": true, "tied": false}
    heads    several of them by name, instead of "head"
    and for the file: name, description, license, block, events

Every key is checked: an unknown one is refused with the list of those that exist.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from streamssm.errors import LayerError
from streamssm.export.describe import OutputSpec
from streamssm.export.layers.activation import activation_kind
from streamssm.export.layers.base import StreamingLayer, output_shape, require_whole
from streamssm.export.layers.channel import Channel
from streamssm.export.layers.containers import Sequential
from streamssm.export.layers.conv import CausalConv1d
from streamssm.export.layers.embedding import Embedding
from streamssm.export.layers.head import Head
from streamssm.export.layers.heads import Heads
from streamssm.export.layers.hybrid import MIXERS, SET_BY_STACK, HybridStack
from streamssm.export.layers.linear import Linear
from streamssm.export.layers.log_mel import LogMel
from streamssm.export.layers.mlp import GatedMLP
from streamssm.export.layers.running_norm import RunningNorm
from streamssm.manifest import EventRule

Config = Mapping[str, Any]
Named = dict[str, StreamingLayer]

_STACK_KEYS = ("pattern", "d_model", *MIXERS, "mlp", "norm", "eps")
_FILE_KEYS = ("name", "description", "license", "block", "events")
_TOP_KEYS = ("input", "stem", "head", "heads", *_STACK_KEYS, *_FILE_KEYS)
_HEAD_KEYS = ("size", "activation", "labels", "bias", "tied")
_INPUT_KEYS = {
    "features": ("kind", "size", "rate", "normalise"),
    "samples": ("kind", "rate", "front_end", "normalise"),
    "tokens": ("kind", "vocabulary", "rate", "alphabet"),
}


def build(config: Config) -> StreamingLayer:
    """The model that a config describes, with fresh weights.

    Raises:
        LayerError: a key is unknown or missing, or a layer refuses its options.
    """
    _check_keys("config", config, _TOP_KEYS)
    layers, width = _front(_input(config))
    d_model = _required("config", config, "d_model")
    layers |= _stem(config, width, d_model)
    layers["backbone"] = _backbone(config)
    heads = _head_configs(config)
    embedding = layers.get("embedding")
    built = {name: _head(f"head {name!r}", head, d_model, embedding) for name, head in heads.items()}
    return Sequential(layers | ({"heads": Heads(built)} if "heads" in config else built))


def model_options(config: Config) -> dict[str, Any]:
    """What else the config says about the model: keyword arguments of :func:`export`.

    Raises:
        LayerError: a key is unknown or missing, or an event rule is malformed.
    """
    _check_keys("config", config, _TOP_KEYS)
    source = _input(config)
    heads = _head_configs(config)
    outputs = tuple(
        OutputSpec(name, _output_kind(head), tuple(head.get("labels", ()))) for name, head in heads.items()
    )
    options = {key: config[key] for key in ("name", "description", "license", "block") if key in config}
    options |= {key: source[key] for key in ("kind", "rate", "vocabulary", "alphabet") if key in source}
    if "front_end" in source:
        options["front_end"] = source["front_end"]["type"]
    if "events" in config:
        options["events"] = _events(config["events"])
    return options | {"outputs": outputs or (OutputSpec("output"),)}


# --- the parts of a model -----------------------------------------------------------------


def _input(config: Config) -> Config:
    source = _table("input", _required("config", config, "input"))
    kind = _required("input", source, "kind")
    if kind not in _INPUT_KEYS:
        raise LayerError(f"input: kind {kind!r} is unknown; choose among {', '.join(_INPUT_KEYS)}")
    _check_keys(f"input of kind {kind!r}", source, _INPUT_KEYS[kind])
    return source


def _front(source: Config) -> tuple[Named, int]:
    """The layers before the stem, and the width of what they give."""
    layers: Named = {}
    if source["kind"] == "tokens":
        vocabulary = _required("input", source, "vocabulary")
        require_whole("input", vocabulary=vocabulary)
        return layers, vocabulary
    if source["kind"] == "samples":
        layers["front_end"] = _front_end(source)
        (width,) = output_shape(layers["front_end"], ())
    else:
        width = _required("input", source, "size")
        require_whole("input", size=width)
    if "normalise" in source:
        layers["normalise"] = _make("input.normalise", RunningNorm, source["normalise"], dim=width)
    return layers, width


def _front_end(source: Config) -> StreamingLayer:
    options = dict(_table("input.front_end", _required("input", source, "front_end")))
    kind = options.pop("type", None)
    if kind == "log_mel":
        return _make("input.front_end", LogMel, options, sample_rate=_required("input", source, "rate"))
    if kind == "conv":
        return Sequential(Channel(), _make("input.front_end", CausalConv1d, options, in_channels=1))
    raise LayerError(f"input.front_end: type {kind!r} is unknown; choose log_mel or conv")


def _stem(config: Config, width: int, d_model: int) -> Named:
    """From ``width`` to d_model."""
    if config["input"]["kind"] == "tokens":
        if "stem" in config:
            raise LayerError("config: tokens go through an embedding; remove stem")
        return {"embedding": Embedding(width, d_model)}
    if "stem" not in config:
        return {"stem": Linear(width, d_model)}
    stems = config["stem"] if isinstance(config["stem"], list) else [config["stem"]]
    layers: Named = {}
    for index, options in enumerate(stems):
        sizes = {"in_channels": d_model if index else width, "out_channels": d_model}
        layers[f"stem{index}"] = _make("stem", CausalConv1d, options, **sizes)
    return layers


def _backbone(config: Config) -> StreamingLayer:
    for kind, mixer in MIXERS.items():
        _check_options(kind, mixer, config.get(kind, {}), SET_BY_STACK)
    if config.get("mlp") is not None:
        _check_options("mlp", GatedMLP, config["mlp"], SET_BY_STACK)
    _required("config", config, "pattern")
    return _call("config", HybridStack, {key: config[key] for key in _STACK_KEYS if key in config})


def _head_configs(config: Config) -> dict[str, Config]:
    """Heads by output name; none when the model ends in features."""
    if "head" in config and "heads" in config:
        raise LayerError("config: give either head or heads")
    if "heads" in config:
        heads = dict(_table("heads", config["heads"]))
    else:
        heads = {"head": config["head"]} if "head" in config else {}
    for name, head in heads.items():
        _check_keys(f"head {name!r}", _table(f"head {name!r}", head), _HEAD_KEYS)
    return heads


def _head(where: str, options: Config, d_model: int, embedding: StreamingLayer | None) -> Head:
    labels = options.get("labels", ())
    size = options.get("size", len(labels) or None)
    if size is None:
        raise LayerError(f"{where}: size is missing; give it or labels")
    if labels and len(labels) != size:
        raise LayerError(f"{where}: {len(labels)} labels do not name {size} columns")
    tied = options.get("tied", False)
    if tied and not isinstance(embedding, Embedding):
        raise LayerError(f"{where}: tied needs an input of kind 'tokens', whose embedding it shares")
    arguments = {"activation": options.get("activation"), "tied": embedding if tied else None}
    return Head(d_model, size, bias=options.get("bias", True), **arguments)


def _output_kind(head: Config) -> Any:
    activation = head.get("activation")
    return "logits" if activation is None else activation_kind(activation)


def _events(rule: Config) -> EventRule:
    try:
        return msgspec.convert(dict(_table("events", rule)), EventRule)
    except msgspec.ValidationError as error:
        raise LayerError(f"events: {error}") from error


# --- checks -------------------------------------------------------------------------------


def _table(where: str, value: Any) -> Config:
    if not isinstance(value, Mapping):
        raise LayerError(f"{where}: {value!r} must be a table of options")
    return value


def _required(where: str, config: Config, key: str) -> Any:
    if key not in config:
        raise LayerError(f"{where}: {key} is missing")
    return config[key]


def _check_keys(where: str, config: Config, allowed: Collection[str]) -> None:
    for key in _table(where, config):
        if key not in allowed:
            raise LayerError(f"{where}: {key!r} is unknown; allowed are {', '.join(allowed)}")


def _check_options(where: str, layer: Callable[..., Any], options: Config, reserved: Collection[str]) -> None:
    """Options are the arguments of the layer, less those that the model sets itself."""
    _check_keys(where, options, [key for key in inspect.signature(layer).parameters if key not in reserved])


def _make(where: str, layer: Callable[..., Any], options: Config, **fixed: Any) -> Any:
    _check_options(where, layer, options, fixed)
    return _call(where, layer, {**fixed, **options})


def _call(where: str, layer: Callable[..., Any], options: Config) -> Any:
    try:
        return layer(**options)
    except TypeError as error:
        raise LayerError(f"{where}: {error}") from error
