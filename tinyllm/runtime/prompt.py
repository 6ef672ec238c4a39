"""Checks of a caller's arguments: prompts become token ids, ``logits=`` becomes rows."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..base.checks import integer
from ..base.numeric import Float32
from ..base.warning import warn
from ..tokenizer import Tokenizer

__all__ = ["Prompt", "Rows", "is_batch", "token_ids"]

#: Text, or token ids.
Prompt: TypeAlias = str | bytes | Sequence[int] | npt.NDArray[np.integer[Any]]


#: Tokenizers whose users have been told about `parse_special`.
_TOLD: weakref.WeakSet[Tokenizer] = weakref.WeakSet()


def _encode(
    text: str | bytes,
    tokenizer: Tokenizer,
    name: str,
    parse_special: bool,
    add_special: bool | None,
) -> list[int]:
    """Return the ids of a text. Warn once if it has special tokens that are not parsed."""
    if not parse_special and tokenizer not in _TOLD:
        control = tokenizer.control_text(text)
        if control is not None:
            _TOLD.add(tokenizer)
            warn(
                f"{name} contains {control!r}, the text of a control token, and reads it as plain "
                "text; parse_special=True (--special on the command line) reads it as the token, "
                "and chat() writes the tokens of a conversation itself"
            )
    return tokenizer.encode(text, add_special, parse_special)


def token_ids(
    prompt: Any,
    tokenizer: Tokenizer | None,
    name: str = "the prompt",
    parse_special: bool = False,
    add_special: bool | None = None,
) -> Any:
    """Return text or ids as an int32 array of shape (T,), with T at least 1."""
    if isinstance(prompt, (str, bytes)):
        if tokenizer is None:
            raise ValueError(
                f"{name} is text, and the model has no tokenizer; expected token ids. "
                "load(..., tokenizer=) adds a tokenizer"
            )
        ids = np.asarray(_encode(prompt, tokenizer, name, parse_special, add_special), np.int32)
        if ids.size == 0:
            raise ValueError(f"{name} is {prompt!r}; expected text of at least one token")
        return ids
    ids = np.asarray(prompt)
    if ids.dtype == object:  # an array of Python's ints
        ids = np.asarray(ids.tolist())
    if ids.size == 0:
        raise ValueError(f"{name} is empty; expected at least one token")
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(
            f"{name} is {ids.ndim}-dimensional {ids.dtype}; expected text or a sequence of "
            "integer token ids"
        )
    limits = np.iinfo(np.int32)
    if ids.min() < limits.min or ids.max() > limits.max:
        wrong = int(ids.min() if ids.min() < limits.min else ids.max())
        raise ValueError(f"{name} holds {wrong}; expected token ids of the vocabulary")
    return np.array(ids, np.int32)  # a copy: traces keep it


def is_batch(prompt: Any) -> bool:
    """Return whether a prompt is a batch: texts, lists of ids, or a 2-D array of ids."""
    if isinstance(prompt, np.ndarray):
        if prompt.ndim != 1 or prompt.dtype.kind not in "OUS":
            return prompt.ndim == 2
        prompt = list(prompt)
    return isinstance(prompt, (list, tuple)) and any(
        isinstance(item, (str, bytes, list, tuple)) or getattr(item, "ndim", 0) > 0
        for item in prompt
    )


class Rows:
    """The rows that a ``logits=`` argument selects among `n` tokens.

    Attributes
    ----------
    rows : list of int
        The selected rows, in ascending order and without duplicates.
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
        if not isinstance(logits, Iterable):
            raise TypeError(
                f"logits is {logits!r}; expected 'last', 'all', 'none' or a list of indices"
            )
        for i, given in enumerate(logits):
            index = integer(f"logits[{i}]", given)
            row = index + n if index < 0 else index
            if not 0 <= row < n:
                raise IndexError(f"logits[{i}] is {index}; expected -{n} to {n - 1}")
            rows.append(row)
        unique, self._places = np.unique(np.asarray(rows, np.int64), return_inverse=True)
        self.rows = unique.tolist()

    def take(self, values: Float32) -> Float32 | None:
        """Return the logits of `rows` in the order and shape that the argument demands."""
        if isinstance(self._how, str):
            return {"last": values[0] if len(values) else values, "all": values}.get(self._how)
        taken: Float32 = values[self._places]
        return taken
