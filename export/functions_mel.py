"""Plain-ONNX body of the log-mel front end; rules and text form: :mod:`streamssm.export.functions`.

Shapes: B batch, T samples, L window, M bands, P past samples. The formula is in
``streamssm.kernels.reference``.
"""

from __future__ import annotations

# The windowed Fourier matrix is a constant that ONNX Runtime computes when it opens the file,
# which would otherwise hold it. The product of indices is reduced to one turn, and the waves
# are float64 until the window has been applied: then they are as exact as stored ones.
# Cosines are sines a quarter of a turn ahead: ONNX Runtime 1.20 has no float64 Cos.
LOG_MEL = """
LogMel <hop, n_fft, eps> (x, window, filters, past) => (y, next)
{
  zero = Constant<value_int=0>()
  one = Constant<value_int=1>()
  two = Constant<value_int=2>()
  four = Constant<value_int=4>()
  axis1 = Constant<value_ints=[1]>()
  end = Constant<value_ints=[9223372036854775807]>()
  step = Constant<value_int: int = @hop>()
  points = Constant<value_int: int = @n_fft>()
  floor = Constant<value_float: float = @eps>()
  quarter_turn = Constant<value = double {1.5707963267948966}>()

  L = Shape<start=0, end=1>(window)
  width = Squeeze(L)
  sample = Range(zero, width, one)
  sample_column = Unsqueeze(sample, axis1)
  half = Div(points, two)
  bins = Add(half, one)
  bin = Range(zero, bins, one)
  parts = Mul(sample_column, bin)
  part = Mod(parts, points)
  sine = Mul(part, four)
  cosine = Add(sine, points)
  quarters = Concat<axis=1>(cosine, sine)
  quarters_double = Cast<to=11>(quarters)
  points_double = Cast<to=11>(points)
  quarter = Div(quarter_turn, points_double)
  angle = Mul(quarters_double, quarter)
  waves = Sin(angle)
  window_double = Cast<to=11>(window)
  window_column = Unsqueeze(window_double, axis1)
  fourier_double = Mul(window_column, waves)
  fourier = CastLike(fourier_double, past)

  xs = CastLike(x, past)
  full = Concat<axis=1>(past, xs)
  T = Shape<start=1, end=2>(x)
  length = Squeeze(T)
  P = Shape<start=1, end=2>(past)
  frame = Range(zero, length, step)
  reach = Add(P, step)
  first = Sub(reach, L)
  start = Add(frame, first)
  start_column = Unsqueeze(start, axis1)
  index = Add(start_column, sample)
  frames = Gather<axis=1>(full, index)
  spectrum = MatMul(frames, fourier)
  squares = Mul(spectrum, spectrum)
  real, imaginary = Split<axis=-1, num_outputs=2>(squares)
  power = Add(real, imaginary)
  weights = CastLike(filters, past)
  bands = MatMul(power, weights)
  floor_like = CastLike(floor, past)
  raised = Add(bands, floor_like)
  logarithm = Log(raised)
  y = CastLike(logarithm, x)
  next = Slice(full, T, end, axis1)
}
"""
