"""Write a mid-size random model of another architecture than llama, for measuring speed.

    python bench/make_shape.py qwen3moe /tmp/qwen3moe.gguf

Shapes: qwen3moe, gemma3 and qwen35 in Q4_K_M, and gpt-oss with experts in MXFP4. bench/peers.py
compares them with llama.cpp, which reads the same files. The vocabulary has no texts.
"""

import argparse
import pathlib
import tempfile

import numpy as np

import tinyllm as tl
from tinyllm.testing.recipes import Recipe, float_bytes, random_weights

VOCABULARY = 32000

#: architecture: the recipe, its own keys, and the mix of types.
SHAPES = {
    "qwen3moe": (
        {
            **{"layers": 12, "width": 1024, "heads": 16, "kv_heads": 4, "ffn": 3072},
            "parts": ("output.weight",),
        },
        {
            "expert_count": 32,
            "expert_used_count": 4,
            "expert_feed_forward_length": 512,
            "leading_dense_block_count": 0,
        },
        "Q4_K_M",
    ),
    "gpt-oss": (
        {"layers": 8, "width": 1024, "heads": 16, "kv_heads": 4, "ffn": 1024},
        {
            "expert_count": 16,
            "expert_used_count": 4,
            "expert_feed_forward_length": 1024,
            "attention.sliding_window": 128,
        },
        "MXFP4_MOE",
    ),
    "gemma3": (
        {"layers": 13, "width": 1280, "heads": 5, "kv_heads": 1, "ffn": 6912},
        {"attention.sliding_window": 512, "attention.key_length": 256},
        "Q4_K_M",
    ),
    "qwen35": (
        {"layers": 12, "width": 1024, "heads": 8, "kv_heads": 2, "ffn": 3584},
        {
            "attention.key_length": 256,
            "attention.value_length": 256,
            "rope.dimension_count": 64,
            "rope.dimension_sections": np.array([16, 8, 8, 0], np.int32),
            "ssm.state_size": 128,
            "ssm.group_count": 16,
            "ssm.time_step_rank": 16,
            "ssm.inner_size": 2048,
        },
        "Q4_K_M",
    ),
}


def write(architecture: str, out: pathlib.Path) -> None:
    """Write the model of an architecture."""
    sizes, own, mix = SHAPES[architecture]
    keys = {f"{architecture}.{key}": value for key, value in own.items()}
    recipe = Recipe(type="BF16", vocab=VOCABULARY, context=4096, metadata=keys, **sizes)
    metadata, tensors = random_weights(architecture, recipe, float_bytes)
    for key, value in metadata.items():  # llama.cpp reads arrays of 32 bits
        if isinstance(value, np.ndarray) and value.dtype == np.int64:
            metadata[key] = value.astype(np.int32)
    metadata |= {"tokenizer.ggml.model": "none"}
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        whole = pathlib.Path(folder) / "whole.gguf"
        tl.write_gguf(whole, metadata, tensors)
        del tensors
        tl.quantize(whole, out, mix)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architecture", choices=SHAPES)
    parser.add_argument("out", type=pathlib.Path)
    options = parser.parse_args()
    write(options.architecture, options.out)


if __name__ == "__main__":
    main()
