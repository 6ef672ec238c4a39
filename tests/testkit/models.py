"""Random models of any shape and type for the tests, and what they mean in float64."""

import fnmatch
import itertools
from types import SimpleNamespace
from typing import NamedTuple

import gguf
import numpy as np

import tinyllm
from testkit import rare_blocks
from tinyllm.architectures.table import ARCHITECTURES

QUANTIZABLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")


class _Block(NamedTuple):
    """Where a block keeps its float16 scales, and d / dmin for a mean of zero.

    For the types that PyPI gguf cannot quantize.

    A value is d * scale * q - dmin * min with uniform bits, and scale and min alike distributed:
    the mean is zero when dmin / d is the mean of q. Layouts: ggml-common.h of ggml.
    """

    size: int
    d: int | None
    dmin: int | None = None
    mean_q: float = 0.0
    items: int = 256


_BLOCKS = {
    "Q2_K": _Block(84, d=80, dmin=82, mean_q=1.5),
    "Q3_K": _Block(110, d=108),
    "Q4_K": _Block(144, d=0, dmin=2, mean_q=7.5),
    "Q5_K": _Block(176, d=0, dmin=2, mean_q=15.5),
    "Q6_K": _Block(210, d=208),
    "IQ4_NL": _Block(18, d=0, items=32),
    "IQ4_XS": _Block(136, d=0),
}

TYPES = (*QUANTIZABLE, *_BLOCKS)

_RARE_BLOCKS = {
    "IQ1_S": _Block(50, d=0),
    "IQ1_M": _Block(56, d=None),
    "IQ2_XXS": _Block(66, d=0),
    "IQ2_XS": _Block(74, d=0),
    "IQ2_S": _Block(82, d=0),
    "IQ3_XXS": _Block(98, d=0),
    "IQ3_S": _Block(110, d=0),
    "TQ1_0": _Block(54, d=52),
    "TQ2_0": _Block(66, d=64),
    "NVFP4": _Block(36, d=None, items=64),
    "Q1_0": _Block(18, d=0, items=128),
    "Q2_0": _Block(18, d=0, items=64),
    "Q8_1": _Block(36, d=0, items=32),
    "Q8_K": _Block(292, d=None),
}
_BLOCKS |= _RARE_BLOCKS

#: Types that few files have. tests/core/recording.json has results of the others.
RARE_TYPES = tuple(_RARE_BLOCKS)


def quantize(array, type_name):
    """Return the raw bytes of a float array in a type, as PyPI gguf quantizes it."""
    raw = gguf.quants.quantize(
        np.ascontiguousarray(array, dtype=np.float32), gguf.GGMLQuantizationType[type_name]
    )
    return np.ascontiguousarray(raw).view(np.uint8)


def dequantize(raw, type_name):
    """Return the float32 values of raw bytes, as PyPI gguf reads them."""
    if type_name in rare_blocks.NOT_IN_GGUF:
        _, items, size, _ = tinyllm._core.tensor_types()[type_name][:4]
        return rare_blocks.dequantize(raw, type_name, items, size)
    kind = gguf.GGMLQuantizationType[type_name]
    if type_name in ("F32", "F16"):  # which gguf wants as floats, not as bytes
        return raw.view(np.float32 if type_name == "F32" else np.float16).astype(np.float32)
    return gguf.quants.dequantize(raw, kind)


