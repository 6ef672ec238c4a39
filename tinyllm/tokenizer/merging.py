"""Merge neighbouring symbols in the order of a priority, for SPM and BPE."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["merge"]

T = TypeVar("T", str, bytes)


def merge(
    symbols: list[T],
    priority: Callable[[T, T], Any],
    trace: Callable[[T, T, Any], None] | None = None,
) -> list[T]:
    """Return symbols after merging neighbours, the best pair first; of equal pairs, the leftmost.

    Takes O(n log n) time: pairs are kept in a heap. A pair whose parts have changed in the
    meantime is dropped when it is popped. This is the method of llama.cpp's tokenizers.

    Parameters
    ----------
    symbols : list
        Modified: it serves as working memory.
    priority : callable
        Maps two neighbours to a sort key (smallest first), or to None if they do not merge.
    trace : callable, optional
        Called with both symbols of each merge and its priority.

    Returns
    -------
    list
        The remaining symbols.

    Examples
    --------
    >>> merge(list("abab"), lambda a, b: {"ab": 0, "aba": 1}.get(a + b))
    ['ab', 'ab']
    """
    count: int = len(symbols)
    if count < 2:
        return symbols
    empty = symbols[0][:0]
    left = list(range(-1, count - 1))
    right = [*range(1, count), -1]
    heap = []
    for i in range(count - 1):
        order = priority(symbols[i], symbols[i + 1])
        if order is not None:
            heap.append((order, i, i + 1, len(symbols[i]), len(symbols[i + 1])))
    heapq.heapify(heap)
    while heap:
        order, i, j, size_i, size_j = heapq.heappop(heap)
        a, b = symbols[i], symbols[j]
        # symbols only grow or become empty, so equal lengths mean that neither has changed
        if len(a) != size_i or len(b) != size_j:
            continue
        if trace is not None:
            trace(a, b, order)
        symbols[i] = merged = a + b
        symbols[j] = empty
        after = right[j]
        right[i] = after
        before = left[i]
        if before >= 0:
            order = priority(symbols[before], merged)
            if order is not None:
                heapq.heappush(heap, (order, before, i, len(symbols[before]), len(merged)))
        if after >= 0:
            left[after] = i
            order = priority(merged, symbols[after])
            if order is not None:
                heapq.heappush(heap, (order, i, after, len(merged), len(symbols[after])))
    return [symbol for symbol in symbols if symbol]
