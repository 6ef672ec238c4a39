"""Special tokens in the text of a prompt: parsed on demand, and told about otherwise."""

import subprocess
import sys
import warnings

import numpy as np
import pytest

import tinyllm as tl

TEXT = "<|endoftext|>ROMEO:<|endoftext|>\nWhat light"


@pytest.fixture
def model():
    return tl.load()


@pytest.fixture
def ids(model):
    """The ids, put together by hand from those of the plain parts."""
    end = model.tokenizer.eos
    plain = model.tokenizer.encode
    parts = [plain(text, add_special=False) for text in ("ROMEO:", "\nWhat light")]
    return [end, *parts[0], end, *parts[1]]


def test_every_function_that_takes_a_text(model, ids):
    """Each gives what the ids give."""
    options = {"max_tokens": 4, "seed": 1}
    g = model.generate(TEXT, **options, parse_special=True)
    assert g.prompt_ids == ids
    assert model.generate([TEXT, ids], **options, parse_special=True)[0].ids == g.ids
    assert "".join(model.stream(TEXT, **options, parse_special=True)) == g.text
    assert model.beam_search(TEXT, 2, 2, parse_special=True)[0].prompt_ids == ids
    assert model.trace(TEXT, [], parse_special=True).tokens.tolist() == ids
    want = model.logits(ids)
    assert np.array_equal(model.logits(TEXT, parse_special=True), want)
    states = model.hidden_states(TEXT, parse_special=True)
    assert np.array_equal(states, model.hidden_states(ids))
    assert model.plan(TEXT, "output", parse_special=True).shapes["output"] == want.shape
    assert model.score(TEXT, parse_special=True).ids == ids
    assert model.score([TEXT], parse_special=True)[0].ids == ids
    assert float(model.perplexity(TEXT, method="hf", parse_special=True)) == float(
        model.perplexity(ids, method="hf")
    )
    assert len(tl.kl(model, model, TEXT, parse_special=True).values) == len(ids) - 1
    assert np.array_equal(model.embed(TEXT, parse_special=True), model.embed(ids))
    session = model.session()
    session.eval("ROMEO:", parse_special=True)
    before = len(session)
    session.eval(TEXT, parse_special=True)
    assert session.tokens[before:] == ids  # later text gets no BOS of its own


CALLS = {
    "generate": lambda m: m.generate(TEXT, 1, seed=1),
    "stream": lambda m: list(m.stream(TEXT, 1, seed=1)),
    "trace": lambda m: m.trace(TEXT, []),
    "trace of bytes": lambda m: m.trace([TEXT.encode(), b"b"], []),
    "logits": lambda m: m.logits(TEXT),
    "hidden_states": lambda m: m.hidden_states(TEXT),
    "score": lambda m: m.score(TEXT),
    "perplexity": lambda m: m.perplexity(TEXT, method="hf"),
    "beam_search": lambda m: m.beam_search(TEXT, 2, 1),
    "session": lambda m: m.session().eval(TEXT),
}


@pytest.mark.parametrize("name", CALLS)
def test_without_it_a_warning_says_how_once(model, name):
    with pytest.warns(UserWarning, match=r"'<\|endoftext\|>'.*parse_special=True") as said:
        CALLS[name](model)
    CALLS[name](model)  # warnings are errors here
    assert len(said) == 1
    assert said[0].filename == __file__


def test_no_warning_for_other_texts_and_for_chats(model, monkeypatch):
    pytest.importorskip("jinja2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in ("<|endoftext", "<s>", "<unk>", "a < b | c >"):
            model.trace(text, [])
        model.trace(TEXT, [], parse_special=True)
        model.trace(model.tokenizer.encode(TEXT), [])
        model.chat([{"role": "user", "content": TEXT}], None, 1, template="chatml", seed=1)
    kinds = {0: "<unk>", 1: "<s>", 2: "x"}
    tokenizer = tl.tokenizer.tokenizer_from_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": list(kinds.values()),
            "tokenizer.ggml.scores": [0.0, 0.0, 0.0],
            "tokenizer.ggml.token_type": [2, 3, 4],
        }
    )
    assert tokenizer.control_text("x <s>") == "<s>"
    assert tokenizer.control_text(b"<unk> x") is None  # one unknown and one user-defined token


@pytest.mark.parametrize("command", ["generate", "trace"])
def test_on_the_command_line(command):
    def run(*more):
        line = [sys.executable, "-m", "tinyllm", command, *more, TEXT]
        return subprocess.run(line, capture_output=True, text=True, check=True)

    more = ["-n", "2", "--seed", "1"] if command == "generate" else ["-c", "output"]
    plain, special = run(*more), run("--special", *more)
    assert "--special" in plain.stderr
    assert special.stderr == ""
    if command == "trace":
        assert special.stdout.startswith("tokens: '<|endoftext|>' 'ROMEO' ")
        assert not plain.stdout.startswith("tokens: '<|endoftext|>' 'ROMEO' ")
