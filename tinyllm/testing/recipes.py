"""Random weights for every architecture of the table, with all the parts that it may have.

Which tensors a model needs follows from its plan. The plan is built for a file that has every
tensor which the builder asks about and which `PARTS` names, and then each tensor of the plan gets
its shape from the step that uses it.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from .._core import Weight
from ..architectures.plan import ForwardPlan, Step
from ..architectures.reader import Reader
from ..architectures.table import read_halves
from ..base.numeric import Float64

__all__ = ["KEYS", "PARTS", "Recipe", "float_bytes", "random_weights", "tensor_shapes"]

Shape = tuple[int, ...]

#: From random numbers, values and the name of a tensor type to the bytes of the tensor.
Encoder = Callable[[np.random.Generator, Float64, str], bytes]

#: Optional tensors that the random models have, as patterns of names.
_USUAL = ("output.weight",)
PARTS: dict[str, tuple[str, ...]] = {
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
    "t5": ("*.0.attn_rel_b.weight", "*.attn_o.weight", "*.1.ffn_gate.weight", "output.weight"),
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

EXPERTS: dict[str, Any] = {
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_feed_forward_length": 256,
}
DELTA: dict[str, Any] = {
    "block_count": 4,
    "attention.key_length": 64,
    "rope.dimension_count": 16,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 32,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 128,
}

LATENT: dict[str, Any] = {
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
MAMBA: dict[str, Any] = {
    "block_count": 3,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.inner_size": 256,
    "ssm.time_step_rank": 8,
}
MAMBA2 = {**MAMBA, "ssm.group_count": 2}
RWKV: dict[str, Any] = {
    "block_count": 3,
    "attention.head_count": 0,
    "attention.decay_lora_rank": 32,
    "attention.iclr_lora_rank": 32,
    "attention.value_residual_mix_lora_rank": 16,
    "wkv.head_size": 64,
}
SECOND = np.array([0, 2, 0])  # of three blocks, only the second one has attention

#: Keys besides the usual ones. Windows are shorter than the contexts of the tests.
KEYS: dict[str, dict[str, Any]] = {
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
    "t5": {"attention.relative_buckets_count": 32, "decoder_start_token_id": 0},
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
    "rwkv7": {**RWKV, "attention.gate_lora_rank": 64},
    "arwkv7": {**RWKV, "token_shift_count": 1},
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


class _Wished(Mapping[str, Any]):
    """The tensors that a file could have: those that fit a pattern, and the known ones."""

    def __init__(self, patterns: tuple[str, ...], known: Mapping[str, Any]) -> None:
        self._patterns = patterns
        self._known = known

    def __contains__(self, name: object) -> bool:
        return any(fnmatch.fnmatchcase(str(name), pattern) for pattern in self._patterns)

    def __getitem__(self, name: str) -> Any:
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def tensor_shapes(plan: ForwardPlan) -> dict[str, Shape]:
    """Return the shape of every tensor of a plan, by name.

    Parameters
    ----------
    plan : ForwardPlan

    Returns
    -------
    dict of str to tuple of int

    Examples
    --------
    >>> import tinyllm as tl
    >>> from tinyllm.testing.recipes import tensor_shapes
    >>> model = tl.load()
    >>> shapes = tensor_shapes(model.steps)
    >>> all(shapes[name] == weight.shape for name, weight in model.weights.items())
    True
    """
    values = {step.tap: step.shape for step in plan}
    shapes: dict[str, Shape] = {}
    experts = 0
    for step in plan:
        if step.op == "route_ids":
            experts = values[step.reads[0]][0]
        reads = [values.get(name, ()) for name in step.reads]
        for i, name in enumerate(step.weights):
            if name is not None:
                shapes[name] = _shape(step, i, reads, experts)
    return shapes


def _shape(step: Step, i: int, reads: list[Shape], experts: int) -> Shape:
    """Return the shape of weight `i` of a step."""
    numbers = {number.name: int(number.value) for number in step.numbers if number.value < 2**31}
    if step.op == "scores":
        return numbers["buckets"], step.shape[0]
    if step.op == "embed":
        return numbers["vocabulary"], numbers["width"]
    if step.op == "linear":
        rows = numbers["rows"] or max(numbers["heads"], 1) * numbers["size"]
        return ((rows, math.prod(reads[0])), (rows,), (1,))[i]
    if step.op == "layer_norm" and step.tap.endswith("time_mix_ln"):  # as llama.cpp has it
        return (math.prod(step.shape),)
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
    if step.op in ("head_linear", "experts"):
        count, rows = experts if step.op == "experts" else step.shape[0], numbers["rows"]
        return ((count, rows, reads[0][-1]), (count, rows), (count,))[i]
    if step.op == "scan_channels":
        return ((*step.shape, reads[2][0]), step.shape)[i]
    if step.op == "shift":  # as llama.cpp has it
        return (*((numbers["parts"], 1, 1) if numbers["parts"] else ()), step.shape[-1])
    if step.op in ("scan", "softplus"):
        return (step.shape[0],)
    if step.op == "route_ids":
        return reads[0]
    if step.op == "conv":
        channels = math.prod(step.shape)
        return ((channels, numbers["taps"]), (channels,))[i]
    if step.op == "decay":
        return (math.prod(step.shape),)
    raise KeyError(step.op)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a random model has.

    Attributes
    ----------
    layers : int or None
        Number of blocks. None: as many as the architecture needs to show all of its kinds.
    width, heads, kv_heads, ffn, vocab, context : int
    seed : int
    type : str
        The tensor type of matrices whose rows are multiples of 256. Others are F32.
    types : mapping of str to str
        Other types, by patterns of tensor names.
    metadata : mapping of str to object
        Further keys of the file, in full.
    parts : tuple of str or None
        Patterns of the names of optional tensors. None: those of `PARTS`.
    """

    layers: int | None = None
    width: int = 256
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 512
    vocab: int = 320
    context: int = 2048
    seed: int = 0
    type: str = "F32"
    types: Mapping[str, str] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parts: tuple[str, ...] | None = None

    def keys(self, architecture: str) -> dict[str, Any]:
        """Return the keys of a file without the prefix of the architecture."""
        keys: dict[str, Any] = {
            "block_count": 2,
            "context_length": self.context,
            "embedding_length": self.width,
            "feed_forward_length": self.ffn,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.layer_norm_epsilon": 1e-5,
            "vocab_size": self.vocab,
        }
        keys |= KEYS.get(architecture, {})
        if self.layers is not None:
            blocks = keys["block_count"]
            lists = [k for k, v in keys.items() if isinstance(v, np.ndarray) and len(v) == blocks]
            if lists and self.layers != blocks:
                raise ValueError(
                    f"layers is {self.layers}; expected {blocks} for {architecture}, whose random "
                    f"model states {lists[0]} for each block"
                )
            keys["block_count"] = self.layers
        return keys


