"""Options of `generate` and `stream`: stop strings and ids, grammars, lists, logprobs."""

import json

import numpy as np
import pytest

import tinyllm as tl
from testkit import models, schemas
from tinyllm.base.numeric import best
from tinyllm.generation.stepper import StopFinder
from tinyllm.sampling.sampler import Sampler


@pytest.fixture(scope="module")
def model():
    return tl.load()


@pytest.fixture(scope="module")
def bytes_model(tmp_path_factory):
    return schemas.model(tmp_path_factory.mktemp("model"))


def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max())
    return e / e.sum()


# ---- stop strings ----


def cut_at(text, stops):
    """The text before the stop string that is complete first."""
    for end in range(len(text) + 1):
        found = [s for s in stops if text[:end].endswith(s)]
        if found:
            return text[: end - max(map(len, found))]
    return text


def test_stop_finder_gives_what_find_gives_however_the_text_is_cut():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        text = "".join(rng.choice(list("ab"), 12))
        stops = [
            "".join(rng.choice(list("ab"), rng.integers(1, 5))) for _ in range(rng.integers(1, 4))
        ]
        finder, shown, at = StopFinder(stops), "", 0
        while at < len(text):
            step = int(rng.integers(0, 4))
            shown += finder.feed(text[at : at + step])
            at += step
            # shown text never has to be taken back, and only a possible stop string is held back
            assert cut_at(text, stops).startswith(shown)
            if finder.found is None:
                held = text[len(shown) : min(at, len(text))]
                assert not held or any(s.startswith(held) for s in stops)
        assert shown + finder.finish() == cut_at(text, stops)
        assert (finder.found is None) == (cut_at(text, stops) == text)


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_stop_strings_across_tokens(model, size):
    whole = model.generate("ROMEO:", max_tokens=60, seed=3)
    for start in range(0, len(whole.text) - size, 7):
        stop = whole.text[start : start + size]
        g = model.generate("ROMEO:", max_tokens=60, seed=3, stop=["never there", stop])
        assert g.text == cut_at(whole.text, [stop])
        assert (g.stop_reason, g.stop) == ("stop", stop)
        assert whole.ids[: len(g.ids)] == g.ids
        pieces = list(model.stream("ROMEO:", max_tokens=60, seed=3, stop=stop))
        assert "".join(pieces) == g.text


def test_no_stop_string_changes_nothing(model):
    whole = model.generate("ROMEO:", max_tokens=30, seed=3)
    g = model.generate("ROMEO:", max_tokens=30, seed=3, stop=whole.text[-1] * 50)
    assert (g.text, g.ids, g.stop_reason, g.stop) == (whole.text, whole.ids, "length", None)


def test_stop_ids_and_min_tokens(model):
    whole = model.generate("ROMEO:", max_tokens=30, temperature=0)
    token = whole.ids[10]
    first = whole.ids.index(token)
    g = model.generate("ROMEO:", max_tokens=30, temperature=0, stop_ids=token)
    assert (g.ids, g.stop_reason, g.stop) == (whole.ids[:first], "stop", token)
    g = model.generate(
        "ROMEO:", max_tokens=30, temperature=0, stop_ids=[token], min_tokens=first + 1
    )
    assert len(g.ids) > first
    assert token not in g.ids


def test_min_tokens_forbids_the_end(bytes_model):
    for seed in range(30):
        g = bytes_model.generate(
            "a", max_tokens=40, temperature=3, top_k=0, seed=seed, min_tokens=20
        )
        assert len(g.ids) >= 20


# ---- log-probabilities ----


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"temperature": 2.0, "top_k": 0}])
def test_logprobs_are_those_of_the_logits(model, options):
    g = model.generate("ROMEO:", max_tokens=12, seed=5, logprobs=4, **options)
    logits = model.logits([*g.prompt_ids, *g.ids])[len(g.prompt_ids) - 1 : -1]
    lp = g.logprobs
    assert len(lp) == len(g.ids) == 12
    assert lp.pieces == model.pieces(np.array(g.ids, np.int32))
    temperature = options.get("temperature", 0.8)
    for i, row in enumerate(logits):
        want = np.log(softmax(row))
        np.testing.assert_allclose(lp.logprobs[i], want[g.ids[i]], rtol=1e-12)
        order = np.argsort(-row, kind="stable")[:4]
        assert lp.top_ids[i].tolist() == order.tolist()
        np.testing.assert_allclose(lp.top_logprobs[i], want[order], rtol=1e-12)
        if temperature == 0:
            assert lp.probabilities[i] == 1
        elif temperature == 2:
            p = np.sort(softmax(row / 2))[::-1]
            keep = p[: int(np.searchsorted(np.cumsum(p), 0.95)) + 1]
            drawn = softmax(row / 2)[g.ids[i]] / keep.sum()
            np.testing.assert_allclose(lp.probabilities[i], drawn, rtol=1e-9)
    assert "logprob" in str(lp)
    assert "tokens" in repr(lp)
    assert "<table" in lp._repr_html_()


