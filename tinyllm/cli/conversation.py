"""The conversation of ``tinyllm chat``: answer messages and run commands."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import Error
from ..generation.drafts import check_draft
from ..generation.options import ChatOptions, Request
from ..generation.request import chat_stepper
from ..generation.result import Generation
from ..generation.stepper import PromptTooLong
from ..model import Model
from .common import load_model
from .output import complain, show_json, stream
from .sampling import NAMES, read_option
from .terminal import Wrapper, messages

__all__ = ["Chat", "Manner", "talk"]


class Quit(Exception):
    """Ends the conversation."""


@dataclasses.dataclass(frozen=True)
class Manner:
    """How a conversation is held.

    Attributes
    ----------
    template : str, optional
        As for `Model.chat`.
    drop : bool
        Whether the oldest turns are dropped when the context is full.
    stats : bool
        Whether to show the speed after each answer.
    json : bool
        Whether answers are printed as JSON.
    """

    template: str | None = None
    drop: bool = True
    stats: bool = False
    json: bool = False


class Chat:
    """A conversation: its messages and its context.

    Parameters
    ----------
    model : Model
    manner : Manner
    options : dict, optional
        Arguments of `Model.chat`. The seed is that of the first answer; each later answer adds 1.
    system : str, optional
        The system message.

    Attributes
    ----------
    messages : list of dict
        All messages, including the system message, and those that the context no longer has.
    failed : bool
        Whether a message or a command has failed.
    """

    def __init__(
        self,
        model: Model,
        manner: Manner = Manner(),
        options: dict[str, Any] | None = None,
        system: str | None = None,
    ) -> None:
        self.messages: list[dict[str, Any]] = []
        self.failed = False
        self._manner = manner
        self._options = {"max_tokens": 512, **(options or {})}
        self._answers = 0
        self._dropped = 0  # messages after the system message that the context no longer has
        self._last: Generation | None = None
        self._args: argparse.Namespace | None = None
        self._use(model)
        if system:
            self._system(system)

    def _use(self, model: Model) -> None:
        """Take a model, if it can hold a conversation; raise otherwise."""
        name = model.metadata.get("general.name") or model.path
        if model.tokenizer is None:
            raise ValueError(f"{name} has no tokenizer; --tokenizer FILE uses that of another file")
        if self._manner.template is None and not model.tokenizer.chat_templates:
            raise ValueError(
                f"{name} has no chat template, so it was probably not trained to chat; "
                "--template plain chats with it anyway; use --template chatml or --template FILE "
                "if you know its format"
            )
        # report an error of the template or of an option now, not after the first message
        model.tokenizer.render_chat(
            [{"role": "user", "content": "Hi"}], template=self._manner.template
        )
        self._request(model, self._options)
        self.model = model
        self._encode = functools.partial(
            model.tokenizer.encode_chat, template=self._manner.template
        )
        self._session = model.session()

    def introduce(self, args: argparse.Namespace) -> None:
        """Say which model this is; `args` are those of the command line, for ``/model``."""
        self._args = args
        if sys.stdin.isatty():
            _note(f"{self._described()}; /help lists the commands")

    def _described(self) -> str:
        name = self.model.metadata.get("general.name") or Path(self.model.path or "").name
        template = self._manner.template
        shown = "of the file" if template is None else "given" if "{" in template else template
        limit = self.model.core.config["max_context"]
        return f"model: {name}; template: {shown}; context: {limit} tokens"

    def line(self, text: str) -> None:
        """Answer a message or run a command. Ctrl-C stops an answer.

        Parameters
        ----------
        text : str
        """
        text = text.strip()
        if text.startswith("/") and not text.startswith("//"):
            name, _, rest = text[1:].partition(" ")
            if name in COMMANDS:
                try:
                    COMMANDS[name].run(self, rest.strip())
                except (Error, OSError, ValueError, TypeError, MemoryError, ImportError) as error:
                    self._fail(_one_line(error))
            else:
                known = ", ".join(f"/{command}" for command in COMMANDS)
                self._fail(f"no command /{name}; expected one of {known}")
        elif text:
            self._say(text.removeprefix("/") if text.startswith("//") else text)

    def _fail(self, text: str) -> None:
        self.failed = True
        _note(text)

    # ---- answers ----

    def _say(self, text: str) -> None:
        """Answer a message; it stays in the conversation only with an answer."""
        self.messages.append({"role": "user", "content": text})
        if not self._reply():
            self.messages.pop()

    def _reply(self) -> bool:
        """Answer the last message; return whether there is an answer."""
        try:
            self._make_room()
            answer, why = self._answer()
        except PromptTooLong as error:
            self._fail(f"the context is full: {error}; /reset starts a new conversation")
            return False
        except (Error, ValueError, TypeError, MemoryError) as error:
            self._fail(_one_line(error))
            return False
        if answer.strip():
            self.messages.append({"role": "assistant", "content": answer.strip()})
        else:
            why = f"{why}; " if why else ""
            why += "the answer is empty, so your message was removed"
        if why:
            _note(why)
        if self._manner.stats and self._last is not None:
            _note(self._speed(self._last))
        return bool(answer.strip())

    def _used(self) -> list[dict[str, Any]]:
        """Return the messages that the model gets."""
        system = [m for m in self.messages if m["role"] == "system"]
        others = [m for m in self.messages if m["role"] != "system"]
        return system + others[self._dropped :]

    def _make_room(self) -> None:
        """Drop the oldest turns until the conversation leaves room for an answer."""
        limit = self.model.core.config["max_context"]
        most = self._options["max_tokens"]
        room = limit // 4 if most is None else min(most, limit // 4)
        before = self._dropped
        while self._manner.drop:
            used = self._used()
            if len(self._encode(used)) + room <= limit:
                break
            others = [m for m in used if m["role"] != "system"]
            turn = next((i for i, m in enumerate(others) if i and m["role"] == "user"), 0)
            if not turn:  # only the last message is left
                break
            self._dropped += turn
        if self._dropped > before:
            _note(
                f"the context of {limit} tokens is full: the model no longer sees the oldest "
                f"{self._dropped} messages; --on-full stop keeps them"
            )

    @staticmethod
    def _request(model: Model, options: dict[str, Any]) -> Request:
        """Return the request that the options make; raise if one is wrong."""
        known = {name: value for name, value in options.items() if name in _FIELDS}
        samplers = {name: value for name, value in options.items() if name not in _FIELDS}
        request = Request.asked(model, "chat", {**known, "samplers": samplers})
        check_draft(model, request.draft)
        for sampler in request.chain.samplers(1):
            sampler.check_ids(model.config.vocab_size)
        return request

    def _answer(self) -> tuple[str, str]:
        """Print an answer; return it, and why it is incomplete (an empty string if it is not)."""
        options = dict(self._options)
        if options.get("seed") is not None:
            options["seed"] = (options["seed"] + self._answers) % 2**64
        self._answers += 1
        request = self._request(self.model, options)
        chat_options = ChatOptions(template=self._manner.template, session=self._session)
        stepper = chat_stepper(self.model, [self._used()], chat_options, request)
        pieces: list[str] = []
        started = False
        wrapper = Wrapper()
        why = ""
        try:
            for piece in stepper:
                pieces.append(piece)
                shown = piece if started else piece.lstrip()
                started = started or bool(shown)
                if not self._manner.json:
                    wrapper.feed(shown)
        except KeyboardInterrupt:
            why = "stopped"
        self._last = stepper.results()[0]
        if self._manner.json:
            show_json(self._last.to_dict())
        elif started:
            wrapper.finish()
            stream("\n")
        return "".join(pieces), why or self._incomplete(self._last)

    def _incomplete(self, g: Generation) -> str:
        limit = self.model.core.config["max_context"]
        if g.stop_reason == "length":
            return f"stopped after {len(g.ids)} tokens; -n sets the limit"
        if g.stop_reason == "context":
            return (
                f"the context is full: the conversation has {len(g.prompt_ids) + len(g.ids)} "
                f"tokens of at most {limit}; /reset starts a new one"
            )
        return "the time is over" if g.stop_reason == "timeout" else ""

    def _speed(self, g: Generation) -> str:
        limit = self.model.core.config["max_context"]
        parts = [f"{len(g.ids)} tokens"]
        if g.timings is not None:
            parts[0] += f" at {g.timings.tokens_per_second:.1f} tokens/s"
            if g.timings.drafted:
                parts.append(f"{g.timings.accepted} of {g.timings.drafted} guesses accepted")
            parts.append(
                f"prompt: {g.timings.prompt_tokens} new tokens at "
                f"{g.timings.prompt_tokens_per_second:.1f} tokens/s"
            )
        parts.append(f"context: {len(g.prompt_ids) + len(g.ids)} of {limit} tokens")
        return "; ".join(parts)

    # ---- commands ----

    def _reset(self, _: str) -> None:
        """Start a new conversation; keep the system message."""
        self.messages = [m for m in self.messages if m["role"] == "system"]
        self._dropped = 0
        self._session.reset()
        _note("started a new conversation")

    def _system(self, text: str) -> None:
        """Set the system message; without TEXT, remove it."""
        self.messages = [m for m in self.messages if m["role"] != "system"]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def _undo(self, _: str) -> None:
        """Remove your last message and its answer."""
        at = self._last_message()
        del self.messages[at:]
        self._dropped = min(self._dropped, sum(m["role"] != "system" for m in self.messages))
        _note("removed your last message and its answer")

    def _regen(self, _: str) -> None:
        """Answer your last message again."""
        at = self._last_message()
        old = self.messages[at + 1 :]
        del self.messages[at + 1 :]
        if not self._reply():
            self.messages += old

    def _last_message(self) -> int:
        places = [i for i, m in enumerate(self.messages) if m["role"] == "user"]
        if not places:
            raise ValueError("there is no message yet")
        return places[-1]

    def _save(self, path: str) -> None:
        """Write the messages as JSON."""
        if not path:
            raise ValueError("/save has no path; expected /save PATH")
        text = json.dumps(self.messages, ensure_ascii=False, indent=2) + "\n"
        # a byte that is not UTF-8 is written as \udcNN, which JSON can read
        _path(path).write_text(text, "utf-8", errors="backslashreplace")
        _note(f"saved {len(self.messages)} messages to {path}")

    def _load(self, path: str) -> None:
        """Continue a conversation that /save wrote."""
        if not path:
            raise ValueError("/load has no path; expected /load PATH")
        found = json.loads(_path(path).read_text("utf-8"))
        is_list = isinstance(found, list)
        for message in found if is_list else ():
            is_list = is_list and isinstance(message, dict) and {"role", "content"} <= set(message)
        if not is_list:
            raise ValueError(f"{path} holds no conversation; expected a JSON list of messages")
        self.messages, self._dropped = found, 0
        _note(f"loaded {len(found)} messages from {path}")

    def _set(self, text: str) -> None:
        """Set an option, such as temperature 0.5; without one, show them."""
        name, _, value = text.partition(" ")
        name = name.removeprefix("--").replace("-", "_")
        if not name:
            shown = [f"{n} {v}" for n, v in self._options.items() if v not in (None, [], ())]
            _note("; ".join(shown))
            return
        if name not in NAMES:
            raise ValueError(f"no option {name}; expected one of {', '.join(NAMES)}")
        options = dict(self._options)
        options[name] = read_option(name, value.strip()) if value.strip() else None
        if options[name] is None and name in ("temperature", "top_k", "top_p", "min_tokens"):
            del options[name]  # back to the default
        self._request(self.model, options)
        self._options = options
        _note(f"{name} is {value.strip() or 'the default'}")

    def _stats(self, _: str) -> None:
        """Show the speed of the last answer."""
        if self._last is None:
            raise ValueError("there is no answer yet")
        _note(self._speed(self._last))

    def _model(self, path: str) -> None:
        """Go on with another model; without PATH, say which one this is."""
        if path:
            args = copy.copy(self._args) or argparse.Namespace(
                threads=None, tokenizer=None, mode="exact", cache="f32", context=None
            )
            args.model, args.adapter = path, []
            self._use(load_model(args))
            self._dropped = 0
        _note(self._described())

    def _quit(self, _: str) -> None:
        """End the conversation."""
        raise Quit

    def _help(self, _: str) -> None:
        """Show this help."""
        rows = [(f"/{name} {c.argument}".rstrip(), c.help) for name, c in COMMANDS.items()]
        rows += [
            ("//...", "Send a message that begins with /."),
            ('"""', 'Begin a message of several lines, up to """ at the end of a line.'),
        ]
        for shown, text in rows:
            _note(f"{shown:17} {text}", plain=True)
        _note("A paste is one message. Ctrl-C stops an answer, Ctrl-D quits.", plain=True)


#: The options that are fields of a request; all others are samplers.
_FIELDS = ("max_tokens", "min_tokens", "stop", "stop_ids", "grammar", "timeout", "temperature",
           "top_k", "top_p", "seed", "draft")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of the conversation: a method of `Chat`, and the name of its argument."""

    run: Callable[[Chat, str], None]
    argument: str = ""

    @property
    def help(self) -> str:
        """One sentence."""
        return (self.run.__doc__ or "").strip()


