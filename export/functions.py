"""Plain-ONNX bodies of the ``streamssm`` operators, in ONNX's own text form.

A runtime without our kernels inlines these; one that has them takes the kernels. So the
bodies are the meaning of the file, and they follow two rules: the recurrence runs in the
state's dtype (float32) whatever the dtype of the data, and any B >= 1 and T >= 0 is valid.

Shapes: B batch, T items, D channels, N state size, K conv width, H heads, P head dim,
G groups, W window, R rotary dims. The formulas and their sources are in
``streamssm.kernels.reference``.
"""

from __future__ import annotations

from functools import cache

import onnx
import onnx.parser

from streamssm.export.functions_mel import LOG_MEL

DOMAIN = "streamssm"
DOMAIN_VERSION = 1
OPSET = 21

# y_t = bias + sum_k weight[k] full[t + k], full = [state; x]. Gathering the K shifted
# copies works for every K and T with one body; ONNX Conv would need K in its attributes.
CAUSAL_CONV1D = """
CausalConv1d <silu> (x, weight, bias, state) => (y, next)
{
  zero = Constant<value_int=0>()
  one = Constant<value_int=1>()
  axis1 = Constant<value_ints=[1]>()
  axis2 = Constant<value_ints=[2]>()
  end = Constant<value_ints=[9223372036854775807]>()
  xs = CastLike(x, state)
  weights = CastLike(weight, state)
  biases = CastLike(bias, state)
  full = Concat<axis=1>(state, xs)
  T = Shape<start=1, end=2>(x)
  K = Shape<start=0, end=1>(weight)
  length = Squeeze(T)
  width = Squeeze(K)
  item = Range(zero, length, one)
  item_column = Unsqueeze(item, axis1)
  tap = Range(zero, width, one)
  index = Add(item_column, tap)
  windows = Gather<axis=1>(full, index)
  products = Mul(windows, weights)
  sums = ReduceSum<keepdims=0>(products, axis2)
  linear = Add(sums, biases)
  flag = Constant<value_int: int = @silu>()
  activated = Cast<to=9>(flag)
  result = If (activated) <
    then_branch = with_silu () => (gated) { gate = Sigmoid(linear) gated = Mul(linear, gate) },
    else_branch = without () => (plain) { plain = Identity(linear) }
  >
  y = CastLike(result, x)
  next = Slice(full, T, end, axis1)
}
"""

# ONNX Runtime refuses a Scan over nothing, so T = 0 becomes one item with dt = 0, which
# moves no state, and its output is cut off again.
SELECTIVE_SCAN = """
SelectiveScan (x, dt, A, B, C, D, dt_bias, z, state) => (y, next)
{
  zero = Constant<value_ints=[0]>()
  one = Constant<value_ints=[1]>()
  axis1 = Constant<value_ints=[1]>()
  axis2 = Constant<value_ints=[2]>()
  xs = CastLike(x, state)
  dts = CastLike(dt, state)
  Bs = CastLike(B, state)
  Cs = CastLike(C, state)
  zs = CastLike(z, state)
  shifted = Add(dts, dt_bias)
  delta = Softplus(shifted)
  inflow = Mul(delta, xs)
  T = Shape<start=1, end=2>(x)
  lack = Sub(one, T)
  missing = Max(lack, zero)
  pads = Concat<axis=0>(zero, zero, zero, zero, missing, zero)
  delta_pad = Pad(delta, pads)
  inflow_pad = Pad(inflow, pads)
  B_pad = Pad(Bs, pads)
  C_pad = Pad(Cs, pads)
  next, outflow_pad = Scan <
    num_scan_inputs = 4,
    scan_input_axes = [1, 1, 1, 1],
    scan_output_axes = [1],
    body = step (h, delta_t, inflow_t, B_t, C_t) => (h_next, y_t) {
      delta_row = Unsqueeze(delta_t, axis1)
      exponent = Mul(delta_row, A)
      decay = Exp(exponent)
      kept = Mul(decay, h)
      inflow_row = Unsqueeze(inflow_t, axis1)
      B_column = Unsqueeze(B_t, axis2)
      added = Mul(B_column, inflow_row)
      h_next = Add(kept, added)
      C_row = Unsqueeze(C_t, axis1)
      y_row = MatMul(C_row, h_next)
      y_t = Squeeze(y_row, axis1)
    }
  > (state, delta_pad, inflow_pad, B_pad, C_pad)
  outflow = Slice(outflow_pad, zero, T, axis1)
  skip = Mul(D, xs)
  ungated = Add(outflow, skip)
  sigmoid = Sigmoid(zs)
  gate = Mul(zs, sigmoid)
  gated = Mul(ungated, gate)
  y = CastLike(gated, x)
}
"""

