"""Threads, forks of one session and forks of the process at once; a program of test_threads.py.

python crowd.py file rounds: exits with 0 if every result had the right bits. It is small,
because ThreadSanitizer runs it too.
"""

import os
import signal
import sys
import threading
import time

import numpy as np

import tinyllm as tl

TOKENS = 290  # the kv cache has blocks of 256
WORKERS = 5


def run_together(works):
    """Run functions in threads that start at the same moment; raise what one of them raised."""
    start = threading.Barrier(len(works))
    errors = []

    def run(work):
        try:
            start.wait()
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def expect(actual, expected, what):
    if not np.array_equal(actual, expected):
        raise AssertionError(f"other bits: {what}")


def first_use(path, ids):
    """The first call sets up the kernel tables and the pool: all threads make it at once."""
    results = [None] * WORKERS

    def work(i):
        results[i] = tl.load(path, threads=1 + i).logits(ids[:9])

    run_together([lambda i=i: work(i) for i in range(WORKERS)])
    for result in results:
        expect(result, results[0], "the first call")


def crowd(path, ids, rounds):
    """Sessions that share blocks, one session for all threads, and forks of the process."""
    models = [tl.load(path, threads=threads) for threads in (2, 4, 1)]
    want = models[0].logits(ids)
    shared = models[0].session()
    shared.eval(ids[:270], "none")
    met = []

    def fork_shared(model):
        try:
            mine = shared.fork()
        except RuntimeError as error:  # another thread uses it
            if "in use" not in str(error):
                raise
            return
        at = len(mine.tokens)
        expect(mine.eval(ids[at : at + 8], "all"), want[at : at + 8], "a fork")
        mine.rewind(20)
        expect(mine.eval(ids[at - 12 : at], "all"), want[at - 12 : at], "a fork, rewound")
        met.append(at)

    def move_shared(model):
        try:
            shared.rewind(3)
            shared.eval(ids[len(shared.tokens) :][:3], "none")
        except RuntimeError as error:
            if "in use" not in str(error):
                raise

    def alone(model):
        session = model.session()
        parts = [session.eval(ids[i : i + 13], "all") for i in range(0, 39, 13)]
        expect(np.concatenate(parts), want[:39], "a session of its own")

    def captured(model):
        expect(model.trace(ids[:20], "*")["output"], want[:20], "a trace")

    def worker(i):
        for j in range(rounds):
            model = models[(i + j) % len(models)]
            (fork_shared, alone, captured, fork_shared)[(i + j) % 4](model)
            if i == 0:
                move_shared(model)

    def children():
        for _ in range(2):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    code = 0 if np.array_equal(models[1].logits(ids[:20]), want[:20]) else 2
                finally:
                    os._exit(code)
            deadline = time.monotonic() + 120
            while (status := os.waitpid(child, os.WNOHANG)) == (0, 0):
                if time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    raise AssertionError("a child hangs")
                time.sleep(0.01)
            expect(status, (child, 0), "a child of the process")

    works = [lambda i=i: worker(i) for i in range(WORKERS)]
    run_together([*works, children] if hasattr(os, "fork") else works)
    if not met:
        raise AssertionError("nobody got hold of the shared session")


def main():
    path, rounds = sys.argv[1], int(sys.argv[2])
    ids = np.random.default_rng(0).integers(0, 320, TOKENS)
    first_use(path, ids)
    crowd(path, ids, rounds)


if __name__ == "__main__":
    main()
