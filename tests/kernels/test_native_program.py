"""Programs on every instruction set that this machine runs: products, float32 and quantised, norms,
and the rest, against float64; the same bytes whatever the batch, the length and the split."""

from __future__ import annotations

import ctypes as c

import numpy as np
import pytest
from native_calls import Native

from streamssm.kernels import reference
from streamssm.native import pack
from streamssm.native.program import Assembler, Code, Function, float_bits


class Program:
    """A program of one input and one output, and how to run it."""

    def __init__(self, K: int, N: int, states: tuple[int, ...] = ()) -> None:
        self.K, self.N, self.state_sizes = K, N, states
        self.assembler = Assembler({"x": 9, "y": 1})
        self.assembler.port("inputs", K)
        self.assembler.port("outputs", N)
        for size in states:
            self.assembler.port("states", size)
        self.assembler.define("x", K)
        self.emit(Code.INPUT, *self.read("x"), 0, K)
        self.assembler.define("y", N)

    def emit(self, code: Code, *arguments: int) -> None:
        self.assembler.emit(code, *arguments)

    def read(self, name: str) -> list[int]:
        return self.assembler.read(name)

    def run(self, native: Native, x: np.ndarray, *states: np.ndarray) -> list[np.ndarray]:
        """x [B, T, K], states [B, size] -> y [B, T, N], next states."""
        words = self.assembler.words()
        words += [int(Code.OUTPUT), 4, *self.read("y"), 0, self.N]
        weights = self.assembler.packed()
        (B, T), x = x.shape[:2], np.ascontiguousarray(x, np.float32)
        before = [np.ascontiguousarray(state, np.float32) for state in states]
        after = [np.full_like(state, np.nan) for state in before]
        y = np.full((B, T, self.N), np.nan, np.float32)
        message = c.create_string_buffer(256)

        def pointers(arrays: list[np.ndarray]) -> c.Array:
            return (c.c_void_p * max(1, len(arrays)))(*(array.ctypes.data for array in arrays))

        native.library.test_program.restype = c.c_bool
        done = native.library.test_program(
            native.table, (c.c_int64 * len(words))(*words), c.c_int64(len(words)),
            c.c_void_p(weights.ctypes.data), c.c_int64(weights.size), c.c_int64(B), c.c_int64(T),
            pointers([x]), pointers(before), pointers([y]), pointers(after), message,
        )  # fmt: skip
        assert done, message.value.decode()
        return [y, *after]


def linear(K: int, N: int, W: np.ndarray, bias: np.ndarray | None = None, residual: bool = False) -> Program:
    program = Program(K, N)
    place = program.assembler.weights("W", pack.matrix_floats(K, N), lambda: pack.pack_matrix(W))
    offset = -1 if bias is None else program.assembler.vector("b", bias, N)
    added = program.read("x") if residual else [-1, -1]
    program.emit(Code.LINEAR, *program.read("y"), *program.read("x"), K, N, 32, 0, place, 0, offset, *added)
    return program


def quantised(K: int, N: int, codes: np.ndarray, scales: np.ndarray, bits: int, block: int) -> Program:
    program, blocks = Program(K, N), codes.shape[1]
    floats = pack.quantized_floats(N, blocks, block, bits)
    place = program.assembler.weights("q", floats, lambda: pack.pack_quantized(codes, bits))
    factors = program.assembler.weights(
        "s", pack.panels(N) * 16 * blocks, lambda: pack.pack_scales(scales, N)
    )
    arguments = [*program.read("y"), *program.read("x"), K, N, bits, block, place, factors]
    program.emit(Code.LINEAR, *arguments, -1, -1, -1)
    return program


SIZES = [(1, 1), (3, 16), (16, 17), (37, 130), (130, 37), (300, 259)]
SHAPES = [(1, 1), (1, 2), (2, 3), (1, 7), (1, 8), (1, 9), (3, 40), (1, 400), (200, 2)]


@pytest.mark.parametrize(("K", "N"), SIZES)
def test_product(native: Native, K: int, N: int) -> None:
    generator = np.random.default_rng(K)
    W, bias = generator.standard_normal((K, N)).astype(np.float32), generator.standard_normal(N)
    programs = [(linear(K, N, W), 0), (linear(K, N, W, bias), bias)]
    for B, T in SHAPES:
        x = generator.standard_normal((B, T, K)).astype(np.float32)
        for program, added in programs:
            wanted = x.astype(np.float64) @ W + added
            assert np.abs(program.run(native, x)[0] - wanted).max() <= 1e-6 * K**0.5 * np.abs(wanted).max()


