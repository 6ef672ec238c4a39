"""Random models of every architecture of the table, with all the parts that it may have.

Which tensors a model needs follows from its plan. The plan is built for a file that has every
tensor which the builder asks about and which `PARTS` names, and then each tensor of the plan gets
its shape from the step that uses it.
"""

import fnmatch
import math

import numpy as np

import tinyllm
from tinyllm.architectures.config import read_config
from tinyllm.architectures.reader import Reader
from tinyllm.architectures.table import ARCHITECTURES, make_plan

from . import models

#: Optional tensors that the random models have, as patterns of names.
_USUAL = ("output.weight",)
PARTS = {
    "gpt2": ("position_embd.weight", "*attn_qkv.weight", "*.bias"),
    "gptneox": ("output.weight", "*attn_qkv.weight", "*.bias"),
    "phi2": ("output.weight", "*.bias"),
    "phi3": ("output.weight", "*attn_qkv.weight", "rope_factors_long.weight"),
    "falcon": ("*attn_qkv.weight", "*norm.bias", "*attn_norm_2.*"),
    "starcoder2": ("*.bias",),
    "stablelm": ("output.weight", "*attn_q_norm.weight", "*attn_k_norm.weight", "*norm.bias"),
    "command-r": ("*attn_q_norm.weight", "*attn_k_norm.weight"),
    "gemma4": (
        *("rope_freqs.weight", "*.layer_output_scale.weight", "*attn_v.weight"),
        *("*.ffn_gate_inp.weight", "*ffn_gate_up_exps.weight", "*.ffn_down_exps.scale"),
    ),
    "qwen3moe": ("output.weight", "*ffn_gate_up_exps.weight", "*exps.bias", "*exps.scale"),
    "qwen3next": ("output.weight", "*.ssm_ba.weight"),
    "glm4moe": ("output.weight", "*exp_probs_b.bias", "*attn_q_norm.weight", "*attn_k_norm.weight"),
    "hy_v3": ("output.weight", "*exp_probs_b"),
    "starcoder": ("*attn_qkv.weight", "*.bias"),
    "nemotron": ("output.weight", "*norm.bias"),
    "jais2": ("output.weight", "*.bias"),
    "eurobert": (),
    "bloom": ("*attn_qkv.weight", "*.bias"),
    "mpt": ("*attn_qkv.weight", "*attn_q_norm.weight", "*attn_k_norm.weight"),
    "dbrx": ("output.weight", "*attn_qkv.weight"),
    "cohere2moe": (),
    "mimo2": ("output.weight", "*.attn_sinks.weight", "*exp_probs_b.bias"),
    "phimoe": ("output.*", "*.bias", "rope_factors_long.weight"),
    "modern-bert": ("*attn_qkv.weight", "blk.[1-9].attn_norm.weight"),
    "mamba": ("*conv1d.bias", "*ssm_dt.bias"),
    "mamba2": ("output.weight", "*conv1d.bias"),
    "jamba": ("output.weight", "*conv1d.bias", "*ssm_dt.bias", "blk.1.ffn_gate_inp.weight"),
    "granitehybrid": ("output.weight", "*conv1d.bias"),
    "falcon-h1": ("output.weight", "*conv1d.bias", "*.ssm_norm.weight", "*.ffn_norm"),
    "nemotron_h": ("output.weight", "*conv1d.bias"),
    "nemotron_h_moe": ("output.weight", "*conv1d.bias", "*exp_probs_b.bias"),
    "deepseek2": ("output.weight", "*attn_k_b.weight", "*exp_probs_b.bias", "*v_b.scale"),
    "glm-dsa": ("output.weight", "*attn_k_b.weight", "*exp_probs_b.bias"),
    "deepseek32": ("output.weight", "*attn_k_b.weight", "*exp_probs_b.bias"),
    "orion": ("output.weight", "*norm.bias"),
    "bailingmoe2": ("output.weight", "*attn_qkv.weight", "*exp_probs_b.bias"),
    "qwen": ("output.weight", "*attn_qkv.weight", "*attn_qkv.bias"),
    "codeshell": ("output.weight", "*attn_qkv.*", "*norm.bias", "*attn_output.bias", "*ffn_*.bias"),
    "jais": ("output.weight", "*attn_qkv.*", "*norm.bias", "*attn_output.bias", "*ffn_*.bias"),
    "plm": (),
    "openelm": ("*attn_qkv.weight",),
    "pangu-embedded": ("output.weight", "*attn_output.bias"),
    "llama-embed": (),
    "neo-bert": ("*attn_qkv.weight",),
    "t5encoder": ("*.0.attn_rel_b.weight", "*.attn_o.weight", "*.1.ffn_gate.weight"),
    "gemma3n": ("*.altup_correct_scale.weight", "*.attn_v.weight"),
    "nomic-bert-moe": ("token_types.weight", "*norm.bias", "*attn_qkv.*"),
    "jina-bert-v2": (
        *("token_types.weight", "*norm*.bias", "*attn_norm_2.weight", "*attn_?_norm.weight"),
        *("*.attn_[qkv].bias", "*.attn_output.bias", "*ffn_down.bias"),
    ),
    "jina-bert-v3": (
        *("token_types.weight", "*attn_qkv.*", "*norm.bias", "*attn_output.bias"),
        "*ffn_*.bias",
    ),
    "plamo3": ("output.weight", "*attn_qkv.weight", "*.post_attention_norm", "*.post_ffw_norm"),
    "step35": ("output.weight", "*attn_q_norm.weight", "*attn_k_norm.weight", "*exp_probs_b.bias"),
    "mistral4": ("output.weight", "*attn_k_b.weight", "*ffn_gate_up_exps.weight"),
    "bert": ("token_types.weight", "*.bias"),
    "nomic-bert": ("token_types.weight", "*norm.bias", "*attn_qkv.weight"),
}

