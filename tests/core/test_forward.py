"""The forward pass against float64, and against Hugging Face."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import data, hf, models
from tinyllm import _core, reference

pytestmark = pytest.mark.sanitize

LIMIT = 2e-6

SHAPES = {
    "grouped": {},
    "no_grouping": {"kv_heads": 4},
    "biases": {"biases": True},
    "tied": {"tied": True},
    "odd_head_size": {"head_size": 20, "heads": 5, "kv_heads": 1},
    "large_head_size": {"head_size": 144},
    "per_layer": {"heads": [4, 8], "kv_heads": [2, 4], "ffn": [512, 768], "head_size": 32},
    "rope_base": {"rope_base": 500000.0},
    "llama3_rope": {"rope_freqs": np.linspace(1, 8, 32)},
    "linear_rope": {
        "metadata": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    },
    "yarn": {
        "metadata": {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 8.0,
            "llama.rope.scaling.original_context_length": 64,
        }
    },
    "partial_rope": {"metadata": {"llama.rope.dimension_count": 32}},
    "scale": {"metadata": {"llama.attention.scale": 0.05}},
    "mixed_types": {
        "types": {
            "*attn_q*": "Q4_K",
            "*attn_k*": "Q8_0",
            "*attn_v*": "F16",
            "*attn_output*": "Q5_1",
            "*ffn_gate*": "Q6_K",
            "*ffn_up*": "BF16",
            "*ffn_down*": "Q3_K",
            "token_embd*": "Q4_0",
        }
    },
}


def reference_of(model, ids):
    return reference.forward(model.steps, model.weights, ids)


@pytest.mark.parametrize("type_name", [*models.TYPES, *models.RARE_TYPES])
def test_logits_of_every_type_are_right_to_float32(type_name, tmp_path):
    model = models.random_model(tmp_path, type_name)
    ids = models.random_ids(model, 300)
    want = reference_of(model, ids)["output"]
    assert models.normwise_error(model.logits(ids), want) < LIMIT


@pytest.mark.parametrize("type_name", ["F32", "Q5_K"])
def test_every_tap_equals_the_reference(type_name, tmp_path):
    model = models.random_model(tmp_path, type_name)
    ids = models.random_ids(model, 70)
    want = reference_of(model, ids)
    got = model.trace(ids, "*")
    assert list(got) == list(want)
    for name, array in want.items():
        assert got[name].dtype == np.float32
        assert got[name].shape == array.shape, name
        assert models.normwise_error(got[name], array) < LIMIT, name


@pytest.mark.parametrize("shape", SHAPES)
def test_every_tap_of_every_shape(shape, tmp_path):
    model = models.random_model(tmp_path, **SHAPES[shape])
    ids = models.random_ids(model, 40)
    want = reference_of(model, ids)
    got = model.trace(ids, "*")
    assert list(got) == list(want)
    for name, array in want.items():
        assert got[name].shape == array.shape, name
        assert models.normwise_error(got[name], array) < LIMIT, name


def test_hidden_states_are_the_stream_between_the_blocks(tmp_path):
    model = models.random_model(tmp_path, layers=3)
    ids = models.random_ids(model, 9)
    want = reference_of(model, ids)
    states = model.hidden_states(ids)
    assert states.shape == (4, 9, 256)
    for i in range(3):
        assert models.normwise_error(states[i], want[f"blk.{i}.resid_pre"]) < LIMIT
    assert models.normwise_error(states[3], want["blk.2.resid_post"]) < LIMIT


def test_positions_far_out_are_right(tmp_path):
    # float32 angles would lose the fraction of a turn; a factor below 1 makes positions large
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0**-13}
    model = models.random_model(tmp_path, "F32", layers=1, metadata=scaling)
    ids = models.random_ids(model, 40)
    want = reference_of(model, ids)["blk.0.attn_k_rope"]
    got = model.trace(ids, "blk.0.attn_k_rope")["blk.0.attn_k_rope"]
    assert models.normwise_error(got[-1], want[-1]) < LIMIT  # position 319,488


@pytest.mark.parametrize("name", hf.LLAMAS)
def test_hugging_face_agrees(name, tmp_path):
    directory = data.path("hf")
    metadata, tensors = hf.load_checkpoint(directory / name)
    tl.write_gguf(tmp_path / "m.gguf", metadata, tensors)
    model = tl.load(tmp_path / "m.gguf")
    ids, logits, hidden = hf.load_golden(directory / name)
    assert models.normwise_error(model.logits(ids), logits) < 1e-5
    states = model.hidden_states(ids)
    for i in range(model.config.layers):
        assert models.normwise_error(states[i], hidden[i]) < 1e-5, i
    # Hugging Face's last hidden state is after the final norm
    normed = model.trace(ids, "output_norm")["output_norm"]
    assert models.normwise_error(normed, hidden[-1]) < 1e-5


def test_a_nan_stays_in_its_rows(tmp_path):
    # NaN in the embedding of one token reaches only this token and those after it
    metadata, tensors = models.random_llama("F32")
    table = tensors["token_embd.weight"].numpy()
    table[7] = np.nan
    tensors["token_embd.weight"] = table
    model = tl.load(models.write(tmp_path / "m.gguf", metadata, tensors))
    logits = model.logits([1, 2, 7, 3])
    assert np.isfinite(logits[:2]).all()
    assert np.isnan(logits[2:]).all()


def test_more_heads_than_the_pool_counts_tasks():
    """One token or tile of each head is a task of attention; the pool counts to 2^20 - 1."""
    heads = 2**20 + 5  # odd, so that no two of them share a task
    random = np.random.default_rng(0)

    def weight(name, *shape):
        values = random.normal(size=shape).astype(np.float32)
        return _core.Weight(name, shape, "F32", values.tobytes())

    shapes = {"embd": (3, 1), "q": (heads, 1), "k": (1, 1), "v": (1, 1), "out": (3, heads)}
    weights = {name: weight(name, *shape) for name, shape in shapes.items()}
    steps = [
        ("embed", -1, (), ("embd",), (3.0, 1.0, 0.0)),
        ("linear", 0, (0,), ("q", None, None), (float(heads), 1.0, 0.0, 0.0)),
        ("linear", 0, (0,), ("k", None, None), (1.0, 1.0, 0.0, 0.0)),
        ("linear", 0, (0,), ("v", None, None), (1.0, 1.0, 0.0, 0.0)),
        ("cache", 0, (2, 3), (), ()),
        ("scores", 0, (1, 4), (None,), (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
        ("softmax", 0, (5,), (None,), ()),
        ("mix", 0, (6, 4), (), ()),
        ("linear", 1, (7,), ("out", None, None), (0.0, 3.0, 0.0, 0.0)),
    ]
    core = _core.Model(steps, weights.values(), layers=1, max_context=8)
    x, q, k, v = (weights[name].numpy(dtype=np.float64)[:, 0] for name in ("embd", "q", "k", "v"))
    session = _core.Session(core)
    for ids in ([2, 0], [1]):  # a tile of two tokens, and a token after them
        mix = np.full((len(ids), heads, 1), np.nan, np.float32)
        core.forward(
            (session,),
            (np.array(ids, np.int32),),
            [],
            threads=2,
            captures=(((7,), -1, mix),),
        )
        seen = x[[2, 0, 1][: len(session)]]
        scores = np.outer(x[ids[-1]] * q, k * seen)  # of the last token
        probs = reference.softmax(scores)
        assert models.normwise_error(mix[-1, :, 0], probs @ (v * seen)) < LIMIT
