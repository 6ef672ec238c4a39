"""`diff`: two runs of one model, tap by tap in the order of execution."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..base.checks import positive
from ..base.numeric import Float32, Float64
from ..display.axes import axes
from ..display.table import Table, escape
from ..model import Model
from ..trace.taps import is_matrix
from ..trace.trace import Trace
from .measure import Measure, measure, worst
from .read import Dump, in_order, read
from .rounding import TIMES, Rounding, noise, rounding_of

__all__ = ["Diff", "Difference", "diff"]


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far one tap is apart.

    Attributes
    ----------
    tap : str
    token : int
        The position of the first token that is apart, or of the one nearest to it if none is.
    error : float
        Its relative error: the norm of the difference over the norm of the first side.
    tolerance : float
        The largest error that counts as equal here.
    cosine : float
        Between the two sides.
    head : int or None
        The head with the largest error there. None if the tap has no heads.
    index : tuple of int
        Where the worst element of this token and head is, in the array.
    a, b : float
        Its values on the two sides.
    verdict : str
        ``"same"``, ``"apart"``, ``"NaN"`` or ``"inf"`` (the second side has values that are not
        finite, the first one has not), or ``"mask"`` (a token sees others on one side only).

    Examples
    --------
    >>> import tinyllm as tl
    >>> t = tl.load().trace("ROMEO:", "blk.0.attn_q")
    >>> row = tl.diff(t, {"blk.0.attn_q": -t["blk.0.attn_q"]}).first
    >>> row.tap, row.token, round(row.error, 6), round(row.cosine, 6), row.verdict
    ('blk.0.attn_q', 0, 2.0, -1.0, 'apart')
    """

    tap: str
    token: int
    error: float
    tolerance: float
    cosine: float
    head: int | None
    index: tuple[int, ...]
    a: float
    b: float
    verdict: str

    @property
    def same(self) -> bool:
        """Whether the verdict is ``"same"``."""
        return self.verdict == "same"

    def __str__(self) -> str:
        """Return one sentence."""
        head = "" if self.head is None else f", head {self.head}"
        at = ", ".join(map(str, self.index))
        return (
            f"{self.tap}, token {self.token}{head}: error {self.error:.2g}, cosine "
            f"{self.cosine:.4f}; [{at}] is {self.b:.6g} instead of {self.a:.6g}"
        )


