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

from ..base.numeric import Float32, Float64
from .table import escape

__all__ = ["Guesses", "Page"]

#: Largest number of attention weights. Each takes one byte before base64.
_LIMIT = 64 << 20


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
        Attention weights by layer. The page rounds them to 256 steps.
    norms : mapping of str to (list of int, list of numpy.ndarray)
        For each kind of tap: the layers, and for each layer the norm at each token.
    lens : Guesses, optional

    Raises
    ------
    ValueError
        If there are no tokens, or more than 67,108,864 attention weights.
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

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("the trace has no tokens to show")
        size = sum(probs.size for probs in self.attention.values())
        if size > _LIMIT:
            raise ValueError(
                f"the page would hold {size:,} attention weights; expected at most {_LIMIT:,}: "
                "capture fewer layers, or slice the trace"
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
                "probs": [[[_number(p) for p in row] for row in part] for part in self.lens.probs],
            }
        return {
            "title": self.title,
            "summary": self.summary,
            "start": self.start,
            "rows": self.rows,
            "ids": self.ids,
            "pieces": [_text(piece) for piece in self.pieces],
            "attention": {layer: _steps(probs) for layer, probs in self.attention.items()},
            "norms": {
                family: {
                    "layers": layers,
                    "values": [[_number(value) for value in row] for row in rows],
                }
                for family, (layers, rows) in self.norms.items()
            },
            "lens": lens,
        }


def _steps(probs: Float32) -> dict[str, Any]:
    """Return attention weights in 256 steps, as base64 of bytes."""
    steps = np.rint(np.clip(np.nan_to_num(probs, nan=0.0), 0, 1) * 255).astype(np.uint8)
    return {
        "heads": len(steps),
        "keys": steps.shape[2],
        "data": base64.b64encode(steps.tobytes()).decode(),
    }


def _text(piece: str) -> str:
    """Return a token's text with lone surrogates escaped, since UTF-8 cannot encode them."""
    return piece.encode("utf-8", "backslashreplace").decode()


def _number(value: Any) -> float | None:
    return float(f"{float(value):.5g}") if np.isfinite(value) else None
