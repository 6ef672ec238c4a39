"""The command ``tinyllm``: one function per command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..display.table import Table
from ..errors import Error

if TYPE_CHECKING:
    from ..model import Model

__all__ = ["main"]


def _prompt(args: argparse.Namespace) -> str:
    """Take the prompt from the command line, or from the pipe."""
    words: list[str] = args.prompt
    if words and words != ["-"]:
        return " ".join(words)
    if not words and sys.stdin.isatty():
        raise ValueError("no prompt: give it as an argument, or pipe it in and say -")
    return sys.stdin.read()


def _model(args: argparse.Namespace) -> Model:
    from ..model import load

    return load(args.model, threads=args.threads, tokenizer=args.tokenizer)


def _preview(value: Any, limit: int) -> str:
    """One line for a metadata value, however long it is."""
    if isinstance(value, (list, np.ndarray)):
        shown = ", ".join(_preview(v, 20) for v in value[:6])
        return f"[{shown}{', ...' if len(value) > 6 else ''}] ({len(value):,})"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def generate(args: argparse.Namespace) -> None:
    """Continue a prompt."""
    model = _model(args)
    if args.echo:
        print(args.prompt_text, end="", flush=True)
    pieces = model.stream(
        args.prompt_text,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()


def chat(args: argparse.Namespace) -> int:
    """Talk with a model that was trained to answer."""
    from .chat import Chat, talk

    model = _model(args)
    template: str | None = args.template
    if template is not None and os.path.isfile(template):
        with open(template, encoding="utf-8") as file:
            template = file.read()
        if "{" not in template:
            raise ValueError(f"{args.template} is no Jinja2 template: it has no {{")
    if model.tokenizer is None:
        raise ValueError(f"{args.model} has no tokenizer; --tokenizer takes that of another file")
    if template is None and not model.tokenizer.chat_templates:
        raise ValueError(
            f"{args.model} has no chat template, so it was probably not trained to chat; "
            "--template plain talks to it all the same, --template chatml or --template FILE if "
            "you know better"
        )
    # what is wrong with the template is told now, not after the first message
    model.tokenizer.render_chat([{"role": "user", "content": "Hi"}], template=template)
    conversation = Chat(
        model, template, args.system, args.seed, args.max_tokens,
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
    )  # fmt: skip
    return talk(conversation)


def trace(args: argparse.Namespace) -> None:
    """Show the inner values of a run, and the likeliest next tokens."""
    from .. import _core

    model = _model(args)
    capture = args.capture or None
    run = model.trace(args.prompt_text, capture)
    print("tokens:", " ".join(repr(piece) for piece in run.pieces))
    print()
    print(run.table())
    logits = run["output"][-1] if "output" in run else model.logits(run.tokens)[-1]
    probs = _core.softmax(logits)
    best = np.argsort(-probs, kind="stable")[: args.top]
    print()
    print("next token:")
    rows = [
        (int(i), repr(piece), f"{logits[i]:.4f}", f"{probs[i]:.4f}")
        for i, piece in zip(best, model.pieces(best.astype(np.int32)), strict=True)
    ]
    print(Table(("id", "piece", "logit", "probability"), rows))


def info(args: argparse.Namespace) -> None:
    """Show what a file holds: config, metadata, tensors."""
    from ..architectures.table import read_model
    from ..files.model_file import open_file

    metadata, weights = open_file(args.file)
    size = sum(weight.nbytes for weight in weights.values())
    parameters = sum(int(np.prod(w.shape, dtype=np.int64)) for w in weights.values())
    print(f"{args.file}: {len(weights)} tensors, {parameters:,} values, {size:,} bytes")
    try:
        config, _ = read_model(metadata, weights)
    except Error as error:
        print(f"not a model that runs here: {error}")
    else:
        print()
        names = [name for name in vars(config) if not name.startswith("_")]
        print(Table(("config", "value"), [(n, getattr(config, n)) for n in names]))
    print()
    kind: Callable[[str], str] = getattr(metadata, "type", lambda key: "")
    rows = [(key, kind(key), _preview(metadata[key], args.width)) for key in metadata]
    print(Table(("metadata", "type", "value"), rows))
    print()
    types = {weight.type for weight in weights.values()}
    totals = [
        (
            name,
            sum(w.type == name for w in weights.values()),
            f"{sum(w.nbytes for w in weights.values() if w.type == name):,}",
        )
        for name in sorted(types)
    ]
    print(Table(("type", "tensors", "bytes"), totals))
    if not args.short:
        print()
        tensors = [(w.name, w.type, str(w.shape), f"{w.nbytes:,}") for w in weights.values()]
        print(Table(("tensor", "type", "shape", "bytes"), tensors))


def weights(args: argparse.Namespace) -> None:
    """Show one tensor: statistics and the first values."""
    import difflib

    from ..files.model_file import open_file

    tensors = open_file(args.file)[1]
    if args.tensor not in tensors:
        near = difflib.get_close_matches(args.tensor, list(tensors), n=3, cutoff=0.4)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise ValueError(f"{args.file} has no tensor {args.tensor!r}{hint}")
    weight = tensors[args.tensor]
    values = weight.numpy()
    finite = values[np.isfinite(values)]
    rows: list[tuple[str, object]] = [
        ("type", weight.type),
        ("shape", str(weight.shape)),
        ("bytes", f"{weight.nbytes:,}"),
        ("values", f"{values.size:,}"),
    ]
    if finite.size:
        rows += [
            ("min", f"{finite.min():.6g}"),
            ("max", f"{finite.max():.6g}"),
            ("mean", f"{finite.mean(dtype=np.float64):.6g}"),
            ("std", f"{finite.std(dtype=np.float64):.6g}"),
            ("norm", f"{np.linalg.norm(finite.astype(np.float64)):.6g}"),
        ]
    if finite.size < values.size:
        rows.append(("not finite", f"{values.size - finite.size:,}"))
    print(Table(("what", "value"), rows))
    print()
    with np.printoptions(precision=5, suppress=True, threshold=64, edgeitems=4, linewidth=100):
        print(values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinyllm",
        description="Open a GGUF language model, run it, and see every number inside.",
    )
    parser.add_argument("--version", action="version", version=f"tinyllm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(
        function: Callable[[argparse.Namespace], int | None], epilog: str = ""
    ) -> argparse.ArgumentParser:
        text = (function.__doc__ or "").split("\n")[0]
        sub = commands.add_parser(
            function.__name__,
            help=text,
            description=text,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(function=function)
        return sub

    def with_prompt(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("prompt", nargs="*", help="the prompt; - or nothing reads a pipe")

    def with_model(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "-m", "--model", default="demo", help="GGUF file or llama2.c checkpoint (default: demo)"
        )
        sub.add_argument("--tokenizer", help="use this file's tokenizer")
        sub.add_argument("-t", "--threads", type=int, help="at most this many threads")

    def with_sampling(sub: argparse.ArgumentParser, max_tokens: int) -> None:
        sub.add_argument(
            "-n", "--max-tokens", type=int, default=max_tokens, help=f"default: {max_tokens}"
        )
        sub.add_argument("--temperature", type=float, default=0.8, help="default: 0.8")
        sub.add_argument("--top-k", type=int, default=40, help="0: all (default: 40)")
        sub.add_argument("--top-p", type=float, default=0.95, help="default: 0.95")
        sub.add_argument("--seed", type=int, help="the same seed gives the same text")

    sub = command(generate, 'example: tinyllm generate "ROMEO:" --seed 1')
    with_prompt(sub)
    with_model(sub)
    with_sampling(sub, max_tokens=128)
    sub.add_argument("--echo", action="store_true", help="print the prompt first")

    sub = command(
        chat,
        "Commands: /reset, /system TEXT, /save PATH, /help. Ctrl-C stops an answer, Ctrl-D\n"
        "leaves. Each line of a pipe is a message.\n\n"
        "example: tinyllm chat -m model.gguf",
    )
    with_model(sub)
    with_sampling(sub, max_tokens=512)
    sub.add_argument("--system", metavar="TEXT", help="the system message")
    sub.add_argument(
        "--template",
        metavar="NAME|FILE",
        help="one of the file's chat templates, a file with one, chatml, or plain (for models "
        "that were not trained to chat, as the demo model)",
    )

    sub = command(trace, 'example: tinyllm trace "ROMEO:" --capture "blk.0.*"')
    with_prompt(sub)
    with_model(sub)
    sub.add_argument(
        "-c",
        "--capture",
        action="append",
        metavar="PATTERN",
        help='taps to show, for example "blk.*.resid_post"; may be given again',
    )
    sub.add_argument("--top", type=int, default=5, help="how many next tokens (default: 5)")

    sub = command(info, "example: tinyllm info model.gguf")
    sub.add_argument("file", help="a GGUF file, a llama2.c checkpoint, or demo")
    sub.add_argument("--short", action="store_true", help="without the list of tensors")
    sub.add_argument("--width", type=int, default=70, help="cut values here (default: 70)")

    sub = command(weights, "example: tinyllm weights model.gguf blk.0.attn_q.weight")
    sub.add_argument("file", help="a GGUF file, a llama2.c checkpoint, or demo")
    sub.add_argument("tensor", help="a tensor's name; tinyllm info lists them")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process if not given.

    Returns
    -------
    int
        0, or 2 after an error, which is told in one line on stderr; 130 after Ctrl-C (which in
        ``chat`` stops the answer only).

    Examples
    --------
    >>> from tinyllm.cli.main import main
    >>> main(["weights", "demo", "output_norm.weight"])  # doctest: +ELLIPSIS
    what...
    0
    """
    args = _parser().parse_args(argv)
    try:
        if hasattr(args, "prompt"):
            args.prompt_text = _prompt(args)
        status: int | None = args.function(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # whoever read us has seen enough; the interpreter must not complain when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Error, OSError, ValueError, TypeError, MemoryError, ImportError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"tinyllm: {text}", file=sys.stderr)
        return 2
    return status or 0
