"""Scores, perplexity, divergence and beam search, compared with NumPy and exhaustive search."""

import itertools
import math

import numpy as np
import pytest

import tinyllm as tl
from testkit import models

TEXT = "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer. " * 3


@pytest.fixture(scope="module")
def model():
    return tl.load()


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def logprobs(model, ids):
    """Entry i is the log-probability of ids[i + 1]."""
    ids = np.asarray(ids)
    return log_softmax(model.logits(ids)[:-1])[np.arange(len(ids) - 1), ids[1:]]


def test_score(model):
    score = model.score(TEXT)
    want = logprobs(model, score.ids)
    assert score.ids == model.tokenizer.encode(TEXT)
    assert score.logprobs.dtype == np.float64
    np.testing.assert_allclose(score.logprobs, want, rtol=1e-11)
    np.testing.assert_allclose(score.total, want.sum(), rtol=1e-12)
    np.testing.assert_allclose(score.perplexity, math.exp(-want.mean()), rtol=1e-12)
    assert np.array_equal(np.asarray(score), score.logprobs)
    assert len(score) == len(score.ids) - 1
    assert "".join(score.pieces).endswith("suffer. ")
    assert "logprob" in str(score)
    assert "<table" in score._repr_html_()
    both = model.score([TEXT, score.ids])
    assert all(np.array_equal(s.logprobs, score.logprobs) for s in both)


def test_score_does_not_depend_on_how_much_is_run_at_once(model, monkeypatch):
    want = model.score(TEXT).logprobs
    monkeypatch.setattr("tinyllm.evaluation.scoring._CHUNK", 4 * model.config.vocab_size * 3)
    assert np.array_equal(model.score(TEXT).logprobs, want)


def test_score_of_too_little_and_too_much(tmp_path):
    model = models.random_model(tmp_path, layers=1, width=32, ffn=32, vocab=40, context=16)
    assert model.score(list(range(17))).logprobs.shape == (16,)
    with pytest.raises(ValueError, match="18 tokens; expected at most 17"):
        model.score(list(range(18)))
    with pytest.raises(ValueError, match="one token"):
        model.score([1])
    with pytest.raises(ValueError, match="vocabulary"):
        model.score([1, 40])


@pytest.mark.parametrize("window", [8, 9, 20])
def test_perplexity_as_llama_cpp(model, window):
    # windows do not overlap; of each the positions from window // 2 + 1 on are scored
    ids = model.tokenizer.encode(TEXT)
    values = []
    for start in range(0, len(ids) // window * window, window):
        chunk = ids[start : start + window]
        if model.tokenizer.add_bos:
            chunk[0] = model.tokenizer.bos
        values += logprobs(model, chunk)[window // 2 :].tolist()
    p = model.perplexity(TEXT, window=window)
    assert (p.count, p.method, p.window) == (len(values), "llama.cpp", window)
    assert p.count == len(ids) // window * (window - window // 2 - 1)
    np.testing.assert_allclose(p.value, math.exp(-np.mean(values)), rtol=1e-11)
    error = np.std(values) / math.sqrt(len(values) - 1) * p.value
    np.testing.assert_allclose(p.error, error, rtol=1e-8)
    assert float(p) == p.value
    assert "±" in str(p)


def test_bos_takes_the_first_place_of_each_window(tmp_path):
    from testkit import schemas

    model = schemas.model(tmp_path)
    assert model.tokenizer.add_bos
    ids = model.tokenizer.encode("abcdefghijklmnopqrstuvwxyz")
    values = []
    for start in (0, 8, 16):
        values += logprobs(model, [1, *ids[start + 1 : start + 8]])[4:].tolist()
    p = model.perplexity(ids[:24], window=8)
    np.testing.assert_allclose(p.value, math.exp(-np.mean(values)), rtol=1e-11)


@pytest.mark.parametrize(("window", "stride"), [(16, 8), (16, 16), (16, 5), (10, 1), (300, 100)])
def test_perplexity_as_hugging_face(model, window, stride):
    # the loop of the guide with the loss of transformers: the mean over the unmasked labels after
    # the shift by one
    ids = np.array(model.tokenizer.encode(TEXT))
    total = count = before = 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        labels = ids[begin:end].copy()
        labels[: len(labels) - (end - before)] = -100
        values = logprobs(model, ids[begin:end])
        shifted = labels[1:]
        scored = int((labels != -100).sum()) - 1
        if scored > 0:
            total += -values[shifted != -100].mean() * scored
            count += scored
        before = end
        if end == len(ids):
            break
    if count == 0:
        with pytest.raises(ValueError, match="two new tokens"):
            model.perplexity(TEXT, stride=stride, window=window, method="hf")
        return
    p = model.perplexity(TEXT, stride=stride, window=window, method="hf")
    np.testing.assert_allclose(p.value, math.exp(total / count), rtol=1e-11)
    assert (p.stride, p.window, p.method) == (stride, window, "hf")


def test_one_window_is_the_score(model):
    p = model.perplexity(TEXT, method="hf")
    np.testing.assert_allclose(p.value, model.score(TEXT).perplexity, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "x"}, "method is 'x'; expected 'llama.cpp' or 'hf'"),
        ({"stride": 4}, "stride is 4; expected None"),
        ({"window": 1000}, "window is 1000|at least two"),
        ({"window": 3}, "window is 3"),
        ({"window": 1, "method": "hf"}, "window is 1"),
        ({"stride": 0, "method": "hf"}, "stride is 0"),
        ({"stride": 20, "window": 10, "method": "hf"}, "stride is 20"),
        ({}, "at least two"),
    ],
)
def test_perplexity_wrong_arguments(model, options, words):
    with pytest.raises(ValueError, match=words):
        model.perplexity(TEXT, **options)


