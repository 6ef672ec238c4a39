"""The sandbox of chat templates: Jinja2 with limits on time and size.

The environment is the one that Hugging Face sets up (`transformers/utils/chat_template_utils.py`):
`ImmutableSandboxedEnvironment` with trimmed blocks, loop controls, `tojson` without HTML escapes,
`raise_exception`, `strftime_now` and ``{% generation %}`` blocks.

A template is part of a model file, which may come from an untrusted source. Therefore each loop,
call and value of a template is counted. A hostile template runs in this process and ends with
`ChatTemplateError`, within `MAX_SECONDS` and about `MAX_SIZE` characters.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from ..errors import Error

__all__ = ["MAX_SECONDS", "MAX_SIZE", "ChatTemplateError", "render"]

#: The longest time that a template may run, in seconds.
MAX_SECONDS = 5.0
#: The largest size of a value of a template, and of its whole output, in characters plus items.
MAX_SIZE = 16_000_000
_MAX_SOURCE = 1_000_000  # characters
_MAX_BITS = 10_000  # of an integer


class ChatTemplateError(Error, ValueError):
    """A chat template is missing or malformed, rejects the conversation, or exceeds a limit."""


# ---- limits ----


def _size(value: Any, limit: int) -> int:
    """Return roughly how many characters and items a value has; stop counting above the limit."""
    total = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        total += 1
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, int) and not isinstance(item, bool):
            total += item.bit_length() // 3
        elif isinstance(item, Mapping):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, range):
            total += len(item)
        elif isinstance(item, list | tuple | set | frozenset):
            waiting += item
        if total + len(waiting) > limit:
            return limit + 1
    return total


class _Budget:
    """The time and size that a template has left."""

    def __init__(self) -> None:
        self.deadline = time.monotonic() + MAX_SECONDS
        self.left = MAX_SIZE

    def tick(self, output: int = 0) -> None:
        """Count one step, and `output` characters of the template's own text that it writes."""
        self.left -= output
        if self.left < 0:
            raise _too_large("too much output", MAX_SIZE, "characters")
        if time.monotonic() > self.deadline:
            raise ChatTemplateError(f"the chat template ran for more than {MAX_SECONDS:g} seconds")

    def check(self, value: Any) -> Any:
        """Return a value; raise if it is too large."""
        self.tick()
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise _too_large_int(value.bit_length())
        if _size(value, MAX_SIZE) > MAX_SIZE:
            raise _too_large("too large a value", MAX_SIZE, "characters and items")
        return value

    def product(self, *factors: int) -> None:
        """Raise if a result would be too large; its size is the product of the factors."""
        total = 1
        for factor in factors:
            total *= max(abs(factor), 1)
        if total > MAX_SIZE:
            raise _too_large(f"a value of {total} characters", MAX_SIZE, "characters")

    def output(self, value: Any) -> Any:
        """Count a value that is written; return it."""
        size = _size(value, self.left)
        self.left -= size
        if self.left < 0:
            raise _too_large("too much output", MAX_SIZE, "characters")
        return value


def _too_large(what: str, limit: int, unit: str) -> ChatTemplateError:
    return ChatTemplateError(f"the chat template makes {what}; expected at most {limit} {unit}")


def _too_large_int(bits: int) -> ChatTemplateError:
    return _too_large(f"an integer of {bits} bits", _MAX_BITS, "bits")


def _largest_number(text: str) -> int:
    """Return the largest number in a format string, because it may be a width."""
    return max((int(digits[-9:]) for digits in re.findall(r"\d+", text)), default=1)


