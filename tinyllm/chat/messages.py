"""The messages of a conversation, as clients send them and as templates read them.

Clients send two things in two forms each, and templates are written for one of them:

- the content of a message: a text, or a list of parts such as ``{"type": "text", "text": "Hi"}``;
- the arguments of a tool call: a mapping, or its JSON text.

So the templates get values that answer as both, `TextParts`, `ArgumentText` and `ArgumentMap`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .limits import ChatTemplateError

__all__ = [
    "ArgumentMap",
    "ArgumentText",
    "TextParts",
    "checked_messages",
    "other_form",
    "plain",
    "prepared",
    "without_system",
]

#: Names of the text that a model thinks before it answers. Templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class _Printed:
    """A container that is written as a text, not as Python's repr."""

    def __str__(self) -> str:
        raise NotImplementedError

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __add__(self, other: Any) -> Any:
        return str(self) + other if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return other + str(self) if isinstance(other, str) else NotImplemented


class TextParts(_Printed, list[Any]):
    """A content in parts, which is written as the text of its parts.

    Examples
    --------
    >>> parts = TextParts([{"type": "text", "text": "Good "}, {"type": "text", "text": "day"}])
    >>> str(parts), "<" + parts, "day" in parts, len(parts)
    ('Good day', '<Good day', True, 2)
    """

    __hash__ = None

    def __str__(self) -> str:
        text = _joined(self)
        if text is None:
            kinds = [p.get("type") if isinstance(p, Mapping) else type(p).__name__ for p in self]
            raise ChatTemplateError(
                f"the content of a message has parts of the types {kinds}, but the chat template "
                "takes a text; expected parts of the type 'text' only"
            )
        return text

    def __add__(self, other: Any) -> Any:
        return str(self) + other if isinstance(other, str) else list(self) + other

    def __contains__(self, item: object) -> bool:
        return item in str(self) if isinstance(item, str) else super().__contains__(item)

    def __eq__(self, other: object) -> bool:
        return str(self) == other if isinstance(other, str) else super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other


class ArgumentMap(_Printed, dict[str, Any]):
    """The arguments of a call, given as a mapping; they are written as JSON.

    Examples
    --------
    >>> arguments = ArgumentMap({"city": "Bern"})
    >>> "call " + arguments, arguments["city"]
    ('call {"city": "Bern"}', 'Bern')
    """

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False)


class ArgumentText(str):
    """The arguments of a call, given as JSON text, which templates can also read as a mapping.

    Examples
    --------
    >>> arguments = ArgumentText('{"city": "Bern"}')
    >>> arguments + "!", list(arguments), ArgumentText("no JSON")._mapping is None
    ('{"city": "Bern"}!', ['city'], True)
    """

    _mapping: dict[str, Any] | None

    def __new__(cls, text: str) -> ArgumentText:
        """Return the text, with the mapping if it is a JSON object."""
        self = super().__new__(cls, text)
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            parsed = None
        self._mapping = parsed if isinstance(parsed, dict) else None
        return self

    def __iter__(self) -> Any:
        """Iterate over the names of the arguments, as templates do in loops."""
        return super().__iter__() if self._mapping is None else iter(self._mapping)


def _joined(parts: Sequence[Any]) -> str | None:
    """Return the text of a content in parts; None if a part is no text."""
    texts = []
    for part in parts:
        if isinstance(part, Mapping) and part.get("type", "text") == "text":
            part = part.get("text")
        if not isinstance(part, str):
            return None
        texts.append(part)
    return "".join(texts)


