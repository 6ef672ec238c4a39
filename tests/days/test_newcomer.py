"""The day of somebody who has the README, this package and NumPy, and nothing else.

One process plays it from top to bottom; each step says what happened, and the tests look at it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tinyllm as tl

NUMPY_ONLY = Path(__file__).parents[1] / "testkit" / "numpy_only"

DAY = r'''
import builtins, contextlib, io, json, pathlib, sys, warnings
warnings.simplefilter("always")
steps = {}

def step(name, call):
    """Run a step; keep what it gave, what it warned about, or how it failed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            value = call()
        except BaseException as error:
            value = f"{type(error).__name__}: {error}"
    steps[name] = [str(value), out.getvalue(), [str(w.message) for w in said]]
    return value

import tinyllm as tl
steps["modules"] = [" ".join(sorted(sys.modules)), "", []]
step("dir", lambda: " ".join(dir(tl)))
names = {}
exec("from tinyllm import *", names)
step("star", lambda: " ".join(set(names) & set(dir(builtins)) - {"__name__", "__doc__"}))
model = step("load", tl.load)
step("repr", lambda: repr(model))
step("help", lambda: help(tl.load))
step("text", lambda: model.generate("ROMEO:", max_tokens=20, seed=7).text)
step("again", lambda: model.generate("ROMEO:", max_tokens=20, seed=7).text)
step("stream", lambda: "".join(model.stream("ROMEO:", max_tokens=20, seed=7)))
t = step("trace", lambda: model.trace("To be, or not to be", capture="*"))
step("shapes", lambda: (t["blk.0.attn_probs"].shape, t["blk.2.resid_post"].shape))
step("steps", lambda: print(model.steps))
step("page", lambda: (t.html("run.html"), pathlib.Path("run.html").stat().st_size)[1])
step("saved", lambda: (t.save("run.safetensors"), tl.read("run.safetensors").tokens.tolist())[1])

# words of other libraries
for name, call in {
    "max_new_tokens": lambda: model.generate("a", max_new_tokens=5),
    "n_ctx": lambda: tl.load("demo", n_ctx=256),
    "device_map": lambda: tl.load("demo", device_map="auto"),
    "n_layers": lambda: model.config.n_layers,
    "hidden_size": lambda: model.config.hidden_size,
    "tokenize": lambda: model.tokenize("a"),
    "call": lambda: model("Hello"),
    "Llama": lambda: tl.Llama("model.gguf"),
    "hook": lambda: t["blocks.0.attn.hook_pattern"],
    "misspelled": lambda: model.genrate("a"),
    "keyword": lambda: model.generate("a", topk=5),
    "not captured": lambda: model.trace("a")["blk.0.attn_probs"],
    "weight": lambda: model.weights["blk.0.attn_q"],
}.items():
    step(name, call)

# files that are no models, wrong values, and what is not installed
pathlib.Path("page.gguf").write_text("<!DOCTYPE html><html>404</html>")
pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
pathlib.Path("pointer.gguf").write_text(pointer)
for name, call in {
    "page.gguf": lambda: tl.load("page.gguf"),
    "pointer.gguf": lambda: tl.load("pointer.gguf"),
    "missing": lambda: tl.load("nothing.gguf"),
    "number": lambda: tl.load(1),
    "top_p": lambda: model.generate("a", top_p=2),
    "logprobs": lambda: model.generate("a", logprobs=10**6),
    "special": lambda: model.generate("<|endoftext|>a", max_tokens=1),
    "chat": lambda: model.chat("Hi", template="plain", max_tokens=3),
    "plot": lambda: tl.plot.attention(t, 0),
    "hub": lambda: tl.load("hf:owner/repo"),
}.items():
    step(name, call)
print("still open")  # tl.load(1) has not closed standard output
pathlib.Path("day.json").write_text(json.dumps(steps))
'''


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    folder = tmp_path_factory.mktemp("newcomer")
    path = os.pathsep.join([str(NUMPY_ONLY), str(Path(tl.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", DAY], cwd=folder, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "still open\n"
    assert done.stderr == ""
    return json.loads((folder / "day.json").read_text())


def test_the_first_minutes(day):
    assert "torch" not in day["modules"][0].split()
    names = day["dir"][0].split()
    assert {"load", "Model", "lens", "plot"} <= set(names)
    assert not {"importlib", "annotations", "Any", "runtime", "_core"} & set(names)
    assert day["star"][0] in ("", "__spec__", "__loader__", "__package__")
    assert day["text"][0] == day["again"][0] == day["stream"][0]
    assert len(day["text"][0]) > 10
    assert "max_context" in day["help"][1]
    assert "((4, " in day["shapes"][0]
    assert "blk.0.attn_q_rope" in day["steps"][1]
    assert int(day["page"][0]) > 10_000
    assert day["saved"][0].startswith("[")
    for name in ("load", "text", "trace", "saved", "page"):
        assert day[name][2] == [], name  # no warning


@pytest.mark.parametrize(
    ("step", "kind", "words"),
    [
        ("max_new_tokens", "TypeError", "here it is max_tokens="),
        ("n_ctx", "TypeError", "here it is max_context="),
        ("device_map", "TypeError", "here it is device="),
        ("n_layers", "AttributeError", "here it is layers"),
        ("hidden_size", "AttributeError", "here it is width"),
        ("tokenize", "AttributeError", "model.tokenizer.encode(text)"),
        ("call", "TypeError", "model.generate(prompt) continues a text"),
        ("Llama", "AttributeError", "tl.load(path)"),
        ("hook", "KeyError", "blk.0.attn_probs"),
        ("misspelled", "AttributeError", "did you mean generate?"),
        ("keyword", "TypeError", "did you mean top_k=?"),
        ("not captured", "KeyError", "capture"),
        ("weight", "KeyError", "expected 'blk.0.attn_q.weight'"),
        ("page.gguf", "FormatError", "page.gguf"),
        ("pointer.gguf", "FormatError", "Git LFS"),
        ("missing", "FileNotFoundError", "nothing.gguf"),
        ("number", "TypeError", "1"),
        ("top_p", "ValueError", "top_p is 2"),
        ("logprobs", "ValueError", "size of the vocabulary"),
        ("chat", "ImportError", "pip install jinja2"),
        ("plot", "ImportError", "pip install matplotlib"),
        ("hub", "ImportError", "pip install huggingface_hub"),
    ],
)
def test_what_goes_wrong_says_what_to_do(day, step, kind, words):
    said = day[step][0]
    assert said.startswith(kind), said
    assert words in said
    assert "tinyllm[" not in said
    assert "\n" not in said


def test_a_control_token_in_a_prompt_is_pointed_out(day):
    assert any("parse_special" in message for message in day["special"][2])
