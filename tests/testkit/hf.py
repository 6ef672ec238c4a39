"""The tiny Hugging Face checkpoints of the test data, and what Hugging Face computes with them."""

import json
from pathlib import Path

import numpy as np

from testkit import data
from tinyllm.conversion.huggingface import read_checkpoint
from tinyllm.files.arrays import read_arrays

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


def sources(name):
    """Return the tensors of a checkpoint under their own names, as float32."""
    arrays, _ = read_arrays(data.path("hf", name, "model.safetensors"))
    return {key: array.astype(np.float32) for key, array in arrays.items()}


def keys_of(name, *wanted):
    """Return GGUF keys of a checkpoint, without the architecture's name: all, or those wanted."""
    metadata, _ = read_checkpoint(data.path("hf", name))
    prefix = metadata["general.architecture"]
    found = {key.removeprefix(f"{prefix}."): value for key, value in metadata.items()}
    return {key: found.get(key) for key in wanted} if wanted else found


def rewrite(folder, change):
    """Change the config of a copy of a checkpoint."""
    path = folder / "config.json"
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values), "utf-8")


def same(one, other):
    """Check that two results of `read_checkpoint` are equal but for the name."""
    assert one[0] | {"general.name": ""} == other[0] | {"general.name": ""}
    assert set(one[1]) == set(other[1])
    for name in one[1]:
        np.testing.assert_array_equal(one[1][name], other[1][name])
