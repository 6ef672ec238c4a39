"""The demo model of the package, and the script that made it."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import tinyllm
from testkit import data, models
from tinyllm import reference
from tinyllm.tokenizer.bpe import BYTE_ALPHABET
from tinyllm.training.vocabulary import train_bpe

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


def test_the_script_trains_and_goes_on(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        script,
        "SHAPE",
        {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "ffn_width": 64, "context": 16},
    )
    monkeypatch.setattr(script, "VOCAB", 280)
    text = tmp_path / "text.txt"
    text.write_text((PASSAGE + "\n") * 6, encoding="ascii")
    out = tmp_path / "demo.gguf"

    def run(steps):
        options = ["--run", str(tmp_path / "run"), "--output", str(out), "--steps", str(steps)]
        monkeypatch.setattr(sys, "argv", ["train_demo.py", str(text), *options])
        script.main()

    run(2)
    run(3)
    assert capsys.readouterr().out.count("held out") == 2
    model = tinyllm.load(out)
    metadata = model.metadata
    assert [made for _, made, _ in json.loads(metadata["training.history"])] == ["train", "resume"]
    assert metadata["training.command"].startswith(
        "scripts/train_demo.py text.txt --optimizer adamw --steps 3 --warmup 100 "
    )
    nats, bits = script.measure(model, script.split(text.read_text())[1])
    assert f"{nats:.4f} nats per token, {bits:.4f} bits per byte" in metadata["general.description"]
    tokens = metadata["tokenizer.ggml.tokens"]
    assert tokens.index("Ċ") == 198  # as in GPT-2's vocabulary
    assert (tokens[-1], metadata["tokenizer.ggml.token_type"][-1]) == ("<|endoftext|>", 3)


def test_the_loss_is_that_of_windows_after_bos(script):
    model = tinyllm.load()
    text = PASSAGE * 6
    ids = model.tokenizer.encode(text, add_special=False)
    assert 512 < len(ids) < 1024
    end = model.tokenizer.bos
    total = sum(model.score([end, *part]).total for part in (ids[:512], ids[512:]))
    nats, bits = script.measure(model, text)
    assert nats == pytest.approx(-total / len(ids))
    assert bits == pytest.approx(-total / np.log(2) / len(text))


def test_the_constant_undoes_a_scale_of_the_logits(script, tmp_path):
    """Larger logits get a smaller constant, and then the same loss."""
    model = tinyllm.load()
    text = PASSAGE * 12
    constant, before, after = script.calibrate(model, text)
    other = script.windows(model, text)[1::2]
    total = sum(model.score(window).total for window in other)
    assert before == pytest.approx(-total / sum(len(window) - 1 for window in other))
    gain = model.weights["output_norm.weight"].numpy() * np.float32(1.25)
    path = tmp_path / "surer.gguf"
    tensors = {**model.weights, "output_norm.weight": gain}
    tinyllm.write_gguf(path, model.metadata.typed(), tensors)
    surer, _, same = script.calibrate(tinyllm.load(path), text)
    assert surer == pytest.approx(constant / 1.25, abs=0.01)
    assert same == pytest.approx(after, abs=1e-3)


@pytest.mark.slow
def test_the_file_is_what_the_script_says(script, demo):
    """Its tokenizer comes from the text to learn from, and its loss is that of the rest."""
    learnt, held_out = script.split(data.path("text", "tinyshakespeare.txt").read_text("ascii"))
    assert held_out.startswith("BAPTISTA:\n")
    merges = train_bpe(learnt, 767)
    assert demo.metadata["tokenizer.ggml.merges"] == [" ".join(pair) for pair in merges]
    nats, bits = script.measure(tinyllm.load(), held_out)
    description = demo.metadata["general.description"]
    assert f"{nats:.4f} nats per token, {bits:.4f} bits per byte" in description


# --- the file ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    return tinyllm.GGUF(DEMO)


@pytest.fixture(scope="module")
def weights(demo):
    return {name: weight.numpy(dtype=np.float64) for name, weight in demo.tensors.items()}


@pytest.fixture(scope="module")
def tokenizer():
    return tinyllm.load_tokenizer(DEMO)


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
    tokens = demo.metadata["tokenizer.ggml.tokens"]
    merges = [merge.replace(" ", "") for merge in demo.metadata["tokenizer.ggml.merges"]]
    assert list(tokens) == [*sorted(BYTE_ALPHABET), *merges, "<|endoftext|>"]
    assert len(set(tokens)) == 1024
    assert tokens[198] == "Ċ"  # as in GPT-2's vocabulary
    ids = tokenizer.encode(PASSAGE, add_special=False)
    assert tokenizer.decode(ids) == PASSAGE
    assert 198 in ids


def test_demo_tensors_suit_every_quantized_type(demo):
    for name, weight in demo.tensors.items():
        assert weight.type == ("F32" if len(weight.shape) == 1 else "Q8_0"), name
        assert all(size % 128 == 0 for size in weight.shape), name
        assert weight.shape[-1] % 256 == 0, name
        assert np.isfinite(weight.numpy()).all(), name


def test_demo_has_learnt(demo, weights, tokenizer):
    """The loss on an unseen passage is far below 6.93, the loss of guessing."""
    config = models.reference_config(demo.metadata, demo.tensors)
    ids = np.array(tokenizer.encode(PASSAGE))
    right = loss(config, weights, ids)

    assert right < 3.6
    shuffled = np.concatenate((ids[:1], np.random.default_rng(0).permutation(ids[1:])))
    assert loss(config, weights, shuffled) > right + 1.5
    config.rope_base = 1e6  # other rotations than in training make it worse
    assert loss(config, weights, ids) > right + 0.02


def test_demo_begins_speeches(demo, weights, tokenizer):
    """After a speech the model continues with a name, a colon and a new line."""
    config = models.reference_config(demo.metadata, demo.tensors)
    ids = tokenizer.encode("My lord, farewell.\n\n")
    start = len(ids)
    for _ in range(12):
        ids.append(int(reference.forward(config, weights, ids)["output"][-1].argmax()))
    assert re.match(r"[A-Z][A-Za-z ]+:\n", tokenizer.decode(ids[start:]))


def test_demo_is_what_load_opens(tokenizer):
    model = tinyllm.load()
    assert model.metadata["general.name"] == "tinyllm demo"
    ids = tokenizer.encode(PASSAGE, add_special=False)
    assert model.tokenizer.encode(PASSAGE, add_special=False) == ids
    assert model.tokenizer.encode(PASSAGE) == [1023, *ids]
    assert model.tokenizer.decode(ids) == PASSAGE


def test_demo_writes_dialogue():
    model = tinyllm.load()
    for seed in range(3):
        text = model.generate("ROMEO:\n", max_tokens=300, seed=seed).text
        speakers = re.findall(r"\n\n([A-Z][A-Za-z ]+):\n", text)
        assert len(speakers) >= 2, text