def _guard_call(budget: _Budget, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise before a call of a filter or method whose result would be too large.

    The size of such a result is a product of sizes and numbers in the arguments.
    """
    budget.tick()
    values = [*args, *kwargs.values()]
    first = args[0] if args else ""
    size = _size(first, MAX_SIZE)
    numbers = [v for v in values[1:] if isinstance(v, int) and not isinstance(v, bool)]
    budget.product(size, *numbers[:1])
    budget.product(size, max(map(abs, numbers), default=1))
    strings = [v for v in values[1:] if isinstance(v, str)]
    if name == "replace" and isinstance(first, str) and len(strings) >= 2:
        budget.product(first.count(strings[0]) if strings[0] else len(first) + 1, len(strings[1]))
    elif name in ("join", "wordwrap", "indent", "batch", "slice"):
        # str.join takes the separator first; the filter takes the items first
        budget.product(*(_size(v, MAX_SIZE) for v in values[:1]), max(map(len, strings), default=1))
        if isinstance(first, str) and len(values) > 1 and not isinstance(values[1], str):
            budget.product(len(first), _size(values[1], MAX_SIZE))
    elif name == "sum" and isinstance(first, list | tuple):  # may concatenate lists, one by one
        budget.product(size, len(first))
    elif name in ("format", "format_map", "%"):
        budget.product(_largest_number(str(first)) if isinstance(first, str) else 1, 1)
        budget.product(*(v for v in _flat_numbers(values[1:])))
        if isinstance(first, str):
            fields = first.count("{") + first.count("%")
            budget.product(fields, max((_size(v, MAX_SIZE) for v in values[1:]), default=1))


def _flat_numbers(values: Sequence[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, tuple):
            yield from _flat_numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield value


# ---- the environment ----


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


@functools.cache
def _environment_class() -> type[Any]:
    """Return the class of the environment; created on first use, because Jinja2 is optional."""
    try:
        import jinja2
        from jinja2 import ext, nodes, sandbox
    except ImportError as error:
        raise ImportError("chat templates need Jinja2: pip install jinja2") from error

    class Generation(ext.Extension):
        """Accepts ``{% generation %}`` blocks, which mark the assistant's text, as plain text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class Environment(sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["+", "*", "**", "%"])

        def __init__(self, budget: _Budget) -> None:
            super().__init__(
                trim_blocks=True,
                lstrip_blocks=True,
                extensions=[Generation, ext.loopcontrols],
                optimized=False,
                cache_size=0,
            )
            self.budget = budget

            def raise_exception(message: object) -> None:
                raise jinja2.TemplateError(str(message))

            @jinja2.pass_context  # prevents calls of finalize while compiling
            def finalize(context: Any, value: Any) -> Any:
                return budget.output(value)

            self.finalize = finalize
            self.filters["tojson"] = _tojson
            for name, function in self.filters.items():
                self.filters[name] = self._guarded(name, function)
            self.globals["raise_exception"] = raise_exception
            self.globals["strftime_now"] = _strftime_now
            self.globals["tl_tick"] = budget.tick
            self.globals["tl_check"] = budget.check
            self.globals["tl_concat"] = self._concatenate

        def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            passes = hasattr(function, "jinja_pass_arg")  # the first argument is the context

            @functools.wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:
                if name == "join":
                    args = tuple(self._listed(arg) for arg in args)
                _guard_call(self.budget, name, args[1:] if passes else args, kwargs)
                return self.budget.check(function(*args, **kwargs))

            return call

        def _listed(self, value: Any) -> Any:
            """Return an iterator as a list, because an iterator has no size; else the value."""
            if not isinstance(value, Iterator):
                return value
            items = []
            for item in value:
                items.append(item)
                self.budget.tick()
                self.budget.product(len(items))
            return items

        def _concatenate(self, *values: Any) -> str:
            texts = []
            for value in values:
                self.budget.check(value)
                texts.append(str(value))
            self.budget.product(sum(map(len, texts)))
            return "".join(texts)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            budget = self.budget
            budget.tick()
            if operator == "*" and isinstance(left, int) and isinstance(right, int):
                budget.product(1)
                if left.bit_length() + right.bit_length() > _MAX_BITS:
                    raise _too_large_int(left.bit_length() + right.bit_length())
            elif operator == "*":
                sizes = [v if isinstance(v, int) else _size(v, MAX_SIZE) for v in (left, right)]
                if all(isinstance(v, int) for v in sizes):
                    budget.product(*sizes)
            elif operator == "**" and isinstance(left, int) and isinstance(right, int):
                if max(left.bit_length(), 1) * abs(right) > _MAX_BITS:
                    raise _too_large_int(max(left.bit_length(), 1) * abs(right))
            elif operator == "%" and isinstance(left, str):
                _guard_call(budget, "%", (left, right), {})
            return budget.check(super().call_binop(context, operator, left, right))

        def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            owner = getattr(function, "__self__", None)
            name = getattr(function, "__name__", "")
            if name == "join":
                args = tuple(self._listed(arg) for arg in args)
            if isinstance(owner, str | bytes | list | tuple | Mapping | int):
                _guard_call(self.budget, name, (owner, *args), kwargs)
            elif name == "generate_lorem_ipsum":
                numbers = _flat_numbers([*args, *kwargs.values()])
                self.budget.product(1000, *(n for n in numbers))
            else:
                self.budget.tick()
            return self.budget.check(super().call(context, function, *args, **kwargs))

        def _parse(self, source: str, name: Any, filename: Any) -> Any:
            tree = super()._parse(source, name, filename)
            return _instrument(tree, nodes)

    return Environment


def _instrument(tree: Any, nodes: Any) -> Any:
    """Return a template's syntax tree with calls that count its steps and check its values.

    Loops and macros call `tl_tick`. Lists, dicts and tuples are wrapped in `tl_check`, and
    concatenations become `tl_concat`.
    """

    def helper(name: str, args: list[Any], line: int) -> Any:
        call = nodes.Call(nodes.Name(name, "load"), args, [], None, None)
        return call.set_lineno(line)

    def literal_size(node: Any) -> int:
        return sum(len(data.data) for data in [*node.find_all(nodes.TemplateData)])

    def visit(node: Any) -> Any:
        for field, value in list(node.iter_fields()):
            if isinstance(value, nodes.Node):
                setattr(node, field, visit(value))
            elif isinstance(value, list):
                setattr(node, field, [visit(v) if isinstance(v, nodes.Node) else v for v in value])
        line = node.lineno
        if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock):
            written = [nodes.Const(sum(map(literal_size, node.body)))]
            node.body.insert(0, nodes.ExprStmt(helper("tl_tick", written, line)).set_lineno(line))
        elif isinstance(node, nodes.Concat):
            return helper("tl_concat", node.nodes, line)
        elif isinstance(node, nodes.List | nodes.Dict) or (
            isinstance(node, nodes.Tuple) and node.ctx == "load"
        ):
            return helper("tl_check", [node], line)
        return node

    tree = visit(tree)
    tree.set_environment(tree.environment)
    return tree


def render(source: str, values: Mapping[str, Any]) -> str:
    """Return the text that a template renders, within the limits.

    Parameters
    ----------
    source : str
        The template, in Jinja2.
    values : Mapping
        The variables of the template by name.

    Returns
    -------
    str

    Raises
    ------
    ChatTemplateError
        The template is malformed, raises an exception, or takes too much time or memory.
    ImportError
        Jinja2 is not installed.

    Examples
    --------
    >>> render("{{ a + 1 }}", {"a": 1})
    '2'
    """
    make = _environment_class()
    if len(source) > _MAX_SOURCE:
        raise ChatTemplateError(
            f"the chat template has {len(source)} characters; expected at most {_MAX_SOURCE}"
        )
    budget = _Budget()
    try:
        return str(make(budget).from_string(source).render(values))
    except ChatTemplateError:
        raise
    # a template is a program from a file: any exception that it causes is an error of the template
    except Exception as error:
        what = str(error) or type(error).__name__
        raise ChatTemplateError(f"the chat template failed: {what}") from error
