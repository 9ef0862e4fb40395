"""llama.cpp through llama-cpp-python's bare C interface.

The GGUF file is written from the weights; the quantised ones are made by llama.cpp's own quantiser,
every matrix in the type asked for (``pure``: by default its Q4_0 keeps a tied head in Q6_K, which is
slower and no longer the same precision on both sides).
"""

from __future__ import annotations

import ctypes

import gguf
import llama_cpp as llama
import numpy as np

from sidebyside.shapes import Shape, Weights, load_weights
from sidebyside.wire import CannotError, TokenPeer, serve

FILE_TYPES = {
    "f16": llama.LLAMA_FTYPE_MOSTLY_F16,
    "int8": llama.LLAMA_FTYPE_MOSTLY_Q8_0,
    "int4": llama.LLAMA_FTYPE_MOSTLY_Q4_0,
}
BATCH = 512


def start_gguf(path: str, arch: str, shape: Shape, context: int) -> gguf.GGUFWriter:
    """A writer with what every architecture wants; no tokenizer."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(context)
    writer.add_embedding_length(shape.d_model)
    writer.add_block_count(shape.layers)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(llama.LLAMA_FTYPE_ALL_F32)
    return writer


def finish_gguf(writer: gguf.GGUFWriter) -> None:
    """Write what was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_model(path: str, shape: Shape, weights: Weights) -> None:
    """The model as float32 GGUF, in the layout of llama.cpp's own converter."""
    writer = start_gguf(path, shape.kind, shape, 2**20)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(shape.d_conv)
    writer.add_ssm_inner_size(shape.d_inner)
    writer.add_ssm_state_size(shape.d_state)
    if shape.kind == "mamba2":
        writer.add_ssm_time_step_rank(shape.heads)
        writer.add_ssm_group_count(shape.groups)
    else:
        writer.add_ssm_time_step_rank(shape.dt_rank)
        writer.add_ssm_dt_b_c_rms(False)
    for name, value in tensors(shape, weights).items():
        writer.add_tensor(name, np.ascontiguousarray(value, np.float32))
    finish_gguf(writer)


def tensors(shape: Shape, weights: Weights) -> Weights:
    """The weights under GGUF's names, A instead of its logarithm."""
    found = {
        "token_embd.weight": weights["backbone.embeddings.weight"],
        "output_norm.weight": weights["backbone.norm_f.weight"],
    }
    second = shape.kind == "mamba2"
    for i in range(shape.layers):
        theirs, ours = f"blk.{i}.", f"backbone.layers.{i}."
        mixer = f"{ours}mixer."
        a = -np.exp(weights[f"{mixer}A_log"])
        d = weights[f"{mixer}D"]
        found |= {
            f"{theirs}attn_norm.weight": weights[f"{ours}norm.weight"],
            f"{theirs}ssm_in.weight": weights[f"{mixer}in_proj.weight"],
            f"{theirs}ssm_conv1d.weight": weights[f"{mixer}conv1d.weight"][:, 0],
            f"{theirs}ssm_conv1d.bias": weights[f"{mixer}conv1d.bias"],
            f"{theirs}ssm_dt.bias": weights[f"{mixer}{'dt_bias' if second else 'dt_proj.bias'}"],
            f"{theirs}ssm_a": a[:, None] if second else a,
            f"{theirs}ssm_d": d[:, None] if second else d,
            f"{theirs}ssm_out.weight": weights[f"{mixer}out_proj.weight"],
        }
        if second:
            norm = weights[f"{mixer}norm.weight"].reshape(shape.groups, -1)
            found[f"{theirs}ssm_norm.weight"] = norm
        else:
            found[f"{theirs}ssm_x.weight"] = weights[f"{mixer}x_proj.weight"]
            found[f"{theirs}ssm_dt.weight"] = weights[f"{mixer}dt_proj.weight"]
    return found


def quiet() -> object:
    """Stop llama.cpp's log; the callback must outlive the calls."""
    callback = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


class LlamaCpp(TokenPeer):
    """One context of one sequence; the batch is made once and refilled."""

    versions = ("llama-cpp-python", "gguf")
    context_items = BATCH

    def prepare(self) -> None:
        plain = self.folder / "llamacpp-fp32.gguf"
        if not plain.exists():
            draft = str(plain) + ".draft"
            write_model(draft, self.shape, load_weights(self.folder))
            (self.folder / "llamacpp-fp32.gguf.draft").replace(plain)
        path = self.file(".gguf")
        if path.exists():
            return
        if self.precision not in FILE_TYPES:
            raise CannotError(f"no such file type: {self.precision}")
        options = llama.llama_model_quantize_default_params()
        options.nthread, options.ftype, options.pure = 1, FILE_TYPES[self.precision], True
        draft = path.with_suffix(".draft")
        if llama.llama_model_quantize(str(plain).encode(), str(draft).encode(), ctypes.byref(options)):
            raise RuntimeError("llama_model_quantize failed")
        draft.replace(path)

    def open(self) -> None:
        self._callback = quiet()
        llama.llama_backend_init()
        options = llama.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = llama.llama_model_load_from_file(str(self.file(".gguf")).encode(), options)
        if not self.model:
            raise RuntimeError("llama_model_load_from_file failed")
        context = llama.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = self.context_items, BATCH, BATCH
        context.n_seq_max, context.n_threads, context.n_threads_batch = 1, 1, 1
        context.no_perf = True
        self.context = llama.llama_init_from_model(self.model, context)
        if not self.context:
            raise RuntimeError("llama_init_from_model failed")
        self.batch = llama.llama_batch_init(BATCH, 0, 1)
        for i in range(BATCH):
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = 0
        self._tokens = self._view(self.batch.token, np.int32)
        self._positions = self._view(self.batch.pos, np.int32)
        self._flags = self._view(self.batch.logits, np.int8)
        self._count = np.arange(BATCH, dtype=np.int32)

    @staticmethod
    def _view(pointer: object, dtype: type) -> np.ndarray:
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        size = np.dtype(dtype).itemsize * BATCH
        return np.frombuffer((ctypes.c_char * size).from_address(address), dtype)

    def reset(self, size: int) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        self.position = 0
        self._asked = None

    def push(self, tokens: np.ndarray, last: bool) -> tuple[object, int]:
        count = len(tokens)
        self._tokens[:count] = tokens
        np.add(self._count[:count], self.position, out=self._positions[:count])
        if self._asked != (count, last):
            self._flags[:count] = not last
            self._flags[count - 1] = 1
            self.batch.n_tokens, self._asked = count, (count, last)
        failed = llama.llama_decode(self.context, self.batch)
        if failed:
            raise RuntimeError(f"llama_decode gave {failed}")
        self.position += count
        return llama.llama_get_logits(self.context), 1 if last else count  # which waits for the result

    def logits(self, result: tuple[object, int]) -> np.ndarray:
        pointer, count = result
        return np.ctypeslib.as_array(pointer, (count, self.shape.vocabulary))

    def facts(self) -> dict[str, object]:
        return {"system": llama.llama_print_system_info().decode(), "threads": 1}


if __name__ == "__main__":
    serve(LlamaCpp)
