"""Any torch module as a stream. The package itself is the function: ``streamssm.export.convert(model)``;
beside it the registry of what is recognised (:func:`register`) and the errors."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from streamssm.export.convert import converter
from streamssm.export.convert.layer import ConvertedLayer
from streamssm.export.convert.refusal import ConversionError, Refusal, TwinError
from streamssm.export.convert.registry import register, register_rewrite, registered
from streamssm.export.convert.twins import register_all

register_all()

__all__ = [
    "ConversionError",
    "ConvertedLayer",
    "Refusal",
    "TwinError",
    "register",
    "register_rewrite",
    "registered",
]


class _Convert(ModuleType):
    """A package that can be called: importing it must not hide the function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> ConvertedLayer:
        return converter.convert(*args, **kwargs)

    __call__.__doc__ = converter.convert.__doc__


sys.modules[__name__].__class__ = _Convert
