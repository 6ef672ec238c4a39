"""Random models of every architecture, with matrices of every tensor type."""

import tinyllm
from tinyllm.architectures.table import ARCHITECTURES
from tinyllm.testing.recipes import KEYS, PARTS, Recipe, random_weights

from . import models

#: Rows that no checkpoint of Hugging Face confirms, but llama.cpp (tests/live).
LLAMA_CPP = (
    *("deepseek", "bailingmoe", "bailingmoe2", "exaone", "internlm2", "xverse", "orion", "qwen"),
    *("baichuan", "refact", "minicpm", "plm", "codeshell", "jais", "deci", "openelm", "glm-dsa"),
    *("deepseek32", "pangu-embedded", "maincoder", "granite_swa", "step35", "llama-embed"),
    *("smallthinker", "arctic", "plamo", "plamo3", "hunyuan_vl", "paddleocr", "nanbeige"),
    *("neo-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "rwkv7", "arwkv7"),
)


def _distinct():
    """The names whose random models differ from all before them."""
    seen, names = [], []
    for name, row in ARCHITECTURES.items():
        if name in KEYS or name in PARTS or row not in seen:
            names.append(name)
        if name not in KEYS and name not in PARTS:
            seen.append(row)
    return names


#: The rows without those that are a second name of another, such as internlm2 of llama.
DISTINCT = _distinct()


def random_architecture(architecture, type_name="F32", *, layers=2, metadata=None, types=None,
                        **options):  # fmt: skip
    """Return a random model as (metadata, tensors), ready for `write_gguf`.

    `layers` is for architectures whose recipe does not say how many blocks they need. `types` maps
    patterns of tensor names to other types. `metadata` has whole keys. See `Recipe` for the rest.
    """
    if "block_count" in KEYS.get(architecture, {}):
        layers = None
    recipe = Recipe(
        layers=layers, type=type_name, metadata=metadata or {}, types=types or {}, **options
    )
    return random_weights(architecture, recipe, _raw)


def _raw(random, values, kind):
    if kind in models.QUANTIZABLE:
        return models.quantize(values, kind).tobytes()
    return models.random_blocks(random, values.shape, kind, values.std()).tobytes()


def load(path, **options):
    """Return a loaded model; of one with an encoder and a decoder, the decoder for a source."""
    model = tinyllm.load(path, **options)
    if ARCHITECTURES[model.config.architecture].decoder is None:
        return model
    return model.decoder(models.random_ids(model, 37))


def random_model(directory, architecture, type_name="F32", *, threads=2, **options):
    """Return a loaded random model of an architecture."""
    path = directory / f"{architecture}.gguf"
    tinyllm.write_gguf(path, *random_architecture(architecture, type_name, **options))
    return load(path, threads=threads)
