"""Talk with a model that was trained to answer."""

from __future__ import annotations

import argparse
import os

from .common import add_model, add_sampling, load_model

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = (
    "Commands: /reset, /system TEXT, /save PATH, /help. Ctrl-C stops an answer, Ctrl-D\n"
    "leaves. Each line of a pipe is a message.\n\n"
    "example: tinyllm chat -m model.gguf"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_model(parser)
    add_sampling(parser, max_tokens=512)
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument(
        "--template",
        metavar="NAME|FILE",
        help="one of the file's chat templates, a file with one, chatml, or plain (for models "
        "that were not trained to chat, as the demo model)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..generation.options import Chain
    from .conversation import Chat, talk

    model = load_model(args)
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
    chain = Chain(args.temperature, args.top_k, args.top_p, args.seed)
    conversation = Chat(model, template, args.system, args.max_tokens, chain)
    return talk(conversation)
