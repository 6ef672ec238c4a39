"""Training of LoRA adapters: derivatives by A and B, what is learnt, and what is written."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import adapters, architectures, gradients, models
from tinyllm.training.checkpoint import read_state
from tinyllm.training.data import Data
from tinyllm.training.lora import _chosen
from tinyllm.training.network import Network

TEXT = "".join("abcdefgh"[i % 8] + "@#$%^"[i % 5] * 2 for i in range(300))
QUICK = {"rank": 2, "steps": 12, "batch": 4, "context": 16, "progress": False}


@pytest.mark.sanitize
@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama", "Q4_K"), ("llama", "F32"), ("phi3", "Q8_0"), ("gpt2", "F32"), ("qwen2moe", "F32"),
     ("gemma2", "BF16"), ("lfm2", "F32")],
)  # fmt: skip
def test_derivatives_by_a_and_b(name, kind, tmp_path):
    """By finite differences in float64: plain and fused matrices, embeddings and outputs."""
    model = architectures.random_model(tmp_path, name, kind)
    kinds = adapters.targets(model)
    tied = sum("token_embd.weight" in step.weights for step in model.steps) > 1
    names = [n for n, k in kinds.items() if k != "experts" and not n.startswith("blk.1.")]
    kinds = {n: "linear" if tied and n == "token_embd.weight" else k for n, k in kinds.items()}
    pairs = adapters.random_adapter(model, names, size=0.1, kinds=kinds)
    if tied:
        pairs["output.weight"] = pairs.pop("token_embd.weight")
    file = adapters.write(tmp_path / "a.gguf", pairs, architecture=name)
    network = Network(file.read_bytes(), 2, (), model)
    assert network.weights.keys() == {f"{n}.lora_{x}" for n in pairs for x in "ab"}
    gradients.check_network(network, network.gradients, 2e-5)


@pytest.fixture(scope="module")
def demo():
    return tl.load()


def weights_of(run):
    return [w.numpy().tobytes() for pair in run.adapter.tensors.values() for w in pair]


def test_one_step_is_adamw_with_the_gradient(demo):
    """A does not move at first, because B is 0; B moves by the rate in the sign of its gradient."""
    run = tl.lora(demo, TEXT, **{**QUICK, "steps": 1}, lr=1e-3, warmup=0, validation=0.0)
    begin = tl.lora(demo, TEXT, **{**QUICK, "steps": 1}, lr=1e-9, warmup=0, validation=0.0)
    network = Network(begin.image, 1, (), demo)
    name = "blk.2.ffn_up.weight"
    before = begin.adapter.tensors[name]
    assert np.abs(before.b.numpy()).max() < 2e-9
    assert np.abs(before.a.numpy()).max() <= 256**-0.5
    assert np.abs(before.a.numpy()).mean() == pytest.approx(256**-0.5 / 2, rel=0.1)
    ids, targets = Data(
        np.array(demo.tokenizer.encode(TEXT, add_special=False), np.int32), 16, 0.0, 0,
        demo.tokenizer.bos if demo.tokenizer.add_bos else None,
    ).batch(0, 4)  # fmt: skip
    loss = network.add_gradients(ids, targets, 1 / ids.size)
    assert run.log.losses[0] == pytest.approx(loss / ids.size, rel=1e-5)
    after = run.adapter.tensors[name]
    gradient = network.gradients[f"{name}.lora_b"]
    moved = after.b.numpy()
    large = np.abs(gradient) > 1e-3 * np.abs(gradient).max()
    np.testing.assert_allclose(moved[large], -1e-3 * np.sign(gradient[large]), rtol=1e-2)
    assert np.array_equal(after.a.numpy(), before.a.numpy())


@pytest.mark.sanitize
def test_bits_of_threads_and_of_a_resumed_run(tmp_path):
    small = models.random_model(tmp_path, "Q4_K", layers=1)
    ids = np.random.default_rng(0).integers(0, 320, 400)
    one, two = (tl.load(small.path, threads=n) for n in (1, 2))
    whole = tl.lora(one, ids, **QUICK)
    half = tl.lora(
        *(two, ids), **QUICK, out=tmp_path / "a.gguf",
        evaluate=lambda run: run.step < 6, evaluate_every=3,
    )  # fmt: skip
    assert half.step == 6
    rest = tl.lora(two, ids, steps=12, resume=tmp_path / "a.gguf", progress=False)
    assert rest.step == 12
    assert rest.parent_id == half.run_id
    assert rest.settings.rank == 2
    assert weights_of(rest) == weights_of(whole)
    assert weights_of(rest) != weights_of(half)
    assert rest.log.losses == whole.log.losses
    loaded = tl.load(small.path, adapters=[tmp_path / "a.gguf"])
    assert np.array_equal(loaded.logits(ids[:9]), whole.model.logits(ids[:9]))
    assert (tmp_path / "a.gguf.best").is_file()
    assert read_state(tmp_path / "a.gguf").settings.alpha == 4.0
    other = models.random_model(tmp_path, "Q4_K", layers=1, seed=1)
    with pytest.raises(ValueError, match="model differs from that of the run"):
        tl.lora(other, ids, resume=tmp_path / "a.gguf")
    with pytest.raises(ValueError, match="data differs from that of the run"):
        tl.lora(one, ids[1:], resume=tmp_path / "a.gguf")
    with pytest.raises(FileNotFoundError, match="cannot be resumed"):
        tl.lora(one, ids, resume=tmp_path / "none.gguf")
    tl.train(ids[:100] % 5, layers=1, width=8, heads=2, context=8, batch=2, steps=2,
             out=tmp_path / "t.gguf", progress=False)  # fmt: skip
    with pytest.raises(ValueError, match="is a run of train; expected one of lora"):
        tl.lora(one, ids, resume=tmp_path / "t.gguf")


def test_a_task_is_learnt(demo, tmp_path):
    """The model in the package writes verse; the adapter makes it count."""
    text = "one two three four five six seven eight nine ten " * 60
    out = tmp_path / "count.gguf"
    run = tl.lora(demo, text, rank=4, steps=60, batch=4, context=32, lr=3e-3, out=out,
                  progress=False)  # fmt: skip
    assert run.log.losses[0] > 4
    assert np.mean(run.log.losses[-5:]) < 0.5
    assert run.log.validation_loss[-1, 1] < 1
    assert not run.warnings
    prompt = "one two three four"
    model = tl.load(adapters=[out])
    assert model.generate(prompt, 16, temperature=0).text.startswith(" five six")
    assert not demo.generate(prompt, 16, temperature=0).text.startswith(" five six")
    assert repr(run.adapter) == repr(tl.Adapter(run.image))
    assert run.adapter.alpha == 8
    assert len(run.adapter.tensors) == 7 * demo.config.layers
    assert demo.weights["blk.0.attn_q.weight"].type == run.model.weights["blk.0.attn_q.weight"].type


def test_windows_begin_with_bos():
    ids = np.arange(10, 40, dtype=np.int32)
    windows, targets = Data(ids, 4, 0.5, 0, first=1).batch(0, 8)
    assert (windows[:, 0] == 1).all()
    assert (windows[:, 1:] == targets[:, :-1]).all()
    assert (Data(ids, 4, 0.5, 0, first=1).validation()[0][:, 0] == 1).all()
    assert (Data(ids, 4, 0.5, 0).batch(0, 8)[0][:, 0] > 1).all()


def test_targets(demo, tmp_path):
    every = _chosen(demo, None)
    assert len(every) == 7 * demo.config.layers
    assert _chosen(demo, "attn_q") == [n for n in every if ".attn_q." in n]
    assert _chosen(demo, ["blk.1.*", "attn_v.weight"]) == [
        n for n in every if n.startswith("blk.1.") or ".attn_v." in n
    ]
    assert _chosen(demo, ["ffn_*", "output", "token_embd"])[0] == "token_embd.weight"
    assert _chosen(demo, ["*"])[-1] == "output.weight"
    moe = architectures.random_model(tmp_path, "qwen2moe")
    assert not any("ffn_gate_inp." in n or "_exps" in n for n in _chosen(moe, None))
    for pattern, text in (
        ("q_proj", "fits no tensor"),
        ("attn_norm", "fits only tensors of the op norm"),
        ([], "targets is empty"),
    ):
        with pytest.raises(ValueError, match=text):
            tl.lora(demo, TEXT, targets=pattern)
    with pytest.raises(ValueError, match="fits only tensors of the op experts"):
        _chosen(moe, ["ffn_up_exps"])
    with pytest.raises(TypeError, match="targets holds 3"):
        tl.lora(demo, TEXT, targets=[3])
    run = tl.lora(demo, TEXT, targets=["token_embd", "output"], **{**QUICK, "steps": 3})
    pair = run.adapter.tensors["token_embd.weight"]
    assert pair.a.shape == (demo.config.vocab_size, 2)
    assert np.abs(pair.a.numpy()).max() > 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"rank": 0}, "rank is 0; expected a positive integer"),
        ({"steps": 0}, "steps is 0"),
        ({"context": 10**6}, "the model has at most"),
        ({"micro_batch": 3}, "a divisor of batch"),
        ({"alpha": -1.0}, "alpha is -1.0; expected a positive number"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"validation": 2.0}, "validation is 2.0"),
        ({"context": 500, "validation": 0.0}, "expected more than context"),
    ],
)
def test_wrong_arguments(demo, change, text):
    with pytest.raises(ValueError, match=text):
        tl.lora(demo, TEXT[:300], **{**QUICK, **change})


def test_wrong_models(demo, tmp_path):
    with pytest.raises(ValueError, match="mode 'fast'; expected 'exact'"):
        tl.lora(tl.load(mode="fast"), TEXT)
    file = adapters.write(
        tmp_path / "a.gguf", adapters.random_adapter(demo, ["blk.0.attn_q.weight"])
    )
    with pytest.raises(ValueError, match="model has 1 adapters"):
        tl.lora(demo.with_adapter(file), TEXT)
    with pytest.raises(ValueError, match="the model has 1024 tokens"):
        tl.lora(demo, [1, 2000] * 40)
    with pytest.raises(ValueError, match="is an encoder"):
        tl.lora(architectures.random_model(tmp_path, "bert"), [1, 2] * 40)
    with pytest.raises(FileNotFoundError):
        tl.lora(tmp_path / "none.gguf", TEXT)


def test_only_what_the_mask_has_is_learnt(demo, tmp_path):
    """The loss is the mean of the learnt targets, and a resumed run needs the same mask."""
    ids = np.arange(200, dtype=np.int32) * 7 % 50
    mask = np.arange(200) % 4 == 0
    settings = {**QUICK, "steps": 1, "warmup": 0, "validation": 0.0, "targets": "attn_q"}
    out = tmp_path / "a.gguf"
    run = tl.lora(demo, ids, mask=mask, out=out, **settings)
    windows, targets = Data(ids, 16, 0.0, 0, demo.tokenizer.bos, mask).batch(0, 4)
    assert (targets >= 0).sum() == 16
    total = 0.0
    for window, target in zip(windows, targets, strict=True):
        x = demo.logits(list(window)).astype(np.float64)
        chosen = np.flatnonzero(target >= 0)
        total += np.log(np.exp(x[chosen]).sum(axis=1)).sum() - x[chosen, target[chosen]].sum()
    assert run.log.losses[0] == pytest.approx(total / 16, rel=1e-5)
    assert weights_of(tl.lora(demo, ids, **settings)) != weights_of(run)
    for wrong, text in [(mask[:9], "shape"), (np.zeros(200, bool), "False everywhere")]:
        with pytest.raises(ValueError, match=text):
            tl.lora(demo, ids, mask=wrong, **settings)
    with pytest.raises(ValueError, match="a text"):
        tl.lora(demo, TEXT, mask=mask, **settings)
    with pytest.raises(TypeError, match="expected bool"):
        tl.lora(demo, ids, mask=mask.astype(int), **settings)
    with pytest.raises(ValueError, match="data differs"):
        tl.lora(demo, ids, mask=~mask, steps=2, resume=out, progress=False)
    assert tl.lora(demo, ids, mask=mask, steps=2, resume=out, progress=False).step == 2
