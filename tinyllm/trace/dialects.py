"""Names of inner values and weights in other libraries, and ours: one table.

Messages about unknown names use it, and so do `tinyllm.read` and `Trace.as_`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Collection
from typing import NamedTuple

__all__ = [
    "LIBRARIES",
    "TABLE",
    "Row",
    "Translation",
    "hint",
    "plain_name",
    "spellings",
    "table_names",
    "translate",
]


@dataclasses.dataclass(frozen=True)
class Row:
    """One of our names, and its names elsewhere. ``{i}`` stands for the number of the block.

    Attributes
    ----------
    ours : str
        A tap, or a step that uses the weight ``ours + ".weight"``.
    transformer_lens : str
        Hooks of `HookedTransformer` and `TransformerBridge`, separated by blanks.
    hugging_face : str
        Modules, whose outputs are meant. Their parameters are ``name + ".weight"``. ``.attention``
        is the function that attention modules call, with its arguments ``query`` and ``key``.
    llama_cpp : str
        Tensors of the graph, of the versions from 2025 on.
    meta : str
        Modules of Meta's checkpoints.
    parameters : str
        Parameters of TransformerLens. Those that begin with ``b_`` are biases.
    replaces : tuple of str
        Rows whose names mean this row instead in models that have both.
    inputs : str
        Modules of Hugging Face, whose inputs are meant.
    plain : str
        What people call the value in programs of their own: words that `plain_name` leaves.
    """

    ours: str
    transformer_lens: str = ""
    hugging_face: str = ""
    llama_cpp: str = ""
    meta: str = ""
    parameters: str = ""
    replaces: tuple[str, ...] = ()
    inputs: str = ""
    plain: str = ""


#: In the order of the forward pass. A name that has several meanings is in several rows.
TABLE = (
    Row("token_embd", "hook_embed embed.hook_out", "embed_tokens wte", "inp_embd embd",
        "tok_embeddings", "embed.W_E W_E",
        plain="embd embed embedding embeddings emb tok_emb tok_embd token_embedding x_embed"),
    Row("embd_scaled", "", "embed_tokens", "inp_scaled", replaces=("token_embd",)),
    Row("position_embd", "hook_pos_embed pos_embed.hook_out", "wpe", "pos_embd", "",
        "pos_embed.W_pos W_pos", plain="pos_emb pos_embd position_embedding"),
    Row("blk.{i}.resid_pre", "blocks.{i}.hook_resid_pre blocks.{i}.hook_in", "hidden_states[{i}]",
        inputs="layers.{i}.input_layernorm h.{i}.ln_1 layers.{i} h.{i}",
        plain="in input resid_pre residual_in x_in h_in"),
    Row("blk.{i}.attn_norm_scale", "blocks.{i}.ln1.hook_scale"),
    Row("blk.{i}.attn_norm", "blocks.{i}.ln1.hook_normalized blocks.{i}.ln1.hook_out",
        "layers.{i}.input_layernorm h.{i}.ln_1", "attn_norm-{i}", "layers.{i}.attention_norm",
        "blocks.{i}.ln1.w",
        plain="attn_norm attention_norm norm1 ln1 ln_1 input_norm input_layernorm rms1 rms_att"),
    Row("blk.{i}.attn_qkv", "", "layers.{i}.self_attn.qkv_proj h.{i}.attn.c_attn", "wqkv-{i}",
        plain="qkv attn_qkv qkv_proj c_attn"),
    Row("blk.{i}.attn_q", "blocks.{i}.attn.hook_q blocks.{i}.attn.q.hook_out",
        "layers.{i}.self_attn.q_proj", "Qcur-{i}", "layers.{i}.attention.wq",
        "blocks.{i}.attn.W_Q blocks.{i}.attn.b_Q",
        plain="q xq query queries attn_q q_proj wq q_pre_rope q_before_rope"),
    Row("blk.{i}.attn_k", "blocks.{i}.attn.hook_k blocks.{i}.attn.k.hook_out",
        "layers.{i}.self_attn.k_proj", "Kcur-{i}", "layers.{i}.attention.wk",
        "blocks.{i}.attn.W_K blocks.{i}.attn.b_K",
        plain="k xk key keys attn_k k_proj wk k_pre_rope k_before_rope"),
    Row("blk.{i}.attn_v", "blocks.{i}.attn.hook_v blocks.{i}.attn.v.hook_out",
        "layers.{i}.self_attn.v_proj", "Vcur-{i}", "layers.{i}.attention.wv",
        "blocks.{i}.attn.W_V blocks.{i}.attn.b_V", plain="v xv value values attn_v v_proj wv"),
    Row("blk.{i}.attn_q_norm", "", "layers.{i}.self_attn.q_norm", "Qcur_normed-{i}",
        plain="q_norm q_normed attn_q_norm"),
    Row("blk.{i}.attn_k_norm", "", "layers.{i}.self_attn.k_norm", "Kcur_normed-{i}",
        plain="k_norm k_normed attn_k_norm"),
    Row("blk.{i}.attn_q_rope", "blocks.{i}.attn.hook_rot_q",
        "layers.{i}.self_attn.attention.query", "Qcur-{i} q-{i}",
        plain="q_rope q_rot q_rotated rope_q rot_q q_after_rope q_post_rope attn_q_rope"),
    Row("blk.{i}.attn_k_rope", "blocks.{i}.attn.hook_rot_k",
        "layers.{i}.self_attn.attention.key", "Kcur-{i} k-{i}",
        plain="k_rope k_rot k_rotated rope_k rot_k k_after_rope k_post_rope attn_k_rope"),
    Row("blk.{i}.attn_scores", "blocks.{i}.attn.hook_attn_scores", "", "kq-{i}",
        plain="scores attn_scores attention_scores att_scores"),
    Row("blk.{i}.attn_probs", "blocks.{i}.attn.hook_pattern", "attentions[{i}]",
        "kq_soft_max-{i} kq_soft_max_ext-{i}",
        plain="att probs attn_probs attention_probs attn_weights attention_weights pattern"),
    Row("blk.{i}.attn_mix", "blocks.{i}.attn.hook_z blocks.{i}.attn.o.hook_in", "",
        "kqv-{i} kqv_merged-{i} kqv_merged_cont-{i} kqv_out-{i}",
        inputs="layers.{i}.self_attn.o_proj h.{i}.attn.c_proj",
        plain="z mix attn_mix attn_heads heads kqv"),
    Row("blk.{i}.attn_output",
        "blocks.{i}.hook_attn_out blocks.{i}.attn.hook_out blocks.{i}.attn.o.hook_out",
        "layers.{i}.self_attn.o_proj layers.{i}.self_attn h.{i}.attn.c_proj h.{i}.attn",
        "attn_out-{i} kqv_out-{i}",
        "layers.{i}.attention.wo", "blocks.{i}.attn.W_O blocks.{i}.attn.b_O",
        inputs="layers.{i}.post_attention_layernorm",
        plain="xb2 o wo o_proj attn_out attn_output attention_out attn_proj"),
    Row("blk.{i}.post_attention_norm", "blocks.{i}.hook_attn_out",
        "layers.{i}.post_attention_layernorm", "attn_post_norm-{i}",
        replaces=("blk.{i}.attn_output", "blk.{i}.ffn_norm")),
    Row("blk.{i}.resid_mid", "blocks.{i}.hook_resid_mid blocks.{i}.ln2.hook_in", "",
        "ffn_inp-{i} sa_out-{i}",
        inputs="layers.{i}.post_attention_layernorm layers.{i}.pre_feedforward_layernorm "
        "h.{i}.ln_2",
        plain="resid_mid residual_mid x_mid h_mid after_attn x_after_attn ffn_inp ffn_in"),
    Row("blk.{i}.ffn_norm_scale", "blocks.{i}.ln2.hook_scale"),
    Row("blk.{i}.ffn_norm", "blocks.{i}.ln2.hook_normalized blocks.{i}.ln2.hook_out",
        "layers.{i}.post_attention_layernorm layers.{i}.pre_feedforward_layernorm h.{i}.ln_2",
        "ffn_norm-{i}", "layers.{i}.ffn_norm",
        "blocks.{i}.ln2.w",
        plain="ffn_norm mlp_norm norm2 ln2 ln_2 post_attention_layernorm rms2 rms_ffn"),
    Row("blk.{i}.ffn_gate", "blocks.{i}.mlp.hook_pre blocks.{i}.mlp.gate.hook_out",
        "layers.{i}.mlp.gate_proj", "ffn_gate-{i}", "layers.{i}.feed_forward.w1",
        "blocks.{i}.mlp.W_gate", replaces=("blk.{i}.ffn_up",),
        plain="gate gate_proj w1 ffn_gate mlp_gate"),
    Row("blk.{i}.ffn_up",
        "blocks.{i}.mlp.hook_pre blocks.{i}.mlp.hook_pre_linear blocks.{i}.mlp.in.hook_out",
        "layers.{i}.mlp.up_proj layers.{i}.mlp.gate_up_proj h.{i}.mlp.c_fc", "ffn_up-{i}",
        "layers.{i}.feed_forward.w3",
        "blocks.{i}.mlp.W_in blocks.{i}.mlp.b_in",
        plain="hb2 up up_proj w3 ffn_up mlp_up c_fc fc1"),
    Row("blk.{i}.ffn_act", "blocks.{i}.mlp.hook_post blocks.{i}.mlp.out.hook_in", "",
        "ffn_swiglu-{i} ffn_geglu-{i} ffn_gate_par-{i}",
        inputs="layers.{i}.mlp.down_proj h.{i}.mlp.c_proj",
        plain="hb act ffn_act mlp_act swiglu ffn_swiglu ffn_hidden mlp_hidden"),
    Row("blk.{i}.ffn_down",
        "blocks.{i}.hook_mlp_out blocks.{i}.mlp.hook_out blocks.{i}.mlp.out.hook_out",
        "layers.{i}.mlp.down_proj layers.{i}.mlp h.{i}.mlp.c_proj h.{i}.mlp", "ffn_out-{i}",
        "layers.{i}.feed_forward.w2",
        "blocks.{i}.mlp.W_out blocks.{i}.mlp.b_out",
        plain="down down_proj w2 ffn mlp ffn_out mlp_out ffn_down mlp_down feed_forward fc2"),
    Row("blk.{i}.ffn_gate_inp", "", "layers.{i}.mlp.gate layers.{i}.block_sparse_moe.gate",
        "ffn_moe_logits-{i}", plain="router router_logits"),
    Row("blk.{i}.ffn_expert_probs", "", "", "ffn_moe_probs-{i}"),
    Row("blk.{i}.ffn_moe", "blocks.{i}.hook_mlp_out",
        "layers.{i}.mlp layers.{i}.block_sparse_moe", "ffn_moe_out-{i}", plain="moe moe_out"),
    Row("blk.{i}.post_ffw_norm", "blocks.{i}.hook_mlp_out",
        "layers.{i}.post_feedforward_layernorm", "ffn_post_norm-{i}",
        replaces=("blk.{i}.ffn_down", "blk.{i}.ffn_moe")),
    Row("blk.{i}.resid_post", "blocks.{i}.hook_resid_post blocks.{i}.hook_out", "layers.{i} h.{i}",
        "l_out-{i}", plain="x out output h hidden resid residual resid_post x_out l_out"),
    Row("output_norm_scale", "ln_final.hook_scale"),
    Row("output_norm", "ln_final.hook_normalized ln_final.hook_out unembed.hook_in", "norm ln_f",
        "result_norm", "norm", "ln_final.w", inputs="lm_head",
        plain="final_norm norm_final norm_f ln_f output_norm last_norm x_norm x_final"),
    Row("output", "unembed.hook_out", "lm_head", "result_output", "output", "unembed.W_U W_U",
        plain="logits logit out output lm_head result"),
    Row("output_uncapped", "unembed.hook_out", "lm_head", replaces=("output",)),
    Row("output_unscaled", "unembed.hook_out", "lm_head", replaces=("output", "output_uncapped")),
)  # fmt: skip

#: The names of dialects in arguments, and the libraries.
LIBRARIES = {
    "transformer_lens": "TransformerLens",
    "hf": "Hugging Face",
    "hugging_face": "Hugging Face",
    "llama.cpp": "llama.cpp",
    "meta": "Meta's checkpoints",
}

#: Where the value under another name differs from ours.
_DIFFERENT = {
    "hook_scale": "there the divisor, here the factor",
    "hook_normalized": "there without the weight of the norm",
    "kq": "there neither scaled nor masked",
    "Qcur": "there both before and after RoPE",
    "Kcur": "there both before and after RoPE",
    "kqv_out": "there before the output projection, in versions of 2025 after it",
}

#: Names of TransformerLens for ``cache["q", 3]``, by the part of the block that they belong to.
_SHORT = {
    "attn": ("q", "k", "v", "z", "rot_q", "rot_k", "attn_scores", "pattern"),
    "mlp": ("pre", "post", "pre_linear"),
    "": ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"),
}

#: Where a block has both, the norm between them reads the output of attention, not the stream.
_SANDWICH = ("post_attention_norm", "post_ffw_norm")

#: The number of a block, or a pattern of numbers, where names have it.
_NUMBER = re.compile(r"(?<=[.\[-])(\d+|\*)(?=[.\]]|$)")

#: What wrappers of Hugging Face's modules put before their names.
_WRAPPERS = re.compile(r"(?:(?:base_model|language_model|model|transformer)\.)+")

#: Suffixes of the parameters of a module.
_SUFFIXES = (".weight", ".bias")

#: How programs mark the input of a module, its output, and the second of its outputs.
_INPUT = re.compile(r"[.:]in(?:put|puts)?(?:\.0|\[0\]|0)?$")
_OUTPUT = re.compile(r"[.:]out(?:put|puts)?(?:\.0|\[0\]|0)?$")
_SECOND = re.compile(r"layers\.\{i\}\.self_attn[.:]out(?:put|puts)?(?:\.1|\[1\]|1)$")


class Translation(NamedTuple):
    """One of our names for a name of another library.

    Attributes
    ----------
    ours : str
    library : str
        The library that has the other name.
    differs : str
        How the value there differs from ours, or ``""``.
    """

    ours: str
    library: str
    differs: str


@functools.cache
def _index() -> dict[str, list[tuple[str, str]]]:
    """Return the libraries and our names, by the names in other libraries."""
    found: dict[str, list[tuple[str, str]]] = {}
    for row in TABLE:
        for library, names in (
            ("TransformerLens", row.transformer_lens),
            ("Hugging Face", row.hugging_face),
            ("llama.cpp", row.llama_cpp),
            ("Meta's checkpoints", row.meta),
        ):
            for name in names.split():
                found.setdefault(name, []).append((library, row.ours))
                if library in ("Hugging Face", "Meta's checkpoints"):
                    for suffix in _SUFFIXES:
                        found.setdefault(name + suffix, []).append((library, row.ours + suffix))
        for name in row.inputs.split():
            found.setdefault(f"{name}.in", []).append(("Hugging Face", row.ours))
        for name in row.parameters.split():
            suffix = _SUFFIXES["b_" in name.split(".")[-1]]
            found.setdefault(name, []).append(("TransformerLens", row.ours + suffix))
    return found


def _translations(name: object) -> list[Translation]:
    """Return our names for a name of another library, whether a model has them or not."""
    text = _long(name) if isinstance(name, tuple) else name
    if not isinstance(text, str):
        return []
    number = _NUMBER.search(text)
    general = _NUMBER.sub("{i}", text, count=1)
    wrapped = _WRAPPERS.match(general)
    module = general[wrapped.end() :] if wrapped else general
    out: dict[str, Translation] = {}
    marked = _INPUT.sub(".in", _SECOND.sub("attentions[{i}]", module))
    for spelling in dict.fromkeys((general, module, _OUTPUT.sub("", module), marked)):
        for library, ours in _index().get(spelling, ()):
            if spelling != general and library != "Hugging Face":
                continue
            there = ours.replace("{i}", number[0] if number else "")
            word = spelling.split(".")[-1].split("-")[0]
            out.setdefault(there, Translation(there, library, _DIFFERENT.get(word, "")))
            if there == "output.weight":  # the name where the two matrices are one
                tied = "token_embd.weight"
                out.setdefault(tied, Translation(tied, library, "shared with the embedding"))
    return list(out.values())


def translate(name: object, known: Collection[str], library: str = "") -> list[Translation]:
    """Return our names for a name of TransformerLens, Hugging Face, llama.cpp or Meta.

    Parameters
    ----------
    name : str, or tuple as in ``cache["q", 3]`` of TransformerLens
        The number of the block may be ``*``.
    known : collection of str
        The names that there are. Others are left out.
    library : str
        If not empty: leave out the names of other libraries.

    Returns
    -------
    list of Translation
        Empty if no library has the name.

    Examples
    --------
    >>> import tinyllm as tl
    >>> from tinyllm.trace.dialects import translate
    >>> taps = [step.tap for step in tl.load().steps]
    >>> [found.ours for found in translate("model.layers.3.self_attn.q_proj", taps)]
    ['blk.3.attn_q']
    >>> [found.ours for found in translate(("pattern", 2), taps)]
    ['blk.2.attn_probs']
    """
    found = [
        each
        for each in _translations(name)
        if each.ours.replace("*", "0") in known and library in ("", each.library)
    ]
    families = [each.ours.split(".")[-1] for each in found]
    if families == ["attn_output", "resid_mid"]:
        block = found[0].ours.removesuffix("attn_output").replace("*", "0")
        del found[all(f"{block}{name}" in known for name in _SANDWICH)]
    replaced = {other for each in found for other in _replaced(each.ours)}
    found = [each for each in found if each.ours not in replaced]
    if len(found) > 1 and found[-1].differs == "shared with the embedding":
        del found[-1]
    return found


def _replaced(ours: str) -> list[str]:
    """Return the names that mean this one instead, in models that have both."""
    number = _NUMBER.search(ours)
    general = _NUMBER.sub("{i}", ours, count=1)
    suffix = next((s for s in _SUFFIXES if general.endswith(s)), "")
    found = [row.replaces for row in TABLE if row.ours + suffix == general]
    others = found[0] if found else ()
    return [other.replace("{i}", number[0] if number else "") + suffix for other in others]


def spellings(ours: str, known: Collection[str], library: str) -> list[str]:
    """Return the names in another library that mean one of our taps.

    The input of a module ends with ``.in``.

    Parameters
    ----------
    ours : str
        A tap.
    known : collection of str
        The taps of the model.
    library : str
        One of the values of `LIBRARIES`.

    Returns
    -------
    list of str
        The usual one first. Empty if the library has no name for the value.

    Examples
    --------
    >>> from tinyllm.trace.dialects import spellings
    >>> spellings("blk.3.attn_mix", {"blk.3.attn_mix"}, "TransformerLens")
    ['blocks.3.attn.hook_z', 'blocks.3.attn.o.hook_in']
    """
    number = _NUMBER.search(ours)
    general = _NUMBER.sub("{i}", ours, count=1)
    names = []
    for row in TABLE:
        if row.ours == general:
            names += {
                "TransformerLens": row.transformer_lens.split(),
                "Hugging Face": row.hugging_face.split()
                + [f"{name}.in" for name in row.inputs.split()],
                "llama.cpp": row.llama_cpp.split(),
                "Meta's checkpoints": row.meta.split(),
            }[library]
    names = [name.replace("{i}", number[0] if number else "") for name in names]
    return [n for n in names if ours in (each.ours for each in translate(n, known, library))]


#: In names that people give: the block, at the start or after it, or a number at an end.
_PLAIN_BLOCK = re.compile(r"(?:^|_)(?:layers?|blocks?|blk|l|h|b)_?(\d+)(?=_|$|[a-z])")
_PLAIN_NUMBER = re.compile(r"^(.*?)_?(\d+)$|^(\d+)_(.*)$")


@functools.cache
def _plain_index() -> dict[tuple[str, bool], str]:
    """Return our names by the words of plain names, and whether a block belongs to them."""
    return {
        (word, "{i}" in row.ours): row.ours for row in reversed(TABLE) for word in row.plain.split()
    }


def plain_name(name: str) -> tuple[str, int | None] | None:
    """Return what a name means that follows no library, such as ``layer3_q`` or ``q_rope.3``.

    Parameters
    ----------
    name : str

    Returns
    -------
    tuple of (str, int or None), or None
        One of our names, with ``{i}`` for the number of a block, and the number that the name has.

    Examples
    --------
    >>> from tinyllm.trace.dialects import plain_name
    >>> plain_name("layer3_q"), plain_name("logits"), plain_name("thing")
    (('blk.{i}.attn_q', 3), ('output', None), None)
    """
    text = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    number = None
    if (found := _PLAIN_BLOCK.search(text)) is not None:
        number = int(found[1])
        text = f"{text[: found.start()]}_{text[found.end() :]}".strip("_") or "out"
    elif (text, False) not in _plain_index() and (found := _PLAIN_NUMBER.match(text)) is not None:
        number = int(found[2] or found[3])
        text = found[1] or found[4] or "out"
    for word in (text, text.removesuffix("_out"), text.removesuffix("_proj"), text.strip("_")):
        if (ours := _plain_index().get((word, number is not None))) is not None:
            return ours, number
    return None


def hint(name: object, known: Collection[str]) -> str:
    """Return a sentence part that says what an unknown name should have been, or ``""``.

    Parameters
    ----------
    name, known
        As for `translate`.

    Examples
    --------
    >>> from tinyllm.trace.dialects import hint
    >>> known = {"blk.0.attn_probs", "blk.1.attn_probs"}
    >>> hint("blocks.1.attn.hook_pattern", known)
    "that name of TransformerLens is 'blk.1.attn_probs' here"
    >>> hint("blk.7.attn_probs", known)
    'expected one of the blocks 0 to 1'
    """
    if isinstance(name, str) and (blocks := _blocks(name, known)):
        return f"expected one of the blocks {blocks}"
    found = translate(name, known)
    if found:
        ours = " or ".join(repr(each.ours) for each in found)
        differs = f" ({found[0].differs})" if found[0].differs else ""
        return f"that name of {found[0].library} is {ours} here{differs}"
    for each in _translations(name):
        if blocks := _blocks(each.ours, known):
            return (
                f"that name of {each.library} would be {each.ours!r} here; expected one of the "
                f"blocks {blocks}"
            )
    return ""


def table_names(layers: int) -> set[str]:
    """Return all taps of the table for a number of blocks. No model has all of them.

    Examples
    --------
    >>> from tinyllm.trace.dialects import table_names
    >>> "blk.1.attn_probs" in table_names(2), "blk.2.attn_probs" in table_names(2)
    (True, False)
    """
    return {row.ours.replace("{i}", str(i)) for row in TABLE for i in range(layers)}


def _long(key: tuple[object, ...]) -> str | None:
    """Return the name of a hook for a key of TransformerLens such as ``("scale", 3, "ln2")``."""
    short, layer, part = (*key, None, None, None)[:3]
    if not isinstance(short, str) or isinstance(layer, bool) or not isinstance(layer, int):
        return None
    short = {"attn": "pattern"}.get(short, short)
    if short in ("scale", "normalized") and part in ("ln1", "ln2"):
        return f"blocks.{layer}.{part}.hook_{short}"
    for part, names in _SHORT.items():
        if short in names:
            return ".".join(filter(None, ("blocks", str(layer), part, f"hook_{short}")))
    return None


_IN_BLOCK = re.compile(r"blk\.(-?\d+)\.(.*)")


def _blocks(name: str, known: Collection[str]) -> str:
    """Return the blocks that have one of our names if it is wrong only in the block, or ``""``."""
    mine = _IN_BLOCK.fullmatch(name)
    if mine is None or name in known:
        return ""
    others = (_IN_BLOCK.fullmatch(other) for other in known)
    blocks = sorted(int(other[1]) for other in others if other and other[2] == mine[2])
    if not blocks or blocks == list(range(len(blocks))):
        return f"0 to {blocks[-1]}" if blocks else ""
    return ", ".join(map(str, blocks[:8])) + (", ..." if len(blocks) > 8 else "")
