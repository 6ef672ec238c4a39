"""Read the tool calls in an answer: one function per notation.

The notations are those of the chat templates that models come with: what a template writes for
``tool_calls`` of an earlier message is what the model was trained to write. A new notation is one
function in the list `NOTATIONS`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

__all__ = ["NOTATIONS", "Call", "read_calls", "tool_call"]

_NAME = r"[A-Za-z_][\w.:-]*"
_MOST = 1_000_000  # characters; a longer answer holds no call that a person would run
_DECODER = json.JSONDecoder()


class Call(NamedTuple):
    """A call of a tool.

    Attributes
    ----------
    name : str
    arguments : dict
    id : str or None
        The id, where the notation has one.
    start, end : int
        Where it is in the answer, with the signs around it.
    """

    name: str
    arguments: dict[str, Any]
    id: str | None
    start: int
    end: int


def read_calls(text: str) -> tuple[list[Call], str]:
    """Return the calls in an answer, and the rest of the answer.

    Parameters
    ----------
    text : str
        An answer, with the texts of special tokens.

    Returns
    -------
    calls : list of Call
        Empty if there is none, or if what looks like one is not complete.
    rest : str
        The answer without them.

    Examples
    --------
    >>> calls, rest = read_calls('Wait.[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]')
    >>> calls[0].name, calls[0].arguments, rest
    ('add', {'a': 1}, 'Wait.')
    """
    if len(text) <= _MOST:
        for notation in NOTATIONS:
            calls = list(notation(text))
            if calls:
                rest, at = [], 0
                for call in sorted(calls, key=lambda call: call.start):
                    rest.append(text[at : call.start])
                    at = max(at, call.end)
                return calls, "".join([*rest, text[at:]]).strip()
    return [], text


def tool_call(call: Call, number: int) -> dict[str, Any]:
    """Return a call as a message holds it: what ``tool_calls`` of `Model.chat` takes.

    Examples
    --------
    >>> tool_call(Call("add", {"a": 1}, None, 0, 0), 0)
    {'id': 'call_0', 'type': 'function', 'function': {'name': 'add', 'arguments': {'a': 1}}}
    """
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id or f"call_{number}", "type": "function", "function": function}


def _value(text: str, at: int) -> tuple[Any, int]:
    """Return the JSON value that starts at a place after blanks, and its end; None if none."""
    while at < len(text) and text[at].isspace():
        at += 1
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None, at


def _calls(value: Any, start: int, end: int) -> Iterator[Call]:
    """Yield the calls of an object, or of a list of objects, with a name and arguments."""
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict):
            continue
        inner = item.get("function")
        item = inner if isinstance(inner, dict) else item
        name = item.get("name", item.get("tool_name"))
        arguments = item.get("arguments", item.get("parameters"))
        if isinstance(arguments, str):
            arguments, _ = _value(arguments, 0)
        number = item.get("id", item.get("tool_call_id"))
        if isinstance(name, str) and name and isinstance(arguments, dict):
            yield Call(name, arguments, None if number is None else str(number), start, end)


def _after(mark: str, text: str, close: str = "") -> Iterator[Call]:
    """Yield the calls in the JSON values after each place where a pattern matches."""
    for found in re.finditer(mark, text):
        value, end = _value(text, found.end())
        if close and (closed := re.compile(close).match(text, end)):
            end = closed.end()
        yield from _calls(value, found.start(), end)


# ---- notations ----


def _tags(text: str) -> Iterator[Call]:
    """Hermes, Qwen: ``<tool_call>{"name": ..., "arguments": ...}</tool_call>``."""
    yield from _after(r"<tool_call>", text, r"\s*</tool_call>")


def _parameter_tags(text: str) -> Iterator[Call]:
    """Qwen coder: ``<function=name><parameter=key>value</parameter></function>``."""
    pattern = (
        rf"(?:<tool_call>\s*)?<function=({_NAME})>\s*((?:<parameter=[^<]*?>.*?</parameter>\s*)*)"
    )
    for found in re.finditer(rf"{pattern}</function>(?:\s*</tool_call>)?", text, re.DOTALL):
        pairs = re.findall(r"<parameter=([^<]*?)>\n?(.*?)\n?</parameter>", found[2], re.DOTALL)
        values = {key: _value(value, 0) for key, value in pairs}
        arguments = {
            key: values[key][0] if values[key][1] == len(value) else value for key, value in pairs
        }
        yield Call(found[1], arguments, None, found.start(), found.end())


def _function_tags(text: str) -> Iterator[Call]:
    """The functionary models, 3.1: ``<function=name>{...}</function>``."""
    for found in re.finditer(rf"<function=({_NAME})>", text):
        value, end = _value(text, found.end())
        if isinstance(value, dict):
            if closed := re.compile(r"\s*</function>").match(text, end):
                end = closed.end()
            yield Call(found[1], value, None, found.start(), end)


def _mistral(text: str) -> Iterator[Call]:
    """Mistral: ``[TOOL_CALLS][{...}]``, and ``[TOOL_CALLS]name[ARGS]{...}`` since 2025."""
    yield from _after(r"\[TOOL_CALLS\]", text)
    for found in re.finditer(rf"\[TOOL_CALLS\]({_NAME})(?:\[CALL_ID\](\w+))?\[ARGS\]", text):
        value, end = _value(text, found.end())
        if isinstance(value, dict):
            yield Call(found[1], value, found[2], found.start(), end)


def _command_r(text: str) -> Iterator[Call]:
    """Command R and R+: ``Action:`` with a block of JSON; R7B: ``<|START_ACTION|>[...]``."""
    yield from _after(r"Action:\s*```(?:json)?", text, r"\s*```")
    yield from _after(r"<\|START_ACTION\|>", text, r"\s*(?:<\|END_ACTION\|>)?")


def _deepseek(text: str) -> Iterator[Call]:
    """DeepSeek: ``<｜tool▁call▁begin｜>function<｜tool▁sep｜>name``, then a block of JSON."""
    opened = r"(?:<｜tool▁calls▁begin｜>\s*)?<｜tool▁call▁begin｜>\w*<｜tool▁sep｜>"
    closed = r"\s*```\s*<｜tool▁call▁end｜>\s*(?:<｜tool▁calls▁end｜>)?"
    for found in re.finditer(rf"{opened}({_NAME})\s*```json", text):
        value, end = _value(text, found.end())
        if isinstance(value, dict):
            if after := re.compile(closed).match(text, end):
                end = after.end()
            yield Call(found[1], value, None, found.start(), end)


def _firefunction(text: str) -> Iterator[Call]:
    """The firefunction models: ``functools[{...}, {...}]``."""
    yield from _after(r"functools(?=\[)", text)


def _python_tag(text: str) -> Iterator[Call]:
    """Llama 3.1: ``<|python_tag|>name.call(key="value")``; other text after the tag is code."""
    mark = "<|python_tag|>"
    at = text.find(mark)
    if at < 0:
        return
    body = text[at + len(mark) :]
    value, end = _value(body, 0)
    if calls := list(_calls(value, at, at + len(mark) + end)):
        yield from calls
        return
    found = re.fullmatch(rf"\s*({_NAME})\.call\((.*)\)\s*", body, re.DOTALL)
    arguments = None if found is None else _keywords(found[2])
    if found is not None and arguments is not None:
        yield Call(found[1], arguments, None, at, len(text))
    elif body.strip():
        yield Call("python", {"code": body}, None, at, len(text))


def _keywords(source: str) -> dict[str, Any] | None:
    try:
        call = ast.parse(f"f({source})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords if k.arg is not None}
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _functionary(text: str) -> Iterator[Call]:
    """The functionary models, 3.2: ``>>>name``, JSON. The prompt has the first ``>>>``."""
    whole = text if text.startswith(">>>") else ">>>" + text
    shift = len(whole) - len(text)
    for found in re.finditer(rf">>>({_NAME})\n", whole):
        value, end = _value(whole, found.end())
        rest = whole[end:].lstrip()
        if isinstance(value, dict) and (not rest or rest.startswith(">>>")):
            yield Call(found[1], value, None, max(found.start() - shift, 0), end - shift)


def _plain(text: str) -> Iterator[Call]:
    """Llama 3: the whole answer is ``{"name": ..., "parameters": {...}}``, or several of them."""
    found: list[Call] = []
    at = 0
    while at < len(text):
        value, end = _value(text, at)
        calls = list(_calls(value, at, end))
        if not calls or not isinstance(value, dict | list):
            return
        if isinstance(value, dict) and set(value) - {"name", "parameters", "arguments", "type",
                                                     "id", "function"}:  # fmt: skip
            return
        found += calls
        at = end + len(text[end:]) - len(text[end:].lstrip(" \n\t;"))
    yield from found


#: In this order; the first that finds a call is taken.
NOTATIONS: list[Callable[[str], Iterator[Call]]] = [
    _tags,
    _parameter_tags,
    _function_tags,
    _mistral,
    _command_r,
    _deepseek,
    _firefunction,
    _python_tag,
    _functionary,
    _plain,
]
