"""Embeddings of texts, and the scores of rerankers."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, data, hf, models


def checkpoint(name, tmp_path, **metadata):
    directory = data.path("hf", name)
    keys, tensors = hf.load_checkpoint(directory)
    prefix = keys["general.architecture"]
    keys |= {f"{prefix}.{key}": value for key, value in metadata.items()}
    golden = np.load(directory.with_suffix(".npz"))
    return tl.load(models.write(tmp_path / "m.gguf", keys, tensors)), golden


@pytest.mark.parametrize("name", ["bert", "nomic_bert"])
@pytest.mark.parametrize(("number", "pooling"), [(1, "mean"), (2, "cls")])
def test_pooling_is_that_of_the_file(name, number, pooling, tmp_path):
    model, golden = checkpoint(name, tmp_path, pooling_type=number)
    got = model.embed(golden["ids"], normalize=False)
    assert models.normwise_error(got, golden[pooling]) < 1e-5
    other = "cls" if pooling == "mean" else "mean"
    assert models.normwise_error(got, golden[other]) > 1e-2
    got = model.embed(golden["ids"], pooling=other)
    want = golden[other] / np.linalg.norm(golden[other])
    assert models.normwise_error(got, want) < 1e-5


def test_the_dense_layers_of_embeddinggemma(tmp_path):
    model, golden = checkpoint("embeddinggemma", tmp_path)
    got = model.embed(golden["ids"])
    assert got.shape == golden["embedding"].shape
    assert models.normwise_error(got, golden["embedding"]) < 1e-5


def test_the_score_of_a_reranker(tmp_path):
    model, golden = checkpoint("bert_rank", tmp_path)
    got = model.embed(golden["ids"])
    assert got.shape == (1,)
    assert models.normwise_error(got, golden["logits"]) < 1e-5


def test_texts_of_a_batch_are_as_alone(tmp_path):
    model = architectures.random_model(tmp_path, "bert")
    texts = [models.random_ids(model, n, seed=n).tolist() for n in (1, 7, 30)]
    both = model.embed(texts)
    assert both.shape == (3, model.config.width)
    assert both.dtype == np.float32
    assert np.allclose(np.linalg.norm(both, axis=1), 1)
    for text, vector in zip(texts, both, strict=True):
        assert np.array_equal(model.embed(text), vector)
    rows = model.embed(texts, pooling="none")
    assert [len(row) for row in rows] == [1, 7, 30]


@pytest.mark.parametrize("name", ["bert", "llama", "mamba"])
def test_many_texts_are_as_alone(name, tmp_path):
    # more tokens than run together, so sessions serve several groups of texts
    model = architectures.random_model(tmp_path, name)
    lengths = np.random.default_rng(0).integers(1, 120, 24)
    texts = [models.random_ids(model, n, seed=n) for n in lengths.tolist()]
    many = model.embed(texts)
    tap = model.steps.role("final_norm")
    pooling = "last" if model.steps.roles("logits") else "mean"
    for ids, vector in zip(texts, many, strict=True):
        states = model.trace(ids, tap)[tap].astype(np.float64)
        want = states[-1] if pooling == "last" else states.mean(axis=0)
        assert np.array_equal(vector, (want / np.sqrt(np.sum(want * want))).astype(np.float32))
    for batch in (1, 5, 100):
        assert np.array_equal(model.embed(texts, batch=batch), many)


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_a_batch_counts_texts(batch, tmp_path, monkeypatch):
    model = architectures.random_model(tmp_path, "bert")
    texts = [models.random_ids(model, n, seed=n) for n in (4, 9, 2, 7, 5)]
    groups, run = [], type(model).run

    def counted(self, sessions, tokens, *rest, **options):
        groups.append([len(ids) for ids in tokens])
        return run(self, sessions, tokens, *rest, **options)

    monkeypatch.setattr(type(model), "run", counted)
    model.embed(texts, batch=batch)
    expected = {None: [[9, 7, 5, 4, 2]], 1: [[9], [7], [5], [4], [2]], 3: [[9, 7, 5], [4, 2]]}
    assert groups == expected[batch]


def test_an_encoder_fills_the_blocks_of_its_session_again(tmp_path):
    model = architectures.random_model(tmp_path, "bert")
    session = tl._core.Session(model.core)
    layout = model.layout(model.steps.role("final_norm"))
    first, second = (models.random_ids(model, n, seed=n).astype(np.int32) for n in (100, 7))
    for ids in (first, second):
        (trace,) = model.run([session], [ids], [], layout)[1]
        again = model.trace(ids, layout.names)
        assert np.array_equal(trace[layout.names[0]], again[layout.names[0]])
        kept = session.nbytes
        assert session.rewind(0) == 0
        assert session.nbytes == kept > 0
    (trace,) = model.run([session.fork()], [first], [], layout)[1]
    (trace,) = model.run([session], [second], [], layout)[1]
    assert np.array_equal(trace[layout.names[0]], again[layout.names[0]])


def test_the_error_of_a_text_names_it(tmp_path):
    model = architectures.random_model(tmp_path, "bert")
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        model.embed([[1], []])
    limit = model.config.context_length
    with pytest.raises(ValueError, match=f"beyond the context length of {limit}"):
        model.embed([[1], [1] * (limit + 1)])
    with pytest.raises(ValueError, match="empty batch; expected at least one text"):
        model.embed(np.empty((0, 3), np.int64))


def test_a_decoder_uses_the_last_token(tmp_path):
    model = models.random_model(tmp_path)
    ids = models.random_ids(model, 9)
    states = model.trace(ids, "output_norm")["output_norm"]
    want = states[-1] / np.linalg.norm(states[-1].astype(np.float64))
    assert models.normwise_error(model.embed(ids), want) < 1e-6


def test_wrong_arguments(tmp_path):
    model = models.random_model(tmp_path)
    with pytest.raises(ValueError, match="pooling is 'max'"):
        model.embed([1, 2], pooling="max")
    with pytest.raises(ValueError, match="batch is 0; expected at least 1"):
        model.embed([1, 2], batch=0)
    model = models.random_model(tmp_path, metadata={"llama.pooling_type": 9})
    with pytest.raises(tl.FormatError, match=r"llama\.pooling_type is 9"):
        model.embed([1, 2])


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.logits([1, 2]),
        lambda model: model.trace([1, 2], [], logits="last"),
        lambda model: model.session(),
        lambda model: model.generate([1, 2], max_tokens=1),
        lambda model: model.beam_search([1, 2], max_tokens=1),
        lambda model: model.score([1, 2]),
        lambda model: model.perplexity([1, 2, 3], method="hf"),
    ],
)
def test_an_encoder_has_no_logits(call, tmp_path):
    model = architectures.random_model(tmp_path, "nomic-bert")
    with pytest.raises(ValueError, match="nomic-bert is an encoder"):
        call(model)


def test_long_texts_are_cut_aloud(tmp_path):
    model = tl.load(max_context=16)
    text = "My lord, I will not. " * 8
    with pytest.warns(UserWarning, match=r"^the prompt has \d+ tokens; .* its first 16, as many"):
        got = model.embed(text)
    ids = model.tokenizer.encode(text)
    assert np.array_equal(got, model.embed(ids[:16]))
    with pytest.warns(UserWarning, match="^prompt 1 has"):
        assert np.array_equal(model.embed(["My", text])[1], got)
    with pytest.raises(ValueError, match="16"):  # ids are the caller's own
        model.embed(ids)
