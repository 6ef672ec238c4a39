"""The methods of `Tokenizer` that turn conversations into text and ids."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .special import Partition
from .vocab import Vocab

__all__ = ["Conversations"]


class Conversations:
    """The methods of a tokenizer for conversations.

    Attributes
    ----------
    bos, eos : int or None
    add_bos : bool
        As in `Tokenizer`.

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.load("demo").tokenizer.chat_templates
    {}
    """

    bos: int | None
    eos: int | None
    add_bos: bool
    encode_fragments: Callable[..., list[int]]
    _metadata: Mapping[str, Any]
    _partition: Partition
    _vocab: Vocab

    @functools.cached_property
    def chat_templates(self) -> Mapping[str, str]:
        """The file's chat templates by name; the unnamed one is ``"default"``."""
        from ..chat import file_templates

        return file_templates(self._metadata)

    def render_chat(
        self,
        messages: Any,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool | None = None,
        template: str | None = None,
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | str = False,
        merge_system: bool = False,
        **variables: Any,
    ) -> str:
        """Return a conversation as text, rendered by the file's chat template.

        Parameters
        ----------
        messages : iterable of Mapping
            ``{"role": "user", "content": "..."}`` and so on.
        tools : sequence of (dict or callable), optional
            JSON schemas or annotated Python functions.
        add_generation_prompt : bool, optional
            Whether the text ends with the start of an answer. Default: unless
            `continue_final_message`.
        template : str, optional
            The name of a template of the file or of `tinyllm.chat.TEMPLATES`, or Jinja2 source.
            None: the file's template ``tool_use`` if tools are given, else its default template.
        documents, continue_final_message, merge_system
            As for `tinyllm.chat.render_chat`.
        **variables
            Further variables of the template. ``bos_token`` and ``eos_token`` are already set.

        Returns
        -------
        str

        Raises
        ------
        tinyllm.chat.ChatTemplateError
            If there is no such template, it fails, or it takes too much time or memory.
        ImportError
            If Jinja2 is not installed.
        TypeError, ValueError
            If an argument is wrong; see `tinyllm.chat.render_chat`.

        Examples
        --------
        >>> import tinyllm as tl  # pip install jinja2
        >>> tl.load("demo").tokenizer.render_chat(
        ...     [{"role": "user", "content": "Hi"}], template="{{ messages[0].content }}!")
        'Hi!'
        """
        from ..chat import choose_template, render_chat

        source = choose_template(self.chat_templates, template, bool(tools))
        texts = self._vocab.texts
        known = {
            "bos_token": "" if self.bos is None else texts[self.bos],
            "eos_token": "" if self.eos is None else texts[self.eos],
        }
        return render_chat(
            source,
            messages,
            tools,
            add_generation_prompt,
            documents=documents,
            continue_final_message=continue_final_message,
            merge_system=merge_system,
            **{**known, **variables},
        )

    def encode_chat(
        self,
        messages: Any,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool | None = None,
        template: str | None = None,
        parse_content: bool = True,
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | str = False,
        merge_system: bool = False,
        **variables: Any,
    ) -> list[int]:
        """Return the ids of a conversation, rendered by the file's chat template.

        Special tokens that the template writes are parsed. The BOS token is added if the model
        asks for one and the template has not written it. No other token is added.

        Parameters
        ----------
        messages, tools, add_generation_prompt, template
            As in `render_chat`.
        documents, continue_final_message, merge_system
            As in `render_chat`.
        parse_content : bool
            Whether special tokens in `messages`, `tools` and `documents` are parsed too, as
            Hugging Face does: a user who writes ``<|im_end|>`` then ends the turn. False: they are
            plain text. In this case a template that looks for one (such as ``</think>``) does not
            find it. A special token that the template itself makes, for example by joining two
            messages, is still parsed.
        **variables
            As in `render_chat`.

        Returns
        -------
        list of int

        Raises
        ------
        tinyllm.chat.ChatTemplateError, ImportError, TypeError, ValueError
            As in `render_chat`.

        Examples
        --------
        >>> import tinyllm as tl  # pip install jinja2
        >>> tokenizer = tl.load("demo").tokenizer
        >>> messages = [{"role": "user", "content": "Hi"}]
        >>> ids = tokenizer.encode_chat(messages, template="{{ messages[0].content }}!")
        >>> tokenizer.decode(ids, skip_special=True)
        'Hi!'
        """
        from ..chat import encode_chat

        options = {
            "documents": documents,
            "continue_final_message": continue_final_message,
            "merge_system": merge_system,
            **variables,
        }
        text, cover = self._covered(
            messages, tools, add_generation_prompt, template, parse_content, options
        )
        return encode_chat(self, text, cover)

    def _covered(
        self,
        messages: Any,
        tools: Sequence[Any] | None,
        add_generation_prompt: bool | None,
        template: str | None,
        parse_content: bool,
        options: Mapping[str, Any],
    ) -> tuple[str, Any]:
        """Return a rendered conversation, and the cover of the special tokens in it."""
        from ..chat import Cover, checked_messages, choose_template, plain_tool

        cover = None
        if not parse_content:
            source = choose_template(self.chat_templates, template, bool(tools))
            messages = checked_messages(messages)
            tools = None if tools is None else [plain_tool(tool) for tool in tools]
            cover = Cover(self._partition.spellings, messages, tools, source, options)
            messages, tools = cover.hide(messages), cover.hide(tools)
            options = {**options, "documents": cover.hide(options["documents"])}
        text = self.render_chat(messages, tools, add_generation_prompt, template, **options)
        return text, cover

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        *,
        sanitize_control_tokens: bool = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        **variables: Any,
    ) -> Any:
        r"""Return a conversation as `transformers` 5 does; the arguments have its names.

        `render_chat` and `encode_chat` do the same in the words of tinyllm. As in `transformers`,
        no BOS token is added to what the template writes.

        Parameters
        ----------
        conversation : iterable of Mapping, or a list of them
            A conversation, or several: then there is a list of each result.
        tools, documents, continue_final_message
            As in `render_chat`.
        chat_template : str, optional
            As `template` of `render_chat`.
        add_generation_prompt : bool
            Whether the text ends with the start of an answer. By default it does not.
        tokenize : bool
            Whether to return ids. False: text.
        sanitize_control_tokens : bool
            If True, special tokens in messages, tools and documents are plain text: see
            `encode_chat`.
        truncation : bool
            Whether to keep only the first `max_length` ids.
        max_length : int, optional
            The largest number of ids, with ``truncation=True``.
        return_tensors : str, optional
            ``"np"``: ids as an array of int64 with a row for the conversation.
        return_dict : bool
            Whether ids are returned in a dict, as ``input_ids`` beside ``attention_mask``.
        **variables
            Further variables of the template. `padding`, `return_assistant_tokens_mask` and
            `tokenizer_kwargs` are accepted if they ask for nothing.

        Returns
        -------
        dict, list of int, numpy.ndarray or str

        Raises
        ------
        tinyllm.UnsupportedError
            If an argument of `transformers` asks for something that tinyllm does not do.
        tinyllm.chat.ChatTemplateError, ImportError, TypeError, ValueError
            As in `render_chat`.

        Examples
        --------
        >>> import tinyllm as tl  # pip install jinja2
        >>> tokenizer = tl.load("demo").tokenizer
        >>> tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False,
        ...                               chat_template="chatml", add_generation_prompt=True)
        '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
        """
        from ..chat.hugging_face import HuggingFaceCall, only_variables

        call = HuggingFaceCall(
            sanitize_control_tokens, truncation, max_length, return_tensors, return_dict
        )
        options = {
            "documents": documents,
            "continue_final_message": continue_final_message,
            **only_variables(variables),
        }

        def rendered(talk: Any, parse_content: bool = True) -> tuple[str, Any]:
            return self._covered(
                talk, tools, add_generation_prompt, chat_template, parse_content, options
            )

        def encoded(talk: Any) -> list[int]:
            text, cover = rendered(talk, not sanitize_control_tokens)
            return self.encode_fragments(text, True, None if cover is None else cover.uncover)

        if not tokenize:
            return call.text(lambda talk: rendered(talk)[0], conversation)
        return call.ids(encoded, conversation)
