"""Compare a model on a device with the same model on the CPU: bits, then tokens per second.

    python bench/gpu.py [model.gguf] [--device gpu] [--mode exact] [--prompt 256] ...

First every tap of a short prompt is compared, and any difference ends the program. Then the two
sides take turns; the figures are medians over the rounds. On PoCL, which runs on the CPU, the
speed says nothing about a GPU.
"""

import argparse
import statistics
import sys
import time

import numpy as np

import tinyllm as tl


def differing(cpu, gpu, ids):
    """Return how many values were compared, and how many have other bits."""
    want, got = cpu.trace(ids, "*"), gpu.trace(ids, "*")
    compared = differ = 0
    for name in want:
        a, b = (np.ascontiguousarray(t[name], np.float32).view(np.uint32) for t in (want, got))
        compared += a.size
        differ += int((a != b).sum())
    return compared, differ


def speeds(model, ids, decode):
    """Return tokens per second of a prompt, and of single tokens after it."""
    session = model.session()
    start = time.perf_counter()
    session.eval(ids)
    middle = time.perf_counter()
    for token in ids[:decode]:
        session.eval([token])
    end = time.perf_counter()
    return len(ids) / (middle - start), decode / (end - middle)


def main():
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--device", default="gpu", help="as device= of tl.load")
    parser.add_argument("--mode", default="exact", choices=("exact", "fast"))
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--decode", type=int, default=32, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    cpu = tl.load(args.model, mode=args.mode, device="cpu")
    start = time.perf_counter()
    gpu = tl.load(args.model, mode=args.mode, device=args.device)
    seconds, size = time.perf_counter() - start, gpu.core.device_bytes / 2**20
    print(f"{gpu.device.name}, level {gpu.device.level}: loaded in {seconds:.1f} s")
    print(f"{sum(gpu.core.on_device)} of {len(gpu.steps)} steps, {size:.1f} MiB of weights there")

    ids = np.random.default_rng(0).integers(0, cpu.config.vocab_size, args.prompt)
    compared, differ = differing(cpu, gpu, ids[:40])
    print(f"{compared:,} values compared, {differ:,} differ")
    if differ:
        return 1
    found = {cpu: [], gpu: []}
    for _ in range(args.rounds + 1):  # the first round compiles, and is left out
        for model, rounds in found.items():
            rounds.append(speeds(model, ids, args.decode))
    for name, model in (("cpu", cpu), ("device", gpu)):
        prompt, decode = (statistics.median(x) for x in zip(*found[model][1:], strict=True))
        print(f"{name:6}  prompt {prompt:9.1f} tokens/s  decode {decode:8.1f} tokens/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
