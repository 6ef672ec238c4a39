"""Plots of traces and weights, with matplotlib (``pip install matplotlib``).

Each function draws into `ax`, or into a new figure, and returns the Axes. matplotlib is imported
by the first call. ``ax.figure.savefig(path)`` writes a file, and needs no display.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._core import Weight
from .analysis.attribution import Attribution
from .analysis.attribution import attribution as _attribution
from .analysis.lens import Lens, TokenLens
from .analysis.lens import lens as _lens
from .base.checks import index, ranged
from .base.numeric import Float64
from .display.axes import axes
from .errors import printable
from .trace.taps import Capture
from .trace.trace import Trace

if TYPE_CHECKING:
    from .model import Model
    from .quantization.compare import QuantizationComparison
    from .training.run import Run

__all__ = [
    "attention",
    "attribution",
    "grid",
    "lens",
    "loss",
    "norms",
    "quantizations",
    "weights",
]

#: Number of tokens in a picture of the lens, whose cells have words.
_WORDS = 40

#: The size of labels in points, and the room in points that one takes across its direction.
_FONT, _LINE = 7, 9.0

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
    "IQ1_S": 0,
    "IQ2_XXS": 0,
    "IQ2_XS": 0,
    "IQ2_S": 0,
    "IQ3_XXS": 0,
    "IQ3_S": 0,
    "TQ1_0": 52,
    "TQ2_0": 64,
    "Q1_0": 0,
    "Q2_0": 0,
    "Q8_1": 0,
}


@functools.lru_cache(maxsize=8)
def _fonts(families: tuple[str, ...]) -> list[Any]:
    """Return the fonts that matplotlib writes a text of these families with."""
    from matplotlib import font_manager

    properties = [font_manager.FontProperties(family=[family]) for family in families]
    return [font_manager.get_font(font_manager.findfont(each)) for each in properties]


def _drawn(text: str) -> str:
    """Return a text without matplotlib's mathematics. What the font does not have is a box."""
    import matplotlib

    fonts = _fonts(tuple(matplotlib.rcParams["font.family"]))
    shown = printable(text).replace("\n", "\\n").replace("\t", "\\t")
    shown = "".join(
        c if c.isprintable() and any(font.get_char_index(ord(c)) for font in fonts) else "□"
        for c in shown
    )
    return shown.replace("$", r"\$")


def _label(text: str, most: int = 12) -> str:
    """Return a short label of a token, with visible spaces."""
    shown = text.replace(" ", "·")
    return _drawn(shown if len(shown) <= most else shown[: max(1, most - 1)] + "…")


def _inches(ax: Any, axis: str) -> float:
    """Return about how long an axis is. The layout is only known when the figure is drawn."""
    box = ax.get_position()
    width, height = ax.figure.get_size_inches()
    return float(box.width * width if axis == "x" else box.height * height)


def _token_ticks(
    ax: Any, tokens: Sequence[str], axis: str, start: int = 0, inches: float | None = None
) -> None:
    """Label an axis whose coordinates are positions with tokens, the first at `start`.

    If there is no room for all of them, every second, fifth, tenth and so on has a label, with its
    position.
    """
    room = max(1, int((_inches(ax, axis) if inches is None else inches) * 72 / _LINE))
    step = next(s for s in _steps() if s * room >= len(tokens))
    places = [i for i in range(start, start + len(tokens)) if i % step == 0]
    labels = [_label(tokens[i - start]) for i in places]
    if step > 1:
        labels = [f"{i} {label}" for i, label in zip(places, labels, strict=True)]
    if axis == "x":
        ax.set_xticks(places, labels, rotation=90, fontsize=_FONT)
    else:
        ax.set_yticks(places, labels, fontsize=_FONT)


def _steps() -> Iterator[int]:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10


def _window(tokens: slice | None, start: int, stop: int) -> tuple[int, int]:
    """Return the first position that a slice of positions selects, and the one after the last."""
    if tokens is None:
        return start, stop
    if not isinstance(tokens, slice) or tokens.step not in (None, 1):
        raise TypeError(f"tokens is {tokens!r}; expected a slice of positions of step 1")
    first, last, _ = tokens.indices(stop)
    first = max(first, start)
    if first >= last:
        raise ValueError(
            f"tokens is {tokens!r}; expected some of the positions {start} to {stop - 1}"
        )
    return first, last


