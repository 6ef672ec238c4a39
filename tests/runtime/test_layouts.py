"""Weights and hidden states in the layout of Hugging Face, against its checkpoints."""

import pickle

import numpy as np
import pytest

import tinyllm as tl
from testkit import data, hf, models

#: Checkpoint, our name, its name, and whether the file has another layout.
ROWS = [
    ("llama", "blk.1.attn_q.weight", "model.layers.1.self_attn.q_proj.weight", True),
    ("llama", "blk.1.attn_k.weight", "model.layers.1.self_attn.k_proj.weight", True),
    ("llama", "blk.1.attn_v.weight", "model.layers.1.self_attn.v_proj.weight", False),
    ("llama_bias_tied", "blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias", True),
    ("mistral", "blk.0.attn_k.weight", "model.layers.0.self_attn.k_proj.weight", True),
    ("qwen2", "blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight", False),
    ("gpt2", "blk.0.attn_qkv.weight", "transformer.h.0.attn.c_attn.weight", True),
    ("gpt2", "blk.0.ffn_down.weight", "transformer.h.0.mlp.c_proj.weight", True),
    ("gemma", "blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight", True),
]


def load(name, tmp_path):
    path = models.write(tmp_path / "m.gguf", *hf.load_checkpoint(data.path("hf", name)))
    return tl.load(path)


@pytest.mark.parametrize(("checkpoint", "ours", "theirs", "differs"), ROWS)
def test_weights(checkpoint, ours, theirs, differs, tmp_path):
    weights = load(checkpoint, tmp_path).weights
    want = hf.sources(checkpoint)[theirs]
    found = weights.numpy(ours, layout="hf")
    assert np.allclose(found, want, rtol=0, atol=1e-6 if "norm" in ours else 0)
    plain = weights[ours].numpy()
    assert np.array_equal(weights.numpy(ours), plain)
    assert (plain.shape != want.shape or not np.array_equal(plain, want)) == differs
    again = pickle.loads(pickle.dumps(weights))
    assert np.array_equal(again.numpy(ours, layout="hf"), found)


def test_what_has_no_such_layout(tmp_path):
    weights = load("llama", tmp_path).weights
    with pytest.raises(ValueError, match="layout is 'torch'; expected 'gguf' or 'hf'"):
        weights.numpy("blk.0.attn_q.weight", "torch")
    with pytest.raises(KeyError, match=r"expected 'blk.0.attn_q.weight'"):
        weights.numpy("blk.0.attn_q", "hf")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_hidden_states_with_the_final_norm(name, tmp_path):
    model = load(name, tmp_path)
    ids, _, hidden = hf.load_golden(data.path("hf", name))
    found = model.hidden_states(ids, normed=True)
    assert found.shape == hidden.shape
    assert np.abs(found - hidden).max() < 1e-4 * np.abs(hidden).max()
    plain = model.hidden_states(ids)
    assert np.array_equal(plain[:-1], found[:-1])
    assert not np.array_equal(plain[-1], found[-1])
    both = model.hidden_states([ids, ids[:3]], normed=True)
    assert np.array_equal(both[0], found)
