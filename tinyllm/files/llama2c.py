"""Checkpoints and tokenizers of llama2.c (https://github.com/karpathy/llama2.c).

Three versions of the checkpoint exist, all little-endian, written by ``export.py`` there:

* 0: seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len), then
  float32 tensors. A negative vocab_size says that the classifier has its own weights. Before the
  classifier are two RoPE tables, which are skipped.
* 1: a header of 256 bytes with a magic number, then float32 tensors, the norms first.
* 2: the same header with a group size. Matrices are int8 in groups over the flattened tensor,
  and each tensor's float32 scales follow its values.

The tensors get GGUF names. GGUF's llama architecture and llama2.c rotate the same pairs of values,
so rows keep their order.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._core import File, Weight
from ..base.numeric import Float32
from ..errors import FormatError, wrong
from .paths import regular_file

if TYPE_CHECKING:
    from .._core import Buffer

__all__ = ["read_llama2c", "read_tokenizer_bin"]

_MAGIC = 0x616B3432  # "24ka" on disk
_HEADER_0 = 28
_HEADER = 256
_NORM_EPSILON = float(np.float32(1e-5))  # a constant of run.c, which files do not store
_ROPE_BASE = 10000.0
_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")

_UNKNOWN, _CONTROL, _NORMAL, _BYTE = 2, 3, 1, 6  # tokenizer.ggml.token_type


class _Header(NamedTuple):
    """The header of a checkpoint."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    version: int
    shared: bool  # the classifier is the embedding
    group_size: int  # of version 2; otherwise 0
    start: int  # offset of the tensors in bytes


class _Item(NamedTuple):
    """One part of the file: a tensor, or the same tensor of all layers in order."""

    name: str | None  # N stands for the layer. A part without a name is skipped.
    shape: tuple[int, ...]  # of one tensor


def read_llama2c(
    source: str | os.PathLike[str] | Buffer, mmap: bool = True
) -> tuple[dict[str, Any], dict[str, Weight]]:
    """Read a checkpoint of llama2.c of any version.

    Parameters
    ----------
    source : str, os.PathLike, or bytes-like
        The file, or its contents.
    mmap : bool, optional
        If True, the file is mapped, and the weights of versions 0 and 1 are views of it. If
        False, it is read into memory. A mapped file must not be changed in place: see
        :class:`tinyllm.GGUF`.

    Returns
    -------
    metadata : dict of str to object
        The keys of a GGUF file of this model: ``general.architecture`` (``"llama"``),
        ``llama.block_count`` and so on.
    tensors : dict of str to Weight
        Tensors by GGUF name, all of type F32. Version 2 is dequantized: int8 times scale, rounded
        to float32. ``output.weight`` is missing if the classifier is the embedding.

    Raises
    ------
    tinyllm.FormatError
        If the file is not a checkpoint, or is damaged. ``field`` names the wrong field.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import struct
    >>> from tinyllm.files.llama2c import read_llama2c
    >>> header = struct.pack("<7i", 2, 4, 1, 1, 1, 3, 8)
    >>> floats = 3 * 2 + 2 + 4 * 4 + 2 + 3 * 8 + 2 + 2 * 8
    >>> metadata, tensors = read_llama2c(header + bytes(4 * floats))
    >>> metadata["llama.embedding_length"], tensors["blk.0.ffn_up.weight"].shape
    (2, (4, 2))
    """
    path, data = _open(source, mmap)
    try:
        header = _read_header(data)
        read = _read_int8 if header.version == 2 else _read_float32
        weights = dict(read(data, header))
        if isinstance(data.obj, File):
            data.obj.check()
        return _metadata(header), weights
    except FormatError as error:
        error.path = path
        raise


def _open(source: Any, mmap: bool) -> tuple[str | None, memoryview]:
    if not isinstance(source, str | os.PathLike):
        view = memoryview(source)
        return None, view.cast("B") if view.readonly else memoryview(view.tobytes())
    path = regular_file(source)
    return path, memoryview(File(path, mmap))


def _read_header(data: memoryview) -> _Header:
    if len(data) < _HEADER_0:
        raise wrong("file size", len(data), f"at least {_HEADER_0} bytes", offset=len(data))
    if struct.unpack_from("<I", data)[0] != _MAGIC:
        dims = dict(zip(_FIELDS, struct.unpack_from("<7i", data), strict=True))
        shared = dims["vocab_size"] > 0
        dims["vocab_size"] = abs(dims["vocab_size"])
        header = _Header(**dims, version=0, shared=shared, group_size=0, start=_HEADER_0)
        return _check_header(header, 0)
    if len(data) < _HEADER:
        raise wrong("file size", len(data), f"at least {_HEADER} bytes", offset=len(data))
    (version,) = struct.unpack_from("<i", data, 4)
    dims = dict(zip(_FIELDS, struct.unpack_from("<7i", data, 8), strict=True))
    flag = data[36]
    if version not in (1, 2):
        raise wrong("version", version, "1 or 2", offset=4)
    if flag > 1:
        raise wrong("shared_classifier", flag, "0 or 1", offset=36)
    group_size = struct.unpack_from("<i", data, 37)[0] if version == 2 else 0
    if version == 2 and group_size < 1:
        raise wrong("group_size", group_size, "a positive number", offset=37)
    header = _Header(
        **dims, version=version, shared=flag == 1, group_size=group_size, start=_HEADER
    )
    return _check_header(header, 8)


