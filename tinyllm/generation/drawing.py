"""What the next draw of a text depends on, besides the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..base.numeric import Float32
from ..errors import Error
from ..runtime.runner import Runner
from ..sampling.sampler import Draw, Sampler
from .options import Options

if TYPE_CHECKING:
    from ..grammar.grammar import Constraint

__all__ = ["Drawing", "allowed_tokens"]


def allowed_tokens(
    model: Runner, options: Options, drawn: int, constraint: Constraint | None, state: int
) -> npt.NDArray[np.bool_] | None:
    """Return which tokens may be drawn after `drawn` others, (V,); None means all."""
    allowed = None
    ends = list(model.eog_ids | options.stop_ids)
    if constraint is not None:
        mask = constraint.mask(state)
        allowed = np.zeros(model.config.vocab_size, np.bool_)
        allowed[: mask.size] = mask
        allowed[ends] = constraint.is_complete(state)
    tokens = model.config.vocab_size
    if model.tokenizer is not None and model.tokenizer.has_text:
        tokens = len(model.tokenizer)
    if drawn < options.min_tokens or tokens < model.config.vocab_size:
        allowed = np.ones(model.config.vocab_size, np.bool_) if allowed is None else allowed
        allowed[tokens:] = False  # rows of the embedding that only fill it up have no token
    if drawn < options.min_tokens and allowed is not None:
        allowed[ends] = False
    return allowed


class Drawing:
    """The tokens of a text so far, and the states of its samplers and its grammar.

    Parameters
    ----------
    model : Model
    sampler : Sampler
    options : Options
    prompt : sequence of int

    Attributes
    ----------
    ids : list of int
        The drawn tokens.
    history : list of int
        The prompt and the drawn tokens.
    constraint : Constraint, optional
        The grammar.
    """

    def __init__(
        self, model: Runner, sampler: Sampler, options: Options, prompt: Sequence[int]
    ) -> None:
        self.model, self.sampler, self.options = model, sampler, options
        self.ids: list[int] = []
        self.history = list(prompt)
        self.ends = model.eog_ids | options.stop_ids
        self.constraint: Constraint | None = None
        self._state: dict[str, Any] = {}
        self._grammar_state = 0
        if options.grammar is not None and model.tokenizer is not None:
            self.constraint = options.grammar.constraint(model.tokenizer)
            self._grammar_state = self.constraint.start()

    def copy(self) -> Drawing:
        """Return a copy that can go on without changing this one."""
        copy = object.__new__(Drawing)
        vars(copy).update(vars(self))
        copy.ids, copy.history = list(self.ids), list(self.history)
        copy._state = {name: dict(state) for name, state in self._state.items()}
        return copy

    @property
    def is_complete(self) -> bool | None:
        """Whether the grammar accepts the text; None without a grammar."""
        return None if self.constraint is None else self.constraint.is_complete(self._grammar_state)

    @property
    def is_finished(self) -> bool:
        """Whether the grammar allows nothing more."""
        return self.constraint is not None and self.constraint.is_finished(self._grammar_state)

    @property
    def expected(self) -> str:
        """What the grammar expects next."""
        return "" if self.constraint is None else self.constraint.expected(self._grammar_state)

    def draw(self, logits: Float32) -> Draw | None:
        """Return the next token; None if none is allowed. It is not added yet."""
        allowed = allowed_tokens(
            self.model, self.options, len(self.ids), self.constraint, self._grammar_state
        )
        if allowed is not None and not allowed.any():
            return None
        draw = self.sampler.draw(logits, len(self.ids), self.history, self._state, allowed)
        if allowed is not None and not allowed[draw.id] and draw.id not in self.ends:
            raise Error(f"the sampler drew token {draw.id}, which is not allowed here")
        return draw

    def add(self, token: int) -> None:
        """Append a drawn token."""
        self.ids.append(token)
        self.history.append(token)
        if self.constraint is not None:
            self._grammar_state = self.constraint.accept(self._grammar_state, token)

    def possible(self, tokens: Sequence[int]) -> int:
        """Return how many of these tokens may come next, before one ends the text or cannot."""
        state, size = self._grammar_state, self.model.config.vocab_size
        if self.model.tokenizer is not None and self.model.tokenizer.has_text:
            size = min(size, len(self.model.tokenizer))
        for i, token in enumerate(tokens):
            if token in self.ends or not 0 <= token < size:
                return i
            if self.constraint is not None:
                state = self.constraint.accept(state, token)
                if not state:
                    return i
        return len(tokens)
