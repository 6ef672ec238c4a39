"""Models of SentencePiece (``tokenizer.model``), read without its library.

The file is a protocol buffer, ``ModelProto`` of
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto: pieces (1),
trainer_spec (2) and normalizer_spec (3). Only the fields that GGUF needs are read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import FormatError, wrong

__all__ = ["Piece", "SentencePiece", "read_sentencepiece"]

UNIGRAM, BPE = 1, 2


class Piece(NamedTuple):
    """A token: its text, score and type. The numbers of the types are those of GGUF."""

    text: str
    score: float
    type: int


class SentencePiece(NamedTuple):
    """The contents of a model.

    Attributes
    ----------
    pieces : list of Piece
    model_type : int
        1 is Unigram, 2 is BPE.
    charsmap : bytes
        The compiled map of characters; may be empty.
    add_prefix, remove_blanks : bool
        Whether a space is put in front, and whether runs of spaces become one.
    """

    pieces: list[Piece]
    model_type: int
    charsmap: bytes
    add_prefix: bool
    remove_blanks: bool


def read_sentencepiece(path: Path) -> SentencePiece:
    """Read a model.

    Parameters
    ----------
    path : pathlib.Path

    Returns
    -------
    SentencePiece

    Raises
    ------
    tinyllm.FormatError
        If the file is not a model, or is damaged.
    """
    try:
        model = _read(path.read_bytes())
    except FormatError as error:
        error.path = str(path)
        raise
    if not model.pieces:
        raise FormatError("the file has no pieces", path=str(path), field="pieces")
    return model


def _read(data: bytes) -> SentencePiece:
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for field, value in _fields(data):
        if field == 1:
            pieces.append(_piece(dict(_fields(_message(value)))))
        elif field == 2:
            trainer = dict(_fields(_message(value)))
        elif field == 3:
            normalizer = dict(_fields(_message(value)))
    return SentencePiece(
        pieces,
        int(trainer.get(3, UNIGRAM)),
        bytes(normalizer.get(2, b"")),
        bool(normalizer.get(3, True)),
        bool(normalizer.get(4, True)),
    )


def _message(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise wrong("a field of the model", value, "a message", shown=f"{value!r:.80}")
    return value


def _piece(fields: dict[int, Any]) -> Piece:
    text, score, kind = fields.get(1, b""), fields.get(2, b"\0\0\0\0"), fields.get(3, 1)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4:
        raise wrong("a piece of the model", fields, "a text and a score", shown=f"{fields!r:.80}")
    return Piece(text.decode("utf-8", "surrogateescape"), struct.unpack("<f", score)[0], int(kind))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a message: numbers as int, the others as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield field, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise wrong("wire type", wire, "0, 1, 2 or 5", offset=at)
        if size > len(data) - at:
            raise wrong("length of a field", size, f"at most {len(data) - at} bytes", offset=at)
        yield field, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise wrong("a number of the model", "not complete", "at most ten bytes", offset=at)
