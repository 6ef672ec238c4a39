"""Importance matrices: how large the inputs of each weight matrix are.

The error that a rounded weight causes in the output is the error of the weight times its input. So
the mean square of each input says how much the error of a column of the matrix matters.

File formats: ``save_imatrix`` (GGUF) and ``save_imatrix_legacy`` in llama.cpp's
tools/imatrix/imatrix.cpp.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..base.checks import ranged
from ..base.numeric import Float32, Float64
from ..base.progress import Progress
from ..errors import FormatError
from ..files.atomic import write_atomically
from ..files.gguf import GGUF
from ..files.gguf_write import write_gguf
from ..files.paths import first_bytes
from ..runtime.prompt import token_ids
from ..runtime.runner import Runner
from ..runtime.session import Session

__all__ = ["Imatrix", "imatrix", "read_imatrix"]

_PIECE = 64  # tokens whose inputs are in memory at a time

#: Bounds of an importance relative to the mean: what `_core.pack` takes, and no column is ignored.
_LEAST, _MOST = 1e-6, 1e6


@dataclasses.dataclass(repr=False)
class Imatrix:
    """The importance of the inputs of each matrix of a model.

    Attributes
    ----------
    sums : dict of str to ndarray of float64
        For each matrix, by its tensor's name: the sum of the squares of each input over the
        tokens, (inputs,). For experts, (experts * inputs,), one expert after another.
    counts : dict of str to ndarray of float64
        The number of tokens in the sums: (1,), or (experts,).
    chunks, chunk_size : int
        The text was cut into this many windows of this many tokens.
    datasets : list of str
        Names of the texts.

    Examples
    --------
    >>> import tinyllm as tl
    >>> matrix = tl.imatrix(tl.load(), "To be, or not to be: that is the question.")
    >>> matrix.save("demo.imatrix.gguf")
    >>> tl.Imatrix.load("demo.imatrix.gguf").sums["blk.0.attn_q.weight"].shape
    (256,)
    """

    sums: dict[str, Float64]
    counts: dict[str, Float64]
    chunks: int = 1
    chunk_size: int = 512
    datasets: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Imatrix:
        """Read a file of llama.cpp, in its GGUF format or in the older one.

        Parameters
        ----------
        path : str or os.PathLike

        Returns
        -------
        Imatrix
            The older format does not have the window size, which is 512 by default, and has one
            count for all experts of a tensor.

        Raises
        ------
        tinyllm.FormatError
            If the file is not an importance matrix, or is damaged.
        OSError
            If the file cannot be read.

        Examples
        --------
        >>> import numpy as np, tinyllm as tl
        >>> tl.Imatrix({"w": np.ones(3)}, {"w": np.ones(1)}).save("m.dat")
        >>> tl.Imatrix.load("m.dat")
        <tinyllm.Imatrix: 1 tensors, 1 windows of 512 tokens>
        """
        return read_imatrix(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file that llama.cpp reads: the older format if the name ends in ``.dat``.

        The older format stores means, and no number of tokens. For an expert that no token used,
        it stores ones, as llama.cpp does.

        Parameters
        ----------
        path : str or os.PathLike
            An existing file is replaced.

        Raises
        ------
        OSError
            If the file cannot be written.

        Examples
        --------
        >>> import numpy as np, tinyllm as tl
        >>> tl.Imatrix({"w": np.ones(3)}, {"w": np.ones(1)}).save("m.gguf")
        >>> list(tl.GGUF("m.gguf").tensors)
        ['w.in_sum2', 'w.counts']
        """
        if os.fsdecode(path).endswith(".dat"):
            write_atomically(path, self._write_old)
            return
        tensors: dict[str, Any] = {}
        for name in sorted(self.sums):
            count = len(self.counts[name])
            tensors[f"{name}.in_sum2"] = self.sums[name].reshape(count, -1).astype(np.float32)
            tensors[f"{name}.counts"] = self.counts[name].reshape(-1, 1).astype(np.float32)
        metadata = {
            "general.type": "imatrix",
            "imatrix.datasets": ("ARRAY[STRING]", self.datasets),
            "imatrix.chunk_count": ("UINT32", self.chunks),
            "imatrix.chunk_size": ("UINT32", self.chunk_size),
        }
        write_gguf(path, metadata, tensors)

    def _write_old(self, file: BinaryIO) -> None:
        used = [name for name in sorted(self.sums) if self.counts[name].any()]
        file.write(struct.pack("<i", len(used)))
        for name in used:
            means = self._means(name, len(self.counts[name])).reshape(-1)
            calls = -(-int(self.counts[name].max()) // self.chunk_size)
            text = name.encode("utf-8", "surrogateescape")
            file.write(struct.pack("<i", len(text)) + text)
            file.write(struct.pack("<ii", calls, means.size))
            file.write((means * calls).astype("<f4").tobytes())
        text = (self.datasets[-1] if self.datasets else "").encode("utf-8", "surrogateescape")
        file.write(struct.pack("<ii", self.chunks, len(text)) + text)

    def _means(self, name: str, matrices: int) -> Float64:
        """Return the mean squares, (matrices, inputs); ones for an expert without tokens."""
        sums = self.sums[name].reshape(matrices, -1)
        counts = np.broadcast_to(self.counts[name], matrices).reshape(-1, 1)
        return np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)

    def importance(self, name: str, matrices: int, columns: int) -> Float32:
        """Return the weights of the columns of a tensor, with a mean of 1 for each matrix.

        Parameters
        ----------
        name : str
        matrices : int
            The number of matrices in the tensor: 1, or the number of experts.
        columns : int
            The number of inputs.

        Returns
        -------
        ndarray of float32, (matrices, columns)
            At least 1e-6, so that no column is ignored.

        Raises
        ------
        ValueError
            If the sums have another size.

        Examples
        --------
        >>> import numpy as np, tinyllm as tl
        >>> tl.Imatrix({"w": np.array([1.0, 3.0])}, {"w": np.ones(1)}).importance("w", 1, 2)
        array([[0.5, 1.5]], dtype=float32)
        """
        size, counts = self.sums[name].size, len(self.counts[name])
        if size != matrices * columns or counts not in (1, matrices):
            raise ValueError(
                f"imatrix has {size} sums and {counts} counts for {name!r}; expected "
                f"{matrices * columns} sums, {matrices} matrices of {columns} inputs"
            )
        means = self._means(name, matrices)
        middle = means.mean(axis=1, keepdims=True)
        relative = np.divide(means, middle, out=np.ones_like(means), where=middle > 0)
        weights: Float32 = np.clip(relative, _LEAST, _MOST).astype(np.float32)
        return weights

    def __repr__(self) -> str:
        return (
            f"<tinyllm.Imatrix: {len(self.sums)} tensors, {self.chunks} windows of "
            f"{self.chunk_size} tokens>"
        )


