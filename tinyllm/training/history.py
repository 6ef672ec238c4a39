"""The history of a model: the runs and changes that it comes from, as a key of its file.

llama.cpp ignores the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import wrong

__all__ = ["KEY", "Event", "common", "extended", "history_key", "read_history"]

KEY = "training.history"


class Event(NamedTuple):
    """One run or change.

    Attributes
    ----------
    run : str
        Its name: a hash of everything that it was told, and of what it began with. So the same run
        has the same name each time, and models of the same name at the same step are equal.
    made : str
        ``"init"``, ``"train"``, ``"resume"``, ``"init-with"``, ``"insert-layer"``,
        ``"insert-head"`` or ``"reset-optimizer"``.
    step : int
        The step at which it began.
    """

    run: str
    made: str
    step: int


History = tuple[Event, ...]


def read_history(metadata: Mapping[str, Any]) -> History:
    """Return the history of a file, or () if it has none.

    Parameters
    ----------
    metadata : mapping
        The metadata of a GGUF file.

    Returns
    -------
    tuple of Event
        From the first to the last.

    Raises
    ------
    FormatError
        If the key holds something else.
    """
    text = metadata.get(KEY, "[]")
    try:
        found = tuple(Event(str(run), str(made), int(step)) for run, made, step in json.loads(text))
    except (TypeError, ValueError):
        raise wrong(KEY, text, "a list of runs", shown=repr(text)[:80]) from None
    return found


def history_key(history: History) -> dict[str, str]:
    """Return the metadata that `read_history` reads."""
    return {KEY: json.dumps(history)}


def extended(history: History, made: str, step: int, facts: Sequence[object]) -> History:
    """Return a history with one more event.

    Parameters
    ----------
    history : tuple of Event
    made : str
    step : int
    facts : sequence of object
        What the event depends on besides its history.

    Returns
    -------
    tuple of Event

    Examples
    --------
    >>> history = extended((), "init", 0, ["seed 1"])
    >>> [(event.made, event.step) for event in extended(history, "train", 0, ["text"])]
    [('init', 0), ('train', 0)]
    """
    told = json.dumps([history, made, step, [str(fact) for fact in facts]])
    return (*history, Event(hashlib.sha256(told.encode()).hexdigest()[:16], made, step))


def common(a: History, b: History) -> int:
    """Return how many events two histories have in common, from their begin.

    Examples
    --------
    >>> a = extended((), "init", 0, [])
    >>> common(a, extended(a, "train", 0, []))
    1
    """
    count = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        count += 1
    return count
