"""Measure what the types of stored keys and values cost: their error and their memory.

    python bench/cache.py --text FILE [--tokens 4096] [--window 2048] [--mode exact]
        [--out cache] MODEL.gguf ...

The divergence is that of each model from itself with a float32 cache, so that nothing but the cache
differs. The text is cut into windows that do not overlap. Every token counts, the first one of a
window in the divergence only. Writes OUT.json and OUT.md.
"""

import argparse
import pathlib

import numpy as np
import report

import tinyllm as tl

TYPES = ("f32", "f16", "q8")


def log_probabilities(model, ids):
    """Return those of each next token, (T, V)."""
    logits = model.logits(ids)
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits, dtype=np.float64).sum(-1, keepdims=True)).astype(np.float32)
    return logits


def measure(path, text, options):
    """Return a row for each type."""
    models = [tl.load(path, mode=options.mode, cache=cache) for cache in TYPES]
    ids = np.array(models[0].tokenizer.encode(text)[: options.tokens])
    losses, divergences, same = ([[] for _ in TYPES] for _ in range(3))
    for start in range(0, len(ids), options.window):
        window = ids[start : start + options.window]
        plain = log_probabilities(models[0], window)
        for i, model in enumerate(models):
            other = log_probabilities(model, window) if i else plain
            losses[i] += list(-other[np.arange(len(window) - 1), window[1:]])
            for a, b in zip(plain, other, strict=True):
                difference = a.astype(np.float64) - b
                divergences[i].append(float((np.exp(a.astype(np.float64)) * difference).sum()))
                same[i].append(a.argmax() == b.argmax())
    rows = [
        {
            "model": pathlib.Path(path).stem,
            "cache": model.cache,
            "bytes per token": model.memory(2048).cache / 2048,
            "perplexity": float(np.exp(np.mean(losses[i], dtype=np.float64))),
            "mean": float(np.mean(divergences[i])),
            "max": float(np.max(divergences[i])),
            "same": float(np.mean(same[i])),
        }
        for i, model in enumerate(models)
    ]
    print(*rows, sep="\n", flush=True)
    return rows


def main():
    """Measure and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--mode", default="exact")
    parser.add_argument("--out", default="cache")
    options = parser.parse_args()
    text = pathlib.Path(options.text).read_text("utf-8")[: 8 * options.tokens]
    rows = [row for path in options.models for row in measure(path, text, options)]
    lines = [
        f"{options.tokens} tokens in windows of {options.window}, {options.mode} mode.",
        "",
        "| model | cache | bytes per token | perplexity | KL, mean | max | same token |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['model']} | {r['cache']} | {r['bytes per token']:,.0f} | {r['perplexity']:.4f} | "
        f"{r['mean']:.2g} | {r['max']:.2g} | {100 * r['same']:.2f} % |"
        for r in rows
    ]
    report.save(options.out, lines, {"rows": rows})


if __name__ == "__main__":
    main()