def test_product_with_residual(native: Native) -> None:
    W = np.random.default_rng(0).standard_normal((48, 48)).astype(np.float32)
    x = np.random.default_rng(1).standard_normal((2, 5, 48)).astype(np.float32)
    found = linear(48, 48, W, residual=True).run(native, x)[0]
    assert np.allclose(found, x.astype(np.float64) @ W + x, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize(("K", "N"), SIZES)
def test_quantised_product(native: Native, K: int, N: int, bits: int, block: int) -> None:
    """Integers are exact: what is left is float32 rounding of a few sums."""
    generator = np.random.default_rng(K + bits)
    blocks = -(-K // block)
    codes = generator.integers(0, 256, (N, blocks, block * bits // 8)).astype(np.uint8)
    codes[0], codes[-1] = 0, 255  # the ends of the range
    scales = generator.uniform(0.001, 0.1, (N, blocks)).astype(np.float32)
    halves = codes if bits == 8 else np.stack([codes & 15, codes >> 4], axis=-1).reshape(N, blocks, -1)
    W = ((halves.astype(np.float64) - (128 if bits == 8 else 8)) * scales[..., None]).reshape(N, -1)[:, :K].T
    program = quantised(K, N, codes, scales, bits, block)
    for B, T in SHAPES:
        x = generator.integers(-127, 128, (B, T, blocks * block))
        x[..., ::block] = 127  # the scale of every block of x is then 1, and its rounding exact
        x = x[..., :K].astype(np.float32)
        wanted = x.astype(np.float64) @ W
        assert np.abs(program.run(native, x)[0] - wanted).max() <= 1e-6 * (np.abs(wanted).max() + 1)


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_rows_depend_on_nothing_else(native: Native, bits: int) -> None:
    K, N = 150, 83
    generator = np.random.default_rng(bits)
    if bits == 32:
        program = linear(K, N, generator.standard_normal((K, N)).astype(np.float32))
    else:
        codes = generator.integers(0, 256, (N, 5, 32 * bits // 8)).astype(np.uint8)
        program = quantised(K, N, codes, generator.uniform(0, 1, (N, 5)).astype(np.float32), bits, 32)
    x = generator.standard_normal((3, 201, K)).astype(np.float32)
    whole = program.run(native, x)[0]
    for size in (1, 2, 5, 13, 67):
        parts = [program.run(native, x[:, at : at + size])[0] for at in range(0, 201, size)]
        assert np.concatenate(parts, axis=1).tobytes() == whole.tobytes()
    assert program.run(native, x.reshape(1, -1, K))[0].tobytes() == whole.tobytes()


@pytest.mark.parametrize(("width", "group"), [(1, 1), (5, 5), (16, 16), (100, 100), (36, 9), (96, 32)])
def test_rms_norm(native: Native, width: int, group: int) -> None:
    generator = np.random.default_rng(width)
    x, weight = generator.standard_normal((2, 7, width)), generator.standard_normal(width)
    x[0, 0] = 0
    program = Program(width, width)
    place = program.assembler.vector("w", weight.astype(np.float32), width)
    program.emit(Code.RMS_NORM, *program.read("y"), *program.read("x"), width, group, float_bits(1e-5), place)
    grouped = x.reshape(2, 7, -1, group)
    wanted = reference.rms_norm(grouped, np.ones(group), 1e-5).reshape(x.shape) * weight
    assert np.allclose(program.run(native, x)[0], wanted, rtol=2e-6, atol=1e-6)


UNARY = {
    Function.SIGMOID: reference.sigmoid,
    Function.SILU: reference.silu,
    Function.SOFTPLUS: reference.softplus,
    Function.EXP: np.exp,
    Function.TANH: np.tanh,
    Function.RELU: lambda x: np.maximum(x, 0),
    Function.COPY: lambda x: x,
}
BINARY = {
    Function.ADD: np.add,
    Function.SUBTRACT: np.subtract,
    Function.MULTIPLY: np.multiply,
    Function.DIVIDE: np.divide,
    Function.MAXIMUM: np.maximum,
    Function.MINIMUM: np.minimum,
    Function.GATE: lambda a, b: a * reference.silu(b),
}


@pytest.mark.parametrize("function", UNARY)
def test_unary(native: Native, function: Function) -> None:
    x = np.concatenate([np.linspace(-20, 20, 777), np.linspace(-0.5, 0.5, 777)]).reshape(1, 42, 37)
    program = Program(37, 37)
    program.emit(Code.UNARY, *program.read("y"), *program.read("x"), 37, function)
    wanted = UNARY[function](x.astype(np.float32).astype(np.float64))
    assert np.allclose(program.run(native, x)[0], wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("function", BINARY)
def test_binary(native: Native, function: Function) -> None:
    generator = np.random.default_rng(int(function))
    x, row = generator.standard_normal((2, 9, 37)).astype(np.float32), generator.standard_normal(37)
    row = row.astype(np.float32)
    program = Program(37, 37)
    place = program.assembler.vector("row", row, 37)
    program.emit(Code.CONSTANT, *program.read("y"), *program.read("x"), 37, function, place)
    wanted = BINARY[function](x.astype(np.float64), row.astype(np.float64))
    assert np.allclose(program.run(native, x)[0], wanted, rtol=1e-6)
    program = Program(37, 37)
    program.emit(Code.BINARY, *program.read("y"), *program.read("x"), *program.read("x"), 37, function)
    wanted = BINARY[function](x.astype(np.float64), x.astype(np.float64))
    assert np.allclose(program.run(native, x)[0], wanted, rtol=1e-6)


@pytest.mark.parametrize(("K", "D"), [(2, 1), (5, 40), (7, 3)])
def test_unfold(native: Native, K: int, D: int) -> None:
    generator = np.random.default_rng(K)
    x, state = generator.standard_normal((2, 300, D)), generator.standard_normal((2, K - 1, D))
    x, state = x.astype(np.float32), state.astype(np.float32)
    program = Program(D, K * D, ((K - 1) * D,))
    program.emit(Code.UNFOLD, *program.read("y"), *program.read("x"), K, D, 0)
    for size in (1, 2, 3, 300):
        past, parts = state.reshape(2, -1), []
        for at in range(0, 300, size):
            y, past = program.run(native, x[:, at : at + size], past)
            parts.append(y)
        full = np.concatenate([state, x], axis=1)
        wanted = np.concatenate([full[:, k : k + 300] for k in range(K)], axis=2)
        assert np.array_equal(np.concatenate(parts, axis=1), wanted)
        assert np.array_equal(past.reshape(2, K - 1, D), full[:, -(K - 1) :])
