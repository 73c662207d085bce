"""The ops of the domain ``ai.storyloom``: each a function whose body is standard ONNX, so that any runtime runs it.

A runtime that has a kernel of the same name (a TensorRT plugin) takes that instead. Shapes: R rows, N positions of a
layer, H heads, d head dimension, T text tokens, K characters, S rows that maps come from. Heads follow positions, as
projections leave them, so that no op begins or ends with a transposition.
"""

# mypy: ignore-errors
# onnxscript reads these functions as a language of its own: operators and names mean ONNX's.

from __future__ import annotations

from onnx import FunctionProto, TensorProto
from onnxscript import graph, script, values
from onnxscript import opset18 as op

DOMAIN = "ai.storyloom"
VERSION = 1
OPSET = 18
BFLOAT16_OPSET = 22

_OURS = values.Opset(DOMAIN, VERSION)
_FLOAT: int = TensorProto.FLOAT
_DOUBLE: int = TensorProto.DOUBLE
_INT32: int = TensorProto.INT32
_INT64: int = TensorProto.INT64
_TINY = 1.1754943508222875e-38
"""The least normal float32: ``torch.finfo(torch.float32).tiny``."""
_LOWEST = -3.4028234663852886e38
"""The least float32: what no softmax beside anything else gives a share."""


@script(_OURS, default_opset=op)
def Bank(mask):  # noqa: N802
    """The foreground of all rows, gathered: ``storyloom_kernels.compact``.

    bool [R, N] -> ``index`` int32 [R * N], row * N + position of each slot, 0 past the last; ``offsets`` int32 [R + 1].
    """
    counts = op.ReduceSum(op.Cast(mask, to=_INT64), op.Constant(value_ints=[1]), keepdims=0)
    ends = op.CumSum(counts, op.Constant(value_int=0))
    offsets = op.Cast(op.Concat(op.Constant(value_ints=[0]), ends, axis=0), to=_INT32)
    flat = op.Reshape(mask, op.Constant(value_ints=[-1]))
    chosen = op.Reshape(op.NonZero(flat), op.Constant(value_ints=[-1]))
    missing = op.Reshape(op.Sub(op.Size(flat), op.Size(chosen)), op.Constant(value_ints=[1]))
    surplus = op.Expand(op.Constant(value_ints=[0]), missing)
    index = op.Cast(op.Concat(chosen, surplus, axis=0), to=_INT32)
    return index, offsets


@script(_OURS, default_opset=op)
def CrossFrameAttention(q, k, v, index, offsets, bounds):  # noqa: N802
    """K1: each row sees all of itself, and of the other rows of its group the foreground.

    q, k, v [R, N, H, d]; ``index`` and ``offsets`` of ``Bank``; ``bounds`` int32 [R, 2], first and one past the last
    row of each row's group -> [R, N, H, d].

    Row by row, so that the cost follows the true number of keys, memory that of one row, and a row's result does not
    depend on the rows of other groups.
    """
    first_axis = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    shape = op.Shape(q)
    flat = op.Concat(op.Constant(value_ints=[-1]), op.Slice(shape, op.Constant(value_ints=[2]), [4]), axis=0)
    all_keys = op.Reshape(k, flat)
    all_values = op.Reshape(v, flat)
    width = op.Cast(op.Slice(shape, op.Constant(value_ints=[3]), op.Constant(value_ints=[4])), to=_FLOAT)
    scale = op.CastLike(op.Reciprocal(op.Sqrt(width)), q)
    rows = op.Range(op.Constant(value_int=0), op.Squeeze(op.Slice(shape, first_axis, one)), op.Constant(value_int=1))
    slot_ends = op.Cast(offsets, to=_INT64)
    in_float32 = op.Constant(value_float=0.0)
    groups = op.Cast(bounds, to=_INT64)

    @graph()
    def attend(row, group, query, key, value):
        place = op.Unsqueeze(row, first_axis)
        ends = op.Gather(slot_ends, group)
        begin = op.Slice(ends, first_axis, one)
        end = op.Slice(ends, one, op.Constant(value_ints=[2]))
        own_begin = op.Gather(slot_ends, place)
        own_end = op.Gather(slot_ends, op.Add(place, one))
        others = op.Concat(op.Slice(index, begin, own_begin), op.Slice(index, own_end, end), axis=0)
        keys = op.Transpose(op.Concat(key, op.Gather(all_keys, others), axis=0), perm=[1, 2, 0])
        values_ = op.Transpose(op.Concat(value, op.Gather(all_values, others), axis=0), perm=[1, 0, 2])
        queries = op.Transpose(op.Mul(query, scale), perm=[1, 0, 2])
        shares = op.Softmax(op.CastLike(op.MatMul(queries, keys), in_float32), axis=-1)
        attended = op.MatMul(op.CastLike(shares, value), values_)
        return op.Transpose(attended, perm=[1, 0, 2])

    return op.Scan(rows, groups, q, k, v, body=attend, num_scan_inputs=5)


