"""The fingerprint of a model, and its config as plain values."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .._core import Weight
from .config import Config

__all__ = ["config_values", "fingerprint"]


def config_values(config: Config) -> dict[str, Any]:
    """Return the fields of a config as values that JSON can hold."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def fingerprint(config: Config, weights: Mapping[str, Weight], scales: Sequence[float] = ()) -> str:
    """Return a hash that identifies a model.

    It covers the config, every tensor's name, shape and type, and up to 8 KiB of each tensor's
    bytes, in eight evenly spaced parts. This is quick for models of any size, and distinguishes
    one training step from the next. It does not protect against a model that was built to have
    the same fingerprint.

    Parameters
    ----------
    config : Config
    weights : mapping of str to Weight
    scales : sequence of float
        The alphas and scales of adapters.

    Returns
    -------
    str
        32 hexadecimal digits (BLAKE2b).

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> from tinyllm.architectures.fingerprint import fingerprint
    >>> fingerprint(model.config, model.weights) == model.fingerprint
    True
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(config_values(config), sort_keys=True).encode())
    if scales:
        digest.update(json.dumps(["adapters", *scales]).encode())
    for name in sorted(weights):
        weight = weights[name]
        digest.update(json.dumps([name, list(weight.shape), weight.type]).encode())
        raw = weight.raw.reshape(-1)
        if raw.size <= 8192:
            digest.update(raw.tobytes())
        else:
            for part in range(8):
                start = (raw.size - 1024) * part // 7
                digest.update(raw[start : start + 1024].tobytes())
    return digest.hexdigest()
