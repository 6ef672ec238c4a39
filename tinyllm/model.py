"""`Model`: the public interface for running models."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

import numpy as np

from .analysis.gradients import Differentiable
from .base.samples import sample_weights
from .base.units import size
from .base.words import bound, getattr_of
from .display.table import Table
from .display.weights import weights_html
from .embedding.embed import embed
from .runtime.decoder import decoder
from .runtime.prompt import Prompt
from .runtime.session import Session
from .trace.taps import Capture

if TYPE_CHECKING:
    from .display.page import Page
    from .evaluation.scoring import Perplexity
    from .generation.drafts import Draft
    from .generation.result import Generation
    from .generation.stream import GenerationStream
    from .grammar.grammar import Grammar
    from .sampling.keywords import SamplerKeywords
    from .sampling.sampler import Sampler
    from .trace.trace import Trace

__all__ = ["Model"]


class Model(Differentiable):
    """A model that `load` opened.

    A model is immutable, and threads can share it. Each call has its own session.

    Attributes
    ----------
    config : Config
        The numbers that define the model.
    steps : ForwardPlan
        Every step of the forward pass, with its inputs, its weights, and its numbers and their
        sources. It prints as a table.
    weights : mapping of str to Weight
        The tensors of the file by name, in file order.
    metadata : mapping
        The metadata of the file.
    tokenizer : Tokenizer or None
        The tokenizer. Without one, prompts must be token ids.
    threads : int
        Largest number of threads.
    mode : str
        ``"exact"`` or ``"fast"``, as in `load`.
    cache : str
        ``"f32"``, ``"f16"`` or ``"q8"``, as in `load`.
    device : _core.Device or None
        The device that steps run on, with its name and level. None: the CPU.
    device_layers : int or None
        As in `load`.
    path : str or None
        The path of the file. None if the model was loaded from bytes.
    adapters : tuple of (Adapter, float)
        The LoRA adapters and their scales: see `with_adapter`. Their tensors are in `weights`.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> model.logits("ROMEO:").shape[1] == model.config.vocab_size
    True
    """

    def session(self, path: str | os.PathLike[str] | None = None) -> Session:
        """Return a new session, empty or from a file.

        Parameters
        ----------
        path : str or os.PathLike, optional
            A file that `Session.save` wrote.

        Returns
        -------
        Session

        Raises
        ------
        tinyllm.FormatError
            If the file is not a session of this model, or is damaged.
        OSError
            If the file cannot be read.

        Examples
        --------
        >>> import tinyllm as tl
        >>> session = tl.load().session()
        >>> session.eval([1, 2, 3]).shape == (tl.load().config.vocab_size,)
        True
        """
        return Session(self) if path is None else Session.load(self, path)

    def decoder(self, source: Any, *, edits: Any = (), parse_special: bool = False) -> Model:
        """Return the decoder of an encoder-decoder model, such as T5, for one source.

        Such a model is its encoder: `trace`, `hidden_states` and `embed` show what it makes of a
        text. The decoder is a model of its own, which attends to the source. Everything works with
        it: `generate`, `logits`, `trace`, sessions, gradients. ``generate(source)`` of the encoder
        is short for ``decoder(source).generate("")``.

        Parameters
        ----------
        source : str, bytes or ids
            What the encoder reads.
        edits : Edit or sequence of Edit
            Changes of the encoder's inner values, as for `trace`. Those of
            ``dec.blk.N.cross_attn_k`` and ``dec.blk.N.cross_attn_v`` change what block N of the
            decoder attends to.
        parse_special : bool
            As for `trace`.

        Returns
        -------
        Model
            Its texts begin with the start token that the file states. Prompts of ids must begin
            with it. The weights ``source.N.keys`` (H, S, Dh) and ``source.N.values`` (H, Dv, S) are
            what the encoder made of the S tokens.

        Raises
        ------
        ValueError
            If the model has no such decoder, or the source cannot run.
        tinyllm.UnsupportedError
            If the model has LoRA adapters. A decoder can get one: `with_adapter`.

        Examples
        --------
        >>> import tinyllm as tl
        >>> tl.load().decoder("Good night")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: the architecture llama has no decoder that reads a source...
        """
        return decoder(self, source, edits, parse_special)

    def generate(
        self,
        prompt: Any,
        max_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        seed: Any = None,
        *,
        sampler: Sampler | None = None,
        grammar: Grammar | None = None,
        stop: Any = (),
        stop_ids: Any = (),
        min_tokens: int = 0,
        logprobs: int | None = None,
        capture: Capture = None,
        edits: Any = (),
        timeout: float | None = None,
        context: str = "stop",
        parse_special: bool = False,
        draft: Draft = None,
        n: int | None = None,
        **samplers: Unpack[SamplerKeywords],
    ) -> Any:
        """Generate a continuation of a prompt, or of each prompt in a batch.

        Parameters
        ----------
        prompt : str, bytes, ids, or a list of them
            A list of texts, lists or arrays is a batch, as in `trace`. The prompts of a batch run
            together without padding, and each has the result that it would have alone. For a model
            such as T5 the prompt is the source of `decoder`, one at a time.
        max_tokens : int, optional
            Largest number of new tokens. Default: generate until the model ends the text or the
            context is full.
        temperature : float
            0 always takes the most likely token.
        top_k, top_p : int, float
            Draw from the `top_k` most likely tokens (0 or less: all, as in llama.cpp), and of
            these from the smallest set whose probabilities add up to at least `top_p`, 0 to 1.
        seed : int, or list of int, optional
            The same seed gives the same text on every machine and with any number of threads. One
            int is the seed of every prompt in a batch. By default, each prompt gets a random
            seed, which is in its result.
        sampler : Sampler, optional
            Replaces `temperature`, `top_k`, `top_p` and `seed`, which must not be given then.
        grammar : Grammar, optional
            The text must be accepted by this grammar. Only tokens that fit can be drawn, and the
            text can end only where it is complete. `max_tokens`, a stop string or the end of the
            context can still cut it off: see `Generation.complete`.
        stop : str or sequence of str
            The text ends before the first occurrence of one of these strings, even if it begins
            or ends inside a token.
        stop_ids : int or sequence of int
            Token ids that end the text, in addition to those of the model.
        min_tokens : int
            Smallest number of tokens before the model or `stop_ids` can end the text. At most
            `max_tokens`.
        logprobs : int, optional
            Keep the log-probability of each token, and of this many most likely alternatives, at
            most the size of the vocabulary.
        capture : str, re.Pattern, callable, or sequence of str and re.Pattern, optional
            The taps to capture. `Generation.traces` has one trace per step; the first is that of
            the whole prompt. Default: none.
        edits : Edit or sequence of Edit
            Changes of inner values, as in `trace`. Each step applies the edits of its positions.
            ``at=-1`` is the last token of every step.
        timeout : float, optional
            Seconds after which the text ends, with what there is. The wait for a long prompt is
            cut off, too.
        context : str
            What happens when the context is full. ``"stop"``: the text ends, and a longer prompt
            is an error. ``"shift"``: the oldest tokens are dropped, half of the context at a time,
            except a BOS at the beginning. The others run again at their new positions, so their
            bits differ from those in a longer context, and positions in `edits` and `capture`
            begin anew. Give `max_tokens` then.
        parse_special : bool
            Whether the text of a special token in the prompt, such as ``"<|im_start|>"``, becomes
            that token, as in `trace`.
        draft : str or Model, optional
            Guess the next tokens and check several in one call, which takes less time than several
            calls. Only a token that would have been drawn anyway is taken, so nothing in the result
            changes but `Generation.timings`. ``"lookup"`` guesses that the text repeats a part of
            the prompt or of itself. A model guesses with the same samplers and seed; it must have
            the same vocabulary. How many tokens are guessed adapts to what is right and to the time
            of a call. With `edits` nothing is guessed, because an edit sees the tokens of a step.
        n : int, optional
            Generate n continuations of each prompt, which runs once. Number i, from 0, is what the
            seed ``(seed + i) % 2**64`` alone gives.
        **samplers
            Further samplers by name, such as ``min_p=0.05`` or ``dry={"multiplier": 0.8}``:
            `logit_bias`, `allowed`, `banned`, `repeat_penalty`, `frequency_penalty`,
            `presence_penalty`, `dry`, `dynamic_temperature`, `min_p`, `typical`, `top_n_sigma`,
            `xtc`, `forced`, `mirostat`, `mirostat_v2`. They run in this order, with `temperature`,
            `top_k` and `top_p` after `dry`. `dynamic_temperature` replaces the default of
            `temperature`, and both kinds of mirostat replace those of `top_k` and `top_p`.

        Returns
        -------
        Generation, or list of Generation for a batch
            With `n`, a list of n instead of each Generation.

        Raises
        ------
        ValueError
            If the prompt cannot run, or an argument is out of range. Also if `draft` has another
            vocabulary (the message names the first token that differs), or if one of the models is
            recurrent.
        tinyllm.Error
            If the vocabulary has no token that the grammar allows.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> g = model.generate("ROMEO:", max_tokens=5, seed=1)
        >>> len(g.ids), g.stop_reason
        (5, 'length')
        >>> g.text == model.generate("ROMEO:", max_tokens=5, seed=1).text
        True
        >>> model.generate("Rich or poor? ", grammar=tl.Grammar.regex("rich|poor"), seed=1).complete
        True
        >>> len(model.generate("ROMEO:", 5, min_p=0.1, repeat_penalty=1.1, seed=1).ids)
        5
        >>> model.generate("ROMEO:", 5, seed=1, draft="lookup").ids == g.ids
        True
        >>> [g.seed for g in model.generate("ROMEO:", 5, seed=1, n=3)]
        [1, 2, 3]
        """
        from .generation.options import Request
        from .generation.request import generate

        return generate(self, prompt, Request.asked(self, "generate", locals()))

    async def agenerate(self, prompt: Any, *arguments: Any, **options: Any) -> Any:
        """Generate as `generate` does, for `asyncio`: other tasks run meanwhile.

        The model runs in a thread. If the task is cancelled, the generation ends after the present
        token.

        Parameters
        ----------
        prompt, *arguments, **options
            As for `generate`.

        Returns
        -------
        Generation, or list of Generation for a batch

        Raises
        ------
        ValueError, TypeError, tinyllm.Error
            As for `generate`.

        Examples
        --------
        >>> import asyncio, tinyllm as tl
        >>> model = tl.load()
        >>> asyncio.run(model.agenerate("ROMEO:", max_tokens=5, seed=1)).stop_reason
        'length'
        """
        from .generation.options import Request
        from .generation.request import agenerate

        request = Request.asked(
            self, "generate", bound(self.generate, prompt, *arguments, **options)
        )
        return await agenerate(self, prompt, request)

    def stream(
        self,
        prompt: Prompt,
        max_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        seed: int | None = None,
        *,
        sampler: Sampler | None = None,
        grammar: Grammar | None = None,
        stop: Any = (),
        stop_ids: Any = (),
        min_tokens: int = 0,
        edits: Any = (),
        timeout: float | None = None,
        context: str = "stop",
        parse_special: bool = False,
        logprobs: int | None = None,
        capture: Capture = None,
        draft: Draft = None,
        **samplers: Unpack[SamplerKeywords],
    ) -> GenerationStream:
        """Generate a continuation of a prompt and yield its text piece by piece.

        Parameters
        ----------
        prompt, max_tokens, temperature, top_k, top_p, seed, sampler, grammar, stop, stop_ids
            As for `generate`. The model needs a tokenizer.
        min_tokens, edits, timeout, context, parse_special, logprobs, capture, draft, **samplers
            As for `generate`. `GenerationStream.result` has what they ask for.

        Returns
        -------
        GenerationStream
            An iterator over new text, in whole characters. Text that may be the beginning of a
            stop string is held back. The pieces joined are `Generation.text`. `cancel` ends it
            from any thread. ``async for`` works, too.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> "".join(model.stream("ROMEO:", 5, seed=1)) == model.generate("ROMEO:", 5, seed=1).text
        True
        """
        from .generation.options import Request
        from .generation.request import stream

        return stream(self, prompt, Request.asked(self, "stream", locals()))

    async def astream(self, prompt: Prompt, *arguments: Any, **options: Any) -> AsyncIterator[str]:
        """Yield the pieces of a text as `stream` does, for `asyncio`.

        The model runs in a thread. If the task is cancelled, or the iterator is closed, the
        generation ends after the present token.

        Parameters
        ----------
        prompt, *arguments, **options
            As for `stream`.

        Yields
        ------
        str

        Examples
        --------
        >>> import asyncio, tinyllm as tl
        >>> model = tl.load()
        >>> async def text():
        ...     return "".join([piece async for piece in model.astream("ROMEO:", 5, seed=1)])
        >>> asyncio.run(text()) == model.generate("ROMEO:", 5, seed=1).text
        True
        """
        with self.stream(prompt, *arguments, **options) as pieces:
            async for piece in pieces:
                yield piece

    def chat(
        self,
        messages: Any,
        tools: Sequence[Any] | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        seed: Any = None,
        *,
        sampler: Sampler | None = None,
        grammar: Grammar | None = None,
        stop: Any = (),
        stop_ids: Any = (),
        min_tokens: int = 0,
        logprobs: int | None = None,
        capture: Capture = None,
        edits: Any = (),
        timeout: float | None = None,
        context: str = "stop",
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        parse_content: bool = True,
        session: Session | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str = False,
        merge_system: bool = False,
        draft: Draft = None,
        **samplers: Unpack[SamplerKeywords],
    ) -> Any:
        """Generate the answer to a conversation, or to each conversation in a batch.

        The chat template of the file turns the conversation into text, and
        `Tokenizer.encode_chat` turns the text into ids. The answer ends at a token that ends a
        generation or a turn (`eog_ids`).

        Parameters
        ----------
        messages : str, sequence of Mapping, or a list of these
            ``{"role": "user", "content": "..."}`` and so on. A text is one message of the user.
            Several conversations are a batch. Each gets the answer that it would get alone.
        tools : sequence of (dict or callable), optional
            JSON schemas or annotated Python functions, for templates that support tools. A tool
            call is text in the answer, in the notation of the model; `Generation.tool_calls`
            reads it.
        max_tokens, temperature, top_k, top_p, seed, sampler, grammar, stop, stop_ids, min_tokens
            As for `generate`.
        logprobs, capture, edits, timeout, context, draft, **samplers
            As for `generate`.
        template : str, optional
            A template that replaces the file's default: the name of a template in the file,
            Jinja2 source, or ``"chatml"`` or ``"plain"`` (`tinyllm.chat.TEMPLATES`). The stop
            strings of these two are added to `stop`.
        variables : Mapping, optional
            Further variables of the template, such as ``{"enable_thinking": False}``.
        parse_content : bool
            If False, special tokens in messages are plain text: see `Tokenizer.encode_chat`.
        session : Session, optional
            A session to continue. The tokens that it shares with the beginning of the conversation
            do not run again, so they are neither captured nor edited. Its other tokens are
            removed. Afterwards it has the conversation and the answer, and can be passed again
            for the next turn.
        documents : sequence of Mapping, optional
            Documents, for templates that support them.
        add_generation_prompt : bool, optional
            Whether the prompt ends with the start of an answer. Default: unless
            `continue_final_message`.
        continue_final_message : bool or str
            If True, the answer goes on with the last message, whose turn stays open. A string is
            the key of another text of it to continue, such as ``"reasoning_content"``.
        merge_system : bool
            Whether a system message that the template leaves out or refuses is put before the
            text of the next message.

        Returns
        -------
        Generation, or list of Generation for several conversations
            The text may begin with a space.

        Raises
        ------
        tinyllm.chat.ChatTemplateError
            If there is no template, or if the template fails.
        ImportError
            If Jinja2 is not installed. The message has instructions.
        ValueError, TypeError, tinyllm.Error
            As for `generate`. Also if the model has no tokenizer, or if `session` belongs to
            another model.

        Examples
        --------
        >>> import tinyllm as tl  # pip install jinja2
        >>> model = tl.load()
        >>> messages = [{"role": "user", "content": "Good morrow!"}]
        >>> session = model.session()
        >>> g = model.chat(messages, max_tokens=20, seed=1, template="plain", session=session)
        >>> messages += [{"role": "assistant", "content": g.text.strip()},
        ...              {"role": "user", "content": "And you?"}]
        >>> again = model.chat(messages, max_tokens=5, seed=1, template="plain", session=session)
        >>> again.timings.prompt_tokens < len(again.prompt_ids)
        True
        >>> len(model.chat("Good morrow!", max_tokens=5, seed=1, template="plain").ids)
        5
        """
        from .generation.options import ChatOptions, Request
        from .generation.request import chat

        asked = locals()
        request = Request.asked(self, "chat", asked)
        return chat(self, messages, ChatOptions.asked(asked), request)

    def chat_stream(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        seed: int | None = None,
        *,
        sampler: Sampler | None = None,
        grammar: Grammar | None = None,
        stop: Any = (),
        stop_ids: Any = (),
        min_tokens: int = 0,
        edits: Any = (),
        timeout: float | None = None,
        context: str = "stop",
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        parse_content: bool = True,
        session: Session | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str = False,
        merge_system: bool = False,
        logprobs: int | None = None,
        capture: Capture = None,
        draft: Draft = None,
        **samplers: Unpack[SamplerKeywords],
    ) -> GenerationStream:
        """Generate the answer to a conversation and yield its text piece by piece.

        Parameters
        ----------
        messages, tools, template, variables, parse_content, session
            As for `chat`.
        documents, add_generation_prompt, continue_final_message, merge_system
            As for `chat`.
        max_tokens, temperature, top_k, top_p, seed, sampler, grammar, stop, stop_ids
            As for `generate`.
        min_tokens, edits, timeout, context, logprobs, capture, draft, **samplers
            As for `generate`.

        Returns
        -------
        GenerationStream
            As from `stream`. The pieces joined are the text that `chat` returns.

        Examples
        --------
        >>> import tinyllm as tl  # pip install jinja2
        >>> model = tl.load()
        >>> messages = [{"role": "user", "content": "Good morrow!"}]
        >>> pieces = list(model.chat_stream(messages, None, 9, seed=1, template="plain"))
        >>> "".join(pieces) == model.chat(messages, None, 9, seed=1, template="plain").text
        True
        """
        from .generation.options import ChatOptions, Request
        from .generation.request import chat_stream

        asked = locals()
        request = Request.asked(self, "chat_stream", asked)
        return chat_stream(self, messages, ChatOptions.asked(asked), request)

    def beam_search(
        self,
        prompt: Prompt,
        beams: int = 4,
        max_tokens: int | None = None,
        *,
        length_penalty: float = 0.0,
        grammar: Grammar | None = None,
        stop_ids: Any = (),
        min_tokens: int = 0,
        parse_special: bool = False,
        draft: None = None,
    ) -> list[Generation]:
        """Return continuations of high probability, found by beam search.

        Each step extends every beam by every token. The best `beams` extensions that do not end
        the text become the next beams. Extensions that end the text are finished, and are kept if
        they are among the best `beams` of all extensions, as in Hugging Face's search. The search
        ends when no beam can become better than the finished texts.

        Parameters
        ----------
        prompt : str, bytes or ids
        beams : int
            Number of beams, at least 1. With 1, the search is greedy.
        max_tokens : int, optional
            Largest number of new tokens. Default: until the context is full.
        length_penalty : float
            Texts are ranked by log-probability / length ** length_penalty. The length is in
            tokens and includes the end token. 0 ranks by log-probability, 1 (Hugging Face's
            default) by its mean.
        grammar, stop_ids, min_tokens, parse_special
            As for `generate`.
        draft : None
            A search has no drafts: it runs its beams together, and goes on with what they give.

        Returns
        -------
        list of Generation
            At most `beams` texts, the best first. `Generation.score` is the log-probability of the
            text, including its end token if the model ended it.

        Raises
        ------
        ValueError
            If an argument is out of range.
        tinyllm.Error
            If the vocabulary has no token that the grammar allows.

        Examples
        --------
        >>> import tinyllm as tl
        >>> found = tl.load().beam_search("ROMEO:", beams=3, max_tokens=4)
        >>> [g.score for g in found] == sorted((g.score for g in found), reverse=True)
        True
        """
        from .generation.options import Options
        from .generation.request import beam_search

        if draft is not None:
            raise ValueError(
                f"draft is {draft!r}; expected None: a search draws no tokens that could be "
                "guessed. generate() has drafts"
            )
        options = Options.checked(self, max_tokens, min_tokens, (), stop_ids, grammar)
        return beam_search(self, prompt, beams, options, length_penalty, parse_special)

    def embed(
        self,
        prompt: Any,
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        batch: int | None = None,
        parse_special: bool = False,
    ) -> Any:
        """Return the embedding of a text: one vector for all its tokens.

        Parameters
        ----------
        prompt : str, bytes, ids, or a list of them
            Of a text that is longer than the context, the beginning counts, with a warning.
        pooling : str, optional
            How the final hidden states (T, D) become one vector: ``"mean"``, ``"cls"`` (the first
            token), ``"last"``, ``"none"`` (all of them), or ``"rank"`` (the scores of a reranker's
            classifier). Default: what the file states (``pooling_type``), else the mean in an
            encoder, and the last token in a decoder.
        normalize : bool, optional
            Whether vectors get the length 1. Default: yes, but not for "rank" and "none".
        batch : int, optional
            The number of texts that run together. Default: as many as have about 256 tokens, which
            is fast and needs little memory.
        parse_special : bool
            As for `trace`.

        Returns
        -------
        numpy.ndarray of float32
            (D,) for one text, (texts, D) for a list. With "none" (T, D), or a list of arrays.
            Projections of the file (EmbeddingGemma's dense layers) are applied.

        Raises
        ------
        ValueError
            If a text has no tokens, if ids are not in the vocabulary or are more than the context,
            if there is no text, or if `pooling` or `batch` is something else than described.

        Notes
        -----
        The hidden states are those of `trace`. Pooling is computed in float64 and rounded once.
        Texts run together in groups, longest first and without padding. The bits of a text's
        embedding depend neither on the others nor on `batch`, so one call for many texts is best.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> a, b = model.embed(["My lord", "My lady"])
        >>> bool(-1 <= a @ b <= 1)
        True
        """
        return embed(self, prompt, pooling, normalize, batch, parse_special)

    def score(self, text: Any, *, parse_special: bool = False) -> Any:
        """Return the log-probability of each token of a text.

        Parameters
        ----------
        text : str, bytes, ids, or a list of them
            At least two tokens, and at most one more than the context length.
        parse_special : bool
            As for `trace`.

        Returns
        -------
        Score, or list of Score for a list

        Raises
        ------
        ValueError
            If the text is too short or too long.

        Examples
        --------
        >>> import tinyllm as tl
        >>> score = tl.load().score("ROMEO: But soft")
        >>> score.logprobs.shape == (len(score.ids) - 1,)
        True
        """
        from .evaluation.scoring import score

        return score(self, text, parse_special)

    def perplexity(
        self,
        text: Prompt,
        stride: int | None = None,
        window: int | None = None,
        method: str = "llama.cpp",
        *,
        parse_special: bool = False,
    ) -> Perplexity:
        """Return the perplexity of a text.

        The text is cut into windows. The two methods give different numbers.

        Parameters
        ----------
        text : str, bytes or ids
        stride : int, optional
            Number of tokens from the start of one window to the next, for method ``"hf"``.
            Default: half a window.
        window : int, optional
            Number of tokens in a window. Default: 512 for ``"llama.cpp"`` (its default context),
            and the model's context for ``"hf"``.
        method : str
            ``"llama.cpp"``: as in ``llama-perplexity``. Windows do not overlap. In each, only the
            second half is scored, and BOS replaces the first token if the file specifies BOS. An
            incomplete window at the end is not used. There must be at least two windows.
            ``"hf"``: as in Hugging Face's guide to the perplexity of fixed-length models. Windows
            overlap. In each, only the tokens that were not in the previous window are scored.
            Their mean has the weight of their number minus one.
        parse_special : bool
            As for `trace`.

        Returns
        -------
        Perplexity

        Raises
        ------
        ValueError
            If the text is too short, or if an argument is out of range.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> text = "To be, or not to be, that is the question"
        >>> 1 < float(model.perplexity(text, method="hf")) < model.config.vocab_size
        True
        """
        from .evaluation.scoring import perplexity

        return perplexity(self, text, stride, window, method, parse_special)

    # ---- words of other libraries ----

    if not TYPE_CHECKING:
        __getattr__ = getattr_of("Model")

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raise an error that says which method is meant."""
        raise TypeError(
            "a model is no function; model.generate(prompt) continues a text, model.chat(messages) "
            "answers, model.logits(prompt) returns logits"
        )

    # ---- showing ----

    def page(self, trace: Trace) -> Page:  # noqa: D102 (as in Runner)
        from .analysis.page import page

        return page(trace, self)

    def table(self) -> Table:
        """Return a table of the properties of the model.

        Returns
        -------
        Table

        Examples
        --------
        >>> import tinyllm as tl
        >>> print(tl.load().table())  # doctest: +ELLIPSIS
        what...
        """
        config = self.config
        types: dict[str, int] = {}
        parameters = 0
        for weight in self.weights.values():
            types[weight.type] = types.get(weight.type, 0) + weight.nbytes
            parameters += int(np.prod(weight.shape, dtype=np.int64))
        rows = [
            ("name", self.metadata.get("general.name", self.path or "")),
            ("architecture", config.architecture),
            ("parameters", f"{parameters:,}"),
            ("weights", ", ".join(f"{name} {size(nbytes)}" for name, nbytes in types.items())),
            ("layers, width", f"{config.layers} x {config.width}"),
            ("heads, kv heads", f"{config.heads}, {config.kv_heads} of {config.head_size}"),
            ("feed-forward width", config.ffn_width),
            ("context length", config.context_length),
            ("tokenizer", repr(self.tokenizer) if self.tokenizer else "none"),
        ]
        rows += [(f"adapter, scale {scale:g}", repr(one)) for one, scale in self.adapters]
        return Table(("what", "value"), rows)

    def __repr__(self) -> str:
        """Return architecture, size and file."""
        c = self.config
        return (
            f"<tinyllm.Model: {c.architecture}, {c.layers} layers of width {c.width}, "
            f"vocabulary {c.vocab_size}, {len(self.weights)} weights"
            + (f", {len(self.adapters)} adapters" if self.adapters else "")
            + (f", {self.path}>" if self.path else ">")
        )

    def _repr_html_(self) -> str:
        weights = weights_html(sample_weights(self.weights.values()))
        return (
            f"{self.table().html(caption=repr(self))}"
            f"<details><summary>{len(self.weights)} weights</summary>{weights}</details>"
        )
