"""Who runs what: the peers, the cases, how often each is timed, and the bars of the table."""

from __future__ import annotations

from dataclasses import dataclass

from sidebyside.shapes import Shape

PRECISIONS = ("fp32", "int8", "int4")
BITS = {"fp32": 32, "f16": 16, "int8": 8, "int4": 4}


@dataclass(frozen=True)
class Peer:
    """How a peer is called: its worker's module, its environment (None: this one), what it has."""

    key: str
    title: str
    module: str
    environment: str | None
    precisions: tuple[str, ...] = ("fp32",)


PEERS = {
    peer.key: peer
    for peer in (
        Peer("ours", "streamssm", "ours", None, PRECISIONS),
        Peer("llama", "llama.cpp", "llamacpp", "llama", ("fp32", "f16", "int8", "int4")),
        Peer("transformers", "transformers", "hf", "torch"),
        Peer("mambapy", "mambapy", "mamba_py", "torch"),
        Peer("openvino", "OpenVINO", "ov", "openvino", PRECISIONS),
        Peer("mobius", "mobius on ONNX Runtime", "mobius_ort", "mobius", PRECISIONS),
        Peer("executorch", "ExecuTorch XNNPACK", "xnnpack", "executorch"),
    )
}


@dataclass(frozen=True)
class Entry:
    """A peer at a precision: one row."""

    peer: Peer
    precision: str

    @property
    def key(self) -> str:
        """Its name in the results."""
        return self.peer.key if self.precision != "f16" else f"{self.peer.key}-f16"

    @property
    def title(self) -> str:
        """Its name in the tables."""
        return self.peer.title if self.precision != "f16" else f"{self.peer.title} f16"


def entries(precision: str, chosen: set[str]) -> list[Entry]:
    """Who is timed in one group; half precision goes along with float32."""
    found = [Entry(peer, precision) for peer in PEERS.values() if precision in peer.precisions]
    if precision == "fp32":
        found += [Entry(peer, "f16") for peer in PEERS.values() if "f16" in peer.precisions]
    return [entry for entry in found if entry.peer.key in chosen]


@dataclass(frozen=True)
class Effort:
    """Rounds, steps timed in each, and steps before them that are not."""

    rounds: int
    count: int
    warm: int


_TINY = {
    "decode": Effort(10, 2000, 300),
    "push16": Effort(10, 200, 30),
    "push16-last": Effort(3, 200, 30),
    "prefill": Effort(6, 6, 1),
    "prefill-last": Effort(2, 6, 1),
}
_LARGE = {
    "decode": Effort(10, 6, 2),
    "push16": Effort(6, 3, 1),
    "push16-last": Effort(3, 3, 1),
    "prefill": Effort(3, 1, 0),
    "prefill-last": Effort(2, 1, 0),
}


def effort(shape: Shape, case: str, quick: bool) -> Effort:
    """How often a case is timed."""
    full = (_TINY if shape.tiny else _LARGE)[case]
    return Effort(max(2, full.rounds // 3), full.count, full.warm) if quick else full


#: relative error of float32 logits against float64 that still counts as the same model, and the
#: difference between two splits of one quantised model, whose activations may be quantised by the call
EXACT, CONSISTENT = 1e-3, 5e-2

# --- what must be reached: model -> least ratio -------------------------------------------

FLOOR = 1.15
DECODE = {("mamba-130m", "int8"): 2.0, ("mamba-130m", "int4"): 2.0}
DECODE |= {("mamba2-130m", precision): 2.0 for precision in ("int8", "int4")}
PUSH_LARGE = 2.0
PREFILL = {"mamba-130m": 1.5, "mamba2-130m": 1.2}
TINY_STEP = {"tiny-mamba": 3.5, "tiny-mamba2": 2.0}
TINY_PUSH = {"tiny-mamba": 6.0, "tiny-mamba2": 3.0}
JITTER = 2.0
