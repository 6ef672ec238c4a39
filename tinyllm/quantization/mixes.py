"""Mixes: which tensor of a model becomes which type.

A mix, such as Q4_K_M, has a type for most matrices and gives more bits to the tensors that need
them. The rules are those of ``llama_tensor_get_type_impl`` in llama.cpp's src/llama-quant.cpp, so a
file has the same types as one that llama.cpp writes.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .. import _core

__all__ = [
    "ALIASES",
    "COARSE",
    "MIXES",
    "NEED_IMATRIX",
    "Mix",
    "choose_types",
    "fitting",
    "is_matrix",
    "pattern_type",
]


class Mix(NamedTuple):
    """A mix: the type of most matrices, and llama.cpp's number for ``general.file_type``."""

    type: str
    file_type: int


#: The mixes by name.
MIXES = {
    "F32": Mix("F32", 0),
    "F16": Mix("F16", 1),
    "BF16": Mix("BF16", 32),
    "Q4_0": Mix("Q4_0", 2),
    "Q4_1": Mix("Q4_1", 3),
    "Q5_0": Mix("Q5_0", 8),
    "Q5_1": Mix("Q5_1", 9),
    "Q8_0": Mix("Q8_0", 7),
    "Q2_K": Mix("Q2_K", 10),
    "Q2_K_S": Mix("Q2_K", 21),
    "Q3_K_S": Mix("Q3_K", 11),
    "Q3_K_M": Mix("Q3_K", 12),
    "Q3_K_L": Mix("Q3_K", 13),
    "Q4_K_S": Mix("Q4_K", 14),
    "Q4_K_M": Mix("Q4_K", 15),
    "Q5_K_S": Mix("Q5_K", 16),
    "Q5_K_M": Mix("Q5_K", 17),
    "Q6_K": Mix("Q6_K", 18),
    "IQ4_NL": Mix("IQ4_NL", 25),
    "IQ4_XS": Mix("IQ4_XS", 30),
    "MXFP4_MOE": Mix("MXFP4", 38),
    "TQ1_0": Mix("TQ1_0", 36),
    "TQ2_0": Mix("TQ2_0", 37),
    "Q1_0": Mix("Q1_0", 40),
    "Q2_0": Mix("Q2_0", 41),
    "IQ1_S": Mix("IQ1_S", 24),
    "IQ1_M": Mix("IQ1_M", 31),
    "IQ2_XXS": Mix("IQ2_XXS", 19),
    "IQ2_XS": Mix("IQ2_XS", 20),
    "IQ2_S": Mix("IQ2_XS", 28),
    "IQ2_M": Mix("IQ2_S", 29),
    "IQ3_XXS": Mix("IQ3_XXS", 23),
    "IQ3_XS": Mix("IQ3_S", 22),
    "IQ3_S": Mix("IQ3_S", 26),
    "IQ3_M": Mix("IQ3_S", 27),
}

#: Names that stand for a mix.
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

#: The type that replaces one whose blocks do not fit the rows of a tensor.
_FALLBACK = {
    "IQ4_XS": "IQ4_NL",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S"), "IQ4_NL"),
    **dict.fromkeys(("IQ3_XXS", "IQ3_S"), "IQ4_NL"),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q1_0", "Q2_0"), "Q4_0"),
}

#: The mixes of one and two bits, and the type of what they give more bits.
_IQ2 = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"), "Q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M"), "IQ3_S"),
}

#: The types of embeddings that are not an output head, of queries and keys, and of the output of
#: attention, where they are not those of the mix.
_EMBEDDING = {**_IQ2, "IQ3_XXS": "IQ3_S", "TQ1_0": "Q4_K", "TQ2_0": "Q4_K", "Q2_0": "Q4_K"}
_QUERIES = {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}
_ATTN_OUTPUT = {
    **{"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"},
    **{"IQ3_XXS": "IQ3_S", "IQ3_M": "Q4_K", "IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS"},
    **{"IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"},
}

#: Mixes and types that are too coarse without an importance matrix, as in llama.cpp.
NEED_IMATRIX = ("Q2_K_S", *_IQ2, "IQ3_XXS", "IQ3_XS")
COARSE = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")

#: Parts of the names of matrices that stay as they are: small ones, and those that are not
#: multiplied with.
_KEPT = (
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel"),
    *("per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight"),
    *("indexer.q_proj.weight", "time_mix_first.weight", "time_mix_decay_w1.weight"),
    *("time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight"),
    *(f"time_mix_{part}.weight" for part in "w0 w1 w2 v0 v1 v2 a0 a1 a2 g1 g2".split()),
    *(".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd"),
    *(".patch_merger", "a.rvq.codebook", "mm.a.code_embd"),
)
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")