def random_weights(
    architecture: str, recipe: Recipe, encode: Encoder
) -> tuple[dict[str, Any], dict[str, Weight]]:
    """Return a random model as metadata and tensors, ready for `write_gguf`.

    Matrices are N(0, 1 / fan-in), norm weights 1 + 0.3 N, other vectors 0.3 N.

    Parameters
    ----------
    architecture : str
        A key of `ARCHITECTURES`.
    recipe : Recipe
    encode : callable
        Gives the bytes of a tensor from a generator of random numbers, its values and its type.

    Returns
    -------
    metadata : dict of str to object
    tensors : dict of str to Weight

    Examples
    --------
    >>> from tinyllm.testing.recipes import Recipe, float_bytes, random_weights
    >>> metadata, tensors = random_weights("qwen3", Recipe(layers=1), float_bytes)
    >>> tensors["blk.0.attn_q_norm.weight"].shape
    (64,)
    """
    random = np.random.default_rng(recipe.seed)
    keys = recipe.keys(architecture)
    metadata = {
        "general.architecture": architecture,
        "general.name": f"random {architecture}",
        **{Reader({}, architecture).full(key): value for key, value in keys.items()},
        **recipe.metadata,
    }
    parts = PARTS.get(architecture, _USUAL) if recipe.parts is None else recipe.parts
    first: dict[str, Any] = {f"dummy.{i}": None for i in range(keys["block_count"])}
    first["token_embd.weight"] = np.empty((recipe.vocab, recipe.width))
    wished = _Wished(parts, first)
    shapes: dict[str, Shape] = {}
    for _, plan in read_halves(metadata, wished):
        shapes |= tensor_shapes(plan)
    tensors = {}
    for name, shape in shapes.items():
        if name.startswith("source."):  # made by the encoder
            continue
        values, matrix = _values(random, name, shape)
        chosen = next(
            (t for p, t in recipe.types.items() if fnmatch.fnmatchcase(name, p)), recipe.type
        )
        kind = chosen if matrix and shape[-1] % 256 == 0 and "position" not in name else "F32"
        tensors[name] = Weight(name, shape, kind, encode(random, values, kind))
    return metadata, tensors


def _values(random: np.random.Generator, name: str, shape: Shape) -> tuple[Float64, bool]:
    """Return the values of a tensor, and whether it is a matrix."""
    matrix = len(shape) > 1 and "norm" not in name and not name.endswith(".bias")
    if name.endswith("ssm_a"):  # negative, or else the state grows without limit
        values = -random.uniform(0.02, 0.4, shape)
    elif "lerp" in name:  # shares, and no matrix
        values, matrix = random.uniform(0, 1, shape), False
    elif matrix:
        std = 1.0 if "embd" in name else shape[-1] ** -0.5
        values = std * random.standard_normal(shape)
    elif "rope_f" in name:
        values = 1 + random.uniform(0, 2, shape)
    else:
        values = ("norm" in name and "bias" not in name) + 0.3 * random.standard_normal(shape)
    return values, matrix


def float_bytes(random: np.random.Generator, values: Float64, kind: str) -> bytes:
    """Return the bytes of a tensor of type F32, F16 or BF16.

    Raises
    ------
    ValueError
        If the type is another one.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.testing.recipes import float_bytes
    >>> float_bytes(np.random.default_rng(0), np.ones(1), "BF16").hex()
    '803f'
    """
    floats = np.ascontiguousarray(values, "<f4")
    if kind == "F32":
        return floats.tobytes()
    if kind == "F16":
        return floats.astype("<f2").tobytes()
    if kind == "BF16":
        bits = floats.view("<u4")
        rounded: bytes = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
        return rounded
    raise ValueError(f"type is {kind!r}; expected F32, F16 or BF16")
