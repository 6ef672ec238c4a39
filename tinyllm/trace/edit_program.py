"""Edits, checked against a model, and the function that the core calls at an edited tap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..base.numeric import Float32
from ..base.warning import warn
from ..reference.ops import visible_keys
from .edits import Edit
from .site import Change, Piece, Site, shown_value
from .taps import Tap, match

__all__ = ["Dispatcher", "Program", "Sites"]


class Program:
    """A list of edits, checked against the taps of one model.

    Parameters
    ----------
    taps : sequence of Tap
        All taps of the model.
    edits : Edit or sequence of Edit
    limit : int
        The longest context.

    Raises
    ------
    TypeError
        If something is not an edit.
    ValueError
        If the model has no tap with the name or pattern of an edit.
    """

    def __init__(self, taps: Sequence[Tap], edits: Any, limit: int) -> None:
        self._limit = limit
        self._rows: list[tuple[Edit, str, list[Tap]]] = []
        names = [tap.name for tap in taps]
        by_name = {tap.name: tap for tap in taps}
        try:
            given = [edits] if isinstance(edits, Edit) else list(edits or ())
        except TypeError:
            raise TypeError(f"edits is {shown_value(edits)}; expected a list of edits") from None
        for i, edit in enumerate(given):
            if not isinstance(edit, Edit):
                raise TypeError(
                    f"edits[{i}] is {shown_value(edit)}; expected an edit: tl.set, tl.add, "
                    "tl.scale, tl.zero, tl.mean, tl.apply or tl.patch"
                )
            label = f"edits[{i}], {edit!r}"
            try:
                found = match(names, edit.tap, "tap")
            except (TypeError, ValueError) as error:
                raise type(error)(f"{label}: {error}") from None
            self._rows.append((edit, label, [by_name[name] for name in found]))
        #: whether the changes of a piece depend on its length alone: then each step of a
        #: generation has those of the step before
        self._steady = all(
            _is_steady(edit) and not any(tap.matrix or tap.choices for tap in found)
            for edit, _, found in self._rows
        )
        self._last: tuple[tuple[int, bool], Sites] | None = None

    def __bool__(self) -> bool:
        return bool(self._rows)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits, in order."""
        return tuple(edit for edit, _, _ in self._rows)

    @property
    def taps(self) -> dict[str, Tap]:
        """The taps that the edits change, by name."""
        return {tap.name: tap for _, _, found in self._rows for tap in found}

    def sites(self, start: int, length: int, whole: bool) -> Sites:
        """Check every edit against one piece of a call, and return the changes by step.

        Parameters
        ----------
        start, length : int
            Position of the piece's first token, and the number of its tokens.
        whole : bool
            Whether the piece is a whole context. Then a position outside of it is an error.
        """
        key, last = (length, whole), self._last
        if self._steady and last is not None and last[0] == key:
            return last[1]
        sites: Sites = {}
        piece = Piece(start, length, whole, self._limit)
        for edit, label, found in self._rows:
            for tap in found:
                named = label if tap.name == edit.tap else f"{label} at {tap.name!r}"
                site = Site(named, (edit.at, edit.head, edit.index), tap, piece)
                change = edit.prepare(site)
                if 0 not in site.shape:
                    sites.setdefault(tap.index, []).append((site, change))
        if self._steady:
            self._last = (key, sites)
        return sites


def _is_steady(edit: Edit) -> bool:
    """Whether an edit does the same at every position."""
    at = edit.at
    return edit.kind != "patch" and (at is None or (isinstance(at, int) and at < 0))


#: The changes of one piece, in order, by the number of the step whose value they change.
Sites: TypeAlias = dict[int, list[tuple[Site, Change]]]


#: Roles of values from which a softmax makes probabilities.
_SCORES = frozenset(("attn_scores", "router", "logits"))


def _not_numbers(site: Site, values: Any) -> npt.NDArray[np.bool_]:
    """Return which values are NaN or infinite. In scores, -inf hides a token or an expert."""
    wrong: npt.NDArray[np.bool_] = ~np.isfinite(values)
    if not _SCORES.isdisjoint(site.tap.roles):
        wrong &= ~np.isneginf(values)
    return wrong


class Dispatcher:
    """The function that the core calls at an edited tap.

    Parameters
    ----------
    pieces : sequence of Sites
        The changes of each piece of the call.
    lengths : sequence of int
        Number of tokens of each piece.
    """

    def __init__(self, pieces: Sequence[Sites], lengths: Sequence[int]) -> None:
        self._pieces = pieces
        ends = np.cumsum(lengths)
        self._spans = [slice(int(e) - n, int(e)) for e, n in zip(ends, lengths, strict=True)]
        #: the numbers of the edited steps, for `_core.Model.forward`
        self.edits = tuple(sorted({key for sites in pieces for key in sites}))

    def __call__(self, step: int, array: Float32, piece: int) -> None:
        """Change the value of a step in place.

        Parameters
        ----------
        step : int
            Number of the step.
        array : numpy.ndarray of float32
            The value in one piece, or the rows of all pieces.
        piece : int
            The piece, or -1 for the rows of all pieces.
        """
        if piece >= 0:
            self._run(self._pieces[piece].get(step, ()), array)
            return
        for sites, span in zip(self._pieces, self._spans, strict=True):
            self._run(sites.get(step, ()), array[span])

    def _run(self, work: Sequence[tuple[Site, Change]], array: Float32) -> None:
        for site, change in work:
            before = array[site.index]
            region = np.array(before)
            result = change(region, array)
            result = region if result is None else result
            bad = _not_numbers(site, result)
            if bad.any() and not _not_numbers(site, before).any():
                warn(
                    f"{site.label}: {np.count_nonzero(bad)} of {bad.size} values that it writes "
                    "are NaN or infinite, and so is what is computed from them",
                    RuntimeWarning,
                )
            array[site.index] = result
        if work and work[0][0].tap.choices:
            _check_ids(work[-1][0], array)
        if work and work[0][0].tap.matrix:
            site = work[0][0]
            seen = visible_keys(site.context - site.start, site.context, *site.tap.mask)
            array[:, ~seen] = -np.inf if site.tap.family == "attn_scores" else 0.0


def _check_ids(site: Site, ids: Float32) -> None:
    """Check that the ids of experts that an edit leaves are different for each token."""
    experts, used = site.tap.choices, site.tap.row[0]
    right = (ids >= 0) & (ids < experts) & (ids == np.floor(ids))
    inside = np.where(right, ids, -1)
    ordered = np.sort(inside, axis=-1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]).any(axis=-1)
    wrong = np.flatnonzero(~right.all(axis=-1) | repeated)
    if len(wrong):
        raise ValueError(
            f"{site.label}: {site.tap.name} becomes {ids[wrong[0]].tolist()} at token "
            f"{site.start + int(wrong[0])}; expected {used} different whole numbers from 0 to "
            f"{experts - 1}"
        )