class Diff(Sequence[Difference]):
    """The differences of two runs: a sequence of `Difference`, in the order of execution.

    It prints as a short table.

    Attributes
    ----------
    tolerance : float
        The error that counts as equal everywhere. An error of up to 8 times what the model's own
        run has, rounded as the other program rounds, counts as equal, too.
    reason : str
        Why the tolerance is that.
    notes : list of str
        What was assumed, and what could not be compared.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> wrong = model.trace("ROMEO:", edits=tl.scale("blk.1.attn_v", 1.1))
    >>> d = tl.diff(model.trace("ROMEO:"), wrong)
    >>> d.same, d.first.tap, round(d.first.error, 3), len(d) == len(wrong)
    (False, 'blk.1.attn_v', 0.1, True)
    """

    def __init__(
        self,
        rows: Sequence[Difference],
        rounding: Rounding,
        notes: list[str],
        pieces: Mapping[int, str],
        measures: Mapping[str, Measure],
    ) -> None:
        self._rows = tuple(rows)
        self.tolerance, self.reason = rounding.tolerance, rounding.reason
        self.notes = notes
        self._pieces = pieces
        self._measures = measures

    def __getitem__(self, key: Any) -> Any:
        """Return a difference, by its number or by the name of its tap."""
        if isinstance(key, str):
            for row in self._rows:
                if row.tap == key:
                    return row
            raise KeyError(f"{key!r} was not compared")
        return self._rows[key]

    def __len__(self) -> int:
        """Return the number of taps that were compared."""
        return len(self._rows)

    @property
    def same(self) -> bool:
        """Whether no tap is apart."""
        return all(row.same for row in self._rows)

    @property
    def first(self) -> Difference | None:
        """The first tap, in the order of execution, that is apart. None if all are the same.

        What comes later may be apart only because of it.
        """
        return next((row for row in self._rows if not row.same), None)

    @property
    def table(self) -> Table:
        """All taps."""
        return self._table(self._rows)

    def _table(self, rows: Sequence[Difference]) -> Table:
        return Table(
            ("tap", "error", "tolerance", "cosine", "token", "head", "a", "b", "verdict"),
            [
                (
                    *(r.tap, f"{r.error:.2g}", f"{r.tolerance:.2g}", f"{r.cosine:.4f}", r.token),
                    "" if r.head is None else r.head,
                    *(f"{r.a:.4g}", f"{r.b:.4g}", r.verdict),
                )
                for r in rows
            ],
        )

    def errors(self, tap: str) -> Float64:
        """Return the relative errors of a tap.

        Parameters
        ----------
        tap : str

        Returns
        -------
        numpy.ndarray of float64, shape (T, H)
            H is 1 if the tap has no heads. Each is relative to the norm of the whole token.

        Examples
        --------
        >>> import tinyllm as tl
        >>> t = tl.load().trace("ROMEO:", "blk.*.attn_q")
        >>> bool((tl.diff(t, t).errors("blk.0.attn_q") == 0).all())
        True
        """
        self[tap]
        return self._measures[tap].errors

    def plot(self, ax: Any = None) -> Any:
        """Plot the error of each tap in the order of execution, and the tolerance.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        ax = axes(ax, 8, 3.5)
        tiny = 1e-9
        shown = [min(max(row.error, tiny), 1e3) for row in self._rows]
        colors = ["tab:blue" if row.same else "tab:red" for row in self._rows]
        ax.bar(range(len(shown)), [value / tiny for value in shown], bottom=tiny, color=colors)
        ax.plot([row.tolerance for row in self._rows], color="black", linewidth=0.8)
        ax.set_yscale("log")
        ax.set_ylabel("relative error")
        first = self.first
        if first is not None:
            at = self._rows.index(first)
            ax.set_xlabel(f"first apart: {first.tap}")
            ax.axvline(at, color="tab:red", linewidth=0.8, linestyle=":")
        blocks = [i for i, row in enumerate(self._rows) if row.tap.startswith("blk.")]
        starts = {self._rows[i].tap.split(".")[1]: i for i in reversed(blocks)}
        ax.set_xticks(list(starts.values()), list(starts), fontsize=7)
        return ax

    def _head(self) -> list[str]:
        """Return the lines above the table."""
        lines = [f"{len(self)} taps compared; tolerance {self.tolerance:.2g}: {self.reason}"]
        first = self.first
        if first is None:
            lines.append("all the same" if self._rows else "nothing to compare")
            return [*lines, *self.notes]
        apart = sum(not row.same for row in self._rows)
        lines.append(f"{apart} are apart; the first one is")
        kind = "" if first.verdict == "apart" else f" ({first.verdict})"
        piece = self._pieces.get(first.token, "")
        text = f"{first}{kind}" + (f"; the token is {piece!r}" if piece else "")
        lines += textwrap.wrap(text, 92, initial_indent="  ", subsequent_indent="  ")
        return [*lines, *self.notes]

    def _short(self) -> list[Difference]:
        """Return the rows that the short table has: around the first, and the worst."""
        if len(self._rows) <= 20:
            return list(self._rows)
        first = self.first
        if first is None:
            near = [row.error / row.tolerance for row in self._rows]
            return [self._rows[i] for i in sorted(np.argsort(near)[-12:].tolist())]
        at = self._rows.index(first)
        return list(self._rows[max(0, at - 4) : at + 8])

    def __str__(self) -> str:
        """Return a summary and a short table."""
        shown = self._short()
        table = Table(
            ("tap", "error", "cosine", "token", "head", "a", "b", "verdict"),
            [(*row[:2], *row[3:]) for row in self._table(shown).rows],
        )
        lines = [*self._head(), *str(table).splitlines()]
        if len(shown) < len(self):
            which = "around the first one" if not self.same else "nearest to the tolerance"
            lines.append(f"({len(shown)} of {len(self)} taps, {which}; .table has all)")
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Return the same as `str`, so that an interactive session shows it."""
        return str(self)

    def _repr_html_(self) -> str:
        head = "<br>".join(escape(line) for line in self._head())
        rest = ""
        if len(self._short()) < len(self):
            rest = f"<details><summary>all taps</summary>{self.table.html()}</details>"
        return f"<p>{head}</p>{self._table(self._short()).html()}{rest}"


