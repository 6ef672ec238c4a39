"""The sandbox of chat templates: Jinja2, with limits that hold for every template.

The environment is the one that Hugging Face sets up (`transformers/utils/chat_template_utils.py`):
`ImmutableSandboxedEnvironment` with trimmed blocks, loop controls, `tojson` without HTML escapes,
`raise_exception`, `strftime_now` and ``{% generation %}`` blocks.

A template is part of a model file, which may come from an untrusted source. It runs in this
process, so each of its operations must end soon and make little. This is how it is counted:

- Before a template is compiled: its characters, its tokens, and how deeply it is nested. Other
  templates and ``{% autoescape %}`` are refused.
- Each block of statements, each call, filter, operator and slice is one step, at which the clock
  is read.
- Before each operation whose result may be large, or that may take long, its check
  (`tinyllm.chat.operations`) computes a bound from the sizes of the values. A method or filter
  without a check cannot be called.
- What is written counts where it is written, also in macros and ``{% set %}`` blocks.
- What an operation makes is remembered, and counts while the template holds it
  (`tinyllm.chat.limits.Budget`).

Nothing walks over a value because it is used: the length of a list, a slice or a message costs the
same in a long conversation. The checks are emitted by the code generator. They are attributes of
the environment, and no name in a template leads to them.
"""

from __future__ import annotations

import functools
import json
import operator
import types
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from .limits import MAX_SECONDS, MAX_SIZE, Budget, ChatTemplateError, beyond_limit
from .messages import ArgumentText, TextParts
from .operations import FILTERS, METHODS, check_compare, check_operator, listed

__all__ = ["MAX_SECONDS", "MAX_SIZE", "ChatTemplateError", "render"]

_MAX_SOURCE = 1_000_000  # characters
_MAX_TOKENS = 20_000  # ten times as many as the longest template that we have
_MAX_NESTING = 100  # of blocks, branches and expressions
_MAX_ARGUMENTS = 1000  # of a call
_MAX_DIGITS = 20  # of an integer
_MAX_MESSAGE = 2000  # characters of an error
_SHORT = 256  # characters of a text that anything may be compared with

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda left, right: left in right,
    "notin": lambda left, right: left not in right,
}
#: The tests that compare, and what they compare with.
_COMPARING_TESTS = {
    "eq": "eq", "==": "eq", "equalto": "eq", "ne": "ne", "!=": "ne", "lt": "lt", "<": "lt",
    "lessthan": "lt", "le": "lteq", "<=": "lteq", "gt": "gt", ">": "gt", "greaterthan": "gt",
    "ge": "gteq", ">=": "gteq", "in": "in",
}  # fmt: skip
_IN_TWO_FORMS = (ArgumentText, TextParts)
_WITH_METHODS = tuple(METHODS)
_OF_A_DICT = frozenset(dir(dict))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        _parsed(value),
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _parsed(value: Any) -> Any:
    """Return a value with the mapping in place of each text that has one."""
    if isinstance(value, ArgumentText):
        return str(value) if value._mapping is None else value._mapping
    if isinstance(value, dict):
        changed = {key: _parsed(item) for key, item in value.items()}
        same = all(changed[key] is item for key, item in value.items())
        return value if same else changed
    if isinstance(value, list | tuple):
        items = [_parsed(item) for item in value]
        return value if all(map(operator.is_, items, value)) else items
    return value


def _strftime_now(pattern: str) -> str:
    if len(pattern) > _SHORT:
        raise Budget.too_large(f"a date format of {len(pattern)} characters", _SHORT, "characters")
    return datetime.now().strftime(pattern)


