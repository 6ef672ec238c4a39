"""Small random models of any architecture."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ..architectures.table import ARCHITECTURES
from ..files.gguf_write import write_gguf
from ..loading import load
from ..model import Model
from .recipes import Recipe, float_bytes, random_weights

__all__ = ["Sizes", "random_model"]


class Sizes(TypedDict, total=False):
    """The sizes of a random model, as in `tinyllm.testing.recipes.Recipe`."""

    width: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    context: int


def random_model(
    architecture: str = "llama",
    layers: int | None = None,
    *,
    type: str = "F32",
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    **sizes: Unpack[Sizes],
) -> Model:
    """Return a small random model of an architecture.

    All of its weights are random, norms and biases too, so that a forgotten one shows. Keys and
    queries have other numbers of heads, so that a wrong mapping shows. It has no tokenizer:
    prompts are ids.

    Parameters
    ----------
    architecture : str
        As in ``general.architecture`` of a file, such as ``"llama"``, ``"qwen3"``, ``"gemma2"``.
    layers : int, optional
        Number of blocks. Default: 2, or as many as the architecture needs to show all its kinds.
    type : str
        The type of the matrices: ``"F32"``, ``"F16"`` or ``"BF16"``.
    seed : int
        The same seed gives the same file.
    path : str or os.PathLike, optional
        Where to write the GGUF file, for the engine under test. Default: nowhere.
    metadata : mapping of str to object, optional
        Keys of the file, in full, besides the usual ones or instead of them.
    width, heads, kv_heads, ffn, vocab, context : int
        Default: 256, 4, 2, 512, 320 and 2048.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        If there is no such architecture, or if the sizes do not fit together.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.testing.random_model("qwen3", 2, width=64, ffn=96)
    >>> model.logits([1, 2, 3]).shape
    (3, 320)
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"architecture is {architecture!r}; expected one of {', '.join(sorted(ARCHITECTURES))}"
        )
    recipe = Recipe(layers=layers, type=type, seed=seed, metadata=metadata or {}, **sizes)
    made = random_weights(architecture, recipe, float_bytes)
    if path is not None:
        write_gguf(path, *made)
        return load(path)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "model.gguf"
        write_gguf(written, *made)
        return load(written.read_bytes())
