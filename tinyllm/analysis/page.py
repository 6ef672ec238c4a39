"""The page of a trace, with what takes the weights of its model: the logit lens."""

from __future__ import annotations

from ..display.page import Guesses, Page
from ..runtime.runner import Runner
from ..trace.trace import Trace
from .lens import lens

__all__ = ["page"]


def page(trace: Trace, model: Runner) -> Page:
    """Return the page of a trace.

    Parameters
    ----------
    trace : Trace
    model : Model
        The model of the trace.

    Returns
    -------
    tinyllm.display.page.Page
    """
    made = trace.page()
    names = trace.by_role("resid_post")
    if model.steps.roles("logits") and names:
        found = lens(trace, min(5, model.config.vocab_size), taps=names, model=model)
        made.lens = Guesses(found.names, found.pieces, found.probs)
    return made
