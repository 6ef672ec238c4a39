"""The arguments of a generation: when to stop, how to draw, what to capture and edit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..base.checks import choice, integer, is_integer, positive, ranged
from ..base.words import check_keywords
from ..runtime.runner import Runner
from ..runtime.session import Session
from ..sampling.keywords import DEFAULTS, ordered
from ..sampling.sampler import SAMPLERS, Sampler
from ..trace.taps import Capture

if TYPE_CHECKING:
    from ..grammar.grammar import Grammar

__all__ = ["Chain", "ChatOptions", "Options", "Request"]


def _strings(stop: Any) -> tuple[str, ...]:
    listed = (stop,) if isinstance(stop, str | bytes) else tuple(stop)
    for i, text in enumerate(listed):
        if not isinstance(text, str):
            raise TypeError(f"stop[{i}] is {text!r}; expected a non-empty string")
        if not text:
            raise ValueError(f"stop[{i}] is ''; expected a non-empty string")
    return listed


@dataclasses.dataclass(frozen=True)
class Options:
    """When a generation stops, and what it may contain and report; see `Model.generate`.

    Attributes
    ----------
    max_tokens : int, optional
    min_tokens : int
    stop : tuple of str
    stop_ids : frozenset of int
    grammar : Grammar, optional
    logprobs : int, optional
    timeout : float, optional
    context : str
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    grammar: Grammar | None = None
    logprobs: int | None = None
    timeout: float | None = None
    context: str = "stop"

    @classmethod
    def checked(
        cls,
        model: Runner,
        max_tokens: Any = None,
        min_tokens: Any = 0,
        stop: Any = (),
        stop_ids: Any = (),
        grammar: Any = None,
        logprobs: Any = None,
        *,
        timeout: Any = None,
        context: Any = "stop",
    ) -> Options:
        """Return options made of a caller's arguments; raise if one is wrong."""
        size = model.config.vocab_size
        ranged("min_tokens", min_tokens, 0)
        if max_tokens is not None and ranged("max_tokens", max_tokens, 0) < min_tokens:
            raise ValueError(
                f"min_tokens is {min_tokens}; expected at most max_tokens, {max_tokens}"
            )
        if logprobs is not None:
            ranged("logprobs", logprobs, 0, size, "the size of the vocabulary")
        if timeout is not None:
            positive("timeout", timeout)
        choice("context", context, ("stop", "shift"))
        strings = _strings(() if stop is None else stop)
        stop_ids = () if stop_ids is None else stop_ids
        numbers = [stop_ids] if is_integer(stop_ids) else list(stop_ids)
        for i, token in enumerate(numbers):
            if not 0 <= integer(f"stop_ids[{i}]", token) < size:
                raise ValueError(f"stop_ids[{i}] is {token}; the vocabulary has {size} tokens")
        if grammar is not None:
            from ..grammar.grammar import Grammar

            if not isinstance(grammar, Grammar):
                raise TypeError(
                    f"grammar is {type(grammar).__name__}; expected tl.Grammar.gbnf(text), "
                    ".json_schema(schema) or .regex(pattern)"
                )
        if strings or grammar is not None:
            if model.tokenizer is None:
                what = "stop strings need" if strings else "a grammar needs"
                raise ValueError(f"{what} text, but the model's file has no tokenizer")
            model.tokenizer.stream_decoder()  # raises if it has no text
        return cls(
            None if max_tokens is None else int(max_tokens),
            int(min_tokens),
            strings,
            frozenset(int(token) for token in numbers),
            grammar,
            None if logprobs is None else int(logprobs),
            None if timeout is None else float(timeout),
            str(context),
        )


