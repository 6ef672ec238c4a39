"""Train a LoRA adapter of a model on a text."""

from __future__ import annotations

import argparse
import sys

from ..training.lora import lora
from .output import show
from .train import reporter

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm lora notes.txt adapter.gguf -m model.gguf --steps 300"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("data", help="a text file in UTF-8, or a folder of them")
    parser.add_argument("out", help="the adapter file to write")
    parser.add_argument("-m", "--model", default="demo", help="the model (default: demo)")
    parser.add_argument("--rank", type=int, default=8, help="rows of A (default: 8)")
    parser.add_argument("--alpha", type=float, help="default: twice the rank")
    parser.add_argument(
        "--target",
        action="append",
        metavar="PATTERN",
        help="tensors to change, such as attn_q or 'blk.3.*'; may be given several times "
        "(default: the matrices of all blocks)",
    )
    parser.add_argument("--steps", type=int, default=200, help="default: 200")
    parser.add_argument("--batch", type=int, default=8, help="sequences of a step (default: 8)")
    parser.add_argument("--context", type=int, help="tokens of a sequence (default: at most 128)")
    parser.add_argument("--micro-batch", type=int, help="sequences that run together")
    parser.add_argument("--lr", type=float, help="learning rate (default: 0.001)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation", type=float, default=0.05, help="part that is held out")
    parser.add_argument("--resume", action="store_true", help="continue the run of OUT")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--sample", metavar="TEXT", help="show how the model continues this text")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..loading import load

    model = load(args.model, threads=args.threads)
    result = lora(
        model,
        args.data,
        args.rank,
        args.alpha,
        args.target,
        steps=args.steps,
        batch=args.batch,
        context=args.context,
        micro_batch=args.micro_batch,
        lr=args.lr,
        seed=args.seed,
        validation=args.validation,
        out=args.out,
        resume=args.out if args.resume else None,
        evaluate=reporter(args.sample),
        progress=sys.stderr.isatty(),
    )
    show(f"{args.out}: {result.step} steps, loss {result.log.losses[-1]:.4f}")
