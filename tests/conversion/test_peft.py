"""PEFT adapters as adapter files: held against checkpoints whose weights include the change.

`tests/live/test_peft.py` holds the same against PEFT itself.
"""

import json
import re

import numpy as np
import pytest

import tinyllm as tl
from testkit import data
from tinyllm.cli.main import main
from tinyllm.conversion.layouts import Change
from tinyllm.conversion.peft import _Module, _selection
from tinyllm.errors import UnsupportedError
from tinyllm.files.arrays import read_arrays, write_arrays

#: Modules that adapters change, by the checkpoint: permuted queries and keys, fused and grouped
#: matrices, matrices stored as (inputs, outputs), experts one by one and stacked.
MODULES = {
    "llama": r"(self_attn\.[qkvo]|mlp\.\w+)_proj",
    "qwen2": r"(self_attn\.[qkvo]|mlp\.\w+)_proj",
    "gpt2": r"(c_attn|c_proj|c_fc)",
    "phi3": r"(qkv_proj|o_proj|gate_up_proj|down_proj)",
    "gptneox": r"(query_key_value|dense|dense_\w+)",
    "bloom": r"(query_key_value|dense|dense_\w+)",
    "gemma2": r"(self_attn\.[qkvo]|mlp\.\w+)_proj",
    "lfm2": r"([qkv]_proj|out_proj|in_proj|w[123])",
    "deepseek_v2": r"(q_\w+|kv_a_proj_with_mqa|o_proj|gate_proj|up_proj|down_proj)",
}

CONFIG = {
    "peft_type": "LORA",
    "r": 3,
    "lora_alpha": 6,
    "bias": "none",
    "base_model_name_or_path": "",
}


def checkpoint(name):
    """The tensors of a checkpoint, and its folder."""
    folder = data.path("hf", name)
    tensors, _ = read_arrays(folder / "model.safetensors")
    return folder, {key: np.asarray(value, np.float32) for key, value in tensors.items()}


def random_modules(tensors, pattern, rank=3, transposed=False):
    """Random A and B of the modules whose names a pattern fits."""
    random = np.random.default_rng(0)
    found = {}
    for key, weight in tensors.items():
        if weight.ndim == 2 and re.search(rf"\.{pattern}\.weight$", key):
            outputs, inputs = weight.shape[::-1] if transposed else weight.shape
            a = random.standard_normal((rank, inputs)).astype(np.float32) * inputs**-0.5
            b = random.standard_normal((outputs, rank)).astype(np.float32) * np.float32(0.2)
            found[key.removesuffix(".weight")] = a, b
    assert found
    return found


def write_peft(folder, modules, base="", prefix="base_model.model.", **settings):
    folder.mkdir(exist_ok=True)
    config = CONFIG | {"base_model_name_or_path": str(base)} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for name, (a, b) in modules.items():
        tensors |= {f"{prefix}{name}.lora_A.weight": a, f"{prefix}{name}.lora_B.weight": b}
    write_arrays(folder / "adapter_model.safetensors", tensors, {})
    return folder


def write_merged(folder, source, tensors):
    folder.mkdir()
    (folder / "config.json").write_text((source / "config.json").read_text())
    write_arrays(folder / "model.safetensors", tensors, {})
    return folder


def logits(path, adapters=()):
    model = tl.load(path, adapters=adapters)
    return model.logits(np.arange(1, 30))


