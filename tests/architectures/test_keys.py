"""Keys that change what a model computes are used, refused or named; never read over."""

import copy
import pickle

import numpy as np
import pytest

import tinyllm as tl
from testkit import models
from tinyllm import reference
from tinyllm.architectures import keys

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
YARN = {
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 64,
}


def load(tmp_path, **more):
    extra = {f"llama.{key.replace('__', '.')}": value for key, value in more.items()}
    return models.random_model(tmp_path, layers=1, metadata=extra)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention__causal", False),
        ("attention__sliding_window", 4),
        ("attention__clamp_kqv", 0.5),
        ("attn_logit_softcapping", 1.0),
        ("final_logit_softcapping", 3.0),
        ("embedding_scale", 12.0),
        ("residual_scale", 0.22),
        ("logit_scale", 0.0625),
    ],
)
def test_a_value_that_changes_the_results_is_used(key, value, tmp_path):
    plain = load(tmp_path)
    model = load(tmp_path, **{key: value})
    want = reference.forward(model.steps, model.weights, IDS)[model.steps.role("logits")]
    assert models.normwise_error(model.logits(IDS), want) < 2e-6
    assert models.normwise_error(plain.logits(IDS), want) > 1e-3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention__max_alibi_bias", 8.0),
        ("use_parallel_residual", True),
        ("expert_count", 8),
        ("ssm__state_size", 16),
    ],
)
def test_a_value_that_changes_the_results_is_refused(key, value, tmp_path):
    with pytest.raises(tl.UnsupportedError, match=rf"llama\.{key.replace('__', '[.]')} is"):
        load(tmp_path, **{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention__causal", True),
        ("attention__sliding_window", 0),
        ("attention__sliding_window", 4096),
        ("attention__max_alibi_bias", 0.0),
        ("embedding_scale", 1.0),
        ("logit_scale", 0.0),
        ("use_parallel_residual", False),
        ("expert_count", 0),
        ("tensor_data_layout", "Meta AI original pth"),
        ("attention__layer_norm_epsilon", 1e-5),
    ],
)
def test_a_value_that_changes_nothing_loads_in_silence(key, value, tmp_path):
    plain = load(tmp_path).logits(IDS)
    assert np.array_equal(load(tmp_path, **{key: value}).logits(IDS), plain)


def test_an_unknown_key_is_named(tmp_path):
    with pytest.warns(UserWarning, match=r"llama\.attention\.twist"):
        load(tmp_path, attention__twist=2)


def test_keys_of_other_architectures_do_not_count(tmp_path):
    models.random_model(tmp_path, layers=1, metadata={"gemma2.attn_logit_softcapping": 50.0})


def test_the_extrapolation_of_yarn_takes_part(tmp_path):
    def logits(value):
        more = {**YARN, "llama.rope.scaling.yarn_ext_factor": value}
        model = models.random_model(tmp_path, layers=1, metadata=more)
        return model.logits(IDS), tl.reference.forward(model.steps, model.weights, IDS)["output"]

    one, half, none = (logits(value) for value in (1.0, 0.5, 0.0))
    plain = models.random_model(tmp_path, layers=1, metadata=YARN).logits(IDS)
    linear = {**YARN, "llama.rope.scaling.type": "linear"}
    assert np.array_equal(one[0], plain)
    assert np.array_equal(
        none[0], models.random_model(tmp_path, layers=1, metadata=linear).logits(IDS)
    )
    for ours, want in (one, half, none):
        assert models.normwise_error(ours, want) < 2e-6
    assert not np.array_equal(half[0], one[0])


def test_every_key_that_is_said_to_change_something_is_known_once():
    assert not set(keys._CHANGING) & keys._DESCRIPTIVE


def test_a_config_crosses_processes(tmp_path):
    config = models.random_model(tmp_path, layers=1, metadata=YARN).config
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(config)).rope_scaling["factor"] = 2.0
