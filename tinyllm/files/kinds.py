"""What a file is that holds no model: one function per kind, and one table of them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ..errors import FormatError
from .paths import first_bytes

__all__ = ["START", "Candidate", "buffer_start", "folder_error", "kind_error", "model_start"]

#: How many bytes of a file its kind is told from.
START = 4096

_CONVERT = "tinyllm.convert makes a GGUF file of the folder of a Hugging Face checkpoint"


class Candidate(NamedTuple):
    """What is known about a file that was given as a model.

    Attributes
    ----------
    start : bytes
        The first `START` bytes.
    metadata : mapping, optional
        The metadata of a GGUF file; None for other files.
    tensors : collection of str
        The names of the tensors of a GGUF file.
    """

    start: bytes
    metadata: Mapping[str, Any] | None = None
    tensors: Collection[str] = ()

    def value(self, key: str) -> str:
        """Return a value of the metadata that is a string, or an empty string."""
        value = (self.metadata or {}).get(key)
        return value if isinstance(value, str) else ""


def kind_error(file: Candidate, path: str | None) -> FormatError | None:
    """Return the error for a file that is known not to be a model; None for any other.

    Parameters
    ----------
    file : Candidate
    path : str or None

    Returns
    -------
    tinyllm.FormatError or None

    Examples
    --------
    >>> from tinyllm.files.kinds import Candidate, kind_error
    >>> print(kind_error(Candidate(b"<!DOCTYPE html>"), "m.gguf"))
    m.gguf: the file is a web page, not a model; the address led to a page instead of the file
    """
    gguf = file.metadata is not None
    for kind in GGUF_KINDS if gguf else KINDS:
        found = kind(file)
        if found is not None:
            return FormatError(
                f"the file is {found}",
                path=path,
                field="general.type" if gguf else "magic",
                value=file.value("general.type") if gguf else file.start[:4],
                expected="a file of another kind",
                offset=None if gguf else 0,
            )
    return None


def model_start(source: Any) -> tuple[str | None, bytes]:
    """Return the path of a file and its first bytes, checked to be those of a model.

    Parameters
    ----------
    source : str, os.PathLike or bytes-like
        The path or contents of a file.

    Returns
    -------
    path : str or None
        None for contents.
    start : bytes
        At most `START` bytes.

    Raises
    ------
    tinyllm.FormatError
        If the file is known to be something else.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> from tinyllm.files.kinds import model_start
    >>> model_start(b"GGUF...")
    (None, b'GGUF...')
    """
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        try:
            start = first_bytes(path, START)
        except IsADirectoryError:
            raise folder_error(path) from None
    else:
        path, start = None, buffer_start(source)
    if start[:4] != b"GGUF" and (error := kind_error(Candidate(start), path)) is not None:
        raise error
    return path, start


def buffer_start(source: Any) -> bytes:
    """Return the first bytes of the contents of a file.

    Parameters
    ----------
    source : bytes-like

    Returns
    -------
    bytes
        At most `START` bytes.
    """
    try:
        return bytes(memoryview(source).cast("B")[:START])
    except TypeError:
        raise TypeError(f"path is {source!r:.80}; expected a path or a bytes-like object") from None


# ---- files of other formats ----


def _empty(file: Candidate) -> str | None:
    return None if file.start else "empty; a download that has not begun leaves such a file"


def _zeros(file: Candidate) -> str | None:
    if len(file.start) < START or any(file.start):
        return None
    return "not complete: it begins with zeros, as a download does that was interrupted"


def _web_page(file: Candidate) -> str | None:
    text = file.start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        return None
    return "a web page, not a model; the address led to a page instead of the file"


def _lfs_pointer(file: Candidate) -> str | None:
    if not file.start.startswith(b"version https://git-lfs.github.com/spec/"):
        return None
    size = re.search(rb"^size (\d{1,18})$", file.start, re.MULTILINE)
    whole = f" of {int(size[1]):,} bytes" if size else ""
    return f"a Git LFS pointer, which stands for the file{whole}; git lfs pull downloads that"


def _gguf(file: Candidate) -> str | None:
    return "a GGUF file, which tinyllm.load opens" if file.start.startswith(b"GGUF") else None


def _old_ggml(file: Candidate) -> str | None:
    if file.start[:4] not in (b"lmgg", b"fmgg", b"tjgg", b"algg"):
        return None
    name = file.start[3::-1].decode().upper()
    return f"an old {name} file, from before GGUF; expected the model as a GGUF file"


def _llama_session(file: Candidate) -> str | None:
    if file.start[:4] not in (b"nsgg", b"qsgg"):
        return None
    return "a saved session of llama.cpp, not a model"


def _old_imatrix(file: Candidate) -> str | None:
    # a number of entries, then the length and text of the first tensor's name
    length = int.from_bytes(file.start[4:8], "little")
    name = file.start[8 : 8 + length]
    if len(name) != length or not re.fullmatch(rb"[\w.-]{1,64}\.weight", name):
        return None
    return _imatrix_text


def _pickle(file: Candidate) -> str | None:
    torch = file.start[:2] == b"PK" and b"/data.pkl" in file.start[:256]
    if not torch and not re.match(rb"\x80[\2-\5]", file.start):
        return None
    return (
        "a pickle of Python or PyTorch, which may run any code when it is opened; tinyllm does "
        "not open it. llama.cpp's convert_hf_to_gguf.py converts the folder of a checkpoint to GGUF"
    )


def _packed(file: Candidate) -> str | None:
    for magic, name in _PACKED.items():
        if file.start.startswith(magic):
            return f"{name}; unpack it, and open the GGUF file in it"
    if file.start[257:262] == b"ustar":
        return "a tar archive; unpack it, and open the GGUF file in it"
    return None


_PACKED = {
    b"\x1f\x8b": "compressed with gzip",
    b"PK\3\4": "a zip archive",
    b"PK\5\6": "an empty zip archive",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\0": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a rar archive",
    b"MZqFpD": "a llamafile, a program and a zip archive",
}


def _safetensors(file: Candidate) -> str | None:
    length = int.from_bytes(file.start[:8], "little")
    if not re.match(rb'\s*\{\s*"', file.start[8:]) or not 2 <= length <= 100_000_000:
        return None
    return f"a safetensors file; {_CONVERT}"


def _other_format(file: Candidate) -> str | None:
    for magic, name in _OTHERS.items():
        if file.start.startswith(magic):
            return f"{name}; expected a GGUF file"
    return None


_OTHERS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\n\x0e\n\x05<unk>": "a vocabulary of SentencePiece (tokenizer.model)",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x7fELF": "a program",
}


def _text(file: Candidate) -> str | None:
    """Recognize other text, such as the message of a server or ``config.json``."""
    try:
        text = file.start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(file.start) - 3:  # not only a character that the limit cut
            return None
        text = file.start[: error.start].decode()
    if len(text) < 4 or not all(c.isprintable() or c in "\t\r\n\f" for c in text):
        return None
    begin = " ".join(text.split())
    begin = repr(begin if len(begin) <= 60 else begin[:57] + "...")
    return f"a text that begins with {begin}; expected a GGUF file, which begins with GGUF"


# ---- GGUF files with something else in them ----

_imatrix_text = (
    "an imatrix, statistics of activations for quantizing a model; expected the model itself"
)


def _adapter(file: Candidate) -> str | None:
    lora = any(name.endswith((".lora_a", ".lora_b")) for name in file.tensors)
    if file.value("general.type") != "adapter" and not file.value("adapter.type") and not lora:
        return None
    return (
        "a LoRA adapter, the change of a model's weights; expected the model, with "
        "adapters=[this file]"
    )


def _mmproj(file: Candidate) -> str | None:
    if file.value("general.type") != "mmproj" and file.value("general.architecture") != "clip":
        return None
    return (
        "an mmproj, the image or audio encoder that belongs to a language model; "
        "expected the file of the language model"
    )


def _imatrix(file: Candidate) -> str | None:
    sums = any(name.endswith(".in_sum2") for name in file.tensors)
    return _imatrix_text if file.value("general.type") == "imatrix" or sums else None


def _control_vector(file: Candidate) -> str | None:
    if file.value("general.architecture") != "controlvector":
        return None
    return "a control vector, directions to add to the hidden states of a model; tl.add adds them"


def _without_tensors(file: Candidate) -> str | None:
    if file.tensors:
        return None
    if "tokenizer.ggml.model" in (file.metadata or {}):
        return "a vocabulary; it has no tensors. tinyllm.load_tokenizer opens it"
    return "a GGUF file with no tensors, so it holds no model"


#: The kinds of files that are not GGUF. The first that fits counts.
KINDS: tuple[Callable[[Candidate], str | None], ...] = (
    _empty,
    _zeros,
    _web_page,
    _lfs_pointer,
    _gguf,
    _old_ggml,
    _llama_session,
    _old_imatrix,
    _pickle,
    _packed,
    _safetensors,
    _other_format,
    _text,
)

#: The kinds of GGUF files without a model.
GGUF_KINDS: tuple[Callable[[Candidate], str | None], ...] = (
    _adapter,
    _mmproj,
    _imatrix,
    _control_vector,
    _without_tensors,
)


# ---- folders ----


def folder_error(path: str) -> OSError:
    """Return the error for a folder that was given as a model. It says what lies in the folder.

    Parameters
    ----------
    path : str

    Returns
    -------
    IsADirectoryError

    Examples
    --------
    >>> from tinyllm.files.kinds import folder_error
    >>> print(folder_error("."))
    [Errno 21] Is a directory; expected the path of a GGUF file: '.'
    """
    text = os.strerror(errno.EISDIR)
    try:
        names = sorted(os.listdir(path))
    except OSError:
        names = []
    models = [name for name in names if name.endswith(".gguf")]
    if models:
        more = f" and {len(models) - 5} others" if len(models) > 5 else ""
        text += f"; expected the path of one of its GGUF files: {', '.join(models[:5])}{more}"
    elif any(name.endswith((".safetensors", ".bin", ".pt", ".pth")) for name in names):
        text += f" with a checkpoint; expected a GGUF file. {_CONVERT}"
    else:
        text += "; expected the path of a GGUF file"
    return IsADirectoryError(errno.EISDIR, text, path)
