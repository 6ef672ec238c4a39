"""Measure the product of training against the fused multiply-adds that the CPU can do.

    python bench/gemm.py [--isa avx512vnni]

For the products of a training step of two shapes, with and without transposed operands: GFLOP/s of
one thread, and the part of the peak, which bench/limits.c measures just before each of them.
"""

import argparse
import tempfile

import numpy as np
from kernels import build_limits

from tinyllm import _core

#: Rows, columns and depth: m, n, k.
SHAPES = [
    (2560, 80, 216, "NN", "dx of a step of width 80"),
    (2560, 216, 80, "NN", "dx of a step of width 80"),
    (80, 216, 2560, "TN", "dw of a step of width 80"),
    (216, 80, 2560, "TN", "dw of a step of width 80"),
    (768, 512, 128, "NN", "dx of a step of width 128"),
    (512, 128, 768, "TN", "dw of a step of width 128"),
    (512, 512, 512, "NN", "a square"),
    (512, 512, 512, "TN", "a square"),
    (512, 512, 512, "NT", "a square"),
    (80, 80, 20, "NT", "the gradient of probs"),
    (80, 20, 80, "TN", "the gradient of keys"),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--isa", default=_core.kernel_set())
    parser.add_argument("--repeats", type=int, default=200)
    args = parser.parse_args()
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        limits = build_limits(folder)
        for m, n, k, transpose, what in SHAPES:
            a, b = (random.normal(size=size).astype(np.float32) for size in (m * k, k * n))
            out = np.empty(m * n, np.float32)
            peak = max(limits.limit_peak() for _ in range(20))
            # of the results of several short rounds the best: others use the machine too
            seconds = _core._product(
                (m, n, k), a, b, out, transpose, isa=args.isa, repeats=args.repeats
            )
            peak = max(peak, *(limits.limit_peak() for _ in range(20)))
            rate = 2 * m * n * k / seconds * 1e-9
            print(
                f"{m:>5} x {n:>4} x {k:>4} {transpose}  {rate:6.1f} GFLOP/s, {rate / peak:4.0%} of "
                f"{peak:6.1f}  {what}",
                flush=True,
            )


if __name__ == "__main__":
    main()
