"""One self-contained page of a trace, to click through in a browser: `Trace.html`.

The page holds its data, style and script, and asks nobody for anything: a content security policy
forbids it any connection, and lets only the script that is written here run. Token texts are put
in as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..files.atomic import write_atomically
from ..trace.trace import Trace
from .table import escape

__all__ = ["page", "write_page"]

#: Bytes of attention that a browser still opens with ease.
_LIMIT = 64 << 20


def write_page(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write the page of a trace; see `Trace.html`.

    Parameters
    ----------
    trace : Trace
    path : str or os.PathLike

    Examples
    --------
    >>> import tinyllm as tl
    >>> from tinyllm.display.page import write_page
    >>> write_page(tl.load().trace("ROMEO:", "*"), "trace.html")
    """
    text = page(trace).encode()
    write_atomically(path, lambda file: file.write(text))


def page(trace: Trace) -> str:
    """The page of a trace as text.

    Parameters
    ----------
    trace : Trace
        Shown as far as they were captured: ``attn_probs`` (in 256 steps), the norms of
        ``resid_post``, ``attn_output`` and ``ffn_down``, and the logit lens of ``resid_post``
        if the trace has its model.

    Returns
    -------
    str
        HTML.

    Raises
    ------
    ValueError
        There are more than 64 MiB of attention, or no tokens.

    Examples
    --------
    >>> import tinyllm as tl
    >>> from tinyllm.display.page import page
    >>> page(tl.load().trace("ROMEO:", "*")).startswith("<!DOCTYPE html>")
    True
    """
    if not len(trace.tokens):
        raise ValueError("the trace has no tokens to show")
    # "<" as an escape: nothing in the data can end the element that holds it
    data = json.dumps(_data(trace), separators=(",", ":")).replace("<", "\\u003c")
    folder = Path(__file__).parent / "web"
    script = (folder / "trace.js").read_text(encoding="utf-8")
    style = (folder / "trace.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{escape(repr(trace))}</title><style>{style}</style></head><body>"
        f"<script type='application/json' id='data'>{data}</script>"
        f"<script>{script}</script></body></html>\n"
    )


def _data(trace: Trace) -> dict[str, Any]:
    names = trace.names("blk.*.attn_probs")
    size = sum(trace[name].size for name in names)
    if size > _LIMIT:
        raise ValueError(
            f"the page would hold {size:,} attention weights; expected at most {_LIMIT:,}: "
            "capture fewer layers, or slice the trace"
        )
    attention = {}
    for name in names:
        probs = np.nan_to_num(trace[name], nan=0.0)
        steps = np.rint(np.clip(probs, 0, 1) * 255).astype(np.uint8)
        attention[name.split(".")[1]] = {
            "heads": len(steps),
            "keys": steps.shape[2],
            "data": base64.b64encode(steps.tobytes()).decode(),
        }
    norms = {}
    for family in ("resid_post", "attn_output", "ffn_down"):
        found = trace.names(f"blk.*.{family}")
        if found:
            rows = [np.linalg.norm(trace[name].astype(np.float64), axis=1) for name in found]
            norms[family] = {
                "layers": [int(name.split(".")[1]) for name in found],
                "values": [[_number(value) for value in row] for row in rows],
            }
    lens = None
    if trace.model is not None and trace.names("blk.*.resid_post"):
        from ..analysis.lens import lens as read_lens

        result = read_lens(trace, min(5, trace.config.vocab_size))
        lens = {
            "names": result.names,
            "pieces": [[[_text(p) for p in row] for row in layer] for layer in result.pieces],
            "probs": [[[_number(p) for p in row] for row in layer] for layer in result.probs],
        }
    return {
        "title": f"{trace.config.architecture}, {trace.config.layers} layers",
        "summary": repr(trace),
        "start": trace.start,
        "ids": trace.tokens.tolist(),
        "pieces": [_text(piece) for piece in trace.pieces],
        "attention": attention,
        "norms": norms,
        "lens": lens,
    }


def _text(piece: str) -> str:
    """A token's text with lone surrogates, which no page can hold, made visible."""
    return piece.encode("utf-8", "backslashreplace").decode()


def _number(value: Any) -> float | None:
    return float(f"{float(value):.5g}") if np.isfinite(value) else None
