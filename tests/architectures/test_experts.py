"""Mixtures of experts: the router, the experts, their sum, and the rows that have them."""

import pytest

import tinyllm as tl
from testkit import data, hf, mixtures, models
from tinyllm import reference

pytestmark = pytest.mark.sanitize

CHECKPOINTS = {
    "mixtral": "llama",
    "qwen2moe": "qwen2moe",
    "qwen3moe": "qwen3moe",
    "olmoe": "olmoe",
    "granitemoe": "granitemoe",
    "granitemoe_shared": "granitemoe",
    "gptoss": "gpt-oss",
}


def load(tmp_path, metadata, tensors, **options):
    return tl.load(models.write(tmp_path / "m.gguf", metadata, tensors), **options)


def same_as_the_reference(model, ids):
    want = reference.forward(model.steps, model.weights, ids)
    got = model.trace(ids, "*")
    assert list(got) == list(want)
    for name, array in want.items():
        assert models.normwise_error(got[name], array) < 2e-6, name
    return want


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_hidden_states_and_logits_are_those_of_hugging_face(name, tmp_path):
    directory = data.path("hf", name)
    model = load(tmp_path, *hf.load_checkpoint(directory))
    assert model.config.architecture == CHECKPOINTS[name]
    ids, logits, hidden = hf.load_golden(directory)
    exact = reference.forward(model.steps, model.weights, ids)
    trace = model.trace(ids, "*")
    taps = [*model.steps.roles("resid_pre"), model.steps.role("final_norm")]
    for tap, want in zip([model.steps.role("logits"), *taps], [logits, *hidden], strict=True):
        assert models.normwise_error(exact[tap], want) < 5e-6, tap
        assert models.normwise_error(trace[tap], want) < 1e-5, tap
    assert models.normwise_error(model.logits(ids), logits) < 1e-5


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_tap_of_a_checkpoint(name, tmp_path):
    directory = data.path("hf", name)
    model = load(tmp_path, *hf.load_checkpoint(directory))
    same_as_the_reference(model, hf.load_golden(directory)[0])


@pytest.mark.parametrize("type_name", models.TYPES)
def test_every_tap_of_every_type(type_name, tmp_path):
    model = load(tmp_path, *mixtures.random_mixture(type_name))
    same_as_the_reference(model, models.random_ids(model, 40))


@pytest.mark.parametrize("architecture", mixtures.ROWS)
def test_every_tap_of_every_row(architecture, tmp_path):
    options = mixtures.ROWS[architecture]
    model = load(tmp_path, *mixtures.random_mixture(architecture=architecture, **options))
    same_as_the_reference(model, models.random_ids(model, 40))


@pytest.mark.parametrize(
    "options",
    [
        {"used": 1},
        {"used": 8},
        {"experts": 1, "used": 1},
        {"experts": 5, "used": 3, "width": 80, "ffn": 24, "heads": 4, "head_size": 20},
        {"fused": True},
        {"fused": True, "biases": True, "scales": True},
        {"biases": True},
        {"scales": True, "type_name": "Q4_K"},
        {"type_name": "Q4_K", "down_type": "Q6_K"},
        {"choice_bias": True},
        {"dense": 1},
        {"shared": 128},
        {"metadata": {"llama.expert_gating_func": 2}},
        {"metadata": {"llama.expert_gating_func": 3}},
        {"metadata": {"llama.expert_weights_norm": False}},
        {"metadata": {"llama.expert_weights_scale": 2.5}},
        {
            "choice_bias": True,
            "metadata": {"llama.expert_group_count": 4, "llama.expert_group_used_count": 2},
        },
    ],
)
def test_every_tap_of_every_kind(options, tmp_path):
    model = load(tmp_path, *mixtures.random_mixture(**options))
    same_as_the_reference(model, models.random_ids(model, 40))
