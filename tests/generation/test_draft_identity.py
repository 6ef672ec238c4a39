"""Random requests of every kind, with and without drafts: no difference."""

import pytest

import tinyllm as tl
from testkit import drafts, real
from tinyllm.generation.drafts import Costs

MODELS = ("demo", "smollm2", "gemma3", "qwen3moe", "gpt-oss")


def load(name, mode="exact"):
    if name == "demo":
        return tl.load(threads=1, mode=mode)
    if name == "smollm2":
        return tl.load(real.path("smollm2-135m-q4_1.gguf"), mode=mode)
    return tl.testing.random_model(name)


@pytest.fixture
def often(monkeypatch):
    """Calls of several rows seem cheap, so that even doubtful guesses are checked."""
    monkeypatch.setattr(Costs, "of", lambda self, rows: 1 + 0.02 * rows)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "smollm2"])
def test_some_texts(name, often):
    seen = drafts.compare(load(name), 16, seed=1, length=24)
    assert 0 < seen["drafted"]  # random weights seldom repeat themselves
    if name == "demo":
        assert 0 < seen["accepted"] < seen["drafted"]


@pytest.mark.slow
@pytest.mark.real
def test_some_texts_of_a_real_model(often):
    seen = [drafts.compare(load("smollm2", mode), 6, 1, 20) for mode in ("exact", "fast")]
    assert sum(each["accepted"] for each in seen) > 0


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("name", MODELS)
def test_two_thousand_texts(name, often):
    seen = drafts.compare(load(name), 400)
    assert len(seen) >= 4 + len(drafts.KINDS)
    print(name, dict(seen))
