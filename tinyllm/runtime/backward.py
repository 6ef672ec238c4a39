"""Which values of a forward pass its backward pass reads."""

from __future__ import annotations

from collections.abc import Collection

from ..architectures.plan import ForwardPlan, Step

__all__ = ["values_needed"]

#: For each op, which of the values that its step reads are in the formula of its gradient. Linear
#: ops have none. Derivatives by weights use more: see `_BY_WEIGHTS`.
_READS = {
    "norm_scale": (0,),
    "norm": (0, 1),
    "layer_scale": (0, 1),
    "layer_norm": (0, 1, 2),
    "scores": (0, 1),
    "softmax": (0,),
    "mix": (0, 1),
    "combine": (0, 1),
    "match_rms": (0, 1),
    "sparsify": (0, 1, 2),
    "act": (0, 1),
    "unary": (0,),
    "softplus": (0,),
    "xielu": (0,),
    "exp": (0,),
    "decay": (0,),
    "delta": (0, 1, 2, 3, 4),
    "scan": (0, 1, 2, 3, 4),
    "scan_channels": (0, 1, 2, 3),
    "wkv": (0, 1, 2, 3, 4, 5),
    "route_probs": (0,),
    "route_weights": (0, 1),
    "experts": (1,),
    "weighted_sum": (0, 1),
}

#: The same for the derivatives by an op's weights.
_BY_WEIGHTS = {"linear": (0,)}


def values_needed(
    plan: ForwardPlan,
    wanted: Collection[str],
    edited: Collection[str] = (),
    *,
    weights: Collection[str] = (),
) -> list[str]:
    """Return the taps that a forward pass must capture for the gradients of some taps.

    Parameters
    ----------
    plan : ForwardPlan
    wanted : collection of str
        The taps whose gradients are wanted.
    edited : collection of str
        The taps that edits change.
    weights : collection of str
        The tensors whose derivatives are wanted.

    Returns
    -------
    list of str
        In the order of the forward pass.

    Examples
    --------
    >>> import tinyllm as tl
    >>> from tinyllm.runtime.backward import values_needed
    >>> steps = tl.load().steps
    >>> values_needed(steps, [steps.role("final_norm")])
    []
    """
    depends: set[str] = set()
    needed: set[str] = set()
    for step in plan:
        trained = any(name in weights for name in step.weights)
        flows = trained or any(name in depends for name in step.reads)
        if (flows or step.tap in wanted) and step.op != "route_ids":
            depends.add(step.tap)
        if not flows:
            continue
        reads = [step.reads[i] for i in _READS.get(step.op, ())]
        if step.op == "softmax" and not (step.tap in edited or _capped(plan, step)):
            reads = []  # the probabilities tell enough
        needed.update(reads)
        if trained:
            needed.update(step.reads[i] for i in _BY_WEIGHTS.get(step.op, ()))
    return [step.tap for step in plan if step.tap in needed]


def _capped(plan: ForwardPlan, step: Step) -> bool:
    """Whether the scores that a step `softmax` reads have a soft cap."""
    return plan[step.reads[0]].number("cap") > 0