#: Rows that no checkpoint of Hugging Face confirms, but llama.cpp (tests/live).
LLAMA_CPP = (
    *("deepseek", "bailingmoe", "bailingmoe2", "exaone", "internlm2", "xverse", "orion", "qwen"),
    *("baichuan", "refact", "minicpm", "plm", "codeshell", "jais", "deci", "openelm", "glm-dsa"),
    *("deepseek32", "pangu-embedded", "maincoder", "granite_swa", "step35", "llama-embed"),
    *("smallthinker", "arctic", "plamo", "plamo3", "hunyuan_vl", "paddleocr", "nanbeige"),
    *("neo-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3"),
)

EXPERTS = {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 256}
DELTA = {
    "block_count": 4,
    "attention.key_length": 64,
    "rope.dimension_count": 16,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 32,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 128,
}

LATENT = {
    "attention.head_count_kv": 1,
    "attention.q_lora_rank": 64,
    "attention.kv_lora_rank": 256,
    "attention.key_length": 272,
    "attention.value_length": 256,
    "attention.key_length_mla": 80,
    "attention.value_length_mla": 64,
    "rope.dimension_count": 16,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
    "rope.scaling.yarn_log_multiplier": 0.1,
}
MAMBA = {
    "block_count": 3,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.inner_size": 256,
    "ssm.time_step_rank": 8,
}
MAMBA2 = {**MAMBA, "ssm.group_count": 2}
SECOND = np.array([0, 2, 0])  # of three blocks, only the second one has attention

