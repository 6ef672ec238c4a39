"""llama.cpp as a peer: it calls back with every tensor of its graph.

``cb_eval`` of ``llama_context_params`` (llama.h) gets a pointer to each tensor, first to ask
whether its value is wanted, then with the value. The tensor is a ``struct ggml_tensor`` (ggml.h),
whose layout may move between versions. So it is compared with a known tensor before it is trusted.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..comparison.read import Dump, read_dump
from ..files.arrays import Array
from ..loading import load
from ..model import Model
from ..runtime.prompt import token_ids
from ..trace.dialects import spellings
from ..trace.taps import Capture, select

__all__ = ["llama_cpp"]


class _Tensor(ctypes.Structure):
    """``struct ggml_tensor``."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


#: ``enum ggml_type``: the types whose values NumPy can show.
_TYPES = {0: "<f4", 1: "<f2"}


def llama_cpp(
    model: str | os.PathLike[str] | Model, ids: Any, capture: Capture = "*", *, threads: int = 0
) -> Dump:
    """Run a file with llama.cpp and return its inner values.

    Flash attention is off, because it has no scores, and the cache is float32. The weights of
    quantized files are multiplied by activations that llama.cpp rounds to 8 bits.

    Parameters
    ----------
    model : str, os.PathLike or Model
        A GGUF file, or a model that was loaded from one.
    ids : str, bytes or ids
        The tokens. Text is encoded by tinyllm, so that both run the same tokens.
    capture : str, re.Pattern, callable, or sequence of them
        Taps, as in `Model.trace`. Those that llama.cpp's graph does not have are left out.
    threads : int
        0: as many as the model has.

    Returns
    -------
    Dump

    Raises
    ------
    ImportError
        If llama-cpp-python is not installed.
    RuntimeError
        If llama.cpp cannot load or run the file, or if this version lays out its tensors in
        another way.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> t = tl.peers.llama_cpp(model, "ROMEO:", "blk.*.resid_post")  # doctest: +SKIP
    >>> print(tl.diff(model.trace("ROMEO:"), t))  # doctest: +SKIP
    """
    try:
        library = importlib.import_module("llama_cpp")
    except ImportError as error:
        raise ImportError(
            "tinyllm.peers.llama_cpp needs llama-cpp-python: pip install llama-cpp-python",
            name=error.name,
        ) from error
    if not isinstance(model, Model):
        model = load(model)
    if model.path is None:
        raise ValueError("model was loaded from bytes; expected a model from a file")
    tokens = token_ids(ids, model.tokenizer, "ids")
    taps = {tap.name for tap in select(model.taps, capture)}
    known = {tap.name for tap in model.taps}
    wanted = {name for tap in taps for name in spellings(tap, known, "llama.cpp")}
    values = _run(library, os.fsencode(model.path), tokens, wanted, threads or model.threads)
    return read_dump(values, "llama.cpp", tokens, model).only(taps)


def _run(
    library: Any, path: bytes, ids: Array, wanted: set[str], threads: int
) -> list[tuple[str, Array]]:
    """Return the tensors with wanted names, in the order of the graph."""
    ggml = _ggml(library)
    _check_layout(ggml)
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    library.llama_backend_init()
    collect = _Collector(ggml, wanted)
    params = library.llama_model_default_params()
    params.n_gpu_layers = 0
    model = library.llama_model_load_from_file(path, params)
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {os.fsdecode(path)}")
    context = None
    try:
        context = library.llama_init_from_model(model, _params(library, len(ids), threads, collect))
        if not context:
            raise RuntimeError("llama.cpp cannot make a context for this model")
        _decode(library, context, ids)
    finally:
        if context:
            library.llama_free(context)
        library.llama_model_free(model)
    if collect.error is not None:
        raise collect.error
    return collect.values


def _params(library: Any, tokens: int, threads: int, collect: _Collector) -> Any:
    """Return the parameters of a context that shows everything."""
    params = library.llama_context_default_params()
    params.n_ctx = max(tokens, 8)
    params.n_batch = params.n_ubatch = max(tokens, 8)
    params.n_threads = params.n_threads_batch = threads
    if hasattr(params, "flash_attn_type"):
        params.flash_attn_type = 0
    else:  # before October 2025
        params.flash_attn = False
    params.type_k = params.type_v = 0  # float32
    params.cb_eval = library.ggml_backend_sched_eval_callback(collect)
    collect.keep = params.cb_eval  # or it would be freed
    return params


