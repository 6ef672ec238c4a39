"""Options of `tinyllm generate`, and the commands that show tokens, scores, lens and embeddings."""

import json

import numpy as np
import pytest

import tinyllm as tl
from tinyllm.cli.main import main
from tinyllm.cli.sampling import NAMES, read_option
from tinyllm.sampling.samplers import SAMPLERS


@pytest.fixture(scope="module")
def model():
    return tl.load()


def result(capsys, *arguments):
    assert main(["generate", "ROMEO:", "--seed", "3", "-n", "12", "--json", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


OPTIONS = [
    (["--min-p", "0.1"], {"min_p": 0.1}),
    (["--typical", "0.9"], {"typical": 0.9}),
    (["--top-n-sigma", "1"], {"top_n_sigma": 1}),
    (["--xtc", "0.5,0.05"], {"xtc": {"probability": 0.5, "threshold": 0.05}}),
    (["--dry", "0.8,1.5"], {"dry": {"multiplier": 0.8, "base": 1.5}}),
    (["--repeat-penalty", "1.3"], {"repeat_penalty": 1.3}),
    (["--frequency-penalty", "0.5,10"], {"frequency_penalty": {"value": 0.5, "last_n": 10}}),
    (["--presence-penalty", "0.5"], {"presence_penalty": 0.5}),
    (["--dynamic-temperature", "1,0.5"], {"dynamic_temperature": {"value": 1, "range": 0.5}}),
    (["--logit-bias", "13=5,20=-1.5"], {"logit_bias": {13: 5, 20: -1.5}}),
    (["--banned", "13,20"], {"banned": [13, 20]}),
    (["--allowed", "13,20,30"], {"allowed": [13, 20, 30]}),
    (["--forced", "20,30"], {"forced": [20, 30]}),
    (["--mirostat", "5"], {"mirostat": 5}),
    (["--mirostat-v2", "5,0.2"], {"mirostat_v2": {"tau": 5, "eta": 0.2}}),
    (["--stop", "e", "--stop", "\\n"], {"stop": ["e", "\n"]}),
    (["--stop-id", "198"], {"stop_ids": [198]}),
    (["--min-tokens", "5"], {"min_tokens": 5}),
    (["--regex", "(yes|no)"], {"grammar": tl.Grammar.regex("(yes|no)")}),
    (["--schema", '{"enum": [1, 2]}'], {"grammar": tl.Grammar.json_schema({"enum": [1, 2]})}),
    (["--temperature", "0", "--top-k", "3", "--top-p", "0.5"], {"temperature": 0}),
]


@pytest.mark.parametrize(("arguments", "options"), OPTIONS, ids=lambda item: str(item)[:30])
def test_options_are_those_of_generate(model, capsys, arguments, options):
    want = model.generate("ROMEO:", 12, seed=3, **options)
    found = result(capsys, *arguments)
    assert (found["ids"], found["stop_reason"]) == (want.ids, want.stop_reason)
    assert found["text"] == want.text


def test_every_sampler_has_an_option():
    tried = {name for _, options in OPTIONS for name in options}
    assert set(SAMPLERS) - {"grammar", "temperature", "top_k", "top_p"} <= tried
    assert set(SAMPLERS) - {"grammar"} <= set(NAMES)


def test_files(model, capsys, tmp_path):
    (tmp_path / "g.gbnf").write_text('root ::= "yes" | "no"')
    (tmp_path / "s.json").write_text('{"enum": [10, 20]}')
    (tmp_path / "prompt.txt").write_text("ROMEO:")
    assert result(capsys, "--grammar", str(tmp_path / "g.gbnf"))["text"] in ("yes", "no")
    assert result(capsys, "--schema", str(tmp_path / "s.json"))["text"] in ("10", "20")
    assert main(["generate", "-f", str(tmp_path / "prompt.txt"), "--seed", "3", "-n", "12"]) == 0
    assert capsys.readouterr().out == model.generate("ROMEO:", 12, seed=3).text + "\n"


def test_modes_contexts_and_probabilities(model, capsys):
    fast = tl.load(mode="fast").generate("ROMEO:", 12, seed=3)
    assert result(capsys, "--mode", "fast")["ids"] == fast.ids
    assert result(capsys, "--context", "6")["stop_reason"] == "context"
    assert result(capsys, "--context", "6", "--on-full", "shift")["stop_reason"] == "length"
    found = result(capsys, "--logprobs", "2")["logprobs"]
    assert np.array(found["top_ids"]).shape == (12, 2)
    assert result(capsys, "--timeout", "1e-9")["stop_reason"] == "timeout"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--xtc", "a"], "--xtc is 'a'; expected PROBABILITY[,THRESHOLD]"),
        (["--xtc", "1,2,3"], "--xtc is '1,2,3'; expected PROBABILITY[,THRESHOLD]"),
        (["--logit-bias", "5"], "--logit-bias is '5'; expected ID=VALUE,..."),
        (["--banned", "x"], "--banned is 'x'; expected ID,..."),
        (["--banned", "99999"], "banned holds the id 99999"),
        (["--min-p", "3"], "min_p is 3"),
        (["--schema", "{"], "the schema is not JSON"),
        (["--grammar", "/no/file"], "No such file"),
        (["--regex", "("], "this '(' has no ')'"),
        (["--logprobs", "2"], "--logprobs is given without --json"),
        (["-f", "/no/file"], "both a prompt and --file are given"),
        (["--context", "0"], "max_context is 0"),
    ],
)
def test_wrong_options(capsys, arguments, text):
    assert main(["generate", "ROMEO:", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert text in err


def test_options_from_text():
    assert read_option("temperature", "0.5") == 0.5
    assert read_option("max_tokens", "7") == 7
    with pytest.raises(ValueError, match="expected int"):
        read_option("seed", "x")


def test_json_never_controls_a_terminal(capsys):
    found = result(capsys, "--regex", "[\x9b\u202e]{3}é")
    assert found["text"].endswith("é")
    main(["generate", "a", "-n", "20", "--json", "--regex", "[\x9b\u202e]{3}é"])
    out = capsys.readouterr().out
    assert "é" in out
    assert "\x9b" not in out
    assert "\u202e" not in out


# ---- other commands ----


def test_tokenize(model, capsys):
    assert main(["tokenize", "ROMEO: O", "--ids"]) == 0
    assert json.loads(capsys.readouterr().out) == model.tokenizer.encode("ROMEO: O")
    assert main(["tokenize", "ROMEO: O", "--ids", "--bare"]) == 0
    assert json.loads(capsys.readouterr().out) == model.tokenizer.encode("ROMEO: O", False)
    assert main(["tokenize", "<|endoftext|>x", "--ids", "--special"]) == 0
    want = model.tokenizer.encode("<|endoftext|>x", parse_special=True)
    assert json.loads(capsys.readouterr().out) == want
    assert main(["tokenize", "ROMEO: O"]) == 0
    assert "'R" in capsys.readouterr().out
    assert main(["tokenize", "ROMEO: O", "--explain"]) == 0
    assert str(model.tokenizer.explain("ROMEO: O")) in capsys.readouterr().out


def test_score(model, capsys):
    text = "To be, or not to be, that is the question"
    assert main(["score", text]) == 0
    out = capsys.readouterr().out
    assert str(model.score(text).table()) in out
    assert repr(model.score(text)) in out
    assert main(["score", (text + ". ") * 99, "--perplexity"]) == 0
    want = float(model.perplexity((text + ". ") * 99))
    assert f"{want:.3f}"[:5] in capsys.readouterr().out


def test_lens(model, capsys):
    assert main(["lens", "ROMEO:"]) == 0
    assert str(tl.lens(model.trace("ROMEO:"), 1).table()) in capsys.readouterr().out


def test_embed(model, capsys):
    assert main(["embed", "My lord", "My lady", "--pooling", "mean"]) == 0
    lines = capsys.readouterr().out.splitlines()
    want = model.embed(["My lord", "My lady"], pooling="mean")
    assert np.allclose([json.loads(line) for line in lines], want, rtol=1e-6)
    assert main(["embed", "My lord", "My lady", "--similarity", "--pooling", "mean"]) == 0
    assert f"{want[0] @ want[1]:.4f}" in capsys.readouterr().out


def test_a_draft_changes_only_the_speed(capsys, model, tmp_path):
    def text(*arguments):
        found = result(capsys, *arguments)
        return found["ids"], found["text"]

    want = result(capsys)
    assert want["timings"]["drafted"] == 0
    assert text("--draft", "lookup") == text("--draft", model.path) == text()
    assert main(["generate", "A", "-n", "2", "--draft", str(tmp_path / "none.gguf")]) != 0
    assert "none.gguf" in capsys.readouterr().err
