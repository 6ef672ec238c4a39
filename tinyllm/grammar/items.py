"""Arrays of JSON schemas, as expressions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from .document import pointer, unsupported, wrong
from .expr import Alt, Expr, Machine, Ref, Repeat, Seq, Text, optional
from .flat import Flat, all_of, canonical
from .gbnf import MAX_REPEAT
from .parts import Impossible, Writer

__all__ = ["Items"]

#: The largest number of states of an array whose items are counted.
_MAX_STATES = 4000
#: The largest number of different items of an array with `uniqueItems`, in any order.
_MAX_UNIQUE = 8


class Items:
    """Writes arrays.

    Parameters
    ----------
    writer : Writer
    """

    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    def array(self, flat: Flat, at: str) -> Expr:
        """Return the arrays under some conditions.

        Parameters
        ----------
        flat : Flat
        at : str

        Returns
        -------
        Expr
        """
        low, high, prefix = flat.min_items, flat.max_items, flat.prefix
        listed = any(t.listed for t in flat.tuples)
        opened = self.writer.loose or any(t.opened for t in flat.tuples)
        if listed and prefix and not opened and low <= prefix and not flat.contains:
            # as in llama.cpp, prefixItems allows no more items unless minItems asks for them
            high = prefix if high is None else min(high, prefix)
        for i in range(prefix + 1):
            if flat.item_schema(i) is False:
                high = i if high is None else min(high, i)
                break
        if high is not None and low > high:
            raise Impossible(f"it asks for at least {low} items and at most {high}")
        if low > MAX_REPEAT:
            wrong(at, f"minItems {low} is above {MAX_REPEAT:,}, which is not supported")
        high = None if high is None else min(high, MAX_REPEAT)  # longer than any context
        if flat.unique and (high is None or high > 1):
            body = self.unique(flat, low, high, at)
        elif flat.contains:
            body = self.counted(flat, low, high, at)
        else:
            body = self.plain(flat, low, high, at)
        return Seq((Text("["), self.writer.blank, body, Text("]")))

    def item(self, schema: Any, at: str) -> Expr:
        """Return one item, with the blanks after it."""
        return Seq((self.writer.visit(schema, at), self.writer.blank))

    def plain(self, flat: Flat, low: int, high: int | None, at: str) -> Expr:
        """Return the items where each only depends on its place."""
        prefix = flat.prefix if high is None else min(flat.prefix, high)
        slots = [
            self.item(flat.item_schema(i), pointer(at, "prefixItems", i)) for i in range(prefix)
        ]
        body: Expr = Text("")
        comma = self.writer.comma
        if high is None or high > prefix:
            item = self.item(flat.item_schema(flat.prefix), pointer(at, "items"))
            least = max(low - prefix, 0)
            most = None if high is None else high - prefix
            if slots:
                body = Repeat(Seq((comma, item)), least, most)
            else:
                rest = None if most is None else most - 1
                body = Seq((item, Repeat(Seq((comma, item)), max(least - 1, 0), rest)))
                body = body if least else optional(body)
        for i in range(len(slots) - 1, -1, -1):
            body = Seq((slots[i] if i == 0 else Seq((comma, slots[i])), body))
            if i >= low:
                body = optional(body)
        return body

    # ---- contains ----

    def counted(self, flat: Flat, low: int, high: int | None, at: str) -> Expr:
        """Return the items, with those counted that `contains` asks for.

        A state is the number of items, and for each `contains` the number of items that are
        known to fit; numbers that no limit depends on are not told apart.
        """
        tops = [most + 1 if most is not None else least for _, least, most in flat.contains]
        top = max(1, low, flat.prefix, 0 if high is None else high)
        count = (top + 1) * len(list(itertools.product(*(range(t + 1) for t in tops))))
        if count > _MAX_STATES:
            unsupported(pointer(at, "contains"), f"it needs {count:,} states, which is too many")
        numbers = {(0, tuple(0 for _ in tops)): 0}
        waiting = list(numbers)
        edges: list[tuple[tuple[Expr, int], ...]] = []
        ends: list[int] = []
        labels: dict[tuple[int, tuple[bool, ...], bool], Expr | None] = {}
        for i, counts in waiting:  # grows
            if i >= low and all(c >= n for c, (_, n, _) in zip(counts, flat.contains, strict=True)):
                ends.append(len(edges))
            ways: list[tuple[Expr, int]] = []
            for hits, after in self.ways(flat, counts) if high is None or i < high else ():
                key = (min(i, flat.prefix), hits, i == 0)
                if key not in labels:
                    labels[key] = self.counted_item(flat, *key, at)
                label, state = labels[key], (min(i + 1, top), after)
                if label is None:
                    continue
                if state not in numbers:
                    numbers[state] = len(waiting)
                    waiting.append(state)
                ways.append((label, numbers[state]))
            edges.append(tuple(ways))
        return Machine(tuple(edges), frozenset(ends), False)

    def counted_item(
        self, flat: Flat, i: int, hits: tuple[bool, ...], first: bool, at: str
    ) -> Expr | None:
        """Return item i where it is known which `contains` it counts for; None: there is none."""
        parts = [flat.item_schema(i)]
        for hit, (schema, _, most) in zip(hits, flat.contains, strict=True):
            if hit:
                parts.append(schema)
            elif most is not None:
                parts.append({"not": schema})
        schema = all_of(parts)
        if schema is False:
            return None
        # many edges have the same item, so it is not copied into each
        value = Ref(self.writer.visit(schema, pointer(at, "items")).name, called=True)
        mark = () if first else (self.writer.comma,)
        return Seq((*mark, value, self.writer.blank))

    @staticmethod
    def ways(
        flat: Flat, counts: tuple[int, ...]
    ) -> Iterator[tuple[tuple[bool, ...], tuple[int, ...]]]:
        """Yield which `contains` an item may count for, and the counts after it."""
        for hits in itertools.product((False, True), repeat=len(counts)):
            after = list(counts)
            for k, (hit, (_, least, most)) in enumerate(zip(hits, flat.contains, strict=True)):
                if hit and (most is not None or counts[k] < least):
                    after[k] = counts[k] + 1
                elif hit:  # there are enough: nothing depends on this item
                    after[k] = -1
                if most is not None and after[k] > most:
                    after[k] = -1
            if min(after) >= 0:
                yield hits, tuple(after)

    # ---- uniqueItems ----

    def unique(self, flat: Flat, low: int, high: int | None, at: str) -> Expr:
        """Return arrays of different items out of a few."""
        values: dict[str, Any] = {}
        schema = flat.item_schema(0)
        for part in self.writer.logic.expand(schema, pointer(at, "items")):
            found = part.values
            if found is None and part.kinds <= {"boolean", "null"}:
                kinds = {"boolean": (False, True), "null": (None,)}
                found = tuple(v for kind in sorted(part.kinds) for v in kinds[kind])
                found = tuple(v for v in found if not any(v is x for x in part.excluded))
            if found is None or flat.prefix or flat.contains:
                unsupported(
                    pointer(at, "uniqueItems"),
                    "the keyword 'uniqueItems' is supported only where the items are of an enum; "
                    "ignore=['uniqueItems'] leaves it unchecked",
                )
            values.update((canonical(v), v) for v in found)
        options = list(values.values())
        high = len(options) if high is None else min(high, len(options))
        if low > high:
            raise Impossible(f"it asks for at least {low} different items and there are {high}")
        items = [self.item({"const": v}, pointer(at, "items")) for v in options]
        ordered = len(items) > _MAX_UNIQUE
        names: dict[tuple[int, int], Expr] = {}

        def state(used: int, count: int) -> Expr:
            # used: a bit for each item that is there, or, if ordered, where to go on
            if (used, count) in names:
                return names[used, count]
            names[used, count] = ref = self.writer.define(f"{at} (items)", Text(""))
            choices: list[Expr] = [Text("")] if count >= low else []
            for i, item in enumerate(items):
                after = i + 1 if ordered else used | 1 << i
                free = i >= used if ordered else not used >> i & 1
                if free and count < high:
                    parts = [] if count == 0 else [self.writer.comma]
                    choices.append(Seq((*parts, item, state(after, count + 1))))
            self.writer.rules[ref.name] = Alt(tuple(choices))
            return ref

        if ordered and len(items) * high > _MAX_STATES:
            unsupported(pointer(at, "uniqueItems"), "the enum of the items is too long")
        return state(0, 0)