def test_kl(tmp_path_factory):
    shape = {"layers": 1, "width": 64, "ffn": 64, "vocab": 50, "heads": 2, "kv_heads": 1}
    a = models.random_model(tmp_path_factory.mktemp("a"), **shape)
    b = models.random_model(tmp_path_factory.mktemp("b"), "Q8_0", **shape)
    ids = np.random.default_rng(0).integers(0, 50, 30).tolist()
    for window, parts in ((None, [ids]), (12, [ids[:12], ids[12:24], ids[24:]])):
        want, same = [], []
        for part in parts:
            pa, pb = log_softmax(a.logits(part)[:-1]), log_softmax(b.logits(part)[:-1])
            want += (np.exp(pa) * (pa - pb)).sum(-1).tolist()
            same += (pa.argmax(-1) == pb.argmax(-1)).tolist()
        d = tl.kl(a, b, ids, window)
        np.testing.assert_allclose(d.values, want, rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(d.mean, np.mean(want), rtol=1e-9)
        np.testing.assert_allclose(d.error, np.std(want, ddof=1) / math.sqrt(len(want)), rtol=1e-7)
        assert d.same_top == np.mean(same)
        assert d.max == max(d.values)
    assert tl.kl(a, a, ids).max == 0
    assert "mean" in repr(d)
    other = models.random_model(tmp_path_factory.mktemp("c"), **{**shape, "vocab": 40})
    with pytest.raises(ValueError, match="50 and 40"):
        tl.kl(a, other, ids)


# ---- beam search ----


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b", "c"],
        "tokenizer.ggml.scores": np.zeros(6, np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3, 1, 1, 1], np.int32),
        "tokenizer.ggml.bos_token_id": np.uint32(1),
        "tokenizer.ggml.eos_token_id": np.uint32(2),
    }
    return models.random_model(
        tmp_path_factory.mktemp("tiny"), vocab=6, layers=1, width=32, ffn=32, metadata=metadata
    )