def _check_header(header: _Header, start: int) -> _Header:
    for i, field in enumerate(_FIELDS):
        value = getattr(header, field)
        if value < 1:
            raise wrong(field, value, "a positive number", offset=start + 4 * i)
    if header.dim % header.n_heads or header.dim // header.n_heads % 2:
        expected = f"a divisor of dim, {header.dim}, that gives heads of an even size"
        raise wrong("n_heads", header.n_heads, expected, offset=start + 12)
    if header.n_heads % header.n_kv_heads:
        expected = f"a divisor of n_heads, {header.n_heads}"
        raise wrong("n_kv_heads", header.n_kv_heads, expected, offset=start + 16)
    return header


def _metadata(header: _Header) -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "llama.vocab_size": header.vocab_size,
        "llama.context_length": header.seq_len,
        "llama.embedding_length": header.dim,
        "llama.block_count": header.n_layers,
        "llama.feed_forward_length": header.hidden_dim,
        "llama.attention.head_count": header.n_heads,
        "llama.attention.head_count_kv": header.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": _NORM_EPSILON,
        "llama.rope.dimension_count": header.dim // header.n_heads,
        "llama.rope.freq_base": _ROPE_BASE,
    }


# ---- layout ----


def _layout(header: _Header) -> list[_Item]:
    """Return the parts of the file in order."""
    d, h, v = header.dim, header.hidden_dim, header.vocab_size
    kv = d // header.n_heads * header.n_kv_heads
    embedding = _Item("token_embd.weight", (v, d))
    attn_norm = _Item("blk.N.attn_norm.weight", (d,))
    attention = [
        _Item("blk.N.attn_q.weight", (d, d)),
        _Item("blk.N.attn_k.weight", (kv, d)),
        _Item("blk.N.attn_v.weight", (kv, d)),
        _Item("blk.N.attn_output.weight", (d, d)),
    ]
    ffn_norm = _Item("blk.N.ffn_norm.weight", (d,))
    ffn = [
        _Item("blk.N.ffn_gate.weight", (h, d)),
        _Item("blk.N.ffn_down.weight", (d, h)),
        _Item("blk.N.ffn_up.weight", (h, d)),
    ]
    output_norm = _Item("output_norm.weight", (d,))
    output = [] if header.shared else [_Item("output.weight", (v, d))]
    if header.version == 0:
        rope = _Item(None, (2, header.seq_len, d // header.n_heads // 2))
        return [embedding, attn_norm, *attention, ffn_norm, *ffn, output_norm, rope, *output]
    return [attn_norm, ffn_norm, output_norm, embedding, *attention, *ffn, *output]


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:  # Python's integers do not overflow
        count *= length
    return count


def _names(item: _Item, header: _Header) -> list[str | None]:
    """Return the names of the tensors of a part: one, or one per layer."""
    if item.name is None or "N" not in item.name:
        return [item.name]
    return [item.name.replace("N", str(layer)) for layer in range(header.n_layers)]


def _copies(item: _Item, header: _Header) -> int:
    return header.n_layers if item.name is not None and "N" in item.name else 1


def _check_size(data: memoryview, header: _Header, size: int) -> None:
    if len(data) != size:
        dims = ", ".join(f"{field} {getattr(header, field)}" for field in _FIELDS)
        raise wrong(
            "file size", len(data), f"{size} bytes for version {header.version} with {dims}"
        )


def _read_float32(data: memoryview, header: _Header) -> Iterator[tuple[str, Weight]]:
    layout = _layout(header)
    count = sum(_numel(item.shape) * _copies(item, header) for item in layout)
    _check_size(data, header, header.start + 4 * count)
    at = header.start
    for item in layout:
        size = 4 * _numel(item.shape)
        for name in _names(item, header):
            if name is not None:
                yield name, Weight(name, item.shape, "F32", data[at : at + size])
            at += size


def _read_int8(data: memoryview, header: _Header) -> Iterator[tuple[str, Weight]]:
    layout = _layout(header)
    size = header.start
    for item in layout:
        count = _numel(item.shape)
        if len(item.shape) > 1 and count % header.group_size:
            expected = f"a divisor of the {count} values of {item.name}"
            raise wrong("group_size", header.group_size, expected, offset=37)
        one = count + 4 * (count // header.group_size) if len(item.shape) > 1 else 4 * count
        size += one * _copies(item, header)
    _check_size(data, header, size)
    at = header.start
    for item in layout:
        count = _numel(item.shape)
        for name in filter(None, _names(item, header)):
            if len(item.shape) == 1:
                yield name, Weight(name, item.shape, "F32", data[at : at + 4 * count])
                at += 4 * count
                continue
            groups = count // header.group_size
            values = np.frombuffer(data, np.int8, count, at).reshape(groups, header.group_size)
            scales = np.frombuffer(data, "<f4", groups, at + count)  # may be unaligned
            with np.errstate(all="ignore"):  # a scale may be NaN or infinite
                weights: Float32 = values * scales[:, None]
            weights.setflags(write=False)  # Weight does not copy a read-only buffer
            yield name, Weight(name, item.shape, "F32", weights.reshape(-1).view(np.uint8))
            at += count + 4 * groups


# ---- the tokenizer ----


def read_tokenizer_bin(
    path: str | os.PathLike[str] | Buffer, vocab_size: int | None = None
) -> dict[str, Any]:
    """Read a ``tokenizer.bin`` of llama2.c and return it as GGUF metadata.

    Parameters
    ----------
    path : str, os.PathLike, or bytes-like
        The file, or its contents.
    vocab_size : int, optional
        Number of tokens. The file does not store it; by default, it is read to its end.

    Returns
    -------
    dict of str to object
        The keys ``tokenizer.ggml.model`` (``"llama"``), ``tokens`` (list of str; bytes that are
        not UTF-8 become lone surrogates), ``scores`` (float32), ``token_type`` (int32) and so on.
        As in llama.cpp's conversion, ids 0, 1, 2 are named ``<unk>``, ``<s>``, ``</s>``, a space
        is U+2581, and bytes are ``<0x00>`` to ``<0xFF>``. Tokens may occur more than once.

    Raises
    ------
    tinyllm.FormatError
        If the file ends early or has another number of tokens, or if a token's length or score
        is invalid.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import struct
    >>> from tinyllm.files.llama2c import read_tokenizer_bin
    >>> tokens = [b"<unk>", b"<s>", b"</s>", b" a"]
    >>> data = struct.pack("<I", 5) + b"".join(
    ...     struct.pack("<fi", -i, len(token)) + token for i, token in enumerate(tokens)
    ... )
    >>> read_tokenizer_bin(data)["tokenizer.ggml.tokens"]
    ['<unk>', '<s>', '</s>', '▁a']
    """
    name, data = _open(path, False)
    try:
        tokens, scores = _read_tokens(bytes(data), vocab_size)
    except FormatError as error:
        error.path = name
        raise
    byte_ids = _byte_ids(tokens)
    names = ["<unk>", "<s>", "</s>"]
    for token in tokens[3:]:
        names.append(token.replace(b" ", "▁".encode()).decode("utf-8", "surrogateescape"))
    types = np.full(len(tokens), _NORMAL, np.int32)
    types[:3] = (_UNKNOWN, _CONTROL, _CONTROL)
    for i, byte in byte_ids.items():
        names[i] = f"<0x{byte:02X}>"
        types[i] = _BYTE
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
    }


def _read_tokens(data: bytes, vocab_size: int | None) -> tuple[list[bytes], list[float]]:
    if len(data) < 4:
        raise wrong("max_token_length", "cut off", "4 bytes", offset=0)
    (longest,) = struct.unpack_from("<I", data)
    tokens: list[bytes] = []
    scores: list[float] = []
    at = 4
    while at < len(data) and len(tokens) != vocab_size:
        where = f"token {len(tokens)}"
        if len(data) - at < 8:
            raise wrong(where, "cut off", "a score and a length, 8 bytes", offset=at)
        score, length = struct.unpack_from("<fi", data, at)
        if not np.isfinite(score):
            raise wrong(f"{where} score", score, "a finite number", offset=at)
        if not 0 <= length <= longest:
            expected = f"0 to max_token_length, {longest}"
            raise wrong(f"{where} length", length, expected, offset=at + 4)
        at += 8
        if len(data) - at < length:
            raise wrong(where, "cut off", f"{length} bytes", offset=at)
        tokens.append(data[at : at + length])
        scores.append(score)
        at += length
    if vocab_size is not None and len(tokens) < vocab_size:
        expected = f"{vocab_size}, the model's vocabulary size"
        raise wrong("number of tokens", len(tokens), expected, offset=at)
    if at < len(data):
        expected = f"the end of the file after {vocab_size} tokens"
        raise wrong("number of tokens", f"more than {vocab_size}", expected, offset=at)
    if len(tokens) < 3:
        raise wrong("number of tokens", len(tokens), "at least 3", offset=at)
    return tokens, scores


def _byte_ids(tokens: list[bytes]) -> dict[int, int]:
    """Return the byte that each byte token stands for, by token id."""
    # Files from 2023 have the bytes themselves as tokens 3 to 258. Others have <0x00> to <0xFF>.
    if len(tokens) >= 259 and all(tokens[3 + byte] == bytes([byte]) for byte in range(256)):
        return {3 + byte: byte for byte in range(256)}
    found = {}
    for i, token in enumerate(tokens[3:], 3):
        if len(token) == 6 and token[:3] == b"<0x" and token[5:] == b">":
            digits = token[3:5].decode("ascii", "replace")
            if all(digit in "0123456789ABCDEFabcdef" for digit in digits):
                found[i] = int(digits, 16)
    return found
