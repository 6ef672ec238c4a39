"""JSON schemas as grammars: what they accept and refuse, and that generated texts are valid."""

import datetime
import json
import random
import re
from decimal import Decimal

import pytest

import tinyllm as tl
from testkit import schemas
from tinyllm.grammar.numbers import decimal_range, integer_range

pytestmark = pytest.mark.sanitize


def accepts(schema, value, **options):
    text = value if isinstance(value, str) else json.dumps(value)
    return tl.Grammar.json_schema(schema, **options).accepts(text)


OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}, "c": {"const": 1}}}
TREE = {
    "$ref": "#/$defs/t",
    "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}, "maxItems": 2}},
}

# fmt: off
# ruff: noqa: E501
TABLE = [
    ({}, ['{"a": [1, "x", null, true, -2.5e3]}', "1", '"é\\u00e9"'], ["", "{", "01", "[1,]", "nan"]),
    (True, ["1"], ["x"]),
    ({"title": "t", "description": "d"}, ["[]"], ["x"]),
    ({"type": "string"}, ['"a\\n"', '""'], ["1", '"\n"', '"\\ud800"', '"\\x"', '"a']),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"é😀\\""'], ['"a"', '"abcd"']),
    ({"minLength": 1}, ['"a"'], ['""', "1"]),
    ({"type": "boolean"}, ["true", "false"], ["True", "1"]),
    ({"type": ["null", "integer"]}, ["null", "-5"], ["1.0", '"x"']),
    ({"enum": ["a", 1, None, {"k": [1]}]}, ['"a"', "1", "null", '{"k":[1]}'], ['"b"', "2"]),
    ({"enum": ["a", 1, 20], "type": "integer", "minimum": 10}, ["20"], ["1", '"a"']),
    ({"const": 'q"\n'}, ['"q\\"\\n"'], ["1"]),
    (OBJECT, ["{}", '{"a":1}', '{"a": 1, "c": 1}', '{"b":[1]}'], ['{"d":1}', '{"a":1,}', '{"a":"x"}']),
    ({**OBJECT, "required": ["b"]}, ['{"b": 1}', '{"a":1,"b":2,"c":1}'], ["{}", '{"a":1}']),
    ({"type": "object"}, ['{"x": {"y": []}}'], ["[]"]),
    ({**OBJECT, "additionalProperties": {"type": "null"}}, ['{"a":1,"d":null}', '{"aa":null}'],
     ['{"d":1}', '{"d":null,"a":1}', '{"a":1,"a":null}', '{"\\u0061":null}']),
    ({"required": ["z"]}, ['{"z":[]}'], ["{}", "[]"]),
    ({"type": "array", "items": {"type": "integer"}}, ["[]", "[1, 2]"], ['["a"]', "[1 2]", "[,1]"]),
    ({"items": {"type": "null"}, "minItems": 1, "maxItems": 2}, ["[null]"], ["[]", "[null,null,null]"]),
    ({"items": {"type": "null"}, "maxItems": 0}, ["[]"], ["[null]"]),
    ({"prefixItems": [{"const": 1}, {"const": 2}]}, ["[]", "[1]", "[1,2]"], ["[1,2,3]", "[2]"]),
    ({"prefixItems": [{"const": 1}], "items": {"const": 2}, "minItems": 1}, ["[1]", "[1,2,2]"], ["[]"]),
    ({"prefixItems": [{"const": 1}], "minItems": 2}, ["[1,null]"], ["[1]"]),
    ({"prefixItems": [{"const": 1}, False]}, ["[]", "[1]"], ["[1,2]"]),
    ({"anyOf": [{"type": "null"}, {"const": 3}]}, ["null", "3"], ["4"]),
    ({"type": "integer", "anyOf": [{"minimum": 5}, {"maximum": 2}]}, ["7", "1"], ["3"]),
    ({"allOf": [{"minimum": 5, "type": "integer"}, {"maximum": 6}]}, ["5", "6"], ["4", "7"]),
    ({"allOf": [{"type": "object", "properties": {"a": {"minimum": 3}}},
                {"properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}]},
     ['{"a":3}', '{"a":4,"b":1}'], ['{"a":2}', '{"b":1}', '{"a":3.5}']),
    ({"allOf": [{"properties": {"a": {}}, "additionalProperties": False}, {"properties": {"b": {}}}]},
     ["{}", '{"a":1}'], ['{"b":1}']),
    ({"oneOf": [{"type": "string"}, {"type": "number"}]}, ['"x"', "1.5"], ["null"]),
    (TREE, ["[]", "[[],[[]]]"], ["[[],[],[]]", "[1]"]),
    ({"properties": {"n": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["n"]},
     ['{"n":{"n":null}}'], ['{"n":{}}']),
    ({"$defs": {"a~/b": {"const": 1}}, "$ref": "#/$defs/a~0~1b"}, ["1"], ["2"]),
    ({"$ref": "#/$defs/x%20y", "$defs": {"x y": {"const": 1}}}, ["1"], ["2"]),
    ({"type": "string", "pattern": "^a+$"}, ['"aa"'], ['"b"', '"ab"']),
    ({"type": "string", "pattern": "a"}, ['"bab"', '"a\\n"'], ['"b"']),
    ({"type": "string", "pattern": '^["\\\\/]$'}, ['"\\""', '"\\\\"', '"/"'], ['"""', '"a"']),
    ({"type": "string", "format": "date"}, ['"2024-02-29"', '"1999-12-31"'],
     ['"2023-02-29"', '"1900-02-29"', '"2024-04-31"', '"2024-13-01"', '"24-01-01"']),
    ({"type": "string", "format": "date-time"}, ['"2024-02-29T23:59:59.5+01:00"'], ['"2024-02-29"']),
    ({"type": "string", "format": "time"}, ['"00:00:00Z"'], ['"24:00:00Z"', '"00:00:00"']),
    ({"type": "string", "format": "uuid"}, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123e"']),
    ({"type": "string", "format": "ipv4"}, ['"127.0.0.255"'], ['"256.0.0.1"', '"01.0.0.1"']),
    ({"type": "string", "format": "color"}, ['"red"'], []),
    ({"type": "integer", "minimum": -3, "exclusiveMaximum": 12}, ["-3", "0", "11"], ["-4", "12", "-0"]),
    ({"type": "integer", "minimum": 1.5}, ["2"], ["1"]),
    ({"type": "integer", "exclusiveMinimum": 1.5, "maximum": 2.5}, ["2"], ["1", "3"]),
    ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "0.5", "1", "1.0"], ["1.1", "-0.1", "1e5"]),
    ({"uniqueItems": False, "type": "array", "items": {"const": 1}}, ["[1]"], []),
]
# fmt: on


@pytest.mark.parametrize(("schema", "good", "bad"), TABLE)
def test_what_a_schema_accepts(schema, good, bad):
    grammar = tl.Grammar.json_schema(schema)
    for text in good:
        assert grammar.accepts(text), text
    for text in bad:
        assert not grammar.accepts(text), text
    assert tl.Grammar.gbnf(str(grammar)).accepts(good[0])


def test_the_table_is_valid_under_another_validator():
    jsonschema = pytest.importorskip("jsonschema")
    for schema, good, _ in TABLE:
        checker = jsonschema.Draft202012Validator(schema)
        for text in good:
            checker.validate(json.loads(text))


@pytest.mark.parametrize(
    ("schema", "error", "words"),
    [
        (False, ValueError, "#: false"),
        (5, ValueError, "# is 5; expected an object"),
        ({"properties": {"a": {"type": "strin"}}}, ValueError, "#/properties/a/type is 'strin'"),
        ({"properties": {"x/y~": 5}}, ValueError, "#/properties/x~1y~0 is 5"),
        ({"items": {"not": {}}}, tl.UnsupportedError, r"#/items/not.*ignore=\['not'\]"),
        ({"type": "array", "uniqueItems": True}, tl.UnsupportedError, "#/uniqueItems"),
        ({"type": "object", "minProperties": 1}, tl.UnsupportedError, "minProperties"),
        ({"if": {}, "then": {}}, tl.UnsupportedError, "#/if"),
        ({"type": "integer", "multipleOf": 3}, tl.UnsupportedError, "multipleOf"),
        ({"$ref": "http://example.com/a"}, tl.UnsupportedError, "another document"),
        ({"$ref": "#there"}, tl.UnsupportedError, "anchors"),
        ({"$ref": "#/$defs/a"}, ValueError, r"'#/\$defs/a' is not in the document"),
        ({"$ref": "#"}, ValueError, "leads back to itself"),
        ({"$ref": "#/a", "a": {"$ref": "#/b"}, "b": {"$ref": "#/a"}}, ValueError, "leads back"),
        ({"allOf": [{"$ref": "#"}, {"type": "null"}]}, ValueError, "leads back"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, ValueError, "'#' can never end"),
        ({"enum": []}, ValueError, "#/enum"),
        ({"const": float("nan")}, ValueError, "not JSON"),
        ({"const": {1, 2}}, ValueError, "not JSON"),
        ({"anyOf": []}, ValueError, "#/anyOf"),
        ({"anyOf": [False]}, ValueError, "no alternative"),
        ({"required": "a"}, ValueError, "#/required"),
        ({"type": "string", "minLength": -1}, ValueError, "#/minLength"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, ValueError, "at least 3"),
        ({"items": {}, "minItems": 3, "maxItems": 2}, ValueError, "at least 3"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, ValueError, "no integer"),
        ({"type": "number", "exclusiveMinimum": 2, "maximum": 2}, ValueError, "no number"),
        ({"type": "number", "minimum": "2"}, ValueError, "#/minimum"),
        ({"type": "number", "minimum": float("inf")}, ValueError, "#/minimum"),
        ({"type": "number", "minimum": 1e300}, ValueError, "at most 100 digits"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, ValueError, "no text is valid"),
        ({"enum": ["a"], "minLength": 2}, ValueError, "no value of the enum"),
        ({"required": ["a"], "additionalProperties": False}, ValueError, "'a' is required"),
        ({"type": "string", "pattern": "("}, ValueError, "#/pattern"),
        ({"type": "string", "pattern": r"(?=a)"}, tl.UnsupportedError, "#/pattern"),
        ({"pattern": "a", "minLength": 2}, tl.UnsupportedError, "together"),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, tl.UnsupportedError, "at once"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, tl.UnsupportedError, "0 and 1 may"),
        ({"items": [{}]}, tl.UnsupportedError, "prefixItems"),
    ],
)  # fmt: skip
def test_schemas_that_are_refused_say_where(schema, error, words):
    with pytest.raises(error, match=words):
        tl.Grammar.json_schema(schema)


def test_ignore_leaves_keywords_unchecked():
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    assert accepts(schema, [1, 1], ignore=["uniqueItems"])
    assert accepts({"oneOf": [{"type": "number"}, {"type": "integer"}]}, 1, ignore=["oneOf"])
    for wrong in (["no such"], "uniqueItems", ["type"]):
        with pytest.raises(ValueError, match="ignore is"):
            tl.Grammar.json_schema(schema, ignore=wrong)


def test_deep_and_large_schemas():
    deep = {"type": "null"}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(ValueError, match="deep"):
        tl.Grammar.json_schema(deep)
    large = {"enum": [f"value {i}" for i in range(20_000)]}
    assert accepts(large, '"value 19999"')
    assert not accepts(large, '"value 20000"')
    many = {"properties": {f"p{i}": {"type": "integer"} for i in range(1000)}}
    assert accepts(many, '{"p0":1,"p999":2}')
    assert not accepts(many, '{"p999":1,"p0":2}')
    alternatives = [{"properties": {"a": {"const": i}}} for i in range(20)]
    with pytest.raises(ValueError, match="combinations"):
        tl.Grammar.json_schema({"allOf": [{"anyOf": alternatives}] * 4})


def test_integers_between_limits():
    rng = random.Random(1)
    for _ in range(150):
        scale = rng.choice([5, 50, 2000])
        low, high = rng.randint(-scale, scale), rng.randint(-scale, scale)
        low, high = rng.choice([(low, high), (low, None), (None, high)])
        expr = integer_range(low, high)
        inside = [
            i
            for i in range(-2500, 2500)
            if (low is None or i >= low) and (high is None or i <= high)
        ]
        if not inside:
            assert expr is None
            continue
        grammar = tl.Grammar({"root": expr})
        tested = {*inside[:20], *inside[-20:], *rng.sample(range(-2500, 2500), 50)}
        for i in tested:
            assert grammar.accepts(str(i)) == (i in inside), (low, high, i)
        assert not any(grammar.accepts(t) for t in ("", "-", "00", "-0", "01", "1.0", "+1"))


def test_decimals_between_limits():
    rng = random.Random(2)
    for _ in range(200):
        digits = rng.choice([0, 1, 2])
        low, high = sorted(
            Decimal(rng.randint(-3000, 3000)) / 10 ** rng.randint(0, digits + 1) for _ in range(2)
        )
        low_open, high_open = rng.random() < 0.5, rng.random() < 0.5
        low_there, high_there = rng.random() < 0.8, rng.random() < 0.8

        def inside(x, low=low, high=high, lo=low_open, ho=high_open, a=low_there, b=high_there):
            return (not a or x > low or (x == low and not lo)) and (
                not b or x < high or (x == high and not ho)
            )

        expr = decimal_range(
            low if low_there else None, low_open, high if high_there else None, high_open
        )
        if expr is None:
            assert low == high
            continue
        grammar = tl.Grammar({"root": expr})
        step = Decimal("0.001")
        points = [low, high, low + step, low - step, high + step, high - step, Decimal(0)]
        points += [Decimal(rng.randint(-40000, 40000)) / 10 ** rng.randint(0, 4) for _ in range(60)]
        for x in points:
            text = format(x, "f")
            assert grammar.accepts(text) == inside(x), (low, high, low_open, high_open, text)
            if "." in text:
                assert grammar.accepts(text + "0") == inside(x)
        assert not grammar.accepts("1.")


def generated(model, schema, rng):
    """Return a complete text; seeds whose texts are cut off are tried again."""
    grammar = tl.Grammar.json_schema(schema)
    for _ in range(8):
        g = model.generate(
            "x", max_tokens=1500, temperature=1.5, top_k=0, top_p=1, seed=rng.randrange(2**32),
            grammar=grammar,
        )  # fmt: skip
        assert g.stop_reason in ("eog", "grammar", "length")
        assert g.complete == (g.stop_reason != "length") or grammar.accepts(g.text)
        assert grammar.accepts(g.text) == g.complete
        if g.complete:
            return g.text
    raise AssertionError(f"no text of {schema} came to its end")


def check_random_schemas(tmp_path, seed, count):
    jsonschema = pytest.importorskip("jsonschema")
    rng = random.Random(seed)
    model = schemas.model(tmp_path)
    checker = jsonschema.FormatChecker(["date", "uuid", "ipv4"])
    iso = {"time": datetime.time.fromisoformat, "date-time": datetime.datetime.fromisoformat}
    for name, read in iso.items():
        checker.checks(name, ValueError)(lambda v, read=read: not isinstance(v, str) or read(v))
    done = tries = 0
    lengths = []
    while done < count:
        schema = schemas.random_document(rng)
        jsonschema.Draft202012Validator.check_schema(schema)
        tries += 1
        try:
            text = generated(model, schema, rng)
        except ValueError as error:
            if not re.search("no (text|number|integer) |can never end|no value", str(error)):
                raise
            continue
        value = json.loads(text)
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)
        lengths.append(len(text))
        done += 1
    assert tries < 1.1 * count + 5
    assert max(lengths) > 40


def test_what_a_random_model_writes_is_valid(tmp_path):
    check_random_schemas(tmp_path, 1, 60)


@pytest.mark.slow
def test_what_a_random_model_writes_is_valid_for_1000_schemas(tmp_path):
    check_random_schemas(tmp_path, 2, 1000)


def test_rules_are_named_by_pointer():
    grammar = tl.Grammar.json_schema(TREE)
    assert "#/$defs/t" in grammar.rules
