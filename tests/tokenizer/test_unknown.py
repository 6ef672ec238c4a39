"""A model whose kind of tokenizer is unknown runs on ids; text raises what is missing."""

import pickle

import numpy as np
import pytest

import tinyllm as tl
from tinyllm.files.model_file import DEMO

PROMPT = [1, 2, 3]


@pytest.fixture(scope="module", params=["with a vocabulary", "without"])
def model(request, tmp_path_factory):
    file = tl.GGUF(DEMO)
    metadata = file.metadata.typed() | {"tokenizer.ggml.model": "plamo2"}
    if request.param == "without":
        del metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
        del metadata["tokenizer.ggml.merges"]
    path = tmp_path_factory.mktemp("unknown") / "m.gguf"
    tl.write_gguf(path, metadata, file.tensors)
    return tl.load(path)


def test_ids_work(model):
    assert np.array_equal(model.logits(PROMPT), tl.load().logits(PROMPT))
    made = model.generate(PROMPT, 4, temperature=0)
    assert made.ids == tl.load().generate(PROMPT, 4, temperature=0).ids
    assert made.text == ""
    assert model.beam_search(PROMPT, 2, max_tokens=3)[0].text == ""
    assert model.trace(PROMPT).pieces == ["1", "2", "3"]
    assert "unknown" in str(model.table())
    session = model.session()
    session.eval(PROMPT)
    assert "unknown" not in str(session.table())


def test_text_raises(model):
    tokenizer = model.tokenizer
    for use in (
        lambda: tokenizer.encode("a"),
        lambda: tokenizer.decode([1]),
        lambda: tokenizer.pieces([1]),
        lambda: tokenizer.explain("a"),
        lambda: tokenizer.id("a"),
        lambda: tokenizer.encode_chat([{"role": "user", "content": "x"}], template="plain"),
        lambda: tl.StreamDecoder(tokenizer).feed(1),
        lambda: model.logits("a"),
        lambda: model.generate("a"),
        lambda: model.stream(PROMPT),
        lambda: model.generate(PROMPT, stop="x"),
        lambda: model.generate(PROMPT, grammar=tl.Grammar.regex("a")),
        lambda: model.chat([{"role": "user", "content": "x"}], template="plain"),
        lambda: model.perplexity("a b c"),
    ):
        with pytest.raises(tl.UnsupportedError, match=r"'plamo2'.*runs on token ids.*tokenizer="):
            use()


def test_a_copy(model):
    copied = pickle.loads(pickle.dumps(model.tokenizer))
    assert len(copied) == len(model.tokenizer)
    with pytest.raises(tl.UnsupportedError, match="'plamo2'"):
        copied.encode("a")


def test_another_tokenizer(model):
    with_text = tl.load(model.path, tokenizer=DEMO)
    assert with_text.generate("To", 4, seed=1).text == tl.load().generate("To", 4, seed=1).text
