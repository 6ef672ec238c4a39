"""The tiny Hugging Face checkpoints of the test data, and what Hugging Face computes with them."""

import json
from pathlib import Path

import numpy as np

from testkit import data
from tinyllm.conversion.huggingface import read_checkpoint
from tinyllm.files.arrays import read_arrays

#: Checkpoints of the test data, and the architecture that each becomes.
CHECKPOINTS = {
    "llama": "llama",
    "llama_bias_tied": "llama",
    "llama31_rope": "llama",
    "llama_headdim": "llama",
    "mistral": "llama",
    "ministral3": "mistral3",
    "qwen2": "qwen2",
    "qwen2_yarn": "qwen2",
    "qwen2vl": "qwen2vl",
    "qwen3": "qwen3",
    "qwen3vl": "qwen3vl",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma2_dh": "gemma2",
    "gemma3": "gemma3",
    "gemma3_dh": "gemma3",
    "phi3": "phi3",
    "phi3_longrope": "phi3",
    "granite": "granite",
    "smollm3": "smollm3",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "gpt2": "gpt2",
    "gptneox": "gptneox",
    "gptneox_serial": "gptneox",
    "phi2": "phi2",
    "falcon": "falcon",
    "falcon_new": "falcon",
    "starcoder2": "starcoder2",
    "stablelm": "stablelm",
    "cohere": "command-r",
    "cohere2": "cohere2",
    "mixtral": "llama",
    "qwen2moe": "qwen2moe",
    "qwen3moe": "qwen3moe",
    "olmoe": "olmoe",
    "granitemoe": "granitemoe",
    "granitemoe_shared": "granitemoe",
    "gptoss": "gpt-oss",
    "lfm2": "lfm2",
    "qwen3next": "qwen3next",
    "qwen35": "qwen35",
    "qwen35moe": "qwen35moe",
    "gemma4": "gemma4",
    "gemma4_e": "gemma4",
    "gemma4_moe": "gemma4",
    "bert": "bert",
    "bert_rank": "bert",
    "nomic_bert": "nomic-bert",
    "embeddinggemma": "gemma-embedding",
    "afmoe": "afmoe",
    "apertus": "apertus",
    "arcee": "arcee",
    "bitnet": "bitnet",
    "bloom": "bloom",
    "cohere2_moe": "cohere2moe",
    "dbrx": "dbrx",
    "deepseek_v2": "deepseek2",
    "deepseek_v2_groups": "deepseek2",
    "deepseek_v3": "deepseek2",
    "dots1": "dots1",
    "ernie4_5": "ernie4_5",
    "ernie4_5_moe": "ernie4_5-moe",
    "eurobert": "eurobert",
    "exaone4": "exaone4",
    "exaone4_full": "exaone4",
    "exaone_moe": "exaone-moe",
    "falcon_h1": "falcon-h1",
    "falcon_mamba": "mamba",
    "gemma3n": "gemma3n",
    "glm": "chatglm",
    "glm4": "glm4",
    "glm4_moe": "glm4moe",
    "glm4_moe_lite": "deepseek2",
    "gpt_bigcode": "starcoder",
    "granitehybrid_dense": "granitehybrid",
    "granitemoehybrid": "granitehybrid",
    "hunyuan_dense": "hunyuan-dense",
    "hunyuan_moe": "hunyuan-moe",
    "hy_v3": "hy_v3",
    "jais2": "jais2",
    "jamba": "jamba",
    "laguna": "laguna",
    "lfm2_moe": "lfm2moe",
    "llama4": "llama4",
    "mamba": "mamba",
    "mamba2": "mamba2",
    "mellum": "mellum",
    "mimo2": "mimo2",
    "minicpm3": "minicpm3",
    "minimax_m2": "minimax-m2",
    "mistral4": "mistral4",
    "modernbert": "modern-bert",
    "mpt": "mpt",
    "nemotron": "nemotron",
    "nemotron_h": "nemotron_h",
    "nemotron_h_latent": "nemotron_h_moe",
    "nemotron_h_moe": "nemotron_h_moe",
    "phimoe": "phimoe",
    "seed_oss": "seed_oss",
    "t5": "t5",
    "t5encoder": "t5encoder",
}

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
