"""Compare the matmuls of the types with a grid, and of other rare ones, with llama.cpp's.

    python bench/rare_types.py [--isa avx512vnni] [--types IQ2_XXS,IQ3_S] [--out rare_types]

One thread, weights in cache. For one token (decode) and for 512 tokens (prompt): nanoseconds of CPU
time per 256 products, the shortest of several runs. llama.cpp has one function for both, the dot
product of a row and a token with 8-bit activations (`ggml_vec_dot_iq2_xxs_q8_K` and so on), which
is called with one long row. It is the one in `llama-cpp-python`. Writes OUT.json and OUT.md.
"""

import argparse
import ctypes
import pathlib
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import report

from testkit import exact_arithmetic
from tinyllm import _core

ROWS, COLS, TOKENS, LONG = 128, 4096, 512, 131072
TYPES = "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S TQ1_0 TQ2_0".split()


def best(work, repeats):
    """Return the seconds of CPU time of the shortest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return min(times)


def peer():
    """Return a function that measures llama.cpp's dot product of a type; None without it."""
    try:
        import llama_cpp
    except ImportError:
        return None
    folder = pathlib.Path(llama_cpp.__file__).parent / "lib"
    ctypes.CDLL(str(next(folder.glob("*ggml-base.*"))), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(next(folder.glob("*ggml-cpu.*"))))
    library.ggml_cpu_init()

    def measure(kind, weights):
        dot = getattr(library, f"ggml_vec_dot_{kind.lower()}_q8_K")
        dot.restype = None
        size = ctypes.c_size_t
        pointer = ctypes.c_void_p
        dot.argtypes = [ctypes.c_int, pointer, size, pointer, size, pointer, size, ctypes.c_int]
        x = np.random.default_rng(1).integers(0, 7, (LONG // 256, 292), np.uint8)
        x[:, :4] = np.float32(1).reshape(1, 1).view(np.uint8)
        out = np.zeros(1, np.float32)
        args = LONG, out.ctypes.data, 0, weights.ctypes.data, 0, x.ctypes.data, 0, 1
        return best(lambda: [dot(*args) for _ in range(20)], 20) / (20 * LONG / 256) * 1e9

    return measure


def main():
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", default=_core.kernel_set())
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--out", default="rare_types")
    options = parser.parse_args()
    llama = peer()
    rng = np.random.default_rng(0)
    results = []
    for kind in options.types.split(","):
        rows = exact_arithmetic.random_rows(rng, kind, ROWS, COLS)
        long_row = exact_arithmetic.random_rows(rng, kind, 1, LONG)
        x = rng.standard_normal((TOKENS, COLS)).astype(np.float32)
        line = {"type": kind}
        if llama is not None:
            line["llama.cpp"] = round(llama(kind, long_row), 1)
        for name, tokens in (("decode", 1), ("prompt", TOKENS)):
            for fast in (False, True):
                seconds = best(
                    lambda part=x[:tokens], fast=fast, rows=rows, kind=kind: _core._matmul(
                        kind, rows, COLS, part, options.isa, fast=fast
                    ),
                    40 if tokens == 1 else 4,
                )
                products = ROWS * COLS * tokens / 256
                line[f"{name} {'fast' if fast else 'exact'}"] = round(seconds / products * 1e9, 2)
        results.append(line)
        print(line, flush=True)
    head = list(results[0])
    lines = [f"Nanoseconds per 256 products: {options.isa}.", "", "| " + " | ".join(head) + " |"]
    lines.append("|" + "---|" * len(head))
    lines += ["| " + " | ".join(map(str, line.values())) + " |" for line in results]
    report.save(options.out, lines, {"isa": options.isa, "ns": results})


if __name__ == "__main__":
    main()
