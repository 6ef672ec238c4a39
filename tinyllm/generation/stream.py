"""`GenerationStream`: the text of a generation, piece by piece."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import NoReturn

from .result import Generation
from .stepper import Stepper

__all__ = ["GenerationStream"]


class GenerationStream(Iterator[str], AsyncIterator[str]):
    """The text of a generation, piece by piece: what `Model.stream` and `chat_stream` return.

    Each step runs the model when its piece is asked for. ``for`` and ``async for`` both work; with
    the latter the model runs in a thread, and a cancelled task cancels the generation. `cancel` and
    `close` can be called from any thread. A session that the generation uses belongs to it until
    the generation ends.

    Parameters
    ----------
    stepper : Stepper

    Examples
    --------
    >>> import tinyllm as tl
    >>> stream = tl.load().stream("ROMEO:", 100, seed=1)
    >>> for number, piece in enumerate(stream):
    ...     if number == 3:
    ...         stream.cancel()
    >>> len(stream.result.ids), stream.result.stop_reason
    (4, 'cancelled')
    """

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._texts = (text for text in stepper if text)
        self._lock = threading.RLock()
        self._running = False

    def __next__(self) -> str:
        """Return the next piece of text."""
        with self._lock:
            self._running = True
            try:
                return next(self._texts)
            finally:
                self._running = False

    def __aiter__(self) -> GenerationStream:
        return self

    async def __anext__(self) -> str:
        """Return the next piece of text; the model runs in a thread."""
        running = asyncio.ensure_future(asyncio.to_thread(next, self, None))
        try:
            piece = await asyncio.shield(running)
        except asyncio.CancelledError:
            self.cancel()
            await asyncio.wait([running])
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    def cancel(self) -> None:
        """End the generation after the present token, and return at once.

        Any thread may call this. The next piece is then text that was held back, if there is any,
        and the last. A long prompt that is still running is given up. A session has the tokens
        that have run, as after any other end.

        Examples
        --------
        >>> import tinyllm as tl
        >>> stream = tl.load().stream("ROMEO:", 100, seed=1)
        >>> stream.cancel()
        >>> list(stream)
        []
        """
        self._stepper.cancel()

    def close(self) -> None:
        """Cancel the generation, and wait until its present token has run.

        Any thread may call this, and more than once.

        Examples
        --------
        >>> import tinyllm as tl
        >>> stream = tl.load().stream("ROMEO:", 100, seed=1)
        >>> stream.close()
        """
        self.cancel()
        with self._lock:
            if not self._running:  # else an edit of this generation calls, and it ends afterwards
                self._texts.close()

    @property
    def result(self) -> Generation:
        """The generation so far. `Generation.stop_reason` is ``""`` until it ends."""
        return self._stepper.results()[0]

    def __enter__(self) -> GenerationStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a GenerationStream cannot be pickled, because its model belongs to this process; "
            "send its pieces, or its result"
        )
