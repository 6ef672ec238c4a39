"""Build models for the tests from `models.random_llama`."""

import numpy as np

import tinyllm as tl
from testkit import models


def write(path, metadata, tensors):
    """Write a random model as GGUF and return the path."""
    tl.write_gguf(path, metadata, tensors)
    return path


def random_model(directory, type_name="F32", *, threads=2, max_context=None, **options):
    """Return a loaded random model."""
    path = write(directory / "random.gguf", *models.random_llama(type_name, **options))
    return tl.load(path, threads=threads, max_context=max_context)


def random_ids(model, count, seed=0):
    """Return random token ids of a model."""
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, count)