#: Keys besides the usual ones. Windows are shorter than the contexts of the tests.
KEYS = {
    "mistral3": {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 16,
        "rope.scaling.yarn_log_multiplier": 1.0,
        "attention.temperature_scale": 0.1,
    },
    "qwen2vl": {"rope.dimension_sections": np.array([8, 12, 12, 0], np.int32)},
    "gemma2": {"attention.sliding_window": 50},
    "gemma3": {"attention.sliding_window": 50, "block_count": 7, "rope.freq_base": 1e6},
    "gemma4": {
        "block_count": 5,
        "attention.sliding_window": 50,
        "attention.sliding_window_pattern": np.array([True, True, False, True, False]),
        "attention.key_length": 64,
        "attention.value_length": 64,
        "attention.key_length_swa": 32,
        "attention.value_length_swa": 32,
        "rope.dimension_count_swa": 32,
        "rope.freq_base": 1e6,
        "attention.shared_kv_layers": 2,
        "embedding_length_per_layer_input": 32,
        "final_logit_softcapping": 30.0,
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_feed_forward_length": 256,
    },
    "gemma3n": {
        "block_count": 5,
        "attention.sliding_window": 50,
        "attention.sliding_window_pattern": np.array([True, True, False, True, False]),
        "attention.shared_kv_layers": 2,
        "altup.active_idx": 0,
        "altup.num_inputs": 4,
        "embedding_length_per_layer_input": 32,
        "activation_sparsity_scale": np.array([0.5, 0, -1, *2 * [-np.inf]], np.float32),
        "final_logit_softcapping": 30.0,
        "rope.freq_base": 1e6,
    },
    "t5encoder": {"attention.relative_buckets_count": 32},
    "gemma-embedding": {"attention.sliding_window": 50, "block_count": 7},
    "gpt-oss": {
        **EXPERTS,
        "attention.sliding_window": 50,
        **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.freq_base": 1.5e5},
    },
    "qwen2moe": {**EXPERTS, "expert_shared_feed_forward_length": 256},
    "qwen3moe": {**EXPERTS, "expert_used_count": 3, "leading_dense_block_count": 1},
    "qwen3vlmoe": {**EXPERTS, "expert_used_count": 8},
    "olmoe": {**EXPERTS, "expert_used_count": 1},
    "dots1": {**EXPERTS, "leading_dense_block_count": 1, "expert_shared_count": 2},
    "glm4moe": {
        **EXPERTS,
        "rope.dimension_count": 32,
        "expert_gating_func": 2,
        "expert_group_count": 4,
        "expert_group_used_count": 2,
    },
    "minimax-m2": {**EXPERTS, "rope.dimension_count": 32},
    "hy_v3": {**EXPERTS, "expert_shared_feed_forward_length": 256},
    "exaone-moe": {**EXPERTS, "attention.sliding_window": 50, "block_count": 4},
    "ernie4_5-moe": {**EXPERTS, "interleave_moe_layer_step": 2},
    "lfm2moe": {
        **EXPERTS,
        "block_count": 3,
        "attention.head_count_kv": np.array([0, 2, 0]),
        "shortconv.l_cache": 3,
        "leading_dense_block_count": 1,
    },
    "granitemoe": {
        **EXPERTS,
        "expert_shared_feed_forward_length": 512,
        "expert_weights_scale": 2.5,
        "embedding_scale": 6.0,
        "logit_scale": 4.0,
        "residual_scale": 0.4,
    },
    "lfm2": {
        "block_count": 3,
        "attention.head_count_kv": np.array([0, 2, 0]),
        "shortconv.l_cache": 3,
    },
    "qwen35": DELTA,
    "qwen35moe": {**DELTA, **EXPERTS, "expert_shared_feed_forward_length": 256},
    "qwen3next": {**DELTA, **EXPERTS, "expert_shared_feed_forward_length": 256},
    "phi3": {"rope.scaling.attn_factor": 1.1, "rope.scaling.original_context_length": 64},
    "granite": {
        "attention.scale": 0.2,
        "embedding_scale": 6.0,
        "residual_scale": 0.4,
        "logit_scale": 4.0,
    },
    "smollm3": {"block_count": 4},
    "olmo": {"attention.clamp_kqv": 1.5},
    "olmo2": {"attention.sliding_window": 50, "block_count": 4},
    "gptneox": {"use_parallel_residual": True, "rope.dimension_count": 16},
    "phi2": {"rope.dimension_count": 16},
    "nemotron": {"rope.dimension_count": 16},
    "stablelm": {"rope.dimension_count": 16},
    "command-r": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, "attention.sliding_window": 50, "block_count": 4},
    "cohere2moe": {
        **EXPERTS,
        "logit_scale": 0.25,
        "attention.sliding_window": 50,
        "block_count": 4,
        "leading_dense_block_count": 1,
        "expert_shared_feed_forward_length": 256,
    },
    "exaone4": {"attention.sliding_window": 50, "block_count": 4},
    "hunyuan-moe": {**EXPERTS, "expert_shared_feed_forward_length": 256},
    "apertus": {
        "xielu.alpha_n": np.array([0.4, 0.7], np.float32),
        "xielu.alpha_p": np.array([0.9, -0.2], np.float32),
        "xielu.beta": 0.5,
        "xielu.eps": -1e-6,
    },
    "mpt": {"attention.max_alibi_bias": 8.0, "attention.clamp_kqv": 1.5},
    "dbrx": {**EXPERTS, "attention.clamp_kqv": 1.5},
    "mellum": {**EXPERTS, "attention.sliding_window": 50, "block_count": 4},
    "mimo2": {
        **EXPERTS,
        "attention.sliding_window": 50,
        "attention.sliding_window_pattern": np.array([True, False]),
        "attention.head_count_kv": np.array([4, 2]),
        "attention.key_length": 48,
        "attention.value_length": 32,
        "attention.value_scale": 0.7,
        "rope.dimension_count": 16,
        "rope.freq_base_swa": 5000.0,
    },
    "phimoe": {**EXPERTS, "rope.scaling.original_context_length": 64},
    "llama4": {
        **EXPERTS,
        "expert_used_count": 1,
        "block_count": 4,
        "interleave_moe_layer_step": 2,
        "attention.chunk_size": 40,
        "attention.temperature_length": 16,
    },
    "laguna": {
        **EXPERTS,
        "block_count": 4,
        "attention.sliding_window": 50,
        "attention.head_count": np.array([4, 8, 8, 8]),
        "attention.key_length": 64,
        "rope.dimension_count": 32,
        "rope.dimension_count_swa": 64,
        "expert_shared_feed_forward_length": 256,
    },
    "afmoe": {
        **EXPERTS,
        "block_count": 4,
        "attention.sliding_window": 50,
        "leading_dense_block_count": 1,
        "expert_shared_count": 1,
    },
    "modern-bert": {"block_count": 4, "attention.sliding_window": 50, "rope.freq_base_swa": 5e3},
    "mamba": {
        **MAMBA,
        "attention.head_count": 0,
        "feed_forward_length": 0,
        "ssm.dt_b_c_rms": True,
    },
    "mamba2": {**MAMBA2, "attention.head_count": 0, "feed_forward_length": 0},
    "jamba": {**EXPERTS, **MAMBA, "attention.head_count_kv": SECOND},
    "granitehybrid": {
        **EXPERTS,
        **MAMBA2,
        "attention.head_count_kv": SECOND,
        "expert_shared_feed_forward_length": 256,
        "rope.scaling.finetuned": False,
        "embedding_scale": 6.0,
        "logit_scale": 4.0,
        "residual_scale": 0.4,
    },
    "falcon-h1": MAMBA2,
    "nemotron_h": {
        **MAMBA2,
        "attention.head_count_kv": SECOND,
        "feed_forward_length": np.array([0, 0, 512]),
    },
    "nemotron_h_moe": {
        **EXPERTS,
        **MAMBA2,
        "attention.head_count_kv": SECOND,
        "feed_forward_length": np.array([0, 0, 256]),
        "moe_latent_size": 256,
        "expert_shared_feed_forward_length": 256,
    },
    "deepseek2": {
        **EXPERTS,
        **LATENT,
        "expert_gating_func": 2,
        "expert_group_count": 4,
        "expert_group_used_count": 2,
        "expert_shared_count": 1,
        "leading_dense_block_count": 1,
    },
    "mistral4": {**EXPERTS, **LATENT, "attention.temperature_scale": 0.1},
    "glm-dsa": {
        **EXPERTS,
        **LATENT,
        "rope.scaling.type": "none",
        "attention.indexer.top_k": 4096,
        "expert_shared_count": 1,
    },
    "deepseek32": {
        **EXPERTS,
        **LATENT,
        "attention.indexer.top_k": 4096,
        "expert_gating_func": 2,
        "expert_shared_count": 1,
    },
    "plm": {
        "attention.head_count_kv": 4,
        "attention.kv_lora_rank": 64,
        "attention.key_length": 80,
        "attention.value_length": 64,
        "rope.dimension_count": 16,
    },
    "deepseek": {**EXPERTS, "leading_dense_block_count": 1, "expert_shared_count": 1},
    "bailingmoe": {**EXPERTS, "expert_shared_count": 1, "expert_weights_norm": True},
    "bailingmoe2": {
        **EXPERTS,
        "leading_dense_block_count": 1,
        "expert_shared_count": 1,
        "expert_gating_func": 2,
        "expert_weights_norm": True,
        "expert_weights_scale": 2.5,
    },
    "qwen": {"attention.head_count_kv": 4, "feed_forward_length": 1024},
    "jina-bert-v2": {"attention.head_count_kv": 4},
    "refact": {"attention.head_count_kv": 1},
    "jais": {"attention.head_count_kv": 4, "attention.max_alibi_bias": 8.0},
    "deci": {
        "block_count": 5,
        "attention.head_count": np.array([4, 0, 0, 4, 4]),
        "attention.head_count_kv": np.array([2, 0, 0, 0, 2]),
        "attention.key_length": 64,
        "feed_forward_length": np.array([512, 0, 256, 512, 512]),
    },
    "openelm": {
        "attention.head_count": np.array([4, 6]),
        "attention.head_count_kv": np.array([2, 3]),
        "attention.key_length": 64,
        "feed_forward_length": np.array([512, 256]),
    },
    "granite_swa": {
        "attention.sliding_window": 50,
        "attention.sliding_window_pattern": np.array([True, False]),
        "attention.rope_pattern": np.array([True, False]),
        "logit_scale": 4.0,
        "residual_scale": 0.4,
    },
    "nomic-bert-moe": {**EXPERTS, "expert_feed_forward_length": 512, "moe_every_n_layers": 2},
    "smallthinker": {
        **EXPERTS,
        "block_count": 5,
        "attention.sliding_window": 50,
        "expert_gating_func": 2,
    },
    "arctic": {"expert_count": 8, "expert_used_count": 2},
    "hunyuan_vl": {"rope.dimension_sections": np.array([16, 8, 8, 0], np.int32)},
    "paddleocr": {"rope.dimension_sections": np.array([16, 8, 8, 0], np.int32)},
    "plamo3": {
        "attention.sliding_window": 50,
        "attention.sliding_window_pattern": np.array([True, False]),
    },
    "step35": {
        **EXPERTS,
        "leading_dense_block_count": 1,
        "expert_shared_feed_forward_length": 256,
        "attention.head_count": np.array([4, 8]),
        "attention.key_length": 64,
        "attention.sliding_window": 50,
        "attention.sliding_window_pattern": np.array([True, False]),
        "swiglu_clamp_exp": np.array([0.0, 0.8], np.float32),
        "swiglu_clamp_shexp": np.array([0.0, 0.9], np.float32),
    },
    "minicpm3": {
        "attention.head_count_kv": 4,
        "attention.q_lora_rank": 64,
        "attention.kv_lora_rank": 64,
        "attention.key_length": 80,
        "attention.value_length": 64,
        "rope.dimension_count": 16,
        "embedding_scale": 6.0,
        "residual_scale": 0.4,
        "logit_scale": 4.0,
    },
}


