"""Layouts of values in other programs, and ours: axes, the order of rotated pairs, and factors."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..architectures.plan import Step
from ..base.numeric import Float32
from ..conversion.family import PERMUTED, To
from ..conversion.layouts import plus_one, transposed
from ..conversion.table import FAMILIES
from ..reference.ops import visible_keys

__all__ = [
    "ROTATED",
    "Fitted",
    "Shape",
    "fit",
    "halves",
    "in_hugging_face",
    "masked",
    "pairs",
    "permuted",
]

#: The families whose rows of a head Hugging Face has in another order, where the converter
#: reorders the matrices of queries and keys.
ROTATED = ("attn_q", "attn_k", "attn_q_rope", "attn_k_rope")

#: Values below this stand for a masked score. Programs write -1e4, -1e9, or the lowest float.
MASKED = -1e4


def pairs(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Reorder the last axis from halves (j, j + n/2) to pairs (2j, 2j + 1).

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.trace.layouts import halves, pairs
    >>> pairs(np.arange(6))
    array([0, 3, 1, 4, 2, 5])
    >>> halves(pairs(np.arange(6)))
    array([0, 1, 2, 3, 4, 5])
    """
    shape = array.shape
    return array.reshape(*shape[:-1], 2, shape[-1] // 2).swapaxes(-1, -2).reshape(shape)


def halves(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Reorder the last axis from pairs (2j, 2j + 1) to halves (j, j + n/2)."""
    shape = array.shape
    return array.reshape(*shape[:-1], shape[-1] // 2, 2).swapaxes(-1, -2).reshape(shape)


def masked(scores: npt.NDArray[Any], step: Step) -> npt.NDArray[Any]:
    """Return scores with -inf where a token must not look.

    Parameters
    ----------
    scores : numpy.ndarray, shape (H, T, S)
        The queries are those of the last T of the S tokens.
    step : Step
        The step of the scores, which states the mask.

    Returns
    -------
    numpy.ndarray, shape (H, T, S)
    """
    _, tokens, context = scores.shape
    seen = visible_keys(tokens, context, step.number("mask"), step.number("window"))
    return np.where(seen, scores, scores.dtype.type(-np.inf))


def permuted(architecture: str) -> bool:
    """Return whether RoPE turns neighbours in GGUF files, and halves in Hugging Face.

    Then the rows of queries and keys of these files have another order.

    Examples
    --------
    >>> from tinyllm.trace.layouts import permuted
    >>> permuted("llama"), permuted("qwen2"), permuted("command-r")
    (True, False, False)
    """
    family = FAMILIES.get(architecture)
    return family is not None and PERMUTED["self_attn.q_proj"] in family.names.values()


def in_hugging_face(
    array: npt.NDArray[Any], name: str, architecture: str, head_size: int
) -> npt.NDArray[Any]:
    """Return a weight as the checkpoint has it that the file was converted from.

    Parameters
    ----------
    array : numpy.ndarray
        The weight as in the GGUF file.
    name : str
        For example ``"blk.0.attn_q.weight"``.
    architecture : str
    head_size : int

    Returns
    -------
    numpy.ndarray
        Rows of rotated queries and keys are in the order of halves, matrices of GPT-2's Conv1D are
        transposed, and norms that converters add 1 to lose it. Everything else is unchanged.

    Raises
    ------
    ValueError
        If converters change this weight in another way.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.trace.layouts import in_hugging_face
    >>> in_hugging_face(np.arange(8), "blk.0.attn_q.bias", "llama", 4)
    array([0, 2, 1, 3, 4, 6, 5, 7])
    """
    parts = name.split(".")
    short = ".".join(parts[2:] if parts[0] == "blk" else parts)
    base = short.rpartition(".")[0]
    family = FAMILIES.get(architecture)
    change = None
    for target in () if family is None else family.names.values():
        several = isinstance(target, tuple) and not isinstance(target, To)
        for one in target if several else (target,):
            if isinstance(one, To) and one.name in (short, base) and one.change is not None:
                change = one.change
    if change is None:
        return array
    if change is transposed:
        return array.T
    if change is plus_one:
        return np.asarray(array - np.float32(1), array.dtype)
    if any(isinstance(to, To) and to.change is change for to in PERMUTED.values()):
        heads = array.reshape(-1, head_size, *array.shape[1:])
        return np.moveaxis(halves(np.moveaxis(heads, 1, -1)), -1, 1).reshape(array.shape)
    raise ValueError(f"{name} of {architecture} has no layout 'hf': converters change it more")


class Shape(NamedTuple):
    """The expected shape of a value.

    Attributes
    ----------
    row : tuple of int
        The axes except T and S, as `Step.shape`.
    matrix : bool
        Whether the axes are (H, T, S).
    tokens, context : int
        T and S.
    queries : int
        The number of query heads if the row has kv heads, else 0.
    heads_first : bool
        Whether the program has the axis of heads before that of tokens, where both are equal.
    """

    row: tuple[int, ...]
    matrix: bool
    tokens: int
    context: int
    queries: int = 0
    heads_first: bool = False

    @property
    def full(self) -> tuple[int, ...]:
        """All axes, in our order."""
        if self.matrix:
            return (*self.row, self.tokens, self.context)
        return (self.tokens, *self.row)


class Fitted(NamedTuple):
    """An array in our layout.

    Attributes
    ----------
    array : numpy.ndarray of float32
        Shape (T, ...) or (H, T, S). With fewer rows than tokens, they are those of the last tokens.
    note : str
        What was changed that the other program may not have meant, or ``""``.
    """

    array: Float32
    note: str = ""


def fit(array: npt.NDArray[Any], shape: Shape) -> Fitted:
    """Return an array in our layout.

    It may have a batch axis of 1, heads that are not split or that are before the tokens, kv heads
    repeated for each query head, or padding after the last token.

    Parameters
    ----------
    array : numpy.ndarray
    shape : Shape

    Returns
    -------
    Fitted

    Raises
    ------
    ValueError
        If the array has another shape.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.trace.layouts import Shape, fit
    >>> fit(np.zeros((1, 4, 5, 8)), Shape((4, 8), False, 5, 5)).array.shape
    (5, 4, 8)
    """
    given = array.shape
    array = np.asarray(array, np.float32)
    while array.ndim > 1 and array.shape[-1] == 1 and array.ndim > len(shape.full):
        array = array[..., 0]
    while array.ndim > len(shape.full) and array.shape[0] == 1:
        array = array[0]
    found = _matrix(array, shape) if shape.matrix else _rows(array, shape)
    if found is None:
        axes = "(H, T, S)" if shape.matrix else "(T, ...)"
        raise ValueError(f"has shape {given}; expected {shape.full}, as {axes}")
    return found


def _matrix(array: Float32, shape: Shape) -> Fitted | None:
    """Return an attention matrix with the axes (H, T, S). Keys may be padded."""
    heads, tokens, context = shape.full
    if array.ndim == 2 and heads * tokens == len(array):
        array = array.reshape(heads, tokens, array.shape[1])
    if array.ndim == 2 and heads == 1:
        array = array[np.newaxis]
    if array.ndim != 3:
        return None
    if array.shape[:2] == (tokens, heads) and tokens != heads:
        array = array.swapaxes(0, 1)
    rows = array.shape[1]
    if array.shape[0] != heads or not 0 < rows or array.shape[2] < context:
        return None
    if rows > tokens and rows == array.shape[2]:  # padded in both axes
        array = array[:, :tokens]
    elif rows > tokens:
        return None
    return Fitted(array[:, :, :context])


def _rows(array: Float32, shape: Shape) -> Fitted | None:
    """Return a value with the axes (T, ...)."""
    row, tokens = shape.row, shape.tokens
    size = math.prod(row)
    split = array.ndim == len(row) + 1
    if split and array.shape[1:] == row and not (shape.heads_first and _square(array)):
        return _cut(array, tokens)
    if len(row) == 2 and array.ndim == 3 and len(array) == 1 and array.shape[2] == size:
        array = array[0]  # a batch of one, and heads that are not split
    if len(row) == 2 and array.ndim == 3:
        if array.shape[::2] == row and array.shape[1] <= tokens:
            return _cut(array.swapaxes(0, 1), tokens)  # (H, T, Dh)
        first = array.shape[0] == shape.queries and array.shape[1] <= tokens
        whole = array.swapaxes(0, 1) if first else array
        if shape.queries and whole.shape[1:] == (shape.queries, row[1]):
            each = shape.queries // row[0]
            kept = whole[:, ::each]
            if np.array_equal(np.repeat(kept, each, axis=1), whole, equal_nan=True):
                return _cut(kept, tokens)
            return None
    if array.ndim == 1 and array.size % max(size, 1) == 0 and array.size // max(size, 1) <= tokens:
        return _cut(array.reshape(-1, *row), tokens)
    if array.ndim == 2 and array.shape[1] == size:
        return _cut(array.reshape(-1, *row), tokens)
    if array.ndim == 2 and array.shape == (size, tokens):
        return Fitted(array.T.reshape(tokens, *row), "the axes are (D, T)")
    return None


def _square(array: Float32) -> bool:
    return array.ndim == 3 and array.shape[0] == array.shape[1]


def _cut(array: Float32, tokens: int) -> Fitted | None:
    """Return rows of at most `tokens` tokens. More are padding only if they are zeros."""
    if len(array) <= tokens:
        return Fitted(array)
    if array[tokens:].any():
        return None
    return Fitted(array[:tokens], f"{len(array)} rows, of which {tokens} are tokens")
