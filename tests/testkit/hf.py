"""Read tiny Hugging Face checkpoints by hand and give them the names and layout of GGUF.

Only decoders with Llama's block: what the tests hold the forward pass against. The file format is
that of https://github.com/huggingface/safetensors: the length of the header as u64, the header as
JSON, the data. The permutation of q and k is the one of llama.cpp's convert_hf_to_gguf.py.
"""

import json
import math
from pathlib import Path

import numpy as np

from tinyllm.architectures.table import ARCHITECTURES

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}

#: The checkpoints of the test data whose blocks are Llama's.
LLAMAS = (
    "llama",
    "llama_bias_tied",
    "llama31_rope",
    "llama_headdim",
    "mistral",
    "phi3",
    "qwen2",
    "qwen2_yarn",
)

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def read_safetensors(path):
    """Return name -> array; bfloat16 becomes float32, which holds it exactly."""
    data = Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        array = np.frombuffer(data[begin:end], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array
    return tensors


def permute(array, heads):
    """Reorder the rows of q or k, weight or bias, from halves (j, j + Dh / 2) to pairs."""
    half = array.shape[0] // heads // 2
    return array.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(array.shape)


def llama3_factors(rope, head_size):
    """Return the divisors that Llama 3.1 applies to the frequencies of RoPE.

    The Llama 3.1 model code (github.com/meta-llama/llama-models, apply_scaling): wavelengths
    shorter than context / high_freq_factor stay, those longer than context / low_freq_factor
    are divided by the factor, and in between the frequency is interpolated.
    """
    context, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for j in range(head_size // 2):
        frequency = rope["rope_theta"] ** (-2 * j / head_size)
        turns = context * frequency / (2 * math.pi)
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def unfuse(tensors, heads, kv_heads, head_size):
    """Cut Phi-3's qkv_proj and gate_up_proj into the parts that they were made of."""
    cut = {}
    for name, array in tensors.items():
        if ".qkv_proj." in name:
            ends = np.cumsum([heads * head_size, kv_heads * head_size])
            for kind, part in zip("qkv", np.split(array, ends), strict=True):
                cut[name.replace("qkv_proj", f"{kind}_proj")] = part
        elif ".gate_up_proj." in name:
            for kind, part in zip(("gate", "up"), np.split(array, 2), strict=True):
                cut[name.replace("gate_up_proj", f"{kind}_proj")] = part
        else:
            cut[name] = array
    return cut


def load_checkpoint(directory):
    """Return a checkpoint as (metadata, tensors), ready for `write_gguf`.

    The architecture is the one of the table whose classes name the checkpoint's. Others are
    rewritten as "llama". Tensors are float32 arrays, (out, in). Any decoder with Llama's block will
    do: those of `LLAMAS`.
    """
    directory = Path(directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    rows = ARCHITECTURES.items()
    named = (name for name, row in rows if set(row.classes) & set(config["architectures"]))
    architecture = next(named, "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    rope = config["rope_parameters"]
    keys = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_size,
        "attention.value_length": head_size,
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.dimension_count": head_size,
        "rope.freq_base": rope["rope_theta"],
        "vocab_size": config["vocab_size"],
    }
    if rope["rope_type"] == "yarn":
        keys["rope.scaling.type"] = "yarn"
        keys["rope.scaling.factor"] = rope["factor"]
        keys["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    metadata = {f"{architecture}.{key}": value for key, value in keys.items()}
    metadata["general.architecture"] = architecture
    pairs = architecture == "llama"  # the only one that llama.cpp permutes
    tensors = {}
    stored = read_safetensors(directory / "model.safetensors")
    for name, array in unfuse(stored, heads, kv_heads, head_size).items():
        stem, kind = name.rsplit(".", 1)
        if stem.startswith("model.layers."):
            _, _, layer, stem = stem.split(".", 3)
            stem = f"blk.{layer}.{_NAMES[stem]}"
        else:
            stem = _NAMES[stem]
        if pairs and stem.endswith("attn_q"):
            array = permute(array, heads)
        if pairs and stem.endswith("attn_k"):
            array = permute(array, kv_heads)
        tensors[f"{stem}.{kind}"] = np.ascontiguousarray(array, dtype=np.float32)
    if config["tie_word_embeddings"]:
        tensors.pop("output.weight", None)
    if rope["rope_type"] == "llama3":
        tensors["rope_freqs.weight"] = llama3_factors(rope, head_size)
    return metadata, tensors


def load_golden(directory):
    """Return (ids, logits, hidden) as Hugging Face computed them in float64.

    hidden is (layers + 1, T, D): entry i enters block i, the last one has passed the final norm.
    """
    golden = np.load(Path(directory).with_suffix(".npz"))
    return golden["ids"], golden["logits"], golden["hidden"]
