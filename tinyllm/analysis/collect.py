"""Inner values of many prompts at some tokens, in memory or straight to a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..base.checks import is_integer
from ..base.numeric import Float32
from ..base.progress import Progress
from ..files.atomic import write_atomically
from ..runtime.prompt import token_ids
from ..trace.taps import Capture, select

if TYPE_CHECKING:
    from ..runtime.runner import Runner
    from ..trace.edit_program import Program

__all__ = ["collect"]

#: Number of tokens of several prompts that run together.
_ROWS = 2048


def collect(
    model: Runner,
    prompts: Iterable[Any],
    capture: Capture = "blk.*.resid_post",
    *,
    at: Any = -1,
    edits: Any = (),
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Float32:
    """Return inner values of many prompts at some tokens of each.

    Prompts run in batches, of which only the selected rows are kept. So ten thousand prompts need
    no more memory than the result, or none with `out`.

    Parameters
    ----------
    model : Model
    prompts : iterable of str, bytes or ids
        They may differ in length.
    capture : str, re.Pattern, callable or sequence of them
        Taps of one shape, (T, ...).
    at : int or sequence of int
        The tokens of each prompt to keep. Negative values count from the end.
    edits : Edit or sequence of Edit
        As in `Model.trace`.
    out : str or os.PathLike, optional
        A file to write, whose name ends in ``.npy``. An existing file is replaced when the new one
        is complete. The result is then the file, mapped into memory and read-only.
    progress : bool
        Whether to show a progress bar if it takes long.

    Returns
    -------
    numpy.ndarray of float32, shape (prompts, taps, ...)
        Row i has the taps of prompt i, in the order of the forward pass. With a sequence `at`, the
        shape is (prompts, taps, len(at), ...).

    Raises
    ------
    ValueError
        If there are no prompts or taps, the taps have several shapes or are attention matrices, a
        prompt cannot run, or `out` has another ending.
    IndexError
        If a prompt does not have a token `at`.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> values = tl.collect(model, ["ROMEO:", "JULIET: Ay"], "blk.*.resid_post")
    >>> values.shape == (2, model.config.layers, model.config.width)
    True
    """
    taps = select(model.taps, capture)
    shapes = sorted({tap.row for tap in taps})
    if len(shapes) != 1 or any(tap.matrix for tap in taps):
        raise ValueError(
            f"capture selects taps of shapes {shapes}; expected taps of one shape (T, ...), and no "
            "attention matrices"
        )
    names = [tap.name for tap in taps]
    given = [at] if is_integer(at) else list(at)
    if not given or not all(map(is_integer, given)):
        raise TypeError(f"at is {at!r}; expected an integer or a list of integers")
    tokens = [token_ids(prompt, model.tokenizer, f"prompt {i}") for i, prompt in enumerate(prompts)]
    if not tokens:
        raise ValueError("prompts is empty; expected at least one prompt")
    rows = [_rows(given, len(ids), i) for i, ids in enumerate(tokens)]
    shape = (len(tokens), len(names), len(given), *shapes[0])
    if is_integer(at):
        shape = shape[:2] + shape[3:]

    program = model.program(edits)
    total = sum(map(len, tokens))

    def write(file: BinaryIO) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        with Progress(total, "collecting", progress) as bar:
            for part in _batches(tokens):
                values = _run(model, tokens[part], names, rows[part], program)
                file.write(values.astype("<f4", copy=False).tobytes())
                bar.add(sum(map(len, tokens[part])))

    if out is not None:
        path = os.fspath(out)
        if not isinstance(path, str) or not path.endswith(".npy"):
            raise ValueError(f"out is {out!r}; expected a name that ends in .npy")
        write_atomically(path, write)
        mapped: Float32 = np.load(path, mmap_mode="r")
        return mapped
    found = np.empty(shape, np.float32)
    whole = found.reshape(len(tokens), len(names), len(given), *shapes[0])
    with Progress(total, "collecting", progress) as bar:
        for part in _batches(tokens):
            whole[part] = _run(model, tokens[part], names, rows[part], program)
            bar.add(sum(map(len, tokens[part])))
    return found


def _run(
    model: Runner,
    tokens: list[npt.NDArray[np.int32]],
    names: list[str],
    rows: list[npt.NDArray[np.int64]],
    program: Program | None,
) -> Float32:
    """Return the values of some prompts, shape (prompts, taps, rows, ...)."""
    traces = model.trace_ids(tokens, model.layout(names), program)
    return np.stack(
        [
            np.stack([trace[name][chosen] for name in names])
            for trace, chosen in zip(traces, rows, strict=True)
        ]
    )


def _rows(at: list[Any], count: int, prompt: int) -> npt.NDArray[np.int64]:
    for each in at:
        if not -count <= each < count:
            raise IndexError(
                f"at is {each}, and prompt {prompt} has {count} tokens; expected {-count} to "
                f"{count - 1}"
            )
    return np.array([int(each) % count for each in at], np.int64)


def _batches(tokens: list[npt.NDArray[np.int32]]) -> Iterator[slice]:
    """Yield slices of the prompts with at most `_ROWS` tokens together."""
    first, total = 0, 0
    for i, ids in enumerate(tokens):
        if i > first and total + len(ids) > _ROWS:
            yield slice(first, i)
            first, total = i, 0
        total += len(ids)
    yield slice(first, len(tokens))
