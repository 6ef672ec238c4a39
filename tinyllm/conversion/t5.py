"""T5: an encoder and a decoder, or the encoder alone."""

from __future__ import annotations

import dataclasses
import re

from .config import CheckpointConfig
from .family import Family, Keys, Target

__all__ = ["T5"]

_BLOCK = re.compile(r"(encoder|decoder)\.block\.(\d+)\.layer\.(\d+)\.(.+)")


def _locate(source: str) -> tuple[str, str]:
    """Return ``enc.blk.N.`` or ``dec.blk.N.``, and a name that begins with the sublayer."""
    match = _BLOCK.fullmatch(source)
    if match is None:
        return "", source
    part, block, layer, name = match.groups()
    return f"{part[:3]}.blk.{block}.", f"{part}{layer}.{name}"


def _sublayers(part: str, attention: int, ffn: int) -> dict[str, Target]:
    names: dict[str, Target] = {
        f"{part}{attention}.SelfAttention.{theirs}": f"attn_{theirs}" for theirs in "qkvo"
    }
    return {
        **names,
        f"{part}{attention}.SelfAttention.relative_attention_bias": "attn_rel_b",
        f"{part}{attention}.layer_norm": "attn_norm",
        f"{part}{ffn}.DenseReluDense.wi": "ffn_up",
        f"{part}{ffn}.DenseReluDense.wi_0": "ffn_gate",
        f"{part}{ffn}.DenseReluDense.wi_1": "ffn_up",
        f"{part}{ffn}.DenseReluDense.wo": "ffn_down",
        f"{part}{ffn}.layer_norm": "ffn_norm",
    }


_CROSS: dict[str, Target] = {
    **{f"decoder1.EncDecAttention.{theirs}": f"cross_attn_{theirs}" for theirs in "qkvo"},
    "decoder1.EncDecAttention.relative_attention_bias": "cross_attn_rel_b",
    "decoder1.layer_norm": "cross_attn_norm",
}


def _keys(config: CheckpointConfig) -> Keys:
    epsilon = config.number("layer_norm_epsilon", default=1e-6)
    size = config.integer("d_kv")
    return {
        "block_count": config.integer("num_layers"),
        "context_length": config.integer("n_positions", default=512),
        "embedding_length": config.integer("d_model"),
        "feed_forward_length": config.integer("d_ff"),
        "attention.head_count": config.integer("num_heads"),
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_epsilon": epsilon,
        "attention.layer_norm_rms_epsilon": epsilon,
        "attention.relative_buckets_count": config.integer(
            "relative_attention_num_buckets", default=32
        ),
        "vocab_size": config.integer("vocab_size"),
    }


def _decoder_keys(config: CheckpointConfig) -> Keys:
    # the first T5 scales what its output matrix reads; that of version 1.1 is not tied, nor scaled
    tied = config.get("tie_word_embeddings", default=True)
    scaled = config.get("scale_decoder_outputs", default=tied)
    factor: Keys = {"logit_scale": config.width**-0.5} if scaled else {}
    return {
        **factor,
        "decoder_block_count": config.integer(
            "num_decoder_layers", default=config.integer("num_layers")
        ),
        "decoder_start_token_id": config.integer("decoder_start_token_id", default=0),
    }


ENCODER = Family(
    classes=("T5EncoderModel",),
    names={
        "shared": "token_embd",
        "encoder.final_layer_norm": "enc.output_norm",
        **_sublayers("encoder", 0, 1),
    },
    keys=(_keys,),
    common=False,
    rope=False,
    locate=_locate,
    skipped=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),  # shared
)

#: The rows, by ``general.architecture``.
T5: dict[str, Family] = {
    "t5encoder": ENCODER,
    "t5": dataclasses.replace(
        ENCODER,
        classes=(
            "T5ForConditionalGeneration",
            "T5WithLMHeadModel",
            "MT5ForConditionalGeneration",
            "UMT5ForConditionalGeneration",
        ),
        names={
            **ENCODER.names,
            "decoder.final_layer_norm": "dec.output_norm",
            "lm_head": "output",
            **_sublayers("decoder", 0, 2),
            **_CROSS,
        },
        keys=(_keys, _decoder_keys),
    ),
}
