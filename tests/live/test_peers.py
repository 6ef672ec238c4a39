"""Other engines on the same file, tap by tap.

    pip install llama-cpp-python torch transformers gguf && pytest -m live tests/live/test_peers.py

Small checkpoints come from TINYLLM_TEST_DATA.
"""

import gc

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, data, hf
from tinyllm.peers import callbacks

pytestmark = [
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore"),
]

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]


@pytest.fixture
def llama_cpp():
    return pytest.importorskip("llama_cpp")


@pytest.fixture
def transformers():
    pytest.importorskip("torch")
    pytest.importorskip("gguf")
    return pytest.importorskip("transformers")


def families(trace):
    return {name.split(".")[-1] for name in trace}


# ---- llama.cpp ----


def with_tokens(directory, architecture, type_name, **options):
    """A random model that llama.cpp loads: it wants a tokenizer."""
    names = ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(317))]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.scores": np.zeros(320, np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + [1] * 317, np.int32),
    }
    return architectures.random_model(
        directory, architecture, type_name, metadata=metadata, **options
    )


#: The largest relative error of a token over all taps: about twice that of 0.3.36.
LIMITS = {
    ("llama", "F32"): 2e-6,
    ("qwen2", "F32"): 2e-6,
    ("qwen3", "F32"): 2e-6,
    ("llama", "F16"): 4e-3,
    ("llama", "Q8_0"): 6e-2,
    ("llama", "Q4_K"): 0.2,
}


@pytest.mark.parametrize(("architecture", "kind"), LIMITS)
def test_llama_cpp_agrees_tap_by_tap(architecture, kind, llama_cpp, tmp_path):
    model = with_tokens(tmp_path, architecture, kind)
    theirs = tl.peers.llama_cpp(model, IDS)
    d = tl.diff(model, theirs)
    assert d.same, d
    worst = max(d, key=lambda row: row.error)
    assert worst.error < LIMITS[architecture, kind], worst
    assert len(d) >= 0.75 * len(model.taps)
    wanted = {"attn_norm", "attn_q", "attn_q_rope", "attn_scores", "attn_probs", "attn_mix"}
    assert wanted <= families(theirs)
    assert theirs.unread == []
    print(architecture, kind, len(d), "taps, worst", worst)


def test_llama_cpp_runs_what_is_asked(llama_cpp):
    t = tl.peers.llama_cpp("demo", "ROMEO:", ["blk.*.resid_post", "output"])
    assert set(t) == {"output", *(f"blk.{i}.resid_post" for i in range(4))}
    assert t.pieces == tl.load().trace("ROMEO:").pieces
    assert tl.lens(t).ids.shape[0] == 4
    with pytest.raises(ValueError, match="no tap matches 'zzz'"):
        tl.peers.llama_cpp("demo", "ROMEO:", "zzz")


def test_a_wrong_model_parts_where_it_is_wrong(llama_cpp, tmp_path):
    """The same weights with another RoPE base: `diff` shows RoPE."""
    model = with_tokens(tmp_path, "llama", "F32")
    metadata = {**model.metadata, "llama.rope.freq_base": 500.0}
    tl.write_gguf(tmp_path / "base.gguf", metadata, dict(model.weights))
    theirs = tl.peers.llama_cpp(tmp_path / "base.gguf", IDS)
    first = tl.diff(model.trace(IDS, "*"), theirs).first
    assert (first.tap, first.token) == ("blk.0.attn_q_rope", 1)


def test_another_layout_of_tensors_is_noticed(llama_cpp, monkeypatch):
    import ctypes

    fields = list(callbacks._Tensor._fields_)
    moved = type("Moved", (ctypes.Structure,), {"_fields_": (*fields[1:3], fields[0], *fields[3:])})
    monkeypatch.setattr(callbacks, "_Tensor", moved)
    with pytest.raises(RuntimeError, match="have another layout: a known one reads"):
        tl.peers.llama_cpp("demo", "ROMEO:")


def test_llama_cpp_says_what_it_cannot_load(llama_cpp, tmp_path):
    with pytest.raises(ValueError, match="from bytes"):
        tl.peers.llama_cpp(tl.testing.random_model(), IDS)
    bare = tl.testing.random_model(path=tmp_path / "bare.gguf")  # without a tokenizer
    with pytest.raises(RuntimeError, match=r"llama\.cpp cannot load .*bare\.gguf"):
        tl.peers.llama_cpp(bare, IDS)


# ---- Hugging Face ----


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_hugging_face_agrees_on_a_gguf_file(architecture, transformers, tmp_path):
    model = architectures.random_model(tmp_path, architecture)
    theirs = tl.peers.hugging_face(model, IDS)
    d = tl.diff(model, theirs)
    assert d.same, d
    assert d.tolerance == 1e-5
    assert len(d) > 0.6 * len(model.taps)
    print(architecture, len(d), "taps, worst", max(d, key=lambda row: row.error))


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gemma3", "mixtral", "phi3"])
def test_hugging_face_agrees_on_a_checkpoint(name, transformers, tmp_path):
    directory = data.path("hf", name)
    tl.write_gguf(tmp_path / "m.gguf", *hf.load_checkpoint(directory))
    model = tl.load(tmp_path / "m.gguf")
    theirs = tl.peers.hugging_face(directory, IDS, like=model)
    d = tl.diff(model, theirs)
    assert d.same, d
    assert d.tolerance == 1e-5
    half = tl.peers.hugging_face(directory, IDS, dtype="bfloat16", like=model)
    e = tl.diff(model, half)
    assert e.tolerance == 2e-2
    assert e.same, e
    # what `as_` makes is what the hooks see
    ours = model.trace(IDS, list(theirs)).as_("hf")
    for tap, name in theirs.theirs.items():
        if name in ours and "hidden" not in name:
            again = tl.read({name: ours[name]}, "hf", IDS, model=model)
            assert np.array_equal(again[tap], model.trace(IDS, tap)[tap])
    gc.collect()


def test_a_model_of_transformers_is_left_as_it_was(transformers, tmp_path):
    directory = data.path("hf", "llama")
    module = transformers.AutoModelForCausalLM.from_pretrained(directory)
    before = module.config._attn_implementation
    assert before != "eager"
    t = tl.peers.hugging_face(module, IDS, "blk.0.*")
    assert {"blk.0.attn_probs", "blk.0.attn_q_rope", "blk.0.ffn_act"} <= set(t)
    assert module.config._attn_implementation == before
    assert not any(child._forward_hooks for child in module.modules())
    with pytest.raises(ValueError, match="ids is text, and the model has no tokenizer"):
        tl.peers.hugging_face(module, "text")
