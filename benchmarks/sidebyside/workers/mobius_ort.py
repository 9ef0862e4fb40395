"""onnxruntime/mobius: its ONNX graph on ONNX Runtime, with bindings made once.

Its Mamba classes have no quantised form, so the 8- and 4-bit files are made with ONNX Runtime's own
quantiser (``MatMulNBits``, accuracy_level 4), which leaves alone what is not a MatMul by a constant.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import torch
from mobius import build_from_module
from mobius._configs import Mamba2Config, MambaConfig
from mobius.models.mamba import Mamba2CausalLMModel, MambaCausalLMModel

from sidebyside.shapes import Shape, load_weights
from sidebyside.wire import CannotError, TokenPeer, serve

BITS = {"int8": 8, "int4": 4}


def config(shape: Shape) -> MambaConfig | Mamba2Config:
    """Its own configuration of the shape."""
    common = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_inner,
        "num_hidden_layers": shape.layers,
        "tie_word_embeddings": True,
        "state_size": shape.d_state,
        "conv_kernel": shape.d_conv,
        "expand": shape.expand,
        "layer_norm_epsilon": shape.eps,
    }
    if shape.kind == "mamba":
        return MambaConfig(**common, time_step_rank=shape.dt_rank)
    return Mamba2Config(**common, num_heads=shape.heads, head_dim=shape.headdim, n_groups=shape.groups)


def export(shape: Shape, weights: dict[str, np.ndarray], path: str) -> None:
    """Its graph for the CPU provider, with our weights in it."""
    first = shape.kind == "mamba"
    options = config(shape)
    module = MambaCausalLMModel(options) if first else Mamba2CausalLMModel(options)
    package = build_from_module(module, options, module.default_task, execution_provider="cpu")
    prefix = "model." if first else "backbone."
    tensors = {
        name.replace("backbone.", prefix, 1): torch.from_numpy(value) for name, value in weights.items()
    }
    package.apply_weights(module.preprocess_weights(tensors))
    import onnx_ir

    onnx_ir.save(package["model"], path)


def quantise(source: str, path: str, bits: int) -> None:
    """ONNX Runtime's weight-only quantiser, blocks of 32."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantiser = MatMulNBitsQuantizer(
        onnx.load(source), bits=bits, block_size=32, is_symmetric=True, accuracy_level=4
    )
    quantiser.process()
    onnx.save(quantiser.model.model, path)


class Mobius(TokenPeer):
    """The state goes to and fro between two sets of buffers."""

    versions = ("mobius-onnx", "onnxruntime")

    def prepare(self) -> None:
        plain = self.folder / "mobius-fp32.onnx"
        if not plain.exists():
            draft = plain.with_suffix(".draft.onnx")
            export(self.shape, load_weights(self.folder), str(draft))
            draft.replace(plain)
        path = self.file(".onnx")
        if not path.exists():
            if self.precision not in BITS:
                raise CannotError(f"no {self.precision} form")
            draft = path.with_suffix(".draft.onnx")
            quantise(str(plain), str(draft), BITS[self.precision])
            draft.replace(path)

    def open(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = str(self.file(".onnx"))
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.bound = {}

    def _bindings(self, size: int) -> list[onnxruntime.IOBinding]:
        wrap = onnxruntime.OrtValue.ortvalue_from_numpy
        states = [i for i in self.session.get_inputs() if i.name != "input_ids"]
        shapes = {i.name: [d if isinstance(d, int) else 1 for d in i.shape] for i in states}
        sides = [{name: np.zeros(shape, np.float32) for name, shape in shapes.items()} for _ in range(2)]
        ids = np.zeros((1, size), np.int64)
        logits = np.zeros((1, size, self.shape.vocabulary), np.float32)
        bindings = []
        for read, write in (sides, sides[::-1]):
            binding = self.session.io_binding()
            binding.bind_ortvalue_input("input_ids", wrap(ids))
            binding.bind_ortvalue_output("logits", wrap(logits))
            for name in shapes:
                binding.bind_ortvalue_input(name, wrap(read[name]))
                binding.bind_ortvalue_output(name.replace("past_states", "present"), wrap(write[name]))
            bindings.append(binding)
        self.bound[size] = (bindings, ids, logits, sides)
        return self.bound[size]

    def reset(self, size: int) -> None:
        self.current = self.bound.get(size) or self._bindings(size)
        for side in self.current[3]:
            for value in side.values():
                value[...] = 0
        self.turn = 0

    def push(self, tokens: np.ndarray, last: bool) -> np.ndarray:
        if last:
            raise CannotError("its graph gives the logits of every item")
        bindings, ids, logits, _ = self.current
        ids[0] = tokens
        try:
            self.session.run_with_iobinding(bindings[self.turn])
        except RuntimeError as error:
            if len(tokens) == 1:
                raise
            raise CannotError(f"its graph fails on more than one item a call: {error}"[:300]) from error
        self.turn = 1 - self.turn
        return logits[0]


if __name__ == "__main__":
    serve(Mobius)
