"""What people compute from traces and weights: lens, attribution, circuits, head scores.

Everything here is NumPy in float64 over what a trace and a model hand out, except the logit lens,
which runs the model's own last steps.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from ..display.table import Table, escape
from ..errors import UnsupportedError
from ..reference.walk import Layer, rotate
from ..runtime.runner import Runner
from ..trace.taps import Capture, Floats, match
from ..trace.trace import Trace

__all__ = [
    "Attribution",
    "Lens",
    "attention_entropy",
    "attribution",
    "head_outputs",
    "induction_scores",
    "lens",
    "ov_circuit",
    "qk_circuit",
]

Doubles = npt.NDArray[np.float64]


def _model_of(trace: Trace, model: Runner | None) -> Runner:
    if model is None:
        if not isinstance(trace.model, Runner):
            raise ValueError("the trace was read from a file and has no weights; give model=")
        return trace.model
    if trace.fingerprint not in (None, model.fingerprint):
        raise ValueError("model is another one than the one that made the trace")
    return model


def _layer(model: Runner, layer: Any) -> int:
    layers = model.config.layers
    if not hasattr(layer, "__index__") or isinstance(layer, bool):
        raise TypeError(f"layer is {layer!r}; expected an integer")
    if not -layers <= int(layer) < layers:
        raise IndexError(f"layer is {layer}; expected 0 to {layers - 1}")
    return int(layer) % layers


def _head(model: Runner, layer: int, head: Any) -> int:
    heads = model.config.layer("heads", layer)
    if not hasattr(head, "__index__") or isinstance(head, bool):
        raise TypeError(f"head is {head!r}; expected an integer")
    if not -heads <= int(head) < heads:
        raise IndexError(f"head is {head}; expected 0 to {heads - 1}")
    return int(head) % heads


def _weight(model: Runner, name: str, rows: Any = None) -> Doubles:
    values: Doubles = model.weights[name].numpy(rows, dtype="float64")
    return values


def _token_id(model: Runner, token: Any, name: str = "token") -> int:
    if isinstance(token, (str, bytes)):
        if model.tokenizer is None:
            raise ValueError(f"{name} is text, and the model's file has no tokenizer; give an id")
        try:
            return model.tokenizer.id(token)
        except KeyError as error:
            raise ValueError(f"{name}: {error.args[0]}") from None
    if not hasattr(token, "__index__") or isinstance(token, bool):
        raise TypeError(f"{name} is {token!r}; expected a token id or its text")
    vocab = model.config.vocab_size
    if not 0 <= int(token) < vocab:
        raise ValueError(f"{name} is {token}; expected 0 to {vocab - 1}")
    return int(token)


def _captured(trace: Trace, needed: list[str], what: str) -> None:
    missing = [name for name in needed if name not in trace]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(f"{what} needs {shown}; capture it")


# ---- the logit lens ----


@dataclasses.dataclass(frozen=True, eq=False)
class Lens:
    """What each layer would predict: the result of `tinyllm.lens`.

    Attributes
    ----------
    names : list of str
        The taps, one per row.
    ids : numpy.ndarray of int32, shape (layers, T, k)
        The most likely tokens, best first.
    probs : numpy.ndarray of float32, shape (layers, T, k)
        Their probabilities.
    pieces : list of list of list of str
        Their texts, ``pieces[layer][token][rank]``.
    tokens : list of str
        The texts of the tokens of the trace.
    """

    names: list[str]
    ids: npt.NDArray[np.int32]
    probs: Floats
    pieces: list[list[list[str]]]
    tokens: list[str]

    def table(self) -> Table:
        """The best guess of each layer for each token.

        Returns
        -------
        Table
            The first column names the tap, the others the tokens.
        """
        rows = [
            (name, *(f"{cell[0]!r} {p[0]:.2f}" for cell, p in zip(pieces, probs, strict=True)))
            for name, pieces, probs in zip(self.names, self.pieces, self.probs, strict=True)
        ]
        return Table(("tap", *(repr(token) for token in self.tokens)), rows)

    def __repr__(self) -> str:
        """Name the size."""
        layers, tokens, k = self.ids.shape
        return f"<tinyllm.Lens: {layers} layers, {tokens} tokens, top {k}>"

    def _repr_html_(self) -> str:
        return self.table().html(caption=repr(self))


def lens(
    trace: Trace, k: int = 5, *, taps: Capture = "blk.*.resid_post", model: Runner | None = None
) -> Lens:
    """The logit lens: read the residual stream of every layer as if it were the last.

    nostalgebraist 2020, "interpreting GPT: the logit lens" (LessWrong). The model's final norm
    is applied, with the scale of each row's own; then its output matrix and a softmax.

    Parameters
    ----------
    trace : Trace
        With `taps` captured.
    k : int
        How many tokens to keep.
    taps : str, re.Pattern, callable or sequence of them
        Taps of shape (T, D); one row of the result each.
    model : Model, optional
        For traces that were read from a file.

    Returns
    -------
    Lens
        The last row is what the model itself predicts, to the bit, if the last
        ``resid_post`` is among the taps and nothing after it was edited.

    Raises
    ------
    ValueError
        The taps were not captured or are no residual streams, or `k` is out of range.

    Examples
    --------
    >>> import tinyllm as tl
    >>> t = tl.load().trace("ROMEO:")
    >>> result = tl.lens(t, k=3)
    >>> result.ids.shape == (t.config.layers, len(t.tokens), 3)
    True
    >>> bool((result.ids[-1, :, 0] == t["output"].argmax(axis=-1)).all())
    True
    """
    model = _model_of(trace, model)
    if not 1 <= k <= model.config.vocab_size:
        raise ValueError(f"k is {k}; expected 1 to {model.config.vocab_size}")
    names = match(list(trace), taps, "taps")
    wrong = [name for name in names if trace[name].shape[1:] != (model.config.width,)]
    if wrong or not names:
        raise ValueError(f"taps holds {wrong or taps}; expected taps of shape (T, D)")
    shape = (len(names), len(trace.tokens), k)
    ids, probs = np.empty(shape, np.int32), np.empty(shape, np.float32)
    for i, name in enumerate(names):
        logits = model.run_from(model.config.layers, trace[name], [], logits="all").logits
        best = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
        ids[i] = best
        probs[i] = np.take_along_axis(_softmax(logits), best, axis=-1)
    texts = dict(zip(np.unique(ids).tolist(), model.pieces(np.unique(ids)), strict=True))
    pieces = [[[texts[t] for t in row] for row in layer] for layer in ids.tolist()]
    return Lens(names, ids, probs, pieces, list(trace.pieces))


def _softmax(logits: Floats) -> Doubles:
    scores = logits.astype(np.float64)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total: Doubles = scores / scores.sum(axis=-1, keepdims=True)
    return total


# ---- direct logit attribution ----


@dataclasses.dataclass(frozen=True, eq=False)
class Attribution:
    """Where a logit comes from: the result of `tinyllm.attribution`.

    Attributes
    ----------
    names : list of str
        The parts: ``"token_embd"``, ``"blk.0.attn_mix[3]"`` (head 3 of layer 0),
        ``"blk.0.ffn_down"``, biases.
    values : numpy.ndarray of float64
        What each adds to the logit. They sum to `total`.
    heads : numpy.ndarray of float64, shape (layers, H)
        The heads' values again; NaN where a layer has fewer heads than another.
    ffn : numpy.ndarray of float64, shape (layers,)
        The feed-forward networks' values again.
    total : float
        Their sum: the logit, or the difference of two.
    token, minus : str
        What the logit is of.
    at : int
        The token of the trace.
    """

    names: list[str]
    values: Doubles
    heads: Doubles
    ffn: Doubles
    total: float
    token: str
    minus: str | None
    at: int

    def table(self, top: int = 12) -> Table:
        """The largest parts.

        Parameters
        ----------
        top : int
            How many.

        Returns
        -------
        Table
        """
        order = np.argsort(-abs(self.values), kind="stable")[:top]
        rows: list[tuple[object, ...]] = [
            (self.names[i], f"{self.values[i]:+.4f}") for i in order.tolist()
        ]
        rest = self.total - float(self.values[order].sum())
        rows += [(f"{len(self.names) - len(order)} others", f"{rest:+.4f}")]
        return Table(("part", "logit"), [*rows, ("sum", f"{self.total:+.4f}")])

    def __repr__(self) -> str:
        """Name the logit and its parts."""
        of = repr(self.token) + (f" - {self.minus!r}" if self.minus is not None else "")
        return f"<tinyllm.Attribution of {of}: {self.total:.4f}, {len(self.names)} parts>"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{self.table().html()}"


def attribution(
    trace: Trace,
    token: int | str,
    *,
    minus: int | str | None = None,
    at: int = -1,
    model: Runner | None = None,
) -> Attribution:
    """Direct logit attribution: what every head and every feed-forward network adds to a logit.

    The residual stream is a sum, and once the scale of the final norm is frozen at what it was
    in this run, a logit is linear in it. Elhage et al. 2021, "A Mathematical Framework for
    Transformer Circuits" (transformer-circuits.pub); the use on logit differences follows Wang
    et al. 2022, "Interpretability in the Wild" (arXiv:2211.00593), section 3.1.

    Parameters
    ----------
    trace : Trace
        With ``token_embd``, every ``attn_mix`` and ``ffn_down``, and ``output_norm_scale``; the
        default capture has them.
    token : int or str
        Whose logit; a str is the text of one token.
    minus : int or str, optional
        The logit of `token` minus that of this one.
    at : int
        Which token of the trace; negative ones count from the end.
    model : Model, optional
        For traces that were read from a file.

    Returns
    -------
    Attribution

    Raises
    ------
    ValueError
        A tap is missing, or there is no such token.
    IndexError
        `at` is out of range.

    Notes
    -----
    The parts are summed in float64; the model added them up in float32. Their sum differs from
    the tap ``output`` by the rounding of the residual stream and of each matmul: a few 1e-7 of
    the largest parts. In a run with edits of the residual stream itself the sum is that of the
    parts, not the logit.

    Examples
    --------
    >>> import tinyllm as tl
    >>> t = tl.load().trace("ROMEO:")
    >>> parts = tl.attribution(t, int(t["output"][-1].argmax()))
    >>> abs(parts.total - float(t["output"][-1].max())) < 1e-3
    True
    """
    model = _model_of(trace, model)
    config, weights = model.config, model.weights
    layers = range(config.layers)
    needed = ["token_embd", *(f"blk.{i}.{name}" for i in layers for name in _PARTS)]
    _captured(trace, [*needed, "output_norm_scale"], "attribution")
    n = len(trace.tokens)
    if not -n <= at < n:
        raise IndexError(f"at is {at}; expected {-n} to {n - 1}")
    name = "output.weight" if "output.weight" in weights else "token_embd.weight"
    ids = [_token_id(model, token)]
    ids += [] if minus is None else [_token_id(model, minus, "minus")]
    signs = np.array([1.0, -1.0])[: len(ids)]
    direction = signs @ _weight(model, name, ids)
    direction = direction * _weight(model, "output_norm.weight")
    direction = direction * float(trace["output_norm_scale"][at])

    names = ["token_embd"]
    values = [float(trace["token_embd"][at].astype(np.float64) @ direction)]
    most = max(config.layer("heads", i) for i in layers)
    heads, ffn = np.full((config.layers, most), np.nan), np.empty(config.layers)
    for i in layers:
        mix = trace[f"blk.{i}.attn_mix"][at].astype(np.float64)
        matrix = _weight(model, f"blk.{i}.attn_output.weight")
        parts = (mix * (direction @ matrix).reshape(mix.shape)).sum(axis=-1)
        heads[i, : len(parts)] = parts
        names += [f"blk.{i}.attn_mix[{head}]" for head in range(len(parts))]
        values += parts.tolist()
        bias = f"blk.{i}.attn_output.bias"
        if bias in weights:
            names.append(bias)
            values.append(float(_weight(model, bias) @ direction))
        ffn[i] = trace[f"blk.{i}.ffn_down"][at].astype(np.float64) @ direction
        names.append(f"blk.{i}.ffn_down")
        values.append(float(ffn[i]))
    if "output.bias" in weights:
        names.append("output.bias")
        values.append(float(signs @ _weight(model, "output.bias")[ids]))
    array = np.array(values)
    pieces = model.pieces(np.array(ids, np.int32))
    other = pieces[1] if minus is not None else None
    return Attribution(
        names, array, heads, ffn, float(array.sum()), pieces[0], other, at % n if n else 0
    )


_PARTS = ("attn_mix", "ffn_down")


def head_outputs(trace: Trace, layer: int, *, model: Runner | None = None) -> Floats:
    """What each head of a layer adds to the residual stream; see `Trace.head_outputs`.

    Parameters
    ----------
    trace : Trace
    layer : int
    model : Model, optional
        For traces that were read from a file.

    Returns
    -------
    numpy.ndarray of float32, shape (T, H, D)

    Examples
    --------
    >>> import tinyllm as tl
    >>> from tinyllm.analysis.lens import head_outputs
    >>> t = tl.load().trace("ROMEO:")
    >>> head_outputs(t, 0).shape == (*t["blk.0.attn_mix"].shape[:2], t.config.width)
    True
    """
    model = _model_of(trace, model)
    layer = _layer(model, layer)
    _captured(trace, [f"blk.{layer}.attn_mix"], "head_outputs")
    mix = trace[f"blk.{layer}.attn_mix"].astype(np.float64)
    matrix = _weight(model, f"blk.{layer}.attn_output.weight")
    heads, size = mix.shape[1:]
    out = np.empty((len(mix), heads, len(matrix)), np.float32)
    for head in range(heads):
        out[:, head] = mix[:, head] @ matrix[:, head * size : (head + 1) * size].T
    return out


# ---- circuits, from the weights alone ----


def ov_circuit(model: Runner, layer: int, head: int) -> Floats:
    """What a head writes for what it reads: its output matrix times its value matrix.

    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", section "Splitting
    Attention Head terms into Circuits".

    Parameters
    ----------
    model : Model
    layer, head : int
        With grouped-query attention, several heads share a value matrix.

    Returns
    -------
    numpy.ndarray of float32, shape (D, D)
        ``ov @ x`` is what the head adds to the residual stream of the token that attends, if it
        attends wholly to a token whose residual stream, divided by its root mean square, is x.
        The weight of the attention norm is in it; biases are not. Its rank is at most Dv.
        ``W_out @ ov @ W_embd.T`` shows it over tokens.

    Raises
    ------
    IndexError
        There is no such layer or head.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> tl.ov_circuit(model, 0, 1).shape == (model.config.width, model.config.width)
    True
    """
    layer = _layer(model, layer)
    head = _head(model, layer, head)
    size = model.config.value_size
    kv = _kv_head(model, layer, head)
    values = _weight(model, f"blk.{layer}.attn_v.weight", slice(kv * size, (kv + 1) * size))
    values = values * _weight(model, f"blk.{layer}.attn_norm.weight")
    out = _weight(model, f"blk.{layer}.attn_output.weight")[:, head * size : (head + 1) * size]
    circuit: Floats = (out @ values).astype(np.float32)
    return circuit


def qk_circuit(model: Runner, layer: int, head: int, *, offset: int = 0) -> Floats:
    """Which tokens a head attends to: its query matrix times its key matrix.

    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", section "Splitting
    Attention Head terms into Circuits"; with rotary embeddings the product depends on the
    distance (Su et al. 2021, arXiv:2104.09864, equation 16).

    Parameters
    ----------
    model : Model
    layer, head : int
        With grouped-query attention, several heads share a key matrix.
    offset : int
        How many tokens the key comes before the query.

    Returns
    -------
    numpy.ndarray of float32, shape (D, D)
        ``x @ qk @ y`` is the attention score, scaled, of a query whose residual stream, divided
        by its root mean square, is x, on a key whose is y. The weight of the attention norm is
        in it; biases are not.

    Raises
    ------
    IndexError
        There is no such layer or head.
    tinyllm.UnsupportedError
        The model normalizes queries and keys: its scores are no product of matrices.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> tl.qk_circuit(model, 0, 1, offset=1).shape == (model.config.width, model.config.width)
    True
    """
    layer = _layer(model, layer)
    head = _head(model, layer, head)
    if f"blk.{layer}.attn_q_norm.weight" in model.weights:
        raise UnsupportedError("this model normalizes queries and keys: there is no QK matrix")
    if not hasattr(offset, "__index__"):
        raise TypeError(f"offset is {offset!r}; expected an integer")
    size = model.config.head_size
    kv = _kv_head(model, layer, head)
    norm = _weight(model, f"blk.{layer}.attn_norm.weight")
    rows = slice(head * size, (head + 1) * size)
    queries = _weight(model, f"blk.{layer}.attn_q.weight", rows) * norm
    rows = slice(kv * size, (kv + 1) * size)
    keys = _weight(model, f"blk.{layer}.attn_k.weight", rows) * norm
    spec = Layer(model.config, layer)
    factors = None
    if "rope_freqs.weight" in model.weights:
        factors = _weight(model, "rope_freqs.weight")

    def turned(matrix: Doubles, position: int) -> Doubles:  # (Dh, D) -> (D, Dh)
        columns = matrix.T[:, np.newaxis]
        positions = np.full(len(columns), position)
        turned: Doubles = rotate(spec, columns, positions, factors)[:, 0]
        return turned

    scores = turned(queries, int(offset)) @ turned(keys, 0).T * spec.attention_scale(size)
    circuit: Floats = scores.astype(np.float32)
    return circuit


def _kv_head(model: Runner, layer: int, head: int) -> int:
    config = model.config
    return head // (config.layer("heads", layer) // config.layer("kv_heads", layer))


# ---- scores of heads ----


def induction_scores(model: Runner, length: int = 32, *, batch: int = 4, seed: int = 0) -> Doubles:
    """How much each head is an induction head.

    Random tokens are shown twice in a row; the score is the mean attention that the tokens of
    the second half pay to the token after their own first appearance. Olsson et al. 2022,
    "In-context Learning and Induction Heads" (arXiv:2209.11895), the "prefix matching score" of
    its appendix.

    Parameters
    ----------
    model : Model
    length : int
        Tokens that are repeated.
    batch : int
        How many sequences to average over.
    seed : int
        Of the tokens.

    Returns
    -------
    numpy.ndarray of float64, shape (layers, H)
        0 to 1; NaN where a layer has fewer heads than another.

    Raises
    ------
    ValueError
        `length` does not fit the context twice.

    Examples
    --------
    >>> import tinyllm as tl
    >>> scores = tl.induction_scores(tl.load(), 8)
    >>> bool(((scores >= 0) & (scores <= 1)).all())
    True
    """
    config, tokenizer = model.config, model.tokenizer
    limit = model.core.config["max_context"]
    if not 2 <= length <= (limit - 1) // 2:
        raise ValueError(f"length is {length}; expected 2 to {(limit - 1) // 2}")
    if batch < 1:
        raise ValueError(f"batch is {batch}; expected at least 1")
    ordinary = np.arange(config.vocab_size)
    start: list[int] = []
    if tokenizer is not None:
        known = [i for i in range(len(tokenizer)) if not tokenizer.is_special(i)]
        ordinary = np.array(known)
        if tokenizer.add_bos and tokenizer.bos is not None:
            start = [tokenizer.bos]
    random = np.random.default_rng(seed)
    prompts = []
    for _ in range(batch):
        once = ordinary[random.integers(0, len(ordinary), length)].tolist()
        prompts.append(start + once + once)
    traces = model.trace(prompts, "blk.*.attn_probs")
    queries = np.arange(len(start) + length, len(start) + 2 * length - 1)
    most = max(config.layer("heads", i) for i in range(config.layers))
    scores = np.full((config.layers, most), np.nan)
    for i in range(config.layers):
        paid = [t[f"blk.{i}.attn_probs"][:, queries, queries - length + 1] for t in traces]
        scores[i, : paid[0].shape[0]] = np.mean(paid, axis=(0, 2), dtype=np.float64)
    return scores


def attention_entropy(trace: Trace) -> Floats:
    """How spread out each head's attention is, in nats.

    Clark et al. 2019, "What Does BERT Look At?" (arXiv:1906.04341), section 3.3. 0: all on one
    token; log(n): evenly over n tokens.

    Parameters
    ----------
    trace : Trace
        With ``attn_probs`` captured.

    Returns
    -------
    numpy.ndarray of float32, shape (layers, H, T)
        Of the captured layers.

    Raises
    ------
    ValueError
        No ``attn_probs`` was captured, or the layers differ in heads.

    Examples
    --------
    >>> import tinyllm as tl
    >>> t = tl.load().trace("ROMEO:", "blk.*.attn_probs")
    >>> entropy = tl.attention_entropy(t)
    >>> float(abs(entropy[:, :, 0]).max())
    0.0
    """
    if not trace.names("blk.*.attn_probs"):
        raise ValueError("attention_entropy needs blk.*.attn_probs; capture it")
    probs = trace.stack("blk.*.attn_probs").astype(np.float64)
    logs = np.log(probs, out=np.zeros_like(probs), where=probs > 0)
    entropy: Floats = np.maximum(-(probs * logs).sum(axis=-1), 0).astype(np.float32)
    return entropy
