"""What a model does with text: generate, stream, chat, beam_search, score, perplexity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from .stepper import Options, Stepper

if TYPE_CHECKING:
    from ..evaluation.scoring import Perplexity
    from ..grammar.grammar import Grammar
    from ..model import Model
    from ..runtime.prompt import Prompt
    from ..runtime.session import Session
    from ..sampling.sampler import Sampler
    from ..trace.taps import Capture
    from .stepper import Generation

__all__ = ["TextMethods", "chat_stepper"]


class TextMethods:
    """The methods of `Model` that write and judge text."""

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
        from ..runtime.prompt import is_batch

        model = cast("Model", self)
        options = Options.checked(model, max_tokens, min_tokens, stop, stop_ids, grammar, logprobs)
        batch = is_batch(prompt)
        prompts = list(prompt) if batch else [prompt]
        chain = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        stepper = _stepper(model, prompts, options, chain, seed, sampler, capture, edits)
        for _ in stepper:
            pass
        results = stepper.results()
        return results if batch else results[0]

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
        model = cast("Model", self)
        if model.tokenizer is None:
            raise ValueError("stream() gives text, and the model's file has no tokenizer")
        options = Options.checked(model, max_tokens, min_tokens, stop, stop_ids, grammar)
        chain = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        stepper = _stepper(model, [prompt], options, chain, seed, sampler, None, edits)
        return (text for text in stepper if text)

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
        model = cast("Model", self)
        several = isinstance(messages, list | tuple) and any(
            isinstance(item, list | tuple) for item in messages
        )
        limits = {
            "max_tokens": max_tokens,
            "min_tokens": min_tokens,
            "stop": stop,
            "stop_ids": stop_ids,
            "grammar": grammar,
            "logprobs": logprobs,
        }
        chain = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        stepper = chat_stepper(
            model, messages if several else [messages], tools, limits, chain, seed, sampler,
            capture, edits, template, variables, parse_content, session,
        )  # fmt: skip
        for _ in stepper:
            pass
        results = stepper.results()
        return results if several else results[0]

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
        limits = {
            "max_tokens": max_tokens,
            "min_tokens": min_tokens,
            "stop": stop,
            "stop_ids": stop_ids,
            "grammar": grammar,
        }
        chain = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        stepper = chat_stepper(
            cast("Model", self), [messages], tools, limits, chain, seed, sampler,
            None, edits, template, variables, parse_content, session,
        )  # fmt: skip
        return (text for text in stepper if text)

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
        from ..runtime.prompt import token_ids
        from .beam import search

        model = cast("Model", self)
        if isinstance(beams, bool) or not hasattr(beams, "__index__"):
            raise TypeError(f"beams is {beams!r}; expected an integer")
        if beams < 1:
            raise ValueError(f"beams is {beams}; expected at least 1")
        if not 0 <= length_penalty <= 10:
            raise ValueError(f"length_penalty is {length_penalty!r}; expected 0 to 10")
        options = Options.checked(model, max_tokens, min_tokens, (), stop_ids, grammar)
        ids = token_ids(prompt, model.tokenizer)
        return search(model, ids, int(beams), options, float(length_penalty))

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
        from ..evaluation.scoring import score
        from ..runtime.prompt import is_batch

        model = cast("Model", self)
        return [score(model, item) for item in text] if is_batch(text) else score(model, text)

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
        from ..evaluation.scoring import perplexity

        return perplexity(cast("Model", self), text, stride, window, method)


def _stepper(
    model: Model,
    prompts: list[Any],
    options: Options,
    chain: dict[str, Any],
    seed: Any,
    sampler: Any,
    capture: Capture,
    edits: Any,
    sessions: Sequence[Session | None] | None = None,
) -> Stepper:
    from ..runtime.prompt import token_ids
    from ..sampling.sampler import Sampler

    if sampler is not None:
        if not isinstance(sampler, Sampler):
            raise TypeError(f"sampler is {type(sampler).__name__}; expected a tl.Sampler")
        if seed is not None:
            raise ValueError("both seed and sampler are given; the sampler has a seed of its own")
        samplers = [sampler] * len(prompts)
    else:
        seeds = list(seed) if isinstance(seed, list | tuple) else [seed] * len(prompts)
        if len(seeds) != len(prompts):
            raise ValueError(
                f"seed has {len(seeds)} entries; expected {len(prompts)}, one a prompt"
            )
        samplers = [Sampler(seed=one, **chain) for one in seeds]
    names = [f"prompt {i}" if len(prompts) > 1 else "the prompt" for i in range(len(prompts))]
    ids = [token_ids(p, model.tokenizer, n) for p, n in zip(prompts, names, strict=True)]
    layout = None if capture is None else model.layout(capture)
    return Stepper(model, ids, samplers, options, layout, model.program(edits), sessions)


def chat_stepper(
    model: Model,
    conversations: Sequence[Any],
    tools: Sequence[Any] | None,
    limits: Mapping[str, Any],
    chain: dict[str, Any],
    seed: Any = None,
    sampler: Sampler | None = None,
    capture: Capture = None,
    edits: Any = (),
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
    parse_content: bool = True,
    session: Session | None = None,
) -> Stepper:
    """Return what steps through the answers to some conversations.

    Parameters
    ----------
    model : Model
    conversations : sequence of sequences of Mapping
    tools, seed, sampler, capture, edits, template, variables, parse_content, session
        As for `Model.chat`.
    limits, chain : Mapping
        The arguments of `Model.generate` that say when to stop, and those that make a sampler.

    Returns
    -------
    Stepper
    """
    from ..chat.templates import stop_strings
    from ..runtime.session import Session

    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(
            "a conversation is text, and the model's file has no tokenizer; load with tokenizer="
        )
    if session is not None:
        if not isinstance(session, Session):
            raise TypeError(f"session is {type(session).__name__}; expected a tl.Session")
        if session.model is not model:
            raise ValueError("session belongs to another model")
        if len(conversations) != 1:
            raise ValueError(
                f"session is one context, and there are {len(conversations)} conversations"
            )
    stop = limits["stop"]
    more = stop_strings(tokenizer.chat_templates, template)
    if more:
        limits = {**limits, "stop": (*([stop] if isinstance(stop, str) else stop), *more)}
    options = Options.checked(model, **limits)
    prompts = [
        tokenizer.encode_chat(
            messages, tools, template=template, parse_content=parse_content, **(variables or {})
        )
        for messages in conversations
    ]
    sessions = None if session is None else [session]
    return _stepper(model, prompts, options, chain, seed, sampler, capture, edits, sessions)
