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

from ..base.numeric import Float64

__all__ = [
    "OPS",
    "add",
    "embed",
    "linear",
    "masked_scores",
    "mix_values",
    "norm",
    "norm_scale",
    "rope_frequencies",
    "rotate",
    "same",
    "silu_mul",
    "softmax",
]

Ids = NDArray[np.int64]


def embed(tokens: Ids, table: Float64, **shape: float) -> Float64:
    """Return the rows of the embedding table. (T,), (V, D) -> (T, D)."""
    rows: Float64 = table[tokens]
    return rows


def same(x: Float64) -> Float64:
    """Return x unchanged: the input of a block is the output of the previous one."""
    return x


def add(x: Float64, y: Float64) -> Float64:
    """Return x + y: a branch is added to the residual stream. (T, D), (T, D) -> (T, D)."""
    return x + y


def norm_scale(x: Float64, *, epsilon: float) -> Float64:
    """Return 1 / sqrt(mean(x^2) + epsilon) over the last axis: RMSNorm's scale. (T, D) -> (T,).

    Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.
    """
    scale: Float64 = 1 / np.sqrt(np.mean(x * x, axis=-1) + epsilon)
    return scale


def norm(x: Float64, scale: Float64, weight: Float64) -> Float64:
    """Return x * scale * weight, the second step of RMSNorm. (T, D), (T,), (D,) -> (T, D)."""
    return x * scale[..., np.newaxis] * weight


def linear(
    x: Float64, weight: Float64, bias: Float64 | None = None, *, heads: float = 0, size: float = 0
) -> Float64:
    """Return x W^T + b. (T, ...), (out, in), (out,) -> (T, out), or (T, heads, size)."""
    y = x.reshape(len(x), -1) @ weight.T
    y = y if bias is None else y + bias
    return y.reshape(len(y), int(heads), -1) if heads else y


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

    first = max(0, math.floor(pair_with(beta_fast)))
    last = min(n - 1, math.ceil(pair_with(beta_slow)))
    kept = 1 - np.clip((pair - first) / max(0.001, last - first), 0, 1)
    kept = kept * ext_factor
    magnitude = attn_factor * (1 + 0.1 * math.log(factor))
    return frequencies * (kept + (1 - kept) / factor), magnitude


def masked_scores(q: Float64, k: Float64, *, factor: float) -> Float64:
    """Return q k^T * factor, with -inf for masked pairs. (T, H, Dh), (S, K, Dh) -> (H, T, S).

    The queries are those of the last T of the S tokens. A token attends to itself and to the
    tokens before it. Each kv head belongs to H / K consecutive query heads. Vaswani et al. 2017,
    "Attention Is All You Need", equation 1; Ainslie et al. 2023, "GQA".
    """
    t, heads, s = len(q), q.shape[1], len(k)
    k = np.repeat(k, heads // k.shape[1], axis=1)
    scores = q.transpose(1, 0, 2) @ k.transpose(1, 2, 0) * factor
    visible = np.arange(s) <= np.arange(s - t, s)[:, np.newaxis]
    return np.where(visible, scores, -np.inf)


def softmax(scores: Float64) -> Float64:
    """Return exp(score) / sum(exp(scores)) over the last axis. (H, T, S) -> (H, T, S)."""
    e: Float64 = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probs: Float64 = e / e.sum(axis=-1, keepdims=True)
    return probs


def mix_values(probs: Float64, v: Float64) -> Float64:
    """Return each head's weighted sum of the values. (H, T, S), (S, K, Dv) -> (T, H, Dv)."""
    v = np.repeat(v, len(probs) // v.shape[1], axis=1)
    return (probs @ v.transpose(1, 0, 2)).transpose(1, 0, 2)


def silu_mul(gate: Float64, up: Float64, *, function: float = 0) -> Float64:
    """Return silu(gate) * up, where silu(x) = x / (1 + exp(-x)). (T, F), (T, F) -> (T, F).

    Shazeer 2020, "GLU Variants Improve Transformer", equation 6.
    """
    act: Float64 = gate / (1 + np.exp(-gate)) * up
    return act


#: Functions by op. The op ``cache`` has none, because it stores values and computes nothing.
OPS: dict[str, Callable[..., Any]] = {
    "embed": embed,
    "same": same,
    "norm_scale": norm_scale,
    "norm": norm,
    "linear": linear,
    "rope": rotate,
    "scores": masked_scores,
    "softmax": softmax,
    "mix": mix_values,
    "add": add,
    "act": silu_mul,
}
