"""Hugging Face and llama.cpp as the engines that the doctor examines.

pip install torch transformers llama-cpp-python && pytest -m live tests/live/test_doctor.py
"""

import numpy as np
import pytest

import tinyllm as tl
from testkit import models

peers = pytest.importorskip("tinyllm.peers")

pytestmark = pytest.mark.live

PROMPT = "ROMEO: what light through yonder window breaks? It is the east"
KINDS = {"full": "*", "sparse": "blk.*.resid_post", "logits": "output"}


def part(dump, model, kind):
    """Return the values of a dump that are of a kind."""
    taps = {tap.name for tap in model.taps}
    wanted = model.layout(KINDS[kind]).places if kind != "full" else taps
    return {name: np.asarray(dump[name]) for name in dump if name in wanted}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hugging_face_is_not_accused(dtype):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model = tl.load()
    dump = peers.hugging_face(model, PROMPT, dtype=dtype)
    for kind in KINDS:
        values = part(dump, model, kind)
        assert values
        found = tl.doctor(model, values, PROMPT)
        assert found.ok, found
        assert bool(found.rounding) == (dtype == "bfloat16")


@pytest.mark.parametrize("type_name", ["Q4_K", "Q6_K", "Q8_0", "F16", "F32", "demo"])
def test_llama_cpp_is_not_accused(tmp_path, type_name):
    pytest.importorskip("llama_cpp")
    if type_name == "demo":
        model = tl.load()
    else:
        metadata = {"tokenizer.ggml.model": "no_vocab"}
        model = models.random_model(tmp_path, type_name, ffn=512, metadata=metadata)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, 24)
    dump = peers.llama_cpp(model, ids)
    for kind in KINDS:
        values = part(dump, model, kind)
        assert values
        found = tl.doctor(model, values, ids)
        assert found.ok, found


def changed(model, path, metadata=(), weights=()):
    """Write a copy of a model with other keys or tensors, and return it."""
    tensors = {**model.weights, **dict(weights)}
    tl.write_gguf(path, {**model.metadata, **dict(metadata)}, tensors)
    return tl.load(path)


def halves(weight, heads):
    """Return a matrix with the rows of each head in Hugging Face's order."""
    rows, columns = weight.shape
    size = rows // heads
    raw = np.asarray(weight.raw).reshape(heads, size // 2, 2, -1)
    raw = np.ascontiguousarray(raw.swapaxes(1, 2))
    return tl.Weight(weight.name, (rows, columns), weight.type, raw.tobytes())


def test_llama_cpp_with_another_base_is_named(tmp_path):
    pytest.importorskip("llama_cpp")
    model = tl.load()
    other = changed(model, tmp_path / "m.gguf", {"llama.rope.freq_base": np.float32(500000)})
    dump = peers.llama_cpp(other, PROMPT)
    for kind in KINDS:
        found = tl.doctor(model, part(dump, model, kind), PROMPT)
        assert found.faults[0].name == "rope_base", found
        assert "500000" in found.faults[0].message
        assert len(found.faults) == 1


def test_llama_cpp_with_rows_that_are_not_permuted_is_named(tmp_path):
    pytest.importorskip("llama_cpp")
    model = tl.load()
    c = model.config
    weights = {}
    for i in range(c.layers):
        for name, heads in (("attn_q", c.heads), ("attn_k", c.kv_heads)):
            full = f"blk.{i}.{name}.weight"
            weights[full] = halves(model.weights[full], heads)
    dump = peers.llama_cpp(changed(model, tmp_path / "m.gguf", weights=weights), PROMPT)
    for kind in KINDS:
        found = tl.doctor(model, part(dump, model, kind), PROMPT)
        names = {found.faults[0].name, *found.faults[0].also}
        assert "qk_permutation" in names, found
        assert len(found.faults) == 1
