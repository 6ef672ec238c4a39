"""Combinations of JSON schemas, compared with another validator on many small values.

A random schema over few names, texts and numbers is judged by its grammar and by `jsonschema` on
values that were chosen to lie on both sides of its limits.
"""

import itertools
import json
import random
import re

import pytest

import tinyllm as tl
from tinyllm.grammar import logic

SCALARS = [None, True, False, 0, 1, 2, 3, -1, 1.5, 6, "", "a", "b", "ab", "ba", "aab", "x-a"]
ARRAYS = [[], [1], ["a"], [1, "a"], ["a", "a"], [2, 1, 3], [True], [[]], [1, 1, 1, 1], [{"a": 1}]]
KEYS = ["a", "b", "c", "x-a"]
INNER = [1, "a", "ab", None, {"a": 1}]
OBJECTS = [
    dict(zip(keys, values, strict=True))
    for n in range(4)
    for keys in itertools.permutations(KEYS, n)
    for values in [*itertools.product(INNER, repeat=min(n, 2))]
    for values in [(*values, *[1] * (n - len(values)))]
]


def random_schema(rng, depth):
    def inner():
        return random_schema(rng, depth - 1)

    def names():
        return rng.sample(KEYS, rng.randint(1, 2))

    if depth == 0 or rng.random() < 0.05:
        simple = [True, False, {}, {"type": "integer"}, {"type": "string"}, {"const": "a"}]
        simple += [{"enum": [1, "ab"]}, {"type": "number"}, {"minLength": 2}, {"pattern": "^a"}]
        return rng.choice([*simple, {"minimum": 1}, {"const": {"a": 1}}])
    keywords = {
        "type": lambda: rng.choice(
            ["object", "object", "string", "number", "array", ["object", "integer"]]
        ),
        "properties": lambda: {name: inner() for name in names()},
        "required": names,
        "additionalProperties": lambda: rng.choice([False, inner()]),
        "patternProperties": lambda: {rng.choice(["^x-", "a", "^[ab]$"]): inner()},
        "propertyNames": lambda: rng.choice(
            [{"pattern": "^[ab]"}, {"maxLength": 1}, {"enum": KEYS[:2]}]
        ),
        "minProperties": lambda: rng.randint(0, 2),
        "maxProperties": lambda: rng.randint(0, 2),
        "dependentRequired": lambda: {rng.choice(KEYS): names()},
        "dependentSchemas": lambda: {rng.choice(KEYS): inner()},
        "items": inner,
        "prefixItems": lambda: [inner() for _ in range(rng.randint(1, 2))],
        "minItems": lambda: rng.randint(0, 2),
        "maxItems": lambda: rng.randint(0, 3),
        "contains": inner,
        "maxContains": lambda: rng.randint(1, 2),
        "uniqueItems": lambda: False,
        "minLength": lambda: rng.randint(0, 2),
        "maxLength": lambda: rng.randint(0, 3),
        "pattern": lambda: rng.choice(["^a", "b$", "^[ab]*$", "(?!b)a"]),
        "minimum": lambda: rng.choice([0, 1, 1.5]),
        "exclusiveMaximum": lambda: rng.choice([2, 3]),
        "multipleOf": lambda: rng.choice([1, 2, 0.5]),
        "not": inner,
        "anyOf": lambda: [inner() for _ in range(2)],
        "oneOf": lambda: [inner() for _ in range(rng.randint(2, 3))],
        "allOf": lambda: [inner() for _ in range(2)],
        "if": inner,
        "then": inner,
        "else": inner,
    }  # fmt: skip
    likely = ["properties", "required", "oneOf", "not", "type"]
    chosen = {rng.choice([*keywords, *likely]) for _ in range(rng.randint(1, 4))}
    return {key: keywords[key]() for key in keywords if key in chosen}


def check_random_schemas(seed, count):
    """Return how many texts were judged, and how many valid ones form="any" rejected."""
    jsonschema = pytest.importorskip("jsonschema")
    rng = random.Random(seed)
    judged = rejected = refused = 0
    for _ in range(count):
        schema = random_schema(rng, 2)
        if isinstance(schema, bool):
            continue
        validator = jsonschema.Draft202012Validator(schema)
        values = [*SCALARS, *ARRAYS, *rng.sample(OBJECTS, 60)]
        expected = [validator.is_valid(v) for v in values]
        for form in ("compact", "any"):
            try:
                grammar = tl.Grammar.json_schema(schema, form=form)
            except (ValueError, tl.UnsupportedError) as error:
                refused += 1
                if not re.search("no text is valid|ignore=", str(error)):
                    raise
                continue
            for value, valid in zip(values, expected, strict=True):
                judged += 1
                accepted = grammar.accepts(json.dumps(value))
                assert valid or not accepted, f"{form}: {json.dumps(schema)} accepts {value}"
                rejected += form == "any" and valid and not accepted
    return judged, rejected, refused


