"""The sandbox of chat templates: Jinja2 with limits on time and size.

The environment is the one that Hugging Face sets up (`transformers/utils/chat_template_utils.py`):
`ImmutableSandboxedEnvironment` with trimmed blocks, loop controls, `tojson` without HTML escapes,
`raise_exception`, `strftime_now` and ``{% generation %}`` blocks. A template comes with a model
file from anywhere, so that each loop, call and value that it makes is counted here: a hostile one
ends in `ChatTemplateError`, in this process, within `MAX_SECONDS` and about `MAX_SIZE` characters.
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

#: A template may run for so long.
MAX_SECONDS = 5.0
#: No value that a template makes, and not all of its output, may be larger (characters + items).
MAX_SIZE = 16_000_000
_MAX_SOURCE = 1_000_000
_MAX_BITS = 10_000  # of an int


class ChatTemplateError(Error, ValueError):
    """A chat template is missing, malformed, refuses the conversation, or takes too much."""


# ---- limits ----


def _size(value: Any, limit: int) -> int:
    """Return about how many characters and items a value has; stops counting above the limit."""
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
    """What a template may still use."""

    def __init__(self) -> None:
        self.deadline = time.monotonic() + MAX_SECONDS
        self.left = MAX_SIZE

    def tick(self, output: int = 0) -> None:
        """Count a step, and the characters of the template itself that it writes."""
        self.left -= output
        if self.left < 0:
            raise _too_large(MAX_SIZE, "characters of output and more")
        if time.monotonic() > self.deadline:
            raise ChatTemplateError(f"the chat template ran for more than {MAX_SECONDS:g} seconds")

    def check(self, value: Any) -> Any:
        """Refuse a value that is too large."""
        self.tick()
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise _too_large(value.bit_length(), "bits")
        if _size(value, MAX_SIZE) > MAX_SIZE:
            raise _too_large(MAX_SIZE, "characters and more")
        return value

    def product(self, *factors: int) -> None:
        """Refuse an operation whose result would be too large."""
        total = 1
        for factor in factors:
            total *= max(abs(factor), 1)
        if total > MAX_SIZE:
            raise _too_large(total, "characters")

    def output(self, value: Any) -> Any:
        size = _size(value, self.left)
        self.left -= size
        if self.left < 0:
            raise _too_large(MAX_SIZE, "characters of output and more")
        return value


def _too_large(size: int, unit: str) -> ChatTemplateError:
    return ChatTemplateError(
        f"the chat template makes a value of {size} {unit}; the limit is {MAX_SIZE}"
        if unit != "bits"
        else f"the chat template makes an integer of {size} bits; the limit is {_MAX_BITS}"
    )


def _numbers_in(text: str) -> int:
    """Return the largest number in a format string: a width may be one."""
    return max((int(digits[-9:]) for digits in re.findall(r"\d+", text)), default=1)


def _guard_call(budget: _Budget, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a filter or method whose result is a product of what it is given."""
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
        # str.join has the separator first, the filter the items
        budget.product(*(_size(v, MAX_SIZE) for v in values[:1]), max(map(len, strings), default=1))
        if isinstance(first, str) and len(values) > 1 and not isinstance(values[1], str):
            budget.product(len(first), _size(values[1], MAX_SIZE))
    elif name == "sum" and isinstance(first, list | tuple):  # may add up lists, one by one
        budget.product(size, len(first))
    elif name in ("format", "format_map", "%"):
        budget.product(_numbers_in(str(first)) if isinstance(first, str) else 1, 1)
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
    """Return our environment; made late, because Jinja2 is an extra."""
    try:
        import jinja2
        from jinja2 import ext, nodes, sandbox
    except ImportError as error:
        raise ImportError("chat templates need Jinja2: pip install jinja2") from error

    class Generation(ext.Extension):
        """``{% generation %}`` marks the assistant's text, which here is text like any other."""

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

            @jinja2.pass_context  # so that nothing is finished while compiling
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
            passes = hasattr(function, "jinja_pass_arg")  # the context comes first

            @functools.wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:
                if name == "join":
                    args = tuple(self._listed(arg) for arg in args)
                _guard_call(self.budget, name, args[1:] if passes else args, kwargs)
                return self.budget.check(function(*args, **kwargs))

            return call

        def _listed(self, value: Any) -> Any:
            """Return a list for an iterator, which has no size."""
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
                    raise _too_large(left.bit_length() + right.bit_length(), "bits")
            elif operator == "*":
                sizes = [v if isinstance(v, int) else _size(v, MAX_SIZE) for v in (left, right)]
                if all(isinstance(v, int) for v in sizes):
                    budget.product(*sizes)
            elif operator == "**" and isinstance(left, int) and isinstance(right, int):
                if max(left.bit_length(), 1) * abs(right) > _MAX_BITS:
                    raise _too_large(max(left.bit_length(), 1) * abs(right), "bits")
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
    """Add a call to each loop and macro, and one around each literal that holds others."""

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
    """Run a template within the limits.

    Parameters
    ----------
    source : str
        Jinja2.
    values : Mapping
        What the template may use.

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
            f"the chat template has {len(source)} characters; the limit is {_MAX_SOURCE}"
        )
    budget = _Budget()
    try:
        return str(make(budget).from_string(source).render(values))
    except ChatTemplateError:
        raise
    # whatever a template does wrong is its error: it is a program from a file
    except Exception as error:
        what = str(error) or type(error).__name__
        raise ChatTemplateError(f"the chat template failed: {what}") from error
