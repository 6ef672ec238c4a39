"""Plots of traces and weights, with matplotlib (``pip install matplotlib``).

Each function draws into `ax`, or into a new figure, and returns the Axes. matplotlib is imported
by the first call. ``ax.figure.savefig(path)`` writes a file, and needs no display.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._core import Weight
from .analysis.attribution import Attribution
from .analysis.attribution import attribution as _attribution
from .analysis.lens import Lens
from .analysis.lens import lens as _lens
from .base.checks import index, ranged
from .base.numeric import Float64
from .trace.taps import Capture
from .trace.trace import Trace

if TYPE_CHECKING:
    from .model import Model
    from .quantization.compare import QuantizationComparison

__all__ = ["attention", "attribution", "grid", "lens", "norms", "quantizations", "weights"]

#: Largest number of labels on an axis. Axes with more tokens have no labels.
_LABELS = 64

#: Offset in bytes of the float16 scale in a block of each type (ggml-common.h of ggml). MXFP4 has
#: one byte there, an exponent.
_SCALES = {
    "Q4_0": 0,
    "Q4_1": 0,
    "Q5_0": 0,
    "Q5_1": 0,
    "Q8_0": 0,
    "Q2_K": 80,
    "Q3_K": 108,
    "Q4_K": 0,
    "Q5_K": 0,
    "Q6_K": 208,
    "IQ4_NL": 0,
    "IQ4_XS": 0,
    "MXFP4": 0,
}


def _axes(ax: Any, width: float, height: float) -> Any:
    try:
        import matplotlib.axes
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "tinyllm.plot needs matplotlib: pip install matplotlib", name=error.name
        ) from error
    if ax is None:
        return plt.subplots(figsize=(width, height), layout="constrained")[1]
    if not isinstance(ax, matplotlib.axes.Axes):
        raise TypeError(f"ax is {ax!r}; expected a matplotlib Axes or None")
    return ax


def _label(text: str) -> str:
    """Return a short label of a token, with visible spaces and without matplotlib's math text."""
    shown = repr(text)[1:-1].replace(" ", "·")
    shown = "".join(c if c.isprintable() and ord(c) < 0x2000 else "□" for c in shown)
    return (shown if len(shown) <= 9 else shown[:8] + "…").replace("$", r"\$")


def _token_ticks(ax: Any, tokens: Sequence[str], axis: str, start: int = 0) -> None:
    """Label an axis whose coordinates are positions with tokens, the first at `start`."""
    if len(tokens) > _LABELS:
        (ax.set_xlabel if axis == "x" else ax.set_ylabel)("token")
        return
    labels = [_label(token) for token in tokens]
    places = range(start, start + len(labels))
    if axis == "x":
        ax.set_xticks(places, labels, rotation=90, fontsize=7)
    else:
        ax.set_yticks(places, labels, fontsize=7)


