"""Dropout: what is dropped, and where it is not."""

import numpy as np
import pytest

import tinyllm as tl
from tinyllm import _core
from tinyllm.training.dropout import Dropout
from tinyllm.training.network import Network

TEXT = "the cat sat on the mat; " * 40 + "\n"
SHAPE = {"layers": 2, "width": 16, "heads": 2, "context": 8, "batch": 4, "progress": False}


def split_mix(key, i):
    """Output i of SplitMix64, from the paper."""
    mask = 2**64 - 1
    z = (key + (i + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_the_generator():
    # the first outputs for the seed 1234567, as the reference implementation prints them
    assert [split_mix(1234567, i) for i in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.sanitize
@pytest.mark.parametrize("first", [0, 2, 7])
def test_values_are_dropped_by_place(first):
    x = np.arange(1, 41, dtype=np.float32)
    _core.dropout(x, rate=0.3, key=99, first=first)
    for i, value in enumerate(x.tolist()):
        place = first + i
        random = split_mix(99, place // 2) >> (32 * (place % 2)) & 0xFFFFFFFF
        expected = 0.0 if random < int(0.3 * 2**32) else np.float32(i + 1) * np.float32(1 / 0.7)
        assert value == expected


@pytest.mark.sanitize
def test_parts_and_threads_give_the_same_bits():
    whole = np.ones(100_001, np.float32)
    _core.dropout(whole, rate=0.1, key=5, threads=2)
    parts = np.ones(100_001, np.float32)
    for start, end in ((0, 33_333), (33_333, 70_000), (70_000, 100_001)):
        _core.dropout(parts[start:end], rate=0.1, key=5, first=start)
    assert np.array_equal(whole, parts)
    assert (whole == 0).mean() == pytest.approx(0.1, abs=0.005)
    assert whole.mean() == pytest.approx(1, abs=0.005)
    other = np.ones(100_001, np.float32)
    _core.dropout(other, rate=0.1, key=6)
    both = ((whole == 0) & (other == 0)).mean()
    assert both == pytest.approx(0.01, abs=0.002)  # independent


def test_wrong_arguments_of_dropout():
    x = np.ones(4, np.float32)
    for rate in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="expected 0 to below 1"):
            _core.dropout(x, rate=rate, key=0)
    with pytest.raises(TypeError):
        _core.dropout(np.ones(4), rate=0.1, key=0)
    with pytest.raises(ValueError, match=r"dropout is 1\.0"):
        tl.train(TEXT, **SHAPE, steps=2, dropout=1.0)


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_gradients_with_dropout_are_those_of_the_loss(positions):
    run = tl.train(TEXT, **SHAPE, steps=3, positions=positions)
    network = Network(run.image, threads=2)
    ids = np.array([[5, 9, 3, 9, 1, 1, 2, 4]] * 2, np.int32)
    drop = Dropout(0.3, seed=3, step=7, row=0, threads=2)
    plain = network.add_gradients(ids, ids, 1.0)
    network.flat[:] = 0
    dropped = network.add_gradients(ids, ids, 1.0, drop)
    assert dropped != plain
    r = np.random.default_rng(0)
    kept = network.flat.copy()
    for name, gradient in network.gradients.items():
        way = r.normal(size=gradient.shape).astype(np.float32)
        weight = network.weights[name]
        before = weight.copy()
        size = 1e-2 * np.abs(before).mean() + 1e-4
        ends = []
        for sign in (1, -1):
            weight[...] = before + np.float32(sign * size) * way
            moved = weight.astype(float) - before
            ends.append((network.add_gradients(ids, ids, 0.0, drop), moved))
        weight[...] = before
        (up, plus), (down, minus) = ends
        expected = (gradient.astype(float) * (plus - minus)).sum()
        typical = np.linalg.norm(gradient) * np.linalg.norm(plus - minus)
        assert abs((up - down) - expected) < 0.02 * typical + 1e-4, name
    assert np.array_equal(kept, network.flat)


def test_a_resumed_run_drops_the_same(tmp_path):
    arguments = {**SHAPE, "steps": 12, "dropout": 0.2}
    whole = tl.train(TEXT, **arguments, threads=1)
    path = tmp_path / "m.gguf"
    stop = {"evaluate": lambda run: run.step < 6, "evaluate_every": 3}
    tl.train(TEXT, **arguments, threads=2, out=path, **stop)
    rest = tl.train(TEXT, resume=path, threads=2, progress=False)
    assert rest.log.losses == whole.log.losses
    assert rest.settings.dropout == 0.2
    assert (rest.model.logits("the") == whole.model.logits("the")).all()
    assert tl.train(TEXT, **{**arguments, "dropout": 0.0}).log.losses != whole.log.losses


def test_each_step_drops_others():
    def mask(seed=0, step=0, number=0):
        values = np.ones((8, 16), np.float32)
        Dropout(0.5, seed, step, row=0, threads=1)(number, values, -1)
        return (values == 0).tobytes()

    masks = [mask(), mask(seed=1), mask(step=1), mask(number=1), mask(step=2), mask(number=2)]
    assert len(set(masks)) == len(masks)
    assert mask(step=1) == masks[2]


def test_micro_batches_drop_the_same():
    arguments = {**SHAPE, "steps": 3, "dropout": 0.2, "optimizer": "adamw"}
    one = tl.train(TEXT, **arguments)
    two = tl.train(TEXT, **arguments, micro_batch=1)
    np.testing.assert_allclose(two.log.losses, one.log.losses, rtol=1e-5)


def test_measurements_drop_nothing():
    seen = []

    def measure(run):
        half = run.model
        ids = np.array(half.tokenizer.encode(TEXT[-60:]), np.int32)
        seen.append((half.logits(ids[:8]), half.logits(ids[:8])))

    run = tl.train(TEXT, **SHAPE, steps=2, dropout=0.5, evaluate=measure)
    for a, b in seen:
        assert np.array_equal(a, b)
    network = Network(run.image, threads=1)
    windows = run.model.tokenizer.encode(TEXT)[-48:]
    rows = np.lib.stride_tricks.sliding_window_view(np.array(windows, np.int32), 9)[::8]
    losses = network.losses(
        np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])
    ).mean()
    assert losses == pytest.approx(run.log.validation[-1][1], rel=1e-5)


def test_weights_as_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    run = tl.train(TEXT, **SHAPE, steps=2)
    run.save(tmp_path / "m.safetensors")
    found = safetensors.load_file(tmp_path / "m.safetensors")
    assert set(found) == set(run.model.weights)
    for name, weight in run.model.weights.items():
        assert np.array_equal(found[name], weight.numpy())
