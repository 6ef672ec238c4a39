"""`Session`: one context, fed bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from .html import Table
from .trace import Floats

if TYPE_CHECKING:
    from .model import Model

__all__ = ["Session"]


class Session:
    """One context of a model: what it has seen, and its keys and values.

    For one thread at a time; a second thread that calls meanwhile gets RuntimeError. A call
    that raises, also KeyboardInterrupt, leaves the session as it was.

    Attributes
    ----------
    model : Model
    logits : numpy.ndarray of float32 or None
        What the last `eval` returned.

    Examples
    --------
    >>> import tinyllm as tl
    >>> session = tl.load().session()
    >>> _ = session.eval("ROMEO:")
    >>> session.rewind(1)
    >>> len(session) == len(session.tokens)
    True
    """

    def __init__(self, model: Model, core: _core.Session | None = None) -> None:
        self.model = model
        self.core = _core.Session(model.core) if core is None else core
        self.logits: Floats | None = None
        self._tokens: list[int] = []

    @property
    def tokens(self) -> list[int]:
        """The ids in the context so far, as a new list."""
        return list(self._tokens)

    def eval(self, tokens: Any, logits: Any = "last") -> Floats | None:
        """Append tokens to the context and run them.

        Parameters
        ----------
        tokens : str, bytes or ids
            At least one token. Text at the start of a context gets the special tokens that the
            file asks for; later text gets none.
        logits : str or sequence of int
            ``"last"`` -> shape (V,); ``"all"`` -> (n, V); indices into these tokens (negative
            ones count from the end) -> (len, V); ``"none"`` -> None.

        Returns
        -------
        numpy.ndarray of float32, or None
            Also kept in `logits`. Row i holds the scores of what follows token i.

        Raises
        ------
        ValueError
            No tokens, an id outside the vocabulary, or the context is full.
        IndexError
            An index of `logits` is out of range.
        RuntimeError
            Another thread is using the session.

        Examples
        --------
        >>> import tinyllm as tl
        >>> session = tl.load().session()
        >>> session.eval([1, 2, 3], logits="all").shape[0]
        3
        """
        from .model import token_ids

        if isinstance(tokens, (str, bytes)) and self._tokens and self.model.tokenizer is not None:
            tokens = self.model.tokenizer.encode(tokens, add_special=False)
        ids = token_ids(tokens, self.model.tokenizer, "tokens")
        wanted = _rows(logits, len(ids))
        rows, places = np.unique(wanted, return_inverse=True)
        values, _ = self.model.run([self.core], [ids], rows)
        self._tokens += ids.tolist()
        if isinstance(logits, str):
            result = {"last": values[-1:], "all": values, "none": values}[logits]
            self.logits = None if logits == "none" else result[0] if logits == "last" else result
        else:
            self.logits = values[places]
        return self.logits

    def rewind(self, n: int) -> None:
        """Forget the last `n` tokens.

        Parameters
        ----------
        n : int
            0 to ``len(self)``.

        Raises
        ------
        ValueError
            `n` is out of range.

        Examples
        --------
        >>> import tinyllm as tl
        >>> session = tl.load().session()
        >>> _ = session.eval([1, 2, 3])
        >>> session.rewind(2)
        >>> session.tokens
        [1]
        """
        if not 0 <= n <= len(self._tokens):
            raise ValueError(f"n is {n}; expected 0 to {len(self._tokens)}, the tokens so far")
        self.core.rewind(len(self._tokens) - n)
        del self._tokens[len(self._tokens) - n :]
        self.logits = None

    def reset(self) -> None:
        """Forget everything.

        Examples
        --------
        >>> import tinyllm as tl
        >>> session = tl.load().session()
        >>> _ = session.eval([1, 2, 3])
        >>> session.reset()
        >>> len(session)
        0
        """
        self.rewind(len(self._tokens))

    def fork(self) -> Session:
        """A second session with the same context.

        Returns
        -------
        Session
            Memory is shared with this one until one of the two goes on.

        Examples
        --------
        >>> import tinyllm as tl
        >>> session = tl.load().session()
        >>> _ = session.eval([1, 2, 3])
        >>> session.fork().tokens
        [1, 2, 3]
        """
        fork = Session(self.model, self.core.fork())
        fork._tokens = list(self._tokens)
        fork.logits = self.logits
        return fork

    def __len__(self) -> int:
        """Count the tokens in the context."""
        return len(self._tokens)

    def table(self) -> Table:
        """A table of the context: tokens, room, memory.

        Returns
        -------
        Table
        """
        limit = self.model.core.config["max_context"]
        rows = [
            ("tokens", f"{len(self):,} of {limit:,}"),
            ("kv cache", f"{self.core.nbytes:,} bytes"),
            ("text", "".join(self.model.pieces(np.asarray(self._tokens[-64:], np.int32)))[-200:]),
        ]
        return Table(("what", "value"), rows)

    def __repr__(self) -> str:
        """Name tokens and memory."""
        return f"<tinyllm.Session: {len(self)} tokens, kv cache {self.core.nbytes:,} bytes>"

    def _repr_html_(self) -> str:
        return self.table().html(caption=repr(self))


def _rows(logits: Any, n: int) -> Sequence[int]:
    """Row numbers that ``logits=`` asks for."""
    if isinstance(logits, str):
        names = {"last": [n - 1], "all": range(n), "none": []}
        if logits not in names:
            raise ValueError(
                f"logits is {logits!r}; expected 'last', 'all', 'none' or a list of indices"
            )
        return names[logits]
    rows = []
    for i, index in enumerate(logits):
        row = int(index) + n if index < 0 else int(index)
        if not 0 <= row < n:
            raise IndexError(f"logits[{i}] is {index}; expected -{n} to {n - 1}")
        rows.append(row)
    return rows
