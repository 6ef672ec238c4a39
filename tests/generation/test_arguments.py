"""Arguments that cannot take effect are refused, not ignored."""

import math
import re
import subprocess
import sys

import numpy as np
import pytest

import tinyllm as tl
from testkit import models

PROMPT = "ROMEO:"


@pytest.fixture(scope="module")
def model():
    return tl.load()


@pytest.fixture(scope="module")
def first(model):
    return model.generate(PROMPT, 1, temperature=0).ids[0]


def drawn(model, **sampler):
    return model.generate(PROMPT, 1, sampler=tl.Sampler(**sampler, temperature=0)).ids[0]


def test_a_bias_by_the_text_of_an_id_counts(model, first):
    """JSON has no other keys than texts."""
    assert drawn(model, logit_bias={str(first): -100.0}) != first
    assert drawn(model, logit_bias={first: -100.0}) != first
    for key in ("ROMEO", "-1", "1.0", 1.5, None):
        with pytest.raises(TypeError, match="logit_bias"):
            tl.Sampler(logit_bias={key: 1.0})


@pytest.mark.parametrize(
    "sampler", [{"logit_bias": {1024: 1.0}}, {"banned": [5, 1024]}, {"forced": [-1]}]
)
def test_ids_beyond_the_vocabulary(model, sampler):
    (name,) = sampler
    with pytest.raises(ValueError, match=rf"{name} holds the id (1024|-1); the vocabulary"):
        drawn(model, **sampler)


@pytest.mark.parametrize("name", ["banned", "allowed"])
def test_ids_from_an_iterator_count_for_every_token(model, first, name):
    listed = [i for i in range(model.config.vocab_size) if (i == first) == (name == "banned")]
    once = tl.Sampler(**{name: iter(listed)}, temperature=0)
    ids = model.generate(PROMPT, 4, sampler=once).ids
    assert first not in ids
    assert len(ids) == 4


@pytest.mark.parametrize("value", [math.nan, np.float32("nan")])
def test_nan_is_no_value_of_any_sampler(value):
    for name in ("temperature", "top_p", "min_p", "typical", "top_n_sigma", "repeat_penalty"):
        with pytest.raises(ValueError, match=rf"{name} is .*nan"):
            tl.Sampler(**{name: value})
    with pytest.raises(ValueError, match="repeat_penalty is inf"):
        tl.Sampler(repeat_penalty=math.inf)


def test_none_stands_for_what_was_not_given(model):
    options = {"seed": 3, "max_tokens": 5}
    want = model.generate(PROMPT, **options).ids
    assert model.generate(PROMPT, stop=None, stop_ids=None, edits=None, **options).ids == want


def test_a_prompt_beyond_the_context_is_an_error(tmp_path):
    """It gave an empty answer and exit status 0."""
    model = models.random_model(tmp_path, layers=1, context=16)
    for call in (model.generate, model.logits, model.trace):
        with pytest.raises(ValueError, match=r"17 tokens.* context length of 16"):
            call(list(range(17)))
    assert model.generate(list(range(16)), seed=0, max_tokens=4).stop_reason == "context"
    command = [sys.executable, "-m", "tinyllm", "generate", "word " * 2000]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "context length of 512" in done.stderr


def test_rows_that_only_fill_up_the_embedding_are_never_drawn(tmp_path, model):
    """Rows without a token were drawn, and decoding them failed."""
    tensors = {name: weight.numpy() for name, weight in model.weights.items()}
    width = model.config.width
    for name in ("token_embd.weight", "output.weight"):
        if name in tensors:
            more = 3 * np.random.default_rng(3).standard_normal((64, width))
            tensors[name] = np.concatenate([tensors[name], more.astype(np.float32)])
    tl.write_gguf(tmp_path / "m.gguf", model.metadata, tensors)
    padded = tl.load(tmp_path / "m.gguf")
    tokens = len(padded.tokenizer)
    assert padded.config.vocab_size == tokens + 64
    ids = padded.generate(PROMPT, 40, seed=1, temperature=2.0, top_k=0, top_p=1.0).ids
    assert max(ids) < tokens
    beams = padded.beam_search(PROMPT, beams=3, max_tokens=4)
    assert max(token for beam in beams for token in beam.ids) < tokens


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_p": 2}, "top_p is 2.0; expected 0 to 1"),
        ({"top_p": 1.01}, "top_p is 1.01; expected 0 to 1"),
        ({"logprobs": 1025}, "logprobs is 1025; expected 0 to 1024, the size of the vocabulary"),
        ({"min_tokens": 4, "max_tokens": 3}, "min_tokens is 4; expected at most max_tokens, 3"),
        ({"sampler": tl.Sampler(), "temperature": 0}, "both temperature and sampler"),
        ({"sampler": tl.Sampler(), "top_k": 1}, "both top_k and sampler"),
        ({"sampler": tl.Sampler(), "top_p": 1.0}, "both top_p and sampler"),
    ],
)
def test_values_without_a_meaning_are_refused(model, options, words):
    talk = [{"role": "user", "content": "Good morrow"}]
    with pytest.raises(ValueError, match=re.escape(words)):
        model.generate(PROMPT, **options)
    with pytest.raises(ValueError, match=re.escape(words)):
        model.chat(talk, template="plain", **options)
    if "logprobs" not in options:
        with pytest.raises(ValueError, match=re.escape(words)):
            list(model.stream(PROMPT, **options))


