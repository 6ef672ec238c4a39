"""The call ``apply_chat_template`` of `transformers`, with the results that it has there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UnsupportedError

__all__ = ["HuggingFaceCall", "only_variables"]


@dataclasses.dataclass(frozen=True)
class HuggingFaceCall:
    """What a call of ``apply_chat_template`` returns; see `Tokenizer.apply_chat_template`.

    Attributes
    ----------
    sanitize_control_tokens, truncation : bool
    max_length : int, optional
    return_tensors : str, optional
    return_dict : bool

    Examples
    --------
    >>> call = HuggingFaceCall(truncation=True, max_length=2)
    >>> call.ids(lambda talk: [1, 5, 9], [{"role": "user", "content": "Hi"}])
    {'input_ids': [1, 5], 'attention_mask': [1, 1]}
    """

    sanitize_control_tokens: bool = False
    truncation: bool = False
    max_length: int | None = None
    return_tensors: str | None = None
    return_dict: bool = True

    def text(self, render: Callable[[Any], str], conversation: Any) -> Any:
        """Return the text of a conversation, or of each of several."""
        if _several(conversation):
            return [render(talk) for talk in conversation]
        return render(conversation)

    def ids(self, encode: Callable[[Any], list[int]], conversation: Any) -> Any:
        """Return the ids of a conversation, or of each of several."""
        if self.return_tensors not in (None, "np"):
            raise UnsupportedError(
                f"return_tensors is {self.return_tensors!r}; expected None or 'np'"
            )
        if self.truncation and self.max_length is None:
            raise ValueError("truncation is True, but max_length is None; expected an integer")
        several = _several(conversation)
        talks: Sequence[Any] = conversation if several else [conversation]
        rows = [encode(talk) for talk in talks]
        if self.truncation:
            rows = [row[: self.max_length] for row in rows]
        if self.return_tensors is None:
            ids, mask = rows, [[1] * len(row) for row in rows]
            return self._named(ids, mask) if several else self._named(ids[0], mask[0])
        if len({len(row) for row in rows}) > 1:
            raise UnsupportedError(
                f"return_tensors is 'np', and the conversations have {[len(r) for r in rows]} ids; "
                "expected the same number, because tinyllm does not pad"
            )
        array = np.array(rows, np.int64)
        return self._named(array, np.ones_like(array))

    def _named(self, ids: Any, mask: Any) -> Any:
        return {"input_ids": ids, "attention_mask": mask} if self.return_dict else ids


def _several(conversation: Any) -> bool:
    return isinstance(conversation, list | tuple) and any(
        isinstance(item, list | tuple) or hasattr(item, "messages") for item in conversation
    )


def only_variables(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of a template among other arguments; raise if one is not supported.

    Examples
    --------
    >>> only_variables({"padding": False, "enable_thinking": True})
    {'enable_thinking': True}
    """
    for name, neutral in _NOT_DONE.items():
        if options.get(name) not in neutral:
            raise UnsupportedError(
                f"{name} is {options[name]!r}; apply_chat_template of tinyllm does not support it"
            )
    return {name: value for name, value in options.items() if name not in _NOT_DONE}


#: Arguments that are not supported, with the values that ask for nothing.
_NOT_DONE: dict[str, tuple[Any, ...]] = {
    "padding": (None, False, "do_not_pad"),
    "return_assistant_tokens_mask": (None, False),
    "tokenizer_kwargs": (None, {}),
    "processor_kwargs": (None, {}),
}
