"""Path patching: what one part of a model tells another one directly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..base.checks import is_integer
from ..base.numeric import Float32, Float64
from ..base.progress import Progress
from ..errors import UnsupportedError
from ..runtime.prompt import is_batch, token_ids
from ..trace.edits import Edit, patch
from ..trace.taps import match
from .sweep import sweep

if TYPE_CHECKING:
    from ..runtime.runner import Runner

__all__ = ["path_patching"]

#: Number of tokens of several senders that run together.
_ROWS = 512

#: Roles of values that are added to the residual stream, and of the stream itself.
_SENDERS = frozenset(("attn_mix", "attn_add", "ffn_add", "resid_pre", "resid_post"))

#: Operations that carry values from one token to another without attention.
_MIXERS = frozenset(("conv", "delta", "scan", "scan_channels"))

#: A tap, and a head or None.
_Place: TypeAlias = tuple[str, "int | None"]


def path_patching(
    model: Runner,
    clean: Any,
    corrupted: Any,
    senders: Sequence[Any],
    receivers: Sequence[Any],
    metric: Callable[[Float32], Any],
    *,
    freeze_ffn: bool = True,
    logits: str = "last",
    progress: bool = True,
) -> Float64:
    """Measure what senders tell receivers directly, along the residual stream.

    For each pair of a sender and a receiver, the sender has the value of the corrupted run. All
    heads and feed-forward networks between them keep their values of the clean run. The receiver is
    computed from that. Then the clean run is repeated with this value of the receiver alone, and
    measured. Wang et al. 2022, "Interpretability in the Wild" (arXiv:2211.00593), section 3.1 and
    appendix B; Goldowsky-Dill et al. 2023, "Localizing Model Behavior with Path Patching"
    (arXiv:2304.05969).

    Parameters
    ----------
    model : Model
    clean, corrupted : str, bytes or ids
        Two prompts with the same number of tokens.
    senders : sequence
        Each is the name of a tap, or ``(tap, head)``, or a list of them that send together. The
        output of a head is ``("blk.3.attn_mix", 5)``, that of a feed-forward network
        ``"blk.3.ffn_down"``, that of all heads ``"blk.3.attn_output"``. The stream and the
        embedding can send, too: ``"blk.3.resid_pre"``, ``"token_embd"``.
    receivers : sequence
        Each is the name of a tap, or ``(tap, head)``, or a list of them that receive together:
        ``("blk.5.attn_q", 2)``, or ``attn_k`` and ``attn_v`` with the number of a kv head;
        ``"blk.5.ffn_norm"``, the input of a feed-forward network; ``"output"``, the logits.
    metric : callable
        ``metric(logits)`` -> float, as for `tinyllm.sweep`.
    freeze_ffn : bool
        False computes the feed-forward networks between sender and receiver anew, as Wang et al.
        do. The paths through them then count as direct.
    logits : str
        As for `tinyllm.sweep`.
    progress : bool
        Whether to show a progress bar if it takes long.

    Returns
    -------
    numpy.ndarray of float64, shape (senders, receivers)
        The metric of each run. Subtract ``metric(model.logits(clean)[-1:])`` to get effects. It is
        exactly this number where the receiver comes before the sender.

    Raises
    ------
    ValueError
        If the prompts differ in length, or a place is unknown or cannot send or receive.
    IndexError
        If a tap does not have a head.
    TypeError
        If `metric` is not a function, or a place is not written as above.
    tinyllm.UnsupportedError
        If a block has attention and states side by side (falcon-h1): the paths through the states
        cannot be held.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> def metric(logits):
    ...     return logits[-1, 5] - logits[-1, 6]
    >>> heads = [("blk.0.attn_mix", h) for h in range(model.config.heads)]
    >>> receivers = [("blk.2.attn_q", 0), "blk.3.ffn_norm", "output"]
    >>> tl.path_patching(model, [1, 2, 3], [1, 4, 3], heads, receivers, metric).shape
    (4, 3)
    """
    model.need_logits()
    sending = _places(model, "senders", senders)
    receiving = _places(model, "receivers", receivers)
    frozen = _frozen(model, freeze_ffn)
    known = {tap.name for tap in model.taps if tap.layer < 0 or _SENDERS.intersection(tap.roles)}
    for name in {name for group in sending for name, _ in group}:
        if name not in known:
            raise ValueError(
                f"senders holds {name!r}, which is not added to the residual stream; expected "
                "the output of a head or of a network (attn_mix, attn_output, ffn_down), or the "
                "stream"
            )
    for name in {name for group in receiving for name, _ in group}:
        if name in frozen:
            raise ValueError(
                f"receivers holds {name!r}, which path patching holds at its clean value; expected "
                "what a head or a network reads (attn_q, attn_k, attn_v, ffn_norm), or output"
            )
    ids = [_ids(model, clean, "clean"), _ids(model, corrupted, "corrupted")]
    if len(ids[0]) != len(ids[1]):
        raise ValueError(
            f"clean has {len(ids[0])} tokens and corrupted {len(ids[1])}; expected equal numbers"
        )
    names = sorted({name for group in sending for name, _ in group})
    base = model.trace(ids[0], frozen)
    other = model.trace(ids[1], names)
    hold = [patch(name, base) for name in frozen]
    heard = sorted({name for group in receiving for name, _ in group})
    at_once = max(1, _ROWS // len(ids[0]))
    result = np.empty((len(sending), len(receiving)))
    with Progress(len(sending), "patching paths", progress) as bar:
        for first in range(0, len(sending), at_once):
            part = sending[first : first + at_once]
            programs = [
                # edits of one tap apply in order: the sender's comes last
                [*hold, *(patch(name, other, head=head) for name, head in group)]
                for group in part
            ]
            traces = model.trace([ids[0]] * len(part), heard, edits=programs)
            edits: list[list[Edit]] = [
                [patch(name, trace, head=head) for name, head in group]
                for trace in traces
                for group in receiving
            ]
            measured = sweep(model, ids[0], edits, metric, logits=logits, progress=False)
            result[first : first + len(part)] = measured.reshape(len(part), -1)
            bar.add(len(part))
    return result


def _ids(model: Runner, prompt: Any, name: str) -> Any:
    if is_batch(prompt):
        raise TypeError(f"{name} is a batch; expected one prompt")
    return token_ids(prompt, model.tokenizer, name)


def _places(model: Runner, what: str, given: Any) -> list[list[_Place]]:
    """Return each sender or receiver as a list of taps and heads."""
    if isinstance(given, (str, bytes)) or not isinstance(given, (Sequence, np.ndarray)):
        raise TypeError(f"{what} is {given!r}; expected a list of taps or of (tap, head)")
    groups = [
        [_place(model, what, each) for each in (item if isinstance(item, list) else [item])]
        for item in given
    ]
    if not groups or not all(groups):
        raise ValueError(f"{what} is {given!r}; expected at least one tap")
    return groups


def _place(model: Runner, what: str, given: Any) -> _Place:
    name, head = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if not isinstance(name, str) or not (head is None or is_integer(head)):
        raise TypeError(f"{what} holds {given!r}; expected a tap or (tap, head)")
    found = match([tap.name for tap in model.taps], name, what)
    if len(found) != 1:
        raise ValueError(f"{what} holds {name!r}, which is {len(found)} taps; expected one tap")
    return found[0], None if head is None else int(head)


def _frozen(model: Runner, ffn: bool) -> list[str]:
    """Return the taps that keep their clean values: the outputs of heads and of networks."""
    steps, found = model.steps, []
    for layer in range(model.config.layers):
        states = any(step.layer == layer and step.op in _MIXERS for step in steps)
        attention = steps.has_role("attn_mix", layer)
        if attention and states:
            raise UnsupportedError(
                f"block {layer} has attention and states side by side; path patching needs blocks "
                "with one of them"
            )
        if attention:
            found.append(steps.role("attn_mix", layer))
        elif steps.has_role("attn_add", layer):
            found.append(steps.role("attn_add", layer))
        if ffn and steps.has_role("ffn_add", layer):
            found.append(steps.role("ffn_add", layer))
    return found
