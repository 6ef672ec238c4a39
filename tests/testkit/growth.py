"""How time grows with the size of an input, without a limit in seconds."""

import time

#: For an input of four times the size: 4 is linear, 16 quadratic.
LINEAR = 8


def growth(run, small, large, repeats=3):
    """Return how many times as long `run(large)` takes as `run(small)`, in CPU time.

    Half a millisecond is added to both, because the clock is coarse.
    """

    def best(value):
        times = []
        for _ in range(repeats):
            start = time.process_time()
            run(value)
            times.append(time.process_time() - start)
        return min(times) + 0.0005

    return best(large) / best(small)
