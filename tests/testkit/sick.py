"""Engines with known mistakes: the reference walk with faults of the doctor injected."""

import numpy as np

from tinyllm.diagnosis.faults import candidates
from tinyllm.diagnosis.replay import Replay

#: What an engine dumps, by the name of the kind of dump.
DUMPS = {
    "full": lambda step: True,
    "sparse": lambda step: "resid_post" in step.roles,
    "logits": lambda step: "logits" in step.roles,
}

#: Variants that are the same as another fault, or change nothing that a dump shows.
SAME = {("position_restarts", ("every", 1)), ("norm_epsilon", 1e-6)}


def sick_values(model, ids, faults, kind="full", seed=0):
    """Return the dump of an engine with some faults, rounded as another float32 engine would."""
    random = np.random.default_rng(seed)
    taps = [step.tap for step in model.steps if step.visible and DUMPS[kind](step)]
    values = Replay(model, ids, {}).values(faults, taps)
    dump = {}
    for tap, value in values.items():
        exact = model.steps[tap].op in ("route_ids", "embed")
        noise = 0 if exact else 2e-7 * random.standard_normal(value.shape)
        with np.errstate(invalid="ignore"):
            dump[tap] = (value * (1 + noise)).astype(np.float32)
    return {**dump, "tokens": np.asarray(ids)}


def sicknesses(model, tokens):
    """Return one candidate for each fault that a model can have, its most visible variant."""
    chosen = {}
    for candidate in candidates(model.steps, model.weights, tokens):
        if (
            candidate.fault.name,
            candidate.variant.value,
        ) not in SAME and not candidate.variant.near:
            chosen.setdefault(candidate.fault.name, candidate)
    return list(chosen.values())
