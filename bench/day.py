"""Measure what a researcher waits for: the lens, ablations, the display, generation under edits.

    python bench/day.py smollm2.gguf [--threads 2] [--rounds 5] [--out day]

- lens: a trace of 100 tokens, and `tl.lens` of all its layers and tokens,
- ablations: every attention head of the model set to zero, one run each, over 50 tokens,
- display: kilobytes that a notebook stores when it shows that trace,
- edits: tokens per second with an edit in every layer / without, in turns within each round.

Times are medians over rounds. Writes OUT.json and OUT.md.
"""

import argparse
import statistics
import time

import report

import tinyllm as tl

TEXT = "The lighthouse stood on a rock far from the harbor, and nobody had seen its keeper. " * 20


def seconds(work):
    """Return the seconds that a function takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main():
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="day")
    options = parser.parse_args()
    model = tl.load(options.model, threads=options.threads)
    ids = model.tokenizer.encode(TEXT)
    trace = model.trace(ids[:100])
    edits = [tl.scale(f"blk.{i}.resid_post", 1.01) for i in range(model.config.layers)]

    def metric(logits):
        return logits[-1, 5] - logits[-1, 6]

    def generate(edits):
        found = model.generate(ids[:20], max_tokens=100, temperature=0, stop=(), edits=edits)
        return (len(found.ids) - 1) / found.timings.seconds

    rounds = {"lens": [], "ablations": [], "edits": []}
    for _ in range(options.rounds):
        rounds["lens"].append(seconds(lambda: tl.lens(model.trace(ids[:100]))))
        rounds["ablations"].append(
            seconds(
                lambda: tl.ablation_sweep(model, ids[:50], "blk.*.attn_mix", metric, progress=False)
            )
        )
        plain = generate(())
        rounds["edits"].append(generate(edits) / plain)
    middle = {name: statistics.median(values) for name, values in rounds.items()}
    display = len(trace._repr_html_()) / 1000
    runs = model.config.layers * model.config.heads
    lines = [
        "| what | median |",
        "|---|---|",
        f"| lens of 100 tokens, with its trace | {middle['lens']:.2f} s |",
        f"| {runs} ablations of 50 tokens | {middle['ablations']:.2f} s |",
        f"| display of the trace | {display:.0f} kB |",
        f"| generation with an edit in every layer / without | {middle['edits']:.2f} |",
    ]
    report.save(options.out, lines, {"rounds": rounds, "display_kb": display})


if __name__ == "__main__":
    main()
