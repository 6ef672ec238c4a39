"""Measure how far logits are from float64: exact mode, fast mode, and llama.cpp.

    pip install llama-cpp-python gguf
    python bench/error.py [--json error.json] [Q4_K_M Q8_0 ...]

A random Llama of 4 layers and width 768 in float32, quantized to each type by llama.cpp itself
(plain types: every matrix; Q4_K_M and so on: as llama.cpp mixes them), then 128 random tokens
through each engine. As in trained models some channels of the norms are far above the others, so
that activations have outliers. Truth is `tinyllm.reference`, float64, over the exact values of
the file's weights. Errors are ||a - b|| / ||b|| over all logits; KL is the mean over positions of
the divergence of the next token's distribution, in nats.

llama.cpp runs on one thread without flash attention, once with its default float16 kv cache and
once with float32.
"""

import argparse
import ctypes
import json
import pathlib
import sys
import tempfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import llama_cpp
import make_model

import tinyllm
import tinyllm.reference
from testkit import models

LAYERS, WIDTH, HEADS, KV_HEADS, FFN, VOCABULARY = 4, 768, 12, 4, 2048, 1024
TOKENS = 128

# what to ask llama_model_quantize for: (llama_ftype, one type for all matrices); llama.h
TYPES = {
    "F32": (0, True),
    "F16": (1, True),
    "BF16": (32, True),
    "Q4_0": (2, True),
    "Q4_1": (3, True),
    "Q5_0": (8, True),
    "Q5_1": (9, True),
    "Q8_0": (7, True),
    "Q2_K": (10, True),
    "Q3_K": (11, True),
    "Q4_K": (14, True),
    "Q5_K": (16, True),
    "Q6_K": (18, True),
    "IQ4_NL": (25, True),
    "IQ4_XS": (30, True),
    "MXFP4": (38, True),
    "Q3_K_M": (12, False),
    "Q4_K_M": (15, False),
    "Q5_K_M": (17, False),
}


@llama_cpp.llama_log_callback
def no_log(level, text, user_data):
    """Discard what llama.cpp logs about every tensor."""


def write_float_model(path, seed):
    """Write the model that the others are quantized from."""
    metadata, tensors = models.random_llama(
        "F32",
        layers=LAYERS,
        width=WIDTH,
        heads=HEADS,
        kv_heads=KV_HEADS,
        ffn=FFN,
        vocab=VOCABULARY,
        seed=seed,
    )
    random = np.random.default_rng(seed)
    outliers = random.choice(WIDTH, 6, replace=False)
    for name, tensor in tensors.items():
        if name.startswith("blk.") and "norm" in name:
            weight = np.exp(0.5 * random.standard_normal(WIDTH))
            weight[outliers] *= 10
            # the sum of squares that the matrices expect, so that attention stays soft
            tensors[name] = (weight / np.sqrt(np.mean(weight**2))).astype(np.float32)
        elif name == "token_embd.weight":
            table = tensor.numpy().copy()
            table[:, outliers] *= 3
            tensors[name] = table
    vocabulary = make_model.metadata("F32")
    for key in vocabulary:
        if key.startswith("tokenizer.ggml."):
            value = vocabulary[key]
            metadata[key] = value if isinstance(value, (str, int)) else value[:VOCABULARY]
    metadata["general.file_type"] = 0
    metadata["general.quantization_version"] = 2
    tinyllm.write_gguf(path, metadata, tensors)


def quantize(source, target, name):
    """Let llama.cpp write the file in another type."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.pure = TYPES[name]
    options.nthread = 1
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(options)
    )
    if code != 0:
        raise RuntimeError(f"llama_model_quantize returned {code} for {name}")


def llama_logits(path, ids, kv_type):
    """Return the logits (T, V) of llama.cpp, with a kv cache of a ggml type."""
    engine = llama_cpp.Llama(
        str(path),
        n_ctx=256,
        n_batch=256,
        n_ubatch=256,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        flash_attn=False,
        type_k=kv_type,
        type_v=kv_type,
        verbose=False,
    )
    engine.eval([int(i) for i in ids])
    logits = np.array(engine.scores[: len(ids)])
    engine.close()
    return logits


def log_probs(logits):
    """Return log softmax in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def compare(logits, truth):
    """Return the normwise error and the mean KL divergence."""
    p, q = log_probs(truth), log_probs(logits)
    return {
        "error": models.normwise_error(logits, truth),
        "kl": float(np.mean((np.exp(p) * (p - q)).sum(-1))),
    }


def measure(path, ids):
    """Return engine -> error and KL for one file."""
    exact, fast = tinyllm.load(path), tinyllm.load(path, mode="fast")
    truth = tinyllm.reference.forward(exact.config, exact.weights, ids)["output"]
    return {
        "exact": compare(exact.logits(ids), truth),
        "fast": compare(fast.logits(ids), truth),
        "llama": compare(llama_logits(path, ids, llama_cpp.GGML_TYPE_F16), truth),
        "llama_f32_kv": compare(llama_logits(path, ids, llama_cpp.GGML_TYPE_F32), truth),
    }


def table(results):
    """Return the results as a markdown table."""
    lines = [
        "| file | exact | fast | llama.cpp | llama.cpp, float32 kv | fast: KL | llama.cpp: KL |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in results.items():
        errors = [each[key]["error"] for key in ("exact", "fast", "llama", "llama_f32_kv")]
        kl = [each[key]["kl"] for key in ("fast", "llama")]
        lines.append(f"| {name} | " + " | ".join(f"{value:.2e}" for value in errors + kl) + " |")
    return "\n".join(lines)


def main():
    """Measure, print the table, and fail if fast mode has larger errors than llama.cpp."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("types", nargs="*", metavar="type", help=f"of {', '.join(TYPES)}")
    parser.add_argument("--json", help="write the figures here too")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = options.types or list(TYPES)
    if unknown := set(names) - set(TYPES):
        parser.error(f"unknown types: {', '.join(sorted(unknown))}")
    llama_cpp.llama_log_set(no_log, ctypes.c_void_p(0))
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        source = pathlib.Path(directory) / "F32.gguf"
        write_float_model(source, options.seed)
        ids = np.random.default_rng(options.seed + 1).integers(259, VOCABULARY, TOKENS)
        for name in names:
            path = source if name == "F32" else source.with_name(f"{name}.gguf")
            if name != "F32":
                quantize(source, path, name)
            results[name] = measure(path, ids)
            print(name, results[name], file=sys.stderr, flush=True)
            if name != "F32":
                path.unlink()
    about = {
        "cpu": tinyllm.cpu().name,
        "kernels": tinyllm.cpu().isa,
        "llama-cpp-python": llama_cpp.__version__,
        "numpy": np.__version__,
    }
    print(f"{about}\n\n{table(results)}")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps({"about": about, "results": results}))
    worse = [n for n, each in results.items() if each["fast"]["error"] >= each["llama"]["error"]]
    if worse:
        sys.exit(f"fast mode is not better than llama.cpp: {', '.join(worse)}")


if __name__ == "__main__":
    main()