def plain(value: Any) -> Any:
    """Return a value of JSON types only, as a template may get it.

    Objects of clients become mappings: dataclasses, and those that have ``model_dump`` (Pydantic).
    NumPy's scalars become Python's. Any other object becomes a text with the name of its type:
    its methods might do anything.

    Examples
    --------
    >>> plain({"a": (1, object())})
    {'a': (1, '<object>')}
    """
    kind = type(value)
    if value is None or kind in (str, int, float, bool):
        return value
    if kind is dict:  # the usual kinds first
        return {plain(key): plain(item) for key, item in value.items()}
    if kind is list:
        return [plain(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return plain(value.model_dump())
    return f"<{kind.__name__}>"


def checked_messages(messages: Any) -> list[dict[str, Any]]:
    """Return the messages as dicts of JSON types, after a check.

    Parameters
    ----------
    messages : iterable of Mapping
        Dataclasses and Pydantic's models are accepted too.

    Returns
    -------
    list of dict

    Raises
    ------
    TypeError
        If `messages` is not a list of mappings.
    ValueError
        If it is empty.

    Examples
    --------
    >>> checked_messages([{"role": "user"}])
    [{'role': 'user'}]
    """
    messages = getattr(messages, "messages", messages)
    if isinstance(messages, str | bytes | Mapping) or not hasattr(messages, "__iter__"):
        raise TypeError(f"messages is {type(messages).__name__}; expected a list of messages")
    found = []
    for i, message in enumerate(messages):
        known = None if isinstance(message, str | bytes | list | tuple) else plain(message)
        if not isinstance(known, dict):
            raise TypeError(
                f"messages[{i}] is {message!r}; expected a mapping with role and content"
            )
        found.append(known)
    if not found:
        raise ValueError("messages is empty; expected at least one message")
    return found


def prepared(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message of `checked_messages` as a template gets it.

    A key whose value is None is left out: to a template that writes the content without a test,
    None would be the text "None". The reasoning is there under each name that templates read.

    Examples
    --------
    >>> prepared({"role": "assistant", "thinking": "Hm", "content": None})
    {'thinking': 'Hm', 'role': 'assistant', 'reasoning_content': 'Hm'}
    """
    known = {key: value for key, value in message.items() if value is not None}
    reasoning = next((known[name] for name in _REASONING if name in known), None)
    if reasoning is not None:
        known = {"thinking": reasoning, **known, "reasoning_content": reasoning}
    if isinstance(known.get("content"), list | tuple):
        known["content"] = TextParts(known["content"])
    if isinstance(known.get("tool_calls"), list | tuple):
        known["tool_calls"] = [_prepared_call(call) for call in known["tool_calls"]]
    if isinstance(known.get("function_call"), Mapping):
        known["function_call"] = _prepared_call(known["function_call"])
    return known


def _prepared_call(call: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    call = dict(call)
    if isinstance(call.get("function"), Mapping):
        call["function"] = _prepared_call(call["function"])
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        call["arguments"] = ArgumentText(arguments)
    elif isinstance(arguments, Mapping):
        call["arguments"] = ArgumentMap(arguments)
    return call


def other_form(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Return messages with each content in its other form: parts as text, or texts as parts.

    None if a content has no other form. If any content is in parts, all become texts.

    Examples
    --------
    >>> other_form([{"content": "Hi"}])
    [{'content': [{'type': 'text', 'text': 'Hi'}]}]
    """
    in_parts = any(isinstance(m.get("content"), list | tuple) for m in messages)
    found = []
    for message in messages:
        content = message.get("content")
        if in_parts and isinstance(content, list | tuple):
            content = _joined(content)
            if content is None:
                return None
        elif not in_parts and isinstance(content, str):
            content = [{"type": "text", "text": content}]
        found.append({**message, "content": content})
    return found


def without_system(
    messages: Sequence[Mapping[str, Any]], system: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    r"""Return messages without a system message, whose text begins the next message instead.

    Examples
    --------
    >>> talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    >>> without_system(talk, talk[0])
    [{'role': 'user', 'content': 'Be kind.\nHi'}]
    """
    at = next(i for i, message in enumerate(messages) if message is system)
    before, rest = messages[:at], messages[at + 1 :]
    if not rest:
        return [*before, {**system, "role": "user"}]
    content, added = rest[0].get("content"), system.get("content")
    if isinstance(content, str) and isinstance(added, str):
        joined: Any = f"{added}\n{content}"
    else:
        joined = [*_as_parts(added, "\n"), *_as_parts(content)]
    return [*before, {**rest[0], "content": joined}, *rest[1:]]


def _as_parts(content: Any, end: str = "") -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content + end}]
    return [*(content or ()), *([{"type": "text", "text": end}] if end else [])]