def test_no_invalid_text_is_accepted():
    judged, rejected, refused = check_random_schemas(1, 300)
    assert judged > 30_000
    assert rejected < 0.02 * judged
    assert refused < 150


@pytest.mark.slow
@pytest.mark.nightly
def test_no_invalid_text_is_accepted_by_many_schemas():
    check_random_schemas(2, 10_000)


def test_alternatives_that_overlap_in_many_ways(monkeypatch):
    monkeypatch.setattr(logic, "_MAX_OVERLAPS", 100)
    parts = [{"properties": {f"p{i}": {"type": "integer"}}} for i in range(12)]
    with pytest.raises(tl.UnsupportedError, match="overlap in too many ways"):
        tl.Grammar.json_schema({"oneOf": parts})
    assert tl.Grammar.json_schema({"oneOf": parts}, ignore=["oneOf"]).accepts("{}")


@pytest.mark.parametrize("form", ["compact", "any"])
def test_arrays_that_only_share_the_empty_one(form):
    several = [{"type": "array", "items": {"enum": names}} for names in (["a", "b"], ["c"])]
    grammar = tl.Grammar.json_schema({"oneOf": several}, form=form)
    valid = ['["a"]', '["b", "a"]', '["c", "c"]']
    assert all(map(grammar.accepts, valid))
    assert not any(map(grammar.accepts, ["[]", '["a", "c"]', '["d"]']))
    # one of them alone has the empty array
    several[1]["minItems"] = 1
    grammar = tl.Grammar.json_schema({"oneOf": several}, form=form)
    assert all(map(grammar.accepts, [*valid, "[]"]))
    # items that differ, but need not be there
    several = [{"type": "array", "prefixItems": [{"const": n}], "items": True} for n in (1, 2)]
    grammar = tl.Grammar.json_schema({"oneOf": several}, form=form)
    assert [grammar.accepts(text) for text in ("[1]", "[2]", "[]")] == [True, True, False]


@pytest.mark.parametrize("form", ["compact", "any"])
def test_closed_objects_that_only_share_the_empty_one(form):
    names = [f"p{i}" for i in range(30)]  # all ways to differ from each other would be 29 ** 29
    parts = [{"properties": {n: {"type": "null"}}, "additionalProperties": False} for n in names]
    grammar = tl.Grammar.json_schema({"type": "object", "oneOf": parts}, form=form)
    assert all(map(grammar.accepts, ['{"p3": null}', '{"p29": null}']))
    assert not any(map(grammar.accepts, ["{}", '{"p3": null, "p4": null}', '{"q": null}']))


def test_items_that_are_counted():
    small = {"type": "integer", "maximum": 3}
    schema = {
        "type": "array",
        "prefixItems": [{"type": "integer"}],
        "items": {"enum": [1, 5, "a"]},
        "allOf": [
            {"contains": small, "minContains": 1, "maxContains": 2},
            {"contains": {"const": "a"}, "minContains": 1},
        ],
        "minItems": 2,
    }
    grammar = tl.Grammar.json_schema(schema, form="any")
    for n in range(5):
        for items in itertools.product([1, 4, 5, "a"], repeat=n):
            count = sum(item != "a" and item <= 3 for item in items)
            valid = n >= 2 and items[0] != "a" and 4 not in items[1:]
            valid = valid and 1 <= count <= 2 and "a" in items
            assert grammar.accepts(json.dumps(items)) == valid, items


UNIQUE = {"type": "array", "uniqueItems": True}
NUMBERS = {"type": "array", "items": {"type": "integer"}}


@pytest.mark.parametrize("form", ["compact", "any"])
@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [NUMBERS, {"not": UNIQUE}]},
        {"oneOf": [{"not": UNIQUE}, NUMBERS, {"type": "null"}]},
        {
            "oneOf": [
                {"type": "object", "properties": {"a": NUMBERS}, "required": ["a"]},
                {"type": "object", "properties": {"a": {"not": UNIQUE}}, "required": ["a"]},
            ]
        },
    ],
)
def test_alternatives_that_lack_values_do_not_show_what_is_disjoint(schema, form):
    """`[1,1]` is valid under both, but nothing tells the arrays that repeat an item."""
    with pytest.raises(tl.UnsupportedError, match="uniqueItems"):
        tl.Grammar.json_schema(schema, form=form)


@pytest.mark.parametrize("form", ["compact", "any"])
def test_alternatives_with_not(form):
    schema = {"oneOf": [{"type": "string"}, {"not": {"type": "string", "minLength": 3}}]}
    grammar = tl.Grammar.json_schema(schema, form=form)
    assert [grammar.accepts(text) for text in ['"ab"', '"abc"', "3"]] == [False, True, True]
