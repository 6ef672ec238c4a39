"""`load` and `Model`: the pleasant face of the core."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from .architectures.table import read_model
from .base.checks import choice, ranged
from .base.samples import sample_weights
from .display.table import Table
from .display.weights import weights_table
from .errors import FormatError
from .files.model_file import DEMO, open_file
from .runtime.prompt import Prompt
from .runtime.runner import Runner
from .runtime.session import Session
from .tokenizer import Tokenizer, load_tokenizer, tokenizer_from_metadata
from .trace.taps import Capture

if TYPE_CHECKING:
    from .evaluation.scoring import Perplexity
    from .generation.result import Generation
    from .grammar.grammar import Grammar
    from .sampling.sampler import Sampler

__all__ = ["DEMO", "Model", "load"]


def load(
    path: str | os.PathLike[str] | bytes | bytearray | memoryview = "demo",
    *,
    mode: str = "exact",
    threads: int | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    mmap: bool = True,
    max_context: int | None = None,
    strict: bool = True,
) -> Model:
    """Open a model, ready to run.

    Parameters
    ----------
    path : str, os.PathLike or bytes-like
        A GGUF file (the first of its shards if it is split), a llama2.c checkpoint, or the bytes
        of one. ``"demo"`` is the small model that ships in the package; a file of that name is
        ``"./demo"``.
    mode : str
        ``"exact"``: weights at their exact value, activations not rounded; the same bits
        whatever the number of threads, the split of the prompt, what is captured, and the CPU.
        ``"fast"``: activations are rounded before each matmul with quantized weights, as
        llama.cpp does, but finer; the same bits on one CPU whatever the number of threads.
    threads : int, optional
        At most this many threads; None takes the physical cores that this process may use.
    tokenizer : str, os.PathLike or Tokenizer, optional
        Use this one instead of the file's own: a GGUF file, or llama2.c's ``tokenizer.bin``.
    mmap : bool
        False reads the file into memory instead of mapping it.
    max_context : int, optional
        Longest context, instead of the file's own.
    strict : bool
        False loads a file whose tensors are not all used, with a warning that names them: the
        results are then those of another model.

    Returns
    -------
    Model

    Raises
    ------
    OSError
        The file cannot be opened.
    tinyllm.FormatError
        The file is malformed, or its parts do not fit together.
    tinyllm.UnsupportedError
        The file is right, but this version does not run such a model.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> model.config.architecture
    'llama'
    """
    choice("mode", mode, ("exact", "fast"))
    if threads is not None:
        ranged("threads", threads, 1, 256)
    if max_context is not None:
        ranged("max_context", max_context, 1)
    source: Any = DEMO if isinstance(path, str) and path == "demo" else path
    file = open_file(source, mmap)
    config, steps = read_model(file.metadata, file.weights, strict)
    if tokenizer is None:
        tok = tokenizer_from_metadata(file.metadata)
    else:
        tok = tokenizer if isinstance(tokenizer, Tokenizer) else load_tokenizer(tokenizer)
        if len(tok) > config.vocab_size:
            raise FormatError(
                f"the tokenizer has {len(tok)} tokens; expected at most {config.vocab_size}, "
                "the model's",
                field="tokenizer",
                value=len(tok),
                expected=f"at most {config.vocab_size}",
            )
    try:
        core = _core.Model(
            steps.lowered(),
            file.weights.values(),
            layers=config.layers,
            max_context=max_context or config.context_length,
            fast=mode == "fast",
        )
    except FormatError as error:
        error.path = file.path
        raise
    return Model(core, file, config, steps, tok, threads or _core.cpu_count())


class Model(Runner):
    """A model, ready to run. Made by `load`.

    Immutable and safe to share between threads; each call makes its own session.

    Attributes
    ----------
    config : Config
        The numbers that define the model.
    steps : ForwardPlan
        Every step of the forward pass: what it reads, its weights, its numbers and where they
        come from. It prints as a table.
    weights : mapping of str to Weight
        Every tensor of the file by name, in the file's order.
    metadata : mapping
        The file's metadata.
    tokenizer : Tokenizer or None
        None when the file has none; token ids still work.
    threads : int
        At most this many threads are used.
    core : tinyllm._core.Model
        The model in C.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> model.logits("ROMEO:").shape[1] == model.config.vocab_size
    True
    """

    def session(self, path: str | os.PathLike[str] | None = None) -> Session:
        """Start a context, empty or as `Session.save` left it.

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
            The file is no session of this model, or is damaged.
        OSError
            It cannot be read.

        Examples
        --------
        >>> import tinyllm as tl
        >>> session = tl.load().session()
        >>> session.eval([1, 2, 3]).shape == (tl.load().config.vocab_size,)
        True
        """
        return Session(self) if path is None else Session.load(self, path)

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
    ) -> Any:
        """Continue a prompt, or several together.

        Parameters
        ----------
        prompt : str, bytes, ids, or a list of them
            A list of texts, lists or arrays is a batch, as in `trace`: run together, never
            padded, each with the result that it has alone.
        max_tokens : int, optional
            Stop after this many new tokens; None goes on until the model ends its text or the
            context is full.
        temperature : float
            0 takes the most likely token each time.
        top_k, top_p : int, float
            Draw among the `top_k` most likely tokens (0: all), and of these among the fewest
            whose probabilities reach `top_p`.
        seed : int, or list of int, optional
            The same seed gives the same text on every machine and with any number of threads.
            One int is the seed of every prompt of a list. None draws one for each prompt; it is
            in the result.
        sampler : Sampler, optional
            Takes the place of `temperature`, `top_k`, `top_p` and `seed`.
        grammar : Grammar, optional
            The text will be one that the grammar accepts: what does not fit cannot be drawn, and
            the end of the text only where it is complete. Only `max_tokens`, a stop string or the
            end of the context can cut it off before; see `Generation.complete`.
        stop : str or sequence of str
            End the text before the first of these, wherever tokens begin and end.
        stop_ids : int or sequence of int
            End the text at these tokens too.
        min_tokens : int
            Before so many tokens neither the model nor `stop_ids` may end the text.
        logprobs : int, optional
            Keep the probability of each token, and the so many most probable others.
        capture : str, re.Pattern, callable, or sequence of str and re.Pattern, optional
            Keep inner values: one trace per step in `Generation.traces`, the first of the whole
            prompt. None: nothing.
        edits : Edit or sequence of Edit
            Changes on the way, as in `trace`: in each step, those of its positions; ``at=-1``
            is the last token of every step.

        Returns
        -------
        Generation, or list of Generation for a batch

        Raises
        ------
        ValueError
            The prompt cannot run, or an argument is out of range.
        tinyllm.Error
            The vocabulary has no token for what the grammar expects.

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
        """
        from .generation.options import Chain, Options, Request
        from .generation.request import generate

        options = Options.checked(self, max_tokens, min_tokens, stop, stop_ids, grammar, logprobs)
        chain = Chain(temperature, top_k, top_p, seed, sampler)
        return generate(self, prompt, Request(options, chain, capture, edits))

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
    ) -> Iterator[str]:
        """Continue a prompt, piece by piece.

        Parameters
        ----------
        prompt, max_tokens, temperature, top_k, top_p, seed, sampler, grammar, stop, stop_ids
            As for `generate`. The model needs a tokenizer.
        min_tokens, edits
            As for `generate`.

        Yields
        ------
        str
            Text as it comes; never a part of a character, and never what may still become a stop
            string. Joined, it is `Generation.text`.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> "".join(model.stream("ROMEO:", 5, seed=1)) == model.generate("ROMEO:", 5, seed=1).text
        True
        """
        from .generation.options import Chain, Options, Request
        from .generation.request import stream

        options = Options.checked(self, max_tokens, min_tokens, stop, stop_ids, grammar)
        chain = Chain(temperature, top_k, top_p, seed, sampler)
        return stream(self, prompt, Request(options, chain, edits=edits))

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
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        parse_content: bool = True,
        session: Session | None = None,
    ) -> Any:
        """Answer the last message of a conversation, or of several together.

        The conversation becomes text by the file's chat template, and ids by
        `Tokenizer.encode_chat`. The answer ends at any token that ends a generation or a turn
        (`eog_ids`).

        Parameters
        ----------
        messages : sequence of Mapping, or a list of such sequences
            ``{"role": "user", "content": "..."}`` and so on. Several conversations are a batch,
            each with the answer that it gets alone.
        tools : sequence of (dict or callable), optional
            JSON schemas or annotated Python functions, for templates that know tools. A call is
            text in the answer, in the model's own notation.
        max_tokens, temperature, top_k, top_p, seed, sampler, grammar, stop, stop_ids, min_tokens
            As for `generate`.
        logprobs, capture, edits
            As for `generate`.
        template : str, optional
            Instead of the file's default: the name of one of its templates, Jinja2 source, or
            ``"chatml"`` or ``"plain"`` (`tinyllm.chat.TEMPLATES`), whose stop strings are added
            to `stop`.
        variables : Mapping, optional
            What else the template uses, such as ``{"enable_thinking": False}``.
        parse_content : bool
            False: special tokens in messages are plain text; see `Tokenizer.encode_chat`.
        session : Session, optional
            Go on in this context: what it shares with the beginning of the conversation is not
            run again (nor captured, nor edited), what it does not share is forgotten. Afterwards
            it holds conversation and answer. Pass the same one again for the next turn.

        Returns
        -------
        Generation, or list of Generation for several conversations
            The text is as `generate` gives it: it may begin with a blank.

        Raises
        ------
        tinyllm.chat.ChatTemplateError
            The file has no template and none is given, or the template fails.
        ImportError
            Jinja2 is not installed; the message says how to.
        ValueError, TypeError, tinyllm.Error
            As for `generate`; or the file has no tokenizer, or `session` is not of this model.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> messages = [{"role": "user", "content": "Good morrow!"}]
        >>> session = model.session()
        >>> g = model.chat(messages, max_tokens=20, seed=1, template="plain", session=session)
        >>> messages += [{"role": "assistant", "content": g.text.strip()},
        ...              {"role": "user", "content": "And you?"}]
        >>> again = model.chat(messages, max_tokens=5, seed=1, template="plain", session=session)
        >>> again.timings.prompt_tokens < len(again.prompt_ids)
        True
        """
        from .generation.options import Chain, ChatOptions, Options, Request
        from .generation.request import chat

        options = Options.checked(self, max_tokens, min_tokens, stop, stop_ids, grammar, logprobs)
        chain = Chain(temperature, top_k, top_p, seed, sampler)
        chat_options = ChatOptions(tools, template, variables, parse_content, session)
        return chat(self, messages, chat_options, Request(options, chain, capture, edits))

    def chat_stream(
        self,
        messages: Sequence[Mapping[str, Any]],
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
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        parse_content: bool = True,
        session: Session | None = None,
    ) -> Iterator[str]:
        """Answer the last message of a conversation, piece by piece.

        Parameters
        ----------
        messages, tools, template, variables, parse_content, session
            As for `chat`.
        max_tokens, temperature, top_k, top_p, seed, sampler, grammar, stop, stop_ids
            As for `generate`.
        min_tokens, edits
            As for `generate`.

        Yields
        ------
        str
            As `stream` does. Joined, it is the text that `chat` gives.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> messages = [{"role": "user", "content": "Good morrow!"}]
        >>> pieces = list(model.chat_stream(messages, None, 9, seed=1, template="plain"))
        >>> "".join(pieces) == model.chat(messages, None, 9, seed=1, template="plain").text
        True
        """
        from .generation.options import Chain, ChatOptions, Options, Request
        from .generation.request import chat_stream

        options = Options.checked(self, max_tokens, min_tokens, stop, stop_ids, grammar)
        chain = Chain(temperature, top_k, top_p, seed, sampler)
        chat_options = ChatOptions(tools, template, variables, parse_content, session)
        return chat_stream(self, messages, chat_options, Request(options, chain, edits=edits))

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
    ) -> list[Generation]:
        """Find continuations of high probability.

        In each step every beam is continued with every token, and the best `beams` of these that
        do not end the text go on. Those that end it are kept aside if they are among the best
        `beams` of all (as in Hugging Face's search); the search is over when none of the beams
        can still become better than they are.

        Parameters
        ----------
        prompt : str, bytes or ids
        beams : int
            How many continuations to keep, 1 or more. 1 is greedy.
        max_tokens : int, optional
            None: as far as the context goes.
        length_penalty : float
            Texts are ranked by log-probability / length ** length_penalty, the length in tokens
            with the end; 0 ranks by log-probability, 1 (Hugging Face's default) by its mean.
        grammar, stop_ids, min_tokens
            As for `generate`.

        Returns
        -------
        list of Generation
            At most `beams`, the best first; `Generation.score` is the log-probability under the
            model, of the end too if the model ended the text.

        Raises
        ------
        ValueError
            An argument is out of range.
        tinyllm.Error
            The vocabulary has no token for what the grammar expects.

        Examples
        --------
        >>> import tinyllm as tl
        >>> found = tl.load().beam_search("ROMEO:", beams=3, max_tokens=4)
        >>> [g.score for g in found] == sorted((g.score for g in found), reverse=True)
        True
        """
        from .generation.options import Options
        from .generation.request import beam_search

        options = Options.checked(self, max_tokens, min_tokens, (), stop_ids, grammar)
        return beam_search(self, prompt, beams, options, length_penalty)

    def score(self, text: Any) -> Any:
        """How probable the model thinks each token of a text.

        Parameters
        ----------
        text : str, bytes, ids, or a list of them
            At least two tokens; at most the context and one.

        Returns
        -------
        Score, or list of Score for a list

        Raises
        ------
        ValueError
            The text is too short or too long.

        Examples
        --------
        >>> import tinyllm as tl
        >>> score = tl.load().score("ROMEO: But soft")
        >>> score.logprobs.shape == (len(score.ids) - 1,)
        True
        """
        from .evaluation.scoring import score

        return score(self, text)

    def perplexity(
        self,
        text: Prompt,
        stride: int | None = None,
        window: int | None = None,
        method: str = "llama.cpp",
    ) -> Perplexity:
        """Perplexity of a text; the two ways to cut it into windows give different numbers.

        Parameters
        ----------
        text : str, bytes or ids
        stride : int, optional
            Tokens from one window to the next, for method ``"hf"``. None: half a window.
        window : int, optional
            Tokens of a window. None: 512 for ``"llama.cpp"`` (its default context), the model's
            context for ``"hf"``.
        method : str
            ``"llama.cpp"``: as its ``llama-perplexity`` prints it. Windows do not overlap; in
            each, BOS takes the place of the first token if the file asks for BOS, and only the
            second half is scored. What is left at the end is not used; there must be two windows.
            ``"hf"``: as in Hugging Face's guide to the perplexity of fixed-length models. Windows
            overlap; in each, the tokens that the one before had not are scored, and their mean
            counts for one token less than they are.

        Returns
        -------
        Perplexity

        Raises
        ------
        ValueError
            The text is too short, or an argument is out of range.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> text = "To be, or not to be, that is the question"
        >>> 1 < float(model.perplexity(text, method="hf")) < model.config.vocab_size
        True
        """
        from .evaluation.scoring import perplexity

        return perplexity(self, text, stride, window, method)

    # ---- showing ----

    def table(self) -> Table:
        """A table of what the model is.

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
            ("weights", ", ".join(f"{name} {size:,} bytes" for name, size in types.items())),
            ("layers, width", f"{config.layers} x {config.width}"),
            ("heads, kv heads", f"{config.heads}, {config.kv_heads} of {config.head_size}"),
            ("feed-forward width", config.ffn_width),
            ("context length", config.context_length),
            ("tokenizer", repr(self.tokenizer) if self.tokenizer else "none"),
        ]
        return Table(("what", "value"), rows)

    def __repr__(self) -> str:
        """Name architecture, size and file."""
        c = self.config
        return (
            f"<tinyllm.Model: {c.architecture}, {c.layers} layers of width {c.width}, "
            f"vocabulary {c.vocab_size}, {len(self.weights)} weights"
            + (f", {self.path}>" if self.path else ">")
        )

    def _repr_html_(self) -> str:
        weights, caption = weights_table(sample_weights(self.weights.values()))
        return (
            f"{self.table().html(caption=repr(self))}"
            f"<details><summary>{len(self.weights)} weights</summary>{weights.html(caption)}"
            "</details>"
        )
