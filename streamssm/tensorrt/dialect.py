"""A model in the ONNX that a version of TensorRT reads.

Where operators of ours are plugins, TensorRT finds one by the name of the node, by a version and by a
namespace. From 10.10 on the namespace is the node's domain; before, it is the attribute
``plugin_namespace``. A function in the file of the same name would be taken instead of a plugin before
10.7, so the file holds none.
Sources:
  https://github.com/NVIDIA/TensorRT/blob/release/10.10/CHANGELOG.md ("Plugin fallback importer now also reads
  its namespace from a Node's domain field"),
  https://github.com/NVIDIA/TensorRT/releases/tag/v10.7.0 ("prioritizes using plugins over local functions").
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from streamssm.errors import ExportError, UsageError
from streamssm.onnx_file import ModelFile, read_model_file

if TYPE_CHECKING:
    import onnx

NAMESPACE, PLUGIN_VERSION = "streamssm", "1"
#: the first version that reads the namespace of a plugin from the node's domain
_BY_DOMAIN = (10, 10)
#: what one protobuf message can hold
_MOST_BYTES = 2**31 - 1
_PRECISIONS = ("fp32", "fp16", "bf16")


def to_dialect(
    model: str | os.PathLike[str] | ModelFile,
    version: str,
    plugins: bool,
    *,
    precision: str = "fp32",
    block: int | None = None,
    batch: int | None = None,
    products: bool = True,
) -> bytes:
    """The model as ONNX that TensorRT ``version`` (as "10.3") reads.

    With ``plugins`` our operators are nodes for the plugin library, and number and length of sequences stay
    open. Without, ``block`` is the one length that the graph is for, and our operators are written in
    native ones. ``precision`` is that of products with weights, "fp32", "fp16" or "bf16"; everything else,
    states included, is float32 (positions int64). ``batch`` fixes the number of sequences. Without
    ``products`` those of float32 are written as multiplications and sums. States without elements are no
    inputs and outputs of the result.

    Raises:
        ExportError: onnx is missing, the model has what TensorRT cannot run, or it is larger than a single
            ONNX file can be.
        ModelFileError: the model cannot be read.
        UsageError: the version or the precision is none, or no block is given without plugins, or one that
            is no multiple of the model's hop.
    """
    require_onnx()
    from streamssm.tensorrt.dialect_precision import round_weights, write_out_products
    from streamssm.tensorrt.lowering import lower

    wanted = version_pair(version)
    if precision not in _PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}; choose one of {', '.join(_PRECISIONS)}")
    file = model if isinstance(model, ModelFile) else read_model_file(model)
    items = None if plugins else _items(file, block)
    spec = file.manifest.input
    lowered = lower(_load(file), spec.name, spec.hop, items, batch)
    round_weights(lowered.model, lowered.products, precision)
    if not products:
        write_out_products(lowered.model.graph)
    if plugins:
        name_plugins(lowered.model.graph, wanted)
    if lowered.model.ByteSize() > _MOST_BYTES:
        raise ExportError(
            f"{file.path} takes {lowered.model.ByteSize() / 1e9:.1f} GB with {precision} weights, one ONNX "
            "file holds 2.1; use --precision fp16, which halves it"
        )
    return bytes(lowered.model.SerializeToString(deterministic=True))


def version_pair(version: str) -> tuple[int, int]:
    """Major and minor of a version.

    Raises:
        UsageError: it is none.
    """
    parts = version.split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
        raise UsageError(f"{version!r} is no version of TensorRT; write it as 10.3")
    return int(parts[0]), int(parts[1])


def require_onnx() -> None:
    """Raise ExportError if the onnx package is missing."""
    if find_spec("onnx") is None:
        raise ExportError(
            "building engines needs onnx; pip install 'streamssm[tensorrt]' or 'streamssm[rtx]'"
        )


def _items(file: ModelFile, block: int | None) -> int:
    hop = file.manifest.input.hop
    if block is None or block < 1 or block % hop:
        raise UsageError(
            f"an engine without plugins is for one block, a multiple of the model's hop of {hop} items, "
            f"not {block}"
        )
    return block


def _load(file: ModelFile) -> onnx.ModelProto:
    """The model with its weights; nothing that was changed since its hash was verified."""
    import onnx

    model = onnx.load(Path(file.path))
    file.check_unchanged()
    return model


def name_plugins(graph: onnx.GraphProto, version: tuple[int, int]) -> None:
    """Say where the plugins of our nodes are found, in place."""
    from onnx import helper

    for node in graph.node:
        if node.domain == NAMESPACE:
            node.attribute.append(helper.make_attribute("plugin_version", PLUGIN_VERSION))
            if version < _BY_DOMAIN:
                node.attribute.append(helper.make_attribute("plugin_namespace", NAMESPACE))
