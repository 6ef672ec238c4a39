"""The self-contained HTML page of a trace that `Trace.html` makes.

The page contains its data, style and script. Its content security policy forbids connections, and
allows only its own script. Token texts are inserted as text, never as markup.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..base.numeric import Float32, Float64
from .attention import pack
from .table import escape

__all__ = ["PARTS", "Guesses", "Largest", "Page", "frame", "largest", "largest_neurons"]

#: Largest number of attention matrices times tokens, and of tokens in the context.
_ROWS, _CONTEXT = 4 << 20, 1 << 16

#: Number of components and of neurons that the page has for each token.
PARTS, NEURONS = 12, 8


@dataclasses.dataclass
class Guesses:
    """The most likely next tokens after each layer.

    Attributes
    ----------
    names : list of str
        Names of the rows, which are layers.
    pieces : list of list of list of str
        Texts of the predicted tokens, ``pieces[row][token][rank]``.
    probs : numpy.ndarray of float32, shape (rows, T, k)
        Their probabilities.
    """

    names: list[str]
    pieces: list[list[list[str]]]
    probs: Float32


@dataclasses.dataclass
class Largest:
    """The components, or neurons, with the largest values at each token.

    Attributes
    ----------
    names : list of str
        The names of all of them.
    indices : numpy.ndarray of int, shape (T, k)
        Those with the largest absolute values, the largest first: indices of `names`.
    values : numpy.ndarray of float, shape (T, k)
    of : list of str
        What the values add up to at each token, such as the token of a logit. May be empty.
    """

    names: list[str]
    indices: npt.NDArray[np.integer[Any]]
    values: npt.NDArray[np.floating[Any]]
    of: list[str]


@dataclasses.dataclass
class Page:
    """The contents of the page.

    Attributes
    ----------
    title, summary : str
    start, rows : int
        Position of the first token of the trace, and the number of its tokens.
    ids, pieces : list of int and of str
        The tokens of the whole context.
    attention : mapping of str to numpy.ndarray of float32, shape (H, T, S)
        Attention weights by layer. The page rounds them to 256 steps. Of more than 12,582,912
        weights it has the largest of each row.
    norms : mapping of str to (list of int, list of numpy.ndarray)
        For each kind of tap: the layers, and for each layer the norm at each token.
    lens : Guesses, optional
    parts, neurons : Largest, optional
        The parts of the logit of the most likely token, and the neurons that are most active.

    Raises
    ------
    ValueError
        If there are no tokens, or too many: 65,536 in the context, or 4,194,304 rows of attention
        matrices.
    """

    title: str
    summary: str
    start: int
    rows: int
    ids: list[int]
    pieces: list[str]
    attention: Mapping[str, Float32]
    norms: Mapping[str, tuple[list[int], Sequence[Float64]]]
    lens: Guesses | None = None
    parts: Largest | None = None
    neurons: Largest | None = None

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("the trace has no tokens to show")
        rows = sum(probs.shape[0] * probs.shape[1] for probs in self.attention.values())
        if rows > _ROWS or len(self.ids) > _CONTEXT:
            raise ValueError(
                f"the page would have {rows:,} rows of attention and {len(self.ids):,} tokens; "
                f"expected at most {_ROWS:,} and {_CONTEXT:,}: capture fewer layers, or slice "
                "the trace"
            )

    def html(self) -> str:
        """Return the page as HTML."""
        # "<" is escaped, so that nothing in the data can close the script element around it.
        data = json.dumps(self._data(), separators=(",", ":")).replace("<", "\\u003c")
        folder = Path(__file__).parent / "web"
        script = (folder / "trace.js").read_text(encoding="utf-8")
        style = (folder / "trace.css").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        return (
            "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            "<meta name='viewport' content='width=device-width'>"
            f"<title>{escape(self.summary)}</title><style>{style}</style></head><body>"
            f"<script type='application/json' id='data'>{data}</script>"
            f"<script>{script}</script></body></html>\n"
        )

    def _data(self) -> dict[str, Any]:
        lens = None
        if self.lens is not None:
            lens = {
                "names": self.lens.names,
                "pieces": [[[_text(p) for p in row] for row in part] for part in self.lens.pieces],
                "probs": [[_numbers(row) for row in part] for part in self.lens.probs],
            }
        total = sum(probs.size for probs in self.attention.values())
        return {
            "title": self.title,
            "summary": self.summary,
            "start": self.start,
            "rows": self.rows,
            "ids": self.ids,
            "pieces": [_text(piece) for piece in self.pieces],
            "attention": {layer: pack(probs, total) for layer, probs in self.attention.items()},
            "norms": {
                family: {"layers": layers, "values": [_numbers(row) for row in rows]}
                for family, (layers, rows) in self.norms.items()
            },
            "lens": lens,
            "parts": _largest(self.parts),
            "neurons": _largest(self.neurons),
        }


def _largest(found: Largest | None) -> dict[str, Any] | None:
    if found is None:
        return None
    used, places = np.unique(found.indices, return_inverse=True)  # most names are never shown
    return {
        "names": [_text(found.names[i]) for i in used.tolist()],
        "indices": places.reshape(found.indices.shape).tolist(),
        "values": [_numbers(row) for row in found.values],
        "of": [_text(piece) for piece in found.of],
    }


def largest(names: list[str], values: npt.NDArray[Any], count: int, of: list[str]) -> Largest:
    """Return the components with the largest absolute values at each token.

    Parameters
    ----------
    names : list of str
    values : numpy.ndarray of float, shape (T, len(names))
    count : int
    of : list of str

    Returns
    -------
    Largest
    """
    sizes = np.nan_to_num(np.abs(values), nan=-1.0)
    kept = min(count, sizes.shape[1])
    indices = np.argpartition(-sizes, kept - 1, axis=1)[:, :kept]
    order = np.argsort(-np.take_along_axis(sizes, indices, axis=1), axis=1, kind="stable")
    indices = np.take_along_axis(indices, order, axis=1)
    return Largest(names, indices, np.take_along_axis(values, indices, axis=1), of)


def _text(piece: str) -> str:
    """Return a token's text with lone surrogates escaped, since UTF-8 cannot encode them."""
    return piece.encode("utf-8", "backslashreplace").decode()