def _ink(color: Sequence[float]) -> str:
    """Return black or white, whichever has more contrast on a color (WCAG 2.1)."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"


def _bar(ax: Any, image: Any, label: str) -> None:
    ax.figure.colorbar(image, ax=ax, shrink=0.8, label=label)


def attention(
    trace: Trace,
    layer: int,
    head: int | None = None,
    *,
    tokens: slice | None = None,
    ax: Any = None,
    cmap: str = "Blues",
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
    tokens : slice, optional
        The positions to show, on both axes. Default: all. Of many tokens, only some have labels.
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
        If ``attn_probs`` was not captured, or if `tokens` selects nothing.
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
    pieces = trace.context_pieces
    queries = _window(tokens, trace.start, trace.start + len(trace.tokens))
    keys = _window(tokens, 0, len(pieces))
    shown = probs[:, slice(queries[0] - trace.start, queries[1] - trace.start), slice(*keys)]
    edges = (keys[0] - 0.5, keys[1] - 0.5, queries[1] - 0.5, queries[0] - 0.5)

    def draw(on: Any, which: int) -> Any:
        return on.imshow(shown[which], cmap=cmap, vmin=0, vmax=1, aspect="auto", extent=edges)

    def label(on: Any, axis: str, inches: float | None = None) -> None:
        first, last = keys if axis == "x" else queries
        _token_ticks(on, pieces[first:last], axis, first, inches)
        (on.set_xlabel if axis == "x" else on.set_ylabel)(
            "key" if axis == "x" else "query", fontsize=8
        )

    if head is not None:
        side = 3.6 + min(6, 0.13 * max(np.ptp(keys), np.ptp(queries)))
        ax = axes(ax, side + 0.8, side)
        image = draw(ax, head)
        label(ax, "x")
        label(ax, "y")
        ax.set_title(f"{name}, head {head}", fontsize=9)
        _bar(ax, image, "attention")
        return ax
    columns = min(count, 4) if count <= 8 else int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    ax = axes(ax, 3 * columns + 1.6, 3 * rows + 1)
    ax.set_axis_off()
    ax.set_title(name, fontsize=10)
    width, height = 0.88 / columns, 0.86 / rows
    for i in range(count):
        row, column = divmod(i, columns)
        inset = ax.inset_axes([(column + 0.06) / columns, 1 - (row + 0.96) / rows, width, height])
        image = draw(inset, i)
        inset.set_title(f"head {i}", fontsize=8, pad=2)
        inset.set_xticks([])
        inset.set_yticks([])
        if column == 0:
            label(inset, "y", height * _inches(ax, "y"))
        if i + columns >= count:
            label(inset, "x", width * _inches(ax, "x"))
    _bar(ax, image, "attention")
    return ax


def grid(
    values: npt.ArrayLike,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    *,
    title: str = "",
    label: str = "",
    ax: Any = None,
) -> Any:
    """Plot a table of numbers as colors, such as the result of `tinyllm.patch_sweep`.

    Zero is white, and NaN is gray.

    Parameters
    ----------
    values : array_like of float, shape (rows, columns)
    rows, columns : sequence of str, optional
        Labels, for example the texts of tokens.
    title : str
    label : str
        What the numbers are, next to the color bar.
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
    ax = axes(ax, 2.4 + 0.25 * min(table.shape[1], 40), 1.4 + 0.2 * min(len(table), 40))
    finite = table[np.isfinite(table)]
    most = float(np.abs(finite).max()) if finite.size else 1.0
    image = ax.imshow(table, cmap="RdBu", vmin=-(most or 1), vmax=most or 1, aspect="auto")
    ax.set_facecolor("#cccccc")  # shows where values are NaN
    _bar(ax, image, label)
    if rows is not None:
        _token_ticks(ax, rows, "y")
    else:
        ax.set_ylabel("layer")
        ax.yaxis.get_major_locator().set_params(integer=True)
    if columns is not None:
        _token_ticks(ax, columns, "x")
    else:
        ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_title(_drawn(title), fontsize=10)
    return ax


