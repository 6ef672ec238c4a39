"""What a chat template may use: time, output and memory.

`Budget` has no knowledge of Jinja2. The functions that estimate sizes are here too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from ..errors import Error

__all__ = [
    "ESCAPED",
    "ITEM",
    "MAX_MEMORY",
    "MAX_SECONDS",
    "MAX_SIZE",
    "Budget",
    "ChatTemplateError",
    "beyond_limit",
    "text_size",
]

#: The longest time that a template may run, in seconds.
MAX_SECONDS = 5.0
#: The largest number of characters in a text of a template, and in all that it writes.
MAX_SIZE = 16_000_000
#: The largest number of bytes in the values that a template has made and still holds.
MAX_MEMORY = 64_000_000
#: What an item of a list, tuple or dict counts, in bytes: the reference and a small object.
ITEM = 80
#: What a character of a text in a list or dict counts, when the list is written.
ESCAPED = 4

_MAX_BITS = 64  # of an integer
_MAX_DEPTH = 100  # of calls of macros and recursive loops
_SWEEP = 16_000_000  # bytes that are made between two looks at what is still held


class ChatTemplateError(Error, ValueError):
    """A chat template is missing or malformed, rejects the conversation, or exceeds a limit.

    Attributes
    ----------
    limit : bool
        Whether a limit was exceeded.
    """

    limit: bool = False


def beyond_limit(message: str) -> ChatTemplateError:
    """Return the error of a template that exceeds a limit.

    Examples
    --------
    >>> beyond_limit("too long").limit
    True
    """
    error = ChatTemplateError(message)
    error.limit = True
    return error


def text_size(value: Any, limit: int = MAX_SIZE) -> int:
    """Return a bound of the length of a value as text; stop counting above the limit.

    A list that is in a value twice counts twice, because it is written twice. In a list or dict,
    a character counts as `ESCAPED`, since Python's repr and JSON escape some.

    Examples
    --------
    >>> text_size("abc"), text_size([["a"]] * 10 ** 6, limit=100) > 100
    (3, True)
    """
    if isinstance(value, str):
        return str.__len__(value)
    total = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            total += ESCAPED * str.__len__(item)
        elif isinstance(item, Mapping):
            waiting.extend(item.keys())
            waiting.extend(item.values())
        elif isinstance(item, list | tuple | ItemsView | KeysView | ValuesView):
            waiting.extend(item)
        total += ITEM
        if total + ITEM * len(waiting) > limit:
            return limit + 1
    return total


def _bytes(value: Any) -> int:
    """Return roughly how many bytes a value takes, without the objects that it refers to."""
    if isinstance(value, str):
        return sys.getsizeof(value)
    if isinstance(value, list | tuple | dict):
        return 64 + ITEM * len(value)
    return 512  # a macro, a namespace, an iterator


class Budget:
    """The time, output and memory that a template has left.

    Memory is counted as a garbage collector does. Each value that an operation makes is kept in a
    table. When the template has made 16 MB since the last look, the values that nothing but the
    table refers to are dropped, and the sizes of the others are added up. So a value counts while
    the template holds it, and is counted once, however often it is used.

    Parameters
    ----------
    seconds : float
        The longest time.
    start : float, optional
        When it began, by `time.monotonic`. Default: now.
    """

    def __init__(self, seconds: float, start: float | None = None) -> None:
        self.seconds = seconds
        self.deadline = (time.monotonic() if start is None else start) + seconds
        self.left = MAX_SIZE
        self.made_bytes = 0
        self._sweep_at = _SWEEP
        self._held: dict[int, Any] = {}
        self._depth = 0

    def tick(self, output: int = 0) -> None:
        """Count one step, and `output` characters that the template writes."""
        if output:
            self.left -= output
            if self.left < 0:
                raise self.too_large("too much output", MAX_SIZE, "characters")
        if time.monotonic() > self.deadline:
            raise beyond_limit(f"the chat template ran for more than {self.seconds:g} seconds")

    @staticmethod
    def too_large(what: str, limit: int, unit: str) -> ChatTemplateError:
        """Return the error for something that is beyond a limit."""
        return beyond_limit(f"the chat template makes {what}; expected at most {limit} {unit}")

    def characters(self, *factors: int) -> None:
        """Raise before an operation makes a text whose length is a product of the factors."""
        self.room("a text", MAX_SIZE, "characters", *factors)

    def items(self, *factors: int) -> None:
        """Raise before an operation makes a product of the factors of items."""
        self.room("a list", MAX_MEMORY // ITEM, "items", *factors)

    def room(self, what: str, limit: int, unit: str, *factors: int) -> None:
        """Raise if a product is beyond a limit."""
        product = 1
        for factor in factors:
            product *= max(abs(factor), 1)
        if product > limit:
            raise self.too_large(f"{what} of {product} {unit}", limit, unit)

    def text(self, value: Any, growth: int = 1, limit: int = MAX_SIZE) -> int:
        """Return the length of a value as text; raise if `growth` times this is too large."""
        size = text_size(value, limit)
        if size * growth > limit:
            self.room("a text", limit, "characters", size, growth)
        return size

    def made(self, value: Any) -> Any:
        """Count a value that an operation made, and return it."""
        if isinstance(value, str):
            if str.__len__(value) < 2:
                return value  # Python shares these
        elif value is None or isinstance(value, bool | float):
            return value
        elif isinstance(value, int):
            if value.bit_length() > _MAX_BITS:
                raise self.too_large(f"an integer of {value.bit_length()} bits", _MAX_BITS, "bits")
            return value
        if id(value) not in self._held:
            self._held[id(value)] = value
            self.made_bytes += _bytes(value)
            if self.made_bytes > self._sweep_at:
                self._sweep()
        return value

    def _sweep(self) -> None:
        """Drop the values that the template no longer holds; raise if the others are too large."""
        held, total = self._held, 0
        probe = id(held)  # no value of the template has this address
        held[probe] = object()
        unused = 0
        for key in reversed(list(held)):  # newest first: a list before its items
            value = held[key]
            references = sys.getrefcount(value)
            if key == probe:
                unused = references
            if references <= unused:
                del held[key]
            else:
                total += _bytes(value)
        if total > MAX_MEMORY:
            raise self.too_large(f"values of {total} bytes", MAX_MEMORY, "bytes")
        self._sweep_at = self.made_bytes + _SWEEP

    def enter(self) -> None:
        """Count the start of a call of a macro or recursive loop."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self.too_large("too many nested calls", _MAX_DEPTH, "calls")

    def leave(self) -> None:
        """Count the end of a call."""
        self._depth -= 1

    def iterate(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items of an iterator, and count each.

        The function that consumes them may collect them where no table shows them. So what is
        made for one iterator has a limit of its own.
        """
        iterator = iter(items)
        used = 0
        while True:
            before = self.made_bytes
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.tick()
            used += self.made_bytes - before + ITEM
            if used > MAX_MEMORY:
                raise self.too_large(f"an iterator of {used} bytes", MAX_MEMORY, "bytes")
            yield item