# ---- measuring ----


def imatrix(
    model: Runner,
    text: Any,
    *,
    window: int = 512,
    parse_special: bool = False,
    progress: bool = True,
) -> Imatrix:
    """Run a text and measure the mean square of each input of each matrix in the blocks.

    As llama.cpp's imatrix tool: the text is cut into windows, the first token of each becomes BOS
    if the model uses it, and a last window that is not full is left out unless it is the only one.

    Parameters
    ----------
    model : Model
        It should have the weights that are to be quantized.
    text : str, bytes or ids
        Typical text of some thousand tokens or more.
    window : int
        Tokens of a window, at most the context.
    parse_special : bool
        As for `Model.trace`.
    progress : bool
        Whether to show a progress bar if it takes long.

    Returns
    -------
    Imatrix

    Raises
    ------
    ValueError
        If the text has no tokens, or an id is not in the vocabulary.

    Examples
    --------
    >>> import tinyllm as tl
    >>> matrix = tl.imatrix(tl.load(), "To be, or not to be: that is the question.")
    >>> tl.quantize("demo", "small.gguf", "Q3_K_M", imatrix=matrix)
    """
    window = min(window, int(model.core.config["max_context"]))
    window = ranged("window", window, 1)
    ids = token_ids(text, model.tokenizer, "text", parse_special)
    readers = _readers(model)
    taps = sorted({tap for step_taps in readers.values() for tap in step_taps if tap})
    result = Imatrix({}, {}, 0, window)
    with Progress(len(ids), "measuring inputs", progress) as bar:
        for chunk in _windows(model, ids, window):
            session = Session(model)
            for start in range(0, len(chunk), _PIECE):
                piece = chunk[start : start + _PIECE]
                trace = session.eval(piece, "none", capture=taps)
                for (name, _), (tap, chosen) in zip(readers, readers.values(), strict=True):
                    experts = model.weights[name].shape[0] if chosen else 1
                    picks = trace[chosen] if chosen else None
                    _add(result, name, trace[tap], picks, experts)
                bar.add(len(piece))
            result.chunks += 1
    return result


def _windows(
    model: Runner, ids: npt.NDArray[np.int32], window: int
) -> Iterator[npt.NDArray[np.int32]]:
    tokenizer = model.tokenizer
    for start in range(0, len(ids), window):
        chunk = ids[start : start + window].copy()
        if start > 0 and len(chunk) < window:
            return
        if tokenizer is not None and tokenizer.add_bos and tokenizer.bos is not None:
            chunk[0] = tokenizer.bos
        yield chunk


