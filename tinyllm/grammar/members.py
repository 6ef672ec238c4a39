"""Objects of JSON schemas, as expressions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import spelling
from .document import pointer, unsupported
from .expr import ANY, Alt, Expr, Machine, Ref, Repeat, Seq, Text, optional
from .flat import Flat, Shape, all_of, merge, pattern_expr
from .language import Condition, Matches, partition
from .parts import Impossible, Writer
from .valid import Unclear

__all__ = ["Members"]

#: Up to this many required properties come in any order; more in the order of the schema.
MAX_ANY_ORDER = 5
#: The same for properties that are counted.
_MAX_COUNTED = 10
_COLON = Text(":")


@dataclass(frozen=True)
class _Pair:
    """A property: its key and value as an expression, and whether it must be there."""

    expr: Expr
    needed: bool


class Members:
    """Writes objects.

    Parameters
    ----------
    writer : Writer
    """

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self._keys: dict[str, dict[tuple[bool, ...], Expr]] = {}

    def object(self, flat: Flat, at: str) -> Expr:
        """Return the objects under some conditions.

        Parameters
        ----------
        flat : Flat
        at : str

        Returns
        -------
        Expr
        """
        if flat.some:
            return self.with_some(flat, at)
        return self.plain(flat, at, None)

    def with_some(self, flat: Flat, at: str) -> Expr:
        """Return the objects with a property that a shape does not name."""
        (shape, schema), *others = flat.some
        flat = flat.changed(some=tuple(others))
        if schema is True and any(self.is_other(name, shape) for name in flat.required):
            return self.object(flat, at)
        items: list[Expr] = []
        allowed = self.closed(flat)
        for name in self.names(flat) if allowed is None else allowed:
            if self.is_other(name, shape) and flat.property_schema(name) is not False:
                there = Flat(required=(name,), shapes=(Shape({name: schema}),))
                found = merge(flat, there)
                if found is not None:
                    items += self.tried(found, at, None)
        if not others and (allowed is None or self.patterned(flat)):
            items += self.tried(flat, at, (shape, schema))
        if not items:
            raise Impossible("no property is left that another schema does not have")
        return Alt(tuple(items))

    @staticmethod
    def is_other(name: str, shape: Shape) -> bool:
        """Return whether a shape does not name a property."""
        return name not in shape.properties and shape.schema(name) is True

    def tried(self, flat: Flat, at: str, witness: tuple[Shape, Any] | None) -> list[Expr]:
        """Return the objects under conditions, or nothing if there are none."""
        try:
            return [self.object(flat, at) if witness is None else self.plain(flat, at, witness)]
        except Impossible:
            return []

    @staticmethod
    def names(flat: Flat) -> list[str]:
        """Return the names that the conditions speak of: first those that a schema lists."""
        listed = [name for shape in flat.shapes for name in shape.listed or ()]
        named = [name for shape in flat.shapes for name in shape.properties]
        return list(dict.fromkeys((*listed, *named, *flat.required)))

    def closed(self, flat: Flat) -> dict[str, None] | None:
        """Return the only names that an object may have beside patterns; None: any."""
        listing = [shape for shape in flat.shapes if shape.listed is not None]
        if self.writer.loose or not listing or any(shape.opened for shape in flat.shapes):
            return None
        return dict.fromkeys(name for shape in listing for name in shape.listed or ())

    @staticmethod
    def patterned(flat: Flat) -> bool:
        """Return whether a shape speaks of names by patterns."""
        return any(shape.patterns for shape in flat.shapes)

    def plain(self, flat: Flat, at: str, witness: tuple[Shape, Any] | None) -> Expr:
        """Return the objects; with a witness, those that have a property it asks for."""
        names = self.names(flat)
        allowed = self.closed(flat)
        closed = allowed is not None
        pairs: list[_Pair] = []
        for name, schema in flat.property_schemas(names).items():
            fits = allowed is None or name in allowed
            fits = fits and (not flat.names or self.name_fits(name, flat, at))
            if schema is False or not fits:
                if name in flat.required:
                    raise Impossible(f"{name!r} is required, and its schema is false")
                continue
            pairs.append(_Pair(self.pair(name, schema, at), name in flat.required))
        others = self.others(flat, names, closed, at, None)
        last: Expr | None = None
        if witness is not None:
            last = self.others(flat, names, closed, at, witness)
            if last is None:
                raise Impossible("no other property may be there")
        body = self.any_order if self.writer.loose else self.in_order
        members = body(pairs, others, last, flat, at)
        return Seq((Text("{"), self.writer.blank, members, Text("}")))

    # ---- keys ----

    def name_fits(self, name: str, flat: Flat, at: str) -> bool:
        """Return whether a name is valid under `propertyNames`."""
        try:
            return all(
                self.writer.logic.valid(name, schema, pointer(at, "propertyNames"))
                for schema in flat.names
            )
        except Unclear:
            return False

    def pair(self, name: str, schema: Any, at: str) -> Expr:
        """Return a property of a name, with the blanks after it."""
        value = self.writer.visit(schema, pointer(at, "properties", name))
        if not name.isascii() and any(0xD800 <= ord(c) <= 0xDFFF for c in name):
            return self.joined(Text(json.dumps(name)), value)
        if self.writer.loose:
            key = spelling.quoted(Text(name), True)
            key = Seq((key,)) if isinstance(key, Text) else key
            return self.joined(key, value)
        return self.joined(Text(spelling.as_json(name)), value)

    def joined(self, key: Expr, value: Expr) -> Expr:
        """Return a property of a key and a value."""
        blank = self.writer.blank
        if self.writer.loose:
            return Seq((key, blank, _COLON, blank, value, blank))
        return Seq((key, _COLON, blank, value, blank))

    def others(
        self,
        flat: Flat,
        names: list[str],
        closed: bool,
        at: str,
        witness: tuple[Shape, Any] | None,
    ) -> Expr | None:
        """Return a property of another name; None if there may be none.

        With a witness: one that the shape of the witness does not have, and of its schema.
        """
        shapes = [*flat.shapes, *([witness[0]] if witness else [])]
        if witness is not None:
            names = list(dict.fromkeys((*names, *witness[0].properties)))
        patterns = list(dict.fromkeys(p for shape in shapes for p in shape.patterns))
        if not patterns and not flat.names:
            if closed:
                return None
            return self.other_pair(None, names, (), flat, at, witness)
        items = []
        for which, key in self.keys(names, patterns, flat, at).items():
            found = tuple(p for p, there in zip(patterns, which, strict=True) if there)
            if found or not closed:
                pair = self.other_pair(key, names, found, flat, at, witness)
                items += [] if pair is None else [pair]
        return None if not items else items[0] if len(items) == 1 else Alt(tuple(items))

    def keys(
        self, names: list[str], patterns: list[str], flat: Flat, at: str
    ) -> dict[tuple[bool, ...], Expr]:
        """Return the keys that are not among some names, by which patterns they match."""
        of = json.dumps([sorted(names), patterns, flat.names])
        if of not in self._keys:
            conditions: list[Condition] = [Matches(Alt(tuple(map(Text, names))), False)]
            conditions += [Matches(self.name_texts(schema, at)) for schema in flat.names]
            where = pointer(at, "patternProperties")
            free = [
                Matches(pattern_expr(p, f"the JSON schema, {pointer(where, p)}:")) for p in patterns
            ]
            found = partition(conditions, free)
            loose = self.writer.loose
            self._keys[of] = {w: spelling.quoted(key, loose) for w, key in found.items()}
        return self._keys[of]

    def other_key(self, names: list[str]) -> Expr:
        """Return the keys that are not among some names."""
        of = json.dumps(sorted(names))
        if of not in self._keys:
            loose = self.writer.loose
            key = spelling.other_names(names, ANY if loose else spelling.PLAIN)
            self._keys[of] = {(): spelling.quoted(key, loose)}
        return self._keys[of][()]

    def other_pair(
        self,
        key: Expr | None,
        names: list[str],
        found: tuple[str, ...],
        flat: Flat,
        at: str,
        witness: tuple[Shape, Any] | None,
    ) -> Expr | None:
        """Return a property whose name matches the patterns `found` and is not in `names`."""
        parts: list[Any] = []
        for shape in flat.shapes:
            matched = [shape.patterns[p] for p in found if p in shape.patterns]
            parts += matched or [shape.additional]
        if witness is not None:
            if any(p in witness[0].patterns for p in found):
                return None
            parts.append(witness[1])
        schema = all_of(parts)
        if schema is False:
            return None
        value = self.writer.visit(schema, pointer(at, "additionalProperties"))
        if key is not None:
            return self.joined(key, value)
        return self.joined(self.other_key(names) if names else self.writer.common("string"), value)

    def name_texts(self, schema: Any, at: str) -> Expr:
        """Return the texts that are valid under the schema of `propertyNames`."""
        where = pointer(at, "propertyNames")
        items: list[Expr] = []
        for flat in self.writer.logic.expand(schema, where):
            if flat.values is not None:
                items += [Text(v) for v in flat.values if isinstance(v, str)]
            elif "string" in flat.kinds:
                excluded = [v for v in flat.excluded if isinstance(v, str)]
                exprs = self.writer.strings(flat)
                low, high = flat.min_length, flat.max_length
                items.append(self.writer.language(exprs, excluded, low, high, where))
        return Alt(tuple(items))

    # ---- members in order ----

    def in_order(
        self, pairs: list[_Pair], others: Expr | None, last: Expr | None, flat: Flat, at: str
    ) -> Expr:
        """Return the properties in order, with commas; those not required are optional.

        A state is the number of the next property and how many are there, as far as a limit
        depends on it.
        """
        need, most = flat.min_names, flat.max_names
        if need <= sum(pair.needed for pair in pairs) + (last is not None):
            need = 0
        top = max(need, 1) if most is None else most + 1
        comma = self.writer.comma
        # what follows where property i is next and `count` are there; from the end
        rest: dict[tuple[int, int], Expr] = {}
        for i in range(len(pairs), 0, -1):
            where = f"{at} (from property {i})"
            for count in range(1, min(i, top) + 1):
                if most is not None and count > most:
                    rest[i, count] = Alt(())
                elif i == len(pairs):
                    rest[i, count] = self.tail(others, last, count, need, most, at)
                else:
                    more = rest[i + 1, min(count + 1, top)]
                    ways: list[Expr] = [Seq((comma, pairs[i].expr, more))]
                    if not pairs[i].needed:
                        ways.append(rest[i + 1, count])
                    rest[i, count] = self.writer.define(where, Alt(tuple(ways)))
        starts: list[Expr] = []
        for i, pair in enumerate(pairs):
            starts.append(Seq((pair.expr, rest[i + 1, 1])))
            if pair.needed:
                return Alt(tuple(starts))
        return Alt((*starts, self.tail(others, last, 0, need, most, at)))

    def tail(
        self,
        others: Expr | None,
        last: Expr | None,
        count: int,
        need: int,
        most: int | None,
        at: str,
    ) -> Expr:
        """Return the other properties after `count` ones."""
        comma = self.writer.comma
        least = max(need - count, 0)
        left = None if most is None else most - count
        if last is not None:
            # any others, then the one that must be there, then any others
            # those may have its name, so only it counts
            if least > 1 or (left is not None and left < 1):
                return Alt(())
            again: Expr = Text("")
            before: Expr = Text("")
            if others is not None and left is None:
                before = Repeat(Seq((others, comma)), 0, None)
                again = Repeat(Seq((comma, others)), 0, None)
            return Seq((*((comma,) if count else ()), before, last, again))
        if others is None or left == 0:
            return Alt(()) if least else Text("")
        if least > 1:
            unsupported(
                pointer(at, "minProperties"),
                f"{need} is more than the named properties and one other; whether other names "
                "differ is not known; ignore=['minProperties'] leaves it unchecked",
            )
        if count:
            return Repeat(Seq((comma, others)), least, left)
        rest = Repeat(Seq((comma, others)), 0, None if left is None else left - 1)
        found = Seq((others, rest))
        return found if least else optional(found)

    # ---- members in any order ----

    def any_order(
        self, pairs: list[_Pair], others: Expr | None, last: Expr | None, flat: Flat, at: str
    ) -> Expr:
        """Return the properties in any order.

        A state is which of the `tracked` properties are there, and how many properties are, as far
        as a limit depends on it. Those that are not tracked may be there more than once.
        """
        tracked = [pair for pair in pairs if pair.needed]
        free = [pair.expr for pair in pairs if not pair.needed]
        if last is not None:
            tracked.append(_Pair(last, True))
        need, most = flat.min_names, flat.max_names
        if need <= len(tracked):
            need = 0
        if need > 1:  # only properties that are not there twice count
            tracked = [*tracked, *(pair for pair in pairs if not pair.needed)]
            free = []
            other = others is not None and last is None  # it may have the name of the last
            if len(tracked) > _MAX_COUNTED or need > len(tracked) + other:
                unsupported(
                    pointer(at, "minProperties"),
                    f"{need} properties are not counted where there are {len(tracked)} names; "
                    "ignore=['minProperties'] leaves it unchecked",
                )
        counted = others if need > 1 and last is None else None
        if others is not None and counted is None:
            free.append(others)
        return _AnyOrder(self.writer, tracked, free, counted, need, most, at)()


class _AnyOrder:
    """Writes properties in any order: see `Members.any_order`."""

    def __init__(
        self,
        writer: Writer,
        tracked: list[_Pair],
        free: list[Expr],
        other: Expr | None,
        need: int,
        most: int | None,
        at: str,
    ) -> None:
        self.writer = writer
        self.need, self.most, self.at = need, most, at
        self.other = None if other is None else self.rule("another property", other)
        self.tracked = [
            _Pair(self.rule(f"property {i}", pair.expr), pair.needed)
            for i, pair in enumerate(tracked)
        ]
        self.all = sum(1 << i for i, pair in enumerate(tracked) if pair.needed)
        self.limit = _MAX_COUNTED if need > 1 else MAX_ANY_ORDER
        self.free = self.rule("a property", Alt(tuple(free))) if free else None
        self.numbers: dict[tuple[int, int, bool], int] = {}
        self.waiting: list[tuple[int, int, bool]] = []

    def rule(self, name: str, expr: Expr) -> Ref:
        # properties are called from many states, so they are not copied into each
        return Ref(self.writer.define(f"{self.at} ({name})", expr).name, called=True)

    def __call__(self) -> Expr:
        # each state after a property is two of the automaton: before the comma and after it
        comma = self.writer.called("comma")
        edges: list[tuple[tuple[Expr, int], ...]] = [tuple(self.ways((0, 0, False)))]
        ends = {0} if self.may_end((0, 0, False)) else set()
        for state in self.waiting:  # grows
            if self.may_end(state):
                ends.add(len(edges))
            ways = tuple(self.ways(state))
            edges += [((comma, len(edges) + 1),) if ways else (), ways]
        return Machine(tuple(edges), frozenset(ends), False)

    def number(self, there: int, count: int, other: bool) -> int:
        if self.most is None:
            count = min(count, 1) if self.need == 1 else 0
        state = (there, count, other)
        if state not in self.numbers:
            self.numbers[state] = 1 + 2 * len(self.numbers)
            self.waiting.append(state)
        return self.numbers[state]

    def may_end(self, state: tuple[int, int, bool]) -> bool:
        there, count, other = state
        distinct = there.bit_count() + other if self.need > 1 else count
        return there & self.all == self.all and distinct >= self.need

    def ways(self, state: tuple[int, int, bool]) -> Iterator[tuple[Expr, int]]:
        """Yield each property that may come next, and the state after it."""
        there, count, other = state
        if self.most is not None and count >= self.most:
            return
        if self.free is not None:
            yield self.free, self.number(there, count + 1, other)
        if self.other is not None:
            yield self.other, self.number(there, count + 1, True)
        for i, pair in enumerate(self.tracked):
            if not there >> i & 1:
                yield pair.expr, self.number(there | 1 << i, count + 1, other)
                if len(self.tracked) > self.limit:
                    return  # the others come later
