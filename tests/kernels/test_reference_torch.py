"""The reference against PyTorch's own functions and modules, in float64."""

from __future__ import annotations

import numpy as np
import pytest

from streamssm.kernels import reference as ref

torch = pytest.importorskip("torch")
F = torch.nn.functional


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def tensors(*arrays):
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def close(actual, expected, tolerance=1e-12):
    np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=tolerance, atol=tolerance, strict=True)


def test_activations():
    x = np.concatenate([np.linspace(-50, 50, 1001), [-800.0, 20.0, np.nextafter(20.0, 21.0), 800.0]])
    (t,) = tensors(x)
    with np.errstate(over="raise", invalid="raise"):
        close(ref.softplus(x), F.softplus(t))
        close(ref.silu(x), F.silu(t))
        close(ref.sigmoid(x), torch.sigmoid(t))


@pytest.mark.parametrize("K", [1, 2, 4])
@pytest.mark.parametrize("silu", [False, True])
def test_conv(rng, K, silu):
    x, weight, bias = rng.normal(size=(2, 9, 3)), rng.normal(size=(K, 3)), rng.normal(size=3)
    tx, tw, tb = tensors(x, weight, bias)
    expected = F.conv1d(F.pad(tx.mT, (K - 1, 0)), tw.T[:, None], tb, groups=3).mT
    y, _ = ref.causal_conv1d(x, weight, bias, np.zeros((2, K - 1, 3)), silu)
    close(y, F.silu(expected) if silu else expected)


@pytest.mark.parametrize("group_size", [None, 4])
@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_gated_rms_norm(rng, group_size, norm_before_gate):
    x, gate, weight = rng.normal(size=(2, 5, 12)), rng.normal(size=(2, 5, 12)), rng.normal(size=12)
    tx, tg, tw = tensors(x, gate, weight)

    def norm(value):
        grouped = value.unflatten(-1, (-1, group_size or 12))
        return F.rms_norm(grouped, grouped.shape[-1:], eps=1e-3).flatten(-2) * tw

    expected = norm(tx) * F.silu(tg) if norm_before_gate else norm(tx * F.silu(tg))
    close(ref.rms_norm(x, weight, 1e-3, gate, norm_before_gate, group_size), expected)
    close(ref.rms_norm(x, weight, 1e-3, group_size=group_size), norm(tx))


def test_norm_groups_that_do_not_divide_are_refused(rng):
    with pytest.raises(ValueError, match="12 channels do not divide into groups of 5"):
        ref.rms_norm(np.ones((1, 12)), np.ones(12), group_size=5)


@pytest.mark.parametrize("Hkv", [4, 2, 1])
@pytest.mark.parametrize("rotary_dim", [0, 4, 6])
@pytest.mark.parametrize("T", [1, 4, 5, 6, 13])
def test_attention(rng, Hkv, rotary_dim, T):
    """A fresh stream is scaled_dot_product_attention under a window mask, W = 5."""
    W, dh = 5, 6
    q = rng.normal(size=(2, T, 4, dh))
    k, v = rng.normal(size=(2, 2, T, Hkv, dh))
    inv_freq = ref.rotary_frequencies(rotary_dim, 100.0)
    ring = np.zeros((2, Hkv, W, dh))
    y, *_ = ref.sliding_window_attention(q, k, v, inv_freq, ring, ring, np.zeros(2, np.int64), 0.7)

    def rotated(x):
        """Multiplication by exp(i position freq), with (d, d + R/2) as real and imaginary part."""
        (x,) = tensors(x)
        half = rotary_dim // 2
        angle = torch.arange(T)[:, None, None] * torch.from_numpy(inv_freq)
        turned = torch.complex(x[..., :half], x[..., half : 2 * half]) * torch.exp(1j * angle)
        return torch.cat([turned.real, turned.imag, x[..., 2 * half :]], -1).transpose(1, 2)

    age = torch.arange(T)[:, None] - torch.arange(T)
    visible = (age >= 0) & (age < W)
    value = tensors(v)[0].transpose(1, 2)
    expected = F.scaled_dot_product_attention(
        rotated(q), rotated(k), value, attn_mask=visible, scale=0.7, enable_gqa=True
    )
    close(y, expected.transpose(1, 2))


def test_gru_and_lstm(rng):
    torch.manual_seed(0)
    x, h, c = rng.normal(size=(2, 7, 3)), rng.normal(size=(2, 4)), rng.normal(size=(2, 4))
    tx, th, tc = tensors(x, h, c)
    order = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]

    gru = torch.nn.GRU(3, 4, batch_first=True, dtype=torch.float64)
    y, h_next = ref.gru(x, *(getattr(gru, name).detach().numpy() for name in order), h)
    expected, h_expected = gru(tx, th[None])
    close(y, expected)
    close(h_next, h_expected[0])

    lstm = torch.nn.LSTM(3, 4, batch_first=True, dtype=torch.float64)
    y, h_next, c_next = ref.lstm(x, *(getattr(lstm, name).detach().numpy() for name in order), h, c)
    expected, (h_expected, c_expected) = lstm(tx, (th[None], tc[None]))
    close(y, expected)
    close(h_next, h_expected[0])
    close(c_next, c_expected[0])


def random_weights(rng, **shapes):
    names = {name.replace("__", "."): shape for name, shape in shapes.items()}
    weights = {name: 0.5 * rng.normal(size=shape) for name, shape in names.items()}
    return weights, {name: torch.from_numpy(value) for name, value in weights.items()}


