"""`load` and `Model`: what opens, what does not and why, and what a model returns."""

import gc
import os
import re

import numpy as np
import pytest

import tinyllm as tl
from testkit import models

pytestmark = pytest.mark.sanitize


@pytest.fixture(scope="module")
def parts():
    return models.random_llama("F32", layers=1, width=64, ffn=96, vocab=40, context=64)


@pytest.fixture(scope="module")
def path(parts, tmp_path_factory):
    return models.write(tmp_path_factory.mktemp("model") / "m.gguf", *parts)


@pytest.fixture(scope="module")
def model(path):
    return tl.load(path)


def test_every_way_to_open_gives_the_same_bits(path, model):
    want = model.logits([1, 2, 3])
    data = path.read_bytes()
    for source in (str(path), os.fspath(path), data, bytearray(data), memoryview(data)):
        assert np.array_equal(tl.load(source).logits([1, 2, 3]), want)
    assert np.array_equal(tl.load(path, mmap=False).logits([1, 2, 3]), want)
    # not aligned to any size
    shifted = memoryview(b"x" + data)[1:]
    assert np.array_equal(tl.load(shifted).logits([1, 2, 3]), want)


def test_bytes_may_change_later_without_harm(path, model):
    data = bytearray(path.read_bytes())
    other = tl.load(data)
    data[:] = bytes(len(data))
    assert np.array_equal(other.logits([1, 2]), model.logits([1, 2]))


def test_config(model, parts):
    config = model.config
    assert (config.architecture, config.layers, config.width) == ("llama", 1, 64)
    assert (config.heads, config.kv_heads, config.head_size, config.value_size) == (4, 2, 16, 16)
    assert (config.ffn_width, config.vocab_size, config.context_length) == (96, 40, 64)
    assert config.norm_epsilon == np.float32(1e-5)
    assert (config.rope_base, config.rope_scaling, config.tied) == (10000.0, None, False)
    assert model.tokenizer is None
    assert model.metadata["general.name"] == "random F32"
    assert list(model.weights) == list(parts[1])


def test_per_layer_values_are_tuples(tmp_path):
    model = models.random_model(tmp_path, heads=[4, 8], kv_heads=2, ffn=[96, 64], head_size=16)
    assert model.config.heads == (4, 8)
    assert model.config.kv_heads == 2
    assert model.config.ffn_width == (96, 64)
    trace = model.trace([1, 2, 3], "*")
    assert trace["blk.0.attn_q"].shape == (3, 4, 16)
    assert trace["blk.1.attn_q"].shape == (3, 8, 16)


def broken(parts, change=None, drop=(), **metadata):
    keys, tensors = dict(parts[0]), dict(parts[1])
    keys.update({f"llama.{k.replace('__', '.')}": v for k, v in metadata.items()})
    for name in drop:
        (keys if name in keys else tensors).pop(name)
    return keys, {**tensors, **(change or {})}


