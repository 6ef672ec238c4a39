"""Builders of Gemma 4: per-layer embeddings, shared caches, experts beside a dense network.

Google DeepMind 2026, as in the Hugging Face class ``Gemma4ForCausalLM``.
"""

from __future__ import annotations

import math

from ..errors import wrong
from .builder import Builder
from .experts import chosen_experts
from .feed_forward import gated
from .plan import Number

__all__ = ["attention", "block", "embedding"]


def embedding(b: Builder) -> str:
    """Build the embedding, and the values that each block gets besides the stream. -> (T, D)."""
    x = b.embedding()
    size, layers = _per_layer_size(b), b.config.layers
    if not size:
        return x
    count = Number("heads", layers, "rule: blocks")
    width = b.number("size", size, "embedding_length_per_layer_input")
    own = b.embed("per_layer_token_embd", b.config.vocab_size, width=layers * size)
    own = b.scaled("per_layer_embd_scaled", own, math.sqrt(size), "rule: sqrt(size)")
    from_stream = b.linear("per_layer_model_proj", x, width, count)
    factor = 1 / math.sqrt(b.config.width)
    from_stream = b.scaled("per_layer_proj_scaled", from_stream, factor, "rule: 1/sqrt(width)")
    from_stream = b.norm("per_layer_proj_norm", from_stream)
    both = b.add("per_layer_sum", from_stream, b.heads("per_layer_embd", own, layers, size))
    b.scaled("per_layer_inp", both, 1 / math.sqrt(2), "rule: 1/sqrt(2)")
    return x


def _per_layer_size(b: Builder) -> int:
    size: int = b.keys.integer("embedding_length_per_layer_input", 0, least=0)
    return size


def attention(b: Builder, x: str) -> str:
    """Build attention whose keys and values may be those of an earlier block. (T, D) -> (T, D).

    The last blocks read the cache of the last block of their kind, local or global, that has one.
    Values have a norm without weights. Without ``attn_v`` they are the keys before their norm.
    """
    c = b.config
    heads = b.number("heads", b.of_layer(c.heads), "attention.head_count")
    size, _ = b.head_sizes()
    q = b.rope(
        "attn_q_rope", b.head_norm("attn_q_norm", b.linear("attn_q", x, size, heads, "queries"))
    )
    first_shared = c.layers - _shared_layers(b)
    if b.layer < first_shared:
        k, v = _keys_and_values(b, x)
        b.cache(k, v)
    else:
        source = _last_of_kind(b, first_shared)
        k, v = f"blk.{source}.attn_k_rope", f"blk.{source}.attn_v_norm"
    mix = b.attend(q, k, v)
    return b.linear("attn_output", mix, b.width, role="attn_project")


def _shared_layers(b: Builder) -> int:
    key = "attention.shared_kv_layers"
    count: int = b.keys.integer(key, 0, least=0)
    if count >= b.config.layers:
        raise wrong(f"{b.keys.prefix}{key}", count, f"less than {b.config.layers}, the blocks")
    return count


def _last_of_kind(b: Builder, end: int) -> int:
    """Return the last block before `end` that is local or global as the current one."""
    wanted = b.is_local(b.layer)
    for layer in reversed(range(end)):
        if b.is_local(layer) == wanted:
            return layer
    kind = "local" if wanted else "global"
    raise wrong(
        f"{b.keys.prefix}attention.shared_kv_layers",
        b.config.layers - end,
        f"fewer, because no {kind} block comes before block {b.layer}",
    )


def _keys_and_values(b: Builder, x: str) -> tuple[str, str]:
    kv_heads = b.number("heads", b.of_layer(b.config.kv_heads), "attention.head_count_kv")
    size, value_size = b.head_sizes()
    k = b.linear("attn_k", x, size, kv_heads, "keys")
    v = k
    if b.optional("attn_v.weight"):
        v = b.linear("attn_v", x, value_size, kv_heads, "values")
    v = b.norm("attn_v_norm", v, weights=False)
    return b.rope("attn_k_rope", b.head_norm("attn_k_norm", k)), v


def block(b: Builder, x: str) -> str:
    """Build attention, feed-forward network, per-layer input and a factor. (T, D) -> (T, D)."""
    x = b.same("resid_pre", x)
    mixed = b.norm("post_attention_norm", attention(b, b.norm("attn_norm", x, "attn_input")))
    middle = b.add("resid_mid", x, b.give_role(mixed, "attn_add"))
    out = gated(b, b.norm("ffn_norm", middle, "ffn_input"))
    if b.optional("ffn_gate_inp.weight"):
        out = b.add("ffn_out", b.norm("post_ffw_norm_1", out), _experts(b, middle))
    out = b.give_role(b.norm("post_ffw_norm", out), "ffn_add")
    scaled, size = b.optional("layer_output_scale.weight"), _per_layer_size(b)
    last = "resid_ffn" if scaled or size else "resid_post"
    x = b.add(last, middle, out, "" if last == "resid_ffn" else last)
    if size:
        last = "resid_ple" if scaled else "resid_post"
        x = b.add(last, x, _per_layer_input(b, x, size), "" if scaled else last)
    return b.weighted("resid_post", x, "layer_output_scale", "resid_post") if scaled else x


def _experts(b: Builder, x: str) -> str:
    """Build the experts. Their router reads the stream, with a norm and a scale of its own."""
    routed = b.weighted(
        "ffn_gate_inp_scaled", b.norm("ffn_gate_inp_norm", x, weights=False), "ffn_gate_inp.scale"
    )
    routed = b.scaled(
        "ffn_gate_inp_input", routed, 1 / math.sqrt(b.config.width), "rule: 1/sqrt(width)"
    )
    count = b.number("size", b.keys.integer("expert_count"), "expert_count")
    logits = b.linear("ffn_gate_inp", routed, count, role="router", scaled=False)
    return b.norm("post_ffw_norm_2", chosen_experts(b, b.norm("pre_ffw_norm_2", x), logits))


def _per_layer_input(b: Builder, x: str, size: int) -> str:
    """Build what the embedding of this block adds."""
    own = b.cut("per_layer_inp", "per_layer_inp", 0, b.layer, 1)
    own = b.heads("per_layer_own", own, 0, size)
    gate = b.linear("inp_gate", x, b.number("size", size, "embedding_length_per_layer_input"))
    own = b.act("inp_act", gate, own, role="")
    return b.norm("post_norm", b.linear("proj", own, b.width))
