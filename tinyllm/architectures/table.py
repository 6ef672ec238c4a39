"""The supported architectures, one row each, and the plan of a model file.

A row describes what llama.cpp computes for the architecture of that name (llama.cpp, src/models).
Rows were checked against the Hugging Face classes.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..errors import FormatError, UnsupportedError, printable
from . import decoders, encoders, gemma3n, gemma4
from .arch import Arch, Window
from .blocks import (
    model,
    normed_embedding,
    one_branch,
    parallel,
    parallel_by_key,
    parallel_by_norms,
    serial,
    some_branches,
)
from .builder import Builder
from .config import Config, read_config
from .experts import (
    early_router,
    experts,
    experts_averaged,
    experts_beside_block,
    experts_by_tensor,
    experts_with_gated_shared,
    experts_with_weighted_input,
    gated_or_experts,
    is_dense,
    plain_or_experts,
)
from .feed_forward import fused, gated, gated_half, gated_or_plain, plain, xielu
from .keys import check_keys
from .latent import latent_attention, latent_attention_of_few, latent_scale
from .mamba import attention_and_mamba2, mamba, mamba2, mamba2_or_attention, mamba_or_attention
from .mixers import attention, attention_or_matrix, output_gated_attention
from .plan import ForwardPlan
from .reader import Reader
from .recurrent import conv_or_attention, delta_or_attention
from .rwkv import channel_mix, time_mix

__all__ = ["ARCHITECTURES", "MISSING", "find", "make_plan", "read_halves", "read_model"]

QK_NORMS = ("attn_q_norm", "attn_k_norm")

LLAMA = Arch(block=serial, mixer=attention, ffn=gated, rope="pairs")
HALVES = dataclasses.replace(LLAMA, rope="halves")
GRANITE = dataclasses.replace(
    LLAMA, rotated=lambda b: b.keys.flag("rope.scaling.finetuned", True), logit_scale="over"
)
QWEN2 = dataclasses.replace(HALVES, biases=("attn_q", "attn_k", "attn_v"))
QWEN3 = dataclasses.replace(HALVES, required=QK_NORMS)
GEMMA = dataclasses.replace(HALVES, act="gelu_tanh", embed_scale="sqrt_width")
GEMMA3 = dataclasses.replace(
    GEMMA,
    post_norms=True,
    window=Window(every=6, base=10000.0, scaled=False),
    required=QK_NORMS,
)
GPT = dataclasses.replace(HALVES, norm="layer", ffn=plain, act="gelu_tanh")
COHERE = dataclasses.replace(
    LLAMA, norm="layer", block=parallel, qk_norm="heads", optional=QK_NORMS
)
BERT = dataclasses.replace(
    HALVES,
    embedding=encoders.embedding,
    block=encoders.post_norm_block,
    head=encoders.last_stream,
    norm="layer",
    causal=False,
    optional=("token_types",),
)
LFM2 = dataclasses.replace(
    QWEN3, mixer=conv_or_attention, output_norm="token_embd_norm", zeros=True
)
LATENT = dataclasses.replace(
    LLAMA, mixer=latent_attention, scale=latent_scale, latent=True, normalize=False
)
DSA = dataclasses.replace(
    LATENT, mixer=latent_attention_of_few, ffn=experts, routing="sigmoid", normalize=False
)
MAMBA = dataclasses.replace(
    LLAMA,
    block=one_branch,
    mixer=mamba,
    rope="none",
    zeros=True,
)
NEMOTRON_H = dataclasses.replace(
    MAMBA, mixer=mamba2_or_attention, ffn=plain, act="relu2", required=("ssm_norm",)
)
BLOOM = dataclasses.replace(GPT, rope="none", embedding=normed_embedding, alibi=lambda b: 8.0)
T5_ENCODER = dataclasses.replace(
    LLAMA,
    head=encoders.last_encoder_norm,
    ffn=gated_or_plain,
    rope="none",
    scale=lambda b: 1.0,
    buckets=True,
    blocks="enc.blk",
    causal=False,
)
T5_DECODER = dataclasses.replace(
    T5_ENCODER,
    block=decoders.block,
    head=decoders.head,
    blocks="dec.blk",
    layers="decoder_block_count",
    causal=True,
)
QWEN35 = dataclasses.replace(
    QWEN3, mixer=delta_or_attention, ffn_norm="post_attention_norm", tiled=True
)


def _scale_by_width(layers: int) -> Callable[[Builder], float]:
    """Return Gemma's scale of scores: in models of that many blocks 1 / sqrt(width / heads)."""

    def scale(b: Builder) -> float:
        c = b.config
        size = c.width / b.of_layer(c.heads) if c.layers == layers else c.head_size
        return 1 / math.sqrt(size)

    return scale


