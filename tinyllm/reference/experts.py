"""The ops of mixtures of experts in NumPy float64: the router, the experts and their sum.

E experts, U of them chosen for each token. See `ops` for the other letters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.numeric import Float64

__all__ = [
    "expert_matmul",
    "route_ids",
    "route_probs",
    "route_weights",
    "weighted_sum",
]


def _softmax(x: Float64) -> Float64:
    e: Float64 = np.exp(x - x.max(axis=-1, keepdims=True))
    y: Float64 = e / e.sum(axis=-1, keepdims=True)
    return y


def route_probs(logits: Float64, *, function: float) -> Float64:
    """Return the softmax (function 0) or the sigmoid (1) along the last axis. (T, ..., E) -> same.

    A router's logits are (T, E), and the scores of cross attention (T, H, S).

    Shazeer et al. 2017, "Outrageously Large Neural Networks", section 2.1; sigmoid: DeepSeek-AI
    2024, "DeepSeek-V3", equation 15.
    """
    if function == 0:
        return _softmax(logits)
    probs: Float64 = 1 / (1 + np.exp(-logits))
    return probs


def route_ids(
    probs: Float64,
    bias: Float64 | None = None,
    *,
    used: float,
    groups: float = 1,
    groups_used: float = 1,
    group_best: float = 1,
) -> Float64:
    """Return the experts with the largest probabilities, by falling probability. (T, E) -> (T, U).

    A bias is added for the choice only. With several groups, only the experts of the best
    `groups_used` groups can be chosen. The score of a group is the sum of its best `group_best`
    experts (DeepSeek-V3, section 2.1.2). Of equal ones the first wins. NaN counts as -inf.
    """
    choice = probs if bias is None else probs + bias
    choice = np.where(np.isnan(choice), -np.inf, choice)
    t, experts = choice.shape
    size = experts // int(groups)
    members = choice.reshape(t, int(groups), size)
    scores = np.sort(members, axis=-1)[..., size - int(group_best) :].sum(axis=-1)
    scores = np.where(np.isnan(scores), -np.inf, scores)
    kept = np.argsort(-scores, axis=-1, kind="stable")[:, : int(groups_used)]
    hidden = np.ones((t, int(groups)), bool)
    np.put_along_axis(hidden, kept, False, axis=-1)
    hidden = np.repeat(hidden, size, axis=-1)
    # by visibility, then choice, then id: an expert of a kept group may have the choice -inf
    order: Any = np.lexsort((np.broadcast_to(np.arange(experts), (t, experts)), -choice, hidden))
    ids: Float64 = order[:, : int(used)].astype(np.float64)
    return ids


def route_weights(
    probs: Float64, ids: Float64, *, normalize: float, softmax: float = 0, scale: float = 1
) -> Float64:
    """Return the weights of the chosen experts. (T, E), (T, U) -> (T, U).

    These are their probabilities, which `normalize` divides by their sum. With `softmax` 1, `probs`
    are logits, and the weights are the softmax of the chosen ones. With 2 they are those of the
    sparse mixer: each the share of its expert in the softmax of the experts that are left after the
    ranks before it, without those that are far below it (Liu et al. 2024, arXiv:2409.12136).
    """
    if softmax == 2:
        return _sparse_mixer(probs, ids.astype(np.int64)) * scale
    chosen: Float64 = np.take_along_axis(probs, ids.astype(np.int64), axis=-1)
    if softmax:
        chosen = _softmax(chosen)
    if normalize:
        chosen = chosen / (chosen.sum(axis=-1, keepdims=True) + 1e-20)
    return chosen * scale


def _sparse_mixer(logits: Float64, ids: NDArray[np.int64]) -> Float64:
    left = logits.copy()
    weights = np.empty(ids.shape)
    for rank in range(ids.shape[1]):
        one = ids[:, rank : rank + 1]
        top = np.take_along_axis(logits, one, axis=-1)
        far = (top - logits) / np.maximum(np.abs(logits), top) > 0.02
        weights[:, rank] = 1 / np.where(far, 0, np.exp(left - top)).sum(axis=-1)
        np.put_along_axis(left, one, -np.inf, axis=-1)
    return weights


def expert_matmul(
    x: Float64,
    ids: Float64,
    weight: Float64,
    bias: Float64 | None = None,
    scale: Float64 | None = None,
    *,
    size: float,
    first: float,
    rows: float,
) -> Float64:
    """Return scale_e (W_e x) + b_e for each chosen expert e.

    (T, in), (T, U), (E, rows, in), (E, rows), (E,) -> (T, U, size). An input (T, U, in) has a row
    for each chosen expert. `size` rows of each expert's matrix are used, from row `first` on.
    """
    part = slice(int(first), int(first) + int(size))
    chosen: NDArray[np.int64] = ids.astype(np.int64)
    t, used = chosen.shape
    x = np.broadcast_to(x.reshape(t, -1, x.shape[-1]), (t, used, x.shape[-1]))
    y = np.empty((t, used, int(size)))
    for expert in np.unique(chosen):
        at = chosen == expert
        y[at] = x[at] @ weight[expert, part].T
        if scale is not None:
            y[at] *= scale[expert]
        if bias is not None:
            y[at] += bias[expert, part]
    return y


def weighted_sum(x: Float64, weights: Float64) -> Float64:
    """Return the sum of the experts' values, each times its weight. (T, U, D), (T, U) -> (T, D)."""
    y: Float64 = np.einsum("tud,tu->td", x, weights)
    return y
