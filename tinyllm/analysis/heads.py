"""Scores of attention heads."""

from __future__ import annotations

import numpy as np

from ..base.checks import ranged
from ..base.numeric import Float32, Float64
from ..runtime.runner import Runner
from ..trace.trace import Trace

__all__ = ["attention_entropy", "induction_scores"]


def induction_scores(model: Runner, length: int = 32, *, batch: int = 4, seed: int = 0) -> Float64:
    """Return the induction score of each head.

    The prompt is a sequence of random tokens, repeated once. The score is the mean attention from
    a token in the second half to the token after its first occurrence. It is the "prefix matching
    score" in the appendix of Olsson et al. 2022, "In-context Learning and Induction Heads"
    (arXiv:2209.11895).

    Parameters
    ----------
    model : Model
    length : int
        Number of random tokens, at least 2.
    batch : int
        Number of prompts to average over.
    seed : int
        Seed of the random tokens.

    Returns
    -------
    numpy.ndarray of float64, shape (layers, H)
        Scores from 0 to 1. NaN where a layer has fewer heads than another, or no attention.

    Raises
    ------
    ValueError
        If twice `length` tokens do not fit into the context.

    Examples
    --------
    >>> import tinyllm as tl
    >>> scores = tl.induction_scores(tl.load(), 8)
    >>> bool(((scores >= 0) & (scores <= 1)).all())
    True
    """
    config, tokenizer = model.config, model.tokenizer
    limit = model.core.config["max_context"]
    ranged("length", length, 2, (limit - 1) // 2)
    ranged("batch", batch, 1)
    ordinary = np.arange(config.vocab_size)
    start: list[int] = []
    if tokenizer is not None:
        known = [i for i in range(len(tokenizer)) if not tokenizer.is_special(i)]
        ordinary = np.array(known)
        if tokenizer.add_bos and tokenizer.bos is not None:
            start = [tokenizer.bos]
    random = np.random.default_rng(seed)
    prompts = []
    for _ in range(batch):
        once = ordinary[random.integers(0, len(ordinary), length)].tolist()
        prompts.append(start + once + once)
    traces = model.trace(prompts, model.steps.roles("attn_probs"))
    queries = np.arange(len(start) + length, len(start) + 2 * length - 1)
    most = max(config.layer("heads", i) for i in range(config.layers))
    scores = np.full((config.layers, most), np.nan)
    for i in range(config.layers):
        if not model.steps.has_role("attn_probs", i):
            continue
        name = model.steps.role("attn_probs", i)
        paid = [t[name][:, queries, queries - length + 1] for t in traces]
        scores[i, : paid[0].shape[0]] = np.mean(paid, axis=(0, 2), dtype=np.float64)
    return scores


def attention_entropy(trace: Trace) -> Float32:
    """Return the entropy of each head's attention, in nats.

    It is 0 if all attention goes to one token, and log(n) if it is uniform over n tokens. Clark et
    al. 2019, "What Does BERT Look At?" (arXiv:1906.04341), section 3.3.

    Parameters
    ----------
    trace : Trace
        A trace with ``attn_probs``.

    Returns
    -------
    numpy.ndarray of float32, shape (layers, H, T)
        One row per captured layer.

    Raises
    ------
    ValueError
        If no ``attn_probs`` was captured, or if layers differ in their number of heads.

    Examples
    --------
    >>> import tinyllm as tl
    >>> t = tl.load().trace("ROMEO:", "blk.*.attn_probs")
    >>> entropy = tl.attention_entropy(t)
    >>> float(abs(entropy[:, :, 0]).max())
    0.0
    """
    names = trace.by_role("attn_probs")
    if not names:
        raise ValueError("attention_entropy needs blk.*.attn_probs; capture it")
    probs = trace.stack(names).astype(np.float64)
    logs = np.log(probs, out=np.zeros_like(probs), where=probs > 0)
    entropy: Float32 = np.maximum(-(probs * logs).sum(axis=-1), 0).astype(np.float32)
    return entropy
