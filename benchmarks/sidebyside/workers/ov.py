"""OpenVINO: optimum-intel's export of the transformers model, weights compressed by NNCF."""

from __future__ import annotations

import shutil

import numpy as np
import openvino

from sidebyside.shapes import load_weights
from sidebyside.wire import CannotError, TokenPeer, serve

BITS = {"int8": 8, "int4": 4}


class OpenVino(TokenPeer):
    """The stateful model that optimum-intel makes, called through OpenVINO itself."""

    versions = ("openvino", "optimum-intel", "transformers")

    def prepare(self) -> None:
        if self.shape.kind != "mamba":
            raise CannotError("optimum-intel has no export of Mamba-2")
        if self.precision != "fp32" and self.precision not in BITS:
            raise CannotError(f"no {self.precision} form is measured")
        target = self.file("")
        if target.exists():
            return
        from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

        from sidebyside.workers.hf import build

        source = self.folder / "openvino-source"
        if not (source / "config.json").exists():
            build(self.shape, load_weights(self.folder)).save_pretrained(source)
        options = {}
        if self.precision in BITS:
            bits = BITS[self.precision]
            more = (
                {"group_size": 16 if self.shape.tiny else 128, "ratio": 1.0, "group_size_fallback": "adjust"}
                if bits == 4
                else {}
            )
            options["quantization_config"] = OVWeightQuantizationConfig(bits=bits, sym=True, **more)
        else:
            options["load_in_8bit"] = False
        model = OVModelForCausalLM.from_pretrained(source, export=True, compile=False, **options)
        draft = target.with_name(target.name + ".draft")
        shutil.rmtree(draft, ignore_errors=True)
        model.save_pretrained(draft)
        draft.rename(target)

    def open(self) -> None:
        settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        if self.precision == "fp32":
            settings["INFERENCE_PRECISION_HINT"] = "f32"  # its default on this kind of CPU is bfloat16
        model = openvino.Core().read_model(self.file("") / "openvino_model.xml")
        self.names = {port.get_any_name() for port in model.inputs}
        self.compiled = openvino.compile_model(model, "CPU", settings)
        self.request = self.compiled.create_infer_request()
        self.feeds = {}

    def reset(self, size: int) -> None:
        self.request.reset_state()
        self.fed = 0

    def push(self, tokens: np.ndarray, last: bool) -> np.ndarray:
        if last:
            raise CannotError("its graph gives the logits of every item")
        count = len(tokens)
        feed = {"input_ids": tokens[None]}
        if "attention_mask" in self.names:
            feed["attention_mask"] = np.ones((1, count), np.int64)
        if "cache_position" in self.names:
            # in its graph as many positions as the convolution is wide mark a prefill, and a single
            # item's past is right only at a position beyond that width
            kernel = self.shape.d_conv
            feed["cache_position"] = np.arange(kernel) if count > 1 else np.array([self.fed + kernel])
        if "beam_idx" in self.names:
            feed["beam_idx"] = np.zeros(1, np.int32)
        self.request.infer(feed, share_inputs=True)
        self.fed += count
        return self.request.get_tensor("logits").data[0]

    def facts(self) -> dict[str, object]:
        keys = ("INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT")
        return {key: str(self.compiled.get_property(key)) for key in keys} | {
            "inputs": sorted(self.names)[:4]
        }


if __name__ == "__main__":
    serve(OpenVino)