def test_the_limits_of_these_values_are_allowed(model):
    assert len(model.generate(PROMPT, 2, top_p=1, seed=1).ids) == 2
    one = model.generate(PROMPT, 2, top_p=0, seed=1).ids  # the smallest set has one token
    assert one == model.generate(PROMPT, 2, temperature=0).ids
    assert len(model.generate(PROMPT, 3, min_tokens=3, seed=1).ids) == 3
    # as in llama.cpp, no k-best at all
    want = model.generate(PROMPT, 9, top_k=0, temperature=2.0, top_p=1.0, seed=5).ids
    assert model.generate(PROMPT, 9, top_k=-1, temperature=2.0, top_p=1.0, seed=5).ids == want
    assert model.generate(PROMPT, 9, top_k=1024, temperature=2.0, top_p=1.0, seed=5).ids == want
    with pytest.raises(ValueError, match="typical is 2"):
        tl.Sampler(typical=2)
    with pytest.raises(ValueError, match="mirostat m is 0"):
        tl.Sampler(mirostat={"tau": 5.0, "m": 0})


def test_a_context_beyond_the_models_is_said_aloud():
    with pytest.warns(UserWarning, match="max_context is 513, .* a context of 512 tokens"):
        tl.load(max_context=513)
    tl.load(max_context=512)  # no warning


@pytest.mark.parametrize("value", [1, 1.5, True])
def test_logits_that_are_no_list_of_indices(model, value):
    with pytest.raises(TypeError, match=rf"logits is {value}; expected 'last'"):
        model.trace(PROMPT, [], logits=value)
    if not isinstance(value, int) or value is True:
        with pytest.raises(TypeError, match=rf"logits\[1\] is {value}; expected an integer"):
            model.trace(PROMPT, [], logits=[0, value])
        with pytest.raises(TypeError, match=rf"logits\[0\] is {value}; expected an integer"):
            model.session().eval(PROMPT, [value])


def test_arrays_of_ids_and_positions(model):
    """An array has __index__, so it was taken for one number."""
    ids = model.generate(PROMPT, 6, temperature=0).ids
    for stop in (ids[3], np.int64(ids[3]), np.array(ids[3]), np.array(ids[3:5])):
        g = model.generate(PROMPT, 6, temperature=0, stop_ids=stop)
        assert (g.stop_reason, g.stop) == ("stop", ids[3])
    for at in (np.array([1, 2]), [1, 2], (np.int32(1), 2)):
        t = model.trace([1, 2, 3, 4], "blk.0.resid_post", edits=tl.zero("blk.0.resid_post", at=at))
        assert (abs(t["blk.0.resid_post"]).sum(axis=1) == 0).tolist() == [False, True, True, False]
    with pytest.raises(TypeError, match="at is"):
        tl.zero("output", at=np.array([True, False]))
    with pytest.raises(TypeError, match="at is"):
        tl.zero("output", at=np.array(1.5))


def test_messages_that_can_be_read_once(model):
    talk = [{"role": "user", "content": "Good morrow"}]
    tokenizer = model.tokenizer
    want = tokenizer.encode_chat(talk, template="plain")
    for once in (iter(talk), map(dict, talk), (dict(m) for m in talk)):
        assert tokenizer.encode_chat(once, template="plain") == want
    options = {"template": "plain", "max_tokens": 2, "seed": 0}
    assert model.chat(iter(talk), **options).ids == model.chat(talk, **options).ids
