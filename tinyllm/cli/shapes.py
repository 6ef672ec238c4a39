"""Arguments that commands which make a model share: its sizes and its tokenizer."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_shape", "add_vocabulary", "shape_of", "vocabulary_of"]

#: layers, width, heads, context, batch
_SIZES = {
    "tiny": (4, 64, 4, 64, 32),
    "small": (6, 128, 8, 128, 32),
    "medium": (8, 256, 8, 256, 32),
}

#: What the presets give and options change.
_NAMES = ("layers", "width", "heads", "context", "batch")


def add_shape(parser: argparse.ArgumentParser, batch: bool = True) -> None:
    """Add the arguments that `shape_of` reads."""
    parser.add_argument("--size", choices=list(_SIZES), help="default: tiny")
    for name in _NAMES[: None if batch else -1]:
        parser.add_argument(f"--{name}", type=int, help=f"{name} of this many instead")
    parser.add_argument("--kv-heads", type=int, help="heads of keys and values (default: heads)")
    parser.add_argument("--ffn-width", type=int, help="width of the feed-forward networks")
    parser.add_argument("--positions", choices=["rope", "learned", "none"], help="default: rope")
    parser.add_argument("--tied", action="store_true", help="one matrix for embedding and output")


def shape_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `train` or `init_model` that describe the model."""
    preset = dict(zip(_NAMES, _SIZES[args.size or "tiny"], strict=True))
    shape = {
        name: preset[name] if getattr(args, name) is None else getattr(args, name)
        for name in _NAMES
        if hasattr(args, name)
    }
    return {
        **shape,
        "kv_heads": args.kv_heads,
        "ffn_width": args.ffn_width,
        "positions": args.positions or "rope",
        "tied": args.tied,
    }


def add_vocabulary(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `vocabulary_of` reads."""
    parser.add_argument(
        "--reserved",
        action="append",
        default=[],
        metavar="TEXT",
        help="a token that is always found as a whole, such as '<|user|>'; may be repeated",
    )
    parser.add_argument("--lowercase", action="store_true", help="case makes no difference")


def vocabulary_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `train_tokenizer` but the text and the kind."""
    return {"reserved": args.reserved, "lowercase": args.lowercase}
