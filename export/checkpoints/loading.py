"""``load_checkpoint``: a folder to a streaming layer and the tensors that fill it.

Strict: every parameter has its tensor and every tensor its parameter, of the right shape and of a
dtype that float32 can hold. Nothing is read but the heads of the files until a tensor is asked
for; 16-bit weights become float32 one tensor at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamssm.errors import ExportError, LayerError
from streamssm.export.checkpoints.family import Family, Keys, Plan, Source
from streamssm.export.checkpoints.reading import Weights, open_weights, read_config, read_end
from streamssm.export.describe import OutputSpec
from streamssm.export.layers.base import StreamingLayer

#: one file each in this package
FAMILIES = (
    "mamba",
    "falcon_mamba",
    "mamba2",
    "jamba",
    "recurrent_gemma",
    "zamba",
    "zamba2",
    "bamba",
    "falcon_h1",
    "granite_moe_hybrid",
    "nemotron_h",
)
#: keys of configs that count modules, each of which has a tensor
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "n_mamba_heads")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as a model that waits for its weights.

    Attributes:
        layer: the whole model, tokens to logits; its parameters are on the meta device.
        tensors: parameter name -> a function that reads it, as float32. A parameter with several
            names, such as a tied embedding, stands under the first.
        vocabulary: different tokens.
        window_imposed: the window that the caller narrowed attention to; None: the model's own.
        end: tokens that end a text.
        tokenizer: the folder's tokenizer.json, if it has one.
    """

    folder: Path
    family: str
    layer: StreamingLayer
    tensors: Mapping[str, Callable[[], Tensor]]
    vocabulary: int
    window_imposed: int | None
    end: tuple[int, ...] = ()
    tokenizer: Path | None = None

    def export_options(self) -> dict[str, Any]:
        """All but model and path that ``export`` needs: ``export(checkpoint.layer, path, **options)``."""
        return {
            "weights": self.tensors,
            "window_imposed": self.window_imposed,
            "kind": "tokens",
            "vocabulary": self.vocabulary,
            "tokenizer": self.tokenizer,
            "end": self.end,
            "outputs": (OutputSpec("logits", "logits"),),
            "name": self.folder.resolve().name,
            "provenance": {"checkpoint": self.folder.resolve().name, "family": self.family},
        }

    def materialise(self) -> StreamingLayer:
        """The layer with its weights read; the same object, ready to run.

        Raises:
            ExportError: a tensor cannot be read, or holds NaN or infinity.
        """
        for aliases in parameter_names(self.layer):
            parameter = nn.Parameter(self.tensors[aliases[0]](), requires_grad=False)
            for name in aliases:
                owner, _, leaf = name.rpartition(".")
                setattr(self.layer.get_submodule(owner), leaf, parameter)
        return self.layer.eval()


