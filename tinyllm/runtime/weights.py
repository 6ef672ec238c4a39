"""`Weights`: the tensors of a model by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from .._core import Weight
from ..base.checks import choice
from ..base.numeric import Float32
from ..base.samples import sample_weights
from ..base.units import size
from ..display.table import Table, escape
from ..display.weights import weights_html
from ..trace.dialects import hint
from ..trace.layouts import in_hugging_face

__all__ = ["Weights"]


class Weights(Mapping[str, Weight]):
    """The tensors of a model by name, in file order. Read-only.

    Parameters
    ----------
    tensors : mapping of str to Weight
    architecture : str, optional
        That of the model, for `numpy`.
    head_size : int, optional

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

    def __init__(
        self, tensors: Mapping[str, Weight], architecture: str = "", head_size: int = 0
    ) -> None:
        self._tensors = tensors
        self._origin = architecture, head_size

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

    def numpy(self, name: str, layout: str = "gguf") -> Float32:
        """Return a weight as an array, in the layout of the file or of Hugging Face's checkpoints.

        Parameters
        ----------
        name : str
        layout : str
            ``"gguf"``: as ``weights[name].numpy()``. ``"hf"``: as in the checkpoint that the file
            was converted from. Files of architectures such as llama have the rows of queries and
            keys in another order, GPT-2's matrices are transposed, and Gemma's norms are 1 larger.

        Returns
        -------
        numpy.ndarray of float32

        Raises
        ------
        KeyError
            If there is no such weight.
        ValueError
            If the layout is another, or cannot be made for this weight.

        Examples
        --------
        >>> import tinyllm as tl
        >>> weights = tl.load().weights
        >>> weights.numpy("blk.0.attn_q.weight", layout="hf").shape
        (256, 256)
        """
        choice("layout", layout, ("gguf", "hf"))
        array = self[name].numpy()
        return array if layout == "gguf" else in_hugging_face(array, name, *self._origin)

    def __reduce__(self) -> tuple[type[Weights], tuple[Any, ...]]:
        return Weights, (dict(self._tensors), *self._origin)

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
