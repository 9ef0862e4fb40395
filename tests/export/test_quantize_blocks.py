"""Rounding in blocks: no worse than plain rounding, and what ONNX Runtime's MatMulNBits multiplies with."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from streamssm.backends.cpu import import_onnxruntime
from streamssm.export.quantize_blocks import BITS, QuantisedMatrix, fitting_block, pack, quantise, unpack

# K below, at and beside multiples of the blocks; odd N
SHAPES = [(32, 8), (40, 9), (80, 37), (128, 16), (200, 11), (257, 3)]
GRID = [(K, N, bits, block) for K, N in SHAPES for bits in BITS.values() for block in (16, 32, 64, 128, 256)]


def matrix(K: int, N: int, seed: int = 0) -> np.ndarray:
    """Bell-shaped columns of very different size, one of them zero, one of one sign, one with an outlier."""
    generator = np.random.default_rng(seed)
    w = generator.standard_normal((K, N)) * 10.0 ** generator.integers(-3, 3, N)
    w[:, 0] = 0
    w[:, 1] = -np.abs(w[:, 1])
    w[K // 2, 2] *= 30
    return w.astype(np.float32)


def session(quantised: QuantisedMatrix):
    K, N = quantised.shape
    node = helper.make_node(
        "MatMulNBits",
        ["x", "q", "scale"],
        ["y"],
        domain="com.microsoft",
        K=K,
        N=N,
        bits=quantised.bits,
        block_size=quantised.block,
        accuracy_level=4,
    )
    ports = {"x": ["batch", "items", K], "y": ["batch", "items", N]}
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ports.items())
    stored = [
        numpy_helper.from_array(quantised.packed, "q"),
        numpy_helper.from_array(quantised.scale, "scale"),
    ]
    graph = helper.make_graph([node], "one", [x], [y], stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return import_onnxruntime().InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize(("K", "N", "bits", "block"), GRID)
def test_runtime_multiplies_with_the_restored_matrix(K: int, N: int, bits: int, block: int) -> None:
    quantised = quantise(matrix(K, N), bits, block)
    # rows whose rounding to 8 bits is exact: the largest value of a block is 127 or it is zero
    x = 127 * np.eye(K, dtype=np.float32)[None]
    run = session(quantised)
    wanted = 127 * quantised.restored()
    largest = np.abs(wanted).max(axis=0)
    single = [run.run(None, {"x": x[:, k : k + 1]})[0][0] for k in range(K)]
    for y in (run.run(None, {"x": x})[0][0], np.concatenate(single)):
        assert (np.abs(y - wanted).max(axis=0) <= 1e-6 * largest).all()
    assert run.run(None, {"x": x[:, :0]})[0].shape == (1, 0, N)


@pytest.mark.parametrize(("K", "N", "bits", "block"), GRID)
def test_rounding_is_no_worse_than_the_plain_kind(K: int, N: int, bits: int, block: int) -> None:
    w = matrix(K, N)
    change = quantise(w, bits, block).restored() - w
    level = 1 << (bits - 1)
    for start in range(0, K, block):
        part = slice(start, start + block)
        scale = np.abs(w[part]).max(axis=0) / (level - 1)
        plain = np.rint(w[part] / np.where(scale, scale, 1)) * scale
        limit = np.linalg.norm(plain - w[part], axis=0) * (1 + 1e-5)
        assert (np.linalg.norm(change[part], axis=0) <= limit).all()


@pytest.mark.parametrize("block", [16, 128])
def test_four_bits_are_clearly_better_than_the_plain_kind(block: int) -> None:
    w = np.random.default_rng(1).standard_normal((256, 64)).astype(np.float32)
    scale = np.abs(w).reshape(-1, block, 64).max(axis=1, keepdims=True) / 7
    plain = (np.rint(w.reshape(-1, block, 64) / scale) * scale).reshape(w.shape)
    found = quantise(w, 4, block).restored()
    assert np.linalg.norm(found - w) < 0.9 * np.linalg.norm(plain - w)


@pytest.mark.parametrize("bits", BITS.values())
def test_what_the_numbers_can_hold_is_exact(bits: int) -> None:
    level = 1 << (bits - 1)
    numbers = np.random.default_rng(2).integers(-level, level, (64, 5))
    numbers[::32] = -level
    w = (numbers * np.float32(0.25)).astype(np.float32)
    for exact in (w, -w):
        quantised = quantise(exact, bits, 32)
        np.testing.assert_allclose(quantised.restored(), exact, rtol=1e-6)
    assert not quantise(np.zeros((40, 3), np.float32), bits, 32).restored().any()
    assert not quantise(np.full((40, 3), 1e-40, np.float32), bits, 32).restored().any()


def test_large_matrices_are_rounded_in_parts_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    w = matrix(200, 11)
    whole = quantise(w, 4, 32)
    monkeypatch.setattr("streamssm.export.quantize_blocks._AT_A_TIME", 500)
    parts = quantise(w, 4, 32)
    assert whole.packed.tobytes() == parts.packed.tobytes()
    assert whole.scale.tobytes() == parts.scale.tobytes()


@pytest.mark.parametrize("bits", BITS.values())
def test_unpack_reverses_pack(bits: int) -> None:
    numbers = np.random.default_rng(3).integers(0, 1 << bits, (3, 2, 32), dtype=np.uint8)
    assert pack(numbers, bits).shape == (3, 2, 32 * bits // 8)
    assert (unpack(pack(numbers, bits), bits) == numbers).all()
    if bits == 4:
        assert pack(np.array([1, 2], np.uint8), 4).tolist() == [0x21]


def test_a_small_matrix_gets_the_smallest_block_that_holds_it() -> None:
    found = [fitting_block(K, 128) for K in (5, 16, 33, 48, 64, 65, 128, 129, 4000)]
    assert found == [16, 16, 64, 64, 64, 128, 128, 128, 128]
    assert fitting_block(4000, 256) == 256
