"""Circuits: what a head reads, writes and attends to, from the weights alone."""

from __future__ import annotations

import numpy as np

from ..base.checks import integer
from ..base.numeric import Float32, Float64
from ..errors import UnsupportedError
from ..reference.walk import step as reference_step
from ..runtime.runner import Runner
from .inputs import head_index, layer_index, weight_values

__all__ = ["ov_circuit", "qk_circuit"]


def ov_circuit(model: Runner, layer: int, head: int) -> Float32:
    """What a head writes for what it reads: its output matrix times its value matrix.

    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", section "Splitting
    Attention Head terms into Circuits".

    Parameters
    ----------
    model : Model
    layer, head : int
        With grouped-query attention, several heads share a value matrix.

    Returns
    -------
    numpy.ndarray of float32, shape (D, D)
        ``ov @ x`` is what the head adds to the residual stream of the token that attends, if it
        attends wholly to a token whose residual stream, divided by its root mean square, is x.
        The weight of the attention norm is in it; biases are not. Its rank is at most Dv.
        ``W_out @ ov @ W_embd.T`` shows it over tokens.

    Raises
    ------
    IndexError
        There is no such layer or head.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> tl.ov_circuit(model, 0, 1).shape == (model.config.width, model.config.width)
    True
    """
    layer = layer_index(model, layer)
    head = head_index(model, layer, head)
    size = model.config.value_size
    kv = _kv_head(model, layer, head)
    values = weight_values(model, f"blk.{layer}.attn_v.weight", slice(kv * size, (kv + 1) * size))
    values = values * weight_values(model, f"blk.{layer}.attn_norm.weight")
    out = weight_values(model, f"blk.{layer}.attn_output.weight")[
        :, head * size : (head + 1) * size
    ]
    circuit: Float32 = (out @ values).astype(np.float32)
    return circuit


def qk_circuit(model: Runner, layer: int, head: int, *, offset: int = 0) -> Float32:
    """Which tokens a head attends to: its query matrix times its key matrix.

    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", section "Splitting
    Attention Head terms into Circuits"; with rotary embeddings the product depends on the
    distance (Su et al. 2021, arXiv:2104.09864, equation 16).

    Parameters
    ----------
    model : Model
    layer, head : int
        With grouped-query attention, several heads share a key matrix.
    offset : int
        How many tokens the key comes before the query.

    Returns
    -------
    numpy.ndarray of float32, shape (D, D)
        ``x @ qk @ y`` is the attention score, scaled, of a query whose residual stream, divided
        by its root mean square, is x, on a key whose is y. The weight of the attention norm is
        in it; biases are not.

    Raises
    ------
    IndexError
        There is no such layer or head.
    tinyllm.UnsupportedError
        The model normalizes queries and keys: its scores are no product of matrices.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> tl.qk_circuit(model, 0, 1, offset=1).shape == (model.config.width, model.config.width)
    True
    """
    layer = layer_index(model, layer)
    head = head_index(model, layer, head)
    if f"blk.{layer}.attn_q_norm.weight" in model.weights:
        raise UnsupportedError("this model normalizes queries and keys: there is no QK matrix")
    offset = integer("offset", offset)
    size = model.config.head_size
    kv = _kv_head(model, layer, head)
    norm = weight_values(model, f"blk.{layer}.attn_norm.weight")
    rows = slice(head * size, (head + 1) * size)
    queries = weight_values(model, f"blk.{layer}.attn_q.weight", rows) * norm
    rows = slice(kv * size, (kv + 1) * size)
    keys = weight_values(model, f"blk.{layer}.attn_k.weight", rows) * norm
    rope = reference_step(model.steps, f"blk.{layer}.attn_q_rope")
    factors = None
    if "rope_freqs.weight" in model.weights:
        factors = weight_values(model, "rope_freqs.weight")

    def turned(matrix: Float64, position: int) -> Float64:  # (Dh, D) -> (D, Dh)
        columns = matrix.T[:, np.newaxis]
        positions = np.full(len(columns), position)
        turned: Float64 = rope.compute(columns, positions, factors)[:, 0]
        return turned

    factor = model.steps[model.steps.role("attn_scores", layer)].number("factor")
    scores = turned(queries, offset) @ turned(keys, 0).T * factor
    circuit: Float32 = scores.astype(np.float32)
    return circuit


def _kv_head(model: Runner, layer: int, head: int) -> int:
    config = model.config
    return head // (config.layer("heads", layer) // config.layer("kv_heads", layer))