@script(_OURS, default_opset=op)
def CrossAttentionWithMaps(q, k, v, token_mask):  # noqa: N802
    """K2 without identities: text cross-attention, and each head's share of the characters' maps.

    q [R, N, H, d]; k, v [R, T, H, d]; ``token_mask`` bool [R, K, T] -> output [R, N, H, d], maps float32 [R, H, K, N].
    """
    shape = op.Shape(q)
    width = op.Cast(op.Slice(shape, op.Constant(value_ints=[3]), op.Constant(value_ints=[4])), to=_FLOAT)
    scaled = op.Mul(q, op.CastLike(op.Reciprocal(op.Sqrt(width)), q))
    queries = op.Transpose(scaled, perm=[0, 2, 1, 3])
    scores = op.Cast(op.MatMul(queries, op.Transpose(k, perm=[0, 2, 3, 1])), to=_FLOAT)
    shares = op.Softmax(scores, axis=-1)
    attended = op.MatMul(op.CastLike(shares, v), op.Transpose(v, perm=[0, 2, 1, 3]))
    out = op.Transpose(attended, perm=[0, 2, 1, 3])
    chosen = op.Cast(token_mask, to=_FLOAT)
    count = op.Max(op.ReduceSum(chosen, [-1], keepdims=1), op.Constant(value_float=1.0))
    weights = op.Unsqueeze(op.Div(chosen, count), [1])
    maps = op.MatMul(weights, op.Transpose(shares, perm=[0, 1, 3, 2]))
    return out, maps


