"""The layouts and numbers of converted checkpoints, against the checkpoints' own tensors."""

import json
import math
import shutil

import numpy as np
import pytest

import tinyllm as tl
from testkit import data
from testkit.hf import keys_of, rewrite, same, sources
from tinyllm.conversion.config import CheckpointConfig
from tinyllm.conversion.huggingface import read_checkpoint
from tinyllm.conversion.table import FAMILIES
from tinyllm.files.arrays import read_arrays, write_arrays


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


def test_latent_attention_is_split_for_one_kv_head():
    theirs = sources("deepseek_v3")["model.layers.1.self_attn.kv_b_proj.weight"]  # (4 * 18, 14)
    _, tensors = read_checkpoint(data.path("hf", "deepseek_v3"))
    keys, values = tensors["blk.1.attn_k_b.weight"], tensors["blk.1.attn_v_b.weight"]
    assert (keys.shape, values.shape) == ((4, 14, 8), (4, 10, 14))
    for head in range(4):
        part = theirs[18 * head : 18 * head + 18]
        np.testing.assert_array_equal(keys[head], part[:8].T)
        np.testing.assert_array_equal(values[head], part[8:])
    found = keys_of("deepseek_v3")
    want = {"head_count_kv": 1, "key_length": 20, "value_length": 14, "kv_lora_rank": 14}
    want |= {"key_length_mla": 14, "value_length_mla": 10, "q_lora_rank": 20}
    for key, value in want.items():
        assert found[f"attention.{key}"] == value, key
    assert found["expert_gating_func"] == 2
    assert (found["expert_group_count"], found["expert_group_used_count"]) == (4, 2)
    assert (found["expert_weights_scale"], found["expert_weights_norm"]) == (2.5, True)
    assert found["rope.scaling.yarn_log_multiplier"] == 0.1
    assert keys_of("deepseek_v2")["expert_gating_func"] == 1
    assert math.isclose(keys_of("deepseek_v2")["rope.scaling.yarn_log_multiplier"], 0.0707)


def test_mamba_has_decays_with_their_sign():
    theirs = sources("mamba")
    _, tensors = read_checkpoint(data.path("hf", "mamba"))
    decay = -np.exp(theirs["backbone.layers.0.mixer.A_log"].astype(np.float64))
    np.testing.assert_allclose(tensors["blk.0.ssm_a"], decay, 1e-6)
    assert tensors["blk.0.ssm_a"].shape == (48, 10)
    assert tensors["blk.0.ssm_conv1d.weight"].shape == (48, 4)
    assert tensors["blk.0.ssm_d"].shape == (48,)
    assert keys_of("mamba", "ssm.dt_b_c_rms") == {"ssm.dt_b_c_rms": False}
    assert keys_of("falcon_mamba", "ssm.dt_b_c_rms") == {"ssm.dt_b_c_rms": True}


def test_mamba2_has_a_row_for_each_head_and_a_norm_in_groups():
    theirs = sources("mamba2")
    _, tensors = read_checkpoint(data.path("hf", "mamba2"))
    assert tensors["blk.0.ssm_a"].shape == tensors["blk.0.ssm_d"].shape == (8, 1)
    norm = theirs["backbone.layers.0.mixer.norm.weight"]
    np.testing.assert_array_equal(tensors["blk.0.ssm_norm.weight"], norm.reshape(2, 24))
    found = keys_of("mamba2")
    assert (found["ssm.inner_size"], found["ssm.time_step_rank"]) == (48, 8)
    assert found["ssm.group_count"] == 2


def test_the_layers_of_nemotron_h():
    found = keys_of("nemotron_h")  # M-M*-
    assert found["attention.head_count_kv"].tolist() == [0, 0, 0, 2, 0]
    assert found["feed_forward_length"].tolist() == [0, 28, 0, 0, 28]
    found = keys_of("nemotron_h_latent")  # EME*
    assert found["feed_forward_length"].tolist() == [14, 0, 14, 0]
    assert found["moe_latent_size"] == 12
    assert keys_of("granitemoehybrid")["attention.head_count_kv"].tolist() == [0, 2, 0]
    assert keys_of("jamba")["attention.head_count_kv"].tolist() == [0, 2, 0, 0]


def test_a_hybrid_granite_without_mamba_is_a_granite(tmp_path):
    folder = shutil.copytree(data.path("hf", "granitehybrid_dense"), tmp_path / "g")
    arrays = dict(read_arrays(folder / "model.safetensors")[0])
    kept = {
        name.replace("layers.1.", "layers.0."): array
        for name, array in arrays.items()
        if "layers.0." not in name
    }
    write_arrays(folder / "model.safetensors", kept, {})
    rewrite(folder, lambda v: v.update(num_hidden_layers=1, layer_types=["attention"]))
    metadata, tensors = read_checkpoint(folder)
    assert metadata["general.architecture"] == "granite"
    assert tensors["blk.0.ffn_gate.weight"].shape == (28, 24)


