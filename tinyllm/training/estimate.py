"""What a run will take, from its settings and one sequence."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .. import _core
from .data import read_data
from .initial import initial_parts
from .network import Network
from .optimizer import Optimizer
from .settings import Settings
from .vocabulary import vocabulary

__all__ = ["estimate"]


def estimate(data: Any, tokenizer: Any, threads: int | None, **given: Any) -> str:
    """Return the number of parameters, the memory and the time of a step as a sentence.

    The time is that of one sequence, times the number of sequences.

    Parameters
    ----------
    data, tokenizer, threads
        As for `tinyllm.train`.
    **given
        The shape and the optimizer.

    Returns
    -------
    str
    """
    settings = Settings.make(**given)
    found = read_data(data)
    keys = {}
    if isinstance(found, str):
        keys = vocabulary(tokenizer, found)
        size = len(keys["tokenizer.ggml.tokens"])
    else:
        size = int(found.max()) + 1
    parts = initial_parts(settings, keys, size)
    network = Network.make(parts.keys, parts.arrays(), threads or _core.cpu_count())
    optimizer = Optimizer(network, settings)
    ids = np.arange(settings.context, dtype=np.int32)[np.newaxis] % size
    seconds = []
    for i in range(3):
        began = time.perf_counter()
        network.add_gradients(ids, ids, 1.0)
        middle = time.perf_counter()
        optimizer.step(i)
        seconds.append((middle - began) * settings.batch + time.perf_counter() - middle)
    # weights, gradients and two moments
    memory = 16 * network.parameters
    memory += network.bytes_of(settings.micro_batch, settings.context) * 2
    return (
        f"{network.parameters:,} weights; about {memory / 1e6:,.0f} MB and "
        f"{min(seconds) * 1e3:,.0f} ms a step, {min(seconds) * settings.steps:,.0f} s in all"
    )