def largest_neurons(activations: Mapping[str, npt.NDArray[Any]]) -> Largest | None:
    """Return the neurons with the largest absolute activations at each token.

    Parameters
    ----------
    activations : mapping of str to numpy.ndarray
        Activations (T, F) by the name of the tap. Arrays with other axes, as those of experts, are
        left out.

    Returns
    -------
    Largest or None
        None if nothing is left. The names are ``"blk.3.ffn_act[17]"``.
    """
    taps = [(name, array) for name, array in activations.items() if array.ndim == 2]
    if not taps:
        return None
    codes, values = [], []
    step = max(array.shape[1] for _, array in taps)
    for i, (_, array) in enumerate(taps):
        found = largest([], array, NEURONS, [])
        codes.append(i * step + found.indices)
        values.append(found.values)
    best = largest([], np.concatenate(values, axis=1), NEURONS, [])
    chosen = np.take_along_axis(np.concatenate(codes, axis=1), best.indices, axis=1)
    used, places = np.unique(chosen, return_inverse=True)
    names = [f"{taps[code // step][0]}[{code % step}]" for code in used.tolist()]
    return Largest(names, places.reshape(chosen.shape), best.values, [])


def frame(html: str, height: int) -> str:
    """Return a page as an element of another page. It has no access to that one."""
    return (
        f"<iframe srcdoc='{escape(html)}' sandbox='allow-scripts' "
        f"style='width:100%;height:{height}px;border:0'></iframe>"
    )


def _numbers(values: npt.NDArray[Any]) -> list[float | None]:
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values.tolist()]
