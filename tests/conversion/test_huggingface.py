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
    "mixtral": "llama",
    "qwen2moe": "qwen2moe",
    "qwen3moe": "qwen3moe",
    "olmoe": "olmoe",
    "granitemoe": "granitemoe",
    "granitemoe_shared": "granitemoe",
    "gptoss": "gpt-oss",
    "lfm2": "lfm2",
    "qwen3next": "qwen3next",
    "qwen35": "qwen35",
    "qwen35moe": "qwen35moe",
    "gemma4": "gemma4",
    "gemma4_e": "gemma4",
    "gemma4_moe": "gemma4",
    "bert": "bert",
    "bert_rank": "bert",
    "nomic_bert": "nomic-bert",
    "embeddinggemma": "gemma-embedding",
}

#: Tensors of a checkpoint that no GGUF file has: other parts of the model.
LEFT_OUT = re.compile(r"(model\.)?visual\.|pooler\.")  # a pooler without a classifier

#: Names that gguf's map does not know, because llama.cpp's converter handles them in code.
IN_CODE = {
    r"block_sparse_moe\.input_linear\.weight": ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    r"shared_mlp\.input_linear\.weight": ("ffn_gate_shexp.weight", "ffn_up_shexp.weight"),
    r"mlp\.experts\.gate_up_proj": ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    r"mlp\.experts\.gate_up_proj_bias": ("ffn_gate_exps.bias", "ffn_up_exps.bias"),
    r"mlp\.experts\.down_proj": ("ffn_down_exps.weight",),
    r"mlp\.experts\.down_proj_bias": ("ffn_down_exps.bias",),
    r"self_attn\.sinks": ("attn_sinks.weight",),
    r"linear_attn\.in_proj_qkvz\.weight": ("attn_qkv.weight", "attn_gate.weight"),
    r"linear_attn\.dt_bias": ("ssm_dt.bias",),
    r"layer_scalar": ("layer_output_scale.weight",),
    r"router\.scale": ("ffn_gate_inp.scale",),
    r"router\.per_expert_scale": ("ffn_down_exps.scale",),
    r"experts\.gate_up_proj": ("ffn_gate_up_exps.weight",),
    r"experts\.down_proj": ("ffn_down_exps.weight",),
}
CLASSIFIER = {"pooler.dense": "cls", "classifier": "cls.output"}


def gguf_names(source, names):
    """Return the GGUF names of a tensor of a checkpoint, by gguf's map and the list above."""
    plain = source.replace("model.language_model.", "model.").removeprefix("bert.")
    plain = re.sub(r"\.experts\.\d+\.", ".experts.", plain)
    if re.match(r"(layers|norm|embed_tokens)\b", plain):
        plain = f"model.{plain}"
    if block := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", plain):
        for pattern, found in IN_CODE.items():
            if re.fullmatch(pattern, block[2]):
                return [f"blk.{block[1]}.{name}" for name in found]
    stem, _, suffix = plain.rpartition(".")
    if stem in CLASSIFIER:
        return [f"{CLASSIFIER[stem]}.{suffix}"]
    ours = names.get_name(plain, try_suffixes=(".weight", ".bias"))
    assert ours is not None, source
    return [ours]


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
    theirs = (source for source in sources(name) if not LEFT_OUT.match(source))
    found = {ours for source in theirs for ours in gguf_names(source, names)}
    computed = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
    computed |= {"dense_2.weight", "dense_3.weight"}  # from other files
    assert found == set(tensors) - computed


# ---- shapes and keys ----


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_shapes_agree_with_the_keys(name):
    metadata, tensors = read_checkpoint(data.path("hf", name))
    prefix = metadata["general.architecture"]
    keys = {key.removeprefix(f"{prefix}."): value for key, value in metadata.items()}
    if np.ndim(keys["attention.head_count_kv"]) or any(key.startswith("ssm.") for key in keys):
        pytest.skip("its layers differ")
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


