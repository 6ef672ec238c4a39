"""Opening a model file of any supported format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .._core import Weight
from .gguf import GGUF
from .kinds import Candidate, kind_error, model_start
from .sources import locate

__all__ = ["DEMO", "ModelFile", "check_holds_model", "open_file"]

#: The model that ships in the package.
DEMO = Path(__file__).parent.parent / "data" / "demo.gguf"


class ModelFile(NamedTuple):
    """The contents of a model file.

    Attributes
    ----------
    metadata : mapping
        GGUF keys and their values.
    weights : mapping of str to Weight
    path : str or None
        None if the file was given as bytes.
    """

    metadata: Mapping[str, Any]
    weights: Mapping[str, Weight]
    path: str | None


def open_file(source: Any, mmap: bool = True) -> ModelFile:
    """Open a GGUF file or a llama2.c checkpoint. The first bytes tell the format.

    Parameters
    ----------
    source : str, os.PathLike or bytes-like
        The path or contents of the file, or a name that `locate` knows. ``"demo"`` is the model
        that ships in the package.
    mmap : bool
        If False, the file is read into memory instead of mapped.

    Returns
    -------
    ModelFile
    """
    source = DEMO if isinstance(source, str) and source == "demo" else locate(source)
    path, start = model_start(source)
    if start[:4] != b"GGUF" and _is_llama2c(path, start[:4]):
        from .llama2c import read_llama2c

        metadata, weights = read_llama2c(source, mmap=mmap)
        return ModelFile({**metadata, "tinyllm.source": "llama2.c"}, weights, path)
    file_ = GGUF(source, mmap=mmap)
    return ModelFile(file_.metadata, file_.tensors, path)


def check_holds_model(file: ModelFile) -> None:
    """Raise for a GGUF file that holds something else, such as an adapter.

    Parameters
    ----------
    file : ModelFile

    Raises
    ------
    tinyllm.FormatError

    Examples
    --------
    >>> from tinyllm.files.model_file import ModelFile, check_holds_model
    >>> check_holds_model(ModelFile({"general.type": "mmproj"}, {}, "a.gguf"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    tinyllm.errors.FormatError: a.gguf: the file is an mmproj, ...
    """
    error = kind_error(Candidate(b"GGUF", file.metadata, file.weights), file.path)
    if error is not None:
        raise error


def _is_llama2c(path: Any, magic: bytes) -> bool:
    """Return whether a file looks like a llama2.c checkpoint rather than a damaged GGUF file."""
    named = path is not None and str(path).endswith(".bin")
    return named or magic == b"24ka" or (len(magic) == 4 and 0 < magic[0] and magic[2:] == b"\0\0")
