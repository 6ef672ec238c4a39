"""Hugging Face checkpoints as GGUF: names as in PyPI's gguf package, layouts, keys, errors."""

import json
import math
import re
import shutil

import numpy as np
import pytest

import tinyllm as tl
from testkit import data
from tinyllm.conversion.config import CheckpointConfig
from tinyllm.conversion.huggingface import read_checkpoint
from tinyllm.conversion.keys import common_keys
from tinyllm.conversion.table import FAMILIES
from tinyllm.files.arrays import read_arrays, write_arrays

gguf = pytest.importorskip("gguf")

#: Checkpoints of the test data, and the architecture that each becomes.
CHECKPOINTS = {
    "llama": "llama",
    "llama_bias_tied": "llama",
    "llama31_rope": "llama",
    "llama_headdim": "llama",
    "mistral": "llama",
    "ministral3": "mistral3",
    "qwen2": "qwen2",
    "qwen2_yarn": "qwen2",
    "qwen2vl": "qwen2vl",
    "qwen3": "qwen3",
    "qwen3vl": "qwen3vl",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma2_dh": "gemma2",
    "gemma3": "gemma3",
    "gemma3_dh": "gemma3",
    "phi3": "phi3",
    "phi3_longrope": "phi3",
    "granite": "granite",
    "smollm3": "smollm3",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "gpt2": "gpt2",
    "gptneox": "gptneox",
    "gptneox_serial": "gptneox",
    "phi2": "phi2",
    "falcon": "falcon",
    "falcon_new": "falcon",
    "starcoder2": "starcoder2",
    "stablelm": "stablelm",
    "cohere": "command-r",
    "cohere2": "cohere2",
}

#: Tensors of a checkpoint that gguf's map does not know: buffers, and other parts of the model.
LEFT_OUT = re.compile(r"(model\.)?visual\.")


def sources(name):
    """Return the tensors of a checkpoint under their own names, as float32."""
    arrays, _ = read_arrays(data.path("hf", name, "model.safetensors"))
    return {key: array.astype(np.float32) for key, array in arrays.items()}


def architecture(name):
    return next(key for key, text in gguf.MODEL_ARCH_NAMES.items() if text == name)


# ---- names ----


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_name_is_one_that_gguf_lists_for_the_architecture(name):
    metadata, tensors = read_checkpoint(data.path("hf", name))
    assert metadata["general.architecture"] == CHECKPOINTS[name]
    listed = {
        gguf.TENSOR_NAMES[kind]
        for kind in gguf.MODEL_TENSORS[architecture(metadata["general.architecture"])]
    }
    for tensor in tensors:
        generic = re.sub(r"blk\.\d+", "blk.{bid}", tensor)
        assert generic in listed or generic.rpartition(".")[0] in listed, tensor


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_names_are_those_of_ggufs_map(name):
    metadata, tensors = read_checkpoint(data.path("hf", name))
    layers = metadata[f"{metadata['general.architecture']}.block_count"]
    names = gguf.get_tensor_name_map(architecture(metadata["general.architecture"]), layers)
    found = {}
    for source in sources(name):
        if LEFT_OUT.match(source):
            continue
        plain = source.replace("model.language_model.", "model.")
        plain = re.sub(r"\.experts\.\d+\.", ".experts.", plain)
        ours = names.get_name(plain, try_suffixes=(".weight", ".bias"))
        assert ours is not None, source
        found.setdefault(ours, []).append(source)
    computed = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
    assert set(found) == set(tensors) - computed


