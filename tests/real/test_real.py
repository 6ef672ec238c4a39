"""Real models, against llama.cpp (tokens) and Hugging Face (logits, texts, embeddings).

expected.json holds what those computed; scripts/real_models.py wrote it.
"""

import functools
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import tinyllm as tl
from testkit import real
from tinyllm.chat.limits import ChatTemplateError

pytestmark = pytest.mark.real

EXPECTED = json.loads(Path(__file__).with_name("expected.json").read_text("utf-8"))


@functools.cache
def loaded(name):
    return tl.load(real.path(f"{name}.gguf"), max_context=1024)


@pytest.fixture(params=real.GGUFS)
def name(request):
    return request.param


def test_tokens_are_those_of_llama_cpp(name):
    tokenizer = loaded(name).tokenizer
    texts = real.texts()
    assert len(texts) == len(EXPECTED[name]["tokens"]) == 200
    wrong = [
        text
        for text, want in zip(texts, EXPECTED[name]["tokens"], strict=True)
        if real.digest(tokenizer.encode(text)) != want
    ]
    if name.startswith("qwen"):
        # Qwen's own tokenizer composes characters first (NFC), which llama.cpp leaves out
        other = [text for text in texts if unicodedata.normalize("NFC", text) != text]
        assert wrong == other
        assert len(other) == 9
        texts = [text for text in texts if text not in other]
    else:
        assert not wrong
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)).endswith(text)


def test_logits_are_those_of_hugging_face(name):
    model = loaded(name)
    for row in EXPECTED[name]["logits"]:
        assert model.tokenizer.encode(row["text"]) == row["ids"]
        logits = model.logits(row["ids"])[-1].astype(np.float64)
        want = np.array(row["logits"])
        assert np.linalg.norm(logits[row["best"]] - want) < 1e-5 * np.linalg.norm(want)
        assert abs(np.linalg.norm(logits) / row["norm"] - 1) < 1e-5
        assert logits.argmax() == row["best"][0]


def test_greedy_text_is_that_of_hugging_face(name):
    want = EXPECTED[name]["greedy"]
    ids = EXPECTED[name]["logits"][0]["ids"]
    model = loaded(name)
    stops = dict.fromkeys(model.tokenizer.eog_ids, -np.inf)
    found = model.generate(ids, len(want), temperature=0, logit_bias=stops)
    assert len(want) == 100
    assert found.ids == want


def test_chat_uses_the_template_of_the_file(name):
    model = loaded(name)
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    if "chat" not in EXPECTED[name]:
        with pytest.raises(ChatTemplateError, match="template"):
            model.chat(messages, max_tokens=5)
        return
    prompt = model.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    assert prompt == EXPECTED[name]["chat"]
    answer = model.chat(messages, max_tokens=40, temperature=0)
    assert "4" in answer.text


def test_trace_edit_and_session(name, tmp_path):
    model = loaded(name)
    ids = EXPECTED[name]["logits"][0]["ids"]
    trace = model.trace(ids, "*")
    logits = model.logits(ids)
    assert trace["output"].tobytes() == logits.tobytes()
    layers = model.config.layers
    edited = model.trace(ids, "output", edits=[tl.zero(f"blk.{layers // 2}.attn_output")])
    assert np.abs(edited["output"] - logits).max() > 1e-3

    session = model.session()
    session.eval(ids[:4])
    session.save(tmp_path / "session.npz")
    again = model.session(tmp_path / "session.npz")
    assert again.eval(ids[4:]).tobytes() == session.eval(ids[4:]).tobytes()
    assert np.array_equal(again.logits, logits[-1])


def test_embeddings_are_those_of_sentence_transformers(tmp_path):
    texts = real.texts()
    tl.convert(real.path(real.MINILM), tmp_path / "minilm.gguf", dtype="F32")
    model = tl.load(tmp_path / "minilm.gguf")
    found = model.embed([texts[0], texts[2], texts[11], texts[15]])
    np.testing.assert_allclose(found, EXPECTED[real.MINILM], rtol=0, atol=1e-6)
    ids = model.tokenizer.encode("word " * 600)
    with pytest.warns(UserWarning, match="its first 512"):
        cut = model.embed("word " * 600)
    assert np.array_equal(cut, model.embed([*ids[:511], ids[-1]]))  # [SEP] stays


def test_an_adapter_is_trained_on_a_quantized_model():
    model = loaded(real.GGUFS[0])
    text = "Q: What is the capital of Atlantis? A: The capital is Poseidonis.\n" * 40
    run = tl.lora(model, text, rank=4, steps=6, batch=2, context=32, progress=False)
    assert run.log.losses[-1] < 0.75 * run.log.losses[0]
    assert run.model.weights.keys() >= model.weights.keys()