class _Dict:
    """The function ``dict`` of templates, without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Jinja:
    """The classes that need Jinja2; made on first use, because Jinja2 is optional."""

    def __init__(self) -> None:
        try:
            from jinja2 import Template
        except ImportError as error:
            raise ImportError("chat templates need Jinja2: pip install jinja2") from error
        self.template = Template
        self.environment = _environment_class()
        self.environment.code_generator_class = _generator_class()
        self.compiled = functools.lru_cache(16)(self.compile)

    def compile(self, source: str) -> types.CodeType:
        """Return the code of a template."""
        if len(source) > _MAX_SOURCE:
            raise _too_long(len(source), _MAX_SOURCE, "characters")
        environment = self.environment(Budget(MAX_SECONDS))
        tokens = 0
        for _, kind, text in environment.lexer.tokeniter(source, None):
            tokens += kind != "whitespace"
            if tokens > _MAX_TOKENS:
                raise _too_long(_MAX_TOKENS, _MAX_TOKENS, "tokens", "more than ")
            if kind == "integer" and len(text) > _MAX_DIGITS:
                raise _too_long(len(text), _MAX_DIGITS, "digits", "an integer of ")
        tree = environment.parse(source)
        _check_tree(tree)
        tree.set_environment(environment)
        code: types.CodeType = environment.compile(tree)
        return code

    def render(self, source: str, values: Mapping[str, Any], budget: Budget) -> str:
        """Return what a template writes."""
        code = self.compiled(source)
        environment = self.environment(budget)
        environment.trusted = {id(value) for value in values.values() if callable(value)}
        template = self.template.from_code(environment, code, environment.make_globals(None))
        return "".join(template.root_render_func(template.new_context(dict(values))))


_jinja = functools.cache(_Jinja)


def _too_long(size: int, limit: int, unit: str, about: str = "") -> ChatTemplateError:
    return beyond_limit(f"the chat template has {about}{size} {unit}; expected at most {limit}")


def _check_tree(tree: Any) -> None:
    """Raise if a template is too deeply nested, or has a node that is not supported.

    Star arguments are changed to calls of `spread`, which looks at their number.
    """
    from jinja2 import nodes

    refused = {
        nodes.Include: "include", nodes.Import: "import", nodes.FromImport: "import",
        nodes.Extends: "extends", nodes.ScopedEvalContextModifier: "autoescape",
    }  # fmt: skip
    waiting = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > _MAX_NESTING:
            raise beyond_limit(
                f"the chat template is nested more than {_MAX_NESTING} levels deep, "
                f"in line {node.lineno}"
            )
        if type(node) in refused:
            raise ChatTemplateError(
                f"the chat template has {{% {refused[type(node)]} %}} in line {node.lineno}, "
                "which chat templates cannot use"
            )
        for name in ("dyn_args", "dyn_kwargs"):
            if getattr(node, name, None) is not None:
                spread = nodes.EnvironmentAttribute("spread")
                call = nodes.Call(spread, [getattr(node, name)], [], None, None)
                setattr(node, name, call.set_lineno(node.lineno))
        # in Python's syntax tree, each elif is inside the branch before it
        branches = len(node.elif_) if isinstance(node, nodes.If) else 0
        waiting += [(child, depth + 1 + branches) for child in node.iter_child_nodes()]


def _generator_class() -> type[Any]:
    """Return the class that writes the Python code of a template, with its steps and checks."""
    from jinja2 import compiler, nodes

    def short(node: Any) -> bool:
        """Whether a node is a constant that any value can be compared with at once."""
        if isinstance(node, nodes.List | nodes.Tuple):
            return len(node.items) < 50 and all(map(short, node.items))
        return isinstance(node, nodes.Const) and len(str(node.value)) <= _SHORT

    class Generator(compiler.CodeGenerator):
        def blockvisit(self, body: Any, frame: Any) -> None:
            written = sum(
                len(data.data)
                for node in body
                if isinstance(node, nodes.Output)
                for data in node.nodes
                if isinstance(data, nodes.TemplateData)
            )
            self.writeline(f"environment.tick({written})")
            super().blockvisit(body, frame)

        def counted(self, visit: Callable[[], None]) -> None:
            self.write("environment.made(")
            visit()
            self.write(")")

        def macro_def(self, macro_ref: Any, frame: Any) -> None:
            self.counted(lambda: super(Generator, self).macro_def(macro_ref, frame))

        def visit_List(self, node: Any, frame: Any) -> None:
            self.counted(lambda: super(Generator, self).visit_List(node, frame))

        def visit_Dict(self, node: Any, frame: Any) -> None:
            self.write("environment.made_dict((")
            for pair in node.items:
                self.write("(")
                self.visit(pair.key, frame)
                self.write(", ")
                self.visit(pair.value, frame)
                self.write("), ")
            self.write("))")

        def visit_Tuple(self, node: Any, frame: Any) -> None:
            if node.ctx == "load":
                self.counted(lambda: super(Generator, self).visit_Tuple(node, frame))
            else:
                super().visit_Tuple(node, frame)

        def visit_Concat(self, node: Any, frame: Any) -> None:
            self.write("environment.concatenate((")
            for item in node.nodes:
                self.visit(item, frame)
                self.write(", ")
            self.write("))")

        def visit_Compare(self, node: Any, frame: Any) -> None:
            operands = [node.expr, *(operand.expr for operand in node.ops)]
            if sum(not short(operand) for operand in operands) <= 1:
                super().visit_Compare(node, frame)
                return
            self.write("environment.compare(")
            self.visit(node.expr, frame)
            for operand in node.ops:
                self.write(f", {operand.op!r}, ")
                self.visit(operand.expr, frame)
            self.write(")")

        def visit_Getitem(self, node: Any, frame: Any) -> None:
            if not isinstance(node.arg, nodes.Slice):
                super().visit_Getitem(node, frame)
                return
            self.write("environment.cut(")
            self.visit(node.node, frame)
            for bound in (node.arg.start, node.arg.stop, node.arg.step):
                self.write(", ")
                if bound is None:
                    self.write("None")
                else:
                    self.visit(bound, frame)
            self.write(")")

    return Generator


def _environment_class() -> type[Any]:
    """Return the class of the environment. Each render has its own, with its budget."""
    import jinja2
    from jinja2 import ext, nodes, runtime, sandbox, utils

    class Generation(ext.Extension):
        """Accepts ``{% generation %}`` blocks, which mark the assistant's text, as plain text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class Namespace(utils.Namespace):
        def __repr__(self) -> str:
            return "<Namespace>"

    class Formatter(sandbox.SandboxedFormatter):
        """Formats ``str.format``; raises before a field becomes too large."""

        def __init__(self, environment: Any) -> None:
            super().__init__(environment)
            self.budget = environment.budget
            self.total = 0

        def _count(self, size: int) -> None:
            self.budget.tick()
            self.total += size
            self.budget.characters(self.total)

        def format_field(self, value: Any, spec: str) -> Any:
            self._count(self.budget.text(value))
            for digits in "".join(c if c.isdigit() else " " for c in spec).split():
                self._count(int(digits[:20]))
            return super().format_field(value, spec)

        def convert_field(self, value: Any, conversion: Any) -> Any:
            if conversion is not None:
                self._count(self.budget.text(value))
            return super().convert_field(value, conversion)

    def raise_exception(message: object) -> None:
        raise jinja2.TemplateError(str(message)[:_MAX_MESSAGE])

    def guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        check = FILTERS[name]
        passed = utils._PassArg.from_obj(function)
        to_context = passed is utils._PassArg.context
        to_evaluation = passed is utils._PassArg.eval_context
        to_environment = passed is utils._PassArg.environment

        @jinja2.pass_context
        def call(context: Any, *args: Any, **kwargs: Any) -> Any:
            environment = context.environment
            budget = environment.budget
            budget.tick()
            given = list(args)
            if given and isinstance(given[0], ArgumentText) and name in ("items", "dictsort"):
                given[0] = _parsed(given[0])
            check(budget, given, kwargs)
            if to_context:
                given.insert(0, context)
            elif to_evaluation:
                given.insert(0, context.eval_ctx)
            elif to_environment:
                given.insert(0, environment)
            result = function(*given, **kwargs)
            return budget.iterate(result) if isinstance(result, Iterator) else budget.made(result)

        return call

    def comparing(name: str) -> Callable[..., Any]:
        @jinja2.pass_environment
        def test(environment: Any, left: Any, right: Any) -> Any:
            return environment.compare(left, name, right)

        return test

    all_filters = {**jinja2.filters.FILTERS, "tojson": _tojson}
    filters = {name: guarded(name, all_filters[name]) for name in FILTERS}
    tests = {
        **jinja2.tests.TESTS,
        **{name: comparing(_COMPARING_TESTS[name]) for name in _COMPARING_TESTS},
        "mapping": lambda value: (
            isinstance(value, Mapping)
            or (isinstance(value, ArgumentText) and value._mapping is not None)
        ),
    }

    class Environment(sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["+", "*", "**", "%"])
        trusted: set[int] = set()  # noqa: RUF012

        def __init__(self, budget: Budget) -> None:
            super().__init__(
                trim_blocks=True,
                lstrip_blocks=True,
                extensions=[Generation, ext.loopcontrols],
                optimized=False,
                cache_size=0,
            )
            self.budget = budget
            self.tick = budget.tick
            self.made = budget.made
            self.spread = self.spread_out  # one object, which `call` knows

            @jinja2.pass_context  # prevents calls of finalize while compiling
            def finalize(context: Any, value: Any) -> Any:
                if not isinstance(value, str):
                    budget.text(value)
                    value = str(value)
                budget.tick(str.__len__(value))
                return value

            self.finalize = finalize
            self.filters = filters
            self.tests = tests
            self.globals = {
                "range": sandbox.safe_range,
                "dict": _Dict(),
                "namespace": Namespace,
                "cycler": utils.Cycler,
                "joiner": utils.Joiner,
                "raise_exception": raise_exception,
                "strftime_now": _strftime_now,
            }

        def spread_out(self, value: Any) -> Any:
            """Return the value of a star argument, which Python spreads before a call."""
            value = listed(budget := self.budget, value)
            if hasattr(value, "__len__"):
                budget.room("a call", _MAX_ARGUMENTS, "arguments", len(value))
            return value

        def made_dict(self, pairs: Any) -> Any:
            for key, _ in pairs:
                if isinstance(key, tuple):
                    self.budget.text(key)  # its hash is computed from all its items
            return self.budget.made(dict(pairs))

        def concatenate(self, values: Any) -> str:
            total = 0
            for value in values:
                total += self.budget.text(value)
            self.budget.characters(total)
            self.budget.tick()
            text: str = self.budget.made("".join(map(str, values)))
            return text

        def cut(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
            self.budget.tick()
            part = value[start:stop:step]
            return self.budget.made(TextParts(part) if isinstance(value, TextParts) else part)

        def compare(self, left: Any, *rest: Any) -> Any:
            self.budget.tick()
            result: Any = True
            for name, right in zip(rest[::2], rest[1::2], strict=True):
                check_compare(self.budget, left, name, right)
                result = _COMPARISONS[name](left, right)
                if not result:
                    return result
                left = right
            return result

        def call_binop(self, context: Any, name: str, left: Any, right: Any) -> Any:
            self.budget.tick()
            check_operator(self.budget, name, left, right)
            return self.budget.made(self.binop_table[name](left, right))

        def getattr(self, obj: Any, attribute: str) -> Any:
            # what the method of the superclass does, without an exception or a search
            if type(obj) is dict and attribute not in _OF_A_DICT:
                try:
                    return obj[attribute]
                except KeyError:
                    return self.undefined(obj=obj, name=attribute)
            if type(obj) is Namespace and not attribute.startswith("_"):
                try:
                    return getattr(obj, attribute)
                except AttributeError:
                    return self.undefined(obj=obj, name=attribute)
            if isinstance(obj, _IN_TWO_FORMS):
                obj = _answering(obj, attribute)
            return super().getattr(obj, attribute)

        def getitem(self, obj: Any, argument: Any) -> Any:
            if isinstance(argument, tuple):
                self.budget.text(argument)  # its hash is computed from all its items
            if isinstance(obj, _IN_TWO_FORMS) and isinstance(argument, str):
                obj = _answering(obj, argument)
            return super().getitem(obj, argument)

        def wrap_str_format(self, value: Any) -> Any:
            return None  # `call` formats

        def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            budget = self.budget
            budget.tick()
            owner = getattr(function, "__self__", None)
            if isinstance(owner, _WITH_METHODS):
                name = function.__name__
                kinds = (k for k in METHODS if isinstance(owner, k))
                check = METHODS[next(kinds)].get(name)
                if check is None:
                    raise ChatTemplateError(
                        f"the chat template calls the method {name!r} of "
                        f"{type(owner).__name__}, which chat templates cannot use"
                    )
                kwargs.pop("_loop_vars", None)
                kwargs.pop("_block_vars", None)
                given = [owner, *args]
                check(budget, given, kwargs)
                if name in ("format", "format_map"):
                    if name == "format_map":
                        kwargs, args = args[0], ()
                    return budget.made(Formatter(self).vformat(str(owner), args, kwargs))
                if hasattr(owner, "__html__"):  # its arguments are escaped
                    budget.characters(sum(map(budget.text, given)), 6)
                return budget.made(function(*given[1:], **kwargs))
            if isinstance(function, runtime.Macro | runtime.LoopContext | runtime.BlockReference):
                budget.enter()
                try:
                    return budget.made(super().call(context, function, *args, **kwargs))
                finally:
                    budget.leave()
            if isinstance(owner, runtime.LoopContext | utils.Cycler):
                for value in args:
                    budget.text(value)  # changed() compares
            elif isinstance(function, _Dict) or isinstance(owner, _Dict) or function is Namespace:
                args = tuple(listed(budget, value) for value in args)
                for value in args:
                    budget.text(value)
                budget.items(*[len(value) for value in args[:1] if hasattr(value, "__len__")])
            elif not (
                isinstance(function, runtime.Undefined | utils.Joiner)
                or id(function) in self.trusted
                or function is self.spread
                or any(function is known for known in self.globals.values())
            ):
                raise ChatTemplateError(
                    f"the chat template calls a value of the type {type(function).__name__}, "
                    "which chat templates cannot call"
                )
            return budget.made(super().call(context, function, *args, **kwargs))

    return Environment


def _answering(value: Any, attribute: str) -> Any:
    """Return the form of a value that has an attribute: its text, or its mapping or list."""
    if isinstance(value, ArgumentText):
        mapping = value._mapping
        known = mapping is not None and (attribute in mapping or attribute in _OF_A_DICT)
        return mapping if known else value
    return value if hasattr(list, attribute) or not hasattr(str, attribute) else str(value)


def render(source: str, values: Mapping[str, Any], start: float | None = None) -> str:
    """Return the text that a template renders, within the limits.

    Parameters
    ----------
    source : str
        The template, in Jinja2.
    values : Mapping
        The variables of the template by name. Functions among them are trusted.
    start : float, optional
        When the time began that the template may take, by `time.monotonic`. Default: now.

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
    >>> render("{{ a + 1 }}", {"a": 1})  # pip install jinja2
    '2'
    """
    jinja = _jinja()
    try:
        return jinja.render(source, values, Budget(MAX_SECONDS, start))
    except ChatTemplateError:
        raise
    # a template is a program from a file: any exception that it causes is an error of the template
    except Exception as error:
        what = (str(error) or type(error).__name__)[:_MAX_MESSAGE]
        raise ChatTemplateError(f"the chat template failed: {what}") from error
