"""Pages for people who come from other libraries: every row of their tables runs."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import tinyllm as tl
from tinyllm.chat.templates import TEMPLATES
from tinyllm.files import sources
from tinyllm.files.model_file import DEMO

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("from-transformerlens.md", "from-llama-cpp-python.md")


def rows(text):
    """The two columns of every table, without their heads."""
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            left, right = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            if right != "tinyllm":
                yield left.replace("\\|", "|"), right.replace("\\|", "|")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("jinja2")
    template = "{% if tools %}{{ tools | tojson }}{% endif %}" + TEMPLATES["chatml"].source
    metadata = tl.GGUF(DEMO).metadata.typed() | {"tokenizer.chat_template": template}
    tl.write_gguf(tmp_path / "model.gguf", metadata, tl.GGUF(DEMO).tensors)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sources.SCHEMES, "hf", lambda name, rest: "model.gguf")  # no network
    return tmp_path


def run_page(name):
    """Run the right column of a page; return what each expression gives, by its text."""
    text = (DOCS / name).read_text("utf-8")
    names = {}
    exec(re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1], names)
    found = {}
    for left, right in rows(text):
        assert re.fullmatch(r"`[^`]+`", right), right
        code = right[1:-1]
        *statements, last = code.split("; ")
        try:
            for statement in statements:
                exec(statement, names)
            if re.match(r"\w+ = ", last):
                exec(last, names)
                last = last.split(" = ")[0]
            found[left] = eval(last, names)
        except Exception as error:
            raise AssertionError(f"{name}: {code}: {error!r}") from error
    return found, names


@pytest.mark.parametrize("name", PAGES)
def test_every_row_runs(name, folder):
    if not DOCS.is_dir():
        pytest.skip("needs the source tree")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _ = run_page(name)
    assert len(found) > 25


def test_rows_of_transformerlens_mean_the_same(folder):
    """Rows that say one thing in two ways agree."""
    found, names = run_page(PAGES[0])
    t, logits, config = names["t"], names["logits"], names["model"].config
    renamed = found["`cache.cache_dict`"]
    for left, hook in (("`cache[\"pattern\", 1]`", "blocks.1.attn.hook_pattern"),
                       ("`cache[\"z\", 1]`", "blocks.1.attn.hook_z"),
                       ("`cache[\"resid_mid\", 0]`", "blocks.0.hook_resid_mid"),
                       ("`cache[\"mlp_post\", 1]`", "blocks.1.mlp.hook_post")):  # fmt: skip
        assert np.array_equal(renamed[hook][0], found[left]), left
    assert np.array_equal(renamed["blocks.1.ln1.hook_scale"].ravel(),
                          found["`cache[\"scale\", 1, \"ln1\"]`"])  # fmt: skip
    assert np.array_equal(t["output"], logits)
    loss = found['`model(text, return_type="loss", loss_per_token=True)`']
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted.astype(np.float64)).sum(axis=-1, keepdims=True))
    want = -log_probs[np.arange(len(loss)), names["ids"][1:]]
    assert np.allclose(loss, want, atol=1e-5)
    assert np.isclose(found['`model(text, return_type="loss")`'], want.mean(), atol=1e-5)
    assert np.array_equal(found["`model(text, start_at_layer=2)`"], logits)
    total = found['`cache["result", 1]`'].sum(axis=1)
    assert np.allclose(total, t["blk.1.attn_output"], atol=1e-4)
    # the order of the rows of q: that of Hugging Face gives TransformerLens's queries
    q = t["blk.1.attn_norm"] @ found["`model.W_Q[1]`"].reshape(-1, config.width).T
    want = renamed["blocks.1.attn.hook_q"][0]
    assert np.allclose(q.reshape(want.shape), want, atol=1e-3)


def test_the_left_columns_are_what_errors_know():
    """Words of the left columns that are arguments here under another name are in the table."""
    from tinyllm.base.words import KEYWORDS

    text = "".join((DOCS / name).read_text("utf-8") for name in PAGES)
    left = " ".join(left for left, _ in rows(text))
    for word in ("max_new_tokens", "mirostat_mode", "mirostat_tau", "echo", "response_format"):
        assert word in left
        assert word in KEYWORDS["chat"]
    for word in ("n_ctx", "n_threads", "use_mmap", "chat_format", "embedding"):
        assert word in left
        assert word in KEYWORDS["load"]