BROKEN = [
    ({"drop": ["output_norm.weight"]}, tl.FormatError, "'output_norm.weight'.*missing"),
    ({"drop": ["blk.0.ffn_up.weight"]}, tl.FormatError, r"'blk\.0\.ffn_up\.weight'.*missing"),
    ({"drop": ["token_embd.weight"]}, tl.FormatError, "'token_embd.weight' is missing"),
    ({"drop": ["llama.block_count"]}, tl.FormatError, "llama.block_count is missing"),
    ({"drop": ["general.architecture"]}, tl.FormatError, "general.architecture is None"),
    (
        {"drop": ["llama.attention.layer_norm_rms_epsilon"]},
        tl.FormatError,
        "layer_norm_rms_epsilon is missing",
    ),
    (
        {"change": {"blk.0.attn_q.weight": np.zeros((64, 65), np.float32)}},
        tl.FormatError,
        r"'blk\.0\.attn_q\.weight' is 64, 65; expected 64, 64",
    ),
    (
        {"change": {"output_norm.weight": np.zeros(63, np.float32)}},
        tl.FormatError,
        r"'output_norm\.weight' is 63; expected 64",
    ),
    (
        {"change": {"blk.0.attn_q.bias": np.zeros(3, np.float32)}},
        tl.FormatError,
        r"'blk\.0\.attn_q\.bias' is 3; expected 64",
    ),
    (
        {"change": {"blk.0.attn_k.weight": np.zeros((32, 64), np.float64)}},
        tl.UnsupportedError,
        r"'blk\.0\.attn_k\.weight' has type F64",
    ),
    (
        {"change": {"blk.0.attn_k.weight": np.zeros((32, 64), np.int8)}},
        tl.UnsupportedError,
        "has type I8",
    ),
    ({"block_count": 0}, tl.FormatError, "llama.block_count is 0; expected a positive integer"),
    ({"block_count": 2}, tl.FormatError, r"blk\.1\..*missing"),
    ({"block_count": 513}, tl.FormatError, "llama.block_count is 513; expected at most 12"),
    ({"block_count": ("UINT64", 2**40)}, tl.FormatError, "llama.block_count is 1099511627776"),
    (
        {"block_count": 2**31 - 1},
        tl.FormatError,
        "llama.block_count is 2147483647; expected at most",
    ),
    ({"block_count": "1"}, tl.FormatError, "llama.block_count is '1'"),
    ({"embedding_length": 0}, tl.FormatError, "llama.embedding_length is 0"),
    ({"embedding_length": 65}, tl.FormatError, "expected"),
    ({"attention__head_count": 0}, tl.FormatError, "head_count is 0"),
    ({"attention__head_count": 3}, tl.FormatError, "head_count is 3; expected a multiple of the 2"),
    ({"attention__head_count_kv": 0}, tl.FormatError, "head_count_kv is 0"),
    ({"attention__head_count": np.array([4, 4], np.uint32)}, tl.FormatError, "head_count is"),
    ({"attention__head_count": np.array([4.0], np.float32)}, tl.FormatError, "head_count is"),
    ({"attention__key_length": 0}, tl.FormatError, "key_length is 0"),
    ({"attention__key_length": 15}, tl.FormatError, "rope.dimension_count"),
    ({"rope__dimension_count": 7}, tl.FormatError, "rope.dimension_count is 7"),
    ({"rope__dimension_count": 18}, tl.FormatError, "rope.dimension_count is 18"),
    ({"rope__freq_base": 0.0}, tl.FormatError, "rope.freq_base is 0.0"),
    ({"rope__freq_base": float("nan")}, tl.FormatError, "rope.freq_base is nan"),
    ({"rope__scaling__type": "spiral"}, tl.UnsupportedError, "rope.scaling.type is 'spiral'"),
    ({"rope__scaling__factor": -1.0}, tl.FormatError, "rope.scaling.factor is -1.0"),
    ({"attention__layer_norm_rms_epsilon": float("inf")}, tl.FormatError, "epsilon is inf"),
    ({"attention__layer_norm_rms_epsilon": -1e-5}, tl.FormatError, "epsilon"),
    ({"attention__scale": -1.0}, tl.FormatError, "attention.scale is -1"),
    ({"expert_count": 8}, tl.FormatError, "expert_used_count is missing"),
    ({"context_length": 0}, tl.FormatError, "context_length is 0"),
    ({"feed_forward_length": 97}, tl.FormatError, "ffn_gate"),
]


@pytest.mark.parametrize("case", range(len(BROKEN)))
def test_files_that_do_not_fit_together(case, parts, tmp_path):
    options, error, match = BROKEN[case]
    path = models.write(tmp_path / "broken.gguf", *broken(parts, **options))
    with pytest.raises(error, match=match):
        tl.load(path)
    assert len(tl.GGUF(path).tensors) > 0  # the file still opens as a file


def test_an_unknown_architecture_is_named(parts, tmp_path):
    keys = {**parts[0], "general.architecture": "rwkv6"}
    path = models.write(tmp_path / "m.gguf", keys, parts[1])
    with pytest.raises(tl.UnsupportedError, match="'rwkv6'; it needs RWKV's recurrence"):
        tl.load(path)


