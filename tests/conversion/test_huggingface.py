"""Hugging Face checkpoints as GGUF: names as in PyPI's gguf package, layouts, keys, errors."""

import json
import math
import re
import shutil

import numpy as np
import pytest

import tinyllm as tl
from testkit import data
from testkit.hf import CHECKPOINTS, keys_of, rewrite, same, sources
from tinyllm.conversion.config import CheckpointConfig
from tinyllm.conversion.huggingface import read_checkpoint
from tinyllm.conversion.keys import common_keys
from tinyllm.conversion.table import FAMILIES
from tinyllm.files.arrays import read_arrays, write_arrays

gguf = pytest.importorskip("gguf")

#: Architectures that are younger than the gguf package. Their names are compared with another's.
YOUNG = {
    "cohere2moe": "exaone-moe",
    "hy_v3": "exaone-moe",
    "laguna": "afmoe",
    "mellum": "qwen3moe",
}

#: Tensors of a checkpoint that no GGUF file has: other parts of the model.
LEFT_OUT = re.compile(r"(model\.)?visual\.|pooler\.")  # a pooler without a classifier

#: Names that gguf's map does not know, because llama.cpp's converter handles them in code.
IN_CODE = {
    r"block_sparse_moe\.input_linear\.weight": ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    r"shared_mlp\.input_linear\.weight": ("ffn_gate_shexp.weight", "ffn_up_shexp.weight"),
    r"(mlp|feed_forward)\.experts\.gate_up_proj": ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    r"mlp\.experts\.gate_up_proj_bias": ("ffn_gate_exps.bias", "ffn_up_exps.bias"),
    r"(mlp|feed_forward)\.experts\.down_proj": ("ffn_down_exps.weight",),
    r"mlp\.experts\.down_proj_bias": ("ffn_down_exps.bias",),
    r"self_attn\.sinks": ("attn_sinks.weight",),
    r"linear_attn\.in_proj_qkvz\.weight": ("attn_qkv.weight", "attn_gate.weight"),
    r"(linear_attn|mamba|mixer)\.dt_bias": ("ssm_dt.bias",),
    r"layer_scalar": ("layer_output_scale.weight",),
    r"router\.scale": ("ffn_gate_inp.scale",),
    r"router\.per_expert_scale": ("ffn_down_exps.scale",),
    r"experts\.gate_up_proj": ("ffn_gate_up_exps.weight",),
    r"experts\.down_proj": ("ffn_down_exps.weight",),
    r"mlp\.act_fn\.\w+": (),  # keys
    r"mlp\.ffn_sub_norm\.weight": ("ffn_sub_norm.weight",),
    r"self_attn\.attn_sub_norm\.weight": ("attn_sub_norm.weight",),
    r".*e_score_correction_bias": ("exp_probs_b.bias",),
    r"(mlp|feed_forward)\.expert_bias": ("exp_probs_b.bias",),
    r"self_attn\.attention_sink_bias": ("attn_sinks.weight",),
    r"self_attn\.g_proj\.weight": ("attn_gate.weight",),
    r"mlp\.router\.gate\.weight": ("ffn_gate_inp.weight",),
    r"altup\.correct_output_scale": ("altup_correct_scale.weight",),
    r"(feed_forward|mixer)\.experts\.(w2|down_proj)\.weight": ("ffn_down_exps.weight",),
    r"(feed_forward|mixer)\.experts\.(w3|up_proj)\.weight": ("ffn_up_exps.weight",),
    r"(feed_forward|mixer)\.experts\.(w1|gate_proj)\.weight": ("ffn_gate_exps.weight",),
    r"ffn\.experts\.mlp\.w1": ("ffn_gate_exps.weight",),
    r"ffn\.experts\.mlp\.v1": ("ffn_up_exps.weight",),
    r"ffn\.experts\.mlp\.w2": ("ffn_down_exps.weight",),
}

#: Where an architecture or a checkpoint has other names than the list above.
IN_ITS_CODE = {
    "hy_v3": {r"mlp\.expert_bias": ("exp_probs_b",)},
    "falcon_h1": {r"pre_ff_layernorm\.weight": ("ffn_norm",)},
    "bloom": {r"post_attention_layernorm\.(\w+)": ("ffn_norm.{}",)},
    "laguna": {r"post_attention_layernorm\.weight": ("ffn_norm.weight",)},
    "granitehybrid_dense": {
        r"shared_mlp\.input_linear\.weight": ("ffn_gate.weight", "ffn_up.weight"),
        r"shared_mlp\.output_linear\.weight": ("ffn_down.weight",),
    },
    "mistral4": {r"mlp\.experts\.gate_up_proj": ("ffn_gate_up_exps.weight",)},
    **{
        name: {r"self_attn\.kv_b_proj\.weight": ("attn_k_b.weight", "attn_v_b.weight")}
        for name in ("deepseek2",)
    },
}
IN_ITS_CODE["mistral4"] |= IN_ITS_CODE["deepseek2"]
TOP = {
    r"word_embeddings_layernorm": "token_embd_norm",
    r"altup_projections\.\d": "altup_proj",
    r"altup_unembed_projections\.\d": "altup_unembd_proj",
}
CLASSIFIER = {"pooler.dense": "cls", "classifier": "cls.output"}


