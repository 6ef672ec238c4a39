"""Mamba-1 and Mamba-2: the bits of the scans, and sessions that carry their states."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, every_split, models, recurrent

pytestmark = pytest.mark.sanitize

SIZE = {"width": 64, "ffn": 64, "vocab": 90}


def random_model(directory, architecture, inner=72, states=7, **keys):
    """Return a small model, whose widths are no multiples of those of a vector."""
    sizes = {"inner_size": inner, "state_size": states, "time_step_rank": 6, **keys}
    metadata = {f"{architecture}.ssm.{key}": value for key, value in sizes.items()}
    return architectures.random_model(directory, architecture, metadata=metadata, **SIZE)


@pytest.fixture(scope="module", params=["jamba", "falcon-h1"])
def model(request, tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("scan"), request.param, inner=150)


@pytest.fixture(scope="module")
def long(model):
    """600 tokens, and their logits in one call."""
    ids = models.random_ids(model, 600)
    return ids, model.logits(ids)


def test_the_bits_of_mamba2(tmp_path):
    """Each operation is rounded to float32 on its own, as NumPy does."""
    model = random_model(tmp_path, "mamba2")
    trace = model.trace([1, 2, 3, 4], "blk.0.ssm_*")
    names = ("values", "dt_softplus", "b", "c", "decay", "mix")
    x, dt, b, c, decay, mix = (trace[f"blk.0.ssm_{name}"] for name in names)
    skip = model.weights["blk.0.ssm_d"].numpy()
    for head in range(6):
        state = np.zeros((7, 12), np.float32)
        for t in range(4):
            group = head // 3
            state = decay[t, head] * state + b[t, group][:, None] * (dt[t, head] * x[t, head])
            sum_ = np.zeros(12, np.float32)
            for i in range(7):
                sum_ = sum_ + c[t, group, i] * state[i]
            assert np.array_equal(mix[t, head], sum_ + skip[head] * x[t, head])


def test_the_bits_of_mamba(tmp_path):
    model = random_model(tmp_path, "mamba", inner=70)
    trace = model.trace([1, 2, 3, 4], "blk.0.ssm_*")
    names = ("conv1d_act", "dt_softplus", "b_norm", "c_norm", "mix")
    x, dt, b, c, mix = (trace[f"blk.0.ssm_{name}"] for name in names)
    rates, skip = (model.weights[f"blk.0.ssm_{name}"].numpy() for name in "ad")
    state = np.zeros((7, 70), np.float32)
    for t in range(4):
        decay = np.exp(dt[t].astype(np.float64) * rates.T.astype(np.float64)).astype(np.float32)
        state = decay * state + b[t][:, None] * (dt[t] * x[t])
        sum_ = np.zeros(70, np.float32)
        for i in range(7):
            sum_ = sum_ + c[t, i] * state[i]
        assert np.array_equal(mix[t], sum_ + skip * x[t])


@pytest.mark.parametrize("rate", [-1e9, -200.0, 0.0])
def test_decays_of_any_size(rate, tmp_path):
    """Of the state before, nothing stays where exp is 0 in float32, and all of it at rate 0."""
    metadata, tensors = architectures.random_architecture("mamba", **SIZE)
    tensors["blk.0.ssm_a"] = np.full(tensors["blk.0.ssm_a"].numpy().shape, rate, np.float32)
    tensors["blk.0.ssm_dt.bias"] = np.full(256, 3, np.float32)  # large steps
    model = tl.load(models.write(tmp_path / "m.gguf", metadata, tensors))
    names = ("conv1d_act", "dt_softplus", "b_norm", "c_norm", "mix")
    trace = model.trace([1, 2, 3], "blk.0.ssm_*")
    x, dt, b, c, mix = (trace[f"blk.0.ssm_{name}"].astype(np.float64) for name in names)
    added = [(dt[t] * x[t])[:, None] * b[t] for t in range(3)]
    state = sum(added) if rate == 0 else added[-1]
    want = state @ c[2] + model.weights["blk.0.ssm_d"].numpy() * x[2]
    assert models.normwise_error(mix[2], want) < 1e-6


def test_threads_splits_captures_and_batches(model):
    every_split.check(model.path, "exact", 90)


def test_sessions(model, tmp_path):
    recurrent.check_sessions(model, models.random_ids(model, 600), tmp_path / "s.npz")


def fill(model, ids, tokens):
    session = model.session()
    session.eval(ids[:tokens])
    return session


def test_a_call_that_fails_leaves_the_states(model, long):
    ids, want = long
    session = fill(model, ids, 300)

    def fail(x):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        session.eval(ids[300:310], edits=[tl.apply("blk.2.resid_post", fail)])
    assert np.array_equal(session.eval(ids[300:310], "all"), want[300:310])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"time_step_rank": 7}, r"ssm\.inner_size is 72, with 7 heads and 2 groups; expected a"),
        ({"group_count": 5}, r"ssm\.inner_size is 72, with 6 heads and 5 groups; expected a mul"),
        ({"state_size": 0}, r"ssm\.state_size is 0; expected a positive integer"),
    ],
)
def test_wrong_keys(keys, message, tmp_path):
    with pytest.raises(tl.FormatError, match=message):
        random_model(tmp_path, "mamba2", **keys)


def test_the_shape_of_a_rate(tmp_path):
    metadata, tensors = architectures.random_architecture("mamba", **SIZE)
    tensors["blk.1.ssm_a"] = tensors["blk.1.ssm_a"].numpy()[:, :5]
    with pytest.raises(tl.FormatError, match=r"'blk\.1\.ssm_a' is 256, 5; expected 256, 16"):
        tl.load(models.write(tmp_path / "m.gguf", metadata, tensors))


def test_edits_of_states_reach_later_tokens(model):
    ids = models.random_ids(model, 9)
    clean = model.trace(ids, "output")["output"]
    edit = tl.zero("blk.0.ssm_conv1d_act", at=4)
    changed = model.trace(ids, "output", edits=edit)["output"]
    assert np.array_equal(changed[:4], clean[:4])
    assert all((changed[t] != clean[t]).any() for t in range(4, 9))


def test_states_of_a_session(model):
    """What a session keeps gives the next value of the scan."""
    ids = models.random_ids(model, 6)
    session = model.session()
    assert session.states() == {}
    session.eval(ids[:5])
    states = session.states()
    found = [step for step in model.steps if step.op in ("conv", "scan", "scan_channels")]
    assert list(states) == [f"{step.tap}.state" for step in found]
    step = found[1]
    before = states[f"{step.tap}.state"].astype(np.float64)
    trace = session.eval(ids[5:], capture="blk.0.*")
    x, dt, b, c, *decay = (trace[name][0].astype(np.float64) for name in step.reads)
    weights = [model.weights[name].numpy().astype(np.float64) for name in step.weights]
    if step.op == "scan":
        b, c = (np.repeat(value, len(x) // len(value), axis=0) for value in (b, c))
        after = decay[0][:, None, None] * before + b[:, :, None] * (dt[:, None] * x)[:, None]
        want = np.einsum("hn,hnp->hp", c, after) + weights[0].reshape(-1, 1) * x
    else:
        after = np.exp(dt * weights[0].T) * before + np.outer(b, dt * x)
        want = c @ after + weights[1] * x
    assert models.normwise_error(trace[step.tap][0], want) < 1e-6
    assert models.normwise_error(session.states()[f"{step.tap}.state"], after) < 1e-6
    states[f"{step.tap}.state"][:] = 0  # a copy
    assert session.states()[f"{step.tap}.state"].any()