#: A new command is one row.
COMMANDS: dict[str, Command] = {
    "reset": Command(Chat._reset),
    "system": Command(Chat._system, "TEXT"),
    "undo": Command(Chat._undo),
    "regen": Command(Chat._regen),
    "save": Command(Chat._save, "PATH"),
    "load": Command(Chat._load, "PATH"),
    "set": Command(Chat._set, "NAME VALUE"),
    "stats": Command(Chat._stats),
    "model": Command(Chat._model, "PATH"),
    "quit": Command(Chat._quit),
    "help": Command(Chat._help),
}


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # no home directory
        raise ValueError(f"{text}: {error}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _note(text: str, plain: bool = False) -> None:
    """Print a note on stderr, so that stdout has only answers."""
    complain(text if plain else f"({text})")


def talk(chat: Chat, args: argparse.Namespace) -> int:
    """Run a conversation until the input ends; return the exit status.

    Parameters
    ----------
    chat : Chat
    args : argparse.Namespace
        The arguments of the command line.

    Returns
    -------
    int
        0, or 2 if a message or command from a pipe failed.
    """
    if sys.stdin is None:
        raise ValueError("standard input is closed; expected messages")
    chat.introduce(args)
    for message in messages():
        try:
            chat.line(message)
        except KeyboardInterrupt:  # between answers, there is nothing to stop
            continue
        except Quit:
            break
    return 2 if chat.failed and not sys.stdin.isatty() else 0
