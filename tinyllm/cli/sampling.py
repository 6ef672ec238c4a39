"""Options of a generation on the command line: samplers, ends, grammars.

The samplers come from their table: a new one is an option here without further ado.
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sampling.keywords import DEFAULTS, ORDER
from ..sampling.samplers import BY_ID, SAMPLERS

if TYPE_CHECKING:
    from ..grammar.grammar import Grammar

__all__ = ["NAMES", "add_sampling", "read_option", "sampling_options"]

_KINDS = {"max_tokens": int, "min_tokens": int, "seed": int, "top_k": int, "temperature": float,
          "top_p": float, "timeout": float}  # fmt: skip
_MORE = [name for name in ORDER if name not in DEFAULTS and name != "grammar"]

#: The options of a generation that have a value of their own, under their names in Python.
NAMES = (*_KINDS, *_MORE)


def add_sampling(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """Add the arguments that say how tokens are drawn, how many, and where the text ends."""
    parser.add_argument(
        "-n",
        "--max-tokens",
        type=int,
        default=max_tokens,
        help=f"the most tokens to draw (default: {max_tokens})",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: always the best token (default: 0.8)"
    )
    parser.add_argument(
        "--top-k", type=int, default=40, help="draw from the k best; 0: from all (default: 40)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=0.95,
        help="draw from the best tokens of this total probability (default: 0.95)",
    )
    parser.add_argument("--seed", type=int, help="the same seed gives the same text")
    group = parser.add_argument_group("ends and grammars")
    group.add_argument("--min-tokens", type=int, default=0, help="no end before so many tokens")
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; \\n is a line feed; may be repeated",
    )
    group.add_argument(
        "--stop-id", action="append", default=[], type=int, metavar="ID", help="end at this token"
    )
    group.add_argument("--timeout", type=float, metavar="SECONDS", help="end after so long")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--grammar", metavar="FILE", help="a file with a grammar in GBNF")
    one.add_argument("--schema", metavar="FILE|JSON", help="a JSON schema, or a file with one")
    one.add_argument("--regex", metavar="PATTERN", help="a regular expression for the whole text")
    group = parser.add_argument_group(
        "further samplers", "values of several parameters are separated by commas"
    )
    for name in _MORE:
        text = (SAMPLERS[name].__doc__ or "").split("\n")[0].replace("%", "%%")
        group.add_argument(f"--{name.replace('_', '-')}", metavar=_form(name), help=text)


def _form(name: str) -> str:
    if name in BY_ID:
        return "ID=VALUE,..." if name == "logit_bias" else "ID,..."
    first, *others = [p.upper() for p in _parameters(name)]
    return first + "".join(f"[,{other}" for other in others) + "]" * len(others)


def _parameters(name: str) -> list[str]:
    names = list(inspect.signature(SAMPLERS[name]).parameters)[2:]
    return [parameter for parameter in names if parameter != "breakers"]


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `Model.generate` that the command line gives.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> add_sampling(parser, 8)
    >>> sampling_options(parser.parse_args(["--min-p", "0.1", "--xtc", "0.5,0.2"]))["xtc"]
    {'probability': 0.5, 'threshold': 0.2}
    """
    options: dict[str, Any] = {name: getattr(args, name) for name in _KINDS}
    for name in _MORE:
        if (text := getattr(args, name)) is not None:
            options[name] = read_option(name, text)
    options["stop"] = [text.replace("\\n", "\n") for text in args.stop]
    options["stop_ids"] = args.stop_id
    options["grammar"] = _grammar(args)
    return options


def read_option(name: str, text: str) -> Any:
    """Return the value of an option of `NAMES` that is given as text.

    Parameters
    ----------
    name : str
    text : str

    Raises
    ------
    ValueError
        If the text is not of the option's form.

    Examples
    --------
    >>> read_option("logit_bias", "5=-1,7=2.5"), read_option("top_k", "3")
    ({5: -1, 7: 2.5}, 3)
    """
    option = f"--{name.replace('_', '-')}"
    try:
        if name in _KINDS:
            return _KINDS[name](text)
        parts = [part.strip() for part in text.split(",")]
        if name == "logit_bias":
            pairs = [part.split("=") for part in parts]
            return {int(token): _number(value) for token, value in pairs}
        if name in BY_ID:
            return [int(part) for part in parts]
        values = dict(zip(_parameters(name), map(_number, parts), strict=False))
    except ValueError:
        form = _KINDS[name].__name__ if name in _KINDS else _form(name)
        raise ValueError(f"{option} is {text!r}; expected {form}") from None
    if len(parts) > len(values):
        raise ValueError(f"{option} is {text!r}; expected {_form(name)}")
    return next(iter(values.values())) if len(values) == 1 else values


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _grammar(args: argparse.Namespace) -> Grammar | None:
    from ..grammar.grammar import Grammar

    if args.grammar is not None:
        return Grammar.gbnf(Path(args.grammar).read_text("utf-8"))
    if args.schema is not None:
        is_text = args.schema.lstrip().startswith(("{", "true", "false"))
        return Grammar.json_schema(args.schema if is_text else Path(args.schema).read_text("utf-8"))
    return None if args.regex is None else Grammar.regex(args.regex)
