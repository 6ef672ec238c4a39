"""The demo model of the package, and the parts of the script that made it."""

import importlib.util
import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import tinyllm
from testkit import models
from tinyllm import reference

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "train_demo.py"
DEMO = Path(tinyllm.__file__).parent / "data" / "demo.gguf"

# Henry V, which is not in the text that the model was trained on.
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


# --- the file ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    return tinyllm.GGUF(DEMO)


@pytest.fixture(scope="module")
def weights(demo):
    return {name: weight.numpy(dtype=np.float64) for name, weight in demo.tensors.items()}


@pytest.fixture(scope="module")
def tokenizer(script, demo):
    merges = [tuple(merge.split(" ")) for merge in demo.metadata["tokenizer.ggml.merges"]]
    return script.Tokenizer(merges)


def loss(config, weights, ids):
    """Return the mean cross-entropy of the next token in nats."""
    logits = reference.forward(config, weights, ids)["output"]
    largest = logits.max(axis=1)
    total = largest + np.log(np.exp(logits - largest[:, np.newaxis]).sum(axis=1))
    return (total[:-1] - logits[np.arange(len(ids) - 1), ids[1:]]).mean()


def test_demo_is_small():
    assert DEMO.stat().st_size <= 4.3e6


def test_demo_metadata(demo):
    metadata = demo.metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["general.name"] == "tinyllm demo"
    assert metadata["general.license"] == "mit"
    assert re.search(
        r"held-out .* [23]\.\d+ nats per token, [12]\.\d+ bits per byte",
        str(metadata["general.description"]),
    )
    config = models.reference_config(metadata, demo.tensors)
    assert (config.layers, config.width, config.ffn_width) == (4, 256, 768)
    assert (config.heads, config.kv_heads, config.head_size) == (4, 2, 64)
    assert (config.context_length, config.vocab_size, config.tied) == (512, 1024, True)
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    end = metadata["tokenizer.ggml.eos_token_id"]
    assert metadata["tokenizer.ggml.bos_token_id"] == end
    assert metadata["tokenizer.ggml.tokens"][end] == "<|endoftext|>"
    assert metadata["tokenizer.ggml.token_type"][end] == 3
    assert (np.delete(metadata["tokenizer.ggml.token_type"], end) == 1).all()


def test_demo_tokens_are_bytes_then_merges(demo, tokenizer):
    assert list(demo.metadata["tokenizer.ggml.tokens"]) == tokenizer.pieces
    assert len(set(tokenizer.pieces)) == 1024
    ids = tokenizer.encode(PASSAGE)
    assert tokenizer.decode(ids) == PASSAGE
    assert tokenizer.ids["Ċ"] in ids


def test_demo_tensors_suit_every_quantized_type(demo):
    for name, weight in demo.tensors.items():
        assert weight.type == ("F32" if len(weight.shape) == 1 else "Q8_0"), name
        assert all(size % 128 == 0 for size in weight.shape), name
        assert weight.shape[-1] % 256 == 0, name
        assert np.isfinite(weight.numpy()).all(), name


def test_demo_has_learnt(demo, weights, tokenizer):
    """The loss on an unseen passage is far below 6.93, the loss of guessing."""
    config = models.reference_config(demo.metadata, demo.tensors)
    ids = np.array([tokenizer.end, *tokenizer.encode(PASSAGE)])
    right = loss(config, weights, ids)

    assert right < 3.6
    shuffled = np.concatenate((ids[:1], np.random.default_rng(0).permutation(ids[1:])))
    assert loss(config, weights, shuffled) > right + 1.5
    config.rope_base = 1e6  # other rotations than in training make it worse
    assert loss(config, weights, ids) > right + 0.02


def test_demo_begins_speeches(demo, weights, tokenizer):
    """After a speech the model continues with a name, a colon and a new line."""
    config = models.reference_config(demo.metadata, demo.tensors)
    ids = [tokenizer.end, *tokenizer.encode("My lord, farewell.\n\n")]
    start = len(ids)
    for _ in range(12):
        ids.append(int(reference.forward(config, weights, ids)["output"][-1].argmax()))
    assert re.match(r"[A-Z][A-Za-z ]+:\n", tokenizer.decode(ids[start:]))


def test_demo_is_what_load_opens(tokenizer):
    model = tinyllm.load()
    assert model.metadata["general.name"] == "tinyllm demo"
    ids = tokenizer.encode(PASSAGE)
    assert list(model.tokenizer.encode(PASSAGE, add_special=False)) == ids
    assert list(model.tokenizer.encode(PASSAGE)) == [tokenizer.end, *ids]
    assert model.tokenizer.decode(ids) == PASSAGE


def test_demo_writes_dialogue():
    model = tinyllm.load()
    for seed in range(3):
        text = model.generate("ROMEO:\n", max_tokens=300, seed=seed).text
        speakers = re.findall(r"\n\n([A-Z][A-Za-z ]+):\n", text)
        assert len(speakers) >= 2, text
