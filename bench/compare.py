"""Compare the speed of two builds of tinyllm on the same files: what a change costs or gains.

    python bench/compare.py OLD NEW model.gguf [more.gguf] [--threads 1,2] [--rounds 7]

OLD and NEW are source trees whose core was built in place (`python setup.py build_ext
--inplace`). Each build and mode runs in a process of its own; they take turns within a round. A
ratio is the median over rounds of the old build's seconds / the new one's: above 1 is faster than
before. The noise is the same ratio of the old build against a second process of the old build.
"""

import argparse
import pathlib
import statistics

from peers import FIGURES, Worker, median_ratio

KINDS = ("old", "again", "new")


def measure(options, path, threads, mode):
    """Measure each kind of process: return figure -> kind -> list over rounds, and load times."""
    sources = dict(zip(KINDS, (options.old, options.old, options.new), strict=True))
    loads = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind, source in sources.items():
            one = Worker(mode, path, threads, source)
            loads[kind].append(one.loaded["load"])
            one.close()
    workers = {kind: Worker(mode, path, threads, source) for kind, source in sources.items()}
    seconds = {figure: {kind: [] for kind in KINDS} for figure in options.figures.split(",")}
    for one in workers.values():
        one.ask("pp", 128)  # warm up
    for number in range(options.rounds):
        order = KINDS[number % 3 :] + KINDS[: number % 3]
        for figure, found in seconds.items():
            for kind in order:
                found[kind].append(workers[kind].ask(*FIGURES[figure])["seconds"])
    for one in workers.values():
        one.close()
    return {"load": loads, **seconds}


def main():
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=pathlib.Path)
    parser.add_argument("new", type=pathlib.Path)
    parser.add_argument("models", nargs="+", help="GGUF files")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--modes", default="exact,fast")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--figures", default="tg64,pp512")
    options = parser.parse_args()
    print("| file | threads | mode | figure | old, s | new / old speed | noise |")
    print("|---|---|---|---|---|---|---|")
    for path in options.models:
        for threads in map(int, options.threads.split(",")):
            for mode in options.modes.split(","):
                for figure, by in measure(options, path, threads, mode).items():
                    new, again = (median_ratio(by[kind], by["old"]) for kind in ("new", "again"))
                    print(
                        f"| {pathlib.Path(path).stem} | {threads} | {mode} | {figure} "
                        f"| {statistics.median(by['old']):.3f} | {new:.3f} | {again:.3f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
