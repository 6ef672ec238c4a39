"""Measure each matmul kernel against the limits of this machine.

    python bench/kernels.py [--isa avx512vnni] [--types Q4_K,Q8_0] [--out kernels]

For every type, exact and fast mode, 1 and 2 threads: a matrix times one token (decode) in cycles
per 256 weights in cache and in GB/s from memory, and a matrix times 512 tokens (prompt) in
GOP/s. The limits (clock, memory, fused multiply-adds, dot products of bytes) are measured in the
same run by bench/limits.c. Writes OUT.json and OUT.md. On a busy machine the figures are noise.
"""

import argparse
import ctypes
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import report

from testkit import exact_arithmetic
from tinyllm import _core

ROWS, COLS = 5632, 2048


def together(threads, work):
    """Run work(i) on `threads` Python threads at once; return the seconds."""
    start = time.perf_counter()
    others = [threading.Thread(target=work, args=(i,)) for i in range(1, threads)]
    for other in others:
        other.start()
    work(0)
    for other in others:
        other.join()
    return time.perf_counter() - start


def best(threads, work, repeats):
    """Return the seconds of the shortest of several runs."""
    return min(together(threads, work) for _ in range(repeats))


def build_limits(directory):
    """Compile and load bench/limits.c."""
    path = pathlib.Path(directory) / "limits.so"
    source = pathlib.Path(__file__).with_name("limits.c")
    compiler = os.environ.get("CC", "cc")
    flags = ["-O2", "-march=native", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(source), "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    library.limit_read.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.limit_clock.argtypes = [ctypes.c_size_t]
    library.limit_peak.restype = ctypes.c_double
    library.limit_fma.argtypes = [ctypes.c_size_t, ctypes.c_float, ctypes.c_float]
    library.limit_bytes.argtypes = [ctypes.c_size_t]
    library.limit_bytes.restype = ctypes.c_size_t
    return library


def measure_limits(memory):
    """Measure the clock in GHz, and GB/s, GFLOP/s and GOP/s for 1 and 2 threads."""
    with tempfile.TemporaryDirectory() as directory:
        library = build_limits(directory)
        adds, rounds = 4_000_000, 2_000_000
        clock = best(1, lambda i: library.limit_clock(adds), 20)
        found = {"clock GHz": adds / clock / 1e9}
        pairs = library.limit_bytes(1)
        for threads in (1, 2):
            part = memory.nbytes // threads // 4096 * 4096

            def read(i, part=part):
                library.limit_read(memory.ctypes.data + i * part, part)

            fma = best(threads, lambda i: library.limit_fma(rounds, 0.5, 1.0), 5)
            dots = best(threads, lambda i: library.limit_bytes(rounds), 5)
            found[f"memory GB/s, {threads}T"] = part * threads / best(threads, read, 5) / 1e9
            found[f"fma GFLOP/s, {threads}T"] = rounds * threads * 12 * 8 * 2 / fma / 1e9
            found[f"bytes GOP/s, {threads}T"] = rounds * threads * pairs * 2 / dots / 1e9
    return found


def measure(name, isa, fast, weights, threads, repeats):
    """Measure the decode and prompt speed of one kernel."""
    random = np.random.default_rng(1)
    one = random.standard_normal((1, COLS), np.float32)
    many = random.standard_normal((512, COLS), np.float32)
    small = weights[:256]  # stays in the L2 cache
    options = {"isa": isa, "fast": fast}
    found = {}
    if threads == 1:
        _, seconds = _core._matmul(name, small, COLS, one, repeats=200, **options)
        found["decode seconds per 256"] = seconds / (len(small) * COLS / 256)
        pack, _ = _core._matmul(name, small, COLS, many, repeats=3, **options)
        found["pack seconds per 256"] = pack / (512 * COLS / 256)
    parts = np.array_split(np.arange(0, len(weights) + 1, 32), threads)
    parts = [(int(part[0]), int(part[-1])) for part in parts]
    seconds = [0.0] * threads

    def decode(i):
        first, last = parts[i]
        seconds[i] = _core._matmul(
            name, weights, COLS, one, row0=first, row1=last, repeats=repeats, **options
        )[1]

    together(threads, decode)
    size = sum(last - first for first, last in parts) * weights.shape[1]
    found["decode GB/s"] = size / max(seconds) / 1e9

    def prompt(i):
        part = weights[i * ROWS // threads : (i + 1) * ROWS // threads]
        pack, matmul = _core._matmul(name, part, COLS, many, repeats=repeats, **options)
        seconds[i] = pack / threads + matmul

    together(threads, prompt)
    found["prompt GOP/s"] = 2 * 512 * ROWS * COLS / max(seconds) / 1e9
    return found


def markdown(limits, rows):
    """Return the results as Markdown."""
    lines = [f"- {name}: {value:.1f}" for name, value in limits.items()]
    lines += [
        "",
        "| type | mode | threads | decode, cycles / 256 w | decode GB/s | of memory | prompt GOP/s"
        " | of its unit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        t = row["threads"]
        unit = "fma GFLOP/s" if row["type"] in exact_arithmetic.FLOATS else "bytes GOP/s"
        cycles = row.get("decode seconds per 256", 0) * limits["clock GHz"] * 1e9
        lines.append(
            f"| {row['type']} | {row['mode']} | {t} | {f'{cycles:.1f}' if cycles else ''}"
            f" | {row['decode GB/s']:.1f} | {row['decode GB/s'] / limits[f'memory GB/s, {t}T']:.0%}"
            f" | {row['prompt GOP/s']:.0f} | {row['prompt GOP/s'] / limits[f'{unit}, {t}T']:.0%} |"
        )
    return lines


def main():
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--isa", default=_core.kernel_sets()[-1], choices=_core.kernel_sets())
    parser.add_argument("--types", default=",".join(exact_arithmetic.TYPES))
    parser.add_argument("--megabytes", type=int, default=650, help="weights read per type")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="kernels")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    limits = measure_limits(np.ones(options.megabytes << 17, np.int64))
    rows = []
    for name in options.types.split(","):
        once = exact_arithmetic.random_rows(random, name, ROWS, COLS)
        copies = -(-(options.megabytes << 20) // once.nbytes)
        weights = np.concatenate([once] * copies)
        for fast in (False, True):
            if fast and name in exact_arithmetic.FLOATS:
                continue
            for threads in (1, 2):
                row = {"type": name, "mode": "fast" if fast else "exact", "threads": threads}
                row |= measure(name, options.isa, fast, weights, threads, options.repeats)
                rows.append(row)
                print(row, flush=True)
    data = {"isa": options.isa, "limits": limits, "kernels": rows}
    report.save(options.out, [f"Kernels: {options.isa}.", "", *markdown(limits, rows)], data)


if __name__ == "__main__":
    main()