def keys_of(name, *wanted):
    metadata, _ = read_checkpoint(data.path("hf", name))
    prefix = metadata["general.architecture"]
    found = {key.removeprefix(f"{prefix}."): value for key, value in metadata.items()}
    return {key: found.get(key) for key in wanted} if wanted else found


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


def test_experts_are_stacked():
    theirs = sources("mixtral")
    _, tensors = read_checkpoint(data.path("hf", "mixtral"))
    for ours, source in {"gate": "w1", "down": "w2", "up": "w3"}.items():
        got = tensors[f"blk.1.ffn_{ours}_exps.weight"]
        for i in range(4):
            name = f"model.layers.1.block_sparse_moe.experts.{i}.{source}.weight"
            np.testing.assert_array_equal(got[i], theirs[name])


def test_rows_of_gate_and_up_alternate_in_gpt_oss():
    theirs = sources("gptoss")
    _, tensors = read_checkpoint(data.path("hf", "gptoss"))
    both = theirs["model.layers.0.mlp.experts.gate_up_proj"]
    bias = theirs["model.layers.0.mlp.experts.gate_up_proj_bias"]
    for i, kind in enumerate(("gate", "up")):
        got = tensors[f"blk.0.ffn_{kind}_exps.weight"]
        assert got.shape == (4, 112, 80)
        for expert, row in np.ndindex(4, 112):
            np.testing.assert_array_equal(got[expert, row], both[expert, :, 2 * row + i])
        np.testing.assert_array_equal(tensors[f"blk.0.ffn_{kind}_exps.bias"], bias[:, i::2])
    np.testing.assert_array_equal(
        tensors["blk.0.ffn_down_exps.weight"][1],
        theirs["model.layers.0.mlp.experts.down_proj"][1].T,
    )


def test_fused_experts_are_split():
    theirs = sources("granitemoe_shared")
    _, tensors = read_checkpoint(data.path("hf", "granitemoe_shared"))
    both = theirs["model.layers.0.block_sparse_moe.input_linear.weight"]
    np.testing.assert_array_equal(tensors["blk.0.ffn_gate_exps.weight"], both[:, :14])
    np.testing.assert_array_equal(tensors["blk.0.ffn_up_exps.weight"], both[:, 14:])
    both = theirs["model.layers.0.shared_mlp.input_linear.weight"]
    np.testing.assert_array_equal(tensors["blk.0.ffn_up_shexp.weight"], both[18:])


def test_one_missing_expert_is_an_error(tmp_path):
    folder = shutil.copytree(data.path("hf", "mixtral"), tmp_path / "m")
    arrays = dict(read_arrays(folder / "model.safetensors")[0])
    del arrays["model.layers.1.block_sparse_moe.experts.2.w1.weight"]
    write_arrays(folder / "model.safetensors", arrays, {})
    with pytest.raises(tl.FormatError, match=r"blk\.1\.ffn_gate_exps\.weight"):
        read_checkpoint(folder)


def test_keys_of_experts():
    found = keys_of("qwen2moe")
    assert found["expert_count"] == 6
    assert found["expert_used_count"] == 2
    assert found["expert_feed_forward_length"] == 48
    assert found["expert_shared_feed_forward_length"] == 80
    assert "expert_weights_norm" not in found  # llama.cpp's rule is the checkpoint's
    assert keys_of("gptoss", "expert_feed_forward_length") == {"expert_feed_forward_length": 112}


def value_head(h):
    """Head h of Qwen 3.5 in GGUF, as a head of the checkpoint: 2 key heads, 2 values for each."""
    return (h % 2) * 2 + h // 2


