"""Numbers between limits, as expressions over decimal digits.

`integer_range` and `decimal_range` write a number in one way, and with few digits, so that a model
comes to an end. `loose_numbers` adds the other ways that JSON has.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from .expr import Alt, Chars, Expr, Repeat, Seq, Text, optional

__all__ = [
    "MAX_DIGITS",
    "decimal_range",
    "digits",
    "integer_range",
    "loose_numbers",
    "same_number",
]

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


def _natural(low: int, high: int | None, most: int = _DIGITS) -> Expr | None:
    """Return the numbers without a sign from low >= 0 to high; None if there are none."""
    items: list[Expr] = []
    if high is None:
        size = len(str(low))
        start = _natural(low, 10**size - 1)
        longest = max(most, size)
        more = Seq((digits(1), Repeat(digits(), size, longest)))
        return _alt([x for x in (start, more) if x is not None])
    for size in range(len(str(low)), len(str(high)) + 1):
        least = max(low, 10 ** (size - 1) if size > 1 else 0)
        most = min(high, 10**size - 1)
        if least <= most:
            items.append(_same_length(str(least), str(most)))
    return _alt(items)


def integer_range(low: int | None, high: int | None, most: int = _DIGITS) -> Expr | None:
    """Return an expression for the integers from low to high, both included.

    Parameters
    ----------
    low, high : int, optional
        None means no limit.
    most : int
        The largest number of digits where there is no limit.

    Returns
    -------
    Expr or None
        None if there is no such number.
    """
    items: list[Expr] = []
    if low is None or low < 0:
        far = None if low is None else -low
        inner = _natural(1 if high is None or high >= 0 else -high, far, most)
        if inner is not None:
            items.append(Seq((Text("-"), inner)))
    if high is None or high >= 0:
        inner = _natural(max(low or 0, 0), high, most)
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


def _magnitude(
    low: Decimal, low_open: bool, high: Decimal | None, high_open: bool, most: int
) -> list[Expr]:
    """Return the numbers without a sign between limits, as alternatives; low >= 0."""
    if high is not None and (high < low or (high == low and (low_open or high_open))):
        return []
    first, low_digits = _parts(low)

    def fraction(whole: int, at_low: bool, at_high: bool, high_digits: str = "") -> list[Expr]:
        # few enough digits that reading the number as a float does not round it past a limit
        places = max(most - len(str(whole)), len(low_digits), len(high_digits), 1)
        found = _Fraction(
            low_digits if at_low else None,
            low_open,
            high_digits if at_high else None,
            high_open,
            places,
        ).whole()
        return [] if found is None else [Seq((Text(str(whole)), found))]

    rest = optional(Seq((Text("."), Repeat(digits(), 1, most))))
    if high is None:
        more = _natural(first + 1, None, most)
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
    low: Decimal | None,
    low_open: bool,
    high: Decimal | None,
    high_open: bool,
    most: int = _DIGITS,
) -> Expr | None:
    """Return an expression for the decimal numbers between limits, without an exponent.

    Parameters
    ----------
    low, high : Decimal, optional
        None means no limit.
    low_open, high_open : bool
        Whether the limit itself is excluded.
    most : int
        The largest number of digits, unless a limit has more.

    Returns
    -------
    Expr or None
        None if there is no such number.
    """
    zero = Decimal(0)
    items: list[Expr] = []
    if low is None or low < 0:
        nearest, is_open = (zero, False) if high is None or high > 0 else (-high, high_open)
        inner = _magnitude(nearest, is_open, None if low is None else -low, low_open, most)
        items += [Seq((Text("-"), item)) for item in inner]
    if high is None or high >= 0:
        start, is_open = (zero, False) if low is None or low < 0 else (low, low_open)
        items += _magnitude(start, is_open, high, high_open, most)
    return _alt(items)


# ---- every way to write a number ----

_ZEROS = Repeat(Text("0"), 0, None)
_POINT_ZEROS = optional(Seq((Text("."), Repeat(Text("0"), 1, None))))
_SOME = Repeat(digits(), 0, None)
_FRACTION = optional(Seq((Text("."), Repeat(digits(), 1, None))))
#: The largest exponent of ten that a float64 has for each first digit.
_LARGEST = 307
_LARGEST_FLOAT = Text("1.7976931348623157")


def _exponent(low: int, high: int) -> Expr | None:
    """Return the exponents of ten from low to high, with signs and leading zeros."""
    items: list[Expr] = []
    mark = Chars.among("eE")
    if low < 0:
        below = _natural(max(1, -high), -low)
        if below is not None:
            items.append(Seq((Text("-"), _ZEROS, below)))
    if high >= 0 and low <= high:
        above = _natural(max(low, 0), high)
        if above is not None:
            items.append(Seq((optional(Text("+")), _ZEROS, above)))
        if low <= 0:
            items.append(Seq((Text("-"), Repeat(Text("0"), 1, None))))
    inner = _alt(items)
    return None if inner is None else Seq((mark, inner))


def _loose_magnitude(
    low: Decimal, low_open: bool, high: Decimal | None, high_open: bool, whole: bool
) -> list[Expr]:
    """Return the numbers without a sign from low >= 0, in all usual ways."""
    unlimited = low == 0 and not low_open and high is None
    items: list[Expr] = []
    if unlimited:
        number = Alt((Text("0"), Seq((digits(1), _SOME))))
        items.append(Seq((number, _POINT_ZEROS if whole else _FRACTION)))
    elif whole:
        first = int(low.to_integral_value(ROUND_CEILING))
        first += low_open and first == low
        last = None if high is None else int(high.to_integral_value(ROUND_FLOOR))
        last = None if last is None else last - (high_open and last == high)
        inner = _natural(max(first, 0), last, 100) if last is None or first <= last else None
        items += [] if inner is None else [Seq((inner, _POINT_ZEROS))]
    else:
        # reading more digits as a float could round the number to a limit that is excluded
        most = _DIGITS if low_open or (high_open and high is not None) else 25
        items += _magnitude(low, low_open, high, high_open, most)
    # a digit, a fraction and an exponent, where all such numbers lie between the limits
    least = 0 if whole else -_LARGEST
    if low > 0:
        least = max(least, low.adjusted() + (low != Decimal(10) ** low.adjusted() or low_open))
    largest = _LARGEST if high is None else min(_LARGEST, high.adjusted() - 1)
    if high is not None and high_open and high == Decimal(10) ** high.adjusted():
        largest -= 1  # 9.99...e5, read as a float, may be 1e6
    if high is not None and high <= 0:
        return items
    exponent = _exponent(least, largest) if least <= largest else None
    if exponent is not None:
        items.append(Seq((digits(1), _POINT_ZEROS if whole else _FRACTION, exponent)))
    if high is None:  # up to the largest float64
        top = Alt(
            (_LARGEST_FLOAT, Seq((Text("1"), optional(Seq((Text("."), digits(0, 6), _SOME))))))
        )
        exponent = _exponent(_LARGEST + 1, _LARGEST + 1)
        if exponent is not None and not whole:
            items.append(Seq((top, exponent)))
    if unlimited:  # any other exponent that a float64 has surely
        exponent = _exponent(0 if whole else -_LARGEST, 200)
        several = Seq((digits(1), Repeat(digits(), 1, 40)))
        if exponent is not None:
            fraction = _POINT_ZEROS if whole else _FRACTION
            items.append(Seq((Alt((Text("0"), several)), fraction, exponent)))
    return items


def loose_numbers(
    low: Decimal | None, low_open: bool, high: Decimal | None, high_open: bool, whole: bool
) -> Expr | None:
    """Return an expression for the numbers between limits in all usual ways to write them.

    Parameters
    ----------
    low, high : Decimal, optional
        None means no limit.
    low_open, high_open : bool
        Whether the limit itself is excluded.
    whole : bool
        Whether the numbers must be integers, as 3, 3.0 and 3e5 are.

    Returns
    -------
    Expr or None
        None if there is no such number. Numbers with an exponent are left out where they are near
        a limit.
    """
    if low is not None and high is not None:
        if low > high or (low == high and (low_open or high_open)):
            return None
    zero = Decimal(0)
    items: list[Expr] = []
    if low is None or low < 0:
        nearest, is_open = (zero, False) if high is None or high > 0 else (-high, high_open)
        far = None if low is None else -low
        inner = _loose_magnitude(nearest, is_open, far, low_open, whole)
        items += [Seq((Text("-"), item)) for item in inner]
    if high is None or high >= 0:
        start, is_open = (zero, False) if low is None or low < 0 else (low, low_open)
        items += _loose_magnitude(start, is_open, high, high_open, whole)
        if low == 0 and not is_open:
            items.append(Seq((Text("-0"), _POINT_ZEROS)))
    return _alt(items)


def same_number(value: Decimal) -> Expr:
    """Return an expression for a number, without an exponent, that any zeros may follow.

    Parameters
    ----------
    value : Decimal

    Returns
    -------
    Expr
    """
    whole, _, fraction = format(abs(value), "f").partition(".")
    sign: Expr = Text("-") if value < 0 else Text("") if value else optional(Text("-"))
    rest = fraction.rstrip("0")
    zeros = _POINT_ZEROS if not rest else Seq((Text("." + rest), _ZEROS))
    return Seq((sign, Text(whole), zeros))
