"""Qwen2: RoPE over halves of a head, and biases of queries, keys and values."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import hf, models
from tinyllm import reference

pytestmark = pytest.mark.sanitize

TYPES = ("F32", "F16", "Q8_0", "Q5_1", "Q4_K", "Q6_K")


def load(tmp_path, metadata, tensors):
    return tl.load(models.write(tmp_path / "m.gguf", metadata, tensors))


def same_as_the_reference(model, ids):
    want = reference.forward(model.steps, model.weights, ids)
    got = model.trace(ids, "*")
    assert list(got) == list(want)
    for name, array in want.items():
        assert models.normwise_error(got[name], array) < 2e-6, name


@pytest.mark.parametrize("type_name", TYPES)
def test_every_tap_of_every_type(type_name, tmp_path):
    model = models.random_model(tmp_path, type_name, architecture="qwen2")
    same_as_the_reference(model, models.random_ids(model, 40))


@pytest.mark.parametrize(
    "options",
    [
        {"tied": True},
        {"biases": True, "value_size": 20},
        {"heads": [4, 8], "kv_heads": [2, 4], "head_size": 32},
        {"heads": 5, "kv_heads": 1, "head_size": 20},
        {"metadata": {"qwen2.rope.dimension_count": 32}},
        {"metadata": {"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 4.0}},
        {
            "metadata": {
                "qwen2.rope.scaling.type": "yarn",
                "qwen2.rope.scaling.factor": 8.0,
                "qwen2.rope.scaling.original_context_length": 64,
            }
        },
    ],
)
def test_every_tap_of_every_shape(options, tmp_path):
    model = models.random_model(tmp_path, architecture="qwen2", **options)
    same_as_the_reference(model, models.random_ids(model, 40))


def test_queries_turn_by_halves(tmp_path):
    """By hand: values j and j + n/2 are a complex number that is turned by its angle."""
    model = models.random_model(tmp_path, architecture="qwen2", layers=1, rope_base=100.0)
    trace = model.trace(models.random_ids(model, 12), "*")
    for tap in ("attn_q", "attn_k"):
        x, y = (np.asarray(trace[f"blk.0.{name}"], np.float64) for name in (tap, f"{tap}_rope"))
        half = x.shape[2] // 2
        angles = np.arange(12)[:, np.newaxis] * 100.0 ** (-np.arange(half) / half)
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, np.newaxis]
        want = np.concatenate([turned.real, turned.imag], axis=2)
        assert models.normwise_error(y, want) < 1e-6


def as_llama(metadata, tensors, heads, kv_heads):
    """The same model as the architecture llama: the rows of a head in the order of its pairs."""
    metadata = {key.replace("qwen2.", "llama."): value for key, value in metadata.items()}
    turned = dict(tensors)
    for name, weight in tensors.items():
        for tap, count in (("attn_q", heads), ("attn_k", kv_heads)):
            if f".{tap}." in name:
                turned[name] = hf.permute(weight.numpy(), count)
    return metadata | {"general.architecture": "llama"}, turned


def test_it_is_a_llama_whose_heads_are_in_another_order(tmp_path):
    file = models.random_llama(architecture="qwen2")
    qwen2 = load(tmp_path, *file)
    ids = models.random_ids(qwen2, 30)
    want = qwen2.logits(ids)
    (tmp_path / "llama").mkdir()
    llama = load(tmp_path / "llama", *as_llama(*file, heads=4, kv_heads=2))
    assert llama.config.architecture == "llama"
    # scores are sums in another order
    assert models.normwise_error(llama.logits(ids), want) < 2e-6
    plain = as_llama(*file, heads=1, kv_heads=1)  # another order than that of pairs
    assert models.normwise_error(load(tmp_path / "llama", *plain).logits(ids), want) > 1e-2


def test_the_biases_take_part(tmp_path):
    metadata, tensors = models.random_llama(architecture="qwen2")
    model = load(tmp_path, metadata, tensors)
    ids = models.random_ids(model, 10)
    want = model.logits(ids)
    for tap in ("attn_q", "attn_k", "attn_v"):
        name = f"blk.1.{tap}.bias"
        without = tensors | {name: np.zeros(tensors[name].shape, np.float32)}
        (tmp_path / tap).mkdir()
        got = load(tmp_path / tap, metadata, without).logits(ids)
        assert models.normwise_error(got, want) > 1e-3, tap