def _decode(library: Any, context: Any, ids: Array) -> None:
    """Run the tokens, with the logits of all of them: in the last block, others have no rows."""
    batch = library.llama_batch_init(len(ids), 0, 1)
    try:
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids.tolist()):
            batch.token[i], batch.pos[i] = token, i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = 1
        status = library.llama_decode(context, batch)
    finally:
        library.llama_batch_free(batch)
    if status:
        raise RuntimeError(f"llama.cpp ended with status {status} instead of 0")


class _Collector:
    """The callback: it copies the tensors that have wanted names."""

    def __init__(self, ggml: Any, wanted: set[str]) -> None:
        self._ggml = ggml
        self._wanted = wanted
        self.values: list[tuple[str, Array]] = []
        self.error: Exception | None = None
        self.keep: Any = None

    def __call__(self, pointer: int, ask: bool, data: object) -> bool:
        try:
            tensor = _Tensor.from_address(pointer)
            name = tensor.name.decode("utf-8", "replace")
            if ask:
                return name in self._wanted and tensor.type in _TYPES
            self.values.append((name, _value(self._ggml, tensor, pointer)))
        except Exception as error:  # C cannot pass it on
            self.error = self.error or error
            return False
        return True


def _value(ggml: Any, tensor: _Tensor, pointer: int) -> Array:
    """Return a copy of a tensor's values. NumPy's axes are ggml's in reverse."""
    kind = np.dtype(_TYPES[tensor.type])
    shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    span = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + kind.itemsize
    raw = np.empty(span, np.uint8)
    ggml.ggml_backend_tensor_get(
        ctypes.c_void_p(pointer), raw.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(0),
        ctypes.c_size_t(span),
    )  # fmt: skip
    view = np.ndarray(shape, kind, raw, strides=strides)
    while view.ndim > 2 and view.shape[0] == 1:
        view = view[0]
    return np.array(view, np.float32)


def _ggml(library: Any) -> Any:
    """Return the library of ggml's tensors."""
    folder = Path(library.__file__).parent / "lib"
    for pattern in ("*ggml-base.so", "*ggml-base.dylib", "*ggml-base.dll", "*ggml.so"):
        for path in sorted(folder.glob(pattern)):
            return ctypes.CDLL(os.fspath(path))
    raise RuntimeError(
        f"{folder} has no library named ggml-base, so that its tensors cannot be read"
    )


class _Memory(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def _check_layout(ggml: Any) -> None:
    """Raise RuntimeError if a tensor that ggml makes does not look as `_Tensor` says."""
    ggml.ggml_init.restype = ctypes.c_void_p
    ggml.ggml_init.argtypes = (_Memory,)
    ggml.ggml_free.argtypes = (ctypes.c_void_p,)
    ggml.ggml_new_tensor_3d.restype = ctypes.c_void_p
    ggml.ggml_new_tensor_3d.argtypes = (ctypes.c_void_p, ctypes.c_int, *(ctypes.c_int64,) * 3)
    ggml.ggml_set_name.restype = ctypes.c_void_p
    ggml.ggml_set_name.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    ggml.ggml_get_data.restype = ctypes.c_void_p
    ggml.ggml_get_data.argtypes = (ctypes.c_void_p,)
    memory = ggml.ggml_init(_Memory(1 << 20, None, False))
    if not memory:
        raise RuntimeError("ggml has no memory for a tensor")
    try:
        pointer = ggml.ggml_set_name(ggml.ggml_new_tensor_3d(memory, 0, 3, 5, 7), b"probe")
        tensor = _Tensor.from_address(pointer)
        seen = (
            *(tensor.type, tuple(tensor.ne), tuple(tensor.nb), tensor.name, tensor.op),
            tensor.data == ggml.ggml_get_data(pointer),
        )
    finally:
        ggml.ggml_free(memory)
    expected = (0, (3, 5, 7, 1), (4, 12, 60, 420), b"probe", 0, True)
    if seen != expected:
        raise RuntimeError(
            "the tensors of this llama-cpp-python have another layout: a known one reads "
            f"{seen}; expected {expected}. 0.3.36 is known to work"
        )
