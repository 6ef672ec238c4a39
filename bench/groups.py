"""Measure what a matrix times a few tokens costs, relative to the same matrix times one token.

    python bench/groups.py [--types Q4_K,Q8_0,Q6_K] [--tokens 1,2,4,8,16] [--isa avx512vnni]
        [--threads 1,2] [--out groups]

A group of tokens is what drafts and batches run. It runs through many matrices, one after the
other, as in a model: together they are larger than the caches, so that one token is limited by the
memory. Every round measures all sizes of groups, packing included; a time is the shortest over
rounds. Seconds are those of the processor per thread, which count little of what else the machine
does, and beside them those of the clock. Writes OUT.json and OUT.md.
"""

import argparse
import pathlib
import sys
import threading
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import report

from testkit import exact_arithmetic
from tinyllm import _core

ROWS, COLS = 5632, 2048


def run(threads, work):
    """Run work(i) on `threads` threads at once; return (seconds of the processor, of the clock)."""
    cpu = [0.0] * threads

    def timed(i):
        start = time.thread_time()
        work(i)
        cpu[i] = time.thread_time() - start

    start = time.perf_counter()
    others = [threading.Thread(target=timed, args=(i,)) for i in range(1, threads)]
    for other in others:
        other.start()
    timed(0)
    for other in others:
        other.join()
    return max(cpu), time.perf_counter() - start


def measure(name, options, fast, weights, threads):
    """Return the shortest seconds of each size of group: {tokens: (processor, clock)}."""
    random = np.random.default_rng(1)
    groups = {n: random.standard_normal((n, COLS), np.float32) for n in options.tokens}
    cuts = [i * ROWS // threads // 32 * 32 for i in range(threads)] + [ROWS]
    best = {}
    for _ in range(options.rounds):
        for n, x in groups.items():

            def work(i, x=x):
                for matrix in weights:
                    part = matrix[cuts[i] : cuts[i + 1]]
                    _core._matmul(name, part, COLS, x, isa=options.isa, fast=fast, repeats=1)

            found = run(threads, work)
            best[n] = tuple(map(min, zip(found, best.get(n, found), strict=True)))
    return best


def numbers(text):
    """Read a list of integers."""
    return [int(each) for each in text.split(",")]


def main():
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--isa", default=_core.kernel_sets()[-1], choices=_core.kernel_sets())
    parser.add_argument("--types", default="Q4_K,Q8_0,Q6_K")
    parser.add_argument("--modes", default="exact,fast")
    parser.add_argument("--tokens", type=numbers, default=[1, 2, 4, 8, 16])
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--megabytes", type=int, default=400, help="weights of each type")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", default="groups")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    rows = []
    for name in options.types.split(","):
        once = exact_arithmetic.random_rows(random, name, ROWS, COLS)
        weights = np.stack([once] * -(-(options.megabytes << 20) // once.nbytes))
        for mode in options.modes.split(","):
            for threads in options.threads:
                best = measure(name, options, mode == "fast", weights, threads)
                one = best[options.tokens[0]]
                row = {
                    "type": name,
                    "mode": mode,
                    "threads": threads,
                    "GB/s": weights.nbytes / one[1] / 1e9,
                    "processor": {n: best[n][0] / one[0] for n in options.tokens},
                    "clock": {n: best[n][1] / one[1] for n in options.tokens},
                }
                rows.append(row)
                print(row, flush=True)
    columns = " | ".join(map(str, options.tokens[1:]))
    lines = [f"Kernels: {options.isa}. Seconds of the processor (of the clock) over those of one."]
    lines += ["", f"| type | mode | threads | one: GB/s | {columns} |"]
    lines += ["|---" * (4 + len(options.tokens) - 1) + "|"]
    for row in rows:
        ratios = [f"{row['processor'][n]:.2f} ({row['clock'][n]:.2f})" for n in options.tokens[1:]]
        lines.append(
            f"| {row['type']} | {row['mode']} | {row['threads']} | {row['GB/s']:.1f} | "
            + " | ".join(ratios)
            + " |"
        )
    report.save(options.out, lines, {"isa": options.isa, "groups": rows})


if __name__ == "__main__":
    main()
