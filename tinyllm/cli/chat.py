"""Chat with a model."""

from __future__ import annotations

import argparse
import os

from .common import add_model, add_sampling, load_model

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = (
    "Commands: /reset, /system TEXT, /save PATH, /help. Ctrl-C stops an answer, Ctrl-D\n"
    "quits. If the input is a pipe, each line is a message.\n\n"
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
        help="the name of a chat template of the model file, a file with a template, chatml, or "
        "plain (for models that were not trained to chat, such as the demo model)",
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
            raise ValueError(f"{args.template} is not a Jinja2 template; expected a text with {{")
    if model.tokenizer is None:
        raise ValueError(
            f"{args.model} has no tokenizer; --tokenizer FILE uses that of another file"
        )
    if template is None and not model.tokenizer.chat_templates:
        raise ValueError(
            f"{args.model} has no chat template, so it was probably not trained to chat; "
            "--template plain chats with it anyway; use --template chatml or --template FILE if "
            "you know its format"
        )
    # report an error of the template now, not after the first message
    model.tokenizer.render_chat([{"role": "user", "content": "Hi"}], template=template)
    chain = Chain(args.temperature, args.top_k, args.top_p, args.seed)
    conversation = Chat(model, template, args.system, args.max_tokens, chain)
    return talk(conversation)
