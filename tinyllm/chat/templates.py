"""Chat templates: Jinja2 in a sandbox, with limits on time and size.

The environment is the one that Hugging Face sets up (`transformers/utils/chat_template_utils.py`):
`ImmutableSandboxedEnvironment` with trimmed blocks, loop controls, `tojson` without HTML escapes,
`raise_exception`, `strftime_now` and ``{% generation %}`` blocks. A template comes with a model
file from anywhere, so that each loop, call and value that it makes is counted here: a hostile one
ends in `ChatTemplateError`, in this process, within `MAX_SECONDS` and about `MAX_SIZE` characters.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import time
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..errors import Error

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

__all__ = [
    "MAX_SECONDS",
    "MAX_SIZE",
    "TEMPLATES",
    "ChatTemplateError",
    "Cover",
    "checked_messages",
    "choose_template",
    "encode_chat",
    "file_templates",
    "render_chat",
    "stop_strings",
    "tool_schema",
]

#: A template may run for so long.
MAX_SECONDS = 5.0
#: No value that a template makes, and not all of its output, may be larger (characters + items).
MAX_SIZE = 16_000_000
_MAX_SOURCE = 1_000_000
_MAX_BITS = 10_000  # of an int
_KEY = "tokenizer.chat_template"


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
        raise ImportError(
            "chat templates need Jinja2: pip install 'tinyllm[chat]' (or pip install jinja2)"
        ) from error

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


# ---- templates ----


class _Builtin(typing.NamedTuple):
    """A template for files that have none, and the strings that end an answer."""

    source: str
    stop: tuple[str, ...]


#: Templates for files that have none. ``"chatml"`` is for models that were trained on ChatML
#: (https://github.com/openai/openai-python/blob/v0.28.1/chatml.md), ``"plain"`` for models that
#: were never taught to chat: each message is a paragraph under the name of its role.
TEMPLATES: dict[str, _Builtin] = {
    "chatml": _Builtin(
        "{% for m in messages %}"
        "{{ '<|im_start|>' + m.role + '\n' + (m.content or '') + '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|im_end|>", "<|im_start|>"),
    ),
    "plain": _Builtin(
        "{% for m in messages %}"
        "{{ '' if m.role == 'system' else m.role | upper + ':\n' }}"
        "{{ (m.content or '') | trim + '\n\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:\n' }}{% endif %}",
        ("\nUSER:", "\nASSISTANT:"),
    ),
}


def file_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the chat templates of a file by name; the one without a name is ``"default"``.

    Parameters
    ----------
    metadata : Mapping
        Of the GGUF file.

    Returns
    -------
    dict of str to str

    Examples
    --------
    >>> file_templates({"tokenizer.chat_template": "{{ 1 }}", "tokenizer.chat_template.rag": "{}"})
    {'default': '{{ 1 }}', 'rag': '{}'}
    """
    named = {"default": str(metadata[_KEY])} if _KEY in metadata else {}
    for key in metadata:
        if key.startswith(_KEY + "."):
            named[key.removeprefix(_KEY + ".")] = str(metadata[key])
    return named


def choose_template(
    named: Mapping[str, str], template: str | None = None, tools: bool = False
) -> str:
    """Return the source of the template to use.

    Parameters
    ----------
    named : Mapping of str to str
        The file's own: see `file_templates`.
    template : str, optional
        The name of one of the file's templates or of `TEMPLATES`, or a source (which has a
        ``{``). None: the file's template named ``tool_use`` if there are tools, else the default
        one, else the only one.
    tools : bool
        Whether tools are given.

    Returns
    -------
    str

    Raises
    ------
    ChatTemplateError
        If there is no such template; the message names those that there are.

    Examples
    --------
    >>> choose_template({"default": "{{ messages }}"})
    '{{ messages }}'
    """
    if template is not None:
        if "{" in template:
            return template
        if template in named:
            return named[template]
        if template in TEMPLATES:
            return TEMPLATES[template].source
        raise ChatTemplateError(
            f"template is {template!r}; expected Jinja2 source or one of "
            f"{sorted({*named, *TEMPLATES})}"
        )
    if tools and "tool_use" in named:
        return named["tool_use"]
    if "default" in named:
        return named["default"]
    if len(named) == 1:
        return next(iter(named.values()))
    if named:
        raise ChatTemplateError(
            f"the file has no default chat template; choose one of {sorted(named)} by template="
        )
    raise ChatTemplateError(
        "the file has no chat template; give one as template=: Jinja2 source, or the name of one "
        f"of ours: {', '.join(sorted(TEMPLATES))}"
    )


