"""Tiny checkpoints of Hugging Face: hidden states and results are those that it computed.

The results are in float64, apart from norms and rotations of the first checkpoints, which Hugging
Face computes in float32.
"""

import numpy as np
import pytest

import tinyllm as tl
from testkit import data, hf, models
from tinyllm import reference

pytestmark = pytest.mark.sanitize

CHECKPOINTS = {
    "llama": "llama",
    "llama_bias_tied": "llama",
    "llama31_rope": "llama",
    "llama_headdim": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "ministral3": "mistral3",
    "qwen2": "qwen2",
    "qwen2_yarn": "qwen2",
    "qwen2vl": "qwen2vl",
    "qwen2moe": "qwen2moe",
    "qwen3": "qwen3",
    "qwen3vl": "qwen3vl",
    "qwen3moe": "qwen3moe",
    "qwen3next": "qwen3next",
    "qwen35": "qwen35",
    "qwen35moe": "qwen35moe",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma2_dh": "gemma2",
    "gemma3": "gemma3",
    "gemma3_dh": "gemma3",
    "gemma4": "gemma4",
    "gemma4_e": "gemma4",
    "gemma4_moe": "gemma4",
    "embeddinggemma": "gemma-embedding",
    "gptoss": "gpt-oss",
    "phi3": "phi3",
    "phi3_longrope": "phi3",
    "granite": "granite",
    "granitemoe": "granitemoe",
    "granitemoe_shared": "granitemoe",
    "smollm3": "smollm3",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "olmoe": "olmoe",
    "lfm2": "lfm2",
    "lfm2_moe": "lfm2moe",
    "dots1": "dots1",
    "glm4_moe": "glm4moe",
    "minimax_m2": "minimax-m2",
    "hy_v3": "hy_v3",
    "exaone_moe": "exaone-moe",
    "ernie4_5_moe": "ernie4_5-moe",
    "gpt2": "gpt2",
    "gptneox": "gptneox",
    "gptneox_serial": "gptneox",
    "phi2": "phi2",
    "falcon": "falcon",
    "falcon_new": "falcon",
    "starcoder2": "starcoder2",
    "stablelm": "stablelm",
    "seed_oss": "seed_oss",
    "arcee": "arcee",
    "ernie4_5": "ernie4_5",
    "nemotron": "nemotron",
    "jais2": "jais2",
    "gpt_bigcode": "starcoder",
    "eurobert": "eurobert",
    "cohere": "command-r",
    "cohere2": "cohere2",
    "bert": "bert",
    "nomic_bert": "nomic-bert",
}

#: Checkpoints that float32 moves further: ten times what it costs Hugging Face's own float32.
LIMITS = {"qwen35moe": 7e-4, "qwen35": 8e-5, "qwen3next": 6e-5, "gemma4_e": 5e-5}


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
    model = tl.load(path, max_context=len(ids) if "longrope" in name else None)
    steps = model.steps
    assert model.config.architecture == CHECKPOINTS[name]
    limit = LIMITS.get(name, 1e-5)
    exact = reference.forward(steps, model.weights, ids)
    trace = model.trace(ids, "*")
    assert list(trace) == list(exact)
    for tap, array in exact.items():
        assert models.normwise_error(trace[tap], array) < limit / 4, tap
    taps = [*steps.roles("resid_pre"), steps.role("final_norm")]
    if not steps.roles("logits"):
        result = hidden[-1]
    for tap, want in zip([steps[-1].tap, *taps], [result, *hidden], strict=True):
        assert models.normwise_error(exact[tap], want) < 1e-5, tap
        assert models.normwise_error(trace[tap], want) < limit, tap
