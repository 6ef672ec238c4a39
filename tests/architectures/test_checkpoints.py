"""Tiny checkpoints of Hugging Face: hidden states and results are those that it computed.

The results are in float64, apart from norms and rotations of the first checkpoints, which Hugging
Face computes in float32.
"""

import numpy as np
import pytest

import tinyllm as tl
from testkit import data, hf, models
from tinyllm import reference
from tinyllm.architectures.table import ARCHITECTURES

pytestmark = pytest.mark.sanitize

#: Those of the rows of the table. A reranker has no hidden states at the end (tests/embedding), and
#: T5 has two halves (test_decoders.py).
CHECKPOINTS = {
    name: row
    for name, row in hf.CHECKPOINTS.items()
    if row in ARCHITECTURES and name not in ("bert_rank", "t5")
}

#: Models whose RoPE depends on the longest context.
SHORT = ("phi3_longrope", "phimoe")

#: Models whose hidden states are those after each block, instead of before it.
AFTER = ("mamba", "falcon_mamba", "mamba2")

#: Models in whose blocks float32 moves a value further than in others.
TAP_LIMITS = {
    "bitnet": 1e-5,
    "qwen35moe": 1e-5,
    "qwen35": 1e-5,
    "qwen3next": 1e-5,
    "gemma4_e": 1e-5,
}


def case(name, long):
    """Return (model path's contents, ids, result, hidden states), or skip."""
    directory = data.path("hf", name)
    golden = np.load(directory.with_suffix(".npz"))
    key = "logits" if "logits" in golden else "last"
    return hf.load_checkpoint(directory), [golden[n + long] for n in ("ids", key, "hidden")]


@pytest.mark.parametrize(
    ("name", "long"),
    [*((name, "") for name in CHECKPOINTS), ("phi3_longrope", "_long")],
)
def test_hidden_states_and_results_are_those_of_hugging_face(name, long, tmp_path):
    file, (ids, result, hidden) = case(name, long)
    path = models.write(tmp_path / "m.gguf", *file)
    model = tl.load(path, max_context=len(ids) if name in SHORT else None)
    steps = model.steps
    assert model.config.architecture == CHECKPOINTS[name]
    exact = reference.forward(steps, model.weights, ids)
    trace = model.trace(ids, "*")
    assert list(trace) == list(exact)
    for tap, array in exact.items():
        assert models.normwise_error(trace[tap], array) < TAP_LIMITS.get(name, 2e-6), tap
    stream = steps.roles("resid_post" if name in AFTER else "resid_pre")
    last = steps.role("final_norm")
    if name == "gemma3n":  # whose last hidden state is the active stream, without a norm
        last = steps.roles("resid_post")[-1]
    taps = [*stream, last]
    if not steps.roles("logits"):
        result = hidden[-1]
    for tap, want in zip([steps[-1].tap, *taps], [result, *hidden], strict=True):
        assert models.normwise_error(exact[tap], want) < 1e-6, tap
        assert models.normwise_error(trace[tap], want) < 1e-5, tap
    if steps.roles("logits"):
        assert models.normwise_error(model.logits(ids), result) < 1e-5
