"""OV and QK circuits: what a head writes and attends to, from the weights alone."""

from __future__ import annotations

import numpy as np

from .. import reference
from ..architectures.adapters import merged_matrix
from ..architectures.plan import ForwardPlan, Step
from ..base.checks import integer
from ..base.numeric import Float32, Float64
from ..errors import UnsupportedError
from ..runtime.runner import Runner
from .inputs import head_index, layer_index, weight_values

__all__ = ["ov_circuit", "qk_circuit"]


def ov_circuit(model: Runner, layer: int, head: int) -> Float32:
    """Return the OV circuit of a head: its output matrix times its value matrix.

    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", section "Splitting
    Attention Head terms into Circuits".

    Parameters
    ----------
    model : Model
    layer, head : int
        The head. In grouped-query attention, several heads share a value matrix.

    Returns
    -------
    numpy.ndarray of float32, shape (D, D)
        Let x be the residual stream of a token, divided by its root mean square. If the head
        attends only to this token, it adds ``ov @ x`` to the residual stream. The matrix includes
        the weight of the attention norm, and no biases. Its rank is at most Dv. For token to
        token effects, use ``W_out @ ov @ W_embd.T``.

    Raises
    ------
    IndexError
        If `layer` or `head` is out of range.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> tl.ov_circuit(model, 0, 1).shape == (model.config.width, model.config.width)
    True
    """
    layer = layer_index(model, layer)
    head = head_index(model, layer, head)
    steps = model.steps
    step = steps.projection(steps.role("values", layer))
    size = step.shape[1]
    values = merged_matrix(
        model.steps, step, model.weights, _rows(_kv_head(model, layer, head), size)
    )
    values = values * weight_values(model, steps[steps.role("attn_input", layer)].weights[0])
    project = steps[steps.role("attn_project", layer)]
    out = merged_matrix(steps, project, model.weights)[:, _rows(head, size)]
    circuit: Float32 = (out @ values).astype(np.float32)
    return circuit


def qk_circuit(model: Runner, layer: int, head: int, *, offset: int = 0) -> Float32:
    """Return the QK circuit of a head: its query matrix times its key matrix.

    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", section "Splitting
    Attention Head terms into Circuits". With RoPE the product depends on the distance (Su et al.
    2021, arXiv:2104.09864, equation 16).

    Parameters
    ----------
    model : Model
    layer, head : int
        The head. In grouped-query attention, several heads share a key matrix.
    offset : int
        Position of the query minus position of the key.

    Returns
    -------
    numpy.ndarray of float32, shape (D, D)
        Let x and y be the residual streams of the query's and the key's token, each divided by its
        root mean square. Then ``x @ qk @ y`` is the scaled attention score. The matrix includes
        the weight of the attention norm, and no biases.

    Raises
    ------
    IndexError
        If `layer` or `head` is out of range.
    tinyllm.UnsupportedError
        If the model normalizes queries and keys, because then the score is not bilinear.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> tl.qk_circuit(model, 0, 1, offset=1).shape == (model.config.width, model.config.width)
    True
    """
    layer = layer_index(model, layer)
    head = head_index(model, layer, head)
    offset = integer("offset", offset)
    steps = model.steps
    scores = steps[steps.role("attn_scores", layer)]
    rope, queries, keys = _projections(steps, scores)
    size = queries.shape[1]
    norm = weight_values(model, steps[steps.role("attn_input", layer)].weights[0])
    kv = _kv_head(model, layer, head)
    query_matrix = merged_matrix(steps, queries, model.weights, _rows(head, size)) * norm
    key_matrix = merged_matrix(steps, keys, model.weights, _rows(kv, size)) * norm
    factors = None
    if rope is not None and rope.step.weights[0] is not None:
        factors = weight_values(model, rope.step.weights[0])

    def rotated(matrix: Float64, position: int) -> Float64:  # (Dh, D) -> (D, Dh)
        if rope is None:
            return matrix.T
        columns = matrix.T[:, np.newaxis]
        positions = np.full(len(columns), position)
        result: Float64 = rope.compute(columns, positions, factors)[:, 0]
        return result

    product = rotated(query_matrix, offset) @ rotated(key_matrix, 0).T * scores.number("factor")
    circuit: Float32 = product.astype(np.float32)
    return circuit


def _projections(steps: ForwardPlan, scores: Step) -> tuple[reference.Step | None, Step, Step]:
    """Return the RoPE step, or None, and the steps that project queries and keys."""
    names = list(scores.reads)
    rope = None
    if steps[names[0]].op == "rope":
        rope = reference.Step(steps[names[0]])
        names = [steps[name].reads[0] for name in names]
    found = [steps.projection(name) for name in names]
    if any(step.op != "linear" for step in found):
        raise UnsupportedError("the model normalizes queries and keys, so there is no QK matrix")
    return rope, found[0], found[1]


def _rows(head: int, size: int) -> slice:
    return slice(head * size, (head + 1) * size)


def _kv_head(model: Runner, layer: int, head: int) -> int:
    config = model.config
    return head // (config.layer("heads", layer) // config.layer("kv_heads", layer))
