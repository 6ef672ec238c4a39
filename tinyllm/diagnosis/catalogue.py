"""`Fault`: one known mistake, and the list of all of them.

A mistake is a condition on the steps of a plan and a function that computes such a step wrongly
from its right inputs. So it exists on every architecture that has such a step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from ..architectures.plan import ForwardPlan, Step
from .replay import Array, Call, Injection

__all__ = [
    "CATALOGUE",
    "Candidate",
    "Fault",
    "Site",
    "Variant",
    "candidates",
    "fault",
    "named",
    "once",
]


@dataclasses.dataclass(frozen=True)
class Site:
    """A step of a model, as conditions see it.

    Attributes
    ----------
    plan : ForwardPlan
    step : Step
    tensors : mapping of str to Weight
    tokens : int
        How many tokens there are.
    prompt : int
        How many of them belong to the prompt, before the generated ones. 0: not known.
    """

    plan: ForwardPlan
    step: Step
    tensors: Mapping[str, Any]
    tokens: int
    prompt: int

    def reads(self, index: int) -> Step:
        """Return the step of an input."""
        return self.plan[self.step.reads[index]]

    def has(self, role: str) -> bool:
        """Return whether the block has a value with a role."""
        return self.plan.has_role(role, self.step.layer)

    @property
    def last(self) -> bool:
        """Whether the step comes after the blocks."""
        return self.step.layer == self.plan.layers


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to make a mistake.

    Attributes
    ----------
    text : str
        What it adds to the message of the mistake.
    value : Any
        What the functions of the mistake get.
    near : bool
        Whether it is only tried on values that depend on few steps. Such variants are many.
    """

    text: str = ""
    value: Any = None
    near: bool = False


Wrong: TypeAlias = Callable[[Call, Any], Array]
Where: TypeAlias = Callable[[Site, Any], bool]
Variants: TypeAlias = Callable[[ForwardPlan, int, int], Iterable[Variant]]


def once(plan: ForwardPlan, tokens: int, prompt: int) -> list[Variant]:
    """Return the only variant of a mistake that has no others."""
    return [Variant()]


def named(*variants: tuple[str, Any]) -> Variants:
    """Return a function that returns variants: their texts and values."""
    return lambda plan, tokens, prompt: [Variant(text, value) for text, value in variants]


@dataclasses.dataclass(frozen=True)
class Fault:
    """One known mistake.

    Attributes
    ----------
    name : str
    ops : tuple of str
        The ops of the steps that it changes.
    wrong : callable
        ``wrong(call, value)`` computes such a step wrongly. `value` is that of the variant.
    message : str
        What the engine does, in one sentence. ``{}`` stands for the text of the variant.
    repair : str
        What to change.
    where : callable
        ``where(site, value)``: whether it changes a step with such an op.
    variants : callable
        ``variants(plan, tokens, prompt)``: the ways to make it.
    """

    name: str
    ops: tuple[str, ...]
    wrong: Wrong
    message: str
    repair: str
    where: Where
    variants: Variants = once


@dataclasses.dataclass(frozen=True)
class Candidate(Injection):
    """A mistake in one of its variants, bound to the steps of a model."""

    fault: Fault
    variant: Variant

    @property
    def message(self) -> str:
        """The sentence for a person."""
        return self.fault.message.replace("{}", self.variant.text)


#: Every mistake by name, in the order in which equally good explanations are named.
CATALOGUE: dict[str, Fault] = {}


def fault(
    name: str,
    ops: str,
    message: str,
    repair: str,
    where: Where = lambda site, value: True,
    variants: Variants = once,
) -> Callable[[Wrong], Wrong]:
    """Enter the decorated function into the catalogue. The arguments are the fields of `Fault`."""

    def enter(wrong: Wrong) -> Wrong:
        CATALOGUE[name] = Fault(name, tuple(ops.split()), wrong, message, repair, where, variants)
        return wrong

    return enter


def candidates(
    plan: ForwardPlan,
    tensors: Mapping[str, Any],
    tokens: int,
    prompt: int = 0,
    names: Iterable[str] | None = None,
) -> list[Candidate]:
    """Return every mistake that a model offers, with the steps where it can be made.

    Parameters
    ----------
    plan : ForwardPlan
    tensors : mapping of str to Weight
    tokens : int
        How many tokens there are.
    prompt : int
        How many of them are the prompt; 0 if that is not known.
    names : iterable of str, optional
        Only these mistakes.

    Returns
    -------
    list of Candidate

    Examples
    --------
    >>> import tinyllm as tl
    >>> from tinyllm.diagnosis.faults import candidates
    >>> model = tl.load()
    >>> found = candidates(model.steps, model.weights, 8, names=["rope_missing"])
    >>> sorted(found[0].steps)[:2]
    ['blk.0.attn_k_rope', 'blk.0.attn_q_rope']
    """
    wanted = CATALOGUE if names is None else {name: CATALOGUE[name] for name in names}
    sites = [Site(plan, step, tensors, tokens, prompt) for step in plan if step.visible]
    found = []
    for entry in wanted.values():
        possible = [site for site in sites if site.step.op in entry.ops]
        for variant in entry.variants(plan, tokens, prompt) if possible else ():
            steps = {
                site.step.tap: _bound(entry.wrong, variant.value)
                for site in possible
                if entry.where(site, variant.value)
            }
            if steps:
                found.append(Candidate(steps, entry, variant))
    return found


def _bound(wrong: Wrong, value: Any) -> Callable[[Call], Array]:
    return lambda call: wrong(call, value)
