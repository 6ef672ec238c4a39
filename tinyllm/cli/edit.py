"""Write a copy of a GGUF file with other metadata or names."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from ..base.units import size
from ..editing.edit import edit
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm edit model.gguf new.gguf --set general.name=Tiny --remove 'quantize.*'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("file", help="the GGUF file")
    parser.add_argument("out", help="the GGUF file to write; it may be the same")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a value, as JSON or else as text; KEY:TYPE=VALUE sets the type, for example "
        "tokenizer.ggml.eos_token_id:UINT32=2; may be repeated",
    )
    parser.add_argument(
        "--remove",
        action="append",
        default=[],
        metavar="NAME",
        help="a key, a tensor, or a pattern such as 'blk.3.*'; may be repeated",
    )
    parser.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="a key or a tensor; may be repeated",
    )
    parser.add_argument("--force", action="store_true", help="write even a file that does not load")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    values: dict[str, Any] = {}
    for given in args.set:
        key, text = _halves("--set", given)
        key, colon, kind = key.partition(":")
        value = text if kind == "STRING" else _value(text)
        values[key] = (kind, value) if colon else value
    rename = dict(_halves("--rename", given) for given in args.rename)
    edit(args.file, args.out, set=values, remove=args.remove, rename=rename, force=args.force)
    show(f"{args.out}: {size(os.path.getsize(args.out))}")


def _halves(option: str, given: str) -> tuple[str, str]:
    first, equals, second = given.partition("=")
    if not equals or not first:
        raise ValueError(f"{option} is {given!r}; expected two parts with = between them")
    return first, second


def _value(text: str) -> Any:
    """Return the value of a number, a list, true, false or a string in JSON, or the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if value is None or isinstance(value, dict) else value