def gguf_names(source, names, own):
    """Return the GGUF names of a tensor of a checkpoint, by gguf's map and the lists above."""
    plain = source.replace("model.language_model.", "model.").removeprefix("bert.")
    plain = re.sub(r"\.experts\.\d+\.", ".experts.", plain)
    if re.match(
        r"(layers\.\d+\.(self_attn|mlp\.\w+_proj|\w+_layernorm)|norm|embed_tokens)\b", plain
    ):
        plain = f"model.{plain}"
    if block := re.fullmatch(r"(?:\w+\.)?(?:layers|h|blocks)\.(\d+)\.(.+)", plain):
        for pattern, found in [*own.items(), *IN_CODE.items()]:
            if match := re.fullmatch(pattern, block[2]):
                return [f"blk.{block[1]}.{name.format(*match.groups())}" for name in found]
    stem, _, suffix = plain.rpartition(".")
    if stem in CLASSIFIER:
        return [f"{CLASSIFIER[stem]}.{suffix}"]
    for pattern, found in TOP.items():
        if re.fullmatch(rf"(\w+\.)?{pattern}", stem):
            return [f"{found}.{suffix}"]
    found = names.get_name(stem)
    ours = names.get_name(plain) if found is None else f"{found}.{suffix}"
    assert ours is not None, source
    bare = suffix in ("weight", "bias") and not ours.endswith(suffix)
    return [f"{ours}.{suffix}" if bare else ours]


def architecture(name):
    known = YOUNG.get(name, name)
    return next(key for key, text in gguf.MODEL_ARCH_NAMES.items() if text == known)


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
    theirs = (source for source in sources(name) if not LEFT_OUT.match(source))
    own = IN_ITS_CODE.get(metadata["general.architecture"], {}) | IN_ITS_CODE.get(name, {})
    found = {ours for source in theirs for ours in gguf_names(source, names, own)}
    computed = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
    computed |= {"dense_2.weight", "dense_3.weight"}  # from other files
    assert found == set(tensors) - computed


# ---- shapes and keys ----


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_shapes_agree_with_the_keys(name):
    metadata, tensors = read_checkpoint(data.path("hf", name))
    prefix = metadata["general.architecture"]
    keys = {key.removeprefix(f"{prefix}."): value for key, value in metadata.items()}
    heads = [keys.get(f"attention.head_count{end}") for end in ("", "_kv")]
    if any(count is None or np.ndim(count) for count in heads):
        pytest.skip("its layers differ")
    if any("ssm." in key or "_lora_rank" in key for key in keys):
        pytest.skip("its mixers differ")
    if np.ndim(keys["feed_forward_length"]):
        keys["feed_forward_length"] = keys["feed_forward_length"][0]
    size = keys["attention.key_length"]
    queries, keyed = (keys[f"attention.head_count{end}"] * size for end in ("", "_kv"))
    width, ffn = keys["embedding_length"], keys["feed_forward_length"]
    shapes = {
        r"token_embd": [(keys["vocab_size"], width)],
        r"output": [(keys["vocab_size"], width)],
        r"blk\.\d+\.attn_q": [(queries, width)],
        r"blk\.\d+\.attn_[kv]": [(keyed, width)],
        r"blk\.\d+\.attn_qkv": [(queries + 2 * keyed, width)],
        r"blk\.\d+\.attn_output": [(width, queries)],
        r"blk\.\d+\.ffn_up": [(ffn, width), (2 * ffn, width)],
        r"blk\.\d+\.ffn_down": [(width, ffn)],
        r"blk\.\d+\.attn_norm": [(width,)],
    }
    if "gemma4.attention.key_length_swa" in metadata:  # every second layer
        shapes = {"token_embd": shapes["token_embd"]}
    checked = set()
    for tensor, array in tensors.items():
        for pattern, allowed in shapes.items():
            if re.fullmatch(rf"{pattern}\.weight", tensor):
                assert array.shape in allowed, tensor
                checked.add(pattern)
    assert "token_embd" in checked


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


def test_tensors_are_float32():
    _, tensors = read_checkpoint(data.path("hf", "llama"))
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float32)}


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


# ---- the folder ----


@pytest.fixture
def folder(tmp_path):
    """A checkpoint that a test may change."""
    return shutil.copytree(data.path("hf", "llama"), tmp_path / "llama")


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
    assert set(FAMILIES) - set(YOUNG) <= set(gguf.MODEL_ARCH_NAMES.values())
