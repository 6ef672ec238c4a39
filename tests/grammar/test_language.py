"""Regular languages of texts: conditions at once, held against trying all texts."""

import itertools
import re
from decimal import Decimal

import numpy as np
import pytest

from tinyllm import _core
from tinyllm.errors import UnsupportedError
from tinyllm.grammar import regex
from tinyllm.grammar.expr import CLASSES, Alt, Chars, Machine, Packed, Ref, Text, Token, to_gbnf
from tinyllm.grammar.language import Length, Matches, Multiple, intersection, matches, partition

pytestmark = pytest.mark.sanitize


def test_languages_agree_with_trying_all_texts():
    conditions = [
        (Matches(regex.parse("(a|b1?)*")), lambda t: re.fullmatch("(a|b1?)*", t)),
        (Matches(regex.parse("a", True)), lambda t: "a" in t),
        (Matches(regex.parse("b.?1"), False), lambda t: not re.fullmatch("b.?1", t)),
        (
            Matches(Alt((Text("a"), Text("1"), Text("\ud800"))), False),
            lambda t: t not in ("a", "1"),
        ),
        (Length(1, None), lambda t: len(t) >= 1),
        (Length(0, 3), lambda t: len(t) <= 3),
    ]
    texts = ["".join(t) for n in range(5) for t in itertools.product("ab1é", repeat=n)]
    for (one, holds), (two, also), (free, third) in itertools.product(conditions, repeat=3):
        found = partition([one, two], [free])
        for text in texts:
            wanted = (bool(third(text)),) if holds(text) and also(text) else None
            got = [which for which, machine in found.items() if matches(machine, text)]
            assert got == ([] if wanted is None else [wanted]), (one, two, free, text)


@pytest.mark.parametrize("of", ["3", "2.5", "0.25", "12"])
@pytest.mark.parametrize("positive", [True, False])
def test_multiples_agree_with_arithmetic(of, positive):
    number = regex.parse(r"-?(0|[1-9]\d{0,2})(\.\d{1,3})?")
    found = intersection([Matches(number), Multiple(Decimal(of), positive)])
    assert isinstance(found, Machine)
    for i in range(-4000, 4000, 7):
        for text in (str(Decimal(i) / 100), f"{i / 8:.3f}", str(i)):
            if matches(number, text):
                assert matches(found, text) == ((Decimal(text) % Decimal(of) == 0) == positive), (
                    text
                )


def test_languages_that_are_too_large():
    with pytest.raises(UnsupportedError, match="more than 20000 states"):
        intersection([Matches(regex.parse("(a|b)*a(a|b){20}"))])
    with pytest.raises(UnsupportedError, match="more than 100000 characters"):
        intersection([Matches(regex.parse("(a{300}){400}"))])
    with pytest.raises(ValueError, match="refers to 'x'"):
        intersection([Matches(Ref("x"))])
    with pytest.raises(ValueError, match="a rule or a token"):
        intersection([Matches(Token("<think>"))])


def test_automata_can_be_read_in_python():
    found = intersection([Matches(regex.parse("ab?")), Length(1, 2)])
    assert isinstance(found, Packed)
    assert found.edges == (((Chars.among("a"), 1),), ((Chars.among("b"), 2),), ())
    assert found.ends == {1, 2}
    assert to_gbnf({"root": found}).count("state-") == 6


@pytest.mark.parametrize(
    ("labels", "states", "table", "last"),
    [
        (("a",), 2, [[0, 1, 1]], [1]),  # a label that is not there
        (("a",), 2, [[0, 0, 2]], [1]),  # a state that is not there
        (("a",), 2, [[1, 0, 0], [0, 0, 1]], [1]),  # not in order
        (("a",), 2, [[0, 0, 1]], [1, 0]),
        (("a",), 0, [], []),
    ],
)
def test_automata_that_are_none(labels, states, table, last):
    table = np.array(table, np.int32).reshape(-1, 3)
    machine = Packed(map(Text, labels), states, table, np.array(last, np.int32))
    with pytest.raises(ValueError, match=r"not in order|kind 6"):
        _core.build_grammar({"root": machine}, CLASSES, 100, False)


@pytest.mark.parametrize(
    ("condition", "error", "words"),
    [
        ((3, True, None, 0, 0, 0, 0), ValueError, "a condition is"),
        ((1, True, None, -1, 0, 0, 0), ValueError, "a condition is"),
        ((1, True, None, 0, 2**40, 0, 0), ValueError, "a condition is"),
        ((2, True, None, 0, 0, 0, 0), ValueError, "too many states"),
        ((2, True, None, 0, 0, 2**30, 2**30), ValueError, "too many states"),
        ((0, True, None, 0, 0, 0, 0), TypeError, "expected an expression"),
        ("length", TypeError, "not a tuple"),
    ],
)
def test_conditions_that_are_none(condition, error, words):
    with pytest.raises(error, match=words):
        _core.find_language([condition], 1, CLASSES, 100)
