"""Measure calls of a few tokens over long contexts, with query heads that share keys and values.

    python bench/long_context.py [--contexts 8192,32768,131072] [--rows 1,8] [--heads 8]
        [--kv-heads 1] [--layers 2] [--threads 1,2] [--mode exact] [--cache f32,f16,q8]
        [--out long_context]

The model has random weights and width 64 per head. The cache is filled with random keys and values,
because running 131,072 tokens first would take too long. Times are the shortest over rounds, in
milliseconds per call and layer, of the processor per thread and of the clock. "GB/s" is the cache
that one call reads over the seconds of the clock. Calls with the types of the cache take turns, so
that other work on the machine meets all of them. Writes OUT.json and OUT.md.
"""

import argparse
import functools
import pathlib
import tempfile
import time

import numpy as np
import report

import tinyllm as tl
from tinyllm.testing.recipes import Recipe, float_bytes, random_weights

HEAD = 64


def numbers(text):
    """Read a list of integers."""
    return [int(each) for each in text.split(",")]


def write(path, options):
    """Write the model."""
    recipe = Recipe(
        type="F16",
        vocab=512,
        context=max(options.contexts) + max(options.rows),
        layers=options.layers,
        width=HEAD * options.heads,
        heads=options.heads,
        kv_heads=options.kv_heads,
        ffn=2 * HEAD * options.heads,
    )
    metadata, tensors = random_weights("llama", recipe, float_bytes)
    tl.write_gguf(path, metadata | {"tokenizer.ggml.model": "none"}, tensors)


def filled(model, n, options):
    """Return a session with n random keys and values in each layer."""
    random = np.random.default_rng(0)
    session = model.session()
    shape = (n, options.kv_heads, HEAD)
    keys, values = (random.standard_normal(shape, np.float32) for _ in range(2))
    session.core.fill(np.ones(n, np.int32), [(keys, values)] * options.layers)
    return session


def measure(sessions, n, rows, rounds):
    """Return the shortest seconds of a call in each session: (processor, clock)."""
    ids, best = [np.ones(rows, np.int32)], [(np.inf, np.inf)] * len(sessions)
    for _ in range(rounds):
        for i, session in enumerate(sessions):
            session.core.rewind(n)
            cpu, clock = time.process_time(), time.perf_counter()
            session.model.run([session.core], ids, [])
            found = time.process_time() - cpu, time.perf_counter() - clock
            best[i] = tuple(map(min, best[i], found))
            session.core.rewind(n)
    return best


def main():
    """Measure and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contexts", type=numbers, default=[8192, 32768, 131072])
    parser.add_argument("--rows", type=numbers, default=[1, 8])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--mode", default="exact")
    parser.add_argument("--cache", type=lambda text: text.split(","), default=["f32"])
    parser.add_argument("--out", default="long_context")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        write(path, options)
        for threads in options.threads:
            load = functools.partial(tl.load, path, threads=threads, mode=options.mode)
            for n in options.contexts:
                sessions = [filled(load(cache=each), n, options) for each in options.cache]
                for count in options.rows:
                    times = measure(sessions, n, count, options.rounds)
                    for session, (cpu, clock) in zip(sessions, times, strict=True):
                        row = {
                            "threads": threads,
                            "cache": session.model.cache,
                            "context": n,
                            "rows": count,
                            "processor": 1e3 * cpu / threads / options.layers,
                            "clock": 1e3 * clock / options.layers,
                            "GB/s": session.core.nbytes / clock / 1e9,
                        }
                        rows.append(row)
                        print(row, flush=True)
                del sessions
    lines = [
        f"{options.heads} heads over {options.kv_heads}, {options.mode} mode, ms per layer.",
        "",
        "| threads | cache | context | tokens of the call | processor | clock | GB/s |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['threads']} | {r['cache']} | {r['context']} | {r['rows']} | {r['processor']:.2f} | "
        f"{r['clock']:.2f} | {r['GB/s']:.1f} |"
        for r in rows
    ]
    report.save(options.out, lines, {"rows": rows})


if __name__ == "__main__":
    main()