# Chunks of at most 64 items in matmul form, carried by a Scan over the chunks. T is padded
# to a whole number of chunks with dt = 0: decay 1, inflow 0, so the state does not move.
# between[i, j] is summed for each j by itself: as a difference of two running sums it would
# lose a small dt that follows a huge one.
STATE_SPACE_DUAL = """
StateSpaceDual (x, dt, A, B, C, D, state) => (y, next)
{
  zero = Constant<value_ints=[0]>()
  one = Constant<value_ints=[1]>()
  zero_scalar = Constant<value_int=0>()
  one_scalar = Constant<value_int=1>()
  axis1 = Constant<value_ints=[1]>()
  axis2 = Constant<value_ints=[2]>()
  axis3 = Constant<value_ints=[3]>()
  axis_last = Constant<value_ints=[-1]>()
  largest = Constant<value_ints=[64]>()
  zero_float = Constant<value_float=0.0>()
  minus_infinity = Constant<value_float=-1e30>()
  never = CastLike(minus_infinity, state)
  xs = CastLike(x, state)
  dts = CastLike(dt, state)
  Bs = CastLike(B, state)
  Cs = CastLike(C, state)
  padding_value = CastLike(zero_float, state)

  batch = Shape<start=0, end=1>(x)
  T = Shape<start=1, end=2>(x)
  H = Shape<start=2, end=3>(x)
  P = Shape<start=3, end=4>(x)
  G = Shape<start=2, end=3>(B)
  N = Shape<start=3, end=4>(B)
  per_group = Div(H, G)
  shorter = Min(T, largest)
  Q = Max(shorter, one)
  T_some = Max(T, one)
  T_up = Add(T_some, Q)
  T_last = Sub(T_up, one)
  chunks = Div(T_last, Q)
  padded = Mul(chunks, Q)
  missing = Sub(padded, T)
  pads4 = Concat<axis=0>(zero, zero, zero, zero, zero, missing, zero, zero)
  pads3 = Concat<axis=0>(zero, zero, zero, zero, missing, zero)

  x_pad = Pad(xs, pads4, padding_value)
  dt_pad = Pad(dts, pads3, padding_value)
  B_pad = Pad(Bs, pads4, padding_value)
  C_pad = Pad(Cs, pads4, padding_value)
  log_decay_pad = Mul(dt_pad, A)
  dt_column = Unsqueeze(dt_pad, axis_last)
  inflow_pad = Mul(x_pad, dt_column)
  x_shape = Concat<axis=0>(batch, chunks, Q, H, P)
  scalar_shape = Concat<axis=0>(batch, chunks, Q, H)
  group_shape = Concat<axis=0>(batch, chunks, Q, G, N)
  inflow_chunked = Reshape<allowzero=1>(inflow_pad, x_shape)
  log_decay_chunked = Reshape<allowzero=1>(log_decay_pad, scalar_shape)
  B_chunked = Reshape<allowzero=1>(B_pad, group_shape)
  C_chunked = Reshape<allowzero=1>(C_pad, group_shape)
  inflow = Transpose<perm=[0, 1, 3, 2, 4]>(inflow_chunked)
  log_decay = Transpose<perm=[0, 1, 3, 2]>(log_decay_chunked)
  B_grouped = Transpose<perm=[0, 1, 3, 2, 4]>(B_chunked)
  C_grouped = Transpose<perm=[0, 1, 3, 2, 4]>(C_chunked)

  Q_scalar = Squeeze(Q)
  position = Range(zero_scalar, Q_scalar, one_scalar)
  row = Unsqueeze(position, axis1)
  future = Less(row, position)
  after = Greater(row, position)
  repeat_shape = Concat<axis=0>(batch, G, per_group, Q, N)
  head_shape = Concat<axis=0>(batch, H, Q, N)

  next, outflow = Scan <
    num_scan_inputs = 4,
    scan_input_axes = [1, 1, 1, 1],
    scan_output_axes = [1],
    body = chunk (h, u, a, b, c) => (h_next, y_chunk) {
      b_group = Unsqueeze(b, axis2)
      b_repeated = Expand(b_group, repeat_shape)
      b_head = Reshape<allowzero=1>(b_repeated, head_shape)
      c_group = Unsqueeze(c, axis2)
      c_repeated = Expand(c_group, repeat_shape)
      c_head = Reshape<allowzero=1>(c_repeated, head_shape)
      time_axis = Constant<value_int=2>()
      a_column = Unsqueeze(a, axis_last)
      total_column = CumSum(a_column, time_axis)
      a_between = Where(after, a_column, padding_value)
      between = CumSum(a_between, time_axis)
      causal = Where(future, never, between)
      decay = Exp(causal)
      b_turned = Transpose<perm=[0, 1, 3, 2]>(b_head)
      scores = MatMul(c_head, b_turned)
      weights = Mul(scores, decay)
      within = MatMul(weights, u)
      since_start = Exp(total_column)
      c_decayed = Mul(c_head, since_start)
      across = MatMul(c_decayed, h)
      y_chunk = Add(within, across)
      minus_one = Constant<value_ints=[-1]>()
      end = Constant<value_ints=[9223372036854775807]>()
      until_end = Slice(decay, minus_one, end, axis2)
      b_decayed = Mul(b_turned, until_end)
      gained = MatMul(b_decayed, u)
      whole = Slice(since_start, minus_one, end, axis2)
      kept = Mul(h, whole)
      h_next = Add(kept, gained)
    }
  > (state, inflow, log_decay, B_grouped, C_grouped)

  y_turned = Transpose<perm=[0, 1, 3, 2, 4]>(outflow)
  y_shape = Concat<axis=0>(batch, padded, H, P)
  y_flat = Reshape<allowzero=1>(y_turned, y_shape)
  y_items = Slice(y_flat, zero, T, axis1)
  skip = Mul(xs, D)
  sum = Add(y_items, skip)
  y = CastLike(sum, x)
}
"""


