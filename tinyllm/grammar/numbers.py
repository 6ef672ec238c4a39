"""Numbers between limits, as expressions over decimal digits."""

from __future__ import annotations

from decimal import Decimal

from .expr import Alt, Chars, Expr, Repeat, Seq, Text, optional

__all__ = ["MAX_DIGITS", "decimal_range", "digits", "integer_range"]

#: The largest number of digits before and after the point, unless a limit has more digits;
#: as in llama.cpp.
_DIGITS = 15
#: The largest number of digits of a limit.
MAX_DIGITS = 100


def digits(low: int = 0, high: int = 9) -> Chars:
    """Return the set of the digits from low to high."""
    return Chars.of([(0x30 + low, 0x30 + high)])


def _alt(items: list[Expr]) -> Expr | None:
    return None if not items else items[0] if len(items) == 1 else Alt(tuple(items))


def _same_length(low: str, high: str) -> Expr:
    """Return the numbers from low to high, which have the same number of digits."""
    if not low:
        return Text("")
    rest = len(low) - 1
    if low[0] == high[0]:
        return Seq((Text(low[0]), _same_length(low[1:], high[1:])))
    if low == "0" * len(low) and high == "9" * len(high):
        return Repeat(digits(), len(low), len(low))
    items: list[Expr] = []
    first, last = int(low[0]), int(high[0])
    if low[1:] != "0" * rest:
        items.append(Seq((Text(low[0]), _same_length(low[1:], "9" * rest))))
        first += 1
    tail: Expr | None = None
    if high[1:] != "9" * rest:
        tail = Seq((Text(high[0]), _same_length("0" * rest, high[1:])))
        last -= 1
    if first <= last:
        items.append(Seq((digits(first, last), Repeat(digits(), rest, rest))))
    if tail is not None:
        items.append(tail)
    return items[0] if len(items) == 1 else Alt(tuple(items))


def _natural(low: int, high: int | None) -> Expr | None:
    """Return the numbers without a sign from low >= 0 to high; None if there are none."""
    items: list[Expr] = []
    if high is None:
        size = len(str(low))
        start = _natural(low, 10**size - 1)
        longest = max(_DIGITS, size)
        more = Seq((digits(1), Repeat(digits(), size, longest)))
        return _alt([x for x in (start, more) if x is not None])
    for size in range(len(str(low)), len(str(high)) + 1):
        least = max(low, 10 ** (size - 1) if size > 1 else 0)
        most = min(high, 10**size - 1)
        if least <= most:
            items.append(_same_length(str(least), str(most)))
    return _alt(items)


def integer_range(low: int | None, high: int | None) -> Expr | None:
    """Return an expression for the integers from low to high, both included.

    Parameters
    ----------
    low, high : int, optional
        None means no limit.

    Returns
    -------
    Expr or None
        None if there is no such number.
    """
    items: list[Expr] = []
    if low is None or low < 0:
        most = None if low is None else -low
        inner = _natural(1 if high is None or high >= 0 else -high, most)
        if inner is not None:
            items.append(Seq((Text("-"), inner)))
    if high is None or high >= 0:
        inner = _natural(max(low or 0, 0), high)
        if inner is not None:
            items.append(inner)
    return _alt(items)