class _Wished:
    """The names of tensors that a file could have: those that fit a pattern."""

    def __init__(self, patterns):
        self.patterns = patterns

    def __contains__(self, name):
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)


def tensor_shapes(plan):
    """Return name -> shape for every tensor of a plan."""
    values = {step.tap: step.shape for step in plan}
    shapes, experts = {}, 0
    for step in plan:
        if step.op == "route_ids":
            experts = values[step.reads[0]][0]
        reads = [values.get(name) for name in step.reads]
        for i, name in enumerate(step.weights):
            if name is not None:
                shapes[name] = _shape(step, i, reads, experts)
    return shapes


def _shape(step, i, reads, experts):
    numbers = {number.name: int(number.value) for number in step.numbers if number.value < 2**31}
    if step.op == "scores":
        return numbers["buckets"], step.shape[0]
    if step.op == "embed":
        return numbers["vocabulary"], numbers["width"]
    if step.op == "linear":
        rows = numbers["rows"] or max(numbers["heads"], 1) * numbers["size"]
        return ((rows, math.prod(reads[0])), (rows,), (1,))[i]
    if step.op in ("norm", "layer_norm") and numbers["axes"]:
        return step.shape[-numbers["axes"] :]
    if step.op == "norm":
        return (math.prod(step.shape[len(reads[1]) :]),)
    if step.op == "layer_norm":
        return (step.shape[-1],)
    if step.op == "rope":
        return (numbers["rotated"] // 2,)
    if step.op == "softmax":
        return (step.shape[0],)
    if step.op == "scale":
        return (numbers["size"],)
    if step.op == "head_linear":
        count, rows = step.shape[0], numbers["rows"]
        return ((count, rows, reads[0][-1]), (count, rows), (count,))[i]
    if step.op == "scan_channels":
        return ((*step.shape, reads[2][0]), step.shape)[i]
    if step.op in ("scan", "softplus"):
        return (step.shape[0],)
    if step.op == "experts":
        count, rows = experts, numbers["rows"]
        return ((count, rows, reads[0][-1]), (count, rows), (count,))[i]
    if step.op == "route_ids":
        return reads[0]
    if step.op == "conv":
        channels = math.prod(step.shape)
        return ((channels, numbers["taps"]), (channels,))[i]
    if step.op == "decay":
        return (math.prod(step.shape),)
    raise KeyError(step.op)


def random_architecture(
    architecture, type_name="F32", *, width=256, heads=4, kv_heads=2, ffn=512, vocab=320, seed=0,
    context=2048, layers=2, metadata=None, parts=None, types=None,
):  # fmt: skip
    """Return a random model as (metadata, tensors), ready for `write_gguf`.

    Matrices are N(0, 1 / fan-in) of the given type, norm weights 1 + 0.3 N, other vectors 0.3 N.
    `types` maps patterns of tensor names to other types. `metadata` has whole keys, `parts` are
    patterns of names of optional tensors.
    """
    random = np.random.default_rng(seed)
    keys = {
        "block_count": layers,
        "context_length": context,
        "embedding_length": width,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        "vocab_size": vocab,
    }
    keys |= KEYS.get(architecture, {})
    metadata = {
        "general.architecture": architecture,
        "general.name": f"random {architecture}",
        **{Reader({}, architecture).full(key): value for key, value in keys.items()},
        **(metadata or {}),
    }
    row = ARCHITECTURES[architecture]
    wished = _Wished(PARTS.get(architecture, _USUAL) if parts is None else parts)
    first = {f"dummy.{i}": None for i in range(keys["block_count"])}
    first["token_embd.weight"] = np.empty((vocab, width))
    config = read_config(Reader(metadata, architecture), first, row)
    plan = make_plan(config, wished, metadata)
    tensors = {}
    for name, shape in tensor_shapes(plan).items():
        matrix = len(shape) > 1 and "norm" not in name and not name.endswith(".bias")
        if name.endswith("ssm_a"):  # negative, or else the state grows without limit
            values = -random.uniform(0.02, 0.4, shape)
        elif matrix:
            std = 1.0 if "embd" in name else shape[-1] ** -0.5
            values = std * random.standard_normal(shape)
        elif "rope_f" in name:
            values = 1 + random.uniform(0, 2, shape)
        else:
            values = ("norm" in name and "bias" not in name) + 0.3 * random.standard_normal(shape)
        patterns = (types or {}).items()
        chosen = next((t for p, t in patterns if fnmatch.fnmatchcase(name, p)), type_name)
        kind = chosen if matrix and shape[-1] % 256 == 0 and "position" not in name else "F32"
        tensors[name] = tinyllm.Weight(name, shape, kind, _raw(random, values, kind))
    return metadata, tensors


def _raw(random, values, kind):
    if kind in models.QUANTIZABLE:
        return models.quantize(values, kind).tobytes()
    return models.random_blocks(random, values.shape, kind, values.std()).tobytes()


def random_model(directory, architecture, type_name="F32", *, threads=2, **options):
    """Return a loaded random model of an architecture."""
    path = directory / f"{architecture}.gguf"
    tinyllm.write_gguf(path, *random_architecture(architecture, type_name, **options))
    return tinyllm.load(path, threads=threads)
