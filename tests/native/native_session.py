"""ONNX Runtime with our library, on models made in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime

from streamssm.native.library import Library


def open_session(
    model: onnx.ModelProto, library: Library | None, threads: int = 1, **options: object
) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 4
    for name, value in options.items():
        setattr(settings, name, value)
    if library is not None:
        settings.register_custom_ops_library(os.fspath(library.path))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"], enable_fallback=0
    )


def run_in_place(
    session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray], states: Mapping[str, str]
) -> list[np.ndarray]:
    """Run with every next state in the memory of its state."""
    binding, wrap = session.io_binding(), onnxruntime.OrtValue.ortvalue_from_numpy
    values = {name: wrap(np.ascontiguousarray(value)) for name, value in feeds.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        if output.name in states:
            binding.bind_ortvalue_output(output.name, values[states[output.name]])
        else:
            binding.bind_output(output.name)
    session.run_with_iobinding(binding)
    return [value.numpy() for value in binding.get_outputs()]
