"""Reading what `doctor` is given: the values of another engine and what it was asked to run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..comparison.read import read
from ..runtime.prompt import token_ids
from ..trace.taps import unknown
from ..trace.trace import Trace
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
    notes : tuple of str
        What was assumed when the values were read.
    """

    known: dict[str, Known]
    ids: Array | None
    given: bool
    generated: Array
    prompt: int
    asked: Asked
    rows: int
    notes: tuple[str, ...] = ()


def read_case(model: Any, dump: Any, tokens: Any, parse_special: bool = False) -> Case:
    """Return the case that the arguments of `doctor` describe.

    Parameters
    ----------
    model, dump, tokens, parse_special
        As for `doctor`.

    Raises
    ------
    ValueError
        If no value can be read, or the tokens are missing.
    TypeError
        If the dump is of another type.
    """
    entries = dict(dump) if isinstance(dump, Mapping) and not isinstance(dump, Trace) else {}
    generated = _ids(entries.pop("generated", None), "dump['generated']", model)
    used = _ids(entries.pop("tokens", None), "dump['tokens']", model)
    trace = None
    if isinstance(dump, (str, os.PathLike, Trace)) or entries:
        trace = read(entries or dump, model=model)
        if trace.start:
            raise ValueError(
                f"the dump begins at position {trace.start}; expected a run from the first token on"
            )
        if used is None and (trace.tokens >= 0).all():
            used = _in_vocabulary(np.asarray(trace.tokens), "the dump", model)
    elif not isinstance(dump, Mapping):
        raise TypeError(
            f"dump is a {type(dump).__name__}; expected a trace, a mapping from names to arrays, "
            "or the path of a file that tinyllm.read reads"
        )
    if tokens is None and used is None:
        raise ValueError(
            "tokens is None and the dump has no entry 'tokens'; expected the text or the ids that "
            "the engine ran"
        )
    rows = 0 if trace is None else len(trace.tokens)
    asked = _asked(model, used if tokens is None else tokens, parse_special)
    made = np.zeros(0, np.int64) if generated is None else generated
    right = np.asarray(asked.ids, np.int64)
    possible = [right, np.concatenate([right, made]), np.concatenate([right, made[:-1]])]
    possible = possible if used is None else [used]
    ids = next((each for each in possible if rows in (0, len(each))), used)
    longer = ids is not None and len(ids) > len(right) and np.array_equal(ids[: len(right)], right)
    prompt = len(right) if longer else 0
    known = {} if trace is None else _known(model, trace)
    if ids is not None and len(ids) > LONGEST and model.steps.roles("logits"):
        known = {name: _cut(model, name, each) for name, each in known.items() if each.whole}
        ids, rows = ids[:LONGEST], min(rows, LONGEST)
    notes = tuple(getattr(trace, "notes", ()))
    return Case(known, ids, used is not None, made, prompt, asked, rows, notes)


def _known(model: Any, trace: Trace) -> dict[str, Known]:
    """Return the values of a trace by tap."""
    found = {name: Known(np.asarray(array, np.float32)) for name, array in trace.items()}
    for name, array in getattr(trace, "tails", {}).items():
        found[name] = Known(np.asarray(array, np.float32), whole=False)
    names = {step.tap for step in model.steps if step.visible}
    for name, known in found.items():
        if name not in names:
            raise ValueError(f"the dump: {unknown(name, names)}")
        step, rows = model.steps[name], len(trace.tokens)
        shape = (*step.shape, rows, rows) if step.matrix else (rows, *step.shape)
        if known.whole and known.array.shape != shape:
            raise ValueError(
                f"the dump: {name!r} has shape {known.array.shape}; expected {shape}, as in this "
                "model"
            )
    return found


def _cut(model: Any, name: str, known: Known) -> Known:
    """Return the first tokens of a value."""
    if model.steps[name].matrix:
        return Known(known.array[:, :LONGEST, :LONGEST])
    return Known(known.array[:LONGEST])


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