def short_conv(x, w):
    """SiLU of a depthwise conv, in the channels-first layout of the checkpoints."""
    K = w["conv1d.weight"].shape[-1]
    return F.silu(
        F.conv1d(F.pad(x.mT, (K - 1, 0)), w["conv1d.weight"], w["conv1d.bias"], groups=x.shape[-1]).mT
    )


def test_mamba_mixer(rng):
    """The mixer written in PyTorch with the layouts of the checkpoints: state (D, N)."""
    d, D, N, K, R, T = 4, 6, 3, 4, 2, 8
    weights, w = random_weights(
        rng, in_proj__weight=(2 * D, d), conv1d__weight=(D, 1, K), conv1d__bias=(D,), A_log=(D, N), D=(D,),
        x_proj__weight=(R + 2 * N, D), dt_proj__weight=(D, R), dt_proj__bias=(D,), out_proj__weight=(d, D),
    )  # fmt: skip
    u = rng.normal(size=(2, T, d))
    x, z = F.linear(tensors(u)[0], w["in_proj.weight"]).chunk(2, -1)
    x = short_conv(x, w)
    dt, B, C = F.linear(x, w["x_proj.weight"]).split([R, N, N], -1)
    dt = F.softplus(F.linear(dt, w["dt_proj.weight"], w["dt_proj.bias"]))
    A, h, outputs = -torch.exp(w["A_log"]), torch.zeros(2, D, N, dtype=torch.float64), []
    for t in range(T):
        h = torch.exp(dt[:, t, :, None] * A) * h + dt[:, t, :, None] * B[:, t, None] * x[:, t, :, None]
        outputs.append((h * C[:, t, None]).sum(-1) + w["D"] * x[:, t])
    expected = F.linear(torch.stack(outputs, 1) * F.silu(z), w["out_proj.weight"])
    y, state = ref.mamba_mixer(u, weights)
    close(y, expected)
    close(state["ssm"], h.mT)


@pytest.mark.parametrize("G", [1, 2])
@pytest.mark.parametrize("skip_per_channel", [False, True])
@pytest.mark.parametrize("norm", [None, "after gate", "before gate"])
def test_mamba2_mixer(rng, G, skip_per_channel, norm):
    """The mixer written in PyTorch with the layouts of the checkpoints: state (H, P, N)."""
    d, H, P, N, K, T, limit = 4, 4, 3, 2, 4, 8, (0.2, 0.8)
    D = H * P
    channels = D + 2 * G * N
    weights, w = random_weights(
        rng, in_proj__weight=(D + channels + H, d), conv1d__weight=(channels, 1, K), conv1d__bias=(channels,),
        dt_bias=(H,), A_log=(H,), D=(D if skip_per_channel else H,),
        norm__weight=(D,), out_proj__weight=(d, D),
    )  # fmt: skip
    u = rng.normal(size=(2, T, d))
    z, xBC, dt = F.linear(tensors(u)[0], w["in_proj.weight"]).split([D, channels, H], -1)
    x, B, C = short_conv(xBC, w).split([D, G * N, G * N], -1)
    x, dt = x.unflatten(-1, (H, P)), F.softplus(dt + w["dt_bias"]).clamp(*limit)
    B, C = (part.unflatten(-1, (G, N)).repeat_interleave(H // G, 2) for part in (B, C))
    skip = w["D"].view(H, P) if skip_per_channel else w["D"][:, None]
    decay, h, outputs = (
        torch.exp(-torch.exp(w["A_log"]) * dt),
        torch.zeros(2, H, P, N, dtype=torch.float64),
        [],
    )
    for t in range(T):
        h = decay[:, t, :, None, None] * h + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        outputs.append((h * C[:, t, :, None]).sum(-1) + skip * x[:, t])
    y, gate = torch.stack(outputs, 1).flatten(-2), F.silu(z)

    def normed(value):  # a mean square for each of the G groups
        return (
            F.rms_norm(value.unflatten(-1, (G, D // G)), (D // G,), eps=1e-5).flatten(-2) * w["norm.weight"]
        )

    if norm == "before gate":
        y = normed(y) * gate
    elif norm == "after gate":
        y = normed(y * gate)
    else:
        y = y * gate
    if norm is None:
        del weights["norm.weight"]
    actual, state = ref.mamba2_mixer(
        u, weights, ngroups=G, dt_limit=limit, norm_before_gate=norm == "before gate"
    )
    close(actual, F.linear(y, w["out_proj.weight"]))
    close(state["ssm"], h.mT)


@pytest.mark.parametrize(("window", "n_fft"), [(32, 32), (20, 32), (25, 25)])
def test_log_mel_is_torch_stft(rng, window, n_fft):
    x = rng.normal(size=(2, 80))
    np.testing.assert_allclose(ref.hann(window), torch.hann_window(window, dtype=torch.float64), atol=1e-15)
    frames = F.pad(tensors(x)[0], (window - 8, 0)).unfold(-1, window, 8)  # the frame ends with its hop
    shape = (n_fft - window, 0)  # torch's zeros stand before the frame, ours after it: same power
    padded = F.pad(frames * torch.hann_window(window, dtype=torch.float64), shape)
    power = torch.stft(padded.flatten(0, 1), n_fft, 1, window=torch.ones(n_fft).double(), center=False,
                       return_complex=True).abs().square().squeeze(-1)  # fmt: skip
    filters = ref.mel_filters(8000, n_fft, 5, 0.0, 4000.0)
    expected = torch.log(power @ torch.from_numpy(filters) + 1e-5).unflatten(0, (2, 10))
    y, _ = ref.log_mel(x, ref.hann(window), filters, np.zeros((2, window - 8)), 8, n_fft, 1e-5)
    close(y, expected)