def _rotation(p: str, source: str, cosine: str, sine: str) -> str:
    """Lines that rotate pairs (d, d + R/2) of ``source`` into ``{p}_rotated``; other dims stay."""
    return f"""
  {p}_first = Slice({source}, zero, half, axis_last)
  {p}_second = Slice({source}, half, rotary, axis_last)
  {p}_rest = Slice({source}, rotary, end, axis_last)
  {p}_first_cosine = Mul({p}_first, {cosine})
  {p}_second_sine = Mul({p}_second, {sine})
  {p}_second_cosine = Mul({p}_second, {cosine})
  {p}_first_sine = Mul({p}_first, {sine})
  {p}_turned_first = Sub({p}_first_cosine, {p}_second_sine)
  {p}_turned_second = Add({p}_second_cosine, {p}_first_sine)
  {p}_rotated = Concat<axis=-1>({p}_turned_first, {p}_turned_second, {p}_rest)
"""


# Keys stay un-rotated in the ring and are rotated by their place in the working window
# [W past items; T new items]: only differences of places matter, so the angles stay below
# W + T however old the stream is.
SLIDING_WINDOW_ATTENTION = (
    """
SlidingWindowAttention <scale> (q, k, v, inv_freq, key, value, position)
  => (y, next_key, next_value, next_position)
{
  zero = Constant<value_ints=[0]>()
  one = Constant<value_ints=[1]>()
  zero_scalar = Constant<value_int=0>()
  one_scalar = Constant<value_int=1>()
  axis1 = Constant<value_ints=[1]>()
  axis2 = Constant<value_ints=[2]>()
  axis_last = Constant<value_ints=[-1]>()
  end = Constant<value_ints=[9223372036854775807]>()
  minus_infinity = Constant<value_float=-3.4e38>()
  factor = Constant<value_float: float = @scale>()
  never = CastLike(minus_infinity, key)
  scaling = CastLike(factor, key)

  batch = Shape<start=0, end=1>(q)
  T = Shape<start=1, end=2>(q)
  Hq = Shape<start=2, end=3>(q)
  dh = Shape<start=3, end=4>(q)
  Hkv = Shape<start=1, end=2>(key)
  W = Shape<start=2, end=3>(key)
  W_scalar = Squeeze(W)
  T_scalar = Squeeze(T)
  per_kv = Div(Hq, Hkv)
  span = Add(W_scalar, T_scalar)
  span_axis = Add(W, T)

  qs = CastLike(q, key)
  ks = CastLike(k, key)
  vs = CastLike(v, key)
  q_heads = Transpose<perm=[0, 2, 1, 3]>(qs)
  k_heads = Transpose<perm=[0, 2, 1, 3]>(ks)
  v_heads = Transpose<perm=[0, 2, 1, 3]>(vs)

  place = Range(zero_scalar, span, one_scalar)
  slot = Range(zero_scalar, W_scalar, one_scalar)
  start = Unsqueeze(position, axis1)
  past_slot_sum = Add(start, slot)
  past_slot = Mod(past_slot_sum, W_scalar)
  past_index_flat = Unsqueeze(past_slot, axis1)
  past_index_column = Unsqueeze(past_index_flat, axis_last)
  past_shape = Concat<axis=0>(batch, Hkv, W, dh)
  past_index = Expand(past_index_column, past_shape)
  past_key = GatherElements<axis=2>(key, past_index)
  past_value = GatherElements<axis=2>(value, past_index)
  keys = Concat<axis=2>(past_key, k_heads)
  values = Concat<axis=2>(past_value, v_heads)

  newest = Add(start, T_scalar)
  last = Sub(newest, one_scalar)
  behind_slot = Sub(last, slot)
  behind = Mod(behind_slot, W_scalar)
  from_end = Sub(span, one_scalar)
  ring_place = Sub(from_end, behind)
  ring_flat = Unsqueeze(ring_place, axis1)
  ring_column = Unsqueeze(ring_flat, axis_last)
  ring_index = Expand(ring_column, past_shape)
  next_key = GatherElements<axis=2>(keys, ring_index)
  next_value = GatherElements<axis=2>(values, ring_index)
  next_position = Add(position, T_scalar)

  place_column = Unsqueeze(place, axis1)
  place_float = CastLike(place_column, key)
  angle = Mul(place_float, inv_freq)
  cosine = Cos(angle)
  sine = Sin(angle)
  half = Shape<start=0, end=1>(inv_freq)
  rotary = Add(half, half)
  q_cosine = Slice(cosine, W, end, zero)
  q_sine = Slice(sine, W, end, zero)
"""
    + _rotation("q", "q_heads", "q_cosine", "q_sine")
    + _rotation("k", "keys", "cosine", "sine")
    + """
  query_number = Range(zero_scalar, T_scalar, one_scalar)
  query_column = Unsqueeze(query_number, axis1)
  query_place = Add(query_column, W_scalar)
  after_window = Greater(place, query_column)
  before_future = LessOrEqual(place, query_place)
  in_window = And(after_window, before_future)
  first_valid = Sub(W_scalar, start)
  exists = GreaterOrEqual(place, first_valid)
  exists_rows = Unsqueeze(exists, axis1)
  visible_rows = And(in_window, exists_rows)
  visible_group = Unsqueeze(visible_rows, axis1)
  visible = Unsqueeze(visible_group, axis1)

  q_group_shape = Concat<axis=0>(batch, Hkv, per_kv, T, dh)
  q_grouped = Reshape<allowzero=1>(q_rotated, q_group_shape)
  k_group = Unsqueeze(k_rotated, axis2)
  v_group = Unsqueeze(values, axis2)
  k_columns = Transpose<perm=[0, 1, 2, 4, 3]>(k_group)
  scores = MatMul(q_grouped, k_columns)
  scaled = Mul(scores, scaling)
  masked = Where(visible, scaled, never)
  weights = Softmax<axis=-1>(masked)
  mixed = MatMul(weights, v_group)
  y_shape = Concat<axis=0>(batch, Hq, T, dh)
  y_heads = Reshape<allowzero=1>(mixed, y_shape)
  y_items = Transpose<perm=[0, 2, 1, 3]>(y_heads)
  y = CastLike(y_items, q)
}
"""
)

_BODIES = {
    "CausalConv1d": CAUSAL_CONV1D,
    "SelectiveScan": SELECTIVE_SCAN,
    "StateSpaceDual": STATE_SPACE_DUAL,
    "SlidingWindowAttention": SLIDING_WINDOW_ATTENTION,
    "LogMel": LOG_MEL,
}

OPERATORS = tuple(_BODIES)


@cache
def function(name: str) -> onnx.FunctionProto:
    """The model-local function that defines the operator ``name``."""
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>'
    return onnx.parser.parse_function(header + _BODIES[name])
