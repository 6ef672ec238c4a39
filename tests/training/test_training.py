"""Training: derivatives by weights, optimizers, checkpoints, and what is learnt."""

import collections
import dataclasses
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, every_set, gradients
from tinyllm import _core
from tinyllm.training.checkpoint import read_state
from tinyllm.training.data import Data, read_data, unigram_entropy
from tinyllm.training.guards import Guards
from tinyllm.training.initial import initial_parts
from tinyllm.training.network import Network
from tinyllm.training.optimizer import Optimizer
from tinyllm.training.settings import Settings
from tinyllm.training.vocabulary import train_bpe, vocabulary

SMALL = {"layers": 1, "width": 16, "heads": 2, "context": 8, "batch": 4, "steps": 12}
TEXT = "the cat sat on the mat; " * 40 + "\n"


@pytest.mark.sanitize
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma", "gpt2"])
def test_derivatives_by_weights(name, tmp_path):
    path = architectures.random_model(tmp_path, name).path
    network = Network(Path(path).read_bytes(), threads=2)
    names = [n for n in network.weights if not n.startswith("blk.1.")]
    gradients.check_network(network, names, 1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_instruction_set_gives_the_same_derivatives(name, tmp_path):
    script = (
        "import hashlib, sys, numpy as np\n"
        "from tinyllm.training.network import Network\n"
        "network = Network(open(sys.argv[1], 'rb').read(), threads=int(sys.argv[2]))\n"
        "ids = np.arange(3 * 41, dtype=np.int32).reshape(3, 41) * 7 % 90\n"
        "network.add_gradients(ids, ids[::-1].copy(), 1.0)\n"
        "print(hashlib.sha256(network.flat.tobytes()).hexdigest())\n"
    )
    path = architectures.random_model(tmp_path, name).path
    seen = set()
    for i, isa in enumerate(_core.kernel_sets()):
        seen.add(every_set.run(isa, "-c", script, path, str(1 + i % 3)))
    assert len(seen) == 1


def test_derivatives_by_other_weights_are_an_error(tmp_path):
    network = Network(Path(architectures.random_model(tmp_path, "mamba").path).read_bytes(), 1)
    ids = np.array([[5, 9, 3]], np.int32)
    step = next(i for i, step in enumerate(network.model.steps) if step.op == "conv")
    with pytest.raises(
        tl.UnsupportedError, match=rf"step {step} \(conv\): the gradient of its wei"
    ):
        network.add_gradients(ids, ids, 1.0)


@pytest.mark.sanitize
def test_adamw_is_pytorchs_formula():
    r = np.random.default_rng(0)
    w = r.normal(size=(30, 7)).astype(np.float32)
    m, v = np.zeros_like(w), np.zeros_like(w)
    w64, m64, v64 = w.astype(float), m.astype(float), v.astype(float)
    for step in range(1, 6):
        g = r.normal(size=w.shape).astype(np.float32)
        _core.adamw(((w, g, m, v, 0.1),), rate=3e-3, beta1=0.9, beta2=0.99, step=step, scale=0.5)
        half = 0.5 * g
        w64 *= 1 - 3e-3 * 0.1
        m64 = 0.9 * m64 + 0.1 * half
        v64 = 0.99 * v64 + 0.01 * half**2
        root = np.sqrt(v64 / (1 - 0.99**step)) + 1e-8
        w64 -= 3e-3 * m64 / (1 - 0.9**step) / root
    np.testing.assert_allclose(w, w64, atol=1e-6)


@pytest.mark.sanitize
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (8, 8)])
def test_muon_is_jordans(shape):
    r = np.random.default_rng(0)
    w = r.normal(size=shape).astype(np.float32)
    m = np.zeros_like(w)
    w64, m64 = w.astype(float), m.astype(float)
    for _ in range(3):
        g = r.normal(size=shape).astype(np.float32)
        _core.muon(((w, g, m, 0.1),), (shape[0],), rate=0.02, momentum=0.95)
        m64 = 0.95 * m64 + 0.05 * g
        x = 0.05 * g + 0.95 * m64
        x = x / (np.linalg.norm(x) + 1e-7)
        x = x if shape[0] <= shape[1] else x.T
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        x = x if shape[0] <= shape[1] else x.T
        w64 = w64 * (1 - 0.02 * 0.1) - 0.02 * max(1, shape[0] / shape[1]) ** 0.5 * x
    np.testing.assert_allclose(w, w64, atol=5e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False])