def test_best_of_many_equals_are_the_lowest_ids():
    rng = np.random.default_rng(1)
    for _ in range(50):
        values = rng.integers(0, 5, 400).astype(np.float64)
        k = int(rng.integers(0, 400))
        order = np.lexsort((np.arange(400), -values))
        assert best(values, k).tolist() == order[:k].tolist()


def test_logprobs_of_nothing_and_of_the_whole_vocabulary(model):
    g = model.generate("ROMEO:", max_tokens=0, logprobs=3)
    assert g.logprobs.top_ids.shape == (0, 3)
    size = model.config.vocab_size
    g = model.generate("ROMEO:", max_tokens=2, logprobs=size)
    assert g.logprobs.top_logprobs.shape == (2, size)
    assert model.generate("ROMEO:", max_tokens=2, logprobs=0).logprobs.top_ids.shape == (2, 0)
    assert model.generate("ROMEO:", max_tokens=2).logprobs is None


# ---- lists of prompts ----


def test_a_list_of_prompts_gives_what_each_gives_alone(model):
    prompts = ["ROMEO:", "To be, or not to be: that is the", [1, 2, 3], b"x"]
    grammar = tl.Grammar.gbnf('root ::= " "? [a-z]{3,9} ("," | ".")')
    for options in (
        {"max_tokens": 25},
        {"max_tokens": 25, "stop": ["e", " a"], "logprobs": 2},
        {"max_tokens": 25, "grammar": grammar},
        {"max_tokens": 6, "capture": "blk.0.resid_post"},
    ):
        together = model.generate(prompts, seed=7, **options)
        assert len(together) == 4
        for prompt, g in zip(prompts, together, strict=True):
            alone = model.generate(prompt, seed=7, **options)
            assert (g.text, g.ids, g.stop_reason, g.stop) == (
                alone.text, alone.ids, alone.stop_reason, alone.stop
            )  # fmt: skip
            assert g.prompt_ids == alone.prompt_ids
            if g.logprobs is not None:
                assert np.array_equal(g.logprobs.logprobs, alone.logprobs.logprobs)
            assert len(g.traces) == len(alone.traces)
            for a, b in zip(g.traces, alone.traces, strict=True):
                assert np.array_equal(a["blk.0.resid_post"], b["blk.0.resid_post"])


def test_seeds_of_a_list(model):
    a, b, c = model.generate(["ROMEO:"] * 3, max_tokens=20, seed=[1, 2, 1])
    assert a.ids == c.ids != b.ids
    assert [g.seed for g in (a, b, c)] == [1, 2, 1]
    unseeded = model.generate(["ROMEO:"] * 2, max_tokens=1)
    assert unseeded[0].seed != unseeded[1].seed
    with pytest.raises(ValueError, match="seed has 2 entries; expected 3"):
        model.generate(["a"] * 3, seed=[1, 2])


def test_a_sampler_of_ones_own(model):
    want = model.generate("ROMEO:", max_tokens=9, temperature=0.5, top_k=5, top_p=1, seed=4)
    sampler = Sampler(temperature=0.5, top_k=5, top_p=1, seed=4)
    for _ in range(2):
        assert model.generate("ROMEO:", max_tokens=9, sampler=sampler).ids == want.ids
    assert "".join(model.stream("ROMEO:", max_tokens=9, sampler=sampler)) == want.text


# ---- grammars ----


def test_texts_under_a_grammar_are_complete_or_say_so(model):
    grammar = tl.Grammar.json_schema(
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "age": {"type": "integer", "minimum": 0, "maximum": 130},
                "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
            },
            "required": ["name", "age"],
        }
    )
    for seed in range(12):
        g = model.generate(
            "{", max_tokens=200, temperature=1.5, top_k=0, seed=seed, grammar=grammar
        )
        assert g.complete is grammar.accepts(g.text)
        if g.stop_reason != "length":
            assert g.complete
            assert 0 <= json.loads(g.text)["age"] <= 130
        short = model.generate("{", max_tokens=3, temperature=1.5, seed=seed, grammar=grammar)
        assert (short.stop_reason, short.complete) == ("length", False)
        assert "not complete" in repr(short)
        pieces = model.stream(
            "{", max_tokens=200, temperature=1.5, top_k=0, seed=seed, grammar=grammar
        )
        assert "".join(pieces) == g.text


def test_a_grammar_ends_the_text_by_itself(model):
    g = model.generate("Yes or no? ", grammar=tl.Grammar.regex("yes|no"), seed=1)
    assert g.text in ("yes", "no")
    assert g.stop_reason == "grammar"
    assert g.complete is True
    # if the grammar allows more text, only the model ends it
    longer = tl.Grammar.regex("(yes|no)+")
    for seed in range(5):
        g = model.generate("Yes or no? ", max_tokens=15, grammar=longer, seed=seed)
        assert g.stop_reason in ("eog", "length")
        assert g.stop_reason == "length" or longer.accepts(g.text)