def test_value_heads_of_qwen35_are_in_the_order_of_key_heads():
    theirs = sources("qwen35")
    _, tensors = read_checkpoint(data.path("hf", "qwen35"))
    ours = {name.removeprefix("blk.0."): array for name, array in tensors.items()}
    source = "model.layers.0.linear_attn"
    qkv, conv = theirs[f"{source}.in_proj_qkv.weight"], theirs[f"{source}.conv1d.weight"][:, 0]
    np.testing.assert_array_equal(ours["attn_qkv.weight"][:32], qkv[:32])
    for h in range(4):
        mine, other = slice(8 * h, 8 * h + 8), slice(8 * value_head(h), 8 * value_head(h) + 8)
        np.testing.assert_array_equal(ours["attn_qkv.weight"][32:][mine], qkv[32:][other])
        np.testing.assert_array_equal(ours["ssm_conv1d.weight"][32:][mine], conv[32:][other])
        np.testing.assert_array_equal(
            ours["attn_gate.weight"][mine], theirs[f"{source}.in_proj_z.weight"][other]
        )
        np.testing.assert_array_equal(
            ours["ssm_out.weight"][:, mine], theirs[f"{source}.out_proj.weight"][:, other]
        )
        pairs = {"ssm_alpha.weight": "in_proj_a.weight", "ssm_beta.weight": "in_proj_b.weight"}
        for name, other_name in {**pairs, "ssm_dt.bias": "dt_bias"}.items():
            np.testing.assert_array_equal(
                ours[name][h], theirs[f"{source}.{other_name}"][value_head(h)]
            )
        decay = -math.exp(theirs[f"{source}.A_log"][value_head(h)])
        assert math.isclose(ours["ssm_a"][h], decay, rel_tol=1e-6)
    np.testing.assert_array_equal(ours["ssm_norm.weight"], theirs[f"{source}.norm.weight"])


def test_qwen3next_keeps_the_order_of_heads_but_not_of_groups():
    theirs = sources("qwen3next")
    _, tensors = read_checkpoint(data.path("hf", "qwen3next"))
    fused = theirs["model.layers.0.linear_attn.in_proj_qkvz.weight"]  # 2 groups of 8, 8, 16, 16
    for group in range(2):
        q, k, v, z = np.split(fused[48 * group : 48 * group + 48], [8, 16, 32])
        qkv = tensors["blk.0.attn_qkv.weight"]
        np.testing.assert_array_equal(qkv[8 * group : 8 * group + 8], q)
        np.testing.assert_array_equal(qkv[16 + 8 * group : 24 + 8 * group], k)
        np.testing.assert_array_equal(qkv[32 + 16 * group : 48 + 16 * group], v)
        np.testing.assert_array_equal(
            tensors["blk.0.attn_gate.weight"][16 * group : 16 * group + 16], z
        )
    np.testing.assert_array_equal(
        tensors["blk.0.ssm_conv1d.weight"], theirs["model.layers.0.linear_attn.conv1d.weight"][:, 0]
    )
    np.testing.assert_array_equal(
        tensors["blk.0.ssm_norm.weight"], theirs["model.layers.0.linear_attn.norm.weight"]
    )


def test_keys_of_the_delta_net():
    found = keys_of("qwen35")
    want = {"conv_kernel": 4, "state_size": 8, "group_count": 2, "time_step_rank": 4}
    for key, value in {**want, "inner_size": 32}.items():
        assert found[f"ssm.{key}"] == value
    assert found["full_attention_interval"] == 4
    assert found["rope.dimension_count"] == 6
    assert found["rope.dimension_sections"].tolist() == [1, 1, 1, 0]


def test_lfm2_has_heads_where_there_is_attention():
    found = keys_of("lfm2")
    assert found["attention.head_count_kv"].tolist() == [0, 0, 1, 0]
    assert found["shortconv.l_cache"] == 3
    _, tensors = read_checkpoint(data.path("hf", "lfm2"))
    assert tensors["blk.0.shortconv.conv.weight"].shape == (80, 3)
    assert "output_norm.weight" not in tensors  # llama.cpp knows it as token_embd_norm