# ---- shapes and keys ----


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_shapes_agree_with_the_keys(name):
    metadata, tensors = read_checkpoint(data.path("hf", name))
    prefix = metadata["general.architecture"]
    keys = {key.removeprefix(f"{prefix}."): value for key, value in metadata.items()}
    size = keys["attention.key_length"]
    queries, keyed = (keys[f"attention.head_count{end}"] * size for end in ("", "_kv"))
    width, ffn = keys["embedding_length"], keys["feed_forward_length"]
    shapes = {
        "token_embd": {(keys["vocab_size"], width)},
        "output": {(keys["vocab_size"], width)},
        "attn_q": {(queries, width)},
        "attn_k": {(keyed, width)},
        "attn_v": {(keyed, width)},
        "attn_qkv": {(queries + 2 * keyed, width)},
        "attn_output": {(width, queries)},
        "ffn_up": {(ffn, width), (2 * ffn, width)},
        "ffn_down": {(width, ffn)},
        "attn_norm": {(width,)},
    }
    for tensor, array in tensors.items():
        stem = tensor.removesuffix(".weight").split(".")[-1]
        assert array.dtype == np.float32
        if tensor.endswith(".weight") and stem in shapes:
            assert array.shape in shapes[stem], tensor


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_gguf_file_holds_all_of_it(name, tmp_path):
    metadata, tensors = read_checkpoint(data.path("hf", name))
    tl.write_gguf(tmp_path / "m.gguf", metadata, dict(tensors))
    file = tl.GGUF(tmp_path / "m.gguf")
    for key, value in metadata.items():
        np.testing.assert_allclose(file.metadata[key], value, 1e-6) if isinstance(
            value, float
        ) else np.testing.assert_array_equal(file.metadata[key], value)
    for tensor, array in tensors.items():
        np.testing.assert_array_equal(file.tensors[tensor].numpy(), array)


def keys_of(name, *wanted):
    metadata, _ = read_checkpoint(data.path("hf", name))
    prefix = metadata["general.architecture"]
    found = {key.removeprefix(f"{prefix}."): value for key, value in metadata.items()}
    return {key: found.get(key) for key in wanted} if wanted else found


def test_a_window_is_written_with_a_pattern_only_where_it_is_not_the_usual_one():
    names = "attention.sliding_window", "attention.sliding_window_pattern"
    assert keys_of("gemma3", *names) == {names[0]: 8, names[1]: None}
    assert keys_of("cohere2", *names) == {names[0]: 8, names[1]: None}
    assert keys_of("olmo3", *names) == {names[0]: 8, names[1]: [True, True, True, False]}
    assert keys_of("mistral", *names) == {names[0]: None, names[1]: None}


def test_rope_is_read_per_kind_of_layer():
    found = keys_of("gemma3_dh")
    assert found["rope.freq_base"] == 1e6
    assert found["rope.freq_base_swa"] == 1e4
    assert (found["rope.scaling.type"], found["rope.scaling.factor"]) == ("linear", 8.0)
    assert keys_of("gptneox_serial")["rope.dimension_count"] == 4  # a quarter of 16
    assert "rope.freq_base" not in keys_of("gpt2")


def test_the_scale_of_attention_is_that_of_the_checkpoint():
    assert keys_of("gemma2")["attention.scale"] == 24**-0.5
    assert keys_of("granite")["attention.scale"] == 0.2


def test_yarns_attention_factor():
    # 1 + 0.1 ln 4 is what readers of GGUF compute themselves; the checkpoint says 1.2
    factor = keys_of("olmo3")["rope.scaling.attn_factor"]
    assert math.isclose(factor * (1 + 0.1 * math.log(4)), 1.2)
    assert "rope.scaling.attn_factor" not in keys_of("qwen2_yarn")
    assert keys_of("ministral3")["rope.scaling.yarn_log_multiplier"] == 1.0
    assert keys_of("ministral3")["attention.temperature_scale"] == 0.1


def test_longrope_has_a_factor_and_two_tensors():
    assert math.isclose(
        keys_of("phi3_longrope")["rope.scaling.attn_factor"],
        math.sqrt(1 + math.log(4) / math.log(32)),
    )
    _, tensors = read_checkpoint(data.path("hf", "phi3_longrope"))
    np.testing.assert_array_equal(tensors["rope_factors_long.weight"], np.float32([1.5, 2.2, 2.9]))


@pytest.mark.parametrize(
    ("spelling", "want"),
    [
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope.freq_base": 5e5, "rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}},
            {"rope.freq_base": 5e5, "rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": None, "partial_rotary_factor": 0.5},
            {"rope.freq_base": 5e5, "rope.dimension_count": 2},
        ),
        (
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
            {"rope.freq_base": 1e6, "rope.freq_base_swa": 1e4},
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 8,
                    "beta_fast": 16,
                }
            },
            {
                "rope.freq_base": 1e4,
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 8,
                "rope.scaling.yarn_beta_fast": 16.0,
            },
        ),
    ],
    ids=["4", "5", "partial", "local", "yarn"],
)
@pytest.mark.parametrize("text_config", [False, True])
def test_rope_in_the_spellings_of_both_versions(spelling, want, text_config):
    values = {
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "vocab_size": 5,
        **spelling,
    }
    config = CheckpointConfig({"text_config": values} if text_config else values)
    keys = common_keys(config)
    rope = {key: value for key, value in keys.items() if key.startswith("rope.")}
    assert rope == {"rope.dimension_count": 4, **want}


