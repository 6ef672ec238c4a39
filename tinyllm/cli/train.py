"""Train a small model from scratch on a text."""

from __future__ import annotations

import argparse
import sys

from ..training.estimate import estimate
from ..training.run import Run
from ..training.trainer import train
from .output import complain, show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm train shakespeare.txt model.gguf --size small --steps 1000"

#: layers, width, heads, context, batch
SIZES = {
    "tiny": (4, 64, 4, 64, 32),
    "small": (6, 128, 8, 128, 32),
    "medium": (8, 256, 8, 256, 32),
}

#: The shape of a run, which the presets give and options change.
_SHAPE = ("layers", "width", "heads", "context", "batch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("data", help="a text file in UTF-8, or a folder of them")
    parser.add_argument("out", help="the GGUF file to write")
    parser.add_argument("--size", choices=list(SIZES), default="tiny", help="default: tiny")
    for name in _SHAPE:
        parser.add_argument(f"--{name}", type=int, help=f"{name} of this many instead")
    parser.add_argument("--kv-heads", type=int, help="heads of keys and values (default: heads)")
    parser.add_argument("--ffn-width", type=int, help="width of the feed-forward networks")
    parser.add_argument("--steps", type=int, help="default: 1000")
    parser.add_argument("--micro-batch", type=int, help="sequences that run together")
    parser.add_argument("--tokenizer", default="char", help="char, byte or bpe:1000")
    parser.add_argument("--positions", default="rope", choices=["rope", "learned", "none"])
    parser.add_argument("--optimizer", default="muon", choices=["muon", "adamw"])
    parser.add_argument("--lr", type=float, help="learning rate of the matrices")
    parser.add_argument("--tied", action="store_true", help="one matrix for embedding and output")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation", type=float, default=0.05, help="part that is held out")
    parser.add_argument("--resume", action="store_true", help="continue the run of OUT")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--sample", metavar="TEXT", help="show how the model continues this text")


def run(args: argparse.Namespace) -> None:
    """Run the command."""

    def report(result: Run) -> None:
        loss = f"loss {result.log.losses[-1]:.4f}"
        if result.log.validation:
            loss += f", held out {result.log.validation[-1][1]:.4f}"
        seconds = max(result.log.times[-1], 1e-9)
        settings = result.settings
        rate = result.step * settings.batch * settings.context / seconds
        left = seconds / result.step * (settings.steps - result.step)
        complain(
            f"step {result.step} of {settings.steps}: {loss}; {rate:,.0f} tokens/s, "
            f"{left:.0f} s left"
        )
        if args.sample:
            found = result.model.generate(args.sample, max_tokens=64, seed=0)
            complain(f"  {args.sample + found.text!r}")

    if args.resume:
        result = train(
            args.data,
            resume=args.out,
            steps=args.steps,
            evaluate=report,
            threads=args.threads,
            progress=sys.stderr.isatty(),
        )
    else:
        shape = dict(zip(_SHAPE, SIZES[args.size], strict=True))
        shape |= {name: value for name in _SHAPE if (value := getattr(args, name)) is not None}
        chosen = {
            **shape,
            "kv_heads": args.kv_heads,
            "ffn_width": args.ffn_width,
            "steps": args.steps or 1000,
            "micro_batch": args.micro_batch,
            "positions": args.positions,
            "optimizer": args.optimizer,
            "lr": args.lr,
            "tied": args.tied,
            "seed": args.seed,
            "validation": args.validation,
        }
        complain(estimate(args.data, args.tokenizer, args.threads, **chosen))
        result = train(
            args.data,
            tokenizer=args.tokenizer,
            out=args.out,
            evaluate=report,
            threads=args.threads,
            progress=sys.stderr.isatty(),
            **chosen,
        )
    show(f"{args.out}: {result.step} steps, loss {result.log.losses[-1]:.4f}")