def load_checkpoint(folder: str | Path, *, window: int | None = None) -> Checkpoint:
    """Open a checkpoint folder of transformers, state-spaces or Mistral form.

    Args:
        folder: with config.json (or params.json) and the weights.
        window: items that attention layers see, for models whose layers see everything.

    Raises:
        ExportError: the folder is no checkpoint, of a family that is not known, or its tensors are
            not those that its config describes; the key or tensor is named.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ExportError(f"{folder} is no folder; give the folder of a checkpoint")
    if window is not None and window < 1:
        raise ExportError(f"window = {window} must be at least 1")
    config, file = read_config(folder)
    if config.get("quantization_config"):
        raise ExportError(
            f"{folder} holds quantised weights (quantization_config); export the original weights and "
            "quantise with --weights int8 or int4"
        )
    family = find_family(config)
    weights = open_weights(folder)
    _check_counts(config, file, len(weights))
    plan = _build(family, Keys(config, file), window)
    tensors = match(plan, weights)
    vocabulary = plan.layer.vocabulary
    if vocabulary is None:
        raise ExportError(f"the {family.name} model takes no tokens")
    return Checkpoint(
        folder,
        family.name,
        plan.layer,
        tensors,
        vocabulary,
        plan.window_imposed,
        end=read_end(folder, config, vocabulary),
        tokenizer=tokenizer if (tokenizer := folder / "tokenizer.json").is_file() else None,
    )


def find_family(config: Mapping[str, Any]) -> Family:
    """The family of a config.

    Raises:
        ExportError: none knows it.
    """
    kind = config.get("model_type")
    # Codestral's own config says "mamba", which is another family's model_type
    for family in families():
        if family.recognises(config):
            return family
    for family in families():
        if isinstance(kind, str) and kind in family.model_types:
            return family
    known = ", ".join(kind for family in families() for kind in family.model_types)
    said = f"model_type = {kind!r}, architectures = {config.get('architectures')!r}"
    raise ExportError(f"no checkpoint family for {said}; known model types are {known}")


def families() -> list[Family]:
    """All families, in a fixed order."""
    return [import_module(f"streamssm.export.checkpoints.{name}").FAMILY for name in FAMILIES]


def _build(family: Family, config: Keys, window: int | None) -> Plan:
    try:
        with torch.device("meta"):
            return family.build(config, window)
    except (LayerError, RuntimeError, OverflowError, MemoryError) as error:
        # sizes that no tensor can have end in torch's own errors
        cause = str(error).splitlines()[0]
        raise ExportError(f"{config.where} describes no {family.name} model: {cause}") from error


def _check_counts(config: Mapping[str, Any], file: str, tensors: int) -> None:
    """Refuse more layers than there are tensors, before any is built."""
    for key, value in config.items():
        if key in COUNTS and isinstance(value, int) and value > tensors:
            raise ExportError(f"{file}: {key} = {value} is more than there are tensors ({tensors})")


def match(plan: Plan, weights: Weights) -> dict[str, Callable[[], Tensor]]:
    """Each parameter with the function that reads it.

    Raises:
        ExportError: missing or extra tensors, wrong shapes or dtypes, tied weights that differ.
    """
    weights = weights.respelled(plan.spellings)
    used: set[str] = set()
    tensors: dict[str, Callable[[], Tensor]] = {}
    for aliases in parameter_names(plan.layer):
        present = [source for source in (_source(plan, name) for name in aliases) if _all_in(source, weights)]
        if not present:
            missing = [name for name in _source(plan, aliases[0]).names if name not in weights]
            raise ExportError(f"tensor {missing[0]} is missing{_hint(missing[0], weights)}")
        _check(plan.layer.get_parameter(aliases[0]), aliases[0], present, weights)
        tensors[aliases[0]] = partial(_read, present, weights)
        used.update(name for source in present for name in source.names)
    spare = [name for name in weights if name not in used and not _ignored(name, plan.ignored)]
    extra = sorted(weights.stored(name) for name in spare)
    if extra:
        raise ExportError(
            f"tensor {extra[0]} has no place in the model that the config describes"
            f" ({len(extra)} such: {_some(extra)})"
        )
    return tensors


def parameter_names(layer: nn.Module) -> list[list[str]]:
    """The names of each parameter, in order; of a shared one there are several."""
    names: dict[int, list[str]] = {}
    for name, parameter in layer.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())


def _source(plan: Plan, parameter: str) -> Source:
    found = plan.source(parameter)
    return Source((found,)) if isinstance(found, str) else found


def _all_in(source: Source, weights: Weights) -> bool:
    return all(name in weights for name in source.names)


def _ignored(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _check(parameter: Tensor, own: str, sources: list[Source], weights: Weights) -> None:
    """Dtypes of all tensors, and the shape of what they make, without reading them."""
    for source in sources:
        pieces = [_unread(name, source, weights) for name in source.names]
        first = weights.stored(source.names[0])
        shapes = " and ".join(str(list(piece.shape)) for piece in pieces[:3])
        try:
            made = tuple(source.combine(*pieces).shape)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise ExportError(
                f"tensor {first} has shape {shapes}, which does not make {own}: {error}"
            ) from error
        if made != tuple(parameter.shape):
            wanted = list(parameter.shape)
            ours = "" if own == first else f" ({own})"
            raise ExportError(f"tensor {first} has shape {shapes}, the config makes it {wanted}{ours}")


def _unread(name: str, source: Source, weights: Weights) -> Tensor:
    """A tensor on meta, of the shape and dtype that the file says."""
    said, stored = weights.described(name), weights.stored(name)
    if said.dtype not in _DTYPES:
        raise ExportError(
            f"tensor {stored} in {said.file} has dtype {said.dtype}; "
            "only float32, float16 and bfloat16 can be read"
        )
    shape = said.shape
    if source.entry is not None:
        if not shape or shape[0] != source.entry[1]:
            raise ExportError(
                f"tensor {stored} has shape {list(shape)}, the config makes it a stack of {source.entry[1]}"
            )
        shape = shape[1:]
    return torch.empty(shape, dtype=said.dtype, device="meta")


def _read(sources: list[Source], weights: Weights) -> Tensor:
    """One parameter as float32, of which there may be equal copies."""
    first, *copies = sources
    value = _combined(first, weights)
    for copy in copies:
        if copy.names != first.names and not torch.equal(value, _combined(copy, weights)):
            raise ExportError(
                f"tensors {weights.stored(first.names[0])} and {weights.stored(copy.names[0])} differ, "
                "but the config ties them; correct it or the weights"
            )
    # the extremes are NaN if any value is, and take no memory to find
    if value.numel() and not all(bound.isfinite() for bound in value.aminmax()):
        raise ExportError(
            f"tensor {weights.stored(first.names[0])} holds NaN or infinity; the checkpoint is damaged"
        )
    return value


def _combined(source: Source, weights: Weights) -> Tensor:
    index = None if source.entry is None else source.entry[0]
    made: Tensor = source.combine(*(weights.read(name, index) for name in source.names))
    return made.to(torch.float32).contiguous()


def _hint(missing: str, weights: Weights) -> str:
    """Tensors with the same ending, which may be what the config meant."""
    leaf = missing.split(".")[-1]
    alike = sorted(name for name in weights if name.split(".")[-1] == leaf)
    return f"; the checkpoint has {_some(alike)}" if alike else f"; the checkpoint has {len(weights)} others"


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