# ---- layouts ----


def test_queries_and_keys_become_pairs():
    theirs = sources("llama_bias_tied")
    _, tensors = read_checkpoint(data.path("hf", "llama_bias_tied"))
    for part in ("weight", "bias"):
        for kind, count in (("q", 5), ("k", 1)):
            got = tensors[f"blk.1.attn_{kind}.{part}"]
            want = theirs[f"model.layers.1.self_attn.{kind}_proj.{part}"]
            for head in range(count):
                for j in range(8):
                    at = 16 * head
                    np.testing.assert_array_equal(got[at + 2 * j], want[at + j])
                    np.testing.assert_array_equal(got[at + 2 * j + 1], want[at + j + 8])


@pytest.mark.parametrize("name", ["cohere", "olmo2", "qwen3", "gemma"])
def test_others_keep_their_rows(name):
    _, tensors = read_checkpoint(data.path("hf", name))
    for kind in "qk":
        np.testing.assert_array_equal(
            tensors[f"blk.0.attn_{kind}.weight"],
            sources(name)[f"model.layers.0.self_attn.{kind}_proj.weight"],
        )


def test_norms_that_are_stored_minus_one():
    theirs = sources("gemma3_dh")
    _, tensors = read_checkpoint(data.path("hf", "gemma3_dh"))
    pairs = {
        "output_norm": "norm",
        "blk.0.attn_norm": "layers.0.input_layernorm",
        "blk.0.attn_q_norm": "layers.0.self_attn.q_norm",
        "blk.0.post_ffw_norm": "layers.0.post_feedforward_layernorm",
    }
    for ours, source in pairs.items():
        np.testing.assert_array_equal(
            tensors[f"{ours}.weight"], theirs[f"model.{source}.weight"] + np.float32(1)
        )
    assert not [name for name in tensors if "norm" in name and (tensors[name] < 0).any()]


def test_fused_queries_keys_and_values_are_in_this_order():
    theirs = sources("gptneox")
    _, tensors = read_checkpoint(data.path("hf", "gptneox"))
    for part in ("weight", "bias"):
        want = theirs[f"gpt_neox.layers.0.attention.query_key_value.{part}"]
        got = tensors[f"blk.0.attn_qkv.{part}"]
        for i, head in np.ndindex(3, 5):
            np.testing.assert_array_equal(
                got[80 * i + 16 * head : 80 * i + 16 * head + 16],
                want[48 * head + 16 * i : 48 * head + 16 * i + 16],
            )


@pytest.mark.parametrize("name", ["falcon", "falcon_new"])
def test_one_group_of_queries_keys_and_values_is_in_order_already(name):
    _, tensors = read_checkpoint(data.path("hf", name))
    want = sources(name)["transformer.h.0.self_attention.query_key_value.weight"]
    np.testing.assert_array_equal(tensors["blk.0.attn_qkv.weight"], want)
    assert keys_of(name)["attention.head_count_kv"] == 1


def test_groups_of_a_large_falcon():
    # two groups of two query heads, one key head and one value head, of size 1
    family = FAMILIES["falcon"]
    config = CheckpointConfig(
        {"num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": True}
    )
    change = family.names["self_attention.query_key_value"].change
    assert change.apply(np.arange(8), config).tolist() == [0, 1, 4, 5, 2, 6, 3, 7]


def test_gpt2s_matrices_are_transposed():
    theirs = sources("gpt2")
    _, tensors = read_checkpoint(data.path("hf", "gpt2"))
    np.testing.assert_array_equal(
        tensors["blk.0.attn_qkv.weight"], theirs["transformer.h.0.attn.c_attn.weight"].T
    )
    np.testing.assert_array_equal(tensors["position_embd.weight"], theirs["transformer.wpe.weight"])