def every_text(model, prompt, longest, penalty=0.0, allowed=lambda ids: True):
    """All continuations that end or have `longest` tokens: (rank, score, ids)."""
    found = []
    for n in range(longest + 1):
        for ids in itertools.product([0, 1, 3, 4, 5], repeat=n):
            whole = [*ids] if n == longest else [*ids, 2]
            if allowed(ids):
                total = logprobs(model, [*prompt, *whole])[len(prompt) - 1 :].sum()
                found.append((total / max(len(whole), 1) ** penalty, total, list(ids)))
    return sorted(found, key=lambda f: -f[0])


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
def test_beam_search_with_enough_beams_finds_the_best_of_all(tiny, penalty):
    prompt = [1, 3, 4]
    want = every_text(tiny, prompt, 3, penalty)
    found = tiny.beam_search(prompt, beams=150, max_tokens=3, length_penalty=penalty)
    assert len(found) == 150
    assert [g.ids for g in found] == [ids for _, _, ids in want[:150]]
    np.testing.assert_allclose([g.score for g in found], [s for _, s, _ in want[:150]], rtol=1e-11)
    assert {g.stop_reason for g in found} == {"eog", "length"}


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_beam_search_with_few_beams(tiny, beams):
    # the same search with lists; every beam runs from the start
    prompt, live, done = [1, 5], [([], 0.0)], []
    for _ in range(6):
        grown = []
        for ids, total in live:
            row = log_softmax(tiny.logits([*prompt, *ids])[-1])
            grown += [([*ids, t], total + row[t]) for t in range(6)]
        grown.sort(key=lambda g: -g[1])
        done += [(ids[:-1], s) for ids, s in grown[:beams] if ids[-1] == 2]
        live = [g for g in grown if g[0][-1] != 2][:beams]
    want = sorted(done + live, key=lambda d: -d[1])[:beams]
    found = tiny.beam_search(prompt, beams=beams, max_tokens=6)
    assert [g.ids for g in found] == [ids for ids, _ in want]
    np.testing.assert_allclose([g.score for g in found], [s for _, s in want], rtol=1e-11)


def test_beam_search_under_a_grammar(tiny):
    grammar = tl.Grammar.regex("a?[bc]a|c")
    want = []
    for text in ("aba", "aca", "ba", "ca", "c"):
        ids = [{"a": 3, "b": 4, "c": 5}[x] for x in text]
        whole = [*ids, 2] if text == "c" else ids  # it could go on, so the model ends it
        want.append((logprobs(tiny, [1, *whole]).sum(), ids))
    want.sort(key=lambda w: -w[0])
    found = tiny.beam_search([1], beams=10, grammar=grammar)
    assert [g.ids for g in found] == [ids for _, ids in want]
    np.testing.assert_allclose([g.score for g in found], [s for s, _ in want], rtol=1e-11)
    assert all(g.complete for g in found)


def test_beam_search_one_beam_is_greedy_and_stops(model):
    greedy = model.generate("ROMEO:", max_tokens=10, temperature=0)
    (g,) = model.beam_search("ROMEO:", beams=1, max_tokens=10)
    assert (g.ids, g.text) == (greedy.ids, greedy.text)
    assert "score" in repr(g)
    stopped = model.beam_search("ROMEO:", beams=3, max_tokens=10, stop_ids=greedy.ids[2])
    assert any(s.stop == greedy.ids[2] for s in stopped)
    long = model.beam_search("ROMEO:", beams=2, max_tokens=6, min_tokens=6)
    assert all(len(s.ids) == 6 for s in long)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"beams": 0}, ValueError, "beams is 0"),
        ({"beams": 1.5}, TypeError, "beams is 1.5"),
        ({"length_penalty": -1}, ValueError, "length_penalty is -1"),
        ({"max_tokens": -1}, ValueError, "max_tokens is -1"),
    ],
)
def test_beam_search_wrong_arguments(model, options, error, words):
    with pytest.raises(error, match=words):
        model.beam_search("x", **options)


def test_a_text_that_begins_as_the_one_before_runs_only_the_rest(monkeypatch):
    model = tl.load(threads=1)
    start = "ROMEO:\nIt is the east, and Juliet is the sun.\n"
    texts = ["O no", start + "JULIET:", start + "JULIET:", start + "O Romeo", start, start + "A B"]
    alone = [model.score(text).logprobs for text in texts]
    rows = []
    run = type(model).run

    def counted(self, sessions, tokens, *arguments, **options):
        rows.append(len(tokens[0]))
        return run(self, sessions, tokens, *arguments, **options)

    monkeypatch.setattr(type(model), "run", counted)
    for want, got in zip(alone, model.score(texts), strict=True):
        assert np.array_equal(want, got.logprobs)
    assert rows[1] > 20
    assert max(rows[2:]) < 10