def _readers(model: Runner) -> dict[tuple[str, str], tuple[str, str]]:
    """Return, for each matrix and the value that it reads, the value and the chosen experts."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for step in model.steps:
        if step.op in ("linear", "experts") and step.weights and step.weights[0] is not None:
            name = step.weights[0]
            if name.startswith("blk.") and name.endswith(".weight"):
                chosen = step.reads[1] if step.op == "experts" else ""
                found[name, step.reads[0]] = step.reads[0], chosen
    return found


def _add(
    result: Imatrix, name: str, values: Float32, picks: npt.NDArray[Any] | None, experts: int
) -> None:
    """Add the inputs of some tokens: (T, ...), or (T, used, inputs) for experts."""
    tokens = len(values)
    if picks is None:
        inputs = values.reshape(tokens, -1).astype(np.float64)
        sums, counts = (inputs * inputs).sum(axis=0), np.array([float(tokens)])
    else:
        numbers = picks.reshape(tokens, -1).astype(np.int64)
        per_use = values.reshape(tokens, -1, values.shape[-1]).astype(np.float64)
        width = per_use.shape[-1]
        squares = np.broadcast_to(per_use * per_use, (*numbers.shape, width))
        table = np.zeros((experts, width))
        np.add.at(table, numbers.reshape(-1), squares.reshape(-1, width))
        sums = table.reshape(-1)
        counts = np.bincount(numbers.reshape(-1), minlength=experts).astype(np.float64)
    result.sums[name] = result.sums.get(name, 0.0) + sums
    result.counts[name] = result.counts.get(name, 0.0) + counts


# ---- reading ----


def read_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """Read a file of llama.cpp: see `Imatrix.load`.

    Parameters
    ----------
    path : str or os.PathLike

    Returns
    -------
    Imatrix
    """
    if first_bytes(path) == b"GGUF":
        found = _read_gguf(path)
    else:
        with open(path, "rb") as file:
            found = _read_old(os.fsdecode(path), memoryview(file.read()))
    for name, sums in found.sums.items():
        counts = found.counts[name]
        good = np.isfinite(sums).all() and (sums >= 0).all() and (counts >= 0).all()
        if not good or not len(counts) or sums.size % len(counts):
            raise FormatError(
                f"the entry {name!r} has a value that is negative or not finite, or counts that "
                "do not divide its values",
                path=os.fsdecode(path),
                field=name,
            )
    return found


def _read_gguf(path: str | os.PathLike[str]) -> Imatrix:
    file = GGUF(path)
    kind = file.metadata.get("general.type")
    if kind != "imatrix":
        raise FormatError(
            f"the file is of type {kind!r}",
            path=os.fsdecode(path),
            field="general.type",
            value=kind,
            expected="imatrix",
        )
    result = Imatrix(
        {},
        {},
        int(file.metadata.get("imatrix.chunk_count", 1)),
        int(file.metadata.get("imatrix.chunk_size", 512)),
        list(file.metadata.get("imatrix.datasets", [])),
    )
    for key, weight in file.tensors.items():
        name = key.removesuffix(".in_sum2")
        if name == key:
            continue
        counts = file.tensors.get(f"{name}.counts")
        if counts is None:
            raise FormatError(
                f"the tensor {name}.counts is missing",
                path=os.fsdecode(path),
                field=f"{name}.counts",
            )
        result.sums[name] = weight.numpy(dtype=np.float64).reshape(-1)
        result.counts[name] = counts.numpy(dtype=np.float64).reshape(-1)
    return result


class _Reader:
    """The fields of a file of the older format, each checked to be there."""

    def __init__(self, path: str, data: memoryview) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, size: int, field: str) -> memoryview:
        if not 0 <= size <= len(self.data) - self.at:
            raise FormatError(
                f"{field} has {size} bytes; the file has {len(self.data) - self.at} more",
                path=self.path,
                field=field,
                value=size,
                offset=self.at,
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def integer(self, field: str) -> int:
        value: int = struct.unpack("<i", self.take(4, field))[0]
        return value

    def text(self, field: str) -> str:
        size = self.integer(f"length of {field}")
        return bytes(self.take(size, field)).decode("utf-8", "surrogateescape")


def _read_old(path: str, data: memoryview) -> Imatrix:
    reader = _Reader(path, data)
    result = Imatrix({}, {})
    count = reader.integer("number of entries")
    if not 1 <= count <= len(data) // 12:
        raise FormatError(
            f"the number of entries is {count}; the file is not an importance matrix",
            path=path,
            field="number of entries",
            value=count,
            offset=0,
        )
    for i in range(count):
        name = reader.text(f"name of entry {i}")
        calls = reader.integer(f"calls of {name}")
        size = reader.integer(f"number of values of {name}")
        values = np.frombuffer(reader.take(4 * size, f"values of {name}"), "<f4")
        # As llama.cpp: a file without calls holds the means themselves.
        result.sums[name] = values.astype(np.float64) * result.chunk_size
        result.counts[name] = np.array([float(max(calls, 1) * result.chunk_size)])
    if reader.at < len(data):  # files from before February 2024 end here
        result.chunks = reader.integer("number of windows")
    if reader.at < len(data):
        result.datasets = [reader.text("dataset")]
    return result