def diff(
    a: Any,
    b: Any,
    tolerance: float | None = None,
    *,
    dialect: Any = None,
    tokens: Any = None,
    model: Model | None = None,
) -> Diff:
    """Compare two runs of one model, tap by tap in the order of execution.

    Parameters
    ----------
    a, b : Trace, Model, or anything that `tinyllm.read` takes
        What should be, and what is. A model runs the tokens of the other side.
    tolerance : float, optional
        The largest relative error of a token that counts as equal. Default: from what the sides
        are: 1e-5 for float32, 5e-3 for float16, 2e-2 for bfloat16, 5e-2 where activations have 8
        bits. If the rounding of a side is not known, it is measured where matrices first differ.
        Then larger errors, too, count as equal where the model's own run has them when it rounds
        its values in this way. This needs the model and its tokens.
    dialect
        As in `tinyllm.read`, for sides that are not read yet.
    tokens : str, bytes or ids, optional
        The tokens of both runs, for sides that do not have them.
    model : Model, optional
        The model, if neither side has it. It gives shapes and the order of execution.

    Returns
    -------
    Diff

    Raises
    ------
    ValueError
        If the sides have other numbers of tokens, or no tap in common.

    Examples
    --------
    >>> import numpy as np, tinyllm as tl
    >>> model = tl.load()
    >>> t = model.trace("ROMEO:")
    >>> d = tl.diff(model, {"layer0_q": t["blk.0.attn_q"]}, tokens="ROMEO:")
    >>> print(d)  # doctest: +ELLIPSIS
    1 taps compared; tolerance ...
    all the same
    tap ...
    """
    for side in (a, b):
        if model is None:
            model = side if isinstance(side, Model) else getattr(side, "model", None)
    sides = [_side(side, dialect, tokens, model) for side in (a, b)]
    x, y = sides
    if isinstance(x, Model) and isinstance(y, Model):
        raise TypeError("a and b are models; expected a trace or a dump on one side")
    if isinstance(x, Model):
        x = _run(x, y, tokens)
    if isinstance(y, Model):
        y = _run(y, x, tokens)
    x, y = _with_tokens(x, y, model), _with_tokens(y, x, model)
    notes = _check_tokens(x, y)
    pairs = _pairs(x, y)
    order = in_order(pairs, model)
    if not order:
        raise ValueError(f"the sides have no tap in common: a has {_some(x)}, and b has {_some(y)}")
    wrong = [name for name in order if pairs[name][0].shape != pairs[name][1].shape]
    for name in wrong:
        shapes = " and ".join(str(side.shape) for side in pairs[name])
        notes.append(f"{name} has the shapes {shapes}, and was left out")
    order = [name for name in order if name not in wrong]
    found = {name: measure(*pairs[name], is_matrix(name), _heads(name, model)) for name in order}
    if tolerance is None:
        rounding = rounding_of(x, y, found, model)
        limits = _limits(found, rounding, y if (x.tokens < 0).any() else x, model)
    else:
        rounding = Rounding(positive("tolerance", tolerance), "", "as given")
        limits = {name: np.full(len(m.by_token), tolerance) for name, m in found.items()}
    stop = x.start + len(x.tokens)
    rows = [
        _difference(
            *(name, pairs[name], found[name], limits[name]),
            *(stop - len(found[name].by_token), _heads(name, model)),
        )
        for name in order
    ]
    pieces = x.pieces if any(x.pieces) else y.pieces
    return Diff(rows, rounding, notes, dict(zip(x.positions.tolist(), pieces, strict=True)), found)


def _limits(
    found: Mapping[str, Measure], rounding: Rounding, run: Trace, model: Model | None
) -> dict[str, Float64]:
    """Return the errors that count as equal, by tap and token."""
    limits = {name: np.full(len(m.by_token), rounding.tolerance) for name, m in found.items()}
    over = any((m.by_token > rounding.tolerance).any() for m in found.values())
    if over and model is not None and not run.start and (run.tokens >= 0).all():
        for kind in rounding.kind.split(" or "):
            rounded = noise(model, run.tokens, list(found), kind)
            for name, limit in limits.items():
                # an error can be small by chance, so the mean counts, too
                usual = np.maximum(rounded[name], rounded[name].mean())[-len(limit) :]
                limits[name] = np.maximum(limit, TIMES * usual)
    return limits


