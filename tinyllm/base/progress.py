"""A progress bar for what takes longer than people like to wait without a sign."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

__all__ = ["Progress"]

#: Nothing is shown of what is done sooner.
PATIENCE = 2.0


class Progress:
    """A bar on standard error: tqdm's if it is installed, else a plain one.

    Silent when standard error is no terminal, and until two seconds have passed.

    Parameters
    ----------
    total : float
        How much there is to do.
    label : str
        What is being done.
    enabled : bool
        False shows nothing.

    Attributes
    ----------
    shown : bool
        Whether anybody would see it.

    Examples
    --------
    >>> from tinyllm.base.progress import Progress
    >>> with Progress(10, "counting") as bar:
    ...     for _ in range(10):
    ...         bar.add(1)
    """

    def __init__(self, total: float, label: str, enabled: bool = True) -> None:
        stream = sys.stderr
        try:
            self.shown = bool(enabled and stream is not None and stream.isatty())
        except ValueError:  # closed
            self.shown = False
        self._stream = stream
        self._total = total
        self._label = label
        self._done = 0.0
        self._start = time.monotonic()
        self._tqdm: Any = None
        self._drawn = -1

    def __enter__(self) -> Progress:
        return self

    def add(self, amount: float) -> None:
        """Say that so much more is done."""
        self.to(self._done + amount)

    def to(self, done: float) -> None:
        """Say how much is done by now."""
        before, self._done = self._done, done
        if not self.shown or time.monotonic() - self._start < PATIENCE:
            return
        if self._tqdm is None and self._drawn < 0:
            try:
                from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]
            except ImportError:
                pass
            else:
                self._tqdm = tqdm(
                    total=self._total,
                    desc=self._label,
                    file=self._stream,
                    leave=False,
                    bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
                )
                before = 0.0
        if self._tqdm is not None:
            self._tqdm.update(done - before)
            return
        percent = int(100 * min(done / self._total, 1.0)) if self._total else 100
        if percent != self._drawn:
            self._drawn = percent
            filled = percent * 30 // 100
            bar = "#" * filled + "." * (30 - filled)
            self._stream.write(f"\r{self._label} [{bar}] {percent:3d} %")
            self._stream.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._tqdm is not None:
            self._tqdm.close()
        elif self._drawn >= 0:
            self._stream.write("\r" + " " * (len(self._label) + 40) + "\r")
            self._stream.flush()
