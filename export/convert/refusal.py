"""What cannot stream, said so that it can be mended: module, line, reason, remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from streamssm.errors import ExportError, LayerError

SHOWN = 8


@dataclass(frozen=True, order=True)
class Refusal:
    """One place of a model that cannot stream.

    ``path`` is the module's ("" for the model itself), ``kind`` its class, ``function`` what is
    called there, ``line`` the user's line of code.
    """

    path: str
    kind: str
    function: str
    why: str
    remedy: str
    line: str = ""

    @property
    def place(self) -> str:
        """The module, for people."""
        path = self.path or "the model itself"
        return f"{path} ({self.kind})" if self.kind else path

    def said(self) -> str:
        """All but the place."""
        line = f", {self.line}" if self.line else ""
        return f"{self.function}{line}: {self.why}\n    remedy: {self.remedy}"

    def __str__(self) -> str:
        return f"{self.place}, {self.said()}"


class ConversionError(ExportError):
    """A model cannot be converted; ``refusals`` says where, why and what to do."""

    def __init__(self, refusals: Iterable[Refusal], head: str = "the model cannot stream as it is"):
        self.refusals = tuple(sorted(set(refusals)))
        alike: dict[str, list[str]] = {}
        for refusal in self.refusals:  # one line for the same place in every layer of a stack
            alike.setdefault(refusal.said(), []).append(refusal.place)
        shown = [f"  {_listed(places)}, {said}" for said, places in list(alike.items())[:SHOWN]]
        if len(alike) > SHOWN:
            shown.append(f"  and {len(alike) - SHOWN} more")
        super().__init__("\n".join([f"{head}:", *shown]))


def _listed(places: list[str]) -> str:
    more = f" and {len(places) - 3} more like it" if len(places) > 3 else ""
    return ", ".join(places[:3]) + more


class TwinError(LayerError):
    """A module of a known class uses what cannot stream: a factory of a twin raises it."""

    def __init__(self, why: str, remedy: str):
        super().__init__(f"{why}; {remedy}")
        self.why, self.remedy = why, remedy


STATISTIC = (
    "takes a statistic over the whole sequence",
    "use one that every item can know: a norm over channels (LayerNorm, RMSNorm), BatchNorm, or a running "
    "statistic such as streamssm.export.layers.RunningNorm",
)
GROUP = (
    "normalises with a mean and a variance taken over time",
    "replace it by LayerNorm or RMSNorm over channels, BatchNorm, or a running statistic "
    "(streamssm.export.layers.RunningNorm), and train again",
)
POOL = (
    "pools over the whole sequence",
    "give an output at every item, or pool over a fixed number of items (a pooling layer with a stride)",
)
REVERSAL = (
    "reverses time: its first output needs the last input, as in a bidirectional scan",
    "keep the forward direction only and train again; a look-ahead of a few items can stand in for the rest "
    "(a centred convolution with lookahead=)",
)
RUNNING_SUM = (
    "accumulates over the sequence without forgetting, which no state of constant precision holds for ever",
    "use a decaying average (streamssm.export.layers.RunningNorm) or a recurrent layer",
)
ORDER = ("sorts or searches over time", "do it over a window of fixed length, or after the stream")
SPECTRUM = (
    "transforms the sequence as a whole",
    "use frames of fixed length: streamssm.export.layers.LogMel, or a strided Conv1d with a Fourier basis as "
    "its weight",
)
ATTENTION = (
    "relates every item to every other one (scores of T x T)",
    "call F.scaled_dot_product_attention(..., is_causal=True) and give convert() a window=, or register a "
    "twin for the module",
)
RANDOM = ("draws random numbers", "switch it off in evaluation mode")
MIXING = (
    "mixes items of different times in a way that is not known",
    "use a causal layer listed in docs/convert.md, or register a twin for the module: "
    "streamssm.export.convert.register",
)

#: function -> why its mixing of time cannot stream, and what to do
KNOWN: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("mean", "sum", "std", "var", "amax", "amin", "prod", "logsumexp", "norm", "median", "vector_norm"),
        STATISTIC,
    ),
    **dict.fromkeys(("max", "min", "aminmax", "any", "all", "std_mean", "var_mean", "quantile"), STATISTIC),
    **dict.fromkeys(
        ("nanmean", "nansum", "softmax", "log_softmax", "normalize", "cosine_similarity"), STATISTIC
    ),
    **dict.fromkeys(("group_norm", "instance_norm", "layer_norm", "batch_norm", "rms_norm"), GROUP),
    **dict.fromkeys(
        ("adaptive_avg_pool1d", "adaptive_max_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d"), POOL
    ),
    **dict.fromkeys(("flip", "fliplr", "flipud", "rot90"), REVERSAL),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"), RUNNING_SUM),
    **dict.fromkeys(("sort", "argsort", "topk", "argmax", "argmin", "kthvalue", "searchsorted"), ORDER),
    **dict.fromkeys(("stft", "istft", "fft_rfft", "fft_fft", "fft_irfft", "fft_ifft", "fft_rfft2"), SPECTRUM),
    **dict.fromkeys(("bernoulli", "multinomial", "rand_like", "randn_like", "normal_", "uniform_"), RANDOM),
    "roll": (
        "shifts items round from the end of the sequence to its start",
        "shift with zeros instead: F.pad(x, (0, 0, 1, 0))[:, :-1] for items on axis 1",
    ),
    "interpolate": (
        "interpolates between items, or to a length that is no fixed multiple",
        "use mode='nearest' with a whole factor, or a ConvTranspose1d",
    ),
}


def explained(function: str, fallback: tuple[str, str] = MIXING) -> tuple[str, str]:
    """Why a function that mixes time cannot stream, and the remedy."""
    return KNOWN.get(function.removesuffix("_"), KNOWN.get(function, fallback))
