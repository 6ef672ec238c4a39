"""Prompts that end inside the last message, for an answer that is to be continued.

A template closes the last turn. So the text to continue gets a mark at its end, and what the
template writes from the mark on is cut off, as in `transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .limits import ChatTemplateError
from .messages import TextParts

__all__ = ["cut_at_mark", "mark_end"]

#: Names under which a template may read the same text.
_ALIASES = ("reasoning_content", "thinking", "reasoning")


def mark_end(message: Mapping[str, Any], field: str, source: str) -> tuple[str, dict[str, Any]]:
    """Return a mark, and the message with the mark at the end of one of its texts.

    Parameters
    ----------
    message : Mapping
        The last message, of `prepared`.
    field : str
        The key of the text.
    source : str
        The template.

    Returns
    -------
    mark : str
        The text to continue, and the mark after it. The two together are what `cut_at_mark` takes.
    message : dict

    Raises
    ------
    ChatTemplateError
        If there is no text to continue, or if the template does not read it.

    Examples
    --------
    >>> mark, message = mark_end({"content": "Once"}, "content", "{{ messages[-1].content }}")
    >>> cut_at_mark("<assistant>" + message["content"] + "</assistant>", mark)
    '<assistant>Once'
    """
    text = message.get(field)
    fields = [name for name in _ALIASES if message.get(name) == text] if field in _ALIASES else []
    if isinstance(text, list):
        texts = [i for i, part in enumerate(text) if isinstance(part, Mapping) and "text" in part]
        text = text[texts[-1]]["text"] if texts else None
    if not isinstance(text, str):
        raise ChatTemplateError(
            f"continue_final_message is given, but the last message has no text {field!r}; "
            f"expected one; its keys are {sorted(message)}"
        )
    if not any(name in source for name in fields or [field]):
        raise ChatTemplateError(
            f"continue_final_message is given, but the chat template does not use {field!r}"
        )
    character = next(c for c in map(chr, range(0x10FFFD, 0x100000, -1)) if c not in text)
    marked = dict(message)
    content = message[field]
    if isinstance(content, list):
        parts = TextParts(content)
        parts[texts[-1]] = {**parts[texts[-1]], "text": f"{text}{character} "}
        marked[field] = parts
    else:
        marked.update(dict.fromkeys(fields or [field], f"{text}{character} "))
    return f"{text}{character}", marked


def cut_at_mark(text: str, mark: str) -> str:
    r"""Return the beginning of a rendered text, up to the mark.

    Parameters
    ----------
    text : str
        What the template wrote.
    mark : str
        The mark of `mark_end`.

    Returns
    -------
    str

    Raises
    ------
    ChatTemplateError
        If the text to continue is not there, because the template leaves it out or changes it.

    Examples
    --------
    >>> cut_at_mark("[Once\U0010fffd ]", "Once\U0010fffd")
    '[Once'
    """
    wanted, character = mark[:-1], mark[-1]
    at = text.rfind(character)
    if at < 0 or wanted.strip() not in text:
        raise ChatTemplateError(
            "continue_final_message is given, but the chat template leaves out or changes the text "
            f"to continue, {wanted.strip()[:200]!r}"
        )
    # the space after the mark shows whether the template keeps white space at the end
    return text[:at] if text[at + 1 : at + 2] == " " else text[:at].rstrip()
