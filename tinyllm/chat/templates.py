"""Chat templates: choose one for a conversation, and render it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import wrong
from .sandbox import ChatTemplateError, render
from .tools import plain_tool

__all__ = [
    "TEMPLATES",
    "checked_messages",
    "choose_template",
    "file_templates",
    "render_chat",
    "stop_strings",
]

_KEY = "tokenizer.chat_template"


class _Builtin(NamedTuple):
    """A template for files that have none, and the strings that end an answer."""

    source: str
    stop: tuple[str, ...]


#: Templates for files that have none. ``"chatml"`` is for models that were trained on ChatML
#: (https://github.com/openai/openai-python/blob/v0.28.1/chatml.md), ``"plain"`` for models that
#: were not trained to chat: each message is a paragraph under the name of its role.
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
    """Return the chat templates of a file by name; the unnamed one is ``"default"``.

    Parameters
    ----------
    metadata : Mapping
        The metadata of a GGUF file.

    Returns
    -------
    dict of str to str

    Raises
    ------
    tinyllm.FormatError
        If one is not a string.

    Examples
    --------
    >>> file_templates({"tokenizer.chat_template": "{{ 1 }}", "tokenizer.chat_template.rag": "{}"})
    {'default': '{{ 1 }}', 'rag': '{}'}
    """
    named: dict[str, str] = {}
    for key in metadata:
        if key == _KEY or key.startswith(_KEY + "."):
            source = metadata[key]
            if not isinstance(source, str):
                raise wrong(key, source, "a string", shown=f"{source!r:.80}")
            named["default" if key == _KEY else key.removeprefix(_KEY + ".")] = source
    return named


def choose_template(
    named: Mapping[str, str], template: str | None = None, tools: bool = False
) -> str:
    """Return the source of the template to use.

    Parameters
    ----------
    named : Mapping of str to str
        The templates of the file; see `file_templates`.
    template : str, optional
        The name of a template of the file or of `TEMPLATES`, or Jinja2 source, which contains a
        ``{``. None: the file's template ``tool_use`` if tools are given, else its default
        template, else its only template.
    tools : bool
        Whether tools are given.

    Returns
    -------
    str

    Raises
    ------
    ChatTemplateError
        If there is no such template; the message names the available ones.

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
            "template is None, and the file has no default chat template; "
            f"expected one of {sorted(named)}"
        )
    raise ChatTemplateError(
        "the file has no chat template; pass one as template=: Jinja2 source, or a built-in name "
        f"({', '.join(sorted(TEMPLATES))})"
    )


def stop_strings(named: Mapping[str, str], template: str | None) -> tuple[str, ...]:
    """Return the strings that end an answer, in addition to the model's end tokens.

    Only `TEMPLATES` have such strings. A template of the file uses the model's end tokens.

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
    """Return the messages, after a check that they are mappings.

    Parameters
    ----------
    messages : object
        The value to check.

    Returns
    -------
    sequence of Mapping

    Raises
    ------
    TypeError
        If `messages` is not a list of mappings.

    Examples
    --------
    >>> checked_messages([{"role": "user"}])
    [{'role': 'user'}]
    """
    if isinstance(messages, str | bytes | Mapping):
        raise TypeError(f"messages is {type(messages).__name__}; expected a list of messages")
    messages = list(messages)
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(
                f"messages[{i}] is {message!r}; expected a mapping with role and content"
            )
    found: Sequence[Mapping[str, Any]] = messages
    return found


def render_chat(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    r"""Return a conversation as text, rendered by a template.

    Parameters
    ----------
    source : str
        A Jinja2 template.
    messages : sequence of Mapping
        Each has ``"role"`` and ``"content"``. The arguments of a tool call may be a JSON string,
        as OpenAI's clients send them; the template gets the parsed object.
    tools : sequence of (dict or callable), optional
        JSON schemas, or Python functions (see `tool_schema`).
    add_generation_prompt : bool
        Whether the text ends with the start of an answer.
    **variables
        Further variables of the template: ``bos_token``, ``eos_token``, ``documents`` ...

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
    messages = checked_messages(messages)
    return render(
        source,
        {
            "messages": [_plain_message(message) for message in messages],
            "tools": None if tools is None else [plain_tool(tool) for tool in tools],
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **variables,
        },
    )


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
