"""Reading the trace files that `Trace.save` writes, with checks of every value."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..architectures.config import Config
from ..architectures.plan import ForwardPlan, Step
from ..architectures.table import find, make_plan
from ..errors import FormatError, UnsupportedError
from ..files.arrays import (
    Array,
    SafetensorsArrays,
    bad_field,
    check_format,
    parse_json,
    read_token_ids,
)
from .taps import ALIASES, is_matrix
from .trace import Context, Trace

__all__ = ["saved_trace"]


def _read_config(text: str) -> Config:
    given = parse_json(text, "config")
    if not isinstance(given, dict):
        raise bad_field("config", given, "an object")
    hints = typing.get_type_hints(Config)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        if field.name not in given:
            if field.default is dataclasses.MISSING:
                raise bad_field(f"config.{field.name}", "missing", "a value")
            continue
        value = given[field.name]
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(value, hints[field.name]):
            raise bad_field(f"config.{field.name}", value, str(field.type))
        values[field.name] = MappingProxyType(value) if isinstance(value, dict) else value
    config = Config(**values)
    if not 0 < config.layers < 1 << 20:
        raise bad_field("config.layers", config.layers, f"1 to {(1 << 20) - 1}")
    for name in ("heads", "kv_heads", "ffn_width"):
        value = values.get(name)
        if isinstance(value, tuple) and len(value) != config.layers:
            raise bad_field(f"config.{name}", value, f"one number, or {config.layers}")
    return config


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a JSON value fits a field's type. An int must be a size, a float finite."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, arguments[0]) for v in value)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, dict)
    if arguments:
        return any(_fits(value, argument) for argument in arguments)
    if hint is Any:
        return True
    if hint is type(None):
        return value is None
    if hint is int:
        return type(value) is int and 0 <= value < 2**31
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint


def saved_trace(
    arrays: Mapping[str, Array], metadata: Mapping[str, str], path: str | os.PathLike[str]
) -> Trace:
    """Return the trace of a file that `Trace.save` wrote. `tinyllm.read` is the public form.

    Parameters
    ----------
    arrays, metadata
        As `read_arrays` returned them.
    path : str or os.PathLike
        The file, for messages.

    Raises
    ------
    tinyllm.FormatError
        If the file is not a trace, or is damaged.
    """
    try:
        return _trace(arrays, metadata)
    except FormatError as error:
        error.path = os.fsdecode(path)
        raise


#: The names of taps in a block, and of other taps.
_IN_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]{0,8})\.([a-z][a-z0-9_.]*)")
_OUTSIDE = re.compile(r"(?:dec\.blk\.(?:0|[1-9][0-9]{0,8})\.)?[a-z][a-z0-9_]*")

#: Taps outside the blocks that a model has if keys or tensors of its file say so.
_BY_KEYS = ("embd_scaled", "embd", "position_embd", "output_unscaled", "output_uncapped")


class _Shapes:
    """The shapes of taps that follow from a config. Others depend on the model's tensors."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._plans: dict[tuple[int, ...], ForwardPlan | None] = {}

    def step(self, name: str) -> Step | None:
        """Return the step of a tap, or None if it depends on the tensors of the model file."""
        found = _IN_BLOCK.fullmatch(name)
        layer = int(found[1]) if found else 0
        known = found or _OUTSIDE.fullmatch(name)
        if not known or ALIASES.get(name, name) != name or layer >= self._config.layers:
            raise bad_field("tap", name, "a tap of a model with this config")
        plan = self._plan(layer)
        try:
            here = f"blk.0.{found[2]}" if found else name
            return plan[here] if plan is not None else None
        except KeyError:
            if not found and name not in _BY_KEYS:
                raise bad_field("tap", name, "a tap of a model with this config") from None
            return None

    def _plan(self, layer: int) -> ForwardPlan | None:
        """Return the plan of a model with one block of this layer's sizes, or None."""
        sizes = {name: self._config.layer(name, layer) for name in _PER_LAYER}
        key = tuple(sizes.values())
        if key not in self._plans:
            self._plans[key] = None
            with contextlib.suppress(UnsupportedError, FormatError):  # it needs keys of the file
                row = find(self._config.architecture)
                if row.embedding is not None or row.decoder is not None:
                    return None  # such an architecture has sizes that a config does not hold
                one: Any = dataclasses.replace(self._config, layers=1, **sizes)  # type: ignore[arg-type]
                self._plans[key] = make_plan(one)
        return self._plans[key]


