"""The data of a training run: text or ids, split into windows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..base.numeric import Float64

__all__ = ["Data", "digest", "read_data", "read_mask", "unigram_entropy"]

#: Files of a folder that are read.
_SUFFIXES = (".txt", ".md", ".py", ".c", ".h", ".rs", ".js", ".csv", ".json", ".tex", ".html")

#: The most windows of the held out part that are measured.
_WINDOWS = 64

#: A text of at most this length without a line break is taken for a path.
_LONGEST_PATH = 255

Ids = npt.NDArray[np.int32]


def read_data(data: Any) -> str | Ids:
    """Return the text or the ids of the argument `data` of `tinyllm.train`.

    Parameters
    ----------
    data : str, os.PathLike or iterable of int
        The path of a text file or of a folder, a text, or ids.

    Returns
    -------
    str or int32 array

    Raises
    ------
    FileNotFoundError
        If there is no such file, or the folder has no text files.
    ValueError
        If there is nothing in it, or a file is not UTF-8.
    TypeError
        If it is something else.
    """
    if isinstance(data, os.PathLike) or (isinstance(data, str) and _is_path(data)):
        return _read_path(Path(data))
    if isinstance(data, str):
        return data
    if isinstance(data, np.ndarray) or isinstance(data, Iterable):
        ids = data if isinstance(data, np.ndarray) else list(data)
        array = np.asarray(ids)
        if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) and len(array)):
            raise TypeError("data is neither a text nor a path; expected ids, one after another")
        if array.min() < 0:
            raise ValueError(f"data has the id {array.min()}; expected no negative ids")
        return array.astype(np.int32)
    raise TypeError(f"data is {type(data).__name__}; expected a path, a text or ids")


def _is_path(text: str) -> bool:
    return len(text) <= _LONGEST_PATH and "\n" not in text


def _read_path(path: Path) -> str:
    if not path.is_dir():
        return _decode(path)
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in _SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{path} has no text files ({', '.join(_SUFFIXES)})")
    return "".join(_decode(file) for file in files)


def _decode(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None


def read_mask(mask: Any, data: str | Ids) -> npt.NDArray[np.bool_] | None:
    """Return the argument `mask` of `tinyllm.lora`, checked.

    Parameters
    ----------
    mask : array_like of bool, or None
    data : str or int32 array
        What `read_data` returned.

    Returns
    -------
    bool array or None

    Raises
    ------
    ValueError, TypeError
        If it does not fit the data, or nothing is learnt.
    """
    if mask is None:
        return None
    if isinstance(data, str):
        raise ValueError("mask is given for a text; expected ids as data, one for each value")
    array = np.asarray(mask)
    if array.dtype != np.bool_:
        raise TypeError(f"mask has the type {array.dtype}; expected bool")
    if array.shape != data.shape:
        raise ValueError(f"mask has the shape {array.shape}; expected that of data, {data.shape}")
    if not array.any():
        raise ValueError("mask is False everywhere; expected some ids to learn")
    return array


def digest(data: str | Ids, mask: npt.NDArray[np.bool_] | None = None) -> str:
    """Return a hash of a text or of ids, and of which of them are learnt."""
    content = data.encode() if isinstance(data, str) else data.tobytes()
    content += b"" if mask is None else mask.tobytes()
    return hashlib.sha256(content).hexdigest()


def unigram_entropy(ids: Ids) -> float:
    """Return the entropy of the frequencies of ids, in nats: the loss of a model without context.

    Parameters
    ----------
    ids : int32 array

    Returns
    -------
    float

    Examples
    --------
    >>> import numpy as np
    >>> round(unigram_entropy(np.array([1, 1, 2, 2], np.int32)), 4)
    0.6931
    """
    counts = np.bincount(ids).astype(np.float64)
    p: Float64 = counts[counts > 0] / len(ids)
    return float(-(p * np.log(p)).sum())


class Data:
    """Ids, of which the last part is held out.

    Parameters
    ----------
    ids : int32 array
    context : int
        Tokens of a window.
    validation : float
        The part that is held out. If it is shorter than a window, nothing is.
    seed : int
    first : int, optional
        An id that replaces the first one of each window: BOS, for a model that expects it.
    learnt : bool array, optional
        Which ids are targets. The others get the target -1, which has no loss.

    Attributes
    ----------
    train, held_out : int32 arrays
    learnt : int32 array
        The targets of `train`.

    Raises
    ------
    ValueError
        If there are too few ids for a window, or none of the first part is learnt.
    """

    def __init__(
        self,
        ids: Ids,
        context: int,
        validation: float,
        seed: int,
        first: int | None = None,
        learnt: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        end = len(ids) - int(len(ids) * validation)
        if len(ids) - end <= context:
            end = len(ids)
        targets = ids if learnt is None else np.where(learnt, ids, np.int32(-1))
        self.train, self.held_out = ids[:end], ids[end:]
        self._targets = targets[:end], targets[end:]
        self.learnt = targets[:end][targets[:end] >= 0]
        self._context = context
        self._seed = seed
        self._first = first
        if len(self.train) <= context:
            raise ValueError(
                f"data has {len(ids)} tokens; expected more than context, which is {context}"
            )
        if not len(self.learnt):
            raise ValueError("mask is False for all data that are not held out")

    def batch(self, step: int, count: int) -> tuple[Ids, Ids]:
        """Return the windows of a step and their targets, of shape (count, context).

        They depend only on the seed and the step, so a run that continues needs no other state.

        Parameters
        ----------
        step, count : int
        """
        random = np.random.default_rng([self._seed, step])
        starts = random.integers(0, len(self.train) - self._context, count)
        return self._windows(self.train, self._targets[0], starts)

    def validation(self) -> tuple[Ids, Ids] | None:
        """Return windows of the held out part and their targets, the same ones each time."""
        last = len(self.held_out) - self._context
        if last <= 0:
            return None
        starts = np.arange(0, last, self._context)
        if len(starts) > _WINDOWS:
            starts = starts[np.linspace(0, len(starts) - 1, _WINDOWS).astype(int)]
        return self._windows(self.held_out, self._targets[1], starts)

    def _windows(self, ids: Ids, learnt: Ids, starts: npt.NDArray[np.int64]) -> tuple[Ids, Ids]:
        places = starts[:, np.newaxis] + np.arange(self._context)
        windows, targets = ids[places], learnt[places + 1]
        if self._first is not None:
            windows[:, 0] = self._first
        return windows, targets
