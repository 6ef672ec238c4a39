"""The tiny Hugging Face checkpoints of the test data, and what Hugging Face computes with them."""

from pathlib import Path

import numpy as np

from tinyllm.conversion.huggingface import read_checkpoint

#: The checkpoints whose blocks are Llama's.
LLAMAS = (
    "llama",
    "llama_bias_tied",
    "llama31_rope",
    "llama_headdim",
    "mistral",
    "qwen2",
    "qwen2_yarn",
)


def load_checkpoint(directory):
    """Return a checkpoint as (metadata, tensors), ready for `write_gguf` and for changes."""
    metadata, tensors = read_checkpoint(directory)
    return metadata, dict(tensors)


def permute(array, heads):
    """Reorder the rows of q or k, weight or bias, from halves (j, j + Dh / 2) to pairs."""
    half = array.shape[0] // heads // 2
    return array.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(array.shape)


def load_golden(directory):
    """Return (ids, logits, hidden) as Hugging Face computed them in float64.

    hidden is (layers + 1, T, D): entry i enters block i, the last one has passed the final norm.
    """
    golden = np.load(Path(directory).with_suffix(".npz"))
    return golden["ids"], golden["logits"], golden["hidden"]