def test_tokens_beyond_the_embedding(parts, tmp_path):
    keys = {
        **parts[0],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [str(i) for i in range(41)],
        "tokenizer.ggml.merges": ("ARRAY[STRING]", []),
    }
    path = models.write(tmp_path / "m.gguf", keys, parts[1])
    with pytest.raises(tl.FormatError, match=r"41 tokens.*at most 40"):
        tl.load(path)


def test_bad_arguments(path, tmp_path):
    with pytest.raises(FileNotFoundError):
        tl.load(tmp_path / "none.gguf")
    with pytest.raises(IsADirectoryError):
        tl.load(tmp_path)
    (tmp_path / "text.txt").write_text("Hello, world, this is no model")
    with pytest.raises(tl.FormatError, match="a text that begins with 'Hello, world"):
        tl.load(tmp_path / "text.txt")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(tl.FormatError):
        tl.load(tmp_path / "empty")
    for options, error in (
        ({"mode": "slow"}, ValueError),
        ({"threads": 0}, ValueError),
        ({"threads": 1.5}, TypeError),
        ({"max_context": 0}, ValueError),
        ({"tokenizer": tmp_path / "none"}, FileNotFoundError),
        ({"tokenizer": path}, tl.FormatError),
    ):
        with pytest.raises(error):
            tl.load(path, **options)


def test_the_context_length_is_a_limit_unless_told_otherwise(path, model):
    ids = [1] * 65
    with pytest.raises(ValueError, match="context length of 64"):
        model.logits(ids)
    with pytest.warns(UserWarning, match="max_context is 100, .* context of 64 tokens"):
        longer = tl.load(path, max_context=100)
    assert longer.logits(ids).shape == (65, 40)
    assert np.array_equal(longer.logits(ids[:64]), model.logits(ids[:64]))
    with pytest.raises(ValueError, match="context length of 3"):
        tl.load(path, max_context=3).logits([1] * 4)


def test_weights_outlive_the_model(path):
    model = tl.load(path)
    weight = model.weights["blk.0.attn_q.weight"]
    want = weight.numpy().copy()
    raw = weight.raw
    del model, weight
    gc.collect()
    assert np.array_equal(raw.view(np.float32), want)
    assert not raw.flags.writeable


def test_a_model_that_is_no_longer_used_frees_its_weights(path):
    def weights():
        gc.collect()
        return sum(type(thing) is tl.Weight for thing in gc.get_objects())

    before = weights()
    model = tl.load(path)
    assert weights() > before
    del model
    assert weights() == before


def test_prompts(model):
    want = model.logits([1, 2])
    for prompt in ((1, 2), np.array([1, 2], np.uint8), np.array([1, 2])):
        assert np.array_equal(model.logits(prompt), want)
    with pytest.raises(ValueError, match="no tokenizer"):
        model.logits("text")
    with pytest.raises(ValueError, match="the prompt is empty"):
        model.logits([])
    with pytest.raises(TypeError, match="float64"):
        model.logits([0.5])


def test_traces(model):
    trace = model.trace([3, 4, 5])
    assert trace.tokens.tolist() == [3, 4, 5]
    assert trace.pieces == ["3", "4", "5"]
    assert "blk.0.attn_probs" not in trace
    assert set(model.trace([3, 4, 5], "*")) - set(trace) == {
        "blk.0.attn_scores",
        "blk.0.attn_probs",
    }
    assert np.array_equal(trace["logits"], trace["output"])
    assert all(not array.flags.writeable for array in trace.values())
    assert trace.nbytes == sum(array.nbytes for array in trace.values())
    assert trace.names("*resid*") == ["blk.0.resid_pre", "blk.0.resid_mid", "blk.0.resid_post"]
    part = trace[1:]
    assert part.tokens.tolist() == [4, 5]
    assert np.array_equal(part["blk.0.attn_q"], trace["blk.0.attn_q"][1:])
    assert list(model.trace([3], re.compile(r"ffn_(up|gate)$"))) == [
        "blk.0.ffn_gate",
        "blk.0.ffn_up",
    ]
    assert list(model.trace([3], lambda name: name == "output")) == ["output"]
    assert list(model.trace([3], [])) == []
    for capture, match in (
        ("blk.0.attn_qq", "'blk.0.attn_qq'; the nearest are 'blk.0.attn_q'"),
        ("blk.1.*", "no tap matches"),
        ("resid", "no tap matches 'resid'"),
    ):
        with pytest.raises(ValueError, match=match):
            model.trace([3], capture)
    with pytest.raises(TypeError, match="names, patterns or a function"):
        model.trace([3], [3])
    with pytest.raises(KeyError, match="attn_probs"):
        trace["blk.0.attn_probs"]