def lens(
    result: Lens | TokenLens | Trace,
    *,
    tokens: slice | None = None,
    taps: Capture = "blk.*.resid_post",
    model: Model | None = None,
    ax: Any = None,
) -> Any:
    """Plot the logit lens: the most likely next token of each layer at each token.

    Parameters
    ----------
    result : Lens, TokenLens or Trace
        The result of `tinyllm.lens`, or a trace that is passed to it.
    tokens : slice, optional
        The positions to show. Default: the last 40; ``slice(None)`` shows all.
    taps, model
        Arguments of `tinyllm.lens`, if `result` is a trace.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
        The color is the probability of the token. The last layer is at the top. For a TokenLens,
        the color is the log-probability of the token, and the cells have its rank, 0 for the most
        likely one.

    Raises
    ------
    ValueError
        If `tokens` selects nothing.

    Examples
    --------
    >>> import tinyllm as tl
    >>> ax = tl.plot.lens(tl.load().trace("ROMEO:"))  # doctest: +SKIP
    """
    if isinstance(result, Trace):
        first, last = _window(tokens, result.start, result.start + len(result.tokens))
        first = max(first, last - _WORDS) if tokens is None else first
        at = slice(first - result.start, last - result.start)
        result, count = _lens(result, 1, at=at, taps=taps, model=model), len(result.tokens)
    else:
        count = len(result.tokens)
    first, last = _window(tokens, int(result.positions.min()), int(result.positions.max()) + 1)
    chosen = np.flatnonzero((result.positions >= first) & (result.positions < last))
    chosen = chosen[-_WORDS:] if tokens is None else chosen
    positions = result.positions[chosen]
    if (np.diff(positions) == 1).all():
        start = int(positions[0])
    else:  # chosen one by one: the axis counts them
        start = 0
    values: npt.NDArray[Any]
    if isinstance(result, TokenLens):  # most probabilities would be too small to see
        values, limits, meaning = result.logprobs[:, chosen], (-16, 0), "log-probability"
    else:
        values, limits, meaning = result.probs[:, chosen, 0], (0, 1), "probability"
    layers, columns = values.shape
    ax = axes(ax, 2.2 + 0.55 * min(columns, 2 * _WORDS), 1.6 + 0.22 * layers)
    image = ax.imshow(
        values,
        cmap="viridis",
        clim=limits,
        aspect="auto",
        origin="lower",
        extent=(start - 0.5, start + columns - 0.5, -0.5, layers - 0.5),
    )
    title = "logit lens"
    if isinstance(result, TokenLens):
        title += f": rank of {_label(result.token, 40)}"
    if columns < count:
        title += f", {columns} of {count} tokens"
    _bar(ax, image, meaning)
    _write_cells(ax, image, result, chosen, start)
    _token_ticks(ax, [result.tokens[i] for i in chosen], "x", start)
    families = {name.split(".", 2)[2] for name in result.names if name.startswith("blk.")}
    names, axis = result.names, "tap"
    if len(families) == 1 and all(name.startswith("blk.") for name in names):
        names, axis = [name.split(".")[1] for name in names], f"layer of {families.pop()}"
    room = int(_inches(ax, "y") * 72 / _LINE)
    step = next(s for s in _steps() if s * max(1, room) >= layers)
    ax.set_yticks(range(0, layers, step), names[::step], fontsize=_FONT)
    ax.set_ylabel(axis, fontsize=8)
    ax.set_xlabel("token", fontsize=8)
    ax.set_title(title, fontsize=10)
    return ax


