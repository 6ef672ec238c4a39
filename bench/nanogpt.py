"""Train nanoGPT's recipe for a CPU, and print the loss of the part of the text that is held out.

    python bench/nanogpt.py shakespeare.txt
    python bench/train_step.py --shape nanogpt --kind gpt2

The recipe is that of its README (github.com/karpathy/nanoGPT): tinyshakespeare by characters, 4
layers of width 128 with 4 heads, windows of 64, batches of 12, 2000 steps, no dropout; AdamW with
a rate of 0.001. Its own loss is 1.88. The second line of results is the default of `tl.train`,
Muon and RoPE, in half the steps. The last tenth of the text is held out, and all of it is measured.
The second command compares the time of a step with PyTorch's.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import tinyllm as tl
from tinyllm.training.network import Network

RECIPE = {
    "positions": "learned",
    "optimizer": "adamw",
    "lr": 1e-3,
    "warmup": 100,
    "weight_decay": 0.1,
    "tied": True,
    "steps": 2000,
}
OWN = {"steps": 1000}


def held_out_loss(run, text, threads):
    """Return the mean loss of all whole windows of the last tenth."""
    network = Network(run.image, threads)
    ids = np.array(run.model.tokenizer.encode(text[len(text) - len(text) // 10 :]), np.int32)
    context = run.settings.context
    count = (len(ids) - 1) // context
    inputs = ids[: count * context].reshape(count, context)
    targets = ids[1 : count * context + 1].reshape(count, context)
    sums = [network.losses(inputs[i : i + 8], targets[i : i + 8]).sum() for i in range(0, count, 8)]
    return sum(sums) / (count * context)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", type=Path, help="the file of tinyshakespeare")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    text = args.text.read_text("utf-8")
    for name, settings in (("nanoGPT's recipe", RECIPE), ("the default", OWN)):
        began, used = time.perf_counter(), time.process_time()
        run = tl.train(
            text,
            layers=4,
            width=128,
            heads=4,
            context=64,
            batch=12,
            validation=0.1,
            seed=args.seed,
            threads=args.threads,
            progress=False,
            **settings,
        )
        seconds, cpu = time.perf_counter() - began, time.process_time() - used
        print(
            f"{name}: loss {held_out_loss(run, text, args.threads):.4f} of the held out part after "
            f"{run.step} steps; {seconds:.0f} s ({cpu:.0f} s of CPU), seed {args.seed}",
            flush=True,
        )


if __name__ == "__main__":
    main()
