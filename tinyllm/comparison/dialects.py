"""Which of our taps the arrays of another program are: by name, by order and by shape."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

from ..files.arrays import Array
from ..trace.dialects import LIBRARIES, plain_name, table_names, translate
from ..trace.taps import ALIASES

__all__ = ["Dialect", "Named", "Naming", "name_values"]

#: Names, a mapping from their names to ours or another library's, or a function of a name.
Dialect: TypeAlias = str | Mapping[str, str] | Callable[[str], "str | None"] | None

OURS, PLAIN, LLAMA2C = "tinyllm", "plain", "llama2.c"

#: In llama2.c's run.c, a buffer is dumped after RoPE has turned it in place.
_BUFFERS = {"attn_q": "attn_q_rope", "attn_k": "attn_k_rope"}
_LLAMA2C_WORDS = {"xb2", "hb", "hb2"}

#: What llama.cpp and its dumpers add to a name: an operation, or which of several it is.
_VIEW = re.compile(r" ?\((?:reshaped|view|cont|permuted|transposed|copy)[^)]*\)$")
_COUNT = re.compile(r"(?<=\d)(?:#|\.|__)\d+$")
_ORDER = re.compile(r"^\d{2,}[_-](?=[A-Za-z])")

_STATES = re.compile(r"(?:^|\.)hidden_states[._\[]?(\d+)\]?$")
_MATRICES = re.compile(r"(?:^|\.)attentions[._\[]?(\d+)\]?$")


@dataclasses.dataclass(frozen=True)
class Named:
    """One of our taps in a dump.

    Attributes
    ----------
    ours, theirs, library : str
        The names, and whose name the second one is.
    array : numpy.ndarray
        As it was dumped.
    """

    ours: str
    theirs: str
    library: str
    array: Array


@dataclasses.dataclass
class Naming:
    """What the names of a dump mean.

    Attributes
    ----------
    dialect : str
        The dialect, given or guessed.
    found : dict of str to Named
        By our names.
    unread : list of str
        Names that mean none of our taps.
    notes : list of str
        What was assumed where names have several meanings.
    """

    dialect: str
    found: dict[str, Named] = dataclasses.field(default_factory=dict)
    unread: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


class _Names:
    """The meanings of names in a model, or in one of which nothing is known."""

    def __init__(
        self, names: Sequence[str], known: Collection[str] | None, layers: int, scales: bool
    ) -> None:
        self.layers = layers
        self._scales = scales
        self.known = known if known is not None else _likely(names)
        self.exact = known is not None
        #: our names for plain names whose numbers are not those of blocks
        self.moved: dict[str, str] = {}

    def meanings(self, name: str, dialect: str) -> list[str]:
        """Return our names for a name of one dialect, best first."""
        if dialect == OURS:
            ours = ALIASES.get(name, name)
            return [ours] if ours in self.known else []
        if dialect in (PLAIN, LLAMA2C):
            return self._plain(name, dialect)
        if dialect == "Hugging Face":
            if (state := _STATES.search(name)) is not None:
                return self._state(int(state[1]), normalized=True)
            if (matrix := _MATRICES.search(name)) is not None:
                name = f"attentions[{matrix[1]}]"
        if dialect == "llama.cpp":
            name = base_name(name)
        found = [each.ours for each in translate(name, self.known, dialect)]
        if found == ["embd_scaled"] and dialect != "llama.cpp" and not self._scales:
            return ["token_embd"]
        if self.exact or len(found) < 2 or dialect == "llama.cpp":
            return found
        return found[-1:]  # without a model: the later row is the usual meaning

    def _state(self, number: int, normalized: bool) -> list[str]:
        """Return the tap of entry `number` of the residual stream between blocks."""
        if number == self.layers and normalized:
            return ["output_norm"]
        name = f"blk.{number - 1}.resid_post" if number else "blk.0.resid_pre"
        return [name] if name in self.known else []

    def _plain(self, name: str, dialect: str) -> list[str]:
        found = plain_name(name)
        if found is None:
            return []
        ours, number = found
        if name in self.moved:
            ours, number = self.moved[name], None
        if dialect == LLAMA2C:
            for before, after in _BUFFERS.items():
                ours = re.sub(rf"(blk\..*\.){before}$", rf"\1{after}", ours)
        if number is not None:
            ours = ours.replace("{i}", str(number))
        return [ours] if ours in self.known else []


def _likely(names: Sequence[str]) -> set[str]:
    """Return the taps that a model with these names may have, if the model is not known."""
    everything = table_names(_largest(names) + 2)
    text = " ".join(names)
    rare = {
        "ffn_moe": "moe|block_sparse|router",
        "post_attention_norm": "post_feedforward|post_norm|post_ffw_norm|post_attention_norm|_post",
        "post_ffw_norm": "post_feedforward|post_norm|post_ffw_norm|_post",
        "embd_scaled": "scaled",
        "output_uncapped": "uncapped",
        "output_unscaled": "unscaled",
    }
    for family, evidence in rare.items():
        if not re.search(evidence, text):
            everything -= {name for name in everything if name.split(".")[-1] == family}
    return everything


def _largest(names: Sequence[str]) -> int:
    """Return the largest number in the names that may be that of a block."""
    found = (re.search(r"(?<!\d)\d{1,4}(?!\d)", _ORDER.sub("", name)) for name in names)
    return max((int(number[0]) for number in found if number), default=0)


def base_name(name: str) -> str:
    """Return the name of a tensor of llama.cpp without what dumpers add.

    Examples
    --------
    >>> from tinyllm.comparison.dialects import base_name
    >>> base_name("0012_Qcur-0 (reshaped)"), base_name("Qcur-0#2")
    ('Qcur-0', 'Qcur-0')
    """
    return _COUNT.sub("", _VIEW.sub("", _ORDER.sub("", name)))


def _guess(names: _Names, values: Sequence[tuple[str, Array]]) -> tuple[str, list[str]]:
    """Return the dialect that explains the most names, and a note if another explains as many."""
    order = (OURS, *dict.fromkeys(LIBRARIES.values()), LLAMA2C, PLAIN)
    counts = Counter(dict.fromkeys(order, 0))
    for name, _ in values:
        for dialect in order:
            counts[dialect] += bool(names.meanings(name, dialect))
    words = {re.sub(r"[^a-z0-9]|\d+$", "", name.lower().split("_")[-1]) for name, _ in values}
    texts = {re.sub(r"^.*?(xb2|hb2|hb)(?:\D.*)?$", r"\1", name.lower()) for name, _ in values}
    if not (words | texts) & _LLAMA2C_WORDS:
        counts[LLAMA2C] = 0
    best = max(order, key=lambda each: (counts[each], -order.index(each)))
    notes = []
    rivals = [o for o in order if o != best and counts[o] == counts[best] > 0]
    if best in order[1:5] and rivals and rivals[0] not in (PLAIN, LLAMA2C):
        notes.append(
            f"the names could be those of {' or '.join((best, *rivals))}; read as {best}; "
            "dialect= chooses another"
        )
    return best, notes


def name_values(
    values: Sequence[tuple[str, Array]],
    dialect: Dialect = None,
    known: Collection[str] | None = None,
    layers: int | None = None,
    architecture: str = "",
) -> Naming:
    """Return which of our taps the arrays of a dump are.

    Parameters
    ----------
    values : sequence of (str, numpy.ndarray)
        Names may repeat. Then they are in the order of computation.
    dialect : str, mapping of str to str, or callable, optional
        As in `tinyllm.read`.
    known : collection of str, optional
        The taps of the model. None: a model that is not known.
    layers : int, optional
        The number of blocks. None: as the names say.
    architecture : str
        The architecture of the model, if it is known.

    Returns
    -------
    Naming

    Raises
    ------
    ValueError
        If the dialect is unknown, or a mapping names something that is no tap.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.comparison.dialects import name_values
    >>> x = np.zeros((3, 8), np.float32)
    >>> list(name_values([("model.layers.0.mlp.up_proj", x), ("lm_head", x)]).found)
    ['blk.0.ffn_up', 'output']
    """
    notes: list[str] = []
    unread: list[str] = []
    originals = [name for name, _ in values]
    if dialect is not None and not isinstance(dialect, str):
        renamed, unread = _renamed(values, dialect)
        originals = [theirs for theirs, _, _ in renamed]
        values = [(name, array) for _, name, array in renamed]
    texts = [name for name, _ in values]
    states = [int(found[1]) for name in texts if (found := _STATES.search(name))]
    if layers is None:
        others = [name for name in texts if not _STATES.search(name)]
        layers = max([*states, _largest(others) + 1] if others else states, default=0)
    scales = architecture.startswith("gemma")  # inside the module, unlike Granite's
    names = _Names(texts, known, layers, scales)
    if isinstance(dialect, str):
        chosen = _dialect(dialect)
    else:
        chosen, doubt = _guess(names, values)
        notes += doubt if dialect is None else []
    if chosen in (PLAIN, LLAMA2C):
        notes += _count_from_zero(names, texts)
    naming = Naming(chosen, unread=unread, notes=notes)
    if known is None and layers in states:
        notes.append(f"hidden_states[{layers}] is read as the last one, which is normalized")
    _collect(naming, values, names, originals)
    if not naming.found:
        some = ", ".join(map(repr, naming.unread[:4])) + ", ..." * (len(naming.unread) > 4)
        raise ValueError(
            f"no name of the dump means a tap: {some}; expected names of one dialect "
            "(tinyllm, transformer_lens, hf, llama.cpp, llama2.c, plain), or "
            "dialect={'their name {i}': 'blk.{i}.attn_q'}"
        )
    return naming


def _dialect(dialect: str) -> str:
    chosen = {OURS: OURS, PLAIN: PLAIN, LLAMA2C: LLAMA2C, **LIBRARIES}.get(dialect)
    if chosen is None:
        raise ValueError(
            f"dialect is {dialect!r}; expected tinyllm, transformer_lens, hf, llama.cpp, meta, "
            "llama2.c, plain, a mapping of names, or a function"
        )
    return chosen


_PLACE = re.compile(r"\\\{i(?::[^}]*)?\\\}|\\\*")


def _renamed(
    values: Sequence[tuple[str, Array]],
    dialect: Mapping[str, str] | Callable[[str], str | None],
) -> tuple[list[tuple[str, str, Array]], list[str]]:
    """Return (their name, the name that a user gives, array), and the names that have none."""
    rename: Callable[[str], str | None]
    if isinstance(dialect, Mapping):
        patterns = []
        for theirs, ours in dialect.items():
            if not isinstance(theirs, str) or not isinstance(ours, str):
                raise TypeError(f"dialect maps {theirs!r} to {ours!r}; expected two names")
            pattern = re.compile(_PLACE.sub(r"(\\d+)", re.escape(theirs)))
            patterns.append((pattern, re.sub(r"\{i(?::[^}]*)?\}|\*", "{i}", ours)))

        def by_patterns(name: str) -> str | None:
            for pattern, ours in patterns:
                if (found := pattern.fullmatch(name)) is not None:
                    number = str(int(found[1])) if found.re.groups else ""
                    return ours.replace("{i}", number)
            return name if name.startswith("blk.") or name in ("output", "logits") else None

        rename = by_patterns
    elif callable(dialect):
        rename = dialect
    else:
        raise TypeError(f"dialect is {dialect!r}; expected a name, a mapping or a function")
    renamed: list[tuple[str, str, Array]] = []
    unread: list[str] = []
    for name, array in values:
        meaning = rename(name)
        if meaning is None:
            unread.append(name)
        elif isinstance(meaning, str):
            renamed.append((name, meaning, array))
        else:
            raise TypeError(f"the dialect gives {meaning!r} for {name!r}; expected a name or None")
    return renamed, unread


def _count_from_zero(names: _Names, texts: Sequence[str]) -> list[str]:
    """Move plain names to blocks that count from 0, and return a note where they do not.

    Blocks may be numbered from 1. A residual stream may have one entry more than there are blocks:
    then the first one enters block 0.
    """
    plain = {name: plain_name(name) for name in texts}
    found = {name: each for name, each in plain.items() if each and each[1] is not None}
    if not names.exact or not found:
        return []
    numbers: dict[str, set[int]] = {}
    for ours, number in found.values():
        numbers.setdefault(ours, set()).add(int(number or 0))
    stream = "blk.{i}.resid_post"
    if numbers.get(stream) == set(range(names.layers + 1)):
        for name, (ours, number) in found.items():
            if ours == stream:
                before = f"blk.{int(number or 0) - 1}.resid_post"
                names.moved[name] = before if number else "blk.0.resid_pre"
        return ["one residual stream more than blocks: the first one is read as entering block 0"]
    every = set().union(*numbers.values())
    if min(every) == 1 and max(every) == names.layers:
        for name, (ours, number) in found.items():
            names.moved[name] = ours.replace("{i}", str(int(number or 0) - 1))
        return ["the blocks are numbered from 1"]
    return []


def _collect(
    naming: Naming,
    values: Sequence[tuple[str, Array]],
    names: _Names,
    originals: Sequence[str],
) -> None:
    """Put each array under its tap."""
    order = dict.fromkeys((naming.dialect, OURS, *LIBRARIES.values(), PLAIN))
    groups: dict[tuple[str, str], list[tuple[str, Array]]] = {}
    meanings: dict[tuple[str, str], list[str]] = {}
    for theirs, (name, array) in zip(originals, values, strict=True):
        for dialect in order:
            ours = names.meanings(name, dialect)
            if ours:
                key = (dialect, base_name(name) if dialect == "llama.cpp" else name)
                groups.setdefault(key, []).append((theirs, array))
                meanings[key] = ours
                break
        else:
            naming.unread.append(theirs)
    texts = {name for _, name in groups}
    for (dialect, base), group in groups.items():
        ours = meanings[dialect, base]
        if dialect == "llama.cpp":
            chosen = _of_graph(naming, base, ours, group, texts)
        else:
            chosen = [(ours[0], group[-1])]
            if len(ours) > 1:
                naming.notes.append(f"{base!r} is {' or '.join(ours)}; read as {ours[0]}")
        for tap, (name, array) in chosen:
            naming.found.setdefault(tap, Named(tap, name, dialect, array))


def _of_graph(
    naming: Naming,
    base: str,
    ours: list[str],
    group: list[tuple[str, Array]],
    texts: Collection[str],
) -> list[tuple[str, tuple[str, Array]]]:
    """Return what the tensors of one name in llama.cpp's graph are, in its order."""
    word = base.split("-")[0]
    if word == "ffn_out":  # a sum of the same name may follow
        return [(ours[0], group[0])]
    if word == "kqv_out" and len(ours) > 1:
        number = base.split("-")[-1]
        if {"embd", f"attn_out-{number}", f"kq_soft_max-{number}"} & set(texts):
            return [(next(n for n in ours if n.endswith("attn_mix")), group[-1])]
        output = next(n for n in ours if n.endswith("attn_output"))
        old = {"inp_embd", f"kq_soft_max_ext-{number}", f"kqv_merged_cont-{number}"} & set(texts)
        if not old:
            naming.notes.append(
                f"{base!r} is before the output projection or, in versions of 2025, after it; "
                f"read as {output}"
            )
        return [(output, group[-1])]
    if len(ours) == 1 or word not in ("Qcur", "Kcur"):
        return [(ours[0], group[-1])]
    before, after = ours[0], ours[-1]
    named = [entry for entry in group if not _VIEW.search(entry[0])]
    reshaped = [entry for entry in group if "reshaped" in entry[0]]
    if len(named) > 1:
        return [(before, named[-2]), (after, named[-1])]
    if named and reshaped:  # reshaped is what RoPE reads
        return [(before, reshaped[0]), (after, named[0])]
    name, array = (named or group)[0]
    flat = len([size for size in array.shape if size != 1]) < 3
    chosen = before if flat else after
    naming.notes.append(
        f"{name!r} is {before} or {after}, which have one name in llama.cpp; "
        f"read as {chosen}, because the heads are {'not split' if flat else 'split'}"
    )
    return [(chosen, group[0])]