def _write_cells(
    ax: Any, image: Any, result: Lens | TokenLens, chosen: npt.NDArray[np.int64], start: int
) -> None:
    """Write words or ranks into the cells of a lens, if they have room for them."""
    layers = len(result.names)
    letters = int(_inches(ax, "x") / len(chosen) * 72 / 4.4)
    if letters < 2 or _inches(ax, "y") / layers * 72 < _FONT + 1:
        return
    colors = image.cmap(image.norm(np.asarray(image.get_array())))
    for layer in range(layers):
        for column, token in enumerate(chosen.tolist()):
            if isinstance(result, TokenLens):
                text = f"{result.ranks[layer, token]}"
            else:
                text = _label(result.pieces[layer][token][0], letters)
            ax.text(
                start + column,
                layer,
                text,
                ha="center",
                va="center",
                fontsize=_FONT,
                color=_ink(colors[layer, column]),
            )


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
    ax = axes(ax, 6, 3.6)
    for family, (layers, rows) in found.items():
        values = np.array(rows)
        ax.plot(layers, values.mean(axis=1), marker="o", markersize=3, label=family)
        ax.fill_between(layers, values.min(axis=1), values.max(axis=1), alpha=0.15)
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("layer")
    ax.set_ylabel("norm: mean and range over tokens")
    ax.set_yscale("log")
    ax.legend(fontsize=8)
    return ax


def loss(run: Run, *, smooth: int = 1, ax: Any = None) -> Any:
    """Plot the loss of a training run by step.

    Parameters
    ----------
    run : Run
        The result of `tinyllm.train`.
    smooth : int
        The loss of the steps is averaged over this many.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
        With the loss of the held out part, if there is one.

    Raises
    ------
    ValueError
        If the run has no steps, or fewer than `smooth`.

    Examples
    --------
    >>> import tinyllm as tl
    >>> run = tl.train("abcd" * 90, layers=1, width=8, heads=2, context=8, batch=2, steps=4)
    >>> ax = tl.plot.loss(run)  # doctest: +SKIP
    """
    losses = run.log.loss
    if not 1 <= smooth <= len(losses):
        raise ValueError(f"smooth is {smooth}; expected 1 to {len(losses)}, the number of steps")
    ax = axes(ax, 6, 3.6)
    mean = np.convolve(losses, np.full(smooth, 1 / smooth), mode="valid")
    ax.plot(np.arange(smooth, len(losses) + 1), mean, linewidth=1, label="training")
    held_out = run.log.validation_loss
    if len(held_out):
        ax.plot(held_out[:, 0], held_out[:, 1], marker="o", markersize=3, label="held out")
    ax.set_xlabel("step")
    ax.set_ylabel("loss, nats per token")
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
    ax = axes(ax, 6, 1 + 0.24 * len(order))
    values = result.values[order]
    ax.barh(range(len(order)), values, color=np.where(values < 0, "#b2543a", "#3a72b2"))
    ax.set_yticks(range(len(order)), [_drawn(result.names[i]) for i in order], fontsize=_FONT)
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
    ax = axes(ax, 6, 4)
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
    ax = axes(ax, 6, 4)
    finite = values[np.isfinite(values)]
    most = float(np.abs(finite).max()) if finite.size else 1.0
    edges = np.linspace(-(most or 1), most or 1, 102)
    counts = np.array([np.histogram(row[np.isfinite(row)], edges)[0] for row in values])
    extent = (edges[0], edges[-1], total, 0)
    ax.imshow(np.log1p(counts), cmap="Greys", aspect="auto", extent=extent)
    ax.set_xlabel("value")
    ax.set_ylabel("row")
    ax.set_title(_drawn(f"{weight.name} {weight.type} {weight.shape}"), fontsize=9)
    scales = _block_scales(weight, chosen)
    if scales is not None:  # inside of the axes, so that nothing beside them is covered
        low, high = float(edges[0]), float(edges[-1])
        ax.set_xlim(low, low + (high - low) / 0.75)
        ax.set_xticks([t for t in ax.get_xticks() if low <= t <= high])
        ax.xaxis.set_label_coords(0.375, -0.1)
        box = ax.inset_axes([0.78, 0, 0.22, 1])
        box.fill_betweenx(chosen, scales.min(axis=1), scales.max(axis=1), alpha=0.25)
        box.plot(scales.mean(axis=1), chosen, linewidth=0.8)
        box.set_ylim(total, 0)
        box.set_yticks([])
        box.tick_params(labelsize=6)
        box.locator_params(axis="x", nbins=2)
        where = {"ha": "center", "va": "top", "transform": box.transAxes}
        box.text(0.5, 0.99, "block scales", fontsize=_FONT, **where)
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
