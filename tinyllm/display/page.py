"""One self-contained page of a run, to click through in a browser: `Trace.html`.

The page holds its data, style and script, and asks nobody for anything: a content security policy
forbids it any connection, and lets only the script that is written here run. Token texts are put
in as text, never as markup.
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

#: Bytes of attention that a browser still opens with ease.
_LIMIT = 64 << 20


@dataclasses.dataclass
class Guesses:
    """What each layer would predict.

    Attributes
    ----------
    names : list of str
        One per row.
    pieces : list of list of list of str
        Texts, ``pieces[row][token][rank]``.
    probs : numpy.ndarray of float32, shape (rows, T, k)
    """

    names: list[str]
    pieces: list[list[list[str]]]
    probs: Float32


@dataclasses.dataclass
class Page:
    """What the page shows.

    Attributes
    ----------
    title, summary : str
    start : int
        Position of the first token.
    ids, pieces : list of int and of str
        The tokens.
    attention : mapping of str to numpy.ndarray of float32, shape (H, T, S)
        By layer; shown in 256 steps.
    norms : mapping of str to (list of int, list of numpy.ndarray)
        By family of taps: layers, and the norm of each token in each.
    lens : Guesses, optional

    Raises
    ------
    ValueError
        There are more than 64 MiB of attention, or no tokens.
    """

    title: str
    summary: str
    start: int
    ids: list[int]
    pieces: list[str]
    attention: Mapping[str, Float32]
    norms: Mapping[str, tuple[list[int], Sequence[Float64]]]
    lens: Guesses | None = None

    def __post_init__(self) -> None:
        if not self.ids:
            raise ValueError("the trace has no tokens to show")
        size = sum(probs.size for probs in self.attention.values())
        if size > _LIMIT:
            raise ValueError(
                f"the page would hold {size:,} attention weights; expected at most {_LIMIT:,}: "
                "capture fewer layers, or slice the trace"
            )

    def html(self) -> str:
        """The page as HTML."""
        # "<" as an escape: nothing in the data can end the element that holds it
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
    """Attention in 256 steps."""
    steps = np.rint(np.clip(np.nan_to_num(probs, nan=0.0), 0, 1) * 255).astype(np.uint8)
    return {
        "heads": len(steps),
        "keys": steps.shape[2],
        "data": base64.b64encode(steps.tobytes()).decode(),
    }


def _text(piece: str) -> str:
    """A token's text with lone surrogates, which no page can hold, made visible."""
    return piece.encode("utf-8", "backslashreplace").decode()


def _number(value: Any) -> float | None:
    return float(f"{float(value):.5g}") if np.isfinite(value) else None
