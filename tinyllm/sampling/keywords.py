"""The samplers as keywords of `Model.generate`: their names, and the order in which they run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

__all__ = ["DEFAULTS", "ORDER", "SamplerKeywords", "ordered"]


class SamplerKeywords(TypedDict, total=False):
    """The samplers that `Model.generate` takes beside `temperature`, `top_k` and `top_p`.

    A dict as a value holds the arguments of the sampler; see `tinyllm.sampling.samplers`.
    """

    logit_bias: Mapping[int, float]
    allowed: Iterable[int]
    banned: Iterable[int]
    repeat_penalty: float | Mapping[str, Any]
    frequency_penalty: float | Mapping[str, Any]
    presence_penalty: float | Mapping[str, Any]
    dry: float | Mapping[str, Any]
    dynamic_temperature: Mapping[str, Any]
    min_p: float
    typical: float
    top_n_sigma: float
    xtc: float | Mapping[str, Any]
    forced: Iterable[int]
    mirostat: float | Mapping[str, Any]
    mirostat_v2: float | Mapping[str, Any]


#: The samplers that a generation has by default, and their values.
DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.95}

#: Penalties act on the logits, as in llama.cpp. Temperature precedes the samplers that compare
#: probabilities, as in transformers. `forced` follows those that could leave nothing, and mirostat
#: must be last. A sampler that is not in the list runs before `forced`.
ORDER = (
    "logit_bias", "allowed", "banned", "repeat_penalty", "frequency_penalty", "presence_penalty",
    "dry", "temperature", "dynamic_temperature", "top_k", "top_p", "min_p", "typical",
    "top_n_sigma", "xtc", "grammar", "forced", "mirostat", "mirostat_v2",
)  # fmt: skip

#: What a sampler replaces, unless it is given as well: llama.cpp does the same.
_REPLACES = {
    "dynamic_temperature": ("temperature",),
    "mirostat": ("top_k", "top_p"),
    "mirostat_v2": ("top_k", "top_p"),
}


def ordered(defaults: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return all samplers of a generation in the order in which they run.

    Parameters
    ----------
    defaults : mapping of str to value
        The samplers of `DEFAULTS`.
    more : mapping of str to value
        The others.

    Returns
    -------
    dict

    Examples
    --------
    >>> list(ordered(DEFAULTS, {"min_p": 0.05, "repeat_penalty": 1.1}))
    ['repeat_penalty', 'temperature', 'top_k', 'top_p', 'min_p']
    >>> list(ordered(DEFAULTS, {"mirostat": 5.0}))
    ['temperature', 'mirostat']
    """
    replaced = {name for sampler in more for name in _REPLACES.get(sampler, ())}
    kept = {n: v for n, v in defaults.items() if n not in replaced or v != DEFAULTS[n]}
    values = {**kept, **more}
    place = {name: i for i, name in enumerate(ORDER)}
    before_forced = place["forced"] - 0.5
    return dict(sorted(values.items(), key=lambda item: place.get(item[0], before_forced)))
