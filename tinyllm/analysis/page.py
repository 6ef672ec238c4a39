"""The page of a trace, with what takes the weights of its model: lens and attribution."""

from __future__ import annotations

from ..display.page import PARTS, Guesses, Page, largest
from ..runtime.runner import Runner
from ..trace.trace import Trace
from .attribution import attributions
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
    if not (model.steps.roles("logits") and model.steps.ends_with_stream and names):
        return made
    found = lens(trace, min(5, model.config.vocab_size), taps=names, model=model)
    made.lens = Guesses(found.names, found.pieces, found.probs)
    if model.steps.role("resid_post", model.config.layers - 1) == names[-1]:  # the prediction
        parts = attributions(trace, found.ids[-1, :, 0], model)
        if parts is not None:
            predicted = [guesses[0] for guesses in found.pieces[-1]]
            made.parts = largest(*parts, PARTS, predicted)
    return made