def attention(
    trace: Trace, layer: int, head: int | None = None, *, ax: Any = None, cmap: str = "Blues"
) -> Any:
    """Plot the attention matrices of a layer. Rows are queries, columns are keys.

    Both axes count positions in the context. Labels are the tokens at these positions.

    Parameters
    ----------
    trace : Trace
        A trace with ``attn_probs`` of the layer. Its rows are the queries. The keys are the tokens
        of the whole context, from before the call too.
    layer : int
    head : int, optional
        The head to plot. Default: all heads, side by side.
    ax : matplotlib.axes.Axes, optional
    cmap : str
        Name of a matplotlib colormap.

    Returns
    -------
    matplotlib.axes.Axes
        If all heads are plotted, each has an inset (``ax.child_axes``).

    Raises
    ------
    ValueError
        If ``attn_probs`` was not captured.
    IndexError
        If `layer` or `head` is out of range.

    Examples
    --------
    >>> import tinyllm as tl
    >>> t = tl.load().trace("ROMEO:", "blk.*.attn_probs")
    >>> ax = tl.plot.attention(t, layer=0)  # doctest: +SKIP
    """
    layers = trace.config.layers
    block = f"blk.{index('layer', layer, layers)}."
    name = next((n for n in trace.by_role("attn_probs") if n.startswith(block)), "")
    if not name:
        raise ValueError(f"plot.attention needs {block}attn_probs; capture it")
    probs = trace[name]
    count = len(probs)
    if head is not None:
        head = index("head", head, count)
    keys, start, stop = trace.context_pieces, trace.start, trace.start + len(trace.tokens)
    edges = (-0.5, len(keys) - 0.5, stop - 0.5, start - 0.5)
    if head is not None:
        ax = _axes(ax, 5, 5)
        ax.imshow(probs[head], cmap=cmap, vmin=0, vmax=1, aspect="auto", extent=edges)
        _token_ticks(ax, keys, "x")
        _token_ticks(ax, trace.pieces, "y", start)
        ax.set_title(f"{name}, head {head}", fontsize=9)
        return ax
    columns = min(count, 4) if count <= 8 else int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    ax = _axes(ax, 3 * columns + 0.6, 3.5 * rows)
    ax.set_axis_off()
    ax.set_title(name, fontsize=10)
    for i in range(count):
        row, column = divmod(i, columns)
        box = [
            (column + 0.04) / columns,
            1 - (row + 0.98) / rows,
            0.88 / columns,
            0.86 / rows,
        ]
        inset = ax.inset_axes(box)
        inset.imshow(probs[i], cmap=cmap, vmin=0, vmax=1, aspect="auto", extent=edges)
        inset.set_title(f"head {i}", fontsize=8, pad=2)
        inset.set_xticks([])
        inset.set_yticks([])
        if column == 0:
            _token_ticks(inset, trace.pieces, "y", start)
        if row == rows - 1:
            _token_ticks(inset, keys, "x")
    return ax


def grid(
    values: npt.ArrayLike,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    *,
    title: str = "",
    ax: Any = None,
) -> Any:
    """Plot a table of numbers as colors, such as the result of `tinyllm.patch_sweep`.

    Zero is white.

    Parameters
    ----------
    values : array_like of float, shape (rows, columns)
    rows, columns : sequence of str, optional
        Labels, for example the texts of tokens.
    title : str
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If `values` does not have two axes, or if there are too many or too few labels.

    Examples
    --------
    >>> import tinyllm as tl
    >>> ax = tl.plot.grid([[0, 1], [-1, 0]], columns=["a", "b"])  # doctest: +SKIP
    """
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"values has shape {table.shape}; expected (rows, columns)")
    for name, labels, size in (("rows", rows, len(table)), ("columns", columns, table.shape[1])):
        if labels is not None and len(labels) != size:
            raise ValueError(f"{name} has {len(labels)} labels; expected {size}")
    ax = _axes(ax, 2 + 0.35 * min(table.shape[1], 40), 1.2 + 0.35 * min(len(table), 40))
    finite = table[np.isfinite(table)]
    most = float(np.abs(finite).max()) if finite.size else 1.0
    image = ax.imshow(table, cmap="RdBu", vmin=-(most or 1), vmax=most or 1, aspect="auto")
    ax.figure.colorbar(image, ax=ax, shrink=0.8)
    if rows is not None:
        _token_ticks(ax, rows, "y")
    else:
        ax.set_ylabel("layer")
    if columns is not None:
        _token_ticks(ax, columns, "x")
    ax.set_title(title.replace("$", r"\$"), fontsize=10)
    return ax