#: What a tensor is for: the first part that its name contains.
_CATEGORIES = {
    "attn_qkv.weight": "values",
    "attn_kv_b.weight": "values",
    "attn_v.weight": "values",
    "attn_k.weight": "keys",
    "attn_q.weight": "queries",
    "attn_output.weight": "attn_output",
    "ffn_up": "up",
    "ffn_gate": "gate",
    "ffn_down": "down",
}
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor is one of those that a quantizer changes.

    Parameters
    ----------
    name : str
    shape : tuple of int
        In NumPy's order.

    Returns
    -------
    bool

    Examples
    --------
    >>> from tinyllm.quantization.mixes import is_matrix
    >>> is_matrix("blk.0.attn_q.weight", (64, 64)), is_matrix("blk.0.attn_norm.weight", (64,))
    (True, False)
    """
    axes = next((len(shape) - i for i, length in enumerate(shape) if length != 1), 0)
    if axes < 2 or not name.endswith("weight") or name in _KEPT_NAMES:
        return False
    return not any(part in name for part in _KEPT)


def choose_types(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[tuple[int, ...], str]],
    mix: str,
    *,
    imatrix: bool = False,
    types: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the type of each tensor.

    Parameters
    ----------
    metadata : mapping
        The metadata of the file.
    tensors : mapping of str to (tuple of int, str)
        The shape, in NumPy's order, and the present type of each tensor.
    mix : str
        A key of `MIXES`.
    imatrix : bool
        Whether there is an importance matrix: some mixes choose other types then.
    types : mapping of str to str, optional
        Types by patterns of names (``fnmatch``). The first one that fits a name wins over the mix.

    Returns
    -------
    dict of str to str
        In the order of `tensors`.

    Examples
    --------
    >>> from tinyllm.quantization.mixes import choose_types
    >>> shapes = {"output.weight": ((512, 256), "F16"), "blk.0.attn_q.weight": ((256, 256), "F16")}
    >>> choose_types({"general.architecture": "llama"}, shapes, "Q4_K_S")
    {'output.weight': 'Q6_K', 'blk.0.attn_q.weight': 'Q4_K'}
    """
    rules = _Rules.of(metadata, tensors, mix, imatrix)
    chosen = {name: kind for name, (_, kind) in tensors.items()}
    for name in sorted(tensors, key=_order):
        shape, _ = tensors[name]
        if not is_matrix(name, shape):
            continue
        wanted = pattern_type(name, types or {})
        if wanted is None:
            base = MIXES[mix].type
            wanted = base if base in ("F32", "F16", "BF16") else rules.type_of(name, shape)
        chosen[name] = fitting(wanted, shape[-1])
    return chosen