def stop_strings(named: Mapping[str, str], template: str | None) -> tuple[str, ...]:
    """Return what ends an answer beside the model's own tokens: nothing but for `TEMPLATES`.

    Parameters
    ----------
    named, template
        As for `choose_template`.

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> stop_strings({}, "chatml"), stop_strings({}, None)
    (('<|im_end|>', '<|im_start|>'), ())
    """
    return TEMPLATES[template].stop if template in TEMPLATES and template not in named else ()


def checked_messages(messages: Any) -> Sequence[Mapping[str, Any]]:
    """Return messages, or say what is wrong with them.

    Parameters
    ----------
    messages : object

    Returns
    -------
    sequence of Mapping

    Raises
    ------
    TypeError
        If it is not a list of mappings.

    Examples
    --------
    >>> checked_messages([{"role": "user"}])
    [{'role': 'user'}]
    """
    if isinstance(messages, str | bytes | Mapping):
        raise TypeError(f"messages must be a list of messages, not {type(messages).__name__}")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"messages[{i}] is {message!r}; expected a mapping with role, content")
    found: Sequence[Mapping[str, Any]] = messages
    return found


def render_chat(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    r"""Return the text of a conversation.

    Parameters
    ----------
    source : str
        A Jinja2 template.
    messages : sequence of Mapping
        Each with ``"role"`` and ``"content"``, as templates expect them. The arguments of tool
        calls may be JSON in a str, as OpenAI's clients send them: templates get the object.
    tools : sequence of (dict or callable), optional
        JSON schemas, or Python functions (see `tool_schema`).
    add_generation_prompt : bool
        Whether the text ends with the start of an answer.
    **variables
        What else the template uses: ``bos_token``, ``eos_token``, ``documents`` ...

    Returns
    -------
    str

    Raises
    ------
    ChatTemplateError
        If the template is malformed, raises an exception, or takes too much time or memory.
    ImportError
        If Jinja2 is not installed; the message says what to install.
    TypeError
        If `messages` is not a list of mappings.

    Examples
    --------
    >>> render_chat("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    ...             [{"role": "user", "content": "Hi"}])
    'user: Hi\n'
    """
    checked_messages(messages)
    make = _environment_class()
    if len(source) > _MAX_SOURCE:
        raise ChatTemplateError(
            f"the chat template has {len(source)} characters; the limit is {_MAX_SOURCE}"
        )
    values = {
        "messages": [_plain_message(message) for message in messages],
        "tools": None if tools is None else [_plain_tool(tool) for tool in tools],
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **variables,
    }
    budget = _Budget()
    try:
        return str(make(budget).from_string(source).render(values))
    except ChatTemplateError:
        raise
    # whatever a template does wrong is its error: it is a program from a file
    except Exception as error:
        what = str(error) or type(error).__name__
        raise ChatTemplateError(f"the chat template failed: {what}") from error


def _plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    plain = dict(message)
    calls = plain.get("tool_calls")
    if isinstance(calls, list | tuple):
        plain["tool_calls"] = [_plain_call(call) for call in calls]
    return plain


def _plain_call(call: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    call = dict(call)
    if isinstance(call.get("function"), Mapping):
        call["function"] = _plain_call(call["function"])
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except ValueError:
            return call
        if isinstance(parsed, dict):
            call["arguments"] = parsed
    return call


def _plain_tool(tool: Any) -> Any:
    if isinstance(tool, Mapping):
        return tool
    if callable(tool):
        return tool_schema(tool)
    raise TypeError(f"tools has {tool!r}; expected a JSON schema or a function")


_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array",
               dict: "object", type(None): "null"}  # fmt: skip


def tool_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the JSON schema of a Python function, from its annotations and docstring.

    Parameters
    ----------
    function : callable
        The first paragraph of its docstring describes it; ``name : ...`` or ``name: ...`` lines
        describe its parameters.

    Returns
    -------
    dict

    Raises
    ------
    TypeError
        If a parameter has no annotation.

    Examples
    --------
    >>> def add(a: int, b: int = 0) -> int:
    ...     '''Add two numbers.'''
    >>> tool_schema(add)["function"]["parameters"]["required"]
    ['a']
    """
    doc = inspect.getdoc(function) or ""
    hints = typing.get_type_hints(function)
    name = getattr(function, "__name__", type(function).__name__)
    properties: dict[str, Any] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in hints:
            raise TypeError(f"parameter {parameter.name!r} of the tool {name!r} has no annotation")
        schema = _type_schema(hints[parameter.name])
        described = re.search(rf"^\s*{re.escape(parameter.name)}\s*:\s*(.+)$", doc, re.MULTILINE)
        if described:
            schema["description"] = described.group(1).strip()
        properties[parameter.name] = schema
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": " ".join(doc.split("\n\n")[0].split()),
            "parameters": {"type": "object", "properties": properties, "required": required},
        },
    }


def _type_schema(hint: Any) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in _JSON_TYPES:
        return {"type": _JSON_TYPES[hint]}
    if origin is typing.Literal:
        return {"type": _JSON_TYPES.get(type(args[0]), "string"), "enum": list(args)}
    if origin in (typing.Union, types.UnionType):
        kept = [_type_schema(arg) for arg in args if arg is not type(None)]
        schema = kept[0] if len(kept) == 1 else {"anyOf": kept}
        return {**schema, "nullable": True} if type(None) in args else schema
    if origin in (list, tuple, set) and args:
        return {"type": "array", "items": _type_schema(args[0])}
    return {"type": _JSON_TYPES.get(origin, "object")}


# ---- ids ----


class Cover:
    """Covers the special tokens that messages contain while a template writes them.

    Each is one private-use character meanwhile, so that a template moves and trims it as any
    other character, and no template can cut it in two.

    Parameters
    ----------
    spellings : iterable of bytes
        Of the special tokens.
    *others
        Characters in these values are not used: what the template may write anyway.

    Examples
    --------
    >>> cover = Cover([b"<s>"])
    >>> text = cover.hide({"content": "a<s>"})["content"]
    >>> "<s>" in text, cover.uncover(text.encode())
    (False, b'a<s>')
    """

    def __init__(self, spellings: Iterable[bytes], *others: Any) -> None:
        texts = sorted({s.decode(errors="surrogateescape") for s in spellings}, key=len)[::-1]
        self._pattern = re.compile("|".join(map(re.escape, texts))) if texts else None
        taken = {c for text in _strings(others) for c in text if "\ue000" <= c <= "\uf8ff"}
        self._free = (chr(c) for c in range(0xE000, 0xF900) if chr(c) not in taken)
        self._characters: dict[str, str] = {}
        self._back: dict[bytes, bytes] = {}

    def _character(self, match: re.Match[str]) -> str:
        spelling = match[0]
        if spelling not in self._characters:
            character = next(self._free, None)
            if character is None:
                raise ChatTemplateError("the messages contain too many different special tokens")
            self._characters[spelling] = character
            raw = spelling.encode(errors="surrogateescape")
            self._back[character.encode()] = raw
            self._back[json.dumps(character)[1:-1].encode()] = raw  # as tojson may write it
        return self._characters[spelling]

    def hide(self, value: Any) -> Any:
        """Return a value with all special tokens in its strings covered."""
        if self._pattern is None:
            return value
        if isinstance(value, str):
            return self._pattern.sub(self._character, value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item) for item in value]
        return value

    def uncover(self, text: bytes) -> bytes:
        """Return a text as it would be without covers."""
        if not self._back:
            return text
        covers = b"|".join(map(re.escape, self._back))
        return re.sub(covers, lambda match: self._back[match[0]], text)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _strings(pair)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
    elif callable(value):
        yield inspect.getdoc(value) or ""


def encode_chat(tokenizer: Tokenizer, text: str, cover: Cover | None = None) -> list[int]:
    """Return the ids of a rendered conversation.

    The template says where special tokens are: they are parsed, and none is added but the BOS of
    a model that wants one and whose template has not written it.

    Parameters
    ----------
    tokenizer : Tokenizer
    text : str
        What `render_chat` gave.
    cover : Cover, optional
        What hid special tokens in the messages: these become plain text.

    Returns
    -------
    list of int

    Examples
    --------
    >>> from tinyllm.tokenizer import tokenizer_from_metadata
    >>> t = tokenizer_from_metadata({
    ...     "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁"],
    ...     "tokenizer.ggml.token_type": [2, 3, 3, 1]})
    >>> encode_chat(t, "<s>"), encode_chat(t, " </s>")
    ([1], [1, 3, 3, 2])
    """
    ids = tokenizer.encode_fragments(text, True, None if cover is None else cover.uncover)
    if tokenizer.add_bos and tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:
        ids.insert(0, tokenizer.bos)
    return ids