#: The rows, by ``general.architecture``.
ARCHITECTURES: dict[str, Arch] = {
    "llama": dataclasses.replace(LLAMA, ffn=gated_or_experts),
    "mistral3": dataclasses.replace(LLAMA, ffn=gated_or_experts),
    "qwen2": QWEN2,
    "qwen2vl": QWEN2,
    "qwen3": QWEN3,
    "qwen3vl": QWEN3,
    "gemma": GEMMA,
    "gemma2": dataclasses.replace(
        GEMMA,
        post_norms=True,
        window=Window(every=2, size=4096),
        caps=(50.0, 30.0),
        scale=_scale_by_width(46),
    ),
    "gemma3": dataclasses.replace(GEMMA3, scale=_scale_by_width(62)),
    "gemma4": dataclasses.replace(
        GEMMA3,
        embedding=gemma4.embedding,
        block=gemma4.block,
        mixer=gemma4.attention,
        scale=lambda b: 1.0,
    ),
    "gemma3n": dataclasses.replace(
        GEMMA3,
        embedding=gemma3n.embedding,
        block=gemma3n.block,
        head=gemma3n.head,
        scale=lambda b: 1.0,
    ),
    "gemma-embedding": dataclasses.replace(GEMMA3, head=encoders.last_norm, causal=False),
    "bert": dataclasses.replace(
        BERT, ffn=plain, rope="none", act="gelu", required=("position_embd",)
    ),
    "nomic-bert": BERT,
    "phi3": dataclasses.replace(HALVES, ffn=fused),
    "granite": GRANITE,
    "smollm3": dataclasses.replace(LLAMA, rotated=lambda b: (b.layer + 1) % 4 != 0),
    "olmo": dataclasses.replace(LLAMA, norm="layer", norm_weights=False),
    "olmo2": dataclasses.replace(
        HALVES,
        pre_norms=False,
        post_norms=True,
        qk_norm="row",
        window=Window(every=4, scaled=False),
        required=QK_NORMS,
    ),
    "gpt2": dataclasses.replace(GPT, rope="none", required=("position_embd",)),
    "gptneox": dataclasses.replace(GPT, act="gelu", block=parallel_by_key, required=("ffn_norm",)),
    "phi2": dataclasses.replace(GPT, block=parallel),
    "falcon": dataclasses.replace(GPT, act="gelu", block=parallel, optional=("attn_norm_2",)),
    "starcoder2": GPT,
    "stablelm": dataclasses.replace(
        HALVES,
        norm="layer",
        block=parallel_by_norms,
        qk_norm="heads",
        optional=("ffn_norm", *QK_NORMS),
    ),
    "seed_oss": dataclasses.replace(QWEN2, ffn_norm="post_attention_norm"),
    "arcee": dataclasses.replace(LLAMA, ffn=plain, act="relu2"),
    "ernie4_5": LLAMA,
    "nemotron": dataclasses.replace(GPT, act="relu2"),
    "jais2": dataclasses.replace(GPT, act="relu2"),
    "starcoder": dataclasses.replace(GPT, rope="none", required=("position_embd",)),
    "eurobert": dataclasses.replace(HALVES, head=encoders.last_norm, causal=False),
    "chatglm": dataclasses.replace(LLAMA, ffn=fused, biases=("attn_q", "attn_k", "attn_v")),
    "glm4": dataclasses.replace(LLAMA, ffn=fused, post_norms=True),
    "exaone4": dataclasses.replace(
        QWEN3,
        pre_norms=False,
        post_norms=True,
        window=Window(every=4),
        rotated=lambda b: b.local or not b.windowed,
    ),
    "hunyuan-dense": dataclasses.replace(QWEN3, late_qk_norm=True),
    "hunyuan-moe": dataclasses.replace(QWEN3, late_qk_norm=True, ffn=experts),
    "bitnet": dataclasses.replace(HALVES, act="relu2", required=("attn_sub_norm", "ffn_sub_norm")),
    "apertus": dataclasses.replace(QWEN3, ffn=xielu),
    "bloom": BLOOM,
    "mpt": dataclasses.replace(
        GPT,
        rope="none",
        act="gelu",
        alibi=lambda b: 0.0,
        qk_norm="layer",
        optional=("position_embd", *QK_NORMS),
    ),
    "mamba": MAMBA,
    "mamba2": dataclasses.replace(MAMBA, mixer=mamba2, required=("ssm_norm",)),
    "jamba": dataclasses.replace(
        LLAMA,
        mixer=mamba_or_attention,
        ffn=experts_by_tensor,
        rope="none",
        zeros=True,
        normalize=False,
        required=("ssm_dt_norm", "ssm_b_norm", "ssm_c_norm"),
    ),
    "granitehybrid": dataclasses.replace(
        GRANITE,
        mixer=mamba2_or_attention,
        ffn=gated_or_experts,
        zeros=True,
        required=("ssm_norm",),
    ),
    "falcon-h1": dataclasses.replace(HALVES, mixer=attention_and_mamba2, optional=("ssm_norm",)),
    "nemotron_h": NEMOTRON_H,
    "nemotron_h_moe": dataclasses.replace(
        NEMOTRON_H, ffn=experts, gated_experts=False, routing="sigmoid"
    ),
    "rwkv7": dataclasses.replace(
        LLAMA,
        embedding=normed_embedding,
        mixer=time_mix,
        ffn=channel_mix,
        rope="none",
        norm="layer",
        ffn_norm="attn_norm_2",
        biases=("token_embd_norm", "attn_norm", "time_mix_ln", "attn_norm_2", "output_norm"),
        zeros=True,
        required=("time_mix_g1", "time_mix_ln"),
    ),
    "arwkv7": dataclasses.replace(
        LLAMA,
        mixer=time_mix,
        rope="none",
        biases=("time_mix_ln",),
        zeros=True,
        optional=("time_mix_g1", "time_mix_ln"),
    ),
    "deepseek2": dataclasses.replace(LATENT, ffn=experts),
    "mistral4": dataclasses.replace(LATENT, ffn=experts),
    "glm-dsa": DSA,
    "deepseek32": DSA,
    "plm": dataclasses.replace(LATENT, ffn=plain, act="relu2"),
    "deepseek": dataclasses.replace(LLAMA, ffn=experts, normalize=False),
    "bailingmoe": dataclasses.replace(LLAMA, ffn=experts, normalize=False),
    "bailingmoe2": dataclasses.replace(QWEN3, ffn=experts, normalize=False),
    "exaone": HALVES,
    "internlm2": LLAMA,
    "xverse": LLAMA,
    "orion": dataclasses.replace(HALVES, norm="layer"),
    "baichuan": dataclasses.replace(
        LLAMA,
        rotated=lambda b: b.config.layers != 40,
        alibi=lambda b: 8.0 if b.config.layers == 40 else 0.0,
    ),
    "qwen": dataclasses.replace(HALVES, ffn=gated_half, biases=("attn_q", "attn_k", "attn_v")),
    "refact": dataclasses.replace(LLAMA, rope="none", alibi=lambda b: 8.0),
    "minicpm": dataclasses.replace(
        LLAMA,
        logit_scale="over",
        scales=lambda c: (12.0, 1.4 / math.sqrt(c.layers), c.width / 256),
    ),
    "codeshell": GPT,
    "jais": dataclasses.replace(
        GPT,
        rope="none",
        ffn=gated,
        act="silu",
        alibi=lambda b: 0.0,
        scale=lambda b: 1 / b.config.head_size,
    ),
    "deci": dataclasses.replace(LLAMA, block=some_branches, mixer=attention_or_matrix, zeros=True),
    "openelm": QWEN3,
    "pangu-embedded": QWEN2,
    "maincoder": dataclasses.replace(LLAMA, required=QK_NORMS, late_qk_norm=True),
    "granite_swa": dataclasses.replace(
        GRANITE,
        ffn=gated_or_experts,
        rotated=lambda b: b.keys.flags(
            "attention.rope_pattern", b.config.layers, (True,) * b.config.layers
        )[b.layer],
        required=("attn_sinks",),
    ),
    "llama-embed": dataclasses.replace(LLAMA, head=encoders.last_norm, causal=False),
    "neo-bert": dataclasses.replace(
        LLAMA, head=encoders.last_encoder_norm, ffn=fused, causal=False
    ),
    "t5encoder": T5_ENCODER,
    "t5": dataclasses.replace(T5_ENCODER, head=decoders.last_source, decoder=T5_DECODER),
    "nomic-bert-moe": dataclasses.replace(
        BERT,
        ffn=plain_or_experts,
        act="gelu",
        normalize=False,
        gated_experts=False,
    ),
    "jina-bert-v2": dataclasses.replace(
        BERT,
        rope="none",
        ffn=fused,
        act="gelu",
        alibi=lambda b: 8.0,
        qk_norm="layer",
        optional=("token_types", "attn_norm_2", *QK_NORMS),
    ),
    "jina-bert-v3": dataclasses.replace(BERT, ffn=plain, act="gelu"),
    "smallthinker": dataclasses.replace(
        HALVES,
        block=early_router,
        act="relu",
        window=Window(every=4, first=True),
        rotated=lambda b: b.layer % 4 != 0 or not b.windowed,
    ),
    "arctic": dataclasses.replace(LLAMA, block=experts_beside_block),
    "plamo": dataclasses.replace(HALVES, block=parallel),
    "plamo3": dataclasses.replace(QWEN3, ffn=fused, post_norms=True),
    "hunyuan_vl": dataclasses.replace(QWEN3, late_qk_norm=True),
    "paddleocr": HALVES,
    "nanbeige": LLAMA,
    "step35": dataclasses.replace(
        HALVES,
        mixer=output_gated_attention,
        ffn=experts,
        routing="sigmoid",
        normalize=False,
        window=Window(scaled=False, rotated=0.5),
        optional=QK_NORMS,
    ),
    "minicpm3": dataclasses.replace(LATENT, rope="halves", logit_scale="over"),
    "modern-bert": dataclasses.replace(
        HALVES,
        embedding=normed_embedding,
        block=encoders.pre_norm_block,
        head=encoders.last_norm,
        ffn=fused,
        norm="layer",
        act="gelu",
        window=Window(every=3, first=True),
        causal=False,
        optional=("attn_norm",),
    ),
    "command-r": COHERE,
    "cohere2": dataclasses.replace(COHERE, window=Window(every=4), rotated=lambda b: b.local),
    "qwen2moe": dataclasses.replace(QWEN2, ffn=experts_with_gated_shared, normalize=False),
    "qwen3moe": dataclasses.replace(QWEN3, ffn=experts),
    "qwen3vlmoe": dataclasses.replace(QWEN3, ffn=experts, experimental=True),
    "olmoe": dataclasses.replace(QWEN3, ffn=experts, qk_norm="row", normalize=False),
    "granitemoe": dataclasses.replace(GRANITE, ffn=experts),
    "gpt-oss": dataclasses.replace(
        HALVES,
        ffn=experts,
        ffn_norm="post_attention_norm",
        act="swiglu_oai",
        window=Window(every=2),
        rounded=False,
        routing="softmax_of_chosen",
        biases=(
            *("attn_q", "attn_k", "attn_v", "attn_output"),
            *("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
        ),
        required=("attn_sinks",),
    ),
    "lfm2": LFM2,
    "lfm2moe": dataclasses.replace(LFM2, ffn=experts, routing="sigmoid"),
    "qwen3next": dataclasses.replace(QWEN35, ffn=experts_with_gated_shared, tiled=False),
    "qwen35": QWEN35,
    "qwen35moe": dataclasses.replace(QWEN35, ffn=experts_with_gated_shared),
    "dots1": dataclasses.replace(QWEN3, ffn=experts),
    "glm4moe": dataclasses.replace(
        HALVES, ffn=experts, ffn_norm="post_attention_norm", optional=QK_NORMS
    ),
    "minimax-m2": dataclasses.replace(QWEN3, ffn=experts, routing="sigmoid", qk_norm="row"),
    "hy_v3": dataclasses.replace(QWEN3, ffn=experts, routing="sigmoid"),
    "exaone-moe": dataclasses.replace(
        QWEN3, ffn=experts, routing="sigmoid", window=Window(every=4), rotated=lambda b: b.local
    ),
    "ernie4_5-moe": dataclasses.replace(LLAMA, ffn=experts),
    "cohere2moe": dataclasses.replace(
        COHERE,
        ffn=experts_averaged,
        routing="sigmoid",
        window=Window(every=4),
        rotated=lambda b: b.local or is_dense(b),
    ),
    "dbrx": dataclasses.replace(HALVES, norm="layer", ffn=experts, ffn_norm="attn_output_norm"),
    "mellum": dataclasses.replace(QWEN3, ffn=experts, window=Window(every=4, scaled=False)),
    "mimo2": dataclasses.replace(HALVES, ffn=experts, routing="sigmoid", optional=("attn_sinks",)),
    "phimoe": dataclasses.replace(
        HALVES, norm="layer", ffn=experts, routing="sparse_mixer", normalize=False
    ),
    "llama4": dataclasses.replace(
        LLAMA,
        ffn=experts_with_weighted_input,
        qk_norm="plain",
        late_qk_norm=True,
        routing="sigmoid",
        normalize=False,
        window=Window(every=4, size=8192, chunked=True),
        temperature=(0.1, 8192.0, 1.0),
        rotated=lambda b: (b.layer + 1) % 4 != 0,
    ),
    "laguna": dataclasses.replace(
        QWEN3,
        mixer=output_gated_attention,
        gate="softplus",
        ffn=experts,
        routing="sigmoid",
        window=Window(every=4, first=True, scaled=False),
    ),
    "afmoe": dataclasses.replace(
        QWEN3,
        mixer=output_gated_attention,
        ffn=experts,
        post_norms=True,
        embed_scale="sqrt_width",
        routing="sigmoid",
        window=Window(every=4),
        rotated=lambda b: b.local,
    ),
}


#: What the other architectures of llama.cpp (src/llama-arch.cpp) need that this version does not
#: have, by name.
MISSING = {
    "grok": "a soft cap of its router",
    "grovemoe": "experts that groups of experts share",
    "muse-glimmer": "norms and caps of its own",
    "spark2_5": "gates and windows of its own",
    "maple": "gates and clamps of its own",
    "talkie": "a skip from the embedding",
    "plamo2": "a Mamba mixer of its own",
    "rwkv6": "RWKV's recurrence",
    "rwkv6qwen2": "RWKV's recurrence",
    "kimi-linear": "Kimi delta attention",
    "kimi-k3": "Kimi delta attention, and attention to earlier blocks",
    "bailingmoe3": "Kimi delta attention",
    "glm5-next": "Kimi delta attention and hyper-connections",
    "minimax-01": "lightning attention",
    "minimax-m3": "attention to chosen blocks of keys",
    "deepseek4": "compressed keys and hyper-connections",
    "dots3note": "an indexer and streams",
    "hy_v4": "hyper-connections",
    "qwen4exp": "hyper-connections and embeddings of several tokens",
    "hrm_text": "loops over its blocks",
    "graniteswitch": "adapters that tokens switch on",
    "dream": "generation by diffusion",
    "llada": "generation by diffusion",
    "llada-moe": "generation by diffusion",
    "rnd1": "generation by diffusion",
    "chameleon": "norms after its branches, and logits without those of images",
    "cogvlm": "weights of their own for images",
    "deepseek2-ocr": "attention of DeepSeek without latent values",
    "wavtokenizer-dec": "speech: it makes sound from tokens",
    "pockettts": "speech: it makes sound from text",
    "qwen3tts": "speech: it makes sound from text",
    "eagle3": "a model whose next tokens it drafts",
    "dflash": "a model whose next tokens it drafts",
    "gemma4-assistant": "a model whose next tokens it drafts",
    "gptj": "a graph, which llama.cpp does not have either",
    "clip": "images: it is the projector of a vision model, not a language model",
}


def find(architecture: Any) -> Arch:
    """Return the row of an architecture.

    Parameters
    ----------
    architecture : str
        ``general.architecture`` of a file.

    Returns
    -------
    Arch

    Raises
    ------
    tinyllm.FormatError
        If it is not a str.
    tinyllm.UnsupportedError
        If the architecture is not supported.

    Examples
    --------
    >>> from tinyllm.architectures.table import find
    >>> find("qwen2").rope
    'halves'
    """
    if not isinstance(architecture, str):
        raise FormatError(
            f"general.architecture is {architecture!r}; expected the name of an architecture",
            field="general.architecture",
            value=architecture,
            expected="the name of an architecture",
        )
    if architecture not in ARCHITECTURES:
        needs = "this"
        if architecture in MISSING:
            needs = f"it needs {MISSING[architecture]}. This"
        raise UnsupportedError(
            f"general.architecture is {architecture!r}; {needs} version supports "
            f"{', '.join(ARCHITECTURES)}. The file's metadata, weights and tokenizer can be read "
            "with tinyllm.GGUF and tinyllm.load_tokenizer"
        )
    return ARCHITECTURES[architecture]


def make_plan(
    config: Any,
    tensors: Collection[str] = (),
    metadata: Mapping[str, Any] | None = None,
    max_context: int = 0,
) -> ForwardPlan:
    """Return the plan of a model's forward pass.

    Parameters
    ----------
    config : Config
    tensors : collection of str
        Names of the file's tensors. They decide which optional parts there are: biases and an
        output matrix.
    metadata : mapping, optional
        The file's keys, so that the plan can name the source of each number.
    max_context : int
        The longest context that the model is loaded for. 0: that of the config.

    Returns
    -------
    ForwardPlan

    Raises
    ------
    tinyllm.UnsupportedError
        If the architecture or its RoPE scaling is not supported.

    Examples
    --------
    >>> import tinyllm
    >>> from tinyllm.architectures.table import make_plan
    >>> model = tinyllm.load()
    >>> len(make_plan(model.config, model.weights)) == len(model.steps)
    True
    """
    return _plan(config, tensors, Reader(metadata or {}, config.architecture), max_context)


def _row(architecture: Any, tensors: Collection[str]) -> Arch:
    """Return the row of a model, or that of its decoder if the tensors have a source for it."""
    row = find(architecture)
    return row.decoder if row.decoder and decoders.source(0)[0] in tensors else row


def _plan(
    config: Any,
    tensors: Collection[str],
    keys: Reader,
    max_context: int,
    row: Arch | None = None,
) -> ForwardPlan:
    row = row or _row(config.architecture, tensors)
    builder = Builder(config, row, tensors, keys, max_context)
    model(builder)
    return ForwardPlan(builder.steps, config.layers)


def read_halves(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], max_context: int = 0
) -> list[tuple[Config, ForwardPlan]]:
    """Return config and plan of a model, and those of its decoder if it has one.

    Parameters
    ----------
    metadata : mapping
        GGUF keys and values.
    tensors : mapping of str to Weight
        With the tensors of a source, the plan of the decoder attends to it.
    max_context : int
        As for `make_plan`.

    Returns
    -------
    list of (Config, ForwardPlan)
        One pair, or those of encoder and decoder.

    Raises
    ------
    tinyllm.FormatError, tinyllm.UnsupportedError
        As for `read_model`, which checks more.

    Examples
    --------
    >>> import tinyllm
    >>> from tinyllm.architectures.table import read_halves
    >>> model = tinyllm.load()
    >>> len(read_halves(model.metadata, model.weights))
    1
    """
    row = find(metadata.get("general.architecture"))
    return _halves(row, Reader(metadata, metadata["general.architecture"]), tensors, max_context)