def test_text_that_is_no_ascii(bytes_model):
    grammar = tl.Grammar.regex("[é-ü😀]{3}")
    for seed in range(20):
        g = bytes_model.generate("x", grammar=grammar, temperature=2, top_k=0, seed=seed)
        assert len(g.text) == 3
        assert grammar.accepts(g.text)


def test_a_grammar_that_the_vocabulary_cannot_spell(tmp_path):
    texts = ["<unk>", "<s>", "</s>", "a", "b"]
    model = models.random_model(
        tmp_path,
        vocab=5,
        layers=1,
        width=32,
        ffn=32,
        metadata={
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": texts,
            "tokenizer.ggml.scores": np.zeros(5, np.float32),
            "tokenizer.ggml.token_type": np.array([2, 3, 3, 1, 1], np.int32),
            "tokenizer.ggml.eos_token_id": np.uint32(2),
        },
    )
    with pytest.raises(tl.Error, match=r"after 'a'.* expects one of the bytes 'c'.*no token"):
        model.generate([1], grammar=tl.Grammar.gbnf('root ::= "ac"'))
    with pytest.raises(tl.Error, match="every beam"):
        model.beam_search([1], grammar=tl.Grammar.gbnf('root ::= "ac"'))


def test_stop_strings_and_grammars_together(model):
    grammar = tl.Grammar.regex("[a-z]+;[a-z]+")
    g = model.generate(
        "x", max_tokens=300, grammar=grammar, stop=";", seed=2, temperature=3, top_k=0
    )
    if g.stop_reason == "stop":
        assert ";" not in g.text
        assert g.complete is False


# ---- the rest ----


def test_timings_and_repr(model):
    g = model.generate("ROMEO: But soft", max_tokens=5, seed=1)
    assert g.timings.prompt_tokens == len(g.prompt_ids)
    assert g.timings.tokens == 5
    assert g.timings.prompt_seconds > 0
    assert g.timings.tokens_per_second > 0
    assert "tokens/s" in repr(g)
    assert "tokens/s" in g._repr_html_()
    none = model.generate("ROMEO:", max_tokens=0)
    assert (none.text, none.ids, none.timings.tokens_per_second) == ("", [], 0)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"stop": [""]}, ValueError, r"stop\[0\] is ''; expected a non-empty string"),
        ({"stop": [1]}, TypeError, r"stop\[0\] is 1"),
        ({"stop_ids": [10**6]}, ValueError, r"stop_ids\[0\] is 1000000"),
        ({"stop_ids": ["a"]}, TypeError, r"stop_ids\[0\] is 'a'"),
        ({"min_tokens": -1}, ValueError, "min_tokens is -1"),
        ({"min_tokens": None}, TypeError, "min_tokens is None"),
        ({"max_tokens": -1}, ValueError, "max_tokens is -1"),
        ({"max_tokens": 1.5}, TypeError, "max_tokens is 1.5"),
        ({"logprobs": True}, TypeError, "logprobs is True"),
        ({"grammar": "root ::= x"}, TypeError, "grammar is str"),
        ({"sampler": 5}, TypeError, "sampler is int"),
        ({"sampler": Sampler(), "seed": 1}, ValueError, "both seed and sampler"),
    ],
)
def test_wrong_arguments(model, options, error, words):
    with pytest.raises(error, match=words):
        model.generate("x", **options)


def test_text_needs_a_tokenizer(tmp_path):
    model = models.random_model(tmp_path, layers=1, width=32, ffn=32, vocab=40)
    assert len(model.generate([1, 2], max_tokens=4, logprobs=2).ids) == 4
    for options in ({"stop": "a"}, {"grammar": tl.Grammar.regex("a")}):
        with pytest.raises(ValueError, match="no tokenizer"):
            model.generate([1], **options)


def test_a_stream_owns_its_session_while_it_is_open():
    """Two streams of one session, read in turn, mixed their tokens in one context."""
    model = tl.load()
    session = model.session()
    talk = [{"role": "user", "content": "Hi"}]
    options = {"max_tokens": 4, "seed": 1, "template": "plain", "session": session}
    first, second = model.chat_stream(talk, **options), model.chat_stream(talk, **options)
    start = next(first)
    with pytest.raises(RuntimeError, match="a generation that has not ended"):
        next(second)
    with pytest.raises(RuntimeError, match="a generation that has not ended"):
        session.eval([1])
    text = start + "".join(first)
    assert text == "".join(model.chat_stream(talk, **options))
    unfinished = model.chat_stream(talk, **options)
    next(unfinished)
    unfinished.close()
    session.eval([1])
