"""Chat with a model."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .common import add_draft, add_model, load_draft, load_model
from .sampling import add_sampling, sampling_options

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = (
    'A paste is one message, and so are the lines between """ and """. /help lists the\n'
    "commands. Ctrl-C stops an answer, Ctrl-D quits. If the input is a pipe, each line is\n"
    "a message.\n\n"
    "example: tinyllm chat -m model.gguf"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_model(parser)
    system = parser.add_mutually_exclusive_group()
    system.add_argument("--system", metavar="TEXT", help="the system message")
    system.add_argument("--system-file", metavar="FILE", help="a file with the system message")
    parser.add_argument(
        "--template",
        metavar="NAME|FILE",
        help="the name of a chat template of the model file, a file with a template, chatml, or "
        "plain (for models that were not trained to chat, such as the demo model)",
    )
    parser.add_argument(
        "--on-full",
        choices=("drop", "stop"),
        default="drop",
        help="when the context is full: drop the oldest turns, or stop (default: drop)",
    )
    parser.add_argument("--stats", action="store_true", help="show the speed after each answer")
    parser.add_argument(
        "--json", action="store_true", help="print each answer as a line of JSON, whole"
    )
    add_draft(parser)
    add_sampling(parser, max_tokens=512)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from .conversation import Chat, Manner, talk

    template: str | None = args.template
    if template is not None and os.path.isfile(template):
        template = Path(template).read_text("utf-8")
        if "{" not in template:
            raise ValueError(f"{args.template} is not a Jinja2 template; expected a text with {{")
    system: str | None = args.system
    if args.system_file is not None:
        system = Path(args.system_file).read_text("utf-8").strip()
    options = {**sampling_options(args), "draft": load_draft(args)}
    model = load_model(args)
    manner = Manner(template, args.on_full == "drop", args.stats, args.json)
    return talk(Chat(model, manner, options, system), args)