def _halves(
    row: Arch, read: Reader, tensors: Mapping[str, Any], max_context: int
) -> list[tuple[Config, ForwardPlan]]:
    found = []
    for half in (row, row.decoder) if row.decoder else (row,):
        config = read_config(read, tensors, half)
        found.append((config, _plan(config, tensors, read, max_context, half)))
    return found


def read_model(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Any],
    strict: bool = True,
    max_context: int | None = None,
) -> tuple[Config, ForwardPlan]:
    """Return the config and the plan of a model file.

    Parameters
    ----------
    metadata : mapping
        GGUF keys and values, such as ``tinyllm.GGUF(path).metadata``.
    tensors : mapping of str to Weight
    strict : bool
        If True, a tensor that no step uses is an error. If False, it causes a warning.
    max_context : int, optional
        The longest context that the model is loaded for. Default: that of the file.

    Returns
    -------
    config : Config
    plan : ForwardPlan

    Raises
    ------
    tinyllm.FormatError
        If a key is missing or has an invalid value. ``.field`` names it.
    tinyllm.UnsupportedError
        If the architecture is not supported, or if the file has tensors that no step uses.

    Examples
    --------
    >>> import tinyllm
    >>> from tinyllm.architectures.table import read_model
    >>> model = tinyllm.load()
    >>> read_model(model.metadata, model.weights)[0] == model.config
    True
    """
    arch = find(metadata.get("general.architecture"))
    read = Reader(metadata, metadata["general.architecture"])
    halves = _halves(arch, read, tensors, max_context or 0)
    config, plan = halves[0]
    check_keys(metadata, config.architecture, read.used, config.context_length)
    drafts = range(config.layers, read.integer("block_count"))  # they predict further tokens
    unused = [name for name in plan.unused(tensors) if _block(name) not in drafts]
    for _, other in halves[1:]:
        unused = other.unused(unused)
    if unused:
        shown = ", ".join(unused[:5]) + (f" and {len(unused) - 5} more" if len(unused) > 5 else "")
        message = (
            f"the architecture {config.architecture} does not use the tensors {shown}. The file "
            "probably belongs to another architecture, and results without these tensors would "
            "be wrong"
        )
        if strict:
            raise UnsupportedError(f"{message}; strict=False loads the file anyway")
        warnings.warn(printable(message), stacklevel=3)
    if arch.experimental:
        warnings.warn(
            f"the architecture {config.architecture} is experimental: no other implementation "
            "has confirmed its results",
            stacklevel=3,
        )
    return config, plan


def _block(tensor: str) -> int:
    """Return the number of a tensor's block, or -1."""
    found = re.match(r"blk\.(\d{1,9})\.", tensor)
    return int(found[1]) if found else -1
