"""The shipped demo model, and the parts of the script that made it."""

import importlib.util
import itertools
from collections import Counter
from pathlib import Path

import models
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "train_demo.py"

PASSAGE = """KING HENRY:
Once more unto the breach, dear friends, once more;
Or close the wall up with our English dead.
In peace there's nothing so becomes a man
As modest stillness and humility:
But when the blast of war blows in our ears,
Then imitate the action of the tiger;
"""


@pytest.fixture(scope="module")
def script():
    if not SCRIPT.exists():
        pytest.skip(f"{SCRIPT} is not here: this is no source tree")
    spec = importlib.util.spec_from_file_location("train_demo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the script --------------------------------------------------------------------------------


def test_bytes_are_written_as_in_gpt2(script):
    characters = script.byte_characters()
    assert len(set(characters)) == 256
    assert characters[ord("A")] == "A"
    assert characters[ord(" ")] == "Ġ"
    assert characters[ord("\n")] == "Ċ"
    assert characters[0xAD] == "Ń"
    tokenizer = script.Tokenizer([])
    assert tokenizer.ids["!"] == 0
    assert tokenizer.ids["Ċ"] == 198  # as in GPT-2's vocabulary
    assert tokenizer.ids["Ġ"] == 220


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ROMEO:\nAy me!\n", ["ROMEO", ":", "\n", "Ay", " me", "!", "\n"]),
        ("end.\n\nTYBALT:", ["end", ".", "\n", "\n", "TYBALT", ":"]),
        ("we'll don't 'tis", ["we", "'ll", " don", "'t", " '", "tis"]),
        ("a   b  ", ["a", "  ", " b", "  "]),
        ("3 4th,--what", ["3", " 4", "th", ",--", "what"]),
    ],
)
def test_words_are_cut_as_by_gpt2(script, text, words):
    assert script.WORD.findall(text) == words


def test_training_of_merges_against_counting_anew(script):
    text = "low lower lowest\nnew newer newest wide wider widest slow slower\n" * 3 + PASSAGE
    trained = script.Tokenizer.train(text, 256 + 1 + 40)
    words = [[script.byte_characters()[b] for b in w.encode()] for w in script.WORD.findall(text)]
    for pair in trained.merges:
        counts = Counter(itertools.chain.from_iterable(itertools.pairwise(w) for w in words))
        assert pair == min(counts, key=lambda p: (-counts[p], p))
        for word in words:
            for i in range(len(word) - 2, -1, -1):
                if tuple(word[i : i + 2]) == pair:
                    word[i : i + 2] = ["".join(pair)]
    assert trained.decode(trained.encode(text)) == text
    assert len(trained.encode(text)) == sum(map(len, words))
    with pytest.raises(ValueError, match="too short"):
        script.Tokenizer.train("ab", 300)


def test_q8_0_is_read_as_written(script):
    random = np.random.default_rng(0)
    matrix = random.normal(size=(4, 96)).astype(np.float32)
    matrix[1, 32:64] = 0
    matrix[2, :32] = 1e-9  # its scale is below the smallest float16
    raw = script.quantize_q8_0(matrix)
    assert raw.shape == (4, 3 * 34)
    values = script.dequantize_q8_0(raw)
    assert np.array_equal(values, models.dequantize(raw, "Q8_0"))
    largest = np.abs(matrix.reshape(4, 3, 32)).max(axis=2).repeat(32, axis=1)
    assert (np.abs(values - matrix) <= largest / 127 * 0.51 + 1e-9).all()
