"""A progress bar for long operations, on a terminal or in a notebook."""

from __future__ import annotations

import html
import importlib
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, TextIO

__all__ = ["Progress", "notebook"]

#: Seconds before the bar appears.
PATIENCE = 2.0

#: Whether this thread shows a bar already.
_local = threading.local()


class Progress:
    """A progress bar in a notebook or on a terminal.

    In a notebook it is an output of the cell, and is removed at the end. On a terminal it is
    tqdm's if tqdm is installed, else a plain one, on standard error. It appears after two seconds.
    Elsewhere, and inside the ``with`` block of another bar, nothing is shown.

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
        Whether the bar is enabled, and there is a place for it.

    Examples
    --------
    >>> from tinyllm.base.progress import Progress
    >>> with Progress(10, "counting") as bar:
    ...     for _ in range(10):
    ...         bar.add(1)
    """

    def __init__(self, total: float, label: str, enabled: bool = True) -> None:
        self._make = None
        if enabled and not getattr(_local, "busy", False):
            self._make = _place(total, label)
        self.shown = self._make is not None
        self._bar: _Bar | None = None
        self._done = 0.0
        self._start = time.monotonic()

    def __enter__(self) -> Progress:
        if self.shown:
            _local.busy = True
        return self

    def add(self, amount: float) -> None:
        """Add to the amount of work done."""
        self.to(self._done + amount)

    def to(self, done: float) -> None:
        """Set the amount of work done, and redraw the bar."""
        self._done = done
        if self._make is not None and time.monotonic() - self._start >= PATIENCE:
            if self._bar is None:
                self._bar = self._make()
            self._bar.draw(done)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.shown:
            _local.busy = False
        if self._bar is not None:
            self._bar.remove()


class _Bar(Protocol):
    """A way to draw a bar. Nothing is shown before the first `draw`."""

    def draw(self, done: float) -> None:
        """Show the amount of work done."""

    def remove(self) -> None:
        """Remove what `draw` has shown."""


def _place(total: float, label: str) -> Callable[[], _Bar] | None:
    """Return a function that makes a bar where this process shows its output, if it does."""
    display = notebook()
    if display is not None:
        return lambda: _NotebookBar(total, label, display)
    stream = sys.stderr
    try:
        if stream is None or not stream.isatty():
            return None
    except ValueError:  # closed
        return None
    return lambda: _terminal_bar(total, label, stream)


def _terminal_bar(total: float, label: str, stream: TextIO) -> _Bar:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return _PlainBar(total, label, stream)
    return _TqdmBar(
        tqdm(
            total=total,
            desc=label,
            file=stream,
            leave=False,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
        )
    )


def notebook() -> Any:
    """Return IPython's module for output if this is a cell of a notebook, else None.

    IPython is not imported for this: in a notebook, the kernel has done so.
    """
    ipython = sys.modules.get("IPython")
    shell = getattr(ipython, "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is None:
        return None
    return importlib.import_module("IPython.display")


def _percent(done: float, total: float) -> int:
    return int(100 * min(done / total, 1.0)) if total else 100


class _PlainBar:
    def __init__(self, total: float, label: str, stream: TextIO) -> None:
        self._total, self._label, self._stream = total, label, stream
        self._percent = -1

    def draw(self, done: float) -> None:
        percent = _percent(done, self._total)
        if percent != self._percent:
            self._percent = percent
            filled = percent * 30 // 100
            bar = "#" * filled + "." * (30 - filled)
            self._stream.write(f"\r{self._label} [{bar}] {percent:3d} %")
            self._stream.flush()

    def remove(self) -> None:
        self._stream.write("\r" + " " * (len(self._label) + 40) + "\r")
        self._stream.flush()


class _TqdmBar:
    def __init__(self, bar: Any) -> None:
        self._tqdm = bar
        self._done = 0.0

    def draw(self, done: float) -> None:
        self._tqdm.update(done - self._done)
        self._done = done

    def remove(self) -> None:
        self._tqdm.close()


class _NotebookBar:
    def __init__(self, total: float, label: str, display: Any) -> None:
        self._total, self._label, self._display = total, label, display
        self._percent = -1
        self._handle: Any = None

    def draw(self, done: float) -> None:
        percent = _percent(done, self._total)
        if percent == self._percent:
            return
        self._percent = percent
        shown = {
            "text/html": f"{html.escape(self._label)} "
            f"<progress value='{percent}' max='100'></progress> {percent} %",
            "text/plain": f"{self._label} {percent} %",
        }
        if self._handle is None:
            self._handle = self._display.DisplayHandle()
            self._handle.display(shown, raw=True)
        else:
            self._handle.update(shown, raw=True)

    def remove(self) -> None:
        self._handle.update({}, raw=True)  # an output of no kind takes no room