@dataclasses.dataclass(frozen=True)
class Chain:
    """How a generation draws tokens; see `Model.generate`.

    Attributes
    ----------
    temperature : float
    top_k : int
    top_p : float
    seed : int, or list of int, optional
    sampler : Sampler, optional
        Replaces all other values, which must not be given then.
    more : mapping of str to value
        Further samplers by name.
    """

    temperature: float = DEFAULTS["temperature"]
    top_k: int = int(DEFAULTS["top_k"])
    top_p: float = DEFAULTS["top_p"]
    seed: Any = None
    sampler: Sampler | None = None
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def samplers(self, count: int, n: int = 1) -> list[Sampler]:
        """Return one sampler for each of n texts of `count` prompts, prompt after prompt.

        Text i of a prompt has the seed of the prompt plus i, modulo 2**64.
        """
        first = self._samplers(count)
        return first if n == 1 else [sampler.later(i) for sampler in first for i in range(n)]

    def _samplers(self, count: int) -> list[Sampler]:
        seed, sampler = self.seed, self.sampler
        if sampler is not None:
            if not isinstance(sampler, Sampler):
                raise TypeError(f"sampler is {type(sampler).__name__}; expected a tl.Sampler")
            if seed is not None:
                raise ValueError(
                    "both seed and sampler are given; expected one (a sampler has its own seed)"
                )
            changed = [name for name in DEFAULTS if getattr(self, name) != getattr(Chain, name)]
            for name in (*changed, *self.more):
                raise ValueError(
                    f"both {name} and sampler are given; expected one (a sampler is the whole "
                    "chain)"
                )
            return [sampler] * count
        one = is_integer(seed) or isinstance(seed, str | bytes) or not isinstance(seed, Iterable)
        seeds = [seed] * count if one else list(seed)
        if len(seeds) != count:
            raise ValueError(f"seed has {len(seeds)} entries; expected {count}, one per prompt")
        values = ordered({name: getattr(self, name) for name in DEFAULTS}, self.more)
        return [Sampler(seed=one, **values) for one in seeds]


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of a generation besides the prompt; see `Model.generate`.

    Attributes
    ----------
    options : Options
    chain : Chain
    capture : str, re.Pattern, callable, or sequence of str and re.Pattern, optional
    edits : Edit or sequence of Edit
    parse_special : bool
    draft : str or Model, optional
    n : int, optional
    """

    options: Options = dataclasses.field(default_factory=lambda: Options())
    chain: Chain = dataclasses.field(default_factory=Chain)
    capture: Capture = None
    edits: Any = ()
    parse_special: bool = False
    draft: Any = None
    n: int | None = None

    @classmethod
    def asked(cls, model: Runner, method: str, arguments: Mapping[str, Any]) -> Request:
        """Return the request that the arguments of a method make; raise if one is wrong.

        Parameters
        ----------
        model : Model
        method : str
            The name of the method, for messages.
        arguments : mapping
            The arguments by name. ``samplers`` is a mapping itself.
        """
        more = {name: value for name, value in arguments["samplers"].items() if value is not None}
        check_keywords(method, more, SAMPLERS)
        options = Options.checked(model, **_chosen(arguments, Options))
        chain = Chain(**_chosen(arguments, Chain), more=more)
        others = ("capture", "edits", "parse_special", "draft", "n")
        if arguments.get("n") is not None:
            ranged("n", arguments["n"], 1)
        return cls(options, chain, **{n: arguments[n] for n in others if n in arguments})


def _chosen(arguments: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Return the arguments that are fields of a data class."""
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: arguments[name] for name in names if name in arguments}


@dataclasses.dataclass(frozen=True)
class ChatOptions:
    """How a conversation becomes a prompt; see `Model.chat`.

    Attributes
    ----------
    tools : sequence of (dict or callable), optional
    template : str, optional
    variables : Mapping, optional
    parse_content : bool
    session : Session, optional
    documents : sequence of Mapping, optional
    add_generation_prompt : bool, optional
    continue_final_message : bool or str
    merge_system : bool
    """

    tools: Sequence[Any] | None = None
    template: str | None = None
    variables: Mapping[str, Any] | None = None
    parse_content: bool = True
    session: Session | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | str = False
    merge_system: bool = False

    @classmethod
    def asked(cls, arguments: Mapping[str, Any]) -> ChatOptions:
        """Return the options among the arguments of a method, by name."""
        return cls(**_chosen(arguments, cls))
