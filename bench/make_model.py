"""Write a model of TinyLlama's shape with random weights, for measuring speed.

    python bench/make_model.py Q4_K_M /tmp/tinyllama-Q4_K_M.gguf

Types: every type that runs (F32, F16, BF16, Q4_0 ... Q6_K, IQ4_NL, IQ4_XS, MXFP4) and llama.cpp's
mixes Q2_K, Q3_K_M, Q4_K_M and Q5_K_M. With a quantized type the output matrix is Q6_K (Q8_0: Q8_0),
as llama_model_quantize makes it; `--pure` keeps one type everywhere. Values are normal numbers
quantized by PyPI gguf, or, for the types that it cannot quantize, blocks of random bits with scales
that give the same spread.
"""

import argparse
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import tinyllm
from testkit import models

LAYERS, WIDTH, HEADS, KV_HEADS, FFN, VOCABULARY, CONTEXT = 22, 2048, 32, 4, 5632, 32000, 2048
KV_WIDTH = WIDTH // HEADS * KV_HEADS

# name of a mix: (type of most tensors, general.file_type of llama.h)
MIXES = {
    "Q2_K": ("Q2_K", 10),
    "Q3_K_M": ("Q3_K", 12),
    "Q4_K_M": ("Q4_K", 15),
    "Q5_K_M": ("Q5_K", 17),
}
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9}
FILE_TYPES |= {"Q3_K": 11, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18, "BF16": 32}
FILE_TYPES |= {"IQ4_NL": 25, "IQ4_XS": 30, "MXFP4": 38}


def more_bits(layer):
    """Whether a mix gives a layer more bits (llama.cpp, src/llama-quant.cpp: use_more_bits)."""
    eighth = LAYERS // 8
    return layer < eighth or layer >= 7 * LAYERS // 8 or (layer - eighth) % 3 == 2


def type_of(name, layer, mix):
    """Return a tensor's type in a mix (llama.cpp, src/llama-quant.cpp: llama_tensor_get_type_impl).

    For an architecture that is not Falcon, without experts or importance matrix, and with eight
    query heads to a kv head.
    """
    base = MIXES.get(mix, (mix,))[0]
    if base in ("F32", "F16", "BF16"):
        return base
    if name == "output.weight":
        return base if base == "Q8_0" else "Q6_K"
    if name.endswith("attn_v.weight"):
        if mix == "Q2_K":
            return "Q4_K"
        if mix == "Q3_K_M":
            return "Q5_K" if layer < 2 else "Q4_K"
        if mix in ("Q4_K_M", "Q5_K_M") and more_bits(layer):
            return "Q6_K"
    if name.endswith("ffn_down.weight"):
        if mix == "Q2_K":
            return "Q3_K"
        if mix == "Q3_K_M":
            return "Q5_K" if layer < LAYERS // 16 else "Q4_K"
        if mix in ("Q4_K_M", "Q5_K_M") and more_bits(layer):
            return "Q6_K"
    if name.endswith("attn_output.weight"):
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K"}.get(mix, base)
    return base


def matrix(random, shape, type_name):
    """Return a TensorSource of normal numbers of variance 1 / fan-in."""

    def make():
        if type_name not in models.QUANTIZABLE:
            return models.random_blocks(random, shape, type_name, shape[1] ** -0.5)
        values = random.standard_normal(shape, np.float32) * np.float32(shape[1] ** -0.5)
        return values if type_name == "F32" else models.quantize(values, type_name)

    return tinyllm.TensorSource(shape, type_name, make)


def tensors(random, mix, pure):
    """Return all tensors of the model, in the order of llama.cpp's files."""
    shapes = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (KV_WIDTH, WIDTH),
        "attn_v": (KV_WIDTH, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (FFN, WIDTH),
        "ffn_up": (FFN, WIDTH),
        "ffn_down": (WIDTH, FFN),
    }

    def add(name, shape, layer=-1):
        kind = MIXES.get(mix, (mix,))[0] if pure else type_of(name, layer, mix)
        out[name] = matrix(random, shape, kind)

    out = {}
    add("token_embd.weight", (VOCABULARY, WIDTH))
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            out[f"blk.{layer}.{norm}.weight"] = np.ones(WIDTH, np.float32)
        for name, shape in shapes.items():
            add(f"blk.{layer}.{name}.weight", shape, layer)
    out["output_norm.weight"] = np.ones(WIDTH, np.float32)
    add("output.weight", (VOCABULARY, WIDTH))
    return out


def metadata(mix):
    """Return hyperparameters, and a vocabulary of bytes and made-up words for every engine."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += [f"\u2581w{i}" for i in range(VOCABULARY - len(pieces))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (VOCABULARY - 259)
    return {
        "general.architecture": "llama",
        "general.name": f"random TinyLlama {mix}",
        "general.file_type": MIXES[mix][1] if mix in MIXES else FILE_TYPES[mix],
        "general.quantization_version": 2,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.block_count": LAYERS,
        "llama.feed_forward_length": FFN,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": np.array(
            [0.0] * 259 + [-float(i) for i in range(VOCABULARY - 259)], np.float32
        ),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def main():
    """Write one model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("type", choices=sorted({*MIXES, *FILE_TYPES}))
    parser.add_argument("path")
    parser.add_argument("--pure", action="store_true", help="one type for all matrices")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random = np.random.default_rng(options.seed)
    tinyllm.write_gguf(
        options.path, metadata(options.type), tensors(random, options.type, options.pure)
    )
    print(f"{options.path}: {pathlib.Path(options.path).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