def test_all_matrices_decay_and_nothing_else(optimizer, tied):
    run = tl.train(TEXT, **SMALL, tied=tied, optimizer=optimizer, progress=False)
    network = Network(run.image, 1)
    network.gradients = {name: np.zeros_like(w) for name, w in network.weights.items()}
    before = {name: w.copy() for name, w in network.weights.items()}
    settings = dataclasses.replace(run.settings, lr=0.02, warmup=0, weight_decay=0.5)
    Optimizer(network, settings).step(0)
    for name, w in network.weights.items():
        others = optimizer == "muon" and not name.startswith("blk.")
        rate = (0.003 if others else 0.02) * 0.5 if w.ndim == 2 else 0
        np.testing.assert_allclose(w, before[name] * np.float32(1 - rate), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(("tied", "deviation"), [(True, 16**-0.5), (False, 0.02)])
def test_an_embedding_that_is_the_output_is_not_drowned(tied, deviation):
    settings = Settings.make(**SMALL, tied=tied)
    weights = initial_parts(settings, {}, 4000).weights
    assert weights["token_embd.weight"].std() == pytest.approx(deviation, rel=0.02)


@pytest.mark.sanitize
def test_loss_of_large_logits():
    logits = np.array([[0, 1e4, -1e4], [1, 2, 3]], np.float32)
    gradient = np.empty_like(logits)
    losses = _core.cross_entropy(logits, [0, -1], gradient)
    assert losses.tolist() == [1e4, 0]
    assert gradient.tolist() == [[-1, 1, 0], [0, 0, 0]]
    assert _core.cross_entropy(logits, [0, -1]).tolist() == [1e4, 0]
    with pytest.raises(ValueError, match="expected less than 3"):
        _core.cross_entropy(logits, [0, 3])
    with pytest.raises(ValueError, match="expected shapes"):
        _core.cross_entropy(logits, [0, 1, 2, 3])


def bits(run):
    return {name: weight.numpy().tobytes() for name, weight in run.model.weights.items()}


@pytest.mark.parametrize(
    ("answer", "steps"), [(False, 3), (np.False_, 3), (np.True_, 12), (None, 12), (0.0, 12)]
)
def test_false_of_evaluate_ends_the_training(answer, steps):
    run = tl.train(TEXT, **SMALL, progress=False, evaluate=lambda run: answer, evaluate_every=3)
    assert run.step == steps


@pytest.mark.sanitize
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_a_resumed_run_has_the_same_bits(positions, tmp_path):
    arguments = {**SMALL, "positions": positions, "progress": False}
    whole = tl.train(TEXT, **arguments, threads=1)
    half = tl.train(
        TEXT,
        **arguments,
        threads=2,
        out=tmp_path / "half.gguf",
        evaluate=lambda run: run.step < 6,
        evaluate_every=3,
    )
    assert half.step == 6
    rest = tl.train(TEXT, resume=tmp_path / "half.gguf", threads=2, progress=False)
    assert rest.step == 12
    assert rest.parent_id == half.run_id
    assert bits(rest) == bits(whole)
    assert rest.log.losses == whole.log.losses
    assert len(rest.log.seconds) == 12
    assert (tl.load(rest.path).logits("the") == whole.model.logits("the")).all()
    with pytest.raises(ValueError, match="data differs"):
        tl.train(TEXT + "x\n", resume=rest.path)
    with pytest.raises(FileNotFoundError, match="cannot be resumed"):
        tl.train(TEXT, resume=tmp_path / "none.gguf")


def test_a_killed_run_resumes(tmp_path):
    path = tmp_path / "killed.gguf"
    script = (
        "import sys, tinyllm as tl\n"
        f"tl.train({TEXT!r}, layers=1, width=16, heads=2, context=8, batch=4, steps=100000,"
        " out=sys.argv[1], evaluate_every=1, threads=1, progress=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, path])
    seen = 0
    for _ in range(2):
        while not Path(f"{path}.training").exists():
            time.sleep(0.05)
            assert process.poll() is None
        time.sleep(random.uniform(0.05, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        state = read_state(path)
        assert state.step >= max(1, seen)
        seen = state.step
        run = tl.train(TEXT, resume=path, evaluate=lambda run: False, evaluate_every=1)
        assert run.step == seen + 1
        assert tl.load(path).weights.keys() == run.model.weights.keys()
        again = script.replace(
            "layers=1, width=16, heads=2, context=8, batch=4, steps=100000", "resume=sys.argv[1]"
        )
        process = subprocess.Popen([sys.executable, "-c", again, path])
    process.kill()
    process.wait()


def test_diary_42_is_learnt():
    """Experiment 42 of a public diary (baehyunsol/femtoGPT), at a third of its size."""
    text = "".join("abcdefgh"[i % 8] + "@#$%^"[i % 5] * 2 for i in range(2000))
    entropy = unigram_entropy(np.frombuffer(text.encode(), np.uint8).astype(np.int32))
    assert entropy == pytest.approx(2.4026, abs=1e-4)
    run = tl.train(
        text, layers=2, width=48, heads=4, context=32, batch=16, steps=80, progress=False
    )
    assert run.log.loss[0] == pytest.approx(np.log(14), abs=0.15)
    assert not run.warnings
    for prompt, expected in (("c%%d", "^^e@@f##g$$h%%"), ("a$$b", "%%c^^d@@e##f$$")):
        assert run.model.generate(prompt, max_tokens=14, temperature=0).text == expected
    trace = run.model.trace("c%%d", "blk.0.attn_probs", edits=tl.zero("blk.1.ffn_act"))
    assert trace["blk.0.attn_probs"].shape == (4, 4, 4)
    assert run.log.validation_loss[-1, 1] < 0.7  # windows begin anywhere: a phase is unknown


@pytest.mark.sanitize
def test_micro_batches_and_tied_output(tmp_path):
    arguments = {**SMALL, "steps": 4, "tied": True, "progress": False, "optimizer": "adamw"}
    one = tl.train(TEXT, **arguments)
    two = tl.train(TEXT, **arguments, micro_batch=2)
    assert "output.weight" not in one.model.weights
    for name, weight in one.model.weights.items():
        np.testing.assert_allclose(two.model.weights[name].numpy(), weight.numpy(), atol=2e-4)
    one.save(tmp_path / "saved.gguf")
    assert bits(one) == {
        n: w.numpy().tobytes() for n, w in tl.load(tmp_path / "saved.gguf").weights.items()
    }


def test_no_positions_stay_zero():
    run = tl.train(TEXT, **{**SMALL, "steps": 3}, positions="none", progress=False)
    assert not run.model.weights["position_embd.weight"].numpy().any()


@pytest.mark.parametrize("kind", ["char", "byte", "bpe:300"])
def test_vocabularies(kind):
    text = "naïve café — 日本語 🙂\n\tthe cat; the cat\n" * 3
    keys = vocabulary(kind, text)
    keys["tokenizer.ggml.merges"] = keys["tokenizer.ggml.merges"][1]
    from tinyllm.tokenizer import tokenizer_from_metadata

    tokenizer = tokenizer_from_metadata(keys)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    if kind == "char":
        assert len(ids) == len(text)
    if kind == "byte":
        assert len(ids) == len(text.encode())
    if kind == "bpe:300":
        assert len(tokenizer) <= 300
        assert len(ids) < len(text)


def test_bpe_against_a_direct_count():
    text = "low lower lowest new newer newest wide wider widest aaaa aaa\n" * 2
    from tinyllm.tokenizer.bpe import BYTE_ALPHABET
    from tinyllm.tokenizer.pretokenizers import PRE_TOKENIZERS, split_pieces

    pieces = split_pieces(text, PRE_TOKENIZERS["gpt-2"].splitters)
    words = [[BYTE_ALPHABET[b] for b in piece.encode()] for piece in pieces]
    expected = []
    for _ in range(25):
        counts = collections.Counter(p for w in words for p in itertools.pairwise(w))
        if not counts:
            break
        best = min(counts, key=lambda p: (-counts[p], p))
        if counts[best] < 2:
            break
        expected.append(best)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [best[0] + best[1]]
                i += 1
    assert train_bpe(text, 25) == expected


def test_ids_as_data():
    ids = np.arange(200) % 7
    run = tl.train(ids, **{**SMALL, "steps": 3}, progress=False)
    assert run.model.tokenizer is None
    assert run.model.config.vocab_size == 7


def test_data(tmp_path):
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.py").write_text("one")
    (tmp_path / "c.bin").write_bytes(b"\xff")
    assert read_data(tmp_path) == "onetwo"
    assert read_data(str(tmp_path / "b.txt")) == "two"
    data = Data(np.arange(100, dtype=np.int32), 8, 0.2, seed=3)
    ids, targets = data.batch(5, 4)
    assert (targets == ids + 1).all()
    assert (ids < 80).all()
    assert (data.batch(5, 4)[0] == ids).all()
    assert (data.batch(6, 4)[0] != ids).any()
    assert data.validation()[0].min() >= 80
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_data(tmp_path / "b.txt")
    with pytest.raises(FileNotFoundError):
        read_data("none.txt")
    with pytest.raises(TypeError, match="expected ids"):
        read_data([1.5])
    with pytest.raises(ValueError, match="no negative ids"):
        read_data([-1])
    with pytest.raises(ValueError, match="expected more than context"):
        Data(np.arange(8, dtype=np.int32), 8, 0.0, seed=0)


def test_windows_begin_with_bos_where_prompts_do():
    """The loss of the first step is that of the model, whose tokenizer adds BOS to a prompt."""
    demo = tl.load()
    ids = demo.tokenizer.encode("To be, or not to be. " * 9, add_special=False)
    told = {"context": 16, "batch": 2, "steps": 1, "validation": 0.0, "progress": False}
    loss = tl.train(ids, start=demo, **told).log.loss[0]
    windows, targets = Data(np.array(ids, np.int32), 16, 0.0, 0, demo.tokenizer.bos).batch(0, 2)
    scores = [
        demo.score([*window, target[-1]]) for window, target in zip(windows, targets, strict=True)
    ]
    assert loss == pytest.approx(-np.mean([score.logprobs for score in scores]), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"width": 15}, "expected a multiple of heads"),
        ({"kv_heads": 3, "heads": 4}, "expected a multiple"),
        ({"width": 6}, "RoPE needs an even number"),
        ({"kv_heads": 1, "positions": "none"}, "no grouped heads"),
        ({"micro_batch": 3}, "a divisor of batch"),
        ({"validation": 1.0}, "expected a part from 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"layers": 0}, "layers is 0"),
        ({"positions": "sines"}, "positions is 'sines'"),
        ({"tokenizer": "words"}, "tokenizer is 'words'"),
        ({"tokenizer": "bpe:9"}, "at least 257 tokens"),
    ],
)
def test_wrong_arguments(change, text):
    with pytest.raises(ValueError, match=text):
        tl.train(TEXT, **{**SMALL, **change})
    with pytest.raises(TypeError, match="layers is missing"):
        tl.train(TEXT, width=3)


@pytest.mark.parametrize(
    ("batch", "context", "micro"),
    [(32, 80, 8), (12, 64, 12), (7, 512, 1), (6, 512, 2), (3, 4096, 1)],
)
def test_default_micro_batch(batch, context, micro):
    shape = {"layers": 1, "width": 8, "heads": 2, "steps": 1}
    assert Settings.make(**shape, batch=batch, context=context).micro_batch == micro


def test_schedule():
    settings = Settings.make(**SMALL, warmup=4)
    factors = [settings.factor(i) for i in range(12)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors == [*factors[:4], *sorted(factors[4:], reverse=True)]
    assert 0 < factors[-1] < 0.05


def test_guards():
    still = np.ones((2, 2), np.float32)
    guards = Guards(2.0, {"w": still})
    losses = []
    for _ in range(210):
        losses.append(2.001)
        guards.look(losses, {"w": still})
    losses.append(4.0)
    guards.look(losses, {"w": still})
    assert [w.split(": ")[0] for w in guards.warnings] == ["step 100", "step 200", "step 211"]
    assert "w has moved by less than 1%" in guards.warnings[0]
    assert "unigram entropy" in guards.warnings[1]
    assert "jumped to 4" in guards.warnings[2]


@pytest.mark.skipif(os.environ.get("TINYLLM_KILLS") is None, reason="takes minutes")
def test_fifty_kills(tmp_path):
    for i in range(25):
        folder = tmp_path / str(i)
        folder.mkdir()
        test_a_killed_run_resumes(folder)
