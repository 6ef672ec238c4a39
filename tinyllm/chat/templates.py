"""Chat templates: choose one for a conversation, and render it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import wrong
from .continuation import cut_at_mark, mark_end
from .limits import ChatTemplateError
from .messages import checked_messages, other_form, plain, prepared, without_system
from .sandbox import render
from .tools import plain_tool

__all__ = [
    "TEMPLATES",
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


def render_chat(
    source: str,
    messages: Any,
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool | None = None,
    *,
    documents: Sequence[Mapping[str, Any]] | None = None,
    continue_final_message: bool | str = False,
    merge_system: bool = False,
    **variables: Any,
) -> str:
    r"""Return a conversation as text, rendered by a template.

    A template gets what `transformers` 5 gives it: keys of a message whose value is None are left
    out, and reasoning is there as ``reasoning_content`` and ``thinking``. In addition, two things
    adapt to the template:

    - A content may be a text or a list of parts. A template that writes parts as a text gets the
      text of the parts. If the last text of a user is not in the result, the template probably
      reads only the other form, and is rendered again with it.
    - The arguments of a tool call may be a mapping or JSON text. Where a template joins or writes
      them, they are JSON text. Where it reads items or writes JSON, they are a mapping.

    Parameters
    ----------
    source : str
        A Jinja2 template.
    messages : iterable of Mapping
        Each has ``"role"`` and ``"content"``. Objects of OpenAI's client are accepted too.
    tools : sequence of (dict or callable), optional
        JSON schemas, or Python functions (see `tool_schema`).
    add_generation_prompt : bool, optional
        Whether the text ends with the start of an answer. Default: unless
        `continue_final_message`.
    documents : sequence of Mapping, optional
        Documents, for templates that support them.
    continue_final_message : bool or str
        If True, the text ends with the content of the last message, whose turn stays open. A
        string is the key of another text to continue, such as ``"reasoning_content"``.
    merge_system : bool
        Whether a system message that the template leaves out or refuses is put before the text of
        the next message, as llama.cpp does.
    **variables
        Further variables of the template: ``bos_token``, ``eos_token``, ``enable_thinking`` ...

    Returns
    -------
    str

    Raises
    ------
    ChatTemplateError
        If the template is malformed, raises an exception, or takes too much time or memory. Also
        if it takes text, and a content has parts that are no text, or if the text to continue is
        not in the result.
    ImportError
        If Jinja2 is not installed; the message says what to install.
    TypeError
        If `messages` is not a list of mappings, or a variable is an argument of
        ``apply_chat_template`` of `transformers` that this function does not have.
    ValueError
        If `messages` is empty, or if an answer is to be both started and continued.

    Warns
    -----
    UserWarning
        If the template leaves out the system message, the tools or the documents.

    Examples
    --------
    >>> import jinja2  # pip install jinja2
    >>> render_chat("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    ...             [{"role": "user", "content": "Hi"}])
    'user: Hi\n'
    """
    for name, instead in _NOT_VARIABLES.items():
        if name in variables:
            raise TypeError(f"{name} is not a variable of chat templates; {instead}")
    if continue_final_message and add_generation_prompt:
        raise ValueError(
            "add_generation_prompt and continue_final_message are both given; "
            "expected an answer to be started or continued"
        )
    checked = checked_messages(messages)
    given = {
        **{name: v if callable(v) else plain(v) for name, v in variables.items()},
        "tools": None if tools is None else [plain(plain_tool(tool)) for tool in tools],
        "documents": None if documents is None else _checked_documents(documents),
        "add_generation_prompt": (
            not continue_final_message if add_generation_prompt is None else add_generation_prompt
        ),
    }
    for name in ("tools", "documents"):
        if given[name] and name not in source:
            warnings.warn(f"the chat template does not use {name}=", UserWarning, stacklevel=2)
    conversation = _Conversation(source, given, continue_final_message, time.monotonic())
    system = next((m for m in checked if m.get("role") in ("system", "developer")), None)
    try:
        text = conversation.render_either(checked)
        if system is None or conversation.depends_on(checked, system, text):
            return text
    except ChatTemplateError as refused:
        if system is None or refused.limit:
            raise
        try:
            merged = conversation.render_either(without_system(checked, system))
        except ChatTemplateError:
            raise refused from None
        if merge_system:
            return merged
        raise ChatTemplateError(
            f"{refused}; merge_system=True puts the system message before the next one"
        ) from refused
    if merge_system:
        return conversation.render_either(without_system(checked, system))
    warnings.warn(
        "the chat template leaves out the system message; merge_system=True puts it before the "
        "next one",
        UserWarning,
        stacklevel=2,
    )
    return text


#: Arguments of ``apply_chat_template`` of `transformers` that are not variables of a template.
_NOT_VARIABLES = {
    "conversation": "pass the conversation as messages",
    "chat_template": "pass it as template=",
    "tokenize": "use render_chat for text and encode_chat for ids",
    "sanitize_control_tokens": "use encode_chat(parse_content=False)",
    **dict.fromkeys(
        ("padding", "truncation", "max_length", "return_tensors", "return_dict",
         "return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs"),
        "see Tokenizer.apply_chat_template",
    ),
}  # fmt: skip


def _checked_documents(documents: Sequence[Any]) -> list[Any]:
    found = [plain(document) for document in documents]
    for i, document in enumerate(found):
        if not isinstance(document, dict):
            raise TypeError(f"documents[{i}] is {documents[i]!r}; expected a mapping")
    return found


class _Conversation(NamedTuple):
    """A template with its variables, and what is to be continued."""

    source: str
    variables: Mapping[str, Any]
    continued: bool | str
    start: float  # all renders together take no longer than one may

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the text of messages of `checked_messages`."""
        known = [prepared(message) for message in messages]
        values = {**self.variables, "messages": known}
        if not self.continued:
            return render(self.source, values, self.start)
        field = self.continued if isinstance(self.continued, str) else "content"
        mark, known[-1] = mark_end(known[-1], field, self.source)
        return cut_at_mark(render(self.source, values, self.start), mark)

    def render_either(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the text, with the contents in the form that the template reads."""
        text, error = "", None
        try:
            text = self.render(messages)
        except ChatTemplateError as first:
            if first.limit:
                raise
            error = first
        user = [m for m in messages if m.get("role") == "user" and m.get("content")]
        if error is None and (not user or _shows(text, user[-1]["content"])):
            return text
        others = other_form(messages) if user else None
        if others is not None:
            try:
                other = self.render(others)
            except ChatTemplateError:
                other = ""
            if _shows(other, user[-1]["content"]):
                return other
        if error is not None:
            raise error
        return text

    def depends_on(
        self, messages: Sequence[Mapping[str, Any]], message: Mapping[str, Any], text: str
    ) -> bool:
        """Whether the text of messages depends on the content of one of them."""
        content = message.get("content")
        if not content or _shows(text, content):
            return True
        changed = [
            {**m, "content": "\N{WHITE SQUARE}" if m is message else m.get("content")}
            for m in messages
        ]
        try:
            return self.render_either(changed) != text
        except ChatTemplateError:
            return True


def _shows(text: str, content: Any) -> bool:
    """Whether all the text of a content is in a text."""
    pieces = [content] if isinstance(content, str) else content
    for piece in pieces:
        piece = piece.get("text") if isinstance(piece, Mapping) else piece
        if isinstance(piece, str) and piece.strip() not in text:
            return False
    return True
