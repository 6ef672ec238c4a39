"""Beginnings that several new contexts have in common: run once, then forked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from .. import _core
from .runner import Runner

__all__ = ["common_start", "run_beginnings"]

#: A beginning runs alone only if this saves so many tokens, because it takes a call of its own.
_LEAST = 16


def common_start(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    """Return the number of tokens that two texts have in common at their beginnings.

    Examples
    --------
    >>> common_start(np.array([1, 2, 3], np.int32), np.array([1, 2, 4, 5], np.int32))
    2
    """
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


class _Group:
    """Texts with the same beginning, which `session` has up to `done`."""

    def __init__(self, members: list[int], session: _core.Session, done: int) -> None:
        self.members, self.session, self.done = members, session, done


def run_beginnings(
    model: Runner,
    texts: Sequence[npt.NDArray[np.int32]],
    watch: Callable[[], object] | None = None,
) -> tuple[list[_core.Session], list[int]]:
    """Run what the beginnings of several texts have in common, each once.

    Parameters
    ----------
    model : Model
    texts : sequence of int32 arrays
        The last token of a text is never run, so that its logits can be had.
    watch : callable, optional
        As for `Runner.run`.

    Returns
    -------
    sessions : list of _core.Session
        A session for each text, with a beginning of it, which may be empty.
    ran : list of int
        How many tokens were run for each text. Those of a common beginning count for the first
        text that has it.

    Examples
    --------
    >>> import tinyllm as tl
    >>> long = np.arange(100, dtype=np.int32)
    >>> sessions, ran = run_beginnings(tl.load(), [long, long[:90], long[:5]])
    >>> [len(session) for session in sessions], ran
    ([89, 89, 0], [89, 0, 0])
    """
    sessions = [_core.Session(model.core) for _ in texts]
    ran = [0] * len(texts)
    groups = [_Group(list(range(len(texts))), _core.Session(model.core), 0)]
    while groups:
        due: list[tuple[_Group, int]] = []
        onward = []
        for group in groups:
            first = texts[group.members[0]]
            shared = min(common_start(first, texts[i]) for i in group.members)
            shared = min(shared, *(len(texts[i]) - 1 for i in group.members))
            if (shared - group.done) * (len(group.members) - 1) >= _LEAST:
                due.append((group, shared))
            onward += _parts(texts, group, shared)
        if due:
            tokens = [texts[group.members[0]][group.done : shared] for group, shared in due]
            model.run([group.session for group, _ in due], tokens, [], watch=watch)
            for group, shared in due:
                ran[group.members[0]] += shared - group.done
                group.done = shared
        groups = []
        for parent, members in onward:
            if len(members) == 1:
                sessions[members[0]] = parent.session.fork()
            else:
                groups.append(_Group(members, parent.session.fork(), parent.done))
    return sessions, ran


def _parts(
    texts: Sequence[npt.NDArray[np.int32]], group: _Group, shared: int
) -> list[tuple[_Group, list[int]]]:
    """Return the members of a group by their next token; those that end there are alone."""
    by_token: dict[tuple[bool, int], list[int]] = {}
    for i in group.members:
        ends = len(texts[i]) - 1 <= shared
        by_token.setdefault((ends, i if ends else int(texts[i][shared])), []).append(i)
    return [(group, members) for members in by_token.values()]
