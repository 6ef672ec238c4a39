"""A progress bar for long operations."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

__all__ = ["Progress"]

#: Seconds before the bar appears.
PATIENCE = 2.0


class Progress:
    """A progress bar on standard error: tqdm's if it is installed, else a plain one.

    The bar appears after two seconds, and only if standard error is a terminal.

    Parameters
    ----------
    total : float
        Total amount of work, in any unit.
    label : str
        Text before the bar.
    enabled : bool
        If False, nothing is shown.

    Attributes
    ----------
    shown : bool
        Whether the bar is enabled and standard error is a terminal.

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
        """Add to the amount of work done."""
        self.to(self._done + amount)

    def to(self, done: float) -> None:
        """Set the amount of work done, and redraw the bar."""
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