def _side(side: Any, dialect: Any, tokens: Any, model: Model | None) -> Any:
    if isinstance(side, (Model, Trace)):
        return side.fitted(model) if isinstance(side, Dump) and model is not None else side
    if not isinstance(side, (str, os.PathLike, Mapping, Sequence)) and not hasattr(side, "items"):
        raise TypeError(f"a side is {side!r}; expected a trace, a model, a path or arrays by name")
    return read(side, dialect, tokens, model=model)


def _run(model: Model, other: Trace, tokens: Any) -> Trace:
    """Run the tokens of the other side, with its taps."""
    ids = other.tokens if tokens is None else tokens
    if tokens is None and (other.tokens < 0).any():
        raise ValueError("the dump does not have its tokens; give tokens=")
    names = {step.tap for step in model.steps}
    tails = other.tails if isinstance(other, Dump) else {}
    wanted = [name for name in (*other, *tails) if name in names]
    trace: Trace = model.trace(ids, wanted)
    return trace


def _with_tokens(side: Trace, other: Trace, model: Model | None) -> Trace:
    """Return a side with the tokens of the other one if it does not know its own."""
    if model is None or not isinstance(side, Dump) or (side.tokens >= 0).all():
        return side
    return side.fitted(model, other.tokens) if (other.tokens >= 0).all() else side


def _check_tokens(x: Trace, y: Trace) -> list[str]:
    """Return a note if the tokens differ. Raise if their number does."""
    if len(x.tokens) != len(y.tokens):
        raise ValueError(
            f"a has {len(x.tokens)} tokens, and b has {len(y.tokens)}: {x.tokens[:8].tolist()}... "
            f"and {y.tokens[:8].tolist()}...; expected the same tokens on both sides"
        )
    known = (x.tokens >= 0) & (y.tokens >= 0)
    apart = np.flatnonzero(known & (x.tokens != y.tokens))
    if not apart.size:
        return []
    i = int(apart[0])
    return [
        f"the tokens differ: token {i} is {int(y.tokens[i])} instead of {int(x.tokens[i])}, so "
        "that everything after it must"
    ]


def _pairs(x: Trace, y: Trace) -> dict[str, tuple[Float32, Float32]]:
    """Return the arrays of the taps that both sides have. Some have the last tokens only."""
    pairs: dict[str, tuple[Float32, Float32]] = {}
    tails = [side.tails if isinstance(side, Dump) else {} for side in (x, y)]
    for name in {*x, *tails[0]} & {*y, *tails[1]}:
        left = x[name] if name in x else tails[0][name]
        right = y[name] if name in y else tails[1][name]
        axis = 1 if is_matrix(name) else 0
        rows = min(left.shape[axis], right.shape[axis])
        last = (slice(None),) * axis + (slice(-rows, None),)
        pairs[name] = (left[last], right[last])
    return pairs


def _some(trace: Trace) -> str:
    names = list(trace)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "none"


def _heads(name: str, model: Model | None) -> bool:
    """Return whether axis 1 of a value counts heads."""
    return True if model is None else model.steps[name].heads


def _difference(
    name: str,
    pair: tuple[Float32, Float32],
    found: Measure,
    limits: Float64,
    first: int,
    heads: bool,
) -> Difference:
    """Return the difference of one tap, whose first row has the position `first`."""
    apart = (found.by_token > limits) | (found.strange != "")
    verdict = "apart" if apart.any() else "same"
    if (found.strange != "").any():
        verdict = str(found.strange[found.strange != ""][0])
    row = int((apart if apart.any() else found.by_token / limits).argmax())
    matrix = is_matrix(name)
    a, b = (side[:, row] if matrix else side[row] for side in pair)
    head = None
    if matrix or (heads and a.ndim > 1):
        head = int(found.errors[row].argmax())
        if found.strange[row]:
            head = worst(a, b, matrix)[0]
        a, b = a[head], b[head]
    place = worst(a, b, matrix)
    index = (row, *place) if head is None else (row, head, *place)
    if matrix:
        index = (index[1], index[0], *place)
    return Difference(
        tap=name,
        error=float(found.by_token[row]),
        tolerance=float(limits[row]),
        cosine=float(found.cosines[row]),
        token=first + row,
        head=head,
        index=index,
        a=float(a[place]),
        b=float(b[place]),
        verdict=verdict,
    )