def _order(name: str) -> tuple[int, str]:
    """Return the place of a tensor in llama.cpp's order, in which layers are counted."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1, name


def pattern_type(name: str, types: Mapping[str, str]) -> str | None:
    """Return the type of the first pattern that fits a name, or None."""
    return next(
        (kind for pattern, kind in types.items() if fnmatch.fnmatchcase(name, pattern)), None
    )


def fitting(kind: str, columns: int) -> str:
    """Return a type, or the one that replaces it where its blocks do not fit the rows."""
    items = _core.tensor_types()[kind][1]
    if columns % items == 0:
        return kind
    kind = _FALLBACK.get(kind, "F16")
    return kind if columns % _core.tensor_types()[kind][1] == 0 else "F16"


def _category(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in _EMBEDDINGS:
        return "embedding"
    return next((kind for part, kind in _CATEGORIES.items() if part in name), "other")


@dataclasses.dataclass
class _Rules:
    """The rules of a mix for one model. Tensors are asked for in llama.cpp's order."""

    mix: str
    architecture: str
    imatrix: bool
    layers: int
    experts: int
    sharing: int  # query heads per key head of the first layer
    large: bool  # the shape of Llama 2 70B
    tied: bool
    values: Iterator[int]  # numbers of the tensors of a category
    downs: Iterator[int]
    gates: Iterator[int]
    ups: Iterator[int]
    value_count: int

    @classmethod
    def of(
        cls,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, Any],
        mix: str,
        imatrix: bool,
    ) -> _Rules:
        architecture = str(metadata.get("general.architecture", ""))

        def key(name: str, default: int) -> int:
            value = metadata.get(f"{architecture}.{name}", default)
            return int(value[0] if hasattr(value, "__len__") and len(value) else value)

        heads = key("attention.head_count", 0)
        kv_heads = key("attention.head_count_kv", heads)
        layers = key("block_count", 0)
        large = {"llama": heads != kv_heads, "qwen2": True, "deci": True}
        return cls(
            mix,
            architecture,
            imatrix,
            layers,
            key("expert_count", 0),
            heads // kv_heads if kv_heads else 0,
            layers == 80 and large.get(architecture, False),
            "output.weight" not in tensors,
            iter(range(len(tensors))),
            iter(range(len(tensors))),
            iter(range(len(tensors))),
            iter(range(len(tensors))),
            sum(_category(name) == "values" for name in tensors),
        )

    def type_of(self, name: str, shape: tuple[int, ...]) -> str:
        kind, base = _category(name), MIXES[self.mix].type
        if kind == "output" or (self.tied and kind == "embedding"):
            return self._output(base, shape[-1])
        if self.mix == "MXFP4_MOE":
            return "MXFP4" if len(shape) > 2 and shape[-3] > 1 else "Q8_0"
        if kind == "embedding":
            return _EMBEDDING.get(self.mix, base)
        if self.mix in _IQ2:
            return self._iq2(base, kind)
        if kind == "values":
            return self._values(base, next(self.values))
        if kind == "keys":
            return "Q8_0" if self.experts == 8 else _QUERIES.get(self.mix, base)
        if kind == "queries":
            return _QUERIES.get(self.mix, base)
        if kind in ("up", "gate"):
            return self._up(base, name, next(self.ups if kind == "up" else self.gates))
        if kind == "down":
            return self._down(base, name, next(self.downs))
        if kind == "attn_output":
            return self._attn_output(base)
        return base

    def _output(self, base: str, columns: int) -> str:
        """Return the type of the output head, or of embeddings that are used as one."""
        unfit = columns % _core.tensor_types()[base][1] != 0
        if self.mix == "MXFP4_MOE" or self.architecture == "falcon" or unfit or base == "Q8_0":
            return "Q8_0"
        return "Q5_K" if self.mix in _IQ2 or self.mix == "IQ3_XXS" else "Q6_K"

    def _iq2(self, base: str, kind: str) -> str:
        """Return the type of a tensor in the mixes of one and two bits."""
        more = _IQ2[self.mix]
        if kind == "values":
            return "Q4_K" if self.sharing >= 4 or self.experts >= 4 else more
        if kind == "keys" and self.experts == 8:
            return "Q4_K"
        if kind == "down":
            return more if next(self.downs) < self.layers // 8 else base
        if kind == "attn_output":
            return "Q5_K" if self.experts == 8 else _ATTN_OUTPUT.get(self.mix, base)
        return base

    def _values(self, base: str, i: int) -> str:
        """Return the type of values, or of queries, keys and values in one matrix."""
        kind = base
        shared = self.sharing >= 4
        if self.mix == "Q2_K":
            kind = "Q4_K" if shared else "Q3_K"
        elif self.mix in ("Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S") and shared:
            kind = "Q4_K"
        elif self.mix == "IQ3_XXS" and not self.imatrix:
            kind = "IQ3_S"
        elif self.mix == "IQ3_M":
            kind = "Q4_K"
        elif self.mix == "Q3_K_M":
            kind = "Q5_K" if i < 2 else "Q4_K"
        elif self.mix == "Q3_K_L" or (self.mix in ("IQ4_NL", "IQ4_XS") and shared):
            kind = "Q5_K"
        elif self.mix in ("Q4_K_M", "Q5_K_M") and _important(i, self.value_count):
            kind = "Q6_K"
        elif self.mix == "Q4_K_S" and i < 4:
            kind = "Q5_K"
        if self.large and kind in ("Q3_K", "Q4_K"):
            kind = "Q5_K"
        return "Q8_0" if self.experts == 8 else kind

    def _up(self, base: str, name: str, i: int) -> str:
        """Return the type of the first matrices of a feed-forward network."""
        if self.experts > 1:
            i = max(_order(name)[0], 0)
        middle = self.layers // 8 <= i < 7 * self.layers // 8
        return "IQ3_XXS" if self.mix == "IQ3_XS" and middle else base

    def _down(self, base: str, name: str, i: int) -> str:
        """Return the type of the second matrix of a feed-forward network."""
        n = self.layers
        if self.experts > 1:
            i = max(_order(name)[0], 0)
        falcon, first = self.architecture == "falcon", i < n // 8
        important = _important(i, n)
        if self.mix == "Q2_K":
            return "Q3_K"
        if self.mix == "Q2_K_S":
            return "Q4_K" if first else base
        if self.mix == "IQ3_XXS" and not self.imatrix:
            return "Q4_K" if first else "Q3_K"
        if self.mix == "IQ3_M":
            return "Q4_K" if first or (self.experts == 8 and important) else base
        if self.mix == "Q3_K_M":
            if i < n // 16:
                return "Q5_K"
            return "Q4_K" if not falcon or important else base
        if self.mix == "Q3_K_L":
            return "Q4_K" if falcon else "Q5_K"
        if self.mix == "Q4_K_M":
            if not falcon:
                return "Q6_K" if important else base
            return "Q6_K" if i < n // 16 else "Q5_K" if important else base
        if self.mix == "Q5_K_M":
            return "Q6_K" if important else base
        if self.mix == "Q4_K_S":
            return "Q5_K" if first and not falcon else base
        if self.mix in ("IQ4_NL", "IQ4_XS"):
            return "Q5_K" if first and not self.imatrix else base
        if self.mix in ("Q4_0", "Q5_0") and first and self.imatrix:
            return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[self.mix]
        return base

    def _attn_output(self, base: str) -> str:
        if self.architecture == "falcon":
            return "Q4_K" if self.mix == "Q3_K_L" else base
        if self.experts == 8:
            more = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ4_XS")
            return "Q5_K" if self.mix in more or self.mix.startswith("IQ3_") else base
        return _ATTN_OUTPUT.get(self.mix, base)


def _important(i: int, n: int) -> bool:
    """Return whether layer i of n is one of those that get more bits."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2
