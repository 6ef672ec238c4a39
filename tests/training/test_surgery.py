"""Models made from others, their history, and the comparison of checkpoints."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, models
from tinyllm.training.checkpoint import read_state
from tinyllm.training.history import common, extended, read_history

TEXT = "the cat sat on the mat; " * 40 + "\n"
SHAPE = {"layers": 2, "width": 16, "heads": 2, "context": 8, "batch": 4, "progress": False}


def logits(model, text="the cat"):
    return model.logits(text)


@pytest.mark.parametrize("positions", ["rope", "learned", "none"])
@pytest.mark.parametrize("at", [0, 1, None])
def test_an_inserted_layer_changes_no_bit_and_trains(positions, at, tmp_path):
    path, deeper = tmp_path / "m.gguf", tmp_path / "deeper.gguf"
    run = tl.train(TEXT, **SHAPE, steps=6, positions=positions, out=path, optimizer="adamw")
    model = tl.insert_layer(path, deeper, at, seed=3)
    assert model.config.layers == 3
    assert np.array_equal(logits(model), logits(run.model))
    where = 2 if at is None else at
    new = [name for name in model.weights if name.startswith(f"blk.{where}.")]
    for name in new:
        zero = not model.weights[name].numpy().any()
        assert zero == ("attn_output" in name or "ffn_down" in name or name.endswith(".bias")), name
    # the moments of the others have moved with them
    before, after = read_state(path), read_state(deeper)
    assert after.step == before.step == 6
    assert np.count_nonzero(after.first) == np.count_nonzero(before.first)
    assert after.first.sum() == pytest.approx(before.first.sum(), rel=1e-4)
    rest = tl.train(TEXT, resume=deeper, steps=9, progress=False)
    assert [event.made for event in rest.history] == ["train", "insert-layer", "resume"]
    assert all(rest.model.weights[name].numpy().any() for name in new if "weight" in name)


def test_moments_stay_with_their_tensors(tmp_path):
    path, deeper = tmp_path / "m.gguf", tmp_path / "deeper.gguf"
    run = tl.train(TEXT, **SHAPE, steps=4, out=path, optimizer="adamw")
    tl.insert_layer(path, deeper, 0)

    def moments(where):
        state = read_state(where)
        found, end = {}, 0
        for name, weight in tl.GGUF(bytes(state.image)).tensors.items():
            start, end = end, end + int(np.prod(weight.shape))
            found[name] = state.first[start:end]
        return found

    old, new = moments(path), moments(deeper)
    for name in run.model.weights:
        to = name.replace("blk.1.", "blk.2.").replace("blk.0.", "blk.1.")
        assert np.array_equal(old[name], new[to]), name
    assert not new["blk.0.attn_q.weight"].any()


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma"])
def test_surgery_of_other_architectures(name, tmp_path):
    source = architectures.random_model(tmp_path, name)
    ids = [5, 9, 3, 9, 1]
    deeper = tl.insert_layer(source.path, tmp_path / "deeper.gguf", 1)
    assert np.array_equal(deeper.logits(ids), source.logits(ids))
    if name == "gemma":
        with pytest.raises(tl.UnsupportedError, match="'gemma'; expected llama"):
            tl.insert_head(source.path, tmp_path / "wider.gguf")
        return
    wider = tl.insert_head(source.path, tmp_path / "wider.gguf")
    assert wider.config.kv_heads == source.config.kv_heads + 1
    assert wider.config.heads // wider.config.kv_heads == (
        source.config.heads // source.config.kv_heads
    )
    assert wider.config.head_size == source.config.head_size
    assert np.array_equal(wider.logits(ids), source.logits(ids))


def test_an_inserted_head_trains(tmp_path):
    path = tmp_path / "m.gguf"
    run = tl.train(TEXT, **SHAPE, kv_heads=1, steps=4, out=path)
    wider = tl.insert_head(path, path)  # the same file
    assert (wider.config.heads, wider.config.kv_heads) == (4, 2)
    assert np.array_equal(logits(wider), logits(run.model))
    rest = tl.train(TEXT, resume=path, steps=8, progress=False)
    added = rest.model.weights["blk.0.attn_output.weight"].numpy()[:, 16:]
    assert added.any()
    assert rest.log.losses[:4] == run.log.losses


def test_what_cannot_be_inserted(tmp_path):
    run = tl.train(TEXT, **SHAPE, steps=2, positions="learned")
    with pytest.raises(tl.UnsupportedError, match="'gpt2'"):
        tl.insert_head(run, tmp_path / "m.gguf")
    with pytest.raises(IndexError, match="at"):
        tl.insert_layer(run, tmp_path / "m.gguf", 3)
    quantized = models.write(tmp_path / "q.gguf", *models.random_llama("Q8_0"))
    with pytest.raises(tl.UnsupportedError, match="type Q8_0"):
        tl.insert_head(quantized, tmp_path / "m.gguf")
    experts = architectures.random_model(tmp_path, "olmoe").path
    with pytest.raises(tl.UnsupportedError, match="'olmoe'"):
        tl.insert_layer(experts, tmp_path / "m.gguf")


def test_a_new_vocabulary_keeps_blocks_and_known_tokens(tmp_path):
    run = tl.train(TEXT, **SHAPE, steps=4, positions="learned")
    model = tl.init_with(run, tmp_path / "m.gguf", TEXT + "xyz", tokenizer="char", context=12)
    assert model.config.vocab_size == run.model.config.vocab_size + 3
    assert model.config.context_length == 12
    old, new = run.model.weights, model.weights
    for name in old:
        if name.startswith("blk."):
            assert np.array_equal(old[name].numpy(), new[name].numpy())
    table = new["token_embd.weight"].numpy()
    for piece in "acehmno":
        i, j = run.model.tokenizer.id(piece), model.tokenizer.id(piece)
        assert np.array_equal(table[j], old["token_embd.weight"].numpy()[i])
    assert 0 < table[model.tokenizer.id("y")].std() < 0.05
    positions = new["position_embd.weight"].numpy()
    assert np.array_equal(positions[:8], old["position_embd.weight"].numpy())
    assert positions[8:].any()
    shorter = tl.init_with(run, tmp_path / "m.gguf", context=4)
    assert shorter.config.context_length == 4
    assert len(tl.train(TEXT, start=shorter, batch=2, steps=2, progress=False).log.loss) == 2
    with pytest.raises(ValueError, match="no data to make it from"):
        tl.init_with(run, tmp_path / "m.gguf", tokenizer="bpe:300")


def test_training_starts_from_a_model(tmp_path):
    new = tl.init_model(tmp_path / "new.gguf", TEXT, layers=2, width=16, heads=2, context=8, seed=4)
    started = tl.train(TEXT, start=new, batch=4, steps=5, seed=4, progress=False)
    direct = tl.train(TEXT, **SHAPE, steps=5, seed=4)
    assert started.log.losses == direct.log.losses
    assert [event.made for event in started.history] == ["init", "train"]
    assert (started.model.logits("the") == direct.model.logits("the")).all()
    with pytest.raises(ValueError, match="width is 8; expected nothing"):
        tl.train(TEXT, start=new, batch=4, steps=5, width=8)
    with pytest.raises(ValueError, match="both start and resume"):
        tl.train(TEXT, start=new, resume=tmp_path / "new.gguf")
    with pytest.raises(ValueError, match="expected at most 8"):
        tl.train(TEXT, start=new, batch=4, steps=5, context=9)
    with pytest.raises(ValueError, match="the model has"):
        tl.train(np.arange(99), start=new, batch=4, steps=5)
    with pytest.raises(ValueError, match="no data to make it from"):
        tl.init_model(tmp_path / "m.gguf", layers=1, width=8, heads=2, context=8)
    ids = tl.init_model(tmp_path / "m.gguf", vocab_size=7, layers=1, width=8, heads=2, context=8)
    assert ids.tokenizer is None
    assert ids.config.vocab_size == 7


def test_a_quantized_model_trains_in_float32(tmp_path):
    path = models.write(tmp_path / "q.gguf", *models.random_llama("Q8_0"))
    before = tl.load(path)
    run = tl.train(np.arange(300) % 50, start=path, batch=2, steps=1, context=8, progress=False)
    assert {weight.type for weight in run.model.weights.values()} == {"F32"}
    for name, weight in before.weights.items():
        moved = np.abs(run.model.weights[name].numpy() - weight.numpy()).max()
        assert moved < 0.2, name


def test_moments_are_reset(tmp_path):
    path = tmp_path / "m.gguf"
    tl.train(TEXT, **SHAPE, steps=3, out=path)
    assert read_state(path).first.any()
    tl.reset_optimizer(path)
    state = read_state(path)
    assert state.step == 3
    assert not state.first.any()
    assert not state.second.any()
    with pytest.raises(FileNotFoundError, match=r"none\.gguf"):
        tl.reset_optimizer(tmp_path / "none.gguf")


def test_histories():
    start = extended((), "init", 0, ["a"])
    a, b = extended(start, "train", 0, ["x"]), extended(start, "train", 0, ["y"])
    assert common(a, b) == 1
    assert a[1].run != b[1].run
    assert a == extended(start, "train", 0, ["x"])
    assert read_history({}) == ()
    with pytest.raises(tl.FormatError, match=r"training\.history"):
        read_history({"training.history": "[3]"})


def test_checkpoints_are_compared(tmp_path):
    path, later = tmp_path / "m.gguf", tmp_path / "later.gguf"
    first = tl.train(TEXT, **SHAPE, steps=20, out=path, evaluate=lambda r: r.step < 10)
    for name in ("", ".training"):
        (tmp_path / f"later.gguf{name}").write_bytes((tmp_path / f"m.gguf{name}").read_bytes())
    second = tl.train(TEXT, resume=later, progress=False)
    found = tl.compare_checkpoints(path, later)
    tensors = {tensor.name: tensor for tensor in found.weights.tensors}
    x, y = (run.model.weights["blk.0.attn_v.weight"].numpy().ravel() for run in (first, second))
    assert tensors["blk.0.attn_v.weight"].relative == pytest.approx(
        np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-5
    )
    cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    assert tensors["blk.0.attn_v.weight"].cosine == pytest.approx(cosine, rel=1e-5)
    x, y = (run.model.weights["blk.1.attn_output.weight"].numpy() for run in (first, second))
    moved = np.linalg.norm(y[:, 8:] - x[:, 8:]) / np.linalg.norm(x[:, 8:])
    assert found.heads["blk.1.attn_output.weight"][1, 1] == pytest.approx(moved, rel=1e-5)
    x, y = (run.model.weights["token_embd.weight"].numpy() for run in (first, second))
    moved = np.linalg.norm(y[3, 8:] - x[3, 8:]) / np.linalg.norm(x[3, 8:])
    assert found.tokens[3, 1, 1] == pytest.approx(moved, rel=1e-5)
    assert [event.made for event in found.common] == ["train"]
    assert [event.made for event in found.only_second] == ["resume"]
    assert not found.only_first
    assert found.equal_steps == 10
    same = tl.compare_checkpoints(path, path)
    assert same.weights.same
    assert (same.tokens == [1, 0]).all()
    with pytest.raises(ValueError, match="no tensor in common"):
        tl.compare_checkpoints(path, "demo")


def test_a_weight_decay_shows_though_the_cosine_is_one(tmp_path):
    """Experiment 28 of the diary: the author took cosines of 1.000000 for no change at all."""
    run = tl.train(TEXT, **SHAPE, steps=1)
    metadata = tl.GGUF(run.image).metadata
    half = {name: w.numpy() / 2 for name, w in run.model.weights.items()}
    tl.write_gguf(tmp_path / "half.gguf", metadata, half)
    found = tl.compare_checkpoints(run, tmp_path / "half.gguf")
    assert {round(t.cosine, 6) for t in found.weights.tensors if t.name.endswith("q.weight")} == {1}
    assert found.heads["blk.0.attn_q.weight"] == pytest.approx(np.array([[1, 0.5]] * 2))


def test_nearest_tokens(tmp_path):
    run = tl.train(TEXT, **SHAPE, steps=1)
    weights = {name: w.numpy() for name, w in run.model.weights.items()}
    r = np.random.default_rng(0)
    table = r.normal(size=(600, 16)).astype(np.float32)
    table[500] = 3 * table[7]
    table[8] = 0
    weights["token_embd.weight"] = weights["output.weight"] = table
    keys = {
        key: value
        for key, value in tl.GGUF(run.image).metadata.typed().items()
        if not key.startswith(("tokenizer.", "llama.vocab_size"))
    }
    tl.write_gguf(tmp_path / "m.gguf", keys, weights)
    for head, part in ((None, slice(None)), (1, slice(8, 16))):
        found = tl.cluster_tokens(tmp_path / "m.gguf", 30, head=head)
        unit = table[:, part] / np.maximum(np.linalg.norm(table[:, part], axis=1), 1e-30)[:, None]
        cosines = np.triu(unit @ unit.T, 1)
        expected = np.sort(cosines.ravel())[::-1][:30]
        np.testing.assert_allclose([n.cosine for n in found], expected, atol=1e-5)
        assert found[0].ids == (7, 500)
        assert found[0].pieces == ("", "")
    with pytest.raises(IndexError, match="head"):
        tl.cluster_tokens(tmp_path / "m.gguf", head=2)
    assert len(tl.cluster_tokens(run, 10**6)) == 13 * 12 // 2


@pytest.mark.parametrize("kind", ["char", "byte", "bpe:280"])
def test_reserved_tokens_and_case(kind, tmp_path):
    made = tl.train_tokenizer(
        TEXT, kind, reserved=["<|user|>", "Q:"], lowercase=True, out=tmp_path / "t.gguf"
    )
    tokenizer = tl.load_tokenizer(tmp_path / "t.gguf")
    ids = tokenizer.encode("THE<|user|> Cat Q:")
    assert ids == made.encode("THE<|user|> Cat Q:")
    assert tokenizer.decode(ids) == "the<|user|> cat Q:"
    assert [ids.count(i) for i in (1, 2)] == [1, 1]
    assert tokenizer.explain("THE").ids == tokenizer.encode("the")
    run = tl.train(TEXT.upper(), **SHAPE, steps=2, tokenizer=tmp_path / "t.gguf")
    assert (run.model.logits("THE") == run.model.logits("the")).all()


def test_wrong_vocabularies():
    with pytest.raises(ValueError, match="reserved has ''"):
        tl.train_tokenizer("abc\n", "char", reserved=[""])
    with pytest.raises(ValueError, match="reserved has 'Z'"):
        tl.train_tokenizer("abc\n", "byte", reserved=["Z"])
    with pytest.raises(ValueError, match="reserved has 'x'"):
        tl.train_tokenizer("abc\n", "char", reserved=["x", "x"])
    with pytest.raises(TypeError, match="reserved is a str"):
        tl.train_tokenizer("abc\n", "char", reserved="ab")
    with pytest.raises(ValueError, match="kind is 'demo'"):
        tl.train_tokenizer("abc\n", "demo")
    with pytest.raises(ValueError, match="at least 259 tokens"):
        tl.train_tokenizer("abc\n", "bpe:258", reserved=["<|x|>", "<|y|>"])


def test_tokens_are_counted():
    tokenizer = tl.train_tokenizer(TEXT, "bpe:270")
    counts = tl.count_tokens(TEXT, tokenizer)
    assert counts.shape == (len(tokenizer),)
    assert counts.tolist() == np.bincount(tokenizer.encode(TEXT), minlength=len(tokenizer)).tolist()
    assert tl.count_tokens([1, 1, 3], tokenizer)[:4].tolist() == [0, 2, 0, 1]