class _Fraction:
    """Builds the digits after the point of numbers between limits with the same integer part."""

    def __init__(
        self, low: str | None, low_open: bool, high: str | None, high_open: bool, most: int
    ) -> None:
        self.low, self.low_open = low, low_open
        self.high, self.high_open = high, high_open
        self.most = most

    def whole(self) -> Expr | None:
        """Return the point and its digits, optional if the number may end; None if none fit."""
        some = self.some(0, self.low is not None, self.high is not None)
        ends = self.may_end(0, self.low is not None, self.high is not None)
        if some is None:
            return Text("") if ends else None
        part = Seq((Text("."), some))
        return optional(part) if ends else part

    def may_end(self, i: int, at_low: bool, at_high: bool) -> bool:
        """Return whether the number may end before digit i: zeros from there on fit."""
        low, high = self.low or "", self.high or ""
        low_ok = not at_low or (not low[i:].strip("0") and not self.low_open)
        high_ok = not at_high or bool(high[i:].strip("0")) or not self.high_open
        return low_ok and high_ok

    def some(self, i: int, at_low: bool, at_high: bool) -> Expr | None:
        """Return one or more digits from digit i on; None if no digit fits.

        `at_low` and `at_high` say whether the digits before i equal those of the limit.
        """
        if i >= self.most:
            return None
        low, high = self.low or "", self.high or ""
        if at_low and not low[i:].strip("0") and not self.low_open:
            at_low = False
        if not at_low and not at_high:
            return Repeat(digits(), 1, self.most - i)
        first = int(low[i]) if at_low and i < len(low) else 0
        last = (int(high[i]) if i < len(high) else 0) if at_high else 9
        items: list[Expr] = []
        edges = {digit for digit, edge in ((first, at_low), (last, at_high)) if edge}
        for digit in sorted(edges):
            if first <= digit <= last:
                onward = (i + 1, at_low and digit == first, at_high and digit == last)
                tail = self.some(*onward)
                ends = self.may_end(*onward)
                if tail is not None:
                    items.append(Seq((Text(str(digit)), optional(tail) if ends else tail)))
                elif ends:
                    items.append(Text(str(digit)))
        start, stop = first + at_low, last - at_high
        if start <= stop:
            items.append(Seq((digits(start, stop), Repeat(digits(), 0, self.most - i - 1))))
        return _alt(items)


def _parts(value: Decimal) -> tuple[int, str]:
    whole = int(value)
    text = format(value - whole, "f")
    return whole, text.partition(".")[2]


def _magnitude(low: Decimal, low_open: bool, high: Decimal | None, high_open: bool) -> list[Expr]:
    """Return the numbers without a sign between limits, as alternatives; low >= 0."""
    if high is not None and (high < low or (high == low and (low_open or high_open))):
        return []
    first, low_digits = _parts(low)

    def fraction(whole: int, at_low: bool, at_high: bool, high_digits: str = "") -> list[Expr]:
        # few enough digits that reading the number as a float does not round it past a limit
        most = max(_DIGITS - len(str(whole)), len(low_digits), len(high_digits), 1)
        found = _Fraction(
            low_digits if at_low else None,
            low_open,
            high_digits if at_high else None,
            high_open,
            most,
        ).whole()
        return [] if found is None else [Seq((Text(str(whole)), found))]

    rest = optional(Seq((Text("."), Repeat(digits(), 1, _DIGITS))))
    if high is None:
        more = _natural(first + 1, None)
        return [*fraction(first, True, False), *([] if more is None else [Seq((more, rest))])]
    last, high_digits = _parts(high)
    if first == last:
        return fraction(first, True, True, high_digits)
    between = _natural(first + 1, last - 1) if last - first > 1 else None
    return [
        *fraction(first, True, False),
        *([] if between is None else [Seq((between, rest))]),
        *fraction(last, False, True, high_digits),
    ]


def decimal_range(
    low: Decimal | None, low_open: bool, high: Decimal | None, high_open: bool
) -> Expr | None:
    """Return an expression for the decimal numbers between limits, without an exponent.

    Parameters
    ----------
    low, high : Decimal, optional
        None means no limit.
    low_open, high_open : bool
        Whether the limit itself is excluded.

    Returns
    -------
    Expr or None
        None if there is no such number.
    """
    zero = Decimal(0)
    items: list[Expr] = []
    if low is None or low < 0:
        nearest, is_open = (zero, False) if high is None or high > 0 else (-high, high_open)
        inner = _magnitude(nearest, is_open, None if low is None else -low, low_open)
        items += [Seq((Text("-"), item)) for item in inner]
    if high is None or high >= 0:
        start, is_open = (zero, False) if low is None or low < 0 else (low, low_open)
        items += _magnitude(start, is_open, high, high_open)
    return _alt(items)
