"""Find special tokens in a text, as llama.cpp's `tokenizer_st_partition` does.

The time grows in proportion to the text, whatever the number and the length of the tokens. So a
file with many special tokens, or a text that resembles them, costs no more than another one.
"""

from __future__ import annotations

import functools
import heapq
import re
from collections.abc import Sequence

from .vocab import TokenType, Vocab, to_bytes

__all__ = ["Partition"]

_BLANKS = b" \t\n\v\f\r"


class _Taken:
    """The bytes of a text that belong to a special token already."""

    _BLOCK = 4096

    def __init__(self, size: int) -> None:
        self._bytes = bytearray(size)
        self._blocks = bytearray(size // self._BLOCK + 1)  # 1 where a block has a taken byte

    def __getitem__(self, at: int) -> int:
        return self._bytes[at]

    def take(self, start: int, stop: int) -> None:
        """Mark the bytes from `start` up to `stop`."""
        self._bytes[start:stop] = b"\1" * (stop - start)
        first, last = start // self._BLOCK, (stop - 1) // self._BLOCK
        self._blocks[first : last + 1] = b"\1" * (last + 1 - first)

    def before(self, stop: int) -> int:
        """Return where the last taken byte before `stop` ends; 0 if there is none."""
        block = stop // self._BLOCK
        at = self._bytes.rfind(1, block * self._BLOCK, stop)
        if at < 0 and (block := self._blocks.rfind(1, 0, block)) >= 0:
            at = self._bytes.rfind(1, block * self._BLOCK, (block + 1) * self._BLOCK)
        return at + 1


class _Finder:
    """Finds the longest special token that ends at each place of a text: Aho and Corasick's tree.

    A token is known by its rank: its number among the tokens, the longest first. The rank after
    the last stands for none.

    Parameters
    ----------
    spellings : sequence of bytes
        The texts of the tokens, by rank. All differ.
    """

    def __init__(self, spellings: Sequence[bytes]) -> None:
        none = len(spellings)
        self.lengths = [*map(len, spellings), 0]
        self._first = re.compile(b"[%s]" % re.escape(bytes({s[0] for s in spellings})))
        self._next: dict[int, int] = {}  # node * 256 + byte -> node
        self._fail = [0]  # the node of the longest proper suffix that has a node
        self._longest = [none]  # the rank of the longest token that is a suffix
        self._build(spellings)

    def _build(self, spellings: Sequence[bytes]) -> None:
        none = len(spellings)
        parents, edges, own, depths = [0], [0], [none], [0]
        for rank, spelling in enumerate(spellings):
            node = 0
            for byte in spelling:
                following = self._next.get(node << 8 | byte)
                if following is None:
                    following = self._next[node << 8 | byte] = len(parents)
                    parents.append(node)
                    edges.append(byte)
                    own.append(none)
                    depths.append(depths[node] + 1)
                node = following
            own[node] = rank
        self._fail = [0] * len(parents)
        self._longest = [none] * len(parents)
        #: rank -> rank of the next shorter token that is a suffix of it
        self.shorter = [none] * (none + 1)
        for node in sorted(range(1, len(parents)), key=depths.__getitem__):
            if parents[node]:
                self._fail[node] = self._step(self._fail[parents[node]], edges[node])
            self._longest[node] = self._longest[self._fail[node]]
            if own[node] != none:
                self.shorter[own[node]] = self._longest[node]
                self._longest[node] = own[node]
        # pointers that skip ever more shorter tokens (Myers, "An applicative random-access stack")
        self._jump = [none] * (none + 1)
        depth = [0] * (none + 1)
        for rank in range(none - 1, -1, -1):  # shorter tokens first
            parent = self.shorter[rank]
            depth[rank] = depth[parent] + 1
            middle = self._jump[parent]
            far = self._jump[middle]
            same = depth[parent] - depth[middle] == depth[middle] - depth[far]
            self._jump[rank] = far if same else parent

    def _step(self, node: int, byte: int) -> int:
        following = self._next.get(node << 8 | byte)
        while following is None and node:
            node = self._fail[node]
            following = self._next.get(node << 8 | byte)
        return following or 0

    def ends(self, text: bytes) -> dict[int, list[int]]:
        """Return, for each rank, where that token ends and no longer one does."""
        found: dict[int, list[int]] = {}
        none, size, at = len(self.lengths) - 1, len(text), 0
        while at < size and (match := self._first.search(text, at)) is not None:
            at, node = match.start(), 0
            while at < size:
                node = self._step(node, text[at])
                at += 1
                if (rank := self._longest[node]) != none:
                    found.setdefault(rank, []).append(at)
                if not node:
                    break
        return found

    def fitting(self, rank: int, size: int) -> int:
        """Return the longest token of at most `size` bytes that is a suffix of a token."""
        while self.lengths[rank] > size:
            far = self._jump[rank]
            rank = far if self.lengths[far] > size else self.shorter[rank]
        return rank


class Partition:
    """Splits texts at the special tokens of a vocabulary.

    Where tokens overlap, the longest one counts, not the leftmost one; of tokens with the same
    length, the lowest id. Control and unknown tokens are found only with ``parse_special``,
    user-defined tokens always.

    Parameters
    ----------
    vocab : Vocab

    Examples
    --------
    >>> vocab = Vocab({
    ...     "tokenizer.ggml.tokens": ["<s>", "a"], "tokenizer.ggml.token_type": [3, 1]})
    >>> Partition(vocab)(b"a<s>a", parse_special=True)
    [b'a', 0, b'a']
    """

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab

    def __call__(self, text: bytes, parse_special: bool) -> list[bytes | int]:
        """Return the ids of special tokens and the fragments between them, none of them empty."""
        if not text:
            return []
        finder, ids = self._active if parse_special else self._user_defined
        ends = {} if finder is None else finder.ends(text)
        if finder is None or not ends:
            return [text]
        taken = _Taken(len(text))
        cuts: list[tuple[int, int, int]] = []
        waiting = sorted(ends)
        while waiting:
            rank = heapq.heappop(waiting)
            length = finder.lengths[rank]
            for stop in sorted(ends.pop(rank)):
                if taken[stop - 1]:
                    continue
                start, free = stop - length, taken.before(stop)
                if start >= free:
                    cut = self._stripped(text, start, stop, ids[rank], taken)
                    taken.take(*cut)
                    cuts.append((*cut, ids[rank]))
                    continue
                # a longer token, or an earlier one, covers its start
                shorter = finder.fitting(rank, stop - free)
                if shorter == len(ids):
                    continue
                if shorter not in ends:
                    heapq.heappush(waiting, shorter)
                ends.setdefault(shorter, []).append(stop)
        out: list[bytes | int] = []
        end = 0
        for start, stop, token in sorted(cuts):
            if start > end:
                out.append(text[end:start])
            out.append(token)
            end = stop
        if end < len(text):
            out.append(text[end:])
        return out

    def _stripped(
        self, text: bytes, start: int, stop: int, token: int, taken: _Taken
    ) -> tuple[int, int]:
        """Return what a token takes, with the blanks beside it that it removes."""
        if token in self._vocab.strip_left:
            while start > 0 and not taken[start - 1] and text[start - 1] in _BLANKS:
                start -= 1
        if token in self._vocab.strip_right:
            while stop < len(text) and not taken[stop] and text[stop] in _BLANKS:
                stop += 1
        return start, stop

    @property
    def spellings(self) -> list[bytes]:
        """The texts of the special tokens."""
        return [to_bytes(self._vocab.texts[i]) for i in self._vocab.special_ids]

    @functools.cached_property
    def _active(self) -> tuple[_Finder | None, Sequence[int]]:
        return self._prepare(self._vocab.special_ids)

    @functools.cached_property
    def _user_defined(self) -> tuple[_Finder | None, Sequence[int]]:
        types = self._vocab.types
        return self._prepare(
            [i for i in self._vocab.special_ids if types[i] == TokenType.USER_DEFINED]
        )

    def _prepare(self, ids: Sequence[int]) -> tuple[_Finder | None, Sequence[int]]:
        if not ids:
            return None, ids
        return _Finder([to_bytes(self._vocab.texts[i]) for i in ids]), ids