@script(_OURS, default_opset=op)
def IdentityAttention(attended, q, id_k, id_v, ends, scale, owner, maps, present, source_of_row):  # noqa: N802
    """The rest of K2: what the identity tokens of each character add to the text, where the character is.

    ``attended`` and q [R, N, H, d]; id_k, id_v [R, I, H, d], the I tokens of a row's C streams, one stream after the
    other; ``ends`` int32 [R, C], ``scale`` float32 [R, C] and ``owner`` int32 [R, C] as in
    ``storyloom_model.identity.streams``; ``maps`` float32 [S, K, N], ``present`` bool [S, K] and ``source_of_row``
    int32 [R], of which the regions are made as ``storyloom_model.identity.regions`` does -> [R, N, H, d].

    Where no row has a token nothing is computed.
    """
    zero = op.Constant(value_float=0.0)
    last_ends = op.Cast(ends, to=_INT64)
    if op.Greater(op.ReduceMax(last_ends, keepdims=0), op.Constant(value_int=0)):
        seen = op.Where(op.Unsqueeze(present, [2]), maps, zero)
        peak = op.ReduceMax(seen, [1], keepdims=1)
        known = op.GreaterOrEqual(peak, op.Constant(value_float=_TINY))
        relative = op.Where(
            known, op.Div(seen, op.Where(known, peak, op.Constant(value_float=1.0))),
            op.Cast(op.Unsqueeze(present, [2]), to=_FLOAT),
        )  # fmt: skip
        squares = op.Mul(relative, relative)
        total = op.Max(op.ReduceSum(squares, [1], keepdims=1), op.Constant(value_float=1.0))
        of_characters = op.Gather(op.Div(squares, total), source_of_row, axis=0)
        characters = op.Squeeze(op.Slice(op.Shape(maps), [1], [2]))
        places = op.Range(op.Constant(value_int=0), characters, op.Constant(value_int=1))
        owners = op.Cast(owner, to=_INT64)
        owns = op.Cast(op.Equal(op.Unsqueeze(owners, [2]), places), to=_FLOAT)
        everywhere = op.Cast(op.Less(owners, op.Constant(value_int=0)), to=_FLOAT)
        region = op.Add(op.MatMul(owns, of_characters), op.Unsqueeze(everywhere, [2]))

        width = op.Cast(op.Slice(op.Shape(q), [3], [4]), to=_FLOAT)
        queries = op.Transpose(op.Mul(q, op.CastLike(op.Reciprocal(op.Sqrt(width)), q)), perm=[0, 2, 1, 3])
        scores = op.Cast(op.MatMul(queries, op.Transpose(id_k, perm=[0, 2, 3, 1])), to=_FLOAT)
        values_ = op.Transpose(id_v, perm=[0, 2, 1, 3])
        tokens = op.Squeeze(op.Slice(op.Shape(id_k), [1], [2]))
        slot = op.Unsqueeze(op.Range(op.Constant(value_int=0), tokens, op.Constant(value_int=1)), [0])
        nothing = op.Constant(value_float=_LOWEST)
        begin = op.Mul(op.Slice(last_ends, [0], [1], [1]), op.Constant(value_int=0))
        out = op.Cast(attended, to=_FLOAT)
        for stream in range(op.Squeeze(op.Slice(op.Shape(ends), [1], [2]))):
            end = op.Unsqueeze(op.Gather(last_ends, stream, axis=1), [1])
            own = op.And(op.GreaterOrEqual(slot, begin), op.Less(slot, end))
            # An empty stream sees what is not its own and then counts nothing, as a softmax of nothing is not a number.
            shares = op.Softmax(op.Where(op.Unsqueeze(own, [1, 2]), scores, nothing), axis=-1)
            said = op.Transpose(op.MatMul(op.CastLike(shares, values_), values_), perm=[0, 2, 1, 3])
            filled = op.Cast(op.Greater(end, begin), to=_FLOAT)
            counts = op.Mul(filled, op.Unsqueeze(op.Gather(scale, stream, axis=1), [1]))
            weight = op.Mul(counts, op.Gather(region, stream, axis=1))
            out = op.Add(out, op.Mul(op.Unsqueeze(weight, [2, 3]), op.Cast(said, to=_FLOAT)))
            begin = end
        result = op.CastLike(out, attended)
    else:
        result = op.Identity(attended)
    return result


@script(_OURS, default_opset=op)
def ForegroundOtsu(maps):  # noqa: N802
    """K3 by Otsu's rule, as ``storyloom_kernels.foreground`` has it: float32 [S, K, N] -> bool [S, K, N]."""
    zero = op.Constant(value_float=0.0)
    finite = op.Where(op.Or(op.IsNaN(maps), op.IsInf(maps)), zero, maps)
    low = op.ReduceMin(finite, [-1], keepdims=1)
    extent = op.Sub(op.ReduceMax(finite, [-1], keepdims=1), low)
    varies = op.Greater(extent, zero)
    levels = op.Where(varies, op.Div(op.Sub(finite, low), op.Where(varies, extent, op.Constant(value_float=1.0))), zero)
    last_bin = op.Constant(value_int=255)
    bins = op.Min(op.Cast(op.Mul(levels, op.Constant(value_float=256.0)), to=_INT64), last_bin)

    one = op.Constant(value_int=1)
    shape = op.Shape(maps)
    positions = op.Slice(shape, [2], [3])
    of_histogram = op.Concat(op.Slice(shape, [0], [2]), op.Constant(value_ints=[256]), axis=0)
    empty = op.Expand(op.Constant(value_int=0), of_histogram)
    ones = op.Expand(one, shape)
    histogram = op.ScatterElements(empty, bins, ones, axis=2, reduction="add")
    last_axis = op.Constant(value_int=2)
    below = op.CumSum(histogram, last_axis)
    mass = op.CumSum(op.Mul(histogram, op.Range(op.Constant(value_int=0), op.Constant(value_int=256), one)), last_axis)
    total = op.Slice(mass, [255], [256], [2])
    difference = op.Cast(op.Sub(op.Mul(total, below), op.Mul(mass, positions)), to=_DOUBLE)
    pairs = op.Cast(op.Max(op.Mul(below, op.Sub(positions, below)), one), to=_DOUBLE)
    variance = op.Div(op.Mul(difference, difference), pairs)
    return op.Greater(bins, op.ArgMax(variance, axis=2, keepdims=1))