def random_blocks(random, shape, type_name, std):
    """Return the raw bytes of a matrix of such a type: random bits, values around zero of `std`.

    All bits but the float16 scales are uniform, so every sub-scale, minimum and value occurs;
    the scales vary between blocks by a factor of two and have either sign.
    """
    layout = _BLOCKS[type_name]
    *rows, columns = shape
    items = layout.items
    if columns % items:
        raise ValueError(
            f"shape: rows of {columns} values: {type_name} needs a multiple of {items}"
        )
    blocks = random.integers(0, 256, (*rows, columns // items, layout.size), dtype=np.uint8)

    def put(offset, values):
        if offset is None:
            rare_blocks.set_scales(type_name, blocks, values)
            return
        half = np.asarray(values, dtype="<f2")
        blocks[..., offset : offset + 2] = half[..., np.newaxis].view(np.uint8)

    def scale(d):
        put(layout.d, d)
        if layout.dmin is not None:
            put(layout.dmin, d * layout.mean_q)

    count = blocks.shape[:-1]
    scale(np.full(count, 1 / 64))
    # rounded, because NumPy's sums differ between CPUs in their last bits
    unit = float(f"{64 * dequantize(blocks.reshape(-1, layout.size)[:512], type_name).std():.3g}")
    spread = random.uniform(2 / 3, 4 / 3, count) * random.choice((-1, 1), count)
    scale(std / unit * spread)
    return blocks.reshape(*rows, -1)


def random_llama(
    type_name="F32",
    *,
    architecture="llama",
    layers=2,
    width=256,
    heads=4,
    kv_heads=2,
    head_size=None,
    value_size=None,
    ffn=512,
    vocab=320,
    seed=0,
    biases=False,
    tied=False,
    types=None,
    context=2048,
    rope_base=10000.0,
    rope_freqs=None,
    norm_epsilon=1e-5,
    metadata=None,
):
    """Return a random Llama, or another architecture of its block, as (metadata, tensors).

    Weights are N(0, 1 / fan-in), norm weights 1 + 0.3 N, embeddings N(0, 1), biases 0.3 N. The
    biases that the architecture requires are there; with `biases`, all of them.

    `heads`, `kv_heads` and `ffn` may be lists, one number per layer. `types` maps patterns of
    tensor names to types, the first that fits wins over `type_name`; norms and biases are F32.
    `rope_freqs` gives the divisors of Llama 3.1; `metadata` adds keys or replaces them.
    Tensors are `Weight` objects, ready for `write_gguf` and `tinyllm.reference`.
    """
    random = np.random.default_rng(seed)

    def per_layer(value):
        return list(value) if isinstance(value, (list, tuple)) else [value] * layers

    if head_size is None:
        head_size = width // per_layer(heads)[0]
    if value_size is None:
        value_size = head_size
    required = ARCHITECTURES[architecture].biases
    tensors = {}

    def matrix(name, outputs, inputs, std=None):
        std = inputs**-0.5 if std is None else std
        patterns = (types or {}).items()
        chosen = next((t for pattern, t in patterns if fnmatch.fnmatch(name, pattern)), type_name)
        if chosen in _BLOCKS:
            raw = random_blocks(random, (outputs, inputs), chosen, std)
        else:
            raw = quantize(std * random.standard_normal((outputs, inputs)), chosen)
        tensors[name] = tinyllm.Weight(name, (outputs, inputs), chosen, raw.tobytes())

    def vector(name, values):
        raw = quantize(values, "F32")
        tensors[name] = tinyllm.Weight(name, (len(values),), "F32", raw.tobytes())

    def norm(name):
        vector(f"{name}.weight", 1 + 0.3 * random.standard_normal(width))

    def linear(name, outputs, inputs):
        matrix(f"{name}.weight", outputs, inputs)
        if biases or name.split(".")[-1] in required:
            vector(f"{name}.bias", 0.3 * random.standard_normal(outputs))

    matrix("token_embd.weight", vocab, width, std=1.0)
    layer_sizes = zip(per_layer(heads), per_layer(kv_heads), per_layer(ffn), strict=True)
    for i, (h, k, f) in enumerate(layer_sizes):
        norm(f"blk.{i}.attn_norm")
        linear(f"blk.{i}.attn_q", h * head_size, width)
        linear(f"blk.{i}.attn_k", k * head_size, width)
        linear(f"blk.{i}.attn_v", k * value_size, width)
        linear(f"blk.{i}.attn_output", width, h * value_size)
        norm(f"blk.{i}.ffn_norm")
        linear(f"blk.{i}.ffn_gate", f, width)
        linear(f"blk.{i}.ffn_up", f, width)
        linear(f"blk.{i}.ffn_down", width, f)
    norm("output_norm")
    if not tied:
        matrix("output.weight", vocab, width)
    if rope_freqs is not None:
        vector("rope_freqs.weight", rope_freqs)

    def number_or_array(value):
        return np.array(value, np.uint32) if isinstance(value, (list, tuple)) else value

    keys = {
        "block_count": layers,
        "context_length": context,
        "embedding_length": width,
        "feed_forward_length": number_or_array(ffn),
        "attention.head_count": number_or_array(heads),
        "attention.head_count_kv": number_or_array(kv_heads),
        "attention.key_length": head_size,
        "attention.value_length": value_size,
        "attention.layer_norm_rms_epsilon": norm_epsilon,
        "rope.dimension_count": head_size,
        "rope.freq_base": rope_base,
        "vocab_size": vocab,
    }
    keys = {f"{architecture}.{key}": value for key, value in keys.items()}
    general = {"general.architecture": architecture, "general.name": f"random {type_name}"}
    return {**general, **keys, **(metadata or {})}, tensors


def write(path, metadata, tensors):
    """Write a random model as GGUF and return the path."""
    tinyllm.write_gguf(path, metadata, tensors)
    return path


def random_model(directory, type_name="F32", *, threads=2, max_context=None, **options):
    """Return a loaded random model."""
    path = write(directory / "random.gguf", *random_llama(type_name, **options))
    return tinyllm.load(path, threads=threads, max_context=max_context)


def random_ids(model, count, seed=0):
    """Return random token ids of a model."""
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, count)


def values(tensors):
    """Return name -> float32 array for the tensors of `random_llama`, as PyPI gguf reads them."""
    return {name: dequantize(weight.raw, weight.type) for name, weight in tensors.items()}


def reference_config(metadata, tensors):
    """Return what `tinyllm.reference` needs to know, read from GGUF metadata."""
    prefix = f"{metadata['general.architecture']}."

    def get(key, default=None):
        value = metadata.get(prefix + key, default)
        return tuple(int(v) for v in value) if isinstance(value, np.ndarray) else value

    heads = get("attention.head_count")
    first = heads[0] if isinstance(heads, tuple) else heads
    head_size = get("attention.key_length", get("embedding_length") // first)
    scaling = None
    if get("rope.scaling.type") not in (None, "none"):
        keys = ("type", "factor", "original_context_length", "attn_factor")
        scaling = {key: get(f"rope.scaling.{key}") for key in keys}
        yarn = ("beta_fast", "beta_slow", "ext_factor", "attn_factor")
        scaling |= {
            key: get(f"rope.scaling.yarn_{key}")
            for key in yarn
            if get(f"rope.scaling.yarn_{key}") is not None
        }
    return SimpleNamespace(
        architecture=metadata["general.architecture"],
        layers=get("block_count"),
        width=get("embedding_length"),
        heads=heads,
        kv_heads=get("attention.head_count_kv", heads),
        head_size=head_size,
        value_size=get("attention.value_length", head_size),
        ffn_width=get("feed_forward_length"),
        vocab_size=get("vocab_size"),
        context_length=get("context_length"),
        norm_epsilon=get("attention.layer_norm_rms_epsilon"),
        rope_base=get("rope.freq_base", 10000.0),
        rope_scaling=scaling,
        rope_dimension=get("rope.dimension_count", head_size),
        attention_scale=get("attention.scale"),
        tied="output.weight" not in tensors,
    )


def normwise_error(actual, expected):
    """Return ||a - b|| / ||b|| over the finite entries; infinite where -inf or NaN differ."""
    actual, expected = (np.asarray(x, dtype=np.float64) for x in (actual, expected))
    if actual.shape != expected.shape:
        raise ValueError(f"actual: shape {actual.shape}: expected {expected.shape}")
    finite = np.isfinite(expected)
    if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True):
        return np.inf
    if not np.isfinite(actual[finite]).all():
        return np.inf
    difference = np.linalg.norm(actual[finite] - expected[finite])
    return float(difference / np.linalg.norm(expected[finite])) if difference else 0.0


def tap_names(layers):
    """Return every tap of a Llama, in the order of computation."""
    block = (
        "resid_pre attn_norm_scale attn_norm attn_q attn_k attn_v attn_q_rope attn_k_rope "
        "attn_scores attn_probs attn_mix attn_output resid_mid ffn_norm_scale ffn_norm ffn_gate "
        "ffn_up ffn_act ffn_down resid_post"
    ).split()
    blocks = [f"blk.{i}.{tap}" for i, tap in itertools.product(range(layers), block)]
    return ["token_embd", *blocks, "output_norm_scale", "output_norm", "output"]
