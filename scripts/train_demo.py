"""Train the demo model of tinyllm and write it as GGUF.

A small llama with a byte-level BPE of its own, trained on one plain text, tinyshakespeare:
https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt ::

    python scripts/train_demo.py input.txt --run run --output tinyllm/data/demo.gguf

The folder of the run keeps the checkpoint, so the same command continues a run that was stopped.
docs/demo-model.md tells how the shipped file was made.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

import tinyllm as tl

SHAPE = {"layers": 4, "width": 256, "heads": 4, "kv_heads": 2, "ffn_width": 768, "context": 512}
VOCAB = 1024

#: Arguments of `tl.train` that are options of this script, too.
RECIPE = {
    "optimizer": "adamw",
    "steps": 2400,
    "warmup": 100,
    "batch": 8,
    "lr": 0.0015,
    "weight_decay": 1.0,
    "dropout": 0.25,
    "seed": 1,
}


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def split(text: str) -> tuple[str, str]:
    """Cut the text at the last speech that begins within 90 %: to learn from, and held out."""
    cut = text.rindex("\n\n", 0, len(text) * 9 // 10) + 2
    return text[:cut], text[cut:]


def write_tokenizer(text: str, path: Path) -> tl.Tokenizer:
    """Make the tokenizer from the text to learn from, and write it as GGUF.

    The ids have GPT-2's order: the bytes by their characters, the merges, the end of a text. This
    last token is BOS too, so every window of the training begins with it.
    """
    tl.train_tokenizer(text, f"bpe:{VOCAB}", out=path)
    keys = dict(tl.GGUF(path, mmap=False).metadata.typed())
    kind, (end, *rest) = keys["tokenizer.ggml.tokens"]
    keys["tokenizer.ggml.tokens"] = kind, [*sorted(rest[:256]), *rest[256:], end]
    kind, (control, *types) = keys["tokenizer.ggml.token_type"]
    keys["tokenizer.ggml.token_type"] = kind, [*types, control]
    for name in ("bos_token_id", "eos_token_id"):
        keys[f"tokenizer.ggml.{name}"] = "UINT32", VOCAB - 1
    keys["tokenizer.ggml.add_bos_token"] = "BOOL", True
    tl.write_gguf(path, keys, {})
    return tl.load_tokenizer(path)


def windows(model: tl.Model, text: str) -> list[list[int]]:
    """Cut a text into windows of as many tokens as the context has. BOS begins each of them."""
    context, bos = model.config.context_length, model.tokenizer.bos
    ids = model.tokenizer.encode(text, add_special=False)
    return [[bos, *ids[i : i + context]] for i in range(0, len(ids), context)]


def measure(model: tl.Model, text: str) -> tuple[float, float]:
    """Return the loss of a text in nats per token and in bits per byte.

    Each window is read without the text before it.
    """
    parts = windows(model, text)
    nats = -sum(model.score(window).total for window in parts)
    return nats / sum(len(window) - 1 for window in parts), nats / math.log(2) / len(text.encode())


def calibrate(model: tl.Model, text: str) -> tuple[float, float, float]:
    """Choose a constant for the logits, which makes a model less sure (or more).

    Guo et al. 2017, "On Calibration of Modern Neural Networks": a model that has read a text many
    times is too sure of the next token of another. Every second window of the text chooses the
    constant. The others only tell what it is worth.

    Returns
    -------
    constant, before, after : float
        The constant, and the loss of the others without it and with it, in nats per token.
    """
    constants = np.arange(50, 151) / 100
    parts = windows(model, text)
    nats = np.empty((len(parts), len(constants)))
    for window, row in zip(parts, nats, strict=True):
        logits = model.logits(window[:-1]).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        right = logits[np.arange(len(logits)), window[1:]].sum()
        row[:] = [np.log(np.exp(c * logits).sum(axis=1)).sum() - c * right for c in constants]
    best = nats[::2].sum(axis=0).argmin()
    others = nats[1::2].sum(axis=0) / sum(len(window) - 1 for window in parts[1::2])
    return float(constants[best]), float(others[constants == 1][0]), float(others[best])


def report(run: tl.Run) -> None:
    step, loss = run.log.validation[-1]
    print(
        f"step {step}, {run.log.times[-1] / 60:.1f} min: {run.log.loss[-50:].mean():.4f} in the "
        f"last 50 steps, with dropout; held out {loss:.4f} nats per token",
        flush=True,
    )


def train(text: str, options: argparse.Namespace) -> tl.Run:
    """Train the model, or go on with it, and keep it and its best weights in the folder."""
    options.run.mkdir(parents=True, exist_ok=True)
    path = options.run / "model.gguf"
    learnt, held_out = split(text)
    tokenizer = write_tokenizer(learnt, options.run / "tokenizer.gguf")
    ids, held_out_ids = (tokenizer.encode(part, add_special=False) for part in (learnt, held_out))
    ids += held_out_ids
    told: dict[str, Any] = {"resume": path, "steps": options.steps}
    if not path.with_name("model.gguf.training").exists():
        told = {
            **SHAPE,
            "tied": True,
            "tokenizer": tokenizer,
            "micro_batch": 1,  # one window fits into the caches
            **{name: getattr(options, name) for name in RECIPE},
            "validation": (len(held_out_ids) + 0.5) / len(ids),
            "out": path,
        }
    return tl.train(
        ids, **told, evaluate=report, evaluate_every=100, threads=options.threads, progress=False
    )


def export(text: str, run: tl.Run, output: Path, name: str) -> None:
    """Write the best weights of a run in Q8_0, with what they are and how good they are.

    The gain of the last norm is multiplied by the constant of `calibrate`, and so are the logits.
    """
    tl.quantize(f"{run.path}.best", output, "Q8_0", progress=False)
    held_out = split(text)[1]
    model = tl.load(output)
    raw = measure(model, held_out)[0]
    constant, before, after = calibrate(model, held_out)
    gain = model.weights["output_norm.weight"].numpy() * np.float32(constant)
    tl.write_gguf(output, model.metadata.typed(), {**model.weights, "output_norm.weight": gain})
    nats, bits = measure(tl.load(output), held_out)
    best = min(run.log.validation, key=lambda pair: pair[1])[0]
    told = " ".join(f"{option(each)} {getattr(run.settings, each)}" for each in RECIPE)
    keys = {
        "general.type": "model",
        "general.name": "tinyllm demo",
        "general.basename": "tinyllm-demo",
        "general.size_label": "3.4M",
        "general.description": (
            f"A small llama that writes in the manner of Shakespeare's plays, for demonstrations. "
            f"Trained by tinyllm on the first 90 % of tinyshakespeare ({best} steps of "
            f"{run.settings.batch} x {run.settings.context} tokens); loss on the held-out last "
            f"10 %, of these Q8_0 weights, windows of {run.settings.context} tokens: "
            f"{nats:.4f} nats per token, {bits:.4f} bits per byte. The checkpoint was chosen by "
            f"the loss on the held-out text. The gain of the last norm was multiplied by "
            f"{constant:.2f}, which every second window of the held-out text chose; without this "
            f"the loss is {raw:.4f} nats per token. On the windows that did not choose it, the "
            f"loss is {after:.4f} with it and {before:.4f} without."
        ),
        "general.author": "The tinyllm authors",
        "general.license": "mit",
        "general.license.name": "MIT for the weights; the text is in the public domain",
        "general.languages": ["en"],
        "general.dataset.count": 1,
        "general.dataset.0.name": "tinyshakespeare",
        "general.dataset.0.repo_url": "https://github.com/karpathy/char-rnn",
        "training.command": f"scripts/train_demo.py {name} {told}",
    }
    tl.edit(output, output, set=keys)
    print(keys["general.description"])
    print(tl.load(output).generate("ROMEO:\n", 150, seed=1).text)
    print(f"{output}: {output.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("text", type=Path, help="the text, ASCII")
    parser.add_argument("--run", type=Path, default=Path("run"), help="folder of the checkpoint")
    parser.add_argument("--output", type=Path, default=Path("tinyllm/data/demo.gguf"))
    for name, value in RECIPE.items():
        parser.add_argument(option(name), type=type(value), default=value, help=f"default: {value}")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    text = options.text.read_text(encoding="ascii")
    export(text, train(text, options), options.output, options.text.name)


if __name__ == "__main__":
    main()
