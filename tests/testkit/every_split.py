"""Run models in every way that must not change a bit; a program of test_bits.py.

python every_split.py mode cache tokens file...: prints a digest of the taps of each file. First it
checks that the bits are the same with every number of threads, every split of the prompt, with and
without capture, and in a ragged batch. TINYLLM_ISA says which kernels run. The scalar ones are
slow, so they run each number of threads with one split only.
"""

import hashlib
import os
import sys

import numpy as np

import tinyllm as tl

THREADS = (1, 2, 3, 5, 8)
CHUNKS = (1, 3, 7, 64, 511)


def expect(same, what):
    if not same:
        sys.exit(f"other bits: {what}")


def split(model, ids, chunk):
    session = model.session()
    return np.concatenate(
        [session.eval(ids[i : i + chunk], "all") for i in range(0, len(ids), chunk)]
    )


def check(path, mode, tokens, cache="f32"):
    want = taps = None
    slow = os.environ.get("TINYLLM_ISA") == "scalar"
    for threads, one_chunk in zip(THREADS, CHUNKS, strict=True):
        model = tl.load(path, mode=mode, cache=cache, threads=threads)
        ids = np.random.default_rng(0).integers(0, model.config.vocab_size, tokens)
        name = f"{path}, {threads} threads"
        logits = model.logits(ids)
        want = logits if want is None else want
        expect(np.array_equal(logits, want), name)
        for chunk in [one_chunk] if slow else CHUNKS:
            expect(np.array_equal(split(model, ids, chunk), want), f"{name}, by {chunk}")
        trace = model.trace(ids, "*")
        taps = trace if taps is None else taps
        expect(np.array_equal(trace["output"], want), f"{name}, captured")
        cuts = [ids[: tokens // 3], ids[:1], ids[5:64]]
        ragged = model.trace([list(map(int, cut)) for cut in cuts], "*")
        alone = model.trace(cuts[2], "*")
        for tap in trace:
            expect(np.array_equal(trace[tap], taps[tap]), f"{name}, {tap}")
            expect(np.array_equal(ragged[2][tap], alone[tap]), f"{name}, {tap} in a batch")
        for cut, one in zip(cuts[:2], ragged, strict=False):
            expect(np.array_equal(one["output"], want[: len(cut)]), f"{name}, ragged")
    digest = hashlib.sha256()
    for tap in taps:
        digest.update(np.ascontiguousarray(taps[tap]).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    for path in sys.argv[4:]:
        print(check(path, sys.argv[1], int(sys.argv[3]), sys.argv[2]), flush=True)
