"""Inner values of many prompts at some tokens, in memory or straight to a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, overload

import numpy as np
import numpy.typing as npt

from ..base.checks import is_integer
from ..base.numeric import Float32
from ..base.progress import Progress
from ..files.atomic import write_atomically
from ..files.zarr import Group, write_zarr
from ..runtime.prompt import token_ids
from ..trace.taps import Capture, select

if TYPE_CHECKING:
    from ..runtime.runner import Runner
    from ..trace.edit_program import Program

__all__ = ["collect"]

#: Number of tokens of several prompts that run together.
_ROWS = 2048


@overload
def collect(
    model: Runner,
    prompts: Iterable[Any],
    capture: Capture = "blk.*.resid_post",
    *,
    at: Any = -1,
    edits: Any = (),
    out: None = None,
    progress: bool = True,
) -> Float32: ...


@overload
def collect(
    model: Runner,
    prompts: Iterable[Any],
    capture: Capture = "blk.*.resid_post",
    *,
    at: Any = -1,
    edits: Any = (),
    out: str | os.PathLike[str],
    progress: bool = True,
) -> Any: ...


def collect(
    model: Runner,
    prompts: Iterable[Any],
    capture: Capture = "blk.*.resid_post",
    *,
    at: Any = -1,
    edits: Any = (),
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Any:
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
    at : int, sequence of int or None
        The tokens of each prompt to keep. Negative values count from the end. None keeps all.
    edits : Edit or sequence of Edit
        As in `Model.trace`.
    out : str or os.PathLike, optional
        Where to write the result, batch by batch. A name that ends in ``.npy`` is a file of NumPy.
        One that ends in ``.zarr`` is a folder of uncompressed arrays in the format Zarr 2. An
        existing file or Zarr folder is replaced when the new one is complete.
    progress : bool
        Whether to show a progress bar if it takes long.

    Returns
    -------
    numpy.ndarray of float32, shape (prompts, taps, ...)
        Row i has the taps of prompt i, in the order of the forward pass. With a sequence `at`, the
        shape is (prompts, taps, len(at), ...). With ``at=None`` it is (tokens, taps, ...), the
        tokens of all prompts one after the other. With a file `out`, the array is the file, mapped
        into memory and read-only.
    None
        With a folder `out`. It is a Zarr group of these arrays:

        - ``values``, float32: the array above.
        - ``tokens``, int32: the ids of the kept tokens, shape (prompts,), (prompts, len(at)) or
          (tokens,).
        - ``starts``, int64, shape (prompts + 1,), if `at` is None: the rows of prompt i are
          ``starts[i]`` to ``starts[i + 1]``, without the last.

        The attributes of the group are ``taps``, the names; ``at``; and ``fingerprint``, that of
        the model.

    Raises
    ------
    ValueError
        If there are no prompts or taps, the taps have several shapes or are attention matrices, a
        prompt cannot run, or `out` has another ending.
    IndexError
        If a prompt does not have a token `at`.
    FileExistsError
        If `out` is a folder that is not one of Zarr.
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
    given = _given(at)
    tokens = [token_ids(prompt, model.tokenizer, f"prompt {i}") for i, prompt in enumerate(prompts)]
    if not tokens:
        raise ValueError("prompts is empty; expected at least one prompt")
    rows = [_rows(given, len(ids), i) for i, ids in enumerate(tokens)]
    lead = (sum(map(len, tokens)),) if at is None else (len(tokens),)
    inner = (len(at),) if given and not is_integer(at) else ()
    shape = (*lead, len(names), *inner, *shapes[0])
    kind = _kind(out)
    program = model.program(edits)

    def run(take: Callable[[Float32], object]) -> None:
        with Progress(sum(map(len, tokens)), "collecting", progress) as bar:
            for part in _batches(tokens):
                for values in _run(model, tokens[part], names, rows[part], program):
                    # (taps, rows, ...) of one prompt
                    take(values.swapaxes(0, 1) if at is None else values.reshape(1, *shape[1:]))
                bar.add(sum(map(len, tokens[part])))

    def write_file(file: BinaryIO) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        run(lambda values: file.write(values.astype("<f4", copy=False).tobytes()))

    def write_group(group: Group) -> None:
        kept = [ids[chosen] for ids, chosen in zip(tokens, rows, strict=True)]
        group.rows("tokens", (*lead, *inner), "<i4").append(
            np.concatenate(kept).reshape(*lead, *inner)
        )
        if at is None:
            starts = np.cumsum([0, *map(len, tokens)])
            group.rows("starts", starts.shape, "<i8").append(starts)
        run(group.rows("values", shape, "<f4").append)

    if out is not None and kind == ".zarr":
        shown = int(at) if is_integer(at) else given
        about = {"taps": names, "at": shown, "fingerprint": model.fingerprint}
        write_zarr(out, write_group, about)
        return None
    if out is not None:
        write_atomically(out, write_file)
        return np.load(out, mmap_mode="r")
    found = np.empty(shape, np.float32)
    done = 0

    def keep(values: Float32) -> None:
        nonlocal done
        found[done : done + len(values)] = values
        done += len(values)

    run(keep)
    return found


def _kind(out: str | os.PathLike[str] | None) -> str:
    """Return the ending of `out`, or an empty text if there is none."""
    if out is None:
        return ""
    path = os.fspath(out)
    for ending in (".npy", ".zarr"):
        if isinstance(path, str) and path.rstrip("/").endswith(ending):
            return ending
    raise ValueError(f"out is {out!r}; expected a name that ends in .npy or .zarr")


def _given(at: Any) -> list[int] | None:
    """Return `at` as a list of integers, or None for all tokens."""
    if at is None:
        return None
    given = [at] if is_integer(at) else list(at)
    if not given or not all(map(is_integer, given)):
        raise TypeError(f"at is {at!r}; expected an integer, a list of integers or None")
    return [int(each) for each in given]


def _run(
    model: Runner,
    tokens: list[npt.NDArray[np.int32]],
    names: list[str],
    rows: list[npt.NDArray[np.int64]],
    program: Program | None,
) -> Iterator[Float32]:
    """Yield the values of each of some prompts, shape (taps, rows, ...)."""
    traces = model.trace_ids(tokens, model.layout(names), program)
    for trace, chosen in zip(traces, rows, strict=True):
        yield np.stack([trace[name][chosen] for name in names])


def _rows(at: list[int] | None, count: int, prompt: int) -> npt.NDArray[np.int64]:
    if at is None:
        return np.arange(count)
    for each in at:
        if not -count <= each < count:
            raise IndexError(
                f"at is {each}, and prompt {prompt} has {count} tokens; expected {-count} to "
                f"{count - 1}"
            )
    return np.array([each % count for each in at], np.int64)


def _batches(tokens: list[npt.NDArray[np.int32]]) -> Iterator[slice]:
    """Yield slices of the prompts with at most `_ROWS` tokens together."""
    first, total = 0, 0
    for i, ids in enumerate(tokens):
        if i > first and total + len(ids) > _ROWS:
            yield slice(first, i)
            first, total = i, 0
        total += len(ids)
    yield slice(first, len(tokens))