def lens(
    result: Lens | Trace,
    *,
    taps: Capture = "blk.*.resid_post",
    model: Model | None = None,
    ax: Any = None,
) -> Any:
    """Plot the logit lens: the most likely next token of each layer at each token.

    Parameters
    ----------
    result : Lens or Trace
        The result of `tinyllm.lens`, or a trace that is passed to it.
    taps, model
        Arguments of `tinyllm.lens`, if `result` is a trace.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
        The color is the probability of the token. The last layer is at the top.

    Examples
    --------
    >>> import tinyllm as tl
    >>> ax = tl.plot.lens(tl.load().trace("ROMEO:"))  # doctest: +SKIP
    """
    if isinstance(result, Trace):
        result = _lens(result, 1, taps=taps, model=model)
    layers, tokens, _ = result.ids.shape
    start = result.start
    ax = _axes(ax, 2 + 0.6 * min(tokens, 40), 1.4 + 0.45 * min(layers, 40))
    image = ax.imshow(
        result.probs[:, :, 0],
        cmap="viridis",
        vmin=0,
        vmax=1,
        aspect="auto",
        origin="lower",
        extent=(start - 0.5, start + tokens - 0.5, -0.5, layers - 0.5),
    )
    ax.figure.colorbar(image, ax=ax, shrink=0.8, label="probability")
    if layers * tokens <= 2000:
        for layer in range(layers):
            for token in range(tokens):
                ax.text(
                    start + token,
                    layer,
                    _label(result.pieces[layer][token][0]),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if result.probs[layer, token, 0] < 0.6 else "black",
                )
    _token_ticks(ax, result.tokens, "x", start)
    ax.set_yticks(range(layers), result.names, fontsize=7)
    ax.set_title("logit lens", fontsize=10)
    return ax


def norms(trace: Trace, *, ax: Any = None) -> Any:
    """Plot the norms of the residual stream, and of what each branch adds to it, by layer.

    Parameters
    ----------
    trace : Trace
        A trace with ``resid_post``, ``attn_output`` or ``ffn_down``.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
        Lines are means of the Euclidean norm over tokens, and bands are its ranges.

    Raises
    ------
    ValueError
        If none of these taps was captured.

    Examples
    --------
    >>> import tinyllm as tl
    >>> ax = tl.plot.norms(tl.load().trace("ROMEO:"))  # doctest: +SKIP
    """
    found = trace.stream_norms()
    if not found:
        raise ValueError("plot.norms needs resid_post, attn_output or ffn_down; capture one")
    ax = _axes(ax, 6, 3.6)
    for family, (layers, rows) in found.items():
        values = np.array(rows)
        ax.plot(layers, values.mean(axis=1), marker="o", markersize=3, label=family)
        ax.fill_between(layers, values.min(axis=1), values.max(axis=1), alpha=0.15)
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("layer")
    ax.set_ylabel("norm, over tokens")
    ax.set_yscale("log")
    ax.legend(fontsize=8)
    return ax


def attribution(
    result: Attribution | Trace,
    token: int | str | None = None,
    *,
    top: int = 16,
    ax: Any = None,
    **options: Any,
) -> Any:
    """Plot the largest contributions to a logit as bars.

    Parameters
    ----------
    result : Attribution or Trace
        The result of `tinyllm.attribution`, or a trace that is passed to it.
    token : int or str, optional
        The token of the logit. Required if `result` is a trace.
    top : int
        Number of bars.
    ax : matplotlib.axes.Axes, optional
    **options
        Further arguments of `tinyllm.attribution`, if `result` is a trace.

    Returns
    -------
    matplotlib.axes.Axes

    Examples
    --------
    >>> import tinyllm as tl
    >>> t = tl.load().trace("ROMEO:")
    >>> ax = tl.plot.attribution(tl.attribution(t, 5))  # doctest: +SKIP
    """
    if isinstance(result, Trace):
        if token is None:
            raise TypeError("token is None; expected a token id or its text for a trace")
        result = _attribution(result, token, **options)
    ranged("top", top, 1)
    order = np.argsort(-abs(result.values), kind="stable")[:top]
    ax = _axes(ax, 6, 1 + 0.24 * len(order))
    values = result.values[order]
    ax.barh(range(len(order)), values, color=np.where(values < 0, "#b2543a", "#3a72b2"))
    ax.set_yticks(range(len(order)), [result.names[i] for i in order], fontsize=7)
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=0.6)
    of = _label(result.token) + (f" - {_label(result.minus)}" if result.minus is not None else "")
    ax.set_title(f"logit of {of}: {result.total:.3f}", fontsize=10)
    ax.set_xlabel("added to the logit")
    return ax


