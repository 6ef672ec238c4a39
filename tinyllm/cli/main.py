"""The command ``tinyllm``: one module per command, with `add_arguments` and `run`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from types import ModuleType

from .. import __version__
from ..errors import Error
from . import (
    chat,
    cluster_tokens,
    compare,
    convert,
    count_tokens,
    devices,
    diff,
    diff_weights,
    doctor,
    dump_tokenizer,
    edit,
    embed,
    export,
    extract,
    generate,
    imatrix,
    info,
    init,
    init_with,
    insert_head,
    insert_layer,
    lens,
    log,
    lora,
    merge,
    quantize,
    reset_optimizer,
    score,
    split,
    tokenize,
    trace,
    train,
    train_bpe,
    weights,
)
from .output import complain, standard_streams

__all__ = ["main"]

#: The commands, in the order in which the help lists them.
COMMANDS: dict[str, ModuleType] = {
    "generate": generate,
    "chat": chat,
    "trace": trace,
    "lens": lens,
    "score": score,
    "tokenize": tokenize,
    "embed": embed,
    "info": info,
    "weights": weights,
    "convert": convert,
    "export": export,
    "edit": edit,
    "split": split,
    "merge": merge,
    "extract": extract,
    "diff": diff,
    "diff-weights": diff_weights,
    "doctor": doctor,
    "quantize": quantize,
    "imatrix": imatrix,
    "train": train,
    "lora": lora,
    "log": log,
    "init": init,
    "init-with": init_with,
    "insert-layer": insert_layer,
    "insert-head": insert_head,
    "reset-optimizer": reset_optimizer,
    "compare": compare,
    "cluster-tokens": cluster_tokens,
    "train-bpe": train_bpe,
    "count-tokens": count_tokens,
    "dump-tokenizer": dump_tokenizer,
    "devices": devices,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinyllm",
        description="Open a GGUF language model, run it, and see every number inside.",
    )
    parser.add_argument("--version", action="version", version=f"tinyllm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        text = (module.__doc__ or "").split("\n")[0]
        sub = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=module.EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments. None: those of the process.

    Returns
    -------
    int
        0, or 2 after an error, which is printed as one line on stderr, or 130 after Ctrl-C (which
        only stops the answer in ``chat``).

    Examples
    --------
    >>> from tinyllm.cli.main import main
    >>> main(["weights", "demo", "output_norm.weight"])  # doctest: +ELLIPSIS
    what...
    0
    """
    args = _parser().parse_args(argv)
    try:
        with standard_streams():
            status: int | None = args.run(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has closed the pipe
        return 0
    except (Error, OSError, ValueError, TypeError, IndexError, MemoryError, ImportError) as error:
        complain(f"tinyllm: {' '.join(str(error).split()) or type(error).__name__}")
        return 2
    return status or 0
