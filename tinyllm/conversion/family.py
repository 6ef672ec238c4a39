"""`Family`: how the checkpoints of an architecture are converted, and what families share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .config import CheckpointConfig
from .layouts import Change, heads, kv_heads, permuted, plus_one, rows
from .quantized import Stored

__all__ = [
    "EXPERTS",
    "LLAMA_NAMES",
    "MIXTRAL_EXPERTS",
    "PERMUTED",
    "POST_NORMS",
    "SANDWICH",
    "SHARED_EXPERT",
    "Family",
    "Keys",
    "LayerTensors",
    "Target",
    "To",
    "copied",
    "fixed",
    "shifted",
]

Keys = dict[str, Any]


class To(NamedTuple):
    """A GGUF tensor that is made from a tensor of the checkpoint.

    Attributes
    ----------
    name : str
        The name in GGUF, without ``blk.N.`` and, if the tensor has one, without its suffix.
    change : Change or None
        How the layout changes.
    """

    name: str
    change: Change | None = None


Target = str | To | tuple[To, ...]

#: The tensors of a checkpoint by layer and by name in the layer.
LayerTensors = Mapping[tuple[int, str], Stored]


@dataclasses.dataclass(frozen=True)
class Family:
    """How the checkpoints of one GGUF architecture are converted.

    Attributes
    ----------
    classes : tuple of str
        Names of the Hugging Face classes.
    names : mapping of str to str, To or tuple of To
        From names in the checkpoint to names in GGUF. Names are without the prefix of the model
        and of the block. A name without ``weight`` or ``bias`` stands for both. ``*`` stands for
        a number, such as that of an expert: these tensors are stacked into one. A tuple makes
        several tensors of one.
    keys : tuple of callable
        Each gives keys from the config. They replace the common ones; None removes a key.
    rope : bool
        Whether queries and keys are rotated.
    defaults : mapping of str to object
        Values for keys that published configs leave out.
    skipped : tuple of str
        Names of tensors that are left out, as in `names`. A name that ends with a dot stands for
        all that begin with it.
    dropped : callable or None
        Gives names of GGUF tensors that are left out, from the config.
    more_names : callable or None
        Gives names beyond `names` from the config. They come first.
    tensor_keys : callable or None
        Gives keys from the config and the tensors of the checkpoint, by layer and name: numbers
        that GGUF has among its keys.
    common : bool
        Whether the keys that transformers have in common are written.
    locate : callable or None
        Splits the name of a tensor into the prefix of its block, such as ``enc.blk.0.`` or nothing,
        and its name there. Default: blocks are ``blk.N.``.
    dense : bool
        Whether linear layers after the pooling (sentence-transformers) become tensors.
    when : callable or None
        If several architectures have the same class: whether a config belongs to this one.
    """

    classes: tuple[str, ...]
    names: Mapping[str, Target]
    keys: tuple[Callable[[CheckpointConfig], Keys], ...] = ()
    rope: bool = True
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    dropped: Callable[[CheckpointConfig], tuple[str, ...]] | None = None
    more_names: Callable[[CheckpointConfig], Mapping[str, Target]] | None = None
    tensor_keys: Callable[[CheckpointConfig, LayerTensors], Keys] | None = None
    common: bool = True
    locate: Callable[[str], tuple[str, str]] | None = None
    dense: bool = False
    when: Callable[[CheckpointConfig], bool] | None = None


# ---- names ----

#: The names of a Llama, which most architectures share.
LLAMA_NAMES: dict[str, Target] = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

#: Experts, one by one or in one tensor per layer, and their router.
EXPERTS: dict[str, Target] = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.experts.*.gate_proj": "ffn_gate_exps",
    "mlp.experts.*.up_proj": "ffn_up_exps",
    "mlp.experts.*.down_proj": "ffn_down_exps",
    "mlp.experts.gate_up_proj": (
        To("ffn_gate_exps.weight", rows(0, 2, -2)),
        To("ffn_up_exps.weight", rows(1, 2, -2)),
    ),
    "mlp.experts.down_proj": "ffn_down_exps.weight",
}

#: Experts as Mixtral names them.
MIXTRAL_EXPERTS: dict[str, Target] = {
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.experts.*.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.*.w2": "ffn_down_exps",
    "block_sparse_moe.experts.*.w3": "ffn_up_exps",
}

#: The expert that every token uses, and its gate.
SHARED_EXPERT: dict[str, Target] = {
    f"mlp.{name}.{theirs}": ours
    for name in ("shared_expert", "shared_experts", "shared_mlp")
    for theirs, ours in (
        ("gate_proj", "ffn_gate_shexp"),
        ("up_proj", "ffn_up_shexp"),
        ("down_proj", "ffn_down_shexp"),
    )
}
SHARED_EXPERT["mlp.shared_expert_gate"] = "ffn_gate_inp_shexp"

#: Queries and keys whose rows are reordered.
PERMUTED: dict[str, Target] = {
    "self_attn.q_proj": To("attn_q", permuted(heads)),
    "self_attn.k_proj": To("attn_k", permuted(kv_heads)),
}

#: Norms after the branches.
POST_NORMS: dict[str, Target] = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}

#: Norms before and after the branches.
SANDWICH: dict[str, Target] = {**POST_NORMS, "pre_feedforward_layernorm": "ffn_norm"}


def shifted(names: Mapping[str, Target]) -> dict[str, Target]:
    """Return names whose norms get 1 added: their weights are stored minus 1."""
    result: dict[str, Target] = {}
    for name, target in names.items():
        if isinstance(target, str) and "norm" in target:
            result[f"{name}.weight"] = To(f"{target}.weight", plus_one)
            result[f"{name}.bias"] = f"{target}.bias"
        else:
            result[name] = target
    return result


# ---- keys ----


def fixed(**keys: Any) -> Callable[[CheckpointConfig], Keys]:
    """Return a function that gives always these keys. ``__`` stands for a dot."""
    return lambda config: {name.replace("__", "."): value for name, value in keys.items()}


def copied(**names: str) -> Callable[[CheckpointConfig], Keys]:
    """Return a function that copies numbers from the config. ``__`` stands for a dot."""

    def keys(config: CheckpointConfig) -> Keys:
        pairs = ((ours, config.get(theirs)) for ours, theirs in names.items())
        return {
            ours.replace("__", "."): float(config.number(names[ours]))
            for ours, value in pairs
            if value is not None
        }

    return keys