def test_layers_of_gemma4_differ():
    found = keys_of("gemma4")
    assert (found["attention.key_length"], found["attention.key_length_swa"]) == (16, 12)
    assert (found["rope.dimension_count"], found["rope.dimension_count_swa"]) == (16, 12)
    assert found["attention.head_count_kv"].tolist() == [2, 1, 2, 1]
    assert found["attention.sliding_window_pattern"] == [True, False, True, False]
    _, tensors = read_checkpoint(data.path("hf", "gemma4"))
    want = np.float32([1, 1, *6 * [1e30]])  # a quarter of 8 frequencies turns
    np.testing.assert_array_equal(tensors["rope_freqs.weight"], want)
    found = keys_of("gemma4_e")
    assert found["attention.shared_kv_layers"] == 2
    assert found["feed_forward_length"].tolist() == [28, 28, 28, 56, 56]
    assert found["embedding_length_per_layer_input"] == 6
    assert keys_of("gemma4_moe", "expert_used_count") == {"expert_used_count": 3}


def test_a_classifier_keeps_its_pooler():
    _, tensors = read_checkpoint(data.path("hf", "bert"))
    assert not [name for name in tensors if name.startswith("cls")]
    found = keys_of("bert_rank")
    assert (found["pooling_type"], found["classifier.output_labels"]) == (4, ["LABEL_0"])
    theirs = sources("bert_rank")
    _, tensors = read_checkpoint(data.path("hf", "bert_rank"))
    np.testing.assert_array_equal(tensors["cls.weight"], theirs["bert.pooler.dense.weight"])
    np.testing.assert_array_equal(tensors["cls.output.bias"], theirs["classifier.bias"])


def test_roberta_counts_positions_from_the_padding_on(tmp_path):
    folder = shutil.copytree(data.path("hf", "bert"), tmp_path / "bert")
    rewrite(folder, lambda v: v.update(architectures=["RobertaModel"], pad_token_id=1))
    metadata, tensors = read_checkpoint(folder)
    theirs = sources("bert")["embeddings.position_embeddings.weight"]
    np.testing.assert_array_equal(tensors["position_embd.weight"], theirs[2:])
    assert metadata["bert.context_length"] == 126


def test_old_names_of_norms(tmp_path):
    folder = shutil.copytree(data.path("hf", "bert"), tmp_path / "bert")
    arrays = dict(read_arrays(folder / "model.safetensors")[0])
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in arrays.items()
    }
    assert old.keys() != arrays.keys()
    write_arrays(folder / "model.safetensors", old, {})
    same(read_checkpoint(folder), read_checkpoint(data.path("hf", "bert")))


def test_modules_of_sentence_transformers(tmp_path):
    found = keys_of("embeddinggemma")
    assert found["pooling_type"] == 1
    assert found["attention.sliding_window"] == 16
    assert (found["dense_2_feat_in"], found["dense_2_feat_out"]) == (24, 72)
    assert (found["dense_3_feat_in"], found["dense_3_feat_out"]) == (72, 24)
    _, tensors = read_checkpoint(data.path("hf", "embeddinggemma"))
    assert tensors["dense_2.weight"].shape == (72, 24)
    folder = shutil.copytree(data.path("hf", "embeddinggemma"), tmp_path / "e")
    path = folder / "1_Pooling" / "config.json"
    values = json.loads(path.read_text("utf-8"))
    values["pooling_mode_mean_tokens"] = False
    for name, number in (("cls_token", 2), ("lasttoken", 3)):
        path.write_text(json.dumps(values | {f"pooling_mode_{name}": True}), "utf-8")
        assert read_checkpoint(folder)[0]["gemma-embedding.pooling_type"] == number
    path.write_text(json.dumps(values | {"pooling_mode_max_tokens": True}), "utf-8")
    with pytest.raises(tl.UnsupportedError, match="max_tokens"):
        read_checkpoint(folder)


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
