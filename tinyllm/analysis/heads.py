"""Scores of heads: how much each does of something known."""

from __future__ import annotations

import numpy as np

from ..base.checks import ranged
from ..base.numeric import Float32, Float64
from ..runtime.runner import Runner
from ..trace.trace import Trace

__all__ = ["attention_entropy", "induction_scores"]


def induction_scores(model: Runner, length: int = 32, *, batch: int = 4, seed: int = 0) -> Float64:
    """How much each head is an induction head.

    Random tokens are shown twice in a row; the score is the mean attention that the tokens of
    the second half pay to the token after their own first appearance. Olsson et al. 2022,
    "In-context Learning and Induction Heads" (arXiv:2209.11895), the "prefix matching score" of
    its appendix.

    Parameters
    ----------
    model : Model
    length : int
        Tokens that are repeated.
    batch : int
        How many sequences to average over.
    seed : int
        Of the tokens.

    Returns
    -------
    numpy.ndarray of float64, shape (layers, H)
        0 to 1; NaN where a layer has fewer heads than another.

    Raises
    ------
    ValueError
        `length` does not fit the context twice.

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
        name = model.steps.role("attn_probs", i)
        paid = [t[name][:, queries, queries - length + 1] for t in traces]
        scores[i, : paid[0].shape[0]] = np.mean(paid, axis=(0, 2), dtype=np.float64)
    return scores


def attention_entropy(trace: Trace) -> Float32:
    """How spread out each head's attention is, in nats.

    Clark et al. 2019, "What Does BERT Look At?" (arXiv:1906.04341), section 3.3. 0: all on one
    token; log(n): evenly over n tokens.

    Parameters
    ----------
    trace : Trace
        With ``attn_probs`` captured.

    Returns
    -------
    numpy.ndarray of float32, shape (layers, H, T)
        Of the captured layers.

    Raises
    ------
    ValueError
        No ``attn_probs`` was captured, or the layers differ in heads.

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
