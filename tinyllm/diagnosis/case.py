"""Reading what `doctor` is given: the values of another engine and what it was asked to run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..runtime.prompt import token_ids
from ..trace.taps import ALIASES, unknown
from .replay import Array, Known
from .texts import Asked

__all__ = ["Case", "read_case"]

#: Tokens of a dump that are used. Later ones tell nothing new, and attention grows with the square.
LONGEST = 512


@dataclasses.dataclass(frozen=True)
class Case:
    """The values of an engine, and its tokens.

    Attributes
    ----------
    known : dict of str to Known
        The values by tap.
    ids : (T,) int64 array or None
        The ids of the values, or None if they are only known to be of another number than asked.
    given : bool
        Whether the engine said which ids it used.
    generated : (n,) int64 array
        Ids that it generated, always taking the best one.
    prompt : int
        How many of `ids` are the prompt, if the others are generated; else 0.
    asked : Asked
    rows : int
        Tokens of the values; 0 if there are none.
    """

    known: dict[str, Known]
    ids: Array | None
    given: bool
    generated: Array
    prompt: int
    asked: Asked
    rows: int


def read_case(model: Any, dump: Any, tokens: Any, parse_special: bool = False) -> Case:
    """Return the case that the arguments of `doctor` describe.

    Parameters
    ----------
    model, dump, tokens, parse_special
        As for `doctor`.

    Raises
    ------
    ValueError
        If a name is not a tap, a shape does not fit, or the tokens are missing.
    TypeError
        If the dump is no mapping.
    """
    if not isinstance(dump, Mapping):
        raise TypeError(
            f"dump is a {type(dump).__name__}; expected a trace, a mapping from taps to arrays, "
            "or what tinyllm.read returns"
        )
    arrays = {str(name): value for name, value in dump.items()}
    used = _ids(arrays.pop("tokens", None), "dump['tokens']", model)
    generated = _ids(arrays.pop("ids", None), "dump['ids']", model)
    if used is None and getattr(dump, "tokens", None) is not None:
        used = np.asarray(dump.tokens, np.int64)  # type: ignore[attr-defined]
        used = used if (used >= 0).all() else None
        if getattr(dump, "start", 0):
            raise ValueError(
                f"the dump begins at position {dump.start}; expected a run from the first token on"  # type: ignore[attr-defined]
            )
    rows = _rows(model, arrays)
    if tokens is None and used is None and (rows or generated is not None):
        raise ValueError(
            "tokens is None and the dump has no entry 'tokens'; expected the text or the ids that "
            "the engine ran"
        )
    asked = _asked(model, used if tokens is None else tokens, parse_special)
    made = np.zeros(0, np.int64) if generated is None else generated
    right = np.asarray(asked.ids, np.int64)
    candidates = [used] if used is not None else [right, np.concatenate([right, made])]
    candidates += [np.concatenate([right, made[:-1]])]
    fitting = [ids for ids in candidates if not rows or len(ids) == rows]
    ids = fitting[0] if fitting else used
    prompt = len(right) if ids is not None and len(ids) > len(right) else 0
    if ids is not None and len(ids) > LONGEST and model.steps.roles("logits"):
        arrays = {name: _cut(model, name, array, LONGEST) for name, array in arrays.items()}
        ids, rows = ids[:LONGEST], min(rows, LONGEST)
    count = rows or (0 if ids is None else len(ids))
    known = {
        ALIASES.get(name, name): _known(model, ALIASES.get(name, name), array, count)
        for name, array in arrays.items()
    }
    return Case(known, ids, used is not None, made, prompt, asked, rows)


def _ids(value: Any, name: str, model: Any) -> Array | None:
    if value is None:
        return None
    array = np.asarray(value)
    if array.dtype.kind == "f" and (array == np.rint(array)).all():
        array = array.astype(np.int64)
    if array.ndim == 2 and len(array) == 1:
        array = array[0]
    return _in_vocabulary(token_ids(array, None, name), name, model)


def _in_vocabulary(ids: Array, name: str, model: Any) -> Array:
    size = model.config.vocab_size
    if len(ids) and not (0 <= ids.min() and ids.max() < size):
        wrong = int(ids[(ids < 0) | (ids >= size)][0])
        raise ValueError(f"{name} holds the id {wrong}; expected ids from 0 to {size - 1}")
    return ids.astype(np.int64)


def _asked(model: Any, tokens: Any, parse_special: bool) -> Asked:
    """Return what the engine was asked to run."""
    tokenizer, metadata = model.tokenizer, model.metadata
    if tokens is None:
        return Asked([], tokenizer, metadata)
    if isinstance(tokens, (list, tuple)) and tokens and isinstance(tokens[0], Mapping):
        if tokenizer is None:
            raise ValueError("tokens is a conversation, and the model has no tokenizer")
        text = "\n".join(str(message.get("content", "")) for message in tokens)
        return Asked(list(tokenizer.encode_chat(tokens)), tokenizer, metadata, text, chat=True)
    ids = token_ids(tokens, tokenizer, "tokens", parse_special)
    ids = _in_vocabulary(ids, "tokens", model)
    text = tokens.decode("utf-8", "replace") if isinstance(tokens, bytes) else tokens
    return Asked(ids.tolist(), tokenizer, metadata, text if isinstance(text, str) else None)


def _step(model: Any, name: str) -> Any:
    names = [step.tap for step in model.steps if step.visible]
    if name not in names:
        raise ValueError(f"the dump: {unknown(name, names)}")
    return model.steps[name]


def _rows(model: Any, arrays: Mapping[str, Any]) -> int:
    """Return how many tokens the arrays have: the most common number."""
    counts: dict[int, int] = {}
    for name, array in arrays.items():
        step = _step(model, ALIASES.get(name, name))
        shape = np.shape(array)
        flat = math.prod(step.shape)
        if step.matrix:
            rows = shape[-2] if len(shape) >= 3 else 0
        elif flat and math.prod(shape) % flat == 0:
            rows = math.prod(shape) // flat
        else:
            rows = 0
        if rows:
            counts[rows] = counts.get(rows, 0) + 1
    if not counts:
        return 0
    most = max(counts.values())
    return max(rows for rows, count in counts.items() if count == most)


def _known(model: Any, name: str, array: Any, rows: int) -> Known:
    """Return a value in the shape of its tap."""
    step = _step(model, name)
    x = np.asarray(array)
    if x.dtype.kind not in "fiub":
        raise ValueError(f"the dump: {name!r} has dtype {x.dtype}; expected numbers")
    x = x.astype(np.float32)
    whole = (*step.shape, rows, rows) if step.matrix else (rows, *step.shape)
    if x.size == math.prod(whole) and _fits(x.shape, whole):
        return Known(x.reshape(whole))
    if step.matrix and x.size and x.ndim >= 3 and x.shape[-1] > rows:  # a padded cache
        return _known(model, name, x[..., :rows], rows)
    size = math.prod(step.shape)
    late = step.layer >= model.steps.layers - 1 and not step.matrix
    if late and size and x.size % size == 0 and x.size // size < rows:
        return Known(x.reshape(-1, *step.shape), whole=False)
    expected = ("H, T, T" if step.matrix else "T, ...") + f" = {whole}"
    raise ValueError(f"the dump: {name!r} has shape {np.shape(array)}; expected ({expected})")


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Return whether two shapes differ only by axes of length 1 and by flattened heads."""
    a = [n for n in shape if n != 1]
    b = [n for n in whole if n != 1]
    return a == b or (len(b) > 1 and a in ([b[0], math.prod(b[1:])], [math.prod(b)]))


def _cut(model: Any, name: str, array: Any, count: int) -> Array:
    """Return the first tokens of a value, if it has a row for each."""
    step = _step(model, ALIASES.get(name, name))
    x = np.asarray(array)
    if step.matrix:
        return x[..., :count, :count]
    squeezed = x[0] if x.ndim > 1 and x.shape[0] == 1 else x
    return squeezed[:count]
