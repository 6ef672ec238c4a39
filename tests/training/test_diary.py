"""The data of bench/diary.py are those of the diary: its plateaus are their unigram entropies."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from tinyllm.training.data import unigram_entropy

BENCH = Path(__file__).parents[2] / "bench" / "diary.py"


@pytest.fixture(scope="module")
def diary():
    if not BENCH.is_file():
        pytest.skip("needs the source tree")
    pytest.importorskip("resource")
    spec = importlib.util.spec_from_file_location("diary", BENCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "entropy", "size", "symbols"),
    [
        ("words", 2.608, 56_000, 15),
        ("actions", 2.7167, 575_000, 25),
        ("sums", 2.4628, 114_500, 15),
        ("sequence", 2.4026, 6000, 13),
    ],
)
def test_unigram_entropies(diary, name, entropy, size, symbols):
    text = getattr(diary, name)(np.random.default_rng(1))
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    assert unigram_entropy(ids) == pytest.approx(entropy, abs=0.01)
    assert len(text) == pytest.approx(size, rel=0.01)
    assert len(set(text)) == symbols


def test_actions(diary):
    assert diary.act(3, "acbafbe", "") == "gih"  # the diary's own example
    lines = diary.actions(np.random.default_rng(2), 500).split("\n")[:-1]
    before = ""
    for line in lines:
        own, action, result = re.fullmatch(r"([a-f]{4,8})(\d)([a-z]*);", line).groups()
        source = own if action in "1234" else before
        expected = {"0": "", "9": "z"}.get(action, source[:3] if action in "1357" else source[-3:])
        if action in "3478":
            expected = "".join(chr(ord(c) + 6) for c in expected)
        assert result == expected
        before = own


def test_five_sequences(diary):
    noisy = diary.sequences(np.random.default_rng(3))
    clean = [diary.line_of(i) + ";" for i in range(2000)]
    wrong = sum(a != b for a, b in zip(noisy, "\n".join([*clean, "", ""]), strict=True))
    assert wrong / len(noisy) == pytest.approx(0.002, abs=0.001)
    assert diary.line_of(4620) == diary.line_of(0)
    assert len({diary.line_of(i) for i in range(4620)}) == 4620
    i = clean.index("beloot;")  # the diary's prompt and what follows it
    assert clean[i + 1 : i + 3] == ["cfhppu;", "agiqqv;"]