def test_llama_31s_factors():
    # wavelengths of the 8 frequencies against the context of 32, a factor of 8, and 1 to 4 turns
    _, tensors = read_checkpoint(data.path("hf", "llama31_rope"))
    frequency = 500000.0 ** (-np.arange(8) / 8)
    turns = 32 * frequency / (2 * np.pi)
    want = [
        1.0 if t > 4 else 8.0 if t < 1 else 1 / ((1 - (t - 1) / 3) / 8 + (t - 1) / 3) for t in turns
    ]
    np.testing.assert_allclose(tensors["rope_freqs.weight"], want, 1e-6)


# ---- the folder ----


@pytest.fixture
def folder(tmp_path):
    """A checkpoint that a test may change."""
    return shutil.copytree(data.path("hf", "llama"), tmp_path / "llama")


def rewrite(folder, change):
    path = folder / "config.json"
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values), "utf-8")


def same(one, other):
    assert one[0] | {"general.name": ""} == other[0] | {"general.name": ""}
    assert set(one[1]) == set(other[1])
    for name in one[1]:
        np.testing.assert_array_equal(one[1][name], other[1][name])


def test_shards_are_one_checkpoint(folder):
    whole = read_checkpoint(data.path("hf", "llama"))
    arrays = dict(read_arrays(folder / "model.safetensors")[0])
    (folder / "model.safetensors").unlink()
    names = sorted(arrays)
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        write_arrays(folder / file, {name: arrays[name] for name in part}, {})
    same(read_checkpoint(folder), whole)  # without an index
    files = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(names)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}), "utf-8")
    same(read_checkpoint(folder), whole)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(tl.FormatError, match=r"missing: model-00002-of-00002\.safetensors"):
        read_checkpoint(folder)


def test_a_shard_outside_the_folder_is_refused(folder):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../model.safetensors"}}), "utf-8")
    with pytest.raises(tl.FormatError, match="same folder"):
        read_checkpoint(folder)


def test_the_spelling_of_transformers_4_gives_the_same(folder):
    def older(values):
        values["rope_theta"] = values.pop("rope_parameters")["rope_theta"]
        values["torch_dtype"] = values.pop("dtype")

    rewrite(folder, older)
    same(read_checkpoint(folder), read_checkpoint(data.path("hf", "llama")))


def test_unknown_tensors_are_listed(folder):
    arrays = dict(read_arrays(folder / "model.safetensors")[0])
    for layer in range(2):
        arrays[f"model.layers.{layer}.self_attn.extra.weight"] = np.zeros(2, np.float32)
    arrays["model.other"] = np.zeros(2, np.float32)
    write_arrays(folder / "model.safetensors", arrays, {})
    with pytest.raises(tl.UnsupportedError) as error:
        read_checkpoint(folder)
    assert "layers.N.self_attn.extra.weight (2x)" in str(error.value)
    assert "other" in str(error.value)


def test_an_unknown_class_is_named(folder):
    rewrite(folder, lambda values: values.update(architectures=["NewForCausalLM"]))
    with pytest.raises(tl.UnsupportedError, match="NewForCausalLM"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": None}, "architectures"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_hidden_layers": 3}, "no tensors of layer 2"),
        ({"num_attention_heads": "5"}, "num_attention_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "factor"),
        ({"layer_types": "full", "sliding_window": 8}, "layer_types"),
    ],
)
def test_a_wrong_config_is_named(folder, change, message):
    rewrite(folder, lambda values: values.update(change))
    with pytest.raises(tl.FormatError, match=message):
        read_checkpoint(folder)


def test_pytorch_files_are_refused_with_a_way_out(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(tl.UnsupportedError, match="save_pretrained"):
        read_checkpoint(folder)


def test_a_folder_without_tensors(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(tl.UnsupportedError, match=r"no model\.safetensors"):
        read_checkpoint(folder)


def test_each_class_belongs_to_one_row():
    plain = [family for family in FAMILIES.values() if family.when is None]
    classes = [name for family in plain for name in family.classes]
    assert len(classes) == len(set(classes))
    assert set(FAMILIES) <= set(gguf.MODEL_ARCH_NAMES.values())