def test_the_multipliers_of_falcon_h1_are_in_its_weights():
    theirs = sources("falcon_h1")
    _, tensors = read_checkpoint(data.path("hf", "falcon_h1"))
    layer = "model.layers.0"
    factors = {
        "token_embd": ("model.embed_tokens", 1.3),
        "output": ("lm_head", 0.7),
        "blk.0.attn_q": (f"{layer}.self_attn.q_proj", 1.1),
        "blk.0.attn_k": (f"{layer}.self_attn.k_proj", 1.1 * 0.5),
        "blk.0.attn_v": (f"{layer}.self_attn.v_proj", 1.1),
        "blk.0.attn_output": (f"{layer}.self_attn.o_proj", 0.9),
        "blk.0.ffn_gate": (f"{layer}.feed_forward.gate_proj", 0.8),
        "blk.0.ffn_up": (f"{layer}.feed_forward.up_proj", 1.0),
        "blk.0.ffn_down": (f"{layer}.feed_forward.down_proj", 0.6),
        "blk.0.ssm_out": (f"{layer}.mamba.out_proj", 0.6),
    }
    for ours, (source, factor) in factors.items():
        want = theirs[f"{source}.weight"] * factor
        np.testing.assert_allclose(tensors[f"{ours}.weight"], want, 1e-6)
    parts = np.split(tensors["blk.0.ssm_in.weight"], [56, 112, 132, 152])
    others = np.split(theirs[f"{layer}.mamba.in_proj.weight"], [56, 112, 132, 152])
    for part, other, factor in zip(parts, others, [0.7, 0.9, 1.1, 0.8, 1.2], strict=True):
        np.testing.assert_allclose(part, other * (1.25 * factor), 1e-6)


def test_experts_of_llama4_and_dbrx():
    both = sources("llama4")["model.layers.1.feed_forward.experts.gate_up_proj"]  # (4, 24, 28)
    _, tensors = read_checkpoint(data.path("hf", "llama4"))
    np.testing.assert_array_equal(
        tensors["blk.1.ffn_gate_exps.weight"], both[:, :, :14].swapaxes(1, 2)
    )
    np.testing.assert_array_equal(
        tensors["blk.1.ffn_up_exps.weight"], both[:, :, 14:].swapaxes(1, 2)
    )
    down = sources("dbrx")["transformer.blocks.0.ffn.experts.mlp.w2"]  # (4 * 14, 24)
    _, tensors = read_checkpoint(data.path("hf", "dbrx"))
    for expert in range(4):
        np.testing.assert_array_equal(
            tensors["blk.0.ffn_down_exps.weight"][expert], down[14 * expert : 14 * expert + 14].T
        )


def test_numbers_that_are_tensors_there_and_keys_here():
    metadata, tensors = read_checkpoint(data.path("hf", "apertus"))
    theirs = sources("apertus")
    for name in ("alpha_n", "alpha_p", "beta", "eps"):
        want = [theirs[f"model.layers.{i}.mlp.act_fn.{name}"].item() for i in range(2)]
        np.testing.assert_array_equal(metadata[f"xielu.{name}"], np.float32(want))
    assert not [name for name in tensors if "act_fn" in name]


def test_layer_norms_that_are_stored_minus_one_keep_their_biases():
    theirs = sources("nemotron")
    _, tensors = read_checkpoint(data.path("hf", "nemotron"))
    name = "model.layers.0.input_layernorm"
    np.testing.assert_array_equal(
        tensors["blk.0.attn_norm.weight"], theirs[f"{name}.weight"] + np.float32(1)
    )
    np.testing.assert_array_equal(tensors["blk.0.attn_norm.bias"], theirs[f"{name}.bias"])


def test_the_base_of_hunyuan_has_its_factor():
    assert math.isclose(keys_of("hunyuan_dense")["rope.freq_base"], 1e4 * 50 ** (12 / 10))


def test_heads_of_layers_that_differ():
    assert keys_of("laguna")["attention.head_count"].tolist() == [4, 8, 8, 8]
    found = keys_of("mimo2")
    assert found["attention.head_count_kv"].tolist() == [2, 4, 4]
    assert found["attention.value_length"] == 10
    assert found["rope.dimension_count"] == 4
    assert found["attention.value_scale"] == 0.707


def test_t5_has_two_stacks():
    metadata, tensors = read_checkpoint(data.path("hf", "t5"))
    theirs = sources("t5")
    np.testing.assert_array_equal(
        tensors["dec.blk.1.cross_attn_q.weight"],
        theirs["decoder.block.1.layer.1.EncDecAttention.q.weight"],
    )
    np.testing.assert_array_equal(
        tensors["enc.blk.1.ffn_gate.weight"],
        theirs["encoder.block.1.layer.1.DenseReluDense.wi_0.weight"],
    )
    assert metadata["t5.decoder_block_count"] == 2
    assert metadata["t5.attention.key_length"] == 6


def test_falcon_h1_has_a_norm_without_a_suffix():
    theirs = sources("falcon_h1")
    _, tensors = read_checkpoint(data.path("hf", "falcon_h1"))
    np.testing.assert_array_equal(
        tensors["blk.1.ffn_norm"], theirs["model.layers.1.pre_ff_layernorm.weight"]
    )
    assert "blk.1.ffn_norm.weight" not in tensors


def test_modern_bert_names_its_activation():
    assert keys_of("modernbert", "hidden_activation") == {"hidden_activation": "gelu"}


def test_nemotron_h_has_both_epsilons():
    names = ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon")
    assert set(keys_of("nemotron_h", *names).values()) == {1e-5}


def test_t5_of_version_1_scales_its_output(tmp_path):
    """transformers, configuration_t5.py: they are scaled unless the matrices are not tied."""
    shutil.copytree(data.path("hf", "t5"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").chmod(0o644)
    for change, want in (
        ({"scale_decoder_outputs": None, "tie_word_embeddings": None}, 24**-0.5),
        ({"scale_decoder_outputs": None, "tie_word_embeddings": False}, None),
        ({"scale_decoder_outputs": False, "tie_word_embeddings": True}, None),
    ):
        rewrite(tmp_path, lambda values, change=change: values.update(change))
        metadata, _ = read_checkpoint(tmp_path)
        assert metadata.get("t5.logit_scale") == (want and pytest.approx(want))
