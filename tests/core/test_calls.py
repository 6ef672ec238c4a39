"""Calls of the core that are wrong, or that somebody changes while they run."""

import subprocess
import sys

import numpy as np
import pytest

import tinyllm as tl
from testkit import models
from tinyllm import _core


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.random_model(tmp_path_factory.mktemp("calls"), layers=2)


def forward(model, ids, **options):
    return model.core.forward((_core.Session(model.core),), (ids,), [len(ids) - 1], **options)


def test_ids_that_change_after_they_were_checked(model):
    """A callback that wrote into the caller's array made the core read beyond the embedding."""
    ids = np.array([1, 2, 3], np.int32)
    want = forward(model, ids)

    def spoil(step, array, piece):
        ids[:] = 2**31 - 1

    edits = (0,)  # the embedding, before everything else reads the tokens
    assert np.array_equal(forward(model, ids.copy(), edits=edits, edit=lambda *_: None), want)
    session = _core.Session(model.core)
    got = model.core.forward((session,), (ids,), [2], edits=edits, edit=spoil)
    assert np.array_equal(got, want)
    assert session.tokens.tolist() == [1, 2, 3]


def test_captures_that_make_no_sense(model):
    ids = np.array([1, 2, 3], np.int32)
    array = np.empty((3, model.config.width), np.float32)
    with pytest.raises(TypeError, match=r"captures\[0\] is int; expected a tuple"):
        forward(model, ids, captures=(5,))
    with pytest.raises(ValueError, match=r"captures\[1\]: step 0 is captured already"):
        forward(model, ids, captures=(((0,), -1, array), ((0,), -1, array.copy())))
    stream = {"first_layer": 1, "resid": array}
    with pytest.raises(ValueError, match="step 0 does not run in a call that begins with"):
        forward(model, ids, captures=(((0,), -1, array),), **stream)
    with pytest.raises(ValueError, match="step 0 does not run in a call that begins with"):
        forward(model, ids, edits=(0,), edit=lambda *_: None, **stream)


def test_two_tensors_of_one_name(model):
    weights = [*model.weights.values()]
    with pytest.raises(ValueError, match=r"two tensors are named 'blk\.0\.attn_q\.weight'"):
        _core.Model(
            model.steps.lowered(),
            [*weights, model.weights["blk.0.attn_q.weight"]],
            layers=2,
            max_context=64,
        )


@pytest.mark.parametrize("options", [{}, {"layers": 2}, {"layers": -5, "max_context": 64}])
def test_sizes_that_are_missing_or_negative(model, options):
    with pytest.raises(ValueError, match=r"layers is (0|2|-5) and max_context is (0|64)"):
        _core.Model(model.steps.lowered(), model.weights.values(), **options)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_divisors_of_rope_that_give_no_angles(value, tmp_path):
    divisors = np.ones(32, np.float32)
    divisors[3] = value
    with pytest.raises(tl.FormatError, match=r"rope_freqs\.weight is .* at 3; expected positive"):
        models.random_model(tmp_path, layers=1, rope_freqs=divisors)


@pytest.mark.parametrize("key", ["yarn_beta_fast", "yarn_beta_slow", "attn_factor"])
def test_a_zero_of_the_file_is_not_replaced_by_the_default(key, tmp_path):
    metadata = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        f"llama.rope.scaling.{key}": 0.0,
    }
    with pytest.raises(tl.FormatError, match=rf"{key} is 0\.0; expected a positive number"):
        models.random_model(tmp_path, layers=1, metadata=metadata)


def test_the_process_ends_while_a_daemon_thread_runs(tmp_path):
    """The interpreter ends such a thread where it asks for the GIL, with the pool in its hands."""
    code = """
import threading, time
import tinyllm as tl
model = tl.load(threads=2)
def work():
    while True:
        model.logits(list(range(1, 400)))
threading.Thread(target=work, daemon=True).start()
time.sleep(0.5)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0