def quantizations(comparison: QuantizationComparison, *, ax: Any = None) -> Any:
    """Plot the KL divergence of each type against its bits per weight.

    Parameters
    ----------
    comparison : QuantizationComparison
        As `tinyllm.compare_quantizations` returns it.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
        One point per type, with its name. A type without any divergence is left out, because the
        axis of the divergence is logarithmic.

    Examples
    --------
    >>> import tinyllm as tl
    >>> found = tl.compare_quantizations(tl.load(), "To be, or not to be", ["Q6_K", "Q3_K_S"])
    >>> ax = tl.plot.quantizations(found)  # doctest: +SKIP
    """
    ax = _axes(ax, 6, 4)
    shown = [result for result in comparison.results if result.kl > 0]
    ax.plot([r.bits for r in shown], [r.kl for r in shown], "o")
    for result in shown:
        ax.annotate(
            result.type,
            (result.bits, result.kl),
            xytext=(4, 4),
            textcoords="offset points",
        )
    ax.set_yscale("log")
    ax.set_xlabel("bits per weight")
    ax.set_ylabel("KL divergence")
    return ax


def weights(weight: Weight, *, ax: Any = None) -> Any:
    """Plot a histogram of the values of each row of a weight, and the scales of its blocks.

    Parameters
    ----------
    weight : Weight
        Of more than 256 rows, 256 evenly spaced rows are shown.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
        Darker cells have more values. For quantized types, an inset on the right shows the
        absolute scale of the blocks (of 32 or 256 values) in each row: the mean as a line, the
        range as a band.

    Raises
    ------
    TypeError
        If `weight` is not a Weight.

    Examples
    --------
    >>> import tinyllm as tl
    >>> ax = tl.plot.weights(tl.load().weights["blk.0.attn_q.weight"])  # doctest: +SKIP
    """
    if not isinstance(weight, Weight):
        raise TypeError(f"weight is {weight!r:.80}; expected a tinyllm.Weight")
    matrix = len(weight.shape) > 1
    total = weight.shape[0] if matrix else 1
    chosen = np.unique(np.linspace(0, total - 1, min(total, 256)).astype(np.int64))
    values = weight.numpy(chosen) if matrix else weight.numpy()
    values = np.asarray(values, np.float64).reshape(len(chosen), -1)
    ax = _axes(ax, 6, 4)
    finite = values[np.isfinite(values)]
    most = float(np.abs(finite).max()) if finite.size else 1.0
    edges = np.linspace(-(most or 1), most or 1, 102)
    counts = np.array([np.histogram(row[np.isfinite(row)], edges)[0] for row in values])
    extent = (edges[0], edges[-1], total, 0)
    ax.imshow(np.log1p(counts), cmap="Greys", aspect="auto", extent=extent)
    ax.set_xlabel("value")
    ax.set_ylabel("row")
    ax.set_title(f"{weight.name} {weight.type} {weight.shape}".replace("$", r"\$"), fontsize=9)
    scales = _block_scales(weight, chosen)
    if scales is not None:
        box = ax.inset_axes([1.02, 0, 0.2, 1])
        box.fill_betweenx(chosen, scales.min(axis=1), scales.max(axis=1), alpha=0.25)
        box.plot(scales.mean(axis=1), chosen, linewidth=0.8)
        box.set_ylim(total, 0)
        box.set_yticks([])
        box.tick_params(labelsize=6)
        box.set_xticks([scales.min(), scales.max()])
        box.set_xticklabels([f"{scales.min():.1e}", f"{scales.max():.1e}"], rotation=90)
        box.set_title("block scales", fontsize=7)
    return ax


def _block_scales(weight: Weight, rows: npt.NDArray[np.int64]) -> Float64 | None:
    """Return each block's absolute scale, shape (rows, blocks), or None for types without one."""
    from ._core import tensor_types

    if weight.type not in _SCALES or len(weight.shape) < 2:
        return None
    size = tensor_types()[weight.type][2]
    raw = np.ascontiguousarray(weight.raw[rows]).reshape(len(rows), -1, size)
    at = _SCALES[weight.type]
    if weight.type == "MXFP4":
        return np.exp2(raw[:, :, at].astype(np.float64) - 128)
    halves = np.ascontiguousarray(raw[:, :, at : at + 2]).view("<f2")[:, :, 0]
    return np.abs(halves.astype(np.float64))
