"""Models from configs: every option reaches its layer, every mistake is named."""

from __future__ import annotations

import copy
import json
import tomllib

import pytest
import torch

from streamssm.errors import LayerError
from streamssm.export import OutputSpec, build, model_options, verify_contract
from streamssm.manifest import EventRule

torch.set_num_threads(1)

SENSOR = {
    "input": {"kind": "features", "size": 8, "rate": 50, "normalise": {"time_constant": 100}},
    "pattern": ["mamba", "mamba2", "swa"],
    "d_model": 8,
    "mamba": {"d_state": 4},
    "mamba2": {"d_state": 4, "headdim": 4, "dt_limit": [0.0, None]},
    "swa": {"window": 6, "num_heads": 2},
    "mlp": {"hidden": 12},
    "norm": "layer",
    "head": {"size": 3, "activation": "softmax", "labels": ["walk", "run", "rest"]},
    "name": "sensor",
    "block": 5,
}
AUDIO = {
    "input": {
        "kind": "samples",
        "rate": 1000,
        "front_end": {"type": "log_mel", "window": 25, "hop": 10, "n_fft": 32, "n_mels": 5},
    },
    "stem": {"kernel_size": 5, "stride": 2, "lookahead": 4, "activation": "silu"},
    "pattern": ["gru"],
    "d_model": 6,
    "head": {"labels": ["voice"], "activation": "sigmoid"},
    "events": {"output": "head", "label": "voice", "onset": 0.6},
}
WAVE = {
    "input": {
        "kind": "samples",
        "front_end": {"type": "conv", "out_channels": 4, "kernel_size": 8, "stride": 4},
    },
    "stem": [{"kernel_size": 3}, {"kernel_size": 3, "dilation": 2}],
    "pattern": ["lstm"],
    "d_model": 6,
    "heads": {"gate": {"size": 1, "activation": "sigmoid"}, "class": {"size": 4}},
}
TOKENS = {
    "input": {"kind": "tokens", "vocabulary": 11},
    "pattern": ["mamba2"],
    "d_model": 8,
    "mamba2": {"d_state": 4, "headdim": 4},
    "head": {"size": 11, "tied": True},
}
FEATURES = {"input": {"kind": "features", "size": 3}, "pattern": ["gru", "gru"], "d_model": 4}
CONFIGS = {"sensor": SENSOR, "audio": AUDIO, "wave": WAVE, "tokens": TOKENS, "features": FEATURES}


@pytest.mark.parametrize("name", CONFIGS)
def test_built_models_keep_the_contract(name):
    torch.manual_seed(0)
    model = build(json.loads(json.dumps(CONFIGS[name])))
    verify_contract(model, items=10 * model.hop, splits=2)


def test_rates():
    audio = build(AUDIO)
    assert (audio.hop, audio.lookahead, audio.item_shape) == (20, 40, ())
    assert build(WAVE).hop == 4


def test_names():
    assert list(build(SENSOR).state_spec()) == [
        *("normalise.mean", "normalise.var", "normalise.position"),
        *(f"backbone.layers.{i}.mixer.{s}" for i in (0, 1) for s in ("conv", "ssm")),
        *(f"backbone.layers.2.mixer.{s}" for s in ("key", "value", "position")),
    ]
    tokens = build(TOKENS)
    assert tokens.get_submodule("head").weight is tokens.get_submodule("embedding").weight


def test_the_same_from_toml():
    text = """
        pattern = ["mamba2"]
        d_model = 8
        [input]
        kind = "tokens"
        vocabulary = 11
        [mamba2]
        d_state = 4
        headdim = 4
        dt_limit = [0.0, inf]
        [head]
        size = 11
        tied = true
    """
    shapes = lambda model: {k: v.shape for k, v in model.state_dict().items()}  # noqa: E731
    assert shapes(build(tomllib.loads(text))) == shapes(build(TOKENS))


def test_options_for_export():
    labels = ("walk", "run", "rest")
    assert model_options(SENSOR) == {
        "name": "sensor",
        "block": 5,
        "kind": "features",
        "rate": 50,
        "outputs": (OutputSpec("head", "probability", labels),),
    }
    audio = model_options(AUDIO)
    assert audio["events"] == EventRule(output="head", label="voice", onset=0.6)
    assert audio["front_end"] == "log_mel"
    assert model_options(WAVE)["outputs"] == (
        OutputSpec("gate", "probability"),
        OutputSpec("class", "logits"),
    )
    assert model_options(TOKENS)["vocabulary"] == 11
    assert model_options(FEATURES)["outputs"] == (OutputSpec("output", "features"),)


def changed(config, path, value):
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    table = config
    for key in parents:
        table = table[key]
    if value is ...:
        del table[last]
    else:
        table[last] = value
    return config


@pytest.mark.parametrize(
    ("config", "path", "value", "message"),
    [
        (SENSOR, "patern", [], "'patern' is unknown; allowed are input"),
        (SENSOR, "input.sise", 8, "'sise' is unknown; allowed are kind, size"),
        (SENSOR, "input.kind", "video", "'video' is unknown; choose among features"),
        (SENSOR, "input.size", ..., "input: size is missing"),
        (SENSOR, "input.size", "8", "size = '8'"),
        (SENSOR, "input", ..., "input is missing"),
        (SENSOR, "input", 8, "must be a table"),
        (SENSOR, "pattern", ..., "pattern is missing"),
        (SENSOR, "pattern", ["rwkv"], "'rwkv' is unknown"),
        (SENSOR, "d_model", ..., "d_model is missing"),
        (SENSOR, "mamba.d_stat", 4, "mamba: 'd_stat' is unknown; allowed are d_state, d_conv"),
        (SENSOR, "mamba.d_model", 4, "'d_model' is unknown"),
        (SENSOR, "mamba2.headdim", 5, "headdim = 5 does not divide 16"),
        (SENSOR, "swa.window", ..., "window"),
        (SENSOR, "swa.rope_base", "x", "config: "),
        (SENSOR, "mlp.depth", 2, "mlp: 'depth'"),
        (SENSOR, "norm", "batch", "'batch' is unknown"),
        (SENSOR, "head.bais", False, "head 'head': 'bais'"),
        (SENSOR, "head.labels", ["a"], "1 labels do not name 3 columns"),
        (SENSOR, "head.tied", True, "tied needs"),
        (SENSOR, "head", {}, "size is missing"),
        (SENSOR, "heads", {"a": {"size": 1}}, "either head or heads"),
        (SENSOR, "input.normalise", {"time": 3}, "input.normalise: 'time'"),
        (AUDIO, "input.front_end.type", "mfcc", "'mfcc' is unknown; choose log_mel or conv"),
        (AUDIO, "input.front_end.sample_rate", 8000, "'sample_rate' is unknown"),
        (AUDIO, "input.front_end.hop", ..., "hop"),
        (AUDIO, "input.rate", ..., "rate is missing"),
        (AUDIO, "stem.lookahead", 1, "stride = 2 does not divide 1"),
        (AUDIO, "stem.in_channels", 1, "stem: 'in_channels'"),
        (TOKENS, "stem", {"kernel_size": 3}, "remove stem"),
        (TOKENS, "input.vocabulary", 0, "vocabulary = 0"),
    ],
)
def test_mistakes_are_named(config, path, value, message):
    with pytest.raises(LayerError, match=message):
        build(changed(config, path, value))


def test_event_rules_are_checked():
    with pytest.raises(LayerError, match=r"events: .*onest"):
        model_options(changed(AUDIO, "events.onest", 0.5))
