"""Schemas of functions. The wanted ones are what get_json_schema of transformers 5.24 gives."""

import enum
import functools
from typing import Any, Literal, Optional, Union

import pytest

from tinyllm.chat import tool_schema


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"


def schema(function):
    described = tool_schema(function)
    assert described["type"] == "function"
    return described["function"]


def weather(city: str, days: int | None = None, unit: Literal["c", "f"] = "c") -> dict[str, int]:
    """Get it.

    More text here,
    over lines.

    Args:
        city (str): The city, with
            its country: long.
        days: How many.

        unit: Unit (choices: ["c", "f"])

    Returns:
        The weather
        in short.

    Raises:
        ValueError: never
    """


def test_a_docstring_with_sections():
    assert schema(weather) == {
        "name": "weather",
        "description": "Get it.\n\nMore text here,\nover lines.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city, with its country: long."},
                "days": {"type": "integer", "nullable": True, "description": "How many."},
                "unit": {"type": "string", "enum": ["c", "f"], "description": "Unit"},
            },
            "required": ["city"],
        },
        "return": {
            "type": "object",
            "additionalProperties": {"type": "integer"},
            "description": "The weather\n    in short.",
        },
    }


@pytest.mark.parametrize(
    ("hint", "want"),
    [
        (str, {"type": "string"}),
        (bool, {"type": "boolean"}),
        (list, {"type": "array"}),
        (tuple, {"type": "array"}),
        (dict, {"type": "object"}),
        (Any, {}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (tuple[int, str], {"type": "array",
                           "prefixItems": [{"type": "integer"}, {"type": "string"}]}),
        (dict[str, list[str]], {"type": "object", "additionalProperties":
                                {"type": "array", "items": {"type": "string"}}}),
        (Color, {"type": "string", "enum": ["red", "blue"]}),
        (Mixed, {"type": ["integer", "string"], "enum": [1, "two"]}),
        (Literal[1, "a", None], {"type": ["integer", "string", "null"], "enum": [1, "a", None]}),
        (Union[int, str], {"type": ["integer", "string"]}),  # noqa: UP007
        (Optional[int | str], {"type": ["integer", "string"], "nullable": True}),  # noqa: UP045
        (int | list[str], {"anyOf": [{"type": "integer"},
                                     {"type": "array", "items": {"type": "string"}}]}),
        (list | tuple, {"type": "array"}),
        (float | None, {"type": "number", "nullable": True}),
        ("int", {"type": "integer"}),
    ],
)  # fmt: skip
def test_types(hint, want):
    def f(a):
        """Do it.

        Args:
            a: What.
        """

    f.__annotations__ = {"a": hint}
    assert schema(f)["parameters"]["properties"]["a"] == {**want, "description": "What."}


@pytest.mark.parametrize(
    "hint", [object, set[int], tuple[int], tuple[int, ...], Literal[b"a"], list[object], 3]
)
def test_types_without_a_schema(hint):
    def f(a):
        """Do it."""

    f.__annotations__ = {"a": hint}
    with pytest.raises(TypeError, match="parameter 'a' of the tool 'f': its type is"):
        tool_schema(f)


def test_functions_of_all_kinds():
    def nothing():
        """Nothing to give.

        Two paragraphs.
        """

    assert schema(nothing) == {
        "name": "nothing",
        "description": "Nothing to give.\n\nTwo paragraphs.",
        "parameters": {"type": "object", "properties": {}},
    }

    def search(word: str, *rest: int, **more: str):
        """Search."""

    assert list(schema(search)["parameters"]["properties"]) == ["word"]
    assert schema(search)["parameters"]["required"] == ["word"]

    class Tools:
        def method(self, a: int) -> object:
            """Do it.

            Args:
                a: The a
                   over
                   three: lines
            """

        @classmethod
        def of_class(cls, a: int):
            """Do it."""

        def __call__(self, a: int) -> str:
            """Do it."""

    a = {"type": "integer", "description": "The a over three: lines"}
    for method in (Tools.method, Tools().method):
        assert schema(method)["parameters"]["properties"] == {"a": a}
        assert "return" not in schema(method)
    for function in (Tools.of_class, Tools()):
        assert schema(function)["parameters"]["properties"] == {"a": {"type": "integer"}}
    half = functools.partial(weather, unit="f")
    assert list(schema(half)["parameters"]["properties"]) == ["city", "days", "unit"]


def test_choices():
    def drink(beverage: str, n: int = 3):
        """A function that drinks a beverage

        Args:
            beverage: The beverage to drink (choices: ["tea", "coffee "])
            n: Times
               and more
        """

    assert schema(drink)["parameters"]["properties"] == {
        "beverage": {"type": "string", "enum": ["tea", "coffee"],
                     "description": "The beverage to drink"},
        "n": {"type": "integer", "description": "Times and more"},
    }  # fmt: skip
    drink.__doc__ = "Drink.\n\nArgs:\n    beverage: What (choices: tea, coffee)"
    with pytest.raises(TypeError, match=r"'beverage'.*has the choices 'tea, coffee'"):
        tool_schema(drink)