_PER_LAYER = ("heads", "kv_heads", "ffn_width")


class _Checked(Mapping[str, Array]):
    """The arrays of a file. Each is checked against the config and the tokens on access."""

    def __init__(
        self,
        arrays: Mapping[str, Array],
        config: Config,
        tokens: int,
        context: int,
        roles: Mapping[str, Sequence[str]],
    ) -> None:
        self._arrays = arrays
        self.roles = roles
        self._shapes = _Shapes(config)
        self._tokens, self._context = tokens, context
        for name in arrays:
            self._shapes.step(name)

    def __getitem__(self, name: str) -> Array:
        return self.check(name, self._arrays[name])

    def check(self, name: str, array: Array) -> Array:
        """Return an array of the file, checked."""
        step = self._shapes.step(name)
        if is_matrix(name):
            heads = array.shape[:1] if step is None else step.shape
            want = (*heads, self._tokens, self._context)
            right = array.ndim == 3 and array.shape == want
        else:
            want = (self._tokens, *(array.shape[1:] if step is None else step.shape))
            right = array.shape == want
        if not right or array.dtype != np.float32:
            raise bad_field(f"tap {name!r}", f"{array.dtype} {array.shape}", f"float32 {want}")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, name: object) -> bool:
        return name in self._arrays


def _trace(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> Trace:
    check_format(metadata, "tinyllm.trace")
    config = _read_config(metadata.get("config", "null"))
    tokens = read_token_ids(metadata)
    pieces = _strings(metadata, "pieces", len(tokens))
    start = metadata.get("start", "")
    if not (start.isascii() and start.isdigit() and len(start) < 12):
        raise bad_field("start", start, "a position")
    roles = parse_json(metadata.get("roles", "{}"), "roles")
    if not isinstance(roles, dict) or not all(isinstance(r, list) for r in roles.values()):
        raise bad_field("roles", roles, "an object whose values are lists of strings")
    context = _context(arrays, metadata, int(start), tokens, pieces)
    checked = _Checked(arrays, config, len(tokens), len(context.ids), roles)
    if isinstance(arrays, SafetensorsArrays):  # it knows the shapes without reading anything
        for name in arrays:
            checked.check(name, arrays.outline(name))
    return Trace(
        config,
        tokens,
        pieces,
        checked,
        start=int(start),
        fingerprint=metadata.get("fingerprint"),
        context=context,
    )


#: Longest context of which a file may leave the tokens unsaid.
_CONTEXT_LIMIT = 1 << 20


def _context(
    arrays: Mapping[str, Array],
    metadata: Mapping[str, str],
    start: int,
    tokens: npt.NDArray[np.int32],
    pieces: list[str],
) -> Context:
    """Return the tokens of the whole context."""
    stop = start + len(tokens)
    if "context" not in metadata:
        # The trace has the whole context, or an older version wrote it. Then the columns of an
        # attention matrix tell how many tokens there were.
        matrix = next((arrays[name] for name in arrays if is_matrix(name)), None)
        size = stop if matrix is None or matrix.ndim != 3 else max(stop, matrix.shape[2])
        if size > _CONTEXT_LIMIT:
            raise bad_field("context", f"missing, of {size} tokens", "a list of token ids")
        ids = np.full(size, -1, np.int32)
        ids[start:stop] = tokens
        return Context(ids, [""] * start + pieces + [""] * (size - stop))
    ids = read_token_ids(metadata, "context")
    texts = _strings(metadata, "context_pieces", len(ids))
    if not np.array_equal(ids[start:stop], tokens):
        raise bad_field("context", ids.tolist(), f"the ids of tokens from position {start} on")
    return Context(ids, texts)


def _strings(metadata: Mapping[str, str], key: str, count: int) -> list[str]:
    """Return a metadata entry that is a list of strings, one per token."""
    texts = parse_json(metadata.get(key, "null"), key)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise bad_field(key, texts, "a list of strings")
    if len(texts) != count:
        raise bad_field(key, f"{len(texts)} strings", f"{count}, one per token")
    return texts
