"""Random models with experts in the place of feed-forward networks."""

import numpy as np

import tinyllm
from testkit import models
from tinyllm.architectures.table import ARCHITECTURES


def stack(random, name, shape, type_name, std):
    """Return a Weight (experts, rows, cols) of random values."""
    if type_name in models.QUANTIZABLE:
        raw = models.quantize(std * random.standard_normal(shape), type_name)
    else:
        raw = models.random_blocks(random, shape, type_name, std)
    return tinyllm.Weight(name, shape, type_name, raw.tobytes())


def random_mixture(
    type_name="F32",
    *,
    architecture="llama",
    experts=8,
    used=2,
    width=256,
    ffn=256,
    shared=0,
    shared_gate=False,
    fused=False,
    biases=False,
    scales=False,
    choice_bias=False,
    down_type=None,
    dense=0,
    layers=2,
    seed=0,
    metadata=None,
    **options,
):
    """Return a random model with experts as (metadata, tensors).

    Parameters
    ----------
    experts, used, ffn : int
        How many there are, how many each token uses, and their width.
    shared : int
        The width of a shared expert. 0: there is none.
    shared_gate : bool
        Whether it has a gate.
    fused : bool
        Whether gate and up lie in one tensor.
    biases, scales, choice_bias : bool
        Whether experts have biases and factors, and whether the choice has a bias.
    down_type : str, optional
        The type of ``ffn_down_exps``. Default: `type_name`.
    dense : int
        How many of the first blocks have no experts.
    metadata, **options
        As for `models.random_llama`.
    """
    row = ARCHITECTURES[architecture]
    keys, tensors = models.random_llama(
        type_name,
        architecture=architecture,
        width=width,
        ffn=ffn,
        layers=layers,
        seed=seed,
        **options,
    )
    random = np.random.default_rng(seed + 1000)
    heads, kv_heads = options.get("heads", 4), options.get("kv_heads", 2)
    head_size = options.get("head_size") or width // heads

    def vector(name, values):
        raw = models.quantize(values, "F32")
        tensors[name] = tinyllm.Weight(name, np.shape(values), "F32", raw.tobytes())

    def matrix(name, shape, kind=type_name):
        tensors[name] = stack(random, name, shape, kind, shape[-1] ** -0.5)

    for layer in range(layers):
        at = f"blk.{layer}."
        if row.ffn_norm != "ffn_norm":
            vector(f"{at}{row.ffn_norm}.weight", tensors.pop(f"{at}ffn_norm.weight").numpy())
        for norm in set(row.required) & {"attn_q_norm", "attn_k_norm"}:
            count = {"attn_q_norm": heads, "attn_k_norm": kv_heads}[norm]
            size = head_size * (count if row.qk_norm == "row" else 1)
            vector(f"{at}{norm}.weight", 1 + 0.3 * random.standard_normal(size))
        if "attn_sinks" in row.required:
            vector(f"{at}attn_sinks.weight", random.standard_normal(heads))
        if layer < dense:
            continue
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            del tensors[f"{at}{name}.weight"]
        matrix(f"{at}ffn_gate_inp.weight", (experts, width), "F32")
        if "ffn_gate_inp" in row.biases:
            vector(f"{at}ffn_gate_inp.bias", random.standard_normal(experts))
        parts = {"ffn_gate_exps": ffn, "ffn_up_exps": ffn}
        if fused:
            parts = {"ffn_gate_up_exps": 2 * ffn}
        for name, rows in parts.items():
            matrix(f"{at}{name}.weight", (experts, rows, width))
        matrix(f"{at}ffn_down_exps.weight", (experts, width, ffn), down_type or type_name)
        for name, rows in {**parts, "ffn_down_exps": width}.items():
            if biases or name in row.biases:
                vector(f"{at}{name}.bias", 0.3 * random.standard_normal((experts, rows)))
            if scales:
                vector(f"{at}{name}.scale", random.uniform(0.5, 2, experts))
        if choice_bias:
            vector(f"{at}exp_probs_b.bias", 0.3 * random.standard_normal(experts))
        if shared:
            matrix(f"{at}ffn_gate_shexp.weight", (shared, width))
            matrix(f"{at}ffn_up_shexp.weight", (shared, width))
            matrix(f"{at}ffn_down_shexp.weight", (width, shared))
        if shared and shared_gate:
            vector(f"{at}ffn_gate_inp_shexp.weight", random.standard_normal(width) / 16)
    more = {"expert_count": experts, "expert_used_count": used}
    if shared:
        more["expert_shared_feed_forward_length"] = shared
    if dense:
        more["leading_dense_block_count"] = dense
    more = {f"{architecture}.{key}": value for key, value in more.items()}
    return {**keys, **more, **(metadata or {})}, tensors


#: A mixture of each architecture that has experts, as arguments of `random_mixture`.
ROWS = {
    "llama": {},
    "qwen2moe": {"shared": 256, "shared_gate": True},
    "qwen3moe": {"used": 3},
    "qwen3vlmoe": {"fused": True},
    "olmoe": {"used": 1},
    "granitemoe": {"shared": 512, "metadata": {"granitemoe.residual_scale": 0.5}},
    "gpt-oss": {"metadata": {"gpt-oss.attention.sliding_window": 16}},
}
