"""The day of somebody who writes an engine: read its values, compare, and find the mistake."""

import subprocess
import sys

import numpy as np
import pytest

import tinyllm as tl
from testkit.plain_engine import Engine
from tinyllm.files.model_file import DEMO
from tinyllm.testing import assert_same

PROMPT = "ROMEO: what light through yonder window breaks?"


@pytest.fixture(scope="module")
def model():
    return tl.load()


@pytest.fixture(scope="module")
def wrong(model):
    return Engine(DEMO, ["keys_as_values"]).run(model.tokenizer.encode(PROMPT))


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tinyllm", *arguments], capture_output=True, text=True, timeout=120
    )


def test_a_right_engine(model, tmp_path):
    values = Engine(DEMO).run(model.tokenizer.encode(PROMPT))
    assert_same(model, {**values, "tokens": model.tokenizer.encode(PROMPT)})
    np.savez(tmp_path / "right.npz", **values)
    done = run("diff", str(tmp_path / "right.npz"), PROMPT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "all the same" in done.stdout
    assert run("doctor", str(tmp_path / "right.npz"), PROMPT).returncode == 0


def test_a_wrong_engine(model, wrong, tmp_path):
    np.savez(tmp_path / "wrong.npz", **wrong)
    difference = tl.diff(model, tl.read(tmp_path / "wrong.npz", None, PROMPT, model=model))
    assert difference.first.tap == "blk.0.attn_mix"
    done = run("diff", str(tmp_path / "wrong.npz"), PROMPT)
    assert done.returncode == 1
    assert "blk.0.attn_mix" in done.stdout
    with pytest.raises(AssertionError, match="keys_as_values"):
        assert_same(model, {**wrong, "tokens": model.tokenizer.encode(PROMPT)})
    done = run("doctor", str(tmp_path / "wrong.npz"), PROMPT)
    assert done.returncode == 1
    assert done.stdout.startswith("1. keys_as_values")


def test_names_of_other_libraries(model, wrong):
    for library in ("hf", "transformer_lens", "llama.cpp"):
        theirs = model.trace(PROMPT, "*").as_(library)
        assert not set(theirs) & set(wrong)
        found = tl.diff(model, tl.read(theirs, library, PROMPT, model=model))
        assert "all the same" in str(found)


def test_what_to_dump_first(model):
    done = run("doctor")
    text = str(tl.doctor(model, {}))
    assert "resid_post" in text
    assert ".npy" in text
    assert done.returncode in (0, 2)