def test_a_capture_that_does_not_fit(path):
    with pytest.warns(UserWarning, match="max_context is 100000000"):
        model = tl.load(path, max_context=10**8)
    ids = np.zeros(4_000_000, np.int32)
    with pytest.raises(MemoryError, match=r"takes 512,[0-9,]+ bytes|takes [0-9,]+ bytes and"):
        model.trace(ids, "blk.0.attn_probs")


def test_plan_tells_shapes_and_bytes(model):
    plan = model.plan([1, 2, 3], "*")
    trace = model.trace([1, 2, 3], "*")
    assert plan.shapes == {name: array.shape for name, array in trace.items()}
    assert plan.nbytes == trace.nbytes


def test_arrays_outlive_trace_and_model(path):
    model = tl.load(path)
    trace = model.trace([1, 2, 3])
    array = trace["blk.0.resid_post"]
    want = array.copy()
    del trace, model
    gc.collect()
    junk = [np.ones(array.size, np.float32) for _ in range(50)]
    assert np.array_equal(array, want)
    del junk


def test_generate(model):
    greedy = model.generate([1, 2, 3], max_tokens=6, temperature=0)
    session = model.session()
    logits = session.eval([1, 2, 3])
    ids = []
    for _ in range(6):
        ids.append(int(np.argmax(logits)))
        logits = session.eval([ids[-1]])
    assert greedy.ids == ids
    assert greedy.prompt_ids == [1, 2, 3]
    assert greedy.stop_reason == "length"
    assert greedy.text == str(greedy) == ""  # the model has no tokenizer
    assert model.generate([1], max_tokens=0).ids == []
    a = model.generate([1], max_tokens=8, seed=5)
    assert a.ids == model.generate([1], max_tokens=8, seed=5).ids
    b = model.generate([1], max_tokens=8)
    assert b.ids == model.generate([1], max_tokens=8, seed=b.seed).ids
    full = model.generate([1] * 60, temperature=1.0, seed=1)
    assert full.stop_reason == "context"
    assert len(full.ids) == 5  # 60 + 4 fill the context; the fifth is drawn from the last logits
    with pytest.raises(ValueError, match="max_tokens is -1"):
        model.generate([1], max_tokens=-1)
    with pytest.raises(ValueError, match="no tokenizer"):
        model.stream([1])


def test_the_demo_writes_and_stops():
    demo = tl.load()
    generation = demo.generate("ROMEO:", max_tokens=40, seed=3)
    assert generation.text
    assert "".join(demo.stream("ROMEO:", max_tokens=40, seed=3)) == generation.text
    assert demo.tokenizer.decode(generation.ids, strip_prefix=False) == generation.text
    one = tl.load(threads=1).generate("ROMEO:", max_tokens=40, seed=3)
    assert one.ids == generation.ids
    assert demo.generate(generation.prompt_ids, max_tokens=40, seed=3).ids == generation.ids


def test_how_models_are_shown(model, path):
    assert repr(model).startswith("<tinyllm.Model: llama, 1 layers of width 64")
    page = model._repr_html_()
    assert "<table>" in page
    trace = model.trace([1, 2])
    assert repr(trace).startswith("<tinyllm.Trace: 2 tokens")
    assert "blk.*.attn_q" in trace._repr_html_()
    assert "blk.0.attn_q" in str(trace.table())
    hostile = tl.load(path)
    hostile.metadata = {"general.name": "<script>alert(1)</script>"}
    assert "<script>" not in hostile._repr_html_()
    assert "<script>" in str(hostile.table())  # text is not HTML
