"""The samplers: one function each, which removes or changes candidates.

To add a sampler, write one function here. It gets the tokens that are still possible
(`Candidates`), further information (`Context`) and its own parameters. It returns the candidates
that it keeps, at least one.

exp, log, softmax and sum come from the C core, and sums are added in a fixed order. Therefore the
same logits and seed give the same token on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..base.checks import integer, is_integer
from ..base.numeric import Float64
from .philox import uniform

if TYPE_CHECKING:
    from ..grammar.grammar import Grammar
    from ..tokenizer import Tokenizer

__all__ = ["SAMPLERS", "Candidates", "Context", "sampler"]

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """The tokens that are still possible, and their logits.

    Parameters
    ----------
    ids : ndarray of int64, (n,)
    logits : ndarray of float64, (n,)
    ordered : bool
        Whether the largest logit is first (of equal ones, the lowest id). False: sorted by id.
    """

    ids: Ids
    logits: Float64
    ordered: bool = False

    def best_first(self) -> Candidates:
        """Return the same candidates, largest logit first (of equal ones, the lowest id)."""
        if self.ordered:
            return self
        order = np.argsort(-self.logits, kind="stable")
        return Candidates(self.ids[order], self.logits[order], True)

    def keep(self, which: NDArray[np.bool_] | slice) -> Candidates:
        """Return some of the candidates, in the same order."""
        return Candidates(self.ids[which], self.logits[which], self.ordered)

    def with_logits(self, logits: Float64, ordered: bool = False) -> Candidates:
        """Return the same tokens with other logits; `ordered` says that their order is the same."""
        if ordered or not self.ordered:
            return Candidates(self.ids, logits, self.ordered)
        order = np.argsort(self.ids)
        return Candidates(self.ids[order], logits[order])

    @property
    def probabilities(self) -> Float64:
        """Softmax of the logits, float64, (n,)."""
        return _core.softmax(self.logits)


@dataclass
class Context:
    """What samplers may use in addition to the logits.

    Parameters
    ----------
    history : sequence of int
        The ids so far: the prompt and the generated tokens.
    seed : int
        The seed of the generation.
    step : int
        The position of the token in the generation: 0, 1, ...
    state : dict
        The state that samplers keep from one token to the next, by sampler name.
    after : list of callable
        Functions to call with the probability of the drawn token.
    trial : bool
        Whether this call only checks the parameters, on three made-up candidates.
    """

    history: Sequence[int] = ()
    seed: int = 0
    step: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    after: list[Callable[[float], None]] = field(default_factory=list)
    trial: bool = False

    def uniform(self, stream: int) -> float:
        """Return the random number of this token from a stream other than 0."""
        return uniform(self.seed, self.step, stream)


SamplerFunction = Callable[..., Candidates]

#: Name -> function, registered by the decorator `sampler`.
SAMPLERS: dict[str, SamplerFunction] = {}


def sampler(name: str) -> Callable[[SamplerFunction], SamplerFunction]:
    """Return a decorator that registers ``(candidates, context, value, ...) -> candidates``.

    Parameters
    ----------
    name : str
        The name of the sampler: its keyword in `Sampler`.

    Returns
    -------
    callable

    Examples
    --------
    >>> @sampler("only_even")
    ... def only_even(candidates, context, on):
    ...     return candidates.keep(candidates.ids % 2 == 0) if on else candidates
    >>> from tinyllm import Sampler
    >>> Sampler(only_even=True, temperature=0).sample([0.0, 9.0, 1.0], step=0)
    2
    >>> del SAMPLERS["only_even"]
    """

    def register(function: SamplerFunction) -> SamplerFunction:
        SAMPLERS[name] = function
        return function

    return register


def _check(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise ValueError(f"{name} is {value!r}; expected {expected}")


def _number(name: str, value: Any) -> float:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} is {value!r}; expected a number")
    _check(not np.isnan(value), name, value, "a number")
    return float(value)


@sampler("temperature")
def temperature(candidates: Candidates, context: Context, value: float) -> Candidates:
    """Divide the logits by a value; 0 keeps only the best token (the lowest id of equal ones)."""
    value = _number("temperature", value)
    _check(0 <= value < float("inf"), "temperature", value, "a finite number >= 0")
    if value == 0:
        best = int(np.argmax(candidates.logits))
        if not candidates.ordered:
            return candidates.keep(slice(best, best + 1))
        return candidates.keep(slice(0, 1))
    return candidates.with_logits(candidates.logits / value, ordered=True)


@sampler("top_k")
def top_k(candidates: Candidates, context: Context, k: int) -> Candidates:
    """Keep the k best tokens; 0 or less keeps all, as in llama.cpp."""
    k = integer("top_k", k)
    size = len(candidates.ids)
    if k <= 0 or k >= size:
        return candidates
    if not candidates.ordered:
        # sort only the tokens that are at least as good as the k-th best
        limit = np.partition(candidates.logits, size - k)[size - k]
        candidates = candidates.keep(candidates.logits >= limit).best_first()
    return candidates.keep(slice(0, k))


@sampler("top_p")
def top_p(candidates: Candidates, context: Context, p: float) -> Candidates:
    """Keep the smallest number of best tokens whose probabilities sum to p, 0 to 1; 1 keeps all.

    Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020).
    """
    p = _number("top_p", p)
    _check(0 <= p <= 1, "top_p", p, "0 to 1")
    if p == 1:
        return candidates
    candidates = candidates.best_first()
    total = np.add.accumulate(candidates.probabilities)
    count = int(np.searchsorted(total, p)) + 1
    return candidates.keep(slice(0, max(count, 1)))


@sampler("min_p")
def min_p(candidates: Candidates, context: Context, p: float) -> Candidates:
    """Keep the tokens that are at least p times as probable as the best; 0 keeps all.

    Nguyen et al., "Turning Up the Heat: Min-p Sampling" (2024).
    """
    p = _number("min_p", p)
    _check(0 <= p <= 1, "min_p", p, "0 to 1")
    if p == 0:
        return candidates
    limit = candidates.logits.max() + float(_core.log([p])[0])
    return candidates.keep(candidates.logits >= limit)


# ---- by probability ----


def _entropy(probabilities: Float64, logs: Float64) -> float:
    """Return -sum p log p, with 0 log 0 = 0."""
    seen = probabilities > 0
    return -_core.sum(probabilities[seen] * logs[seen])


def _logs(probabilities: Float64) -> Float64:
    return np.asarray(_core.log(probabilities))


@sampler("typical")
def typical(candidates: Candidates, context: Context, p: float) -> Candidates:
    """Keep the tokens with a surprisal closest to the entropy, up to a total of p; 1 keeps all.

    Meister et al., "Locally Typical Sampling" (2023).
    """
    p = _number("typical", p)
    _check(0 < p <= 1, "typical", p, "a number > 0 and <= 1")
    if p == 1:
        return candidates
    candidates = candidates.best_first()
    probabilities = candidates.probabilities
    logs = _logs(probabilities)
    distance = np.abs(-logs - _entropy(probabilities, logs))
    order = np.argsort(distance, kind="stable")
    total = np.add.accumulate(probabilities[order])
    count = int(np.searchsorted(total, p, side="right")) + 1
    kept = np.zeros(len(order), bool)
    kept[order[:count]] = True
    return candidates.keep(kept)


@sampler("top_n_sigma")
def top_n_sigma(candidates: Candidates, context: Context, n: float) -> Candidates:
    """Keep the logits within n standard deviations of the largest; 0 or less keeps all.

    Tang et al., "Top-n-sigma: Not All Logits Are You Need" (2024).
    """
    n = _number("top_n_sigma", n)
    if not n > 0:
        return candidates
    finite = candidates.logits[np.isfinite(candidates.logits)]
    mean = _core.sum(finite) / len(finite)
    deviation = float(np.sqrt(_core.sum((finite - mean) ** 2) / len(finite)))
    return candidates.keep(candidates.logits >= candidates.logits.max() - n * deviation)


@sampler("xtc")
def xtc(
    candidates: Candidates, context: Context, probability: float, threshold: float = 0.1
) -> Candidates:
    """With some probability, drop all tokens that reach a threshold but the least probable.

    "Exclude top choices", https://github.com/oobabooga/text-generation-webui/pull/6335.
    """
    probability = _number("xtc", probability)
    threshold = _number("xtc threshold", threshold)
    _check(0 <= probability <= 1, "xtc", probability, "0 to 1")
    _check(threshold >= 0, "xtc threshold", threshold, "a number >= 0")
    if context.uniform(1) >= probability or threshold > 0.5:
        return candidates
    candidates = candidates.best_first()
    count = int((candidates.probabilities >= threshold).sum())
    return candidates.keep(slice(max(count - 1, 0), None))


@sampler("dynamic_temperature")
def dynamic_temperature(
    candidates: Candidates, context: Context, value: float, range: float, exponent: float = 1.0
) -> Candidates:
    """Divide the logits by a temperature from value - range to value + range, by entropy.

    As in llama.cpp's `temp_ext`, the position between the two is the entropy, relative to the
    largest possible, to the power of `exponent`.
    """
    value = _number("dynamic_temperature", value)
    range_ = _number("dynamic_temperature range", range)
    exponent = _number("dynamic_temperature exponent", exponent)
    _check(value >= 0, "dynamic_temperature", value, "a number >= 0")
    _check(range_ >= 0, "dynamic_temperature range", range_, "a number >= 0")
    _check(exponent > 0, "dynamic_temperature exponent", exponent, "a number > 0")
    if range_ == 0 or len(candidates.ids) < 2:
        return temperature(candidates, context, value)
    low, high = max(value - range_, 0.0), value + range_
    probabilities = candidates.probabilities
    most = float(_core.log([float(len(probabilities))])[0])
    part = max(_entropy(probabilities, _logs(probabilities)) / most, 0.0)
    if part > 0:
        part = float(_core.exp([exponent * float(_core.log([part])[0])])[0])
    return temperature(candidates, context, low + (high - low) * part)


# ---- by history ----


def _last(history: Sequence[int], count: int) -> list[int]:
    """Return the last `count` ids of the history; a negative count returns all."""
    count = integer("last_n", count)
    return list(history if count < 0 else history[max(len(history) - count, 0) :])


def _counts(candidates: Candidates, history: list[int]) -> NDArray[np.int64]:
    """Return how often each candidate occurs in the history."""
    if not history:
        return np.zeros(len(candidates.ids), np.int64)
    seen, counts = np.unique(np.asarray(history, np.int64), return_counts=True)
    at = np.minimum(np.searchsorted(seen, candidates.ids), len(seen) - 1)
    return np.asarray(np.where(seen[at] == candidates.ids, counts[at], 0), np.int64)


@sampler("repeat_penalty")
def repeat_penalty(
    candidates: Candidates, context: Context, value: float, last_n: int = 64
) -> Candidates:
    """Divide positive logits of tokens that occurred by a value; multiply negative ones.

    The value 1 changes nothing. Keskar et al., "CTRL" (2019).
    """
    value = _number("repeat_penalty", value)
    _check(0 < value < np.inf, "repeat_penalty", value, "a finite number > 0")
    seen = _counts(candidates, _last(context.history, last_n)) > 0
    if value == 1 or not seen.any():
        return candidates
    logits = candidates.logits
    changed = np.where(logits > 0, logits / value, logits * value)
    return candidates.with_logits(np.where(seen, changed, logits))


@sampler("frequency_penalty")
def frequency_penalty(
    candidates: Candidates, context: Context, value: float, last_n: int = 64
) -> Candidates:
    """Subtract a value from a logit for each time that the token occurred."""
    value = _number("frequency_penalty", value)
    _check(np.isfinite(value), "frequency_penalty", value, "a finite number")
    counts = _counts(candidates, _last(context.history, last_n))
    if value == 0 or not counts.any():
        return candidates
    return candidates.with_logits(candidates.logits - value * counts)


@sampler("presence_penalty")
def presence_penalty(
    candidates: Candidates, context: Context, value: float, last_n: int = 64
) -> Candidates:
    """Subtract a value from the logits of tokens that occurred."""
    value = _number("presence_penalty", value)
    _check(np.isfinite(value), "presence_penalty", value, "a finite number")
    seen = _counts(candidates, _last(context.history, last_n)) > 0
    if value == 0 or not seen.any():
        return candidates
    return candidates.with_logits(candidates.logits - value * seen)


@sampler("dry")
def dry(
    candidates: Candidates,
    context: Context,
    multiplier: float,
    base: float = 1.75,
    allowed_length: int = 2,
    last_n: int = -1,
    breakers: Iterable[int] = (),
) -> Candidates:
    """Penalize tokens that would continue a repetition, more for longer repetitions.

    "Don't repeat yourself", https://github.com/oobabooga/text-generation-webui/pull/5677: a token
    that would make a repeated run of n + 1 tokens, n >= allowed_length, loses multiplier *
    base ** (n - allowed_length). Runs do not extend across the ids in `breakers`, which are not
    penalized.
    """
    multiplier = _number("dry", multiplier)
    base = _number("dry base", base)
    _check(np.isfinite(multiplier), "dry", multiplier, "a finite number")
    _check(base >= 1, "dry base", base, "a number >= 1")
    _check(allowed_length >= 1, "dry allowed_length", allowed_length, "an int >= 1")
    apart = frozenset(breakers)
    longest = _repetitions(_last(context.history, last_n), apart)
    longest = {t: n for t, n in longest.items() if n >= allowed_length and t not in apart}
    if multiplier == 0 or not longest:
        return candidates
    logits = candidates.logits.copy()
    log_base = float(_core.log([base])[0])
    for i in np.flatnonzero(np.isin(candidates.ids, list(longest))):
        # llama.cpp's limit: beyond it float32 would overflow
        power = min((longest[int(candidates.ids[i])] - allowed_length) * log_base, 88.7228391)
        logits[i] -= multiplier * float(_core.exp([power])[0])
    return candidates.with_logits(logits)


def _repetitions(history: list[int], breakers: frozenset[int]) -> dict[int, int]:
    """Return the length of the longest repetition that each token would continue.

    A token continues a repetition of n tokens if it followed an earlier occurrence of the last n.
    """
    backwards = history[::-1]
    size = next((i for i, token in enumerate(backwards) if token in breakers), len(backwards))
    # z[i]: the length of the common prefix of backwards[i:] and backwards (Z algorithm)
    z = [0] * len(backwards)
    left = right = 0
    found: dict[int, int] = {}
    for i in range(1, len(backwards)):
        n = min(right - i, z[i - left]) if i < right else 0
        while i + n < len(backwards) and backwards[n] == backwards[i + n]:
            n += 1
        z[i] = n
        if i + n > right:
            left, right = i, i + n
        n = min(n, size)
        if n > 0:
            token = backwards[i - 1]
            found[token] = max(found.get(token, 0), n)
    return found


# ---- by id ----


@sampler("logit_bias")
def logit_bias(candidates: Candidates, context: Context, biases: Mapping[int, float]) -> Candidates:
    """Add a value to the logits of some ids; -inf excludes an id."""
    if not isinstance(biases, Mapping):
        raise TypeError(f"logit_bias is {biases!r}; expected a mapping of ids to numbers")
    ids = ids_of("logit_bias", biases)
    for token, bias in zip(ids, biases.values(), strict=True):
        name = f"logit_bias[{token}]"
        _check(_number(name, bias) < np.inf, name, bias, "a number below inf")
    logits = candidates.logits.copy()
    for token, bias in zip(ids, biases.values(), strict=True):
        logits[candidates.ids == token] += float(bias)
    changed = candidates.with_logits(logits)
    return candidates if context.trial else _possible("logit_bias", changed)


#: Samplers whose argument names tokens by id.
BY_ID = ("logit_bias", "banned", "allowed", "forced")


def ids_of(name: str, value: Any) -> list[int]:
    """Return the ids that the argument of one of the samplers `BY_ID` names.

    Parameters
    ----------
    name : str
        The name of the sampler.
    value : iterable of int, or mapping from ids
        Keys of a mapping may be texts of digits, as JSON writes them.

    Returns
    -------
    list of int

    Raises
    ------
    TypeError
        If something in it is not an id.

    Examples
    --------
    >>> ids_of("logit_bias", {"198": -1.0, 7: 2.0})
    [198, 7]
    """
    if isinstance(value, Mapping):
        value = [
            int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else key
            for key in value
        ]
    return [int(token) for token in _id_list(name, value)]


def _id_list(name: str, value: Any) -> NDArray[np.int64]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} is {value!r}; expected a list of ids")
    listed = list(value)
    if not all(map(is_integer, listed)):
        raise TypeError(f"{name} is {value!r}; expected a list of ids")
    return np.array([int(token) for token in listed], np.int64)


def _possible(name: str, candidates: Candidates) -> Candidates:
    """Return the candidates; raise if none is possible."""
    if not len(candidates.ids) or candidates.logits.max() == -np.inf:
        raise ValueError(f"{name} leaves no token to draw")
    return candidates


@sampler("banned")
def banned(candidates: Candidates, context: Context, ids: Iterable[int]) -> Candidates:
    """Drop some ids."""
    gone = np.isin(candidates.ids, _id_list("banned", ids))
    return candidates if context.trial else _possible("banned", candidates.keep(~gone))


@sampler("allowed")
def allowed(candidates: Candidates, context: Context, ids: Iterable[int]) -> Candidates:
    """Keep only some ids."""
    kept = np.isin(candidates.ids, _id_list("allowed", ids))
    return candidates if context.trial else _possible("allowed", candidates.keep(kept))


@sampler("forced")
def forced(candidates: Candidates, context: Context, ids: Sequence[int]) -> Candidates:
    """Force the first tokens of the generation, whatever their logits; change no later token."""
    tokens = _id_list("forced", ids)
    if context.trial or context.step >= len(tokens):
        return candidates
    return Candidates(tokens[context.step : context.step + 1], np.zeros(1))


@sampler("grammar")
def grammar(
    candidates: Candidates, context: Context, grammar: Grammar, tokenizer: Tokenizer | None = None
) -> Candidates:
    """Keep the tokens that a grammar allows next, and end tokens where the text is complete.

    The grammar applies to the generated text, without the prompt. Put this sampler before those
    that drop candidates, because they may leave none that fits. The option ``grammar=`` of
    `Model.generate` precedes all samplers and also ends the text when the grammar is finished.
    """
    from ..grammar.grammar import Grammar
    from ..tokenizer import Tokenizer

    if not isinstance(grammar, Grammar) or not isinstance(tokenizer, Tokenizer):
        raise TypeError(
            f"grammar is {grammar!r} with the tokenizer {tokenizer!r}; expected "
            "{'grammar': tl.Grammar..., 'tokenizer': model.tokenizer}"
        )
    if context.trial:
        return candidates
    if context.step > len(context.history):
        raise ValueError(
            f"grammar is at step {context.step} and history has {len(context.history)} ids; "
            "expected all generated ids"
        )
    known = context.state.setdefault("grammar", {})
    constraint, at, step = known.get(id(grammar), (None, 0, 0))
    if constraint is None or step > context.step:
        constraint = grammar.constraint(tokenizer)
        at, step = constraint.start(), 0
    for token in context.history[len(context.history) - (context.step - step) :]:
        if token >= len(tokenizer) or not (at := constraint.accept(at, token)):
            raise ValueError(f"token {token} was generated, which the grammar does not allow there")
    known[id(grammar)] = (constraint, at, context.step)
    mask = constraint.mask(at)
    inside = candidates.keep(candidates.ids < len(mask))
    left = inside.keep(mask[inside.ids])
    if not len(left.ids) or left.logits.max() == -np.inf:
        if constraint.is_finished(at):
            raise ValueError(
                "the grammar requires the end of the text, but no end token is possible"
            )
        raise ValueError(
            f"the grammar expects {constraint.expected(at)}, but no candidate fits; put grammar "
            "before samplers that drop candidates"
        )
    return left


# ---- by feedback ----

_LN2 = 0.6931471805599453


@sampler("mirostat")
def mirostat(
    candidates: Candidates, context: Context, tau: float, eta: float = 0.1, m: int = 100
) -> Candidates:
    """Choose k so that the surprisal of drawn tokens stays near tau bits. Must be last.

    Basu et al., "Mirostat" (2021), version 1. Zipf's exponent is estimated from the m best tokens.
    """
    _check(integer("mirostat m", m) >= 2, "mirostat m", m, "at least 2")
    state = _mirostat_state(candidates, context, "mirostat", tau, eta)
    candidates = candidates.best_first()
    probabilities = candidates.probabilities
    probabilities = probabilities[probabilities > 0]
    count = min(int(m), len(probabilities))
    if count >= 2:
        ranks = np.arange(1.0, count)
        steps = np.asarray(_core.log((ranks + 1) / ranks))
        drops = np.asarray(_core.log(probabilities[: count - 1] / probabilities[1:count]))
        exponent = _core.sum(steps * drops) / _core.sum(steps * steps)
        k = _mirostat_k(exponent, state["mu"], len(candidates.ids))
        candidates = candidates.keep(slice(0, k))
    return candidates


def _mirostat_k(exponent: float, mu: float, size: int) -> int:
    """Return k for the surprisal mu, by equation (2) of the paper."""
    epsilon = exponent - 1
    if exponent <= 0:
        return size
    log_size = float(_core.log([float(size)])[0])
    if abs(epsilon) < 1e-9:  # the limit: eps / (1 - n ** -eps) is 1 / log(n)
        ratio = 1 / log_size if log_size else 1.0
    else:
        ratio = epsilon / (1 - float(_core.exp([-epsilon * log_size])[0]))
    log_k = (float(_core.log([ratio])[0]) + mu * _LN2) / exponent
    return max(1, min(size, int(_core.exp([min(log_k, 50.0)])[0])))


@sampler("mirostat_v2")
def mirostat_v2(
    candidates: Candidates, context: Context, tau: float, eta: float = 0.1
) -> Candidates:
    """Drop tokens with a surprisal above a limit that adapts to the drawn tokens. Must be last.

    Basu et al., "Mirostat" (2021), version 2.
    """
    state = _mirostat_state(candidates, context, "mirostat_v2", tau, eta)
    candidates = candidates.best_first()
    probabilities = candidates.probabilities
    surprisal = -_logs(probabilities) / _LN2
    count = int(np.searchsorted(surprisal, state["mu"], side="right"))
    return candidates.keep(slice(0, max(count, 1)))


def _mirostat_state(
    candidates: Candidates, context: Context, name: str, tau: float, eta: float
) -> dict[str, float]:
    tau, eta = _number(name, tau), _number(f"{name} eta", eta)
    _check(0 <= tau < np.inf, name, tau, "a finite number >= 0")
    _check(0 <= eta < np.inf, f"{name} eta", eta, "a finite number >= 0")
    state: dict[str, float] = context.state.setdefault(name, {"mu": 2 * tau})

    def learn(probability: float) -> None:
        surprisal = -float(_core.log([probability])[0]) / _LN2
        state["mu"] -= eta * (surprisal - tau)

    context.after.append(learn)
    return state
