"""PyTorch -> ONNX: streaming layers, the exporter, models from a config.

Needs the extra ``streamssm[export]``; the runtime never imports this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamssm.export import convert
    from streamssm.export.config import build, model_options
    from streamssm.export.contract import verify_contract
    from streamssm.export.describe import OutputSpec
    from streamssm.export.exporter import export
    from streamssm.export.quantizer import quantize

# resolved on first use: training needs the layers but neither onnx nor onnxscript
_HOME = {
    "OutputSpec": "describe",
    "build": "config",
    "convert": "convert",
    "export": "exporter",
    "model_options": "config",
    "quantize": "quantizer",
    "verify_contract": "contract",
}

__all__ = ["OutputSpec", "build", "convert", "export", "model_options", "quantize", "verify_contract"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOME[name]}")
    return getattr(module, name, module)  # convert is a package that can be called
