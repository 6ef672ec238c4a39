"""The ops of a forward pass in NumPy float64: one pure function per op of a plan.

A function takes the values that the step reads, then its weights, then its numbers by name. Shapes:
T tokens in this call, S tokens in context, H heads, K kv heads, Dh head size, Dv value size,
D width, F feed-forward width, V vocabulary size. Weights are (out, in).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..architectures.plan import FUNCTIONS as NAMES
from ..base.numeric import Float64
from .experts import expert_matmul, route_ids, route_probs, route_weights, weighted_sum

__all__ = [
    "FUNCTIONS",
    "OPS",
    "add",
    "add_shared",
    "alibi_slopes",
    "combine",
    "concat",
    "conv",
    "cut",
    "decay",
    "delta",
    "embed",
    "exp",
    "gated",
    "head_linear",
    "layer_norm",
    "layer_scale",
    "linear",
    "masked_scores",
    "match_rms",
    "mix_values",
    "norm",
    "norm_mean",
    "norm_scale",
    "relative_buckets",
    "rope_frequencies",
    "rotate",
    "same",
    "scale",
    "scan",
    "scan_channels",
    "shape",
    "shift",
    "softmax",
    "softplus",
    "sparsify",
    "temper",
    "unary",
    "visible_keys",
    "wkv",
    "xielu",
]

Ids = NDArray[np.int64]


def embed(ids: Ids, table: Float64, *, index: float = 0, **shape: float) -> Float64:
    """Return rows of a table. (T,), (V, D) -> (T, D).

    `ids` are the tokens, or the positions if `index` is 1. If it is 2, all rows are the first one.
    """
    rows: Float64 = table[np.zeros_like(ids) if index == 2 else ids]
    return rows


def same(x: Float64) -> Float64:
    """Return x unchanged: the input of a block is the output of the previous one."""
    return x


def add(x: Float64, y: Float64) -> Float64:
    """Return x + y: a branch is added to the residual stream. (T, D), (T, D) -> (T, D)."""
    return x + y


def shape(x: Float64, *, heads: float, size: float) -> Float64:
    """Return the same values as (T, heads, size), or (T, size) for 0 heads."""
    return x.reshape(len(x), *([int(heads)] if heads else []), int(size))


def cut(x: Float64, *, axis: float, first: float, size: float) -> Float64:
    """Return part of an axis of each row. Axis 0 is the first one after T."""
    part: Float64 = np.take(x, np.arange(int(first), int(first + size)), axis=int(axis) + 1)
    return part


def concat(x: Float64, y: Float64) -> Float64:
    """Return y behind x in each head. (T, H, n), (T, H or 1, m) -> (T, H, n + m)."""
    return np.concatenate([x, np.broadcast_to(y, (*x.shape[:2], y.shape[2]))], axis=2)


def combine(x: Float64, coefficients: Float64) -> Float64:
    """Return weighted sums of vectors. (T, n, D), (T, m n values) -> (T, m, D)."""
    y: Float64 = coefficients.reshape(len(x), -1, x.shape[1]) @ x
    return y


def add_shared(x: Float64, y: Float64) -> Float64:
    """Return the sum of each vector with one. (T, n, D), (T, D) -> (T, n, D)."""
    return x + y[:, np.newaxis]


def match_rms(x: Float64, like: Float64, *, epsilon: float) -> Float64:
    """Return vectors with the root mean square of another one. (T, n, D), (T, D) -> (T, n, D)."""
    wanted = np.sqrt(np.mean(like**2, axis=-1))[:, np.newaxis, np.newaxis]
    own = np.sqrt(np.maximum(np.mean(x**2, axis=-1, keepdims=True), epsilon))
    y: Float64 = x * wanted / own
    return y


def sparsify(x: Float64, mean: Float64, scale: Float64, *, factor: float) -> Float64:
    """Return what is above mean + factor / scale, else 0. (T, ..., F), (T, ...) -> (T, ..., F)."""
    return np.maximum(x - _like(mean + factor / scale, x), 0)


def norm_scale(x: Float64, *, epsilon: float, kind: float = 0, axes: float = 1) -> Float64:
    """Return 1 / sqrt(mean(x^2) + epsilon) over the last axes: RMSNorm's scale. (T, D) -> (T,).

    Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", equation 4. With `kind` 1 the
    sum replaces the mean: the L2 norm.
    """
    last = tuple(range(-int(axes), 0))
    mean = np.sum if kind == 1 else np.mean
    scale: Float64 = 1 / np.sqrt(mean(x * x, axis=last) + epsilon)
    return scale


def _like(statistic: Float64, x: Float64) -> Float64:
    """Return a statistic of vectors of x with axes of length 1 at the end, to combine it with x."""
    return statistic.reshape(statistic.shape + (1,) * (x.ndim - statistic.ndim))


def _weights_like(weight: Float64, x: Float64) -> Float64:
    """Return a weight that covers the last axes of x, in their shape."""
    axes = next(n for n in range(1, x.ndim) if math.prod(x.shape[-n:]) == weight.size)
    return weight.reshape(x.shape[-axes:])


def norm(x: Float64, scale: Float64, weight: Float64 | None = None, *, axes: float = 0) -> Float64:
    """Return x * scale * weight, the second step of RMSNorm. (T, D), (T,), (D,) -> (T, D).

    The weight covers the last axes of x, which are at least the vectors.
    """
    y = x * _like(scale, x)
    return y if weight is None else y * _weights_like(weight, x)


def norm_mean(x: Float64) -> Float64:
    """Return the mean over the last axis, the first step of LayerNorm. (T, D) -> (T,)."""
    mean: Float64 = np.mean(x, axis=-1)
    return mean


def layer_scale(x: Float64, mean: Float64, *, epsilon: float) -> Float64:
    """Return 1 / sqrt(variance + epsilon) over the last axis. (T, D), (T,) -> (T,).

    Ba et al. 2016, "Layer Normalization" (arXiv:1607.06450).
    """
    return norm_scale(x - _like(mean, x), epsilon=epsilon)


def layer_norm(
    x: Float64,
    mean: Float64,
    scale: Float64,
    weight: Float64 | None = None,
    bias: Float64 | None = None,
    *,
    axes: float = 0,
) -> Float64:
    """Return (x - mean) * scale * weight + bias. (T, D), (T,), (T,), (D,), (D,) -> (T, D)."""
    y = (x - _like(mean, x)) * _like(scale, x)
    y = y if weight is None else y * _weights_like(weight, x)
    return y if bias is None else y + _weights_like(bias, x)


def linear(
    x: Float64,
    weight: Float64,
    bias: Float64 | None = None,
    scale: Float64 | None = None,
    *,
    heads: float = 0,
    size: float = 0,
    first: float = 0,
    rows: float = 0,
) -> Float64:
    """Return scale (x W^T) + b. (T, ...), (out, in), (out,) -> (T, out), or (T, heads, size).

    W is the rows of the tensor from `first` on. `rows` is how many the tensor has, 0 if it is W.
    """
    begin, end = int(first), int(first + max(heads, 1) * size)
    # one row may be a vector, and the rows of heads an axis of their own
    matrix = np.atleast_2d(weight).reshape(-1, weight.shape[-1])[begin:end]
    y = x.reshape(len(x), -1) @ matrix.T
    y = y if scale is None else y * scale
    if bias is not None:
        y = y + (bias[begin:end] if len(bias) == rows else bias)
    return y.reshape(len(y), int(heads), -1) if heads else y


def head_linear(
    x: Float64,
    weight: Float64,
    bias: Float64 | None = None,
    scale: Float64 | None = None,
    *,
    size: float,
    first: float = 0,
    rows: float = 0,
) -> Float64:
    """Return the product of each head with its matrix. (T, H, n), (H, rows, n) -> (T, H, size)."""
    part = slice(int(first), int(first + size))
    y: Float64 = np.einsum("thn,hmn->thm", x, weight[:, part])
    y = y if scale is None else y * scale[:, np.newaxis]
    return y if bias is None else y + bias[:, part]


def temper(
    x: Float64, positions: Ids, *, slope: float, length: float, offset: float = 0
) -> Float64:
    """Return x times 1 + slope ln(1 + floor((position + offset) / length)). (T, ...) -> same.

    Llama 4's attention temperature (Meta, llama-models, models/llama4/model.py).
    """
    factor = 1 + slope * np.log(1 + np.floor((positions + offset) / length))
    return x * _like(factor, x)


def rotate(
    x: Float64, positions: Ids, factors: Float64 | None = None, *, layout: float, **numbers: float
) -> Float64:
    """Return x with pair j of each head rotated by position * frequency_j. (T, H, Dh) -> same.

    With angle a, (x0, x1) becomes (x0 cos a - x1 sin a, x0 sin a + x1 cos a). In layout 0 the
    pairs are (2j, 2j + 1), in layout 1 they are (j, j + rotated / 2). Values from index
    ``rotated`` on are unchanged. Su et al. 2021, "RoFormer", equation 34.
    """
    frequencies, magnitude = rope_frequencies(factors, **numbers)
    angles = positions[:, np.newaxis, np.newaxis] * frequencies  # (T, 1, pairs)
    cos, sin = magnitude * np.cos(angles), magnitude * np.sin(angles)
    n = len(frequencies)
    first, second = slice(0, 2 * n, 2), slice(1, 2 * n, 2)
    if layout == 1:
        first, second = slice(0, n), slice(n, 2 * n)
    y = x.copy()
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., first] * sin + x[..., second] * cos
    return y


def rope_frequencies(
    factors: Float64 | None = None,
    *,
    rotated: float,
    base: float,
    scaling: float = 0,
    factor: float = 1,
    original_context_length: float = 1,
    beta_fast: float = 32,
    beta_slow: float = 1,
    ext_factor: float = 1,
    attn_factor: float = 1,
    rounded: float = 1,
) -> tuple[Float64, float]:
    """Return the angle per position of each pair, and the factor of cos and sin.

    Parameters
    ----------
    factors : (rotated / 2,) float64 array, optional
        Divisors of the frequencies: ``rope_freqs.weight``, with which Llama 3.1 extends its
        context.
    rotated, base : float
        The frequencies are base^(-2j / rotated) / factors[j], then scaled.
    scaling : float
        0 does not scale. 1, linear scaling (Chen et al. 2023, "Position Interpolation"), divides
        all frequencies by `factor`. 2, YaRN (Peng et al. 2023, section 3.2), divides frequencies
        with fewer than `beta_slow` rotations in the original context, keeps those with more than
        `beta_fast`, and interpolates in between. The interpolation is linear in j, as in the
        authors' code and in ggml's ``rope_yarn``; in the paper it is linear in the number of
        rotations.
    factor, original_context_length, beta_fast, beta_slow : float
        See `scaling`.
    ext_factor : float
        For YaRN: multiplies the share of the unscaled frequencies, as in ggml.
    attn_factor : float
        See `magnitude`.
    rounded : float
        For YaRN: whether the range of interpolated pairs is rounded outwards.

    Returns
    -------
    frequencies : (rotated / 2,) float64 array
    magnitude : float
        `attn_factor`. With YaRN it is multiplied by 1 + 0.1 ln `factor` (equation 22 of the
        paper).
    """
    n = int(rotated)
    pair = np.arange(n // 2)
    frequencies = base ** (-2 * pair / n)
    if factors is not None:
        frequencies = frequencies / factors
    if scaling == 0:
        return frequencies, attn_factor
    if scaling == 1:
        return frequencies / factor, attn_factor

    def pair_with(rotations: float) -> float:
        """Return the index j, not rounded, of the pair with this number of rotations."""
        period = original_context_length / (rotations * 2 * math.pi)
        return n * math.log(period) / (2 * math.log(base))

    first, last = pair_with(beta_fast), pair_with(beta_slow)
    if rounded:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(0, first), min(n - 1, last)
    kept = 1 - np.clip((pair - first) / max(0.001, last - first), 0, 1)
    kept = kept * ext_factor
    magnitude = attn_factor * (1 + 0.1 * math.log(factor))
    return frequencies * (kept + (1 - kept) / factor), magnitude


def visible_keys(t: int, s: int, mask: float, size: float) -> NDArray[np.bool_]:
    """Return which of S keys the last T tokens see. (T, S).

    `mask` is 0 for the tokens up to the own one, 1 for the last `size` of those, 2 for those in
    the same chunk of `size`, 3 for the ones at most `size` / 2 away on both sides, 4 for all.
    """
    q, k = np.arange(s - t, s)[:, np.newaxis], np.arange(s)
    if mask >= 3:
        return np.abs(q - k) <= size // 2 if mask == 3 else (q >= 0) & (k >= 0)
    first = {0: 0 * q, 1: q - size + 1, 2: q // max(int(size), 1) * int(size)}[int(mask)]
    return (k <= q) & (k >= first)


def alibi_slopes(heads: int, most: float) -> Float64:
    """Return the factor of the distance of each head.

    Press et al. 2021, "Train Short, Test Long" (arXiv:2108.12409): 2^(-most h / n) for the heads h
    = 1 .. n, where n is a power of two. Heads beyond it have every second factor of 2 n heads.
    """
    n = 1 << (heads.bit_length() - 1)
    slopes = [-most * (h + 1) / n for h in range(n)]
    slopes += [-most * (2 * h + 1) / (2 * n) for h in range(heads - n)]
    return np.exp2(slopes)


def relative_buckets(distance: NDArray[np.int64], count: int, later: bool) -> NDArray[np.int64]:
    """Return the bucket of each distance of a key, negative for earlier keys.

    Raffel et al. 2019, "T5" (arXiv:1910.10683). Small distances have a bucket each, larger ones
    share them, and from 128 on all share the last. With `later`, half of the buckets are for later
    keys.
    """
    side = count // 2 if later else count
    far = np.abs(distance)
    exact = side // 2
    steps = np.log(np.maximum(far, 1) / exact) / np.log(128 / exact) * (side - exact)
    large = np.minimum(exact + np.floor(steps + 1e-9).astype(np.int64), side - 1)
    bucket = np.where(far < exact, far, large)
    return np.where(distance > 0, bucket + side if later else 0, bucket)


def masked_scores(
    q: Float64,
    k: Float64,
    biases: Float64 | None = None,
    *,
    factor: float,
    mask: float = 0,
    window: float = 0,
    cap: float = 0,
    alibi: float = 0,
    buckets: float = 0,
) -> Float64:
    """Return q k^T * factor, with -inf for masked pairs. (T, H, Dh), (S, K, Dh) -> (H, T, S).

    The queries are those of the last T of the S tokens. `visible_keys` tells what they attend to.
    Each kv head belongs to H / K consecutive query heads. A score s becomes cap tanh(s / cap)
    unless the cap is 0. With `alibi` the distance of a key times a factor of the head is
    subtracted. `biases` (buckets, H) are added by the bucket of the distance. Vaswani et al. 2017,
    "Attention Is All You Need", equation 1; Ainslie et al. 2023, "GQA"; Gemma Team 2024, "Gemma 2"
    (caps).
    """
    t, heads, s = len(q), q.shape[1], len(k)
    k = np.repeat(k, heads // k.shape[1], axis=1)
    scores = q.transpose(1, 0, 2) @ k.transpose(1, 2, 0) * factor
    if cap:
        scores = cap * np.tanh(scores / cap)
    if alibi:
        far = np.abs(np.arange(s - t, s)[:, np.newaxis] - np.arange(s))
        scores = scores - alibi_slopes(heads, alibi)[:, np.newaxis, np.newaxis] * far
    if biases is not None:
        distance = np.arange(s) - np.arange(s - t, s)[:, np.newaxis]
        chosen = biases[relative_buckets(distance, int(buckets), mask >= 3)]
        scores = scores + chosen.transpose(2, 0, 1)
    return np.where(visible_keys(t, s, mask, window), scores, -np.inf)


def softmax(scores: Float64, sinks: Float64 | None = None) -> Float64:
    """Return exp(score) / sum(exp(scores)) over the last axis. (H, T, S) -> (H, T, S).

    A head's sink is one more score, of attending to no key (Xiao et al. 2023, arXiv:2309.17453;
    learned, as in gpt-oss).
    """
    top = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks[:, np.newaxis, np.newaxis])
    e: Float64 = np.exp(scores - top)
    total = e.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, np.newaxis, np.newaxis] - top)
    probs: Float64 = e / total
    return probs


def mix_values(probs: Float64, v: Float64) -> Float64:
    """Return each head's weighted sum of the values. (H, T, S), (S, K, Dv) -> (T, H, Dv)."""
    v = np.repeat(v, len(probs) // v.shape[1], axis=1)
    return (probs @ v.transpose(1, 0, 2)).transpose(1, 0, 2)


def _sigmoid(x: Float64) -> Float64:
    y: Float64 = 1 / (1 + np.exp(-x))
    return y


def _normal(x: Float64) -> Float64:
    """Return the standard normal distribution function."""
    erfc = np.vectorize(math.erfc, otypes=[np.float64])
    y: Float64 = 0.5 * erfc(-x / math.sqrt(2))
    return y


def _gelu_tanh(x: Float64) -> Float64:
    y: Float64 = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return y


#: Functions of one value and a parameter, in the order of `architectures.plan.FUNCTIONS`, without
#: the one that is gated only. GELU: Hendrycks and Gimpel
#: 2016 (arXiv:1606.08415). Squared ReLU: So et al. 2021 (arXiv:2109.08668).
FUNCTIONS: tuple[Callable[[Float64, float], Float64], ...] = (
    lambda x, p: x,
    lambda x, p: x * _sigmoid(x),
    lambda x, p: _gelu_tanh(x),
    lambda x, p: x * _normal(x),
    lambda x, p: _sigmoid(x),
    lambda x, p: np.maximum(x, 0),
    lambda x, p: np.maximum(x, 0) ** 2,
    lambda x, p: p * np.tanh(x / p),
    lambda x, p: np.clip(x, -p, p),
    lambda x, p: p * x,
)


def gated(
    gate: Float64, up: Float64, *, function: float = 1, alpha: float = 0, limit: float = 0
) -> Float64:
    """Return f(gate) * up, where f is one of `FUNCTIONS`. (T, F), (T, F) -> (T, F).

    Shazeer 2020, "GLU Variants Improve Transformer", equation 6. A gate may have only the first
    axes of `up`. Function 10 is that of gpt-oss (github.com/openai/gpt-oss, swiglu): g sigmoid
    (alpha g) (u + 1), where g is at most `limit`, and u within plus and minus `limit`.
    """
    if NAMES[int(function)] == "swiglu_oai":
        g, u = np.minimum(gate, limit), np.clip(up, -limit, limit)
        return g * _sigmoid(alpha * g) * (u + 1)
    return _like(FUNCTIONS[int(function)](gate, alpha), up) * up


def unary(x: Float64, *, function: float, parameter: float = 0) -> Float64:
    """Return f(x), where f is one of `FUNCTIONS`. (T, ...) -> same."""
    return FUNCTIONS[int(function)](x, parameter)


def scale(x: Float64, weight: Float64, *, size: float = 1) -> Float64:
    """Return x times a weight, of one value or of as many as the last axis. (T, ...) -> same."""
    return x * weight


def softplus(x: Float64, bias: Float64 | None = None) -> Float64:
    """Return log(1 + exp(x + bias)). (T, ...) -> same."""
    if bias is not None:
        x = x + bias.reshape(x.shape[1:])
    y: Float64 = np.logaddexp(0, x)
    return y


def exp(x: Float64, *, factor: float) -> Float64:
    """Return exp(factor x). (T, ...) -> same."""
    return np.exp(factor * x)


def xielu(
    x: Float64, *, alpha_positive: float, alpha_negative: float, beta: float, epsilon: float
) -> Float64:
    """Return the activation xIELU. (T, F) -> same.

    Huang and Schlag 2024, "Deriving Activation Functions Using Integration" (arXiv:2411.13010).
    """
    below = (np.expm1(np.minimum(x, epsilon)) - x) * alpha_negative
    return np.where(x > 0, alpha_positive * x * x, below) + beta * x


def conv(x: Float64, weight: Float64, bias: Float64 | None = None, *, taps: float) -> Float64:
    """Return the causal convolution of each channel. (T, ...), (C, taps), (C,) -> (T, ...).

    The last weight of a channel belongs to the own token, the one before it to the token before.
    There are zeros before the first token.
    """
    n = int(taps)
    before = np.concatenate([np.zeros((n - 1, weight.shape[0])), x.reshape(len(x), -1)])
    y = np.zeros((len(x), weight.shape[0]))
    for j in range(n):
        y += weight[:, j] * before[j : j + len(x)]
    y = y if bias is None else y + bias
    return y.reshape(x.shape)


def decay(alpha: Float64, a: Float64, dt: Float64) -> Float64:
    """Return exp(a softplus(alpha + dt)): what part of its state a head keeps. (T, ...) -> same.

    Dao and Gu 2024, "Transformers are SSMs" (arXiv:2405.21060); `a` is negative.
    """
    x = alpha.reshape(len(alpha), -1)
    return np.exp(a.reshape(-1) * np.logaddexp(0, x + dt.reshape(-1))).reshape(alpha.shape)


def delta(
    q: Float64,
    k: Float64,
    v: Float64,
    decay: Float64,
    beta: Float64,
    *,
    tiled: float,
    factor: float,
) -> Float64:
    """Return the gated delta rule, token by token. (T, Hk, Dk) twice, (T, Hv, Dv) -> (T, Hv, Dv).

    A value head has a state S of (Dk, Dv), zero before the first token: S = decay S, then
    S = S + k (beta (v - k S)), and the result is factor q S. `decay` and `beta` have a value per
    head. Value head h uses key head h mod Hk if `tiled`, else h div (Hv / Hk). Yang et al. 2024,
    "Gated Delta Networks" (arXiv:2412.06464), equation 10.
    """
    (t, heads, size), key_heads = v.shape, k.shape[1]
    decay, beta = decay.reshape(t, heads), beta.reshape(t, heads)
    y = np.zeros_like(v)
    for h in range(heads):
        key = h % key_heads if tiled else h // (heads // key_heads)
        state = np.zeros((k.shape[2], size))
        for i in range(t):
            state = decay[i, h] * state
            change = beta[i, h] * (v[i, h] - k[i, key] @ state)
            state = state + np.outer(k[i, key], change)
            y[i, h] = factor * (q[i, key] @ state)
    return y


def scan(
    x: Float64,
    dt: Float64,
    b: Float64,
    c: Float64,
    decay: Float64,
    skip: Float64 | None = None,
) -> Float64:
    """Return Mamba-2's state space model, token by token. (T, H, P), (T, H) -> (T, H, P).

    A head has a state S of (N, P), zero before the first token: S = decay S + B (dt x)', and the
    result is C S + skip x. B and C are (T, G, N); H / G consecutive heads share a group. Dao and Gu
    2024, "Transformers are SSMs" (arXiv:2405.21060), section 6.
    """
    (t, heads, size), groups = x.shape, b.shape[1]
    dt, decay = dt.reshape(t, heads, 1), decay.reshape(t, heads)
    b, c = (np.repeat(value, heads // groups, axis=1) for value in (b, c))
    u = dt * x
    y = np.zeros_like(x)
    state = np.zeros((heads, b.shape[2], size))
    for i in range(t):
        state = decay[i][:, np.newaxis, np.newaxis] * state
        state = state + b[i][:, :, np.newaxis] * u[i][:, np.newaxis]
        y[i] = np.einsum("hn,hnp->hp", c[i], state)
    return y if skip is None else y + skip.reshape(heads, 1) * x


def scan_channels(
    x: Float64, dt: Float64, b: Float64, c: Float64, a: Float64, skip: Float64 | None = None
) -> Float64:
    """Return Mamba-1's selective state space model, token by token. (T, n) -> (T, n).

    A channel has N states, zero before the first token: S = exp(dt a) S + dt x B, and the result is
    C S + skip x. `b` and `c` are (T, N), `a` is (n, N). Gu and Dao 2023, "Mamba"
    (arXiv:2312.00752), algorithm 2.
    """
    y = np.zeros_like(x)
    state = np.zeros(a.shape)
    for i in range(len(x)):
        state = np.exp(dt[i][:, np.newaxis] * a) * state + np.outer(dt[i] * x[i], b[i])
        y[i] = state @ c[i]
    return y if skip is None else y + skip.reshape(-1) * x


def shift(x: Float64, shares: Float64, *, parts: float) -> Float64:
    """Return mixtures of each token with the one before it. (T, D) -> (T, parts, D).

    They are x + (before - x) share, with a share for each part and channel. `before` is 0 for the
    first token. With 0 parts there is one, and the result is (T, D). Peng et al. 2025, "RWKV-7
    Goose" (arXiv:2503.14456), equation 3.
    """
    before = np.concatenate([np.zeros((1, x.shape[1])), x[:-1]])
    y = x[:, np.newaxis] + (before - x)[:, np.newaxis] * shares.reshape(-1, x.shape[1])
    return y if parts else y[:, 0]


def wkv(
    r: Float64, keep: Float64, k: Float64, v: Float64, removed: Float64, rate: Float64
) -> Float64:
    """Return RWKV-7's recurrence, token by token. (T, H, N), v (T, H, P) -> (T, H, P).

    A head has a state S of (N, P), zero before the first token: S = keep S - (rate removed)
    (removed S) + k v', and the result is r S. Peng et al. 2025, "RWKV-7 Goose" (arXiv:2503.14456),
    section 4.1, with S transposed.
    """
    y = np.zeros_like(v)
    state = np.zeros((*k.shape[1:], v.shape[2]))
    for t in range(len(v)):
        found = np.einsum("hn,hnp->hp", removed[t], state)
        state = keep[t][..., np.newaxis] * state
        state = state - (rate[t] * removed[t])[..., np.newaxis] * found[:, np.newaxis]
        state = state + k[t][..., np.newaxis] * v[t][:, np.newaxis]
        y[t] = np.einsum("hn,hnp->hp", r[t], state)
    return y


#: Functions by op. The op ``cache`` has none, because it stores values and computes nothing.
OPS: dict[str, Callable[..., Any]] = {
    "embed": embed,
    "same": same,
    "shape": shape,
    "slice": cut,
    "concat": concat,
    "norm_scale": norm_scale,
    "norm": norm,
    "norm_mean": norm_mean,
    "layer_scale": layer_scale,
    "layer_norm": layer_norm,
    "linear": linear,
    "rope": rotate,
    "temper": temper,
    "scores": masked_scores,
    "softmax": softmax,
    "mix": mix_values,
    "add": add,
    "combine": combine,
    "add_shared": add_shared,
    "match_rms": match_rms,
    "sparsify": sparsify,
    "act": gated,
    "unary": unary,
    "scale": scale,
    "softplus": softplus,
    "xielu": xielu,
    "exp": exp,
    "route_probs": route_probs,
    "route_ids": route_ids,
    "route_weights": route_weights,
    "experts": expert_matmul,
    "head_linear": head_linear,
    "weighted_sum": weighted_sum,
    "conv": conv,
    "decay": decay,
    "delta": delta,
    "scan": scan,
    "scan_channels": scan_channels,
    "shift": shift,
    "wkv": wkv,
}
