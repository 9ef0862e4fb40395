"""Small networks written in a line: a forward and the modules it uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

torch.set_num_threads(1)


class Net(nn.Module):
    """``forward(self, x)`` given as a function."""

    def __init__(self, function: Callable[..., Any], **modules: Any):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


@dataclass(frozen=True)
class Case:
    """How to build a network, and how to convert it; ``hop`` and ``lookahead`` are what must come out."""

    build: Callable[[], nn.Module]
    options: dict[str, Any] = field(default_factory=dict)
    hop: int = 1
    lookahead: int = 0
    states: tuple[str, ...] | None = None

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().eval()


ITEMS = {"item_shape": (3,)}
CHANNELS_FIRST = {"item_shape": (3,), "time": -1}


def net(function: Callable[..., Any], **modules: Callable[[], Any]) -> Callable[[], nn.Module]:
    return lambda: Net(function, **{name: build() for name, build in modules.items()})


def conv(*args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv1d(*args, **kwargs)


def norm(size: int) -> nn.Module:
    layer = nn.BatchNorm1d(size)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    return layer


def attend(net: Net, x: Tensor, **options: Any) -> Tensor:
    q, k, v = net.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2)


def banded(net: Net, x: Tensor) -> Tensor:
    T = x.shape[1]
    distance = torch.arange(T)[:, None] - torch.arange(T)
    return attend(net, x, attn_mask=(distance >= 0) & (distance < 4))


def causal(x: Tensor) -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(x.shape[1]).to(x)


def encode(net: Net, x: Tensor) -> Tensor:
    return net.encoder(x, causal(x), is_causal=True)


def dual_path(net: Net, x: Tensor) -> Tensor:
    """x [B, T, 5, 3]: along the bands in both directions, then along time."""
    B, T = x.shape[:2]
    y = net.bands(x.reshape(-1, 5, 3))[0].reshape(B, T, 5, 4)
    y = net.time(y.transpose(1, 2).reshape(-1, T, 4))[0].reshape(B, 5, T, 3)
    return y.permute(0, 2, 1, 3).flatten(2)


QKV = {"qkv": lambda: nn.Linear(3, 24)}
ENCODER = {
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
}

ACCEPTED: dict[str, Case] = {
    # convolutions, causal in every way that people write it
    "pad left": Case(
        net(lambda s, x: s.c(F.pad(x, (2, 0))), c=conv(3, 4, 3)), CHANNELS_FIRST, states=("c.past",)
    ),
    "cut the tail": Case(
        net(
            lambda s, x: F.relu(s.n(s.c(x)))[..., :-4] + x,
            c=conv(3, 3, 3, dilation=2, padding=4),
            n=lambda: norm(3),
        ),
        CHANNELS_FIRST,
        states=("c.past",),
    ),
    "cut to the input's length": Case(
        net(lambda s, x: s.c(x)[:, :, : x.shape[-1]], c=conv(3, 4, 5, padding=4)), CHANNELS_FIRST
    ),
    "pad with another value": Case(
        net(lambda s, x: s.c(F.pad(x, (2, 0), value=0.7)), c=conv(3, 4, 3)), CHANNELS_FIRST
    ),
    "pad, then a function": Case(
        net(lambda s, x: s.c(torch.sigmoid(F.pad(x, (2, 0)))), c=conv(3, 4, 3)), CHANNELS_FIRST
    ),
    "pad by cat": Case(
        net(lambda s, x: s.c(torch.cat([x.new_zeros(x.shape[0], 3, 2), x], 2)), c=conv(3, 4, 3)),
        CHANNELS_FIRST,
    ),
    "groups, bias off": Case(
        net(lambda s, x: s.c(F.pad(x, (2, 0))), c=conv(3, 6, 3, groups=3, bias=False)), CHANNELS_FIRST
    ),
    "functional, weight of its own": Case(
        net(lambda s, x: F.conv1d(F.pad(x, (1, 0)), s.w), w=lambda: nn.Parameter(torch.randn(4, 3, 2))),
        CHANNELS_FIRST,
    ),
    "weight norm": Case(
        net(
            lambda s, x: s.c(F.pad(x, (2, 0))),
            c=lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 3)),
        ),
        CHANNELS_FIRST,
    ),
    "two dimensions": Case(
        net(
            lambda s, x: s.d(F.pad(F.elu(s.c(F.pad(x[:, None], (1, 1, 2, 0)))), (0, 0, 1, 0))).mean(-1).mT,
            c=lambda: nn.Conv2d(1, 3, (3, 3), stride=(1, 2)),
            d=lambda: nn.Conv2d(3, 2, (2, 3), padding=(0, 1)),
        ),
        {"item_shape": (9,)},
    ),
    "shift by hand": Case(
        net(lambda s, x: x + torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)), ITEMS, states=("past",)
    ),
    "difference": Case(net(lambda s, x: (p := F.pad(x, (0, 0, 1, 0)))[:, 1:] - p[:, :-1]), ITEMS),
    "unfold": Case(net(lambda s, x: F.pad(x, (0, 0, 3, 0)).unfold(1, 4, 1).amax(-1)), ITEMS),
    "max pool": Case(net(lambda s, x: F.max_pool1d(F.pad(x.mT, (2, 0), value=-9.0), 3, 1).mT), ITEMS),
    "shared module, three calls": Case(
        net(lambda s, x: s.c(F.pad(s.c(F.pad(s.c(F.pad(x, (1, 0))), (1, 0))), (1, 0))), c=conv(3, 3, 2)),
        CHANNELS_FIRST,
        states=("c.past", "c.past2", "c.past3"),
    ),
    # several rates
    "stride and nearest": Case(
        net(
            lambda s, x: x + F.interpolate(s.c(F.pad(x, (2, 0))), scale_factor=2.0), c=conv(3, 3, 4, stride=2)
        ),
        CHANNELS_FIRST,
        hop=2,
    ),
    "stride and transposed": Case(
        net(
            lambda s, x: x + s.u(s.c(F.pad(x, (2, 0))))[..., :-2],
            c=conv(3, 3, 4, stride=2),
            u=lambda: nn.ConvTranspose1d(3, 3, 4, stride=2),
        ),
        CHANNELS_FIRST,
        hop=2,
    ),
    "patches": Case(
        net(lambda s, x: s.a(x.reshape(x.shape[0], -1, 12)), a=lambda: nn.Linear(12, 5)), ITEMS, hop=4
    ),
    "sub-pixel": Case(
        net(lambda s, x: s.a(x[:, ::3]).reshape(x.shape[0], -1, 2), a=lambda: nn.Linear(3, 6)), ITEMS, hop=3
    ),
    "average pool": Case(net(lambda s, x: F.avg_pool1d(x.mT, 4, 2, 0).mT), ITEMS | {"lookahead": 2}, 2, 2),
    "waveform": Case(
        net(lambda s, x: s.c(x[:, None]).relu().mT, c=conv(1, 4, 25, stride=10)),
        {"item_shape": (), "lookahead": 20},
        hop=10,
        lookahead=20,
    ),
    "two heads, two rates": Case(
        net(
            lambda s, x: {"fine": s.a(F.pad(x, (2, 0))).mT, "coarse": (s.b(F.pad(x, (4, 0))).mT, None)},
            a=conv(3, 4, 3),
            b=conv(3, 5, 8, stride=4),
        ),
        CHANNELS_FIRST,
        hop=4,
    ),
    # recurrent
    "gru": Case(net(lambda s, x: s.g(x)[0], g=lambda: nn.GRU(3, 4, 2, batch_first=True)), ITEMS),
    "lstm, time first": Case(
        net(lambda s, x: s.g(x.transpose(0, 1))[0].transpose(0, 1), g=lambda: nn.LSTM(3, 4, bias=False)),
        ITEMS,
    ),
    "gru with a start": Case(
        net(
            lambda s, x: s.g(x, s.h.expand(2, x.shape[0], 4).contiguous())[0],
            g=lambda: nn.GRU(3, 4, 2, batch_first=True),
            h=lambda: nn.Parameter(torch.randn(2, 1, 4)),
        ),
        ITEMS,
    ),
    "dual path": Case(
        net(
            dual_path,
            bands=lambda: nn.GRU(3, 2, batch_first=True, bidirectional=True),
            time=lambda: nn.GRU(4, 3, batch_first=True),
        ),
        {"item_shape": (5, 3)},
        states=("time.h0",),
    ),
    # attention
    "attention": Case(net(lambda s, x: attend(s, x, is_causal=True), **QKV), ITEMS | {"window": 5}),
    "attention in a band": Case(net(banded, **QKV), ITEMS),
    "weights of attention, unused": Case(
        net(
            lambda s, x: (a := s.m(x, x, x, attn_mask=causal(x)), a[1].mean(), a[0])[2],
            m=lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        ),
        {"item_shape": (4,), "window": 5},
    ),
    "transformer encoder": Case(net(encode, **ENCODER), {"item_shape": (8,), "window": 5}),
    # look-ahead
    "centred": Case(
        net(
            lambda s, x: torch.sigmoid(s.b(torch.sigmoid(s.a(x))) + s.c(x)),
            a=conv(3, 4, 3, padding=1),
            b=conv(4, 3, 5, padding="same"),
            c=conv(3, 3, 1),
        ),
        CHANNELS_FIRST | {"lookahead": 3},
        lookahead=3,
    ),
    "centred pool": Case(
        net(lambda s, x: F.max_pool1d(x.mT, 3, 1, 1).mT), ITEMS | {"lookahead": 1}, lookahead=1
    ),
    "centred U": Case(
        net(
            lambda s, x: x + s.u(s.c(x)),
            c=conv(3, 3, 4, stride=2, padding=1),
            u=lambda: nn.ConvTranspose1d(3, 3, 4, stride=2, padding=1),
        ),
        CHANNELS_FIRST | {"lookahead": 3},
        hop=2,
        lookahead=3,
    ),
    "no padding at all": Case(
        net(lambda s, x: s.b(F.relu(s.a(x))) + x[..., 4:], a=conv(3, 4, 3), b=conv(4, 3, 3)),
        CHANNELS_FIRST | {"lookahead": 4},
        lookahead=4,
    ),
    "attention after a look-ahead": Case(
        net(lambda s, x: attend(s, s.c(x.mT).mT, is_causal=True), c=conv(3, 3, 5, padding=2), **QKV),
        ITEMS | {"window": 4, "lookahead": 2},
        lookahead=2,
    ),
    # item by item, and not in the way
    "embedding": Case(lambda: nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 11)), {"vocabulary": 11}),
    "in place": Case(
        net(lambda s, x: F.relu(s.a(x), inplace=True).mul_(2).add_(1), a=lambda: nn.Linear(3, 3)), ITEMS
    ),
    "constants": Case(
        net(lambda s, x: (x * torch.ones(x.shape[0], x.shape[1], 1)).masked_fill(torch.zeros_like(x) > 1, 0)),
        ITEMS,
    ),
    "unused statistics": Case(net(lambda s, x: (x.mean(1), x * 2)[1]), ITEMS),
    "branch on a constant": Case(
        net(lambda s, x: x * 2 if s.double_it else x, double_it=lambda: True), ITEMS
    ),
    "channels of dictionaries": Case(net(lambda s, x: {"a": x[..., :1], "b": [x.softmax(-1), None]}), ITEMS),
}


def loop(net: Net, x: Tensor) -> Tensor:
    h, ys = x.new_zeros(x.shape[0], 4), []
    for t in range(x.shape[1]):
        h = net.cell(x[:, t], h)
        ys.append(h)
    return torch.stack(ys, 1)


def by_hand(net: Net, x: Tensor) -> Tensor:
    q, k, v = net.qkv(x).chunk(3, -1)
    scores = (q @ k.mT).masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1).bool(), -1e30)
    return scores.softmax(-1) @ v


def counting(net: Net, x: Tensor) -> Tensor:
    net.seen += x.sum()
    return x + net.seen


BOTH_WAYS = {"g": lambda: nn.GRU(3, 4, batch_first=True, bidirectional=True)}
CELL = {"cell": lambda: nn.GRUCell(3, 4)}
GRU = {"g": lambda: nn.GRU(3, 4, batch_first=True)}


@dataclass(frozen=True)
class Bad(Case):
    """What must be refused: a word of the reason and one of the remedy, the module and the function."""

    path: str = ""
    function: str = ""
    why: str = ""
    remedy: str = ""


def bad(function: Callable[..., Any], path: str, called: str, why: str, remedy: str, **modules: Any) -> Bad:
    return Bad(net(function, **modules), ITEMS, path=path, function=called, why=why, remedy=remedy)


REFUSED: dict[str, Bad] = {
    "mean": bad(lambda s, x: x - x.mean(1, keepdim=True), "", "mean", "statistic", "running"),
    "std": bad(lambda s, x: x / x.std(1, keepdim=True), "", "std", "statistic", "running"),
    "softmax over time": bad(lambda s, x: x.softmax(1), "", "softmax", "statistic", "every item"),
    "maximum": bad(lambda s, x: x.amax(1), "", "amax", "statistic", "every item"),
    "pooling": bad(
        lambda s, x: F.adaptive_avg_pool1d(x.mT, 1), "", "adaptive_avg_pool1d", "whole", "every item"
    ),
    "group norm": bad(
        lambda s, x: s.n(x.mT).mT, "n", "group_norm", "over time", "LayerNorm", n=lambda: nn.GroupNorm(1, 3)
    ),
    "instance norm": bad(
        lambda s, x: s.n(x.mT).mT,
        "n",
        "instance_norm",
        "over time",
        "LayerNorm",
        n=lambda: nn.InstanceNorm1d(3),
    ),
    "squeeze and excite": bad(
        lambda s, x: x * s.a(x.mean(1)).sigmoid()[:, None],
        "",
        "mean",
        "statistic",
        "running",
        a=lambda: nn.Linear(3, 3),
    ),
    "flip": bad(
        lambda s, x: x + s.g(x.flip(1))[0][..., :3].flip(1), "", "flip", "reverses", "forward", **GRU
    ),
    "bidirectional": bad(
        lambda s, x: s.g(x)[0], "g", "GRU.forward", "backwards", "bidirectional=False", **BOTH_WAYS
    ),
    "plain rnn": bad(
        lambda s, x: s.g(x)[0],
        "g",
        "RNN.forward",
        "plain RNN",
        "nn.GRU",
        g=lambda: nn.RNN(3, 4, batch_first=True),
    ),
    "last state": bad(
        lambda s, x: x + s.g(x)[1][0, :, None, :3], "g", "GRU.forward", "last state", "each item", **GRU
    ),
    "last item": bad(lambda s, x: s.g(x)[0][:, -1], "", "__getitem__", "single items", "every item", **GRU),
    "first items": bad(
        lambda s, x: x[:, :5].sum(1, keepdim=True) + x, "", "__getitem__", "start or the end", "fixed"
    ),
    "loop over time": bad(loop, "", "__getitem__", "single items", "nn.GRU", **CELL),
    "cumulative sum": bad(lambda s, x: x.cumsum(1), "", "cumsum", "without forgetting", "decaying"),
    "roll": bad(lambda s, x: x.roll(1, 1), "", "roll", "round", "F.pad"),
    "sort": bad(lambda s, x: x.sort(1)[0], "", "sort", "sorts", "window"),
    "spectrum": bad(lambda s, x: torch.fft.rfft(x, dim=1).abs(), "", "fft_rfft", "as a whole", "LogMel"),
    "linear interpolation": bad(
        lambda s, x: F.interpolate(x.mT, scale_factor=2.0, mode="linear").mT,
        "",
        "interpolate",
        "between",
        "nearest",
    ),
    "mirror padding": bad(
        lambda s, x: s.c(x.mT).mT,
        "c",
        "pad",
        "reflect",
        "zeros",
        c=conv(3, 3, 3, padding=1, padding_mode="reflect"),
    ),
    "positions": bad(
        lambda s, x: x + s.p[:, : x.shape[1]],
        "",
        "add",
        "position",
        "rotary",
        p=lambda: nn.Parameter(torch.randn(1, 4096, 3)),
    ),
    "length": bad(lambda s, x: x / x.shape[1], "", "div", "length", "constant"),
    "noise": bad(lambda s, x: x + torch.randn_like(x), "", "randn_like", "random", "evaluation"),
    "endless attention": bad(
        lambda s, x: attend(s, x, is_causal=True),
        "",
        "scaled_dot_product_attention",
        "without end",
        "window=",
        **QKV,
    ),
    "full attention": bad(
        lambda s, x: attend(s, x), "", "scaled_dot_product_attention", "later ones", "causal", **QKV
    ),
    "attention by hand": bad(
        by_hand, "", "matmul", "T x T", "scaled_dot_product_attention", qkv=lambda: nn.Linear(3, 9)
    ),
    "values to Python": bad(
        lambda s, x: x * 2 if x.mean() > 0 else x, "", "__bool__", "Python", "torch.where"
    ),
    "len": bad(lambda s, x: x.reshape(len(x), -1, 3), "", "len", "len()", "shape[0]"),
    "rows mixed": bad(lambda s, x: x - x.mean(0, keepdim=True), "", "mean", "rows of a batch", "separate"),
    "wrong axis": bad(
        lambda s, x: s.g(x)[0], "g", "GRU.forward", "rows of a batch", "batch=1", g=lambda: nn.GRU(3, 4)
    ),
    "two sequences": bad(lambda s, x: torch.cat([x, x * 2], 1), "", "cat", "after another", "one sequence"),
    "learned prefix": bad(
        lambda s, x: torch.cat([s.p.expand(x.shape[0], -1, -1), x], 1)[:, 2:],
        "",
        "cat",
        "before the sequence",
        "push",
        p=lambda: nn.Parameter(torch.randn(1, 2, 3)),
    ),
    "halves": bad(lambda s, x: x.reshape(x.shape[0], 2, -1, 3).sum(1), "", "reshape", "order", "frames"),
    "view written in place": bad(
        lambda s, x: (y := x * 1, y[:, 1:].mul_(2), y)[2], "", "mul_", "in place", "y = f(x)"
    ),
    "full padding": bad(
        lambda s, x: s.c(x.mT).mT, "output output", "result", "more than 1", "cut", c=conv(3, 3, 3, padding=2)
    ),
    "memory": bad(counting, "", "", "", "", seen=lambda: torch.zeros(())),
}