@script(_OURS, default_opset=op)
def ForegroundQuantile(maps, value: float):  # noqa: N802
    """K3 by a quantile of each map: float32 [S, K, N] -> bool [S, K, N]."""
    zero = op.Constant(value_float=0.0)
    finite = op.Where(op.Or(op.IsNaN(maps), op.IsInf(maps)), zero, maps)
    low = op.ReduceMin(finite, [-1], keepdims=1)
    extent = op.Sub(op.ReduceMax(finite, [-1], keepdims=1), low)
    varies = op.Greater(extent, zero)
    levels = op.Where(varies, op.Div(op.Sub(finite, low), op.Where(varies, extent, op.Constant(value_float=1.0))), zero)

    positions = op.Slice(op.Shape(maps), [2], [3])
    ordered, _places = op.TopK(levels, positions, axis=2, largest=0, sorted=1)
    last = op.Cast(op.Sub(positions, op.Constant(value_ints=[1])), to=_FLOAT)
    rank = op.Mul(op.Constant(value_float=value), last)
    lower = op.Floor(rank)
    upper = op.Min(op.Add(lower, op.Constant(value_float=1.0)), last)
    begin = op.Gather(ordered, op.Cast(lower, to=_INT64), axis=2)
    end = op.Gather(ordered, op.Cast(upper, to=_INT64), axis=2)
    share = op.Sub(rank, lower)
    span = op.Sub(end, begin)
    from_begin = op.Add(begin, op.Mul(share, span))
    from_end = op.Sub(end, op.Mul(op.Sub(op.Constant(value_float=1.0), share), span))
    threshold = op.Where(op.Less(share, op.Constant(value_float=0.5)), from_begin, from_end)
    return op.Greater(levels, threshold)


@script(_OURS, default_opset=op)
def ForegroundFixed(maps, value: float):  # noqa: N802
    """K3 by a fixed threshold of the normalised map: float32 [S, K, N] -> bool [S, K, N]."""
    zero = op.Constant(value_float=0.0)
    finite = op.Where(op.Or(op.IsNaN(maps), op.IsInf(maps)), zero, maps)
    low = op.ReduceMin(finite, [-1], keepdims=1)
    extent = op.Sub(op.ReduceMax(finite, [-1], keepdims=1), low)
    varies = op.Greater(extent, zero)
    levels = op.Where(varies, op.Div(op.Sub(finite, low), op.Where(varies, extent, op.Constant(value_float=1.0))), zero)
    return op.Greater(levels, op.Constant(value_float=value))


@script(_OURS, default_opset=op)
def GroupNormSilu(x, weight, bias, groups: int, epsilon: float):  # noqa: N802
    """K4: group normalisation and SiLU, in float32: x [B, C, h, w]; weight, bias [C] -> [B, C, h, w], dtype of x."""
    shape = op.Shape(x)
    number = op.Reshape(op.Constant(value_int=groups), [1])
    grouped = op.Concat(op.Slice(shape, [0], [1]), number, op.Constant(value_ints=[-1]), axis=0)
    one = op.Expand(op.Constant(value_float=1.0), number)
    zero = op.Expand(op.Constant(value_float=0.0), number)
    normal = op.InstanceNormalization(op.Reshape(op.Cast(x, to=_FLOAT), grouped), one, zero, epsilon=epsilon)
    scale = op.Unsqueeze(op.Cast(weight, to=_FLOAT), [1, 2])
    shift = op.Unsqueeze(op.Cast(bias, to=_FLOAT), [1, 2])
    y = op.Add(op.Mul(op.Reshape(normal, shape), scale), shift)
    return op.CastLike(op.Mul(y, op.Sigmoid(y)), x)


_FUNCTIONS = (
    Bank,
    CrossFrameAttention,
    CrossAttentionWithMaps,
    IdentityAttention,
    ForegroundOtsu,
    ForegroundQuantile,
    ForegroundFixed,
    GroupNormSilu,
)


def function_protos() -> dict[str, FunctionProto]:
    """Every op's body by its name."""
    return {function.name: function.to_function_proto() for function in _FUNCTIONS}
