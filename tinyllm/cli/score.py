"""Show how probable each token of a text is."""

from __future__ import annotations

import argparse

from ..display.table import Table
from ..evaluation.chunks import score_chunks
from ..runtime.prompt import token_ids
from .common import add_model, add_prompt, load_model, read_prompt
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = 'example: tinyllm score "To be, or not to be"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_prompt(parser)
    add_model(parser)
    parser.add_argument(
        "--chunks", type=int, metavar="N", help="the losses of N random parts of a long text"
    )
    parser.add_argument("--chunk-size", type=int, help="tokens of a part (default: the context)")
    parser.add_argument("--seed", type=int, default=0, help="which parts --chunks takes")
    parser.add_argument(
        "--perplexity", action="store_true", help="of a long text, in windows, as in llama.cpp"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    text = read_prompt(args)
    model = load_model(args)
    if args.perplexity:
        show(model.perplexity(text, parse_special=args.special))
        return
    if args.chunks is not None:
        ids = token_ids(text, model.tokenizer, "text", args.special)
        found = score_chunks(model, ids, size=args.chunk_size, count=args.chunks, seed=args.seed)
        rows = [(chunk.start, f"{chunk.loss:.4f}", repr(chunk.text)[:100]) for chunk in found]
        show(Table(("token", "loss", "text"), rows))
        return
    score = model.score(text, parse_special=args.special)
    show(score.table())
    show()
    show(repr(score))
