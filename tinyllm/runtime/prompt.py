"""What a caller gives to run, checked: a prompt as token ids, and the rows of logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..base.numeric import Float32
from ..tokenizer import Tokenizer

__all__ = ["Prompt", "Rows", "is_batch", "token_ids"]

#: Text, or token ids.
Prompt: TypeAlias = str | bytes | Sequence[int] | npt.NDArray[np.integer[Any]]


def token_ids(prompt: Any, tokenizer: Tokenizer | None, name: str = "the prompt") -> Any:
    """Turn text or ids into a one-dimensional int32 array with at least one token."""
    if isinstance(prompt, (str, bytes)):
        if tokenizer is None:
            raise ValueError(
                f"{name} is text, and the model's file has no tokenizer; give token ids, or "
                "load with tokenizer="
            )
        ids = np.asarray(tokenizer.encode(prompt), np.int32)
        if ids.size == 0:
            raise ValueError(f"{name} is {prompt!r}, which gives no tokens to run")
        return ids
    ids = np.asarray(prompt)
    if ids.size == 0:
        raise ValueError(f"{name} holds no tokens to run")
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(
            f"{name} must be text or a sequence of integer token ids, "
            f"not {ids.ndim}-dimensional {ids.dtype}"
        )
    limits = np.iinfo(np.int32)
    if ids.min() < limits.min or ids.max() > limits.max:
        raise ValueError(f"{name} holds a token id outside the vocabulary")
    return np.ascontiguousarray(ids, np.int32)


def is_batch(prompt: Any) -> bool:
    """Whether a prompt is several: a list of texts or of ids, or a 2-D array."""
    if isinstance(prompt, np.ndarray):
        return prompt.ndim == 2
    return isinstance(prompt, (list, tuple)) and any(
        isinstance(item, (str, bytes, list, tuple, np.ndarray)) for item in prompt
    )


class Rows:
    """The rows that a ``logits=`` argument asks for, of `n` tokens.

    Attributes
    ----------
    rows : list of int
        Rising.
    """

    def __init__(self, logits: Any, n: int) -> None:
        self._how = "none" if logits is None else logits
        self._places: Any = slice(None)
        if isinstance(self._how, str):
            names = {"last": [n - 1], "all": list(range(n)), "none": []}
            if self._how not in names:
                raise ValueError(
                    f"logits is {logits!r}; expected 'last', 'all', 'none' or a list of indices"
                )
            self.rows = names[self._how]
            return
        rows = []
        for i, index in enumerate(logits):
            row = int(index) + n if index < 0 else int(index)
            if not 0 <= row < n:
                raise IndexError(f"logits[{i}] is {index}; expected -{n} to {n - 1}")
            rows.append(row)
        unique, self._places = np.unique(np.asarray(rows, np.int64), return_inverse=True)
        self.rows = unique.tolist()

    def take(self, values: Float32) -> Float32 | None:
        """Give the logits of `rows` in the shape that was asked for."""
        if isinstance(self._how, str):
            return {"last": values[0] if len(values) else values, "all": values}.get(self._how)
        taken: Float32 = values[self._places]
        return taken
