"""`Weights`: the tensors of a model by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from .._core import Weight
from ..base.samples import sample_weights
from ..base.units import size
from ..display.table import Table, escape
from ..display.weights import weights_html
from ..trace.dialects import hint

__all__ = ["Weights"]


class Weights(Mapping[str, Weight]):
    """The tensors of a model by name, in file order. Read-only.

    Parameters
    ----------
    tensors : mapping of str to Weight

    Examples
    --------
    >>> import tinyllm as tl
    >>> weights = tl.load().weights
    >>> weights["blk.0.attn_q.weight"].shape == (256, 256)
    True
    >>> weights["blk.0.attn_q"]
    Traceback (most recent call last):
    KeyError: "no weight has the name 'blk.0.attn_q'; expected 'blk.0.attn_q.weight'"
    """

    def __init__(self, tensors: Mapping[str, Weight]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Weight:
        try:
            return self._tensors[name]
        except KeyError:
            raise KeyError(self._why_not(name)) from None

    def _why_not(self, name: object) -> str:
        start = f"no weight has the name {name!r}"
        if f"{name}.weight" in self._tensors:
            return f"{start}; expected {f'{name}.weight'!r}"
        if reason := hint(name, self._tensors) or hint(f"{name}.weight", self._tensors):
            return f"{start}; {reason}"
        close = difflib.get_close_matches(str(name), self._tensors, n=3, cutoff=0.5)
        return f"{start}; the nearest are {', '.join(map(repr, close))}" if close else start

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __reduce__(self) -> tuple[type[Weights], tuple[dict[str, Weight]]]:
        return Weights, (dict(self._tensors),)

    def __repr__(self) -> str:
        """Return the number of tensors and their size."""
        total = size(sum(weight.nbytes for weight in self._tensors.values()))
        return f"<tinyllm.Weights: {len(self)} tensors, {total}>"

    def table(self) -> Table:
        """Return a table with one row per tensor: name, type, shape and size.

        Returns
        -------
        Table

        Examples
        --------
        >>> import tinyllm as tl
        >>> print(tl.load().weights.table())  # doctest: +ELLIPSIS
        weight...
        """
        return Table(
            ("weight", "type", "shape", "size"),
            [(name, w.type, w.shape, size(w.nbytes)) for name, w in self._tensors.items()],
        )

    def __str__(self) -> str:
        """Return the table as text."""
        return str(self.table())

    def _repr_html_(self) -> str:
        samples = sample_weights(self._tensors.values())
        return f"<p>{escape(repr(self))}</p>{weights_html(samples)}"