@pytest.mark.parametrize("name", MODULES)
def test_the_result_is_that_of_a_changed_checkpoint(name, tmp_path):
    source, tensors = checkpoint(name)
    modules = random_modules(tensors, MODULES[name], transposed=name == "gpt2")
    folder = write_peft(tmp_path / "adapter", modules, source)
    tl.convert(folder, tmp_path / "a.gguf")
    tl.convert(source, tmp_path / "m.gguf", "F32", vocab=False)
    changed = dict(tensors)
    for module, (a, b) in modules.items():
        product = 2 * (b.astype(np.float64) @ a)
        key = f"{module}.weight"
        changed[key] = (tensors[key] + (product.T if name == "gpt2" else product)).astype("f4")
    tl.convert(write_merged(tmp_path / "merged", source, changed), tmp_path / "x.gguf", vocab=False)
    want = logits(tmp_path / "x.gguf")
    got = logits(tmp_path / "m.gguf", [tmp_path / "a.gguf"])
    assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)
    assert np.linalg.norm(logits(tmp_path / "m.gguf") - want) > 0.05 * np.linalg.norm(want)
    adapter = tl.Adapter(tmp_path / "a.gguf")
    assert adapter.alpha == 6
    assert adapter.metadata["general.type"] == "adapter"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A checkpoint whose config alone is there, and an adapter of two modules."""
    folder = tmp_path_factory.mktemp("base")
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 8}
    config |= {"num_attention_heads": 2, "intermediate_size": 12, "rms_norm_eps": 1e-5}
    config |= {"max_position_embeddings": 16, "vocab_size": 5}
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(1)
    names = ("model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj")
    shapes = ((3, 8), (8, 3))
    modules = {n: tuple(random.standard_normal(s).astype(np.float32) for s in shapes)
               for n in names}  # fmt: skip
    return folder, modules


def product(adapter, name):
    pair = adapter.tensors[name]
    return adapter.factor(name) * pair.b.numpy(dtype="float64") @ pair.a.numpy(dtype="float64")


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({}, (2, 2)),
        ({"use_rslora": True}, (6 / 3**0.5, 6 / 3**0.5)),
        ({"alpha_pattern": {"layers.1.self_attn.v_proj": 9}}, (2, 3)),
        ({"alpha_pattern": {"v_proj": 9}}, (3, 3)),
        ({"alpha_pattern": {"o_proj": 9}}, (2, 2)),
        ({"lora_alpha": 0.5}, (0.5 / 3, 0.5 / 3)),
    ],
)
def test_factors(tiny, settings, factors, tmp_path):
    base, modules = tiny
    tl.convert(write_peft(tmp_path / "a", modules, base, **settings), tmp_path / "a.gguf")
    adapter = tl.Adapter(tmp_path / "a.gguf")
    for i, ((a, b), factor) in enumerate(zip(modules.values(), factors, strict=True)):
        want = factor * b.astype(np.float64) @ a
        np.testing.assert_allclose(product(adapter, f"blk.{i}.attn_v.weight"), want, rtol=1e-5,
                                   atol=1e-6)  # fmt: skip


def test_ranks_of_their_own(tiny, tmp_path):
    base, modules = tiny
    (first, pair), (second, (a, b)) = modules.items()
    folder = write_peft(tmp_path / "a", {first: pair, second: (a[:2], b[:, :2])}, base,
                        rank_pattern={second: 2})  # fmt: skip
    tl.convert(folder, tmp_path / "a.gguf")
    adapter = tl.Adapter(tmp_path / "a.gguf")
    want = 3 * b[:, :2].astype(np.float64) @ a[:2]
    np.testing.assert_allclose(product(adapter, "blk.1.attn_v.weight"), want, rtol=1e-5, atol=1e-6)


def test_embedding_and_output(tiny, tmp_path):
    base, _ = tiny
    random = np.random.default_rng(2)
    a, b = random.standard_normal((3, 5)), random.standard_normal((8, 3))
    folder = write_peft(tmp_path / "a", {"lm_head": (b.T.astype("f4"), a.T.astype("f4"))}, base)
    tensors, _ = read_arrays(folder / "adapter_model.safetensors")
    stem = "base_model.model.model.embed_tokens.lora_embedding_"
    tensors = dict(tensors) | {f"{stem}A": a.astype("f4"), f"{stem}B": b.astype("f4")}
    write_arrays(folder / "adapter_model.safetensors", tensors, {})
    tl.convert(folder, tmp_path / "a.gguf")
    adapter = tl.Adapter(tmp_path / "a.gguf")
    table = adapter.tensors["token_embd.weight"]
    assert (table.a.numpy() == a.T.astype("f4")).all()
    assert (table.b.numpy() == b.astype("f4")).all()
    assert adapter.tensors["output.weight"].b.shape == (5, 3)


def test_types(tiny, tmp_path):
    base, modules = tiny
    half = {n: tuple(x.astype(np.float16) for x in pair) for n, pair in modules.items()}
    folder = write_peft(tmp_path / "a", half, base)
    kinds = {"auto": ("F16", "F16"), "F32": ("F32", "F32"), "BF16": ("BF16", "BF16"),
             "Q8_0": ("F16", "F16")}  # fmt: skip
    for dtype, expected in kinds.items():
        tl.convert(folder, tmp_path / "a.gguf", dtype)
        pair = tl.Adapter(tmp_path / "a.gguf").tensors["blk.0.attn_v.weight"]
        assert (pair.a.type, pair.b.type) == expected
    scaled = write_peft(tmp_path / "b", half, base, alpha_pattern={"layers.1.*": 7.7})
    tl.convert(scaled, tmp_path / "a.gguf")
    tensors = tl.Adapter(tmp_path / "a.gguf").tensors
    assert tensors["blk.0.attn_v.weight"].b.type == "F16"
    assert tensors["blk.1.attn_v.weight"].b.type == "F32"  # no number would be the same in F16


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"use_dora": True}, UnsupportedError, "has DoRA.*merge_and_unload"),
        ({"bias": "all"}, UnsupportedError, "changes biases"),
        ({"modules_to_save": ["lm_head"]}, UnsupportedError, "whole modules"),
        ({"target_parameters": ["experts.w"]}, UnsupportedError, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, UnsupportedError, "activated LoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, UnsupportedError, "changes the model's own"),
        ({"peft_type": "IA3"}, UnsupportedError, "of the type IA3"),
        ({"lora_alpha": "8"}, tl.FormatError, "lora_alpha is '8'; expected a number"),
        ({"lora_alpha": 0}, tl.FormatError, "lora_alpha is 0"),
        ({"base_model_name_or_path": "owner/name"}, FileNotFoundError, "expected base="),
        ({"base_model_name_or_path": None}, FileNotFoundError, "the model None"),
    ],
)
def test_what_is_refused(tiny, settings, error, text, tmp_path):
    base, modules = tiny
    folder = write_peft(tmp_path / "a", modules, base, **settings)
    with pytest.raises(error, match=text):
        tl.convert(folder, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_wrong_tensors(tiny, tmp_path):
    base, modules = tiny
    (name, (a, b)), *_ = modules.items()
    cases = [
        ({name: (a, b[:, :2])}, tl.FormatError, r"lora_A has shape \(3, 8\) and lora_B \(8, 2\)"),
        ({"model.layers.0.new": (a, b)}, UnsupportedError, "changes model.layers.0.new, which"),
        ({"model.layers.9.self_attn.v_proj": (a, b)}, UnsupportedError, "does not have here"),
        ({}, tl.FormatError, "expected at least one lora_A"),
    ]
    for tensors, error, text in cases:
        with pytest.raises(error, match=text):
            tl.convert(write_peft(tmp_path / "a", tensors, base), tmp_path / "a.gguf")
    folder = write_peft(tmp_path / "b", modules, base)
    file = folder / "adapter_model.safetensors"
    tensors = dict(read_arrays(file)[0])
    last = next(iter(tensors))
    write_arrays(file, {k: v for k, v in tensors.items() if k != last}, {})
    with pytest.raises(tl.FormatError, match="has no lora_A"):
        tl.convert(folder, tmp_path / "a.gguf")
    write_arrays(file, tensors | {"base_model.model.lm_head.weight": a}, {})
    with pytest.raises(UnsupportedError, match="1 tensors that are neither A nor B"):
        tl.convert(folder, tmp_path / "a.gguf")
    file.unlink()
    with pytest.raises(FileNotFoundError):
        tl.convert(folder, tmp_path / "a.gguf")
    (folder / "adapter_model.bin").touch()
    with pytest.raises(UnsupportedError, match=r"adapter_model\.bin, a format"):
        tl.convert(folder, tmp_path / "a.gguf")
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(tl.FormatError, match="expected an object"):
        tl.convert(folder, tmp_path / "a.gguf")


def test_a_base_of_its_own_and_the_command(tiny, tmp_path, capsys):
    base, modules = tiny
    folder = write_peft(tmp_path / "a", modules, "owner/name")
    tl.convert(folder, tmp_path / "a.gguf", base=base)
    words = ["convert", folder / "adapter_config.json", tmp_path / "b.gguf", "--base", base]
    assert main(list(map(str, words))) == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    with pytest.raises(ValueError, match=r"base is .* is no adapter"):
        tl.convert(base, tmp_path / "c.gguf", base=base)


def test_changes_that_no_a_and_b_can_follow():
    module = _Module("x", None, None, False)
    for change in (
        Change(lambda w, config: w * w),
        Change(lambda w, config: w.reshape(-1)),
        Change(lambda w, config: np.tril(w)),
        Change(lambda w, config: w + w[::-1]),
        Change(lambda w, config: np.exp(w / 99)),
        Change(lambda w, config: w.reshape(4, 5)),
    ):
        with pytest.raises(UnsupportedError, match="no A and B can follow"):
            _selection(change, 5, 4, None, module)
    rows, columns, factor = _selection(Change(lambda w, c: 2 * w[::-1, [2, 0]]), 6, 4, None, module)
    assert rows.tolist() == [5, 4, 3, 2, 1, 0]
    assert columns.tolist() == [2, 0]
    assert factor == 2
