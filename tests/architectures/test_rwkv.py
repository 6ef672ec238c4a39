"""RWKV-7: its ops against formulas of the paper, and sessions that carry its states."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, every_split, models, recurrent

pytestmark = pytest.mark.sanitize

SIZE = {"width": 96, "ffn": 80, "vocab": 90}


def random_model(directory, architecture="rwkv7", **keys):
    """Return a small model, whose widths are no multiples of those of a vector."""
    keys = {"wkv.head_size": 12, "attention.decay_lora_rank": 9, **keys}
    metadata = {f"{architecture}.{key}": value for key, value in keys.items()}
    return architectures.random_model(directory, architecture, metadata=metadata, **SIZE)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("rwkv"), **{"wkv.head_size": 96})


def test_the_bits_of_the_recurrence(tmp_path):
    """Each operation is rounded to float32 on its own, as NumPy does."""
    model = random_model(tmp_path)
    step = model.steps["blk.1.wkv"]
    trace = model.trace([1, 2, 3, 4], "blk.1.*")
    r, w, k, v, c, a = (trace[name] for name in step.reads)
    for head in range(8):
        state = np.zeros((12, 12), np.float32)
        for t in range(4):
            found, sum_ = np.zeros(12, np.float32), np.zeros(12, np.float32)
            for i in range(12):
                found = found + c[t, head, i] * state[i]
            rate = (c[t, head] * a[t, head])[:, None]
            state = (w[t, head][:, None] * state - rate * found) + k[t, head][:, None] * v[t, head]
            for i in range(12):
                sum_ = sum_ + r[t, head, i] * state[i]
            assert np.array_equal(trace[step.tap][t, head], sum_)


def test_the_bits_of_the_token_shift(tmp_path):
    model = random_model(tmp_path)
    trace = model.trace([1, 2, 3, 4], "blk.0.*")
    for name, norm in (("time_mix_lerp_fused", "attn_norm"), ("channel_mix_lerp_k", "attn_norm_2")):
        x = trace[f"blk.0.{norm}"]
        before = np.concatenate([np.zeros((1, 96), np.float32), x[:-1]])
        shares = model.weights[f"blk.0.{name}.weight"].numpy().reshape(-1, 96)
        want = x[:, None] + (before - x)[:, None] * shares
        assert np.array_equal(trace[f"blk.0.{name}"].reshape(want.shape), want)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("architecture", ["rwkv7", "arwkv7"])
def test_time_mixing_is_that_of_the_paper(architecture, tmp_path):
    """Section 4 of arXiv:2503.14456 in float64: a state has axes for values and for keys."""
    model = random_model(tmp_path, architecture)
    trace = model.trace([5, 1, 4, 1, 3], "*")
    first = trace["blk.0.time_mix_value"].astype(np.float64)

    def weight(name):
        return model.weights[f"blk.1.{name}.weight"].numpy().astype(np.float64)

    def low_rank(name, x, function=lambda x: x):
        y = function(x @ weight(f"time_mix_{name}1").T) @ weight(f"time_mix_{name}2").T
        return y if name == "g" else y + weight(f"time_mix_{name}0")

    x = trace["blk.1.attn_norm"].astype(np.float64)
    before = np.concatenate([np.zeros((1, 96)), x[:-1]])
    shares = weight("time_mix_lerp_fused").reshape(-1, 96)
    gated = architecture == "rwkv7"
    assert len(shares) == (6 if gated else 5)
    xr, xw, xk, xv, xa, *xg = (x + (before - x) * share for share in shares)
    r, k, v = (
        y @ weight(f"time_mix_{name}").T
        for y, name in ((xr, "receptance"), (xk, "key"), (xv, "value"))
    )
    w = np.exp(-0.606531 * sigmoid(low_rank("w", xw, np.tanh)))
    a = sigmoid(low_rank("a", xa))
    v = v + (first - v) * sigmoid(low_rank("v", xv))
    kappa = k * weight("time_mix_k_k")
    k = k * (1 + (a - 1) * weight("time_mix_k_a"))
    out = np.zeros((5, 96))
    for head in range(8):
        part = slice(12 * head, 12 * head + 12)
        state = np.zeros((12, 12))
        for t in range(5):
            c = kappa[t, part] / np.linalg.norm(kappa[t, part])
            state = state @ (np.diag(w[t, part]) - np.outer(c, a[t, part] * c))
            state = state + np.outer(v[t, part], k[t, part])
            y = state @ r[t, part]
            if gated:
                y = (y - y.mean()) / np.sqrt(y.var() + 64e-5) * weight("time_mix_ln")[part]
                y = y + model.weights["blk.1.time_mix_ln.bias"].numpy()[part]
            bonus = (r[t, part] * k[t, part] * weight("time_mix_r_k")[part]).sum()
            out[t, part] = y + bonus * v[t, part]
    if gated:
        out = out * low_rank("g", xg[0], sigmoid)
    want = out @ weight("time_mix_output").T
    assert models.normwise_error(trace["blk.1.time_mix_output"], want) < 2e-6


def test_channel_mixing(tmp_path):
    model = random_model(tmp_path)
    trace = model.trace([5, 1, 4], "blk.1.channel_mix_*")
    key, value = (model.weights[f"blk.1.channel_mix_{n}.weight"].numpy() for n in ("key", "value"))
    hidden = np.maximum(trace["blk.1.channel_mix_lerp_k"].astype(np.float64) @ key.T, 0) ** 2
    want = hidden @ value.T
    assert models.normwise_error(trace["blk.1.channel_mix_value"], want) < 1e-6


def test_threads_splits_captures_and_batches(model):
    every_split.check(model.path, "exact", 90)


def test_sessions(model, tmp_path):
    recurrent.check_sessions(model, models.random_ids(model, 600), tmp_path / "s.npz")


def test_states_of_a_session(model):
    """What a session keeps: the last values that were shifted, and the state of each head."""
    ids = models.random_ids(model, 6)
    session = model.session()
    trace = session.eval(ids, capture="blk.0.*")
    states = session.states()
    names = ("time_mix_lerp_fused", "wkv", "channel_mix_lerp_k")
    assert list(states)[:3] == [f"blk.0.{name}.state" for name in names]
    assert np.array_equal(states["blk.0.time_mix_lerp_fused.state"], trace["blk.0.attn_norm"][-1])
    assert np.array_equal(states["blk.0.channel_mix_lerp_k.state"], trace["blk.0.attn_norm_2"][-1])
    assert states["blk.0.wkv.state"].shape == (1, 96, 96)
    r = trace["blk.0.time_mix_r_heads"][-1, 0].astype(np.float64)
    want = r @ states["blk.0.wkv.state"][0].astype(np.float64)
    assert models.normwise_error(trace["blk.0.wkv"][-1, 0], want) < 1e-6


def test_edits_reach_later_tokens(model):
    ids = models.random_ids(model, 9)
    clean = model.trace(ids, "output")["output"]
    for name in ("blk.0.attn_norm_2", "blk.0.time_mix_k"):
        changed = model.trace(ids, "output", edits=tl.zero(name, at=4))["output"]
        assert np.array_equal(changed[:4], clean[:4])
        assert all((changed[t] != clean[t]).any() for t in range(4, 9))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("wkv.head_size", 13, r"wkv\.head_size is 13; expected a divisor of the width, 96"),
        ("wkv.head_size", 0, r"wkv\.head_size is 0; expected a positive integer"),
        ("attention.iclr_lora_rank", -1, r"attention\.iclr_lora_rank is -1; expected a positive"),
    ],
)
def test_wrong_keys(key, value, message, tmp_path):
    with pytest.raises(tl.FormatError, match=message):
        random_model(tmp_path, **{key: value})


@pytest.mark.parametrize(
    ("shape", "message"),
    [((5, 1, 1, 256), r"is 5, 1, 1, 256; expected 6, 1, 1, 256"), ((256,), r"is 256; expected 6")],
)
def test_the_shape_of_shares(shape, message, tmp_path):
    metadata, tensors = architectures.random_architecture("rwkv7")
    tensors["blk.1.time_mix_lerp_fused.weight"] = np.ones(shape, np.float32)
    path = models.write(tmp_path / "m.gguf", metadata, tensors)
    with pytest.raises(tl.FormatError, match=message):
        tl.load(path)


def test_shares_without_axes_of_one(tmp_path):
    metadata, tensors = architectures.random_architecture("rwkv7")
    want = tl.load(models.write(tmp_path / "a.gguf", metadata, tensors)).logits([1, 2, 3])
    for layer in range(3):
        name = f"blk.{layer}.time_mix_lerp_fused.weight"
        tensors[name] = tensors[name].numpy().reshape(6, 256)
    found = tl.load(models.write(tmp_path / "b.gguf", metadata, tensors)).logits([1, 2, 3])
    assert np.array_equal(found, want)


@pytest.mark.parametrize("part", ["time_mix_ln.bias", "time_mix_g1.weight", "attn_norm_2.bias"])
def test_a_missing_part(part, tmp_path):
    metadata, tensors = architectures.random_architecture("rwkv7")
    del tensors[f"blk.1.{part}"]
    path = models.write(tmp_path / "m.gguf", metadata, tensors)
    with pytest.raises(tl.FormatError, match=rf"blk\.1\.{part}"):
        tl.load(path)


def test_values_of_the_first_block_are_not_mixed(tmp_path):
    """Files have tensors for it, which nothing uses."""
    metadata, tensors = architectures.random_architecture("rwkv7")
    want = tl.load(models.write(tmp_path / "a.gguf", metadata, tensors)).logits([1, 2, 3])
    for i, shape in enumerate(((256,), (32, 256), (256, 32))):
        tensors[f"blk.0.time_mix_v{i}.weight"] = np.ones(shape, np.float32)
    found = tl.load(models.write(tmp_path / "b.gguf", metadata, tensors)).logits([1, 2, 3])
    assert np.array_equal(found, want)
