"""The conversation of ``tinyllm chat``: read messages and commands, print answers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import Error
from ..generation.options import Chain, ChatOptions, Options, Request
from ..generation.request import chat_stepper
from ..generation.result import Generation
from ..generation.stepper import PromptTooLong
from ..model import Model
from .output import complain, stream

__all__ = ["Chat", "history_file", "talk"]

_HISTORY = 1000  # lines


class Chat:
    """A conversation: its messages and its context.

    Parameters
    ----------
    model : Model
    template : str, optional
        As for `Model.chat`.
    system : str, optional
        The system message.
    max_tokens : int, optional
        The most tokens of one answer.
    chain : Chain
        How tokens are drawn. The seed is that of the first answer; each later answer adds 1.

    Attributes
    ----------
    messages : list of dict
        All messages, including the system message.
    failed : bool
        Whether a message or a command has failed.
    """

    def __init__(
        self,
        model: Model,
        template: str | None = None,
        system: str | None = None,
        max_tokens: int | None = None,
        chain: Chain = Chain(),  # noqa: B008 (immutable)
    ) -> None:
        self.messages: list[dict[str, str]] = []
        self.failed = False
        self._model = model
        self._template = template
        self._options = Options.checked(model, max_tokens)
        self._chain = chain
        self._session = model.session()
        self._answers = 0
        if system:
            self._system(system)

    def line(self, text: str) -> None:
        """Answer a message or run a command. Ctrl-C stops an answer.

        Parameters
        ----------
        text : str
        """
        text = text.strip()
        if text.startswith("/") and not text.startswith("//"):
            name, _, rest = text[1:].partition(" ")
            if name in _COMMANDS:
                _COMMANDS[name](self, rest.strip())
            else:
                known = ", ".join(f"/{command}" for command in _COMMANDS)
                self._fail(f"no command /{name}; expected one of {known}")
        elif text:
            self._say(text.removeprefix("/") if text.startswith("//") else text)

    def _fail(self, text: str) -> None:
        self.failed = True
        _note(text)

    # ---- answers ----

    def _say(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})
        try:
            answer, why = self._answer()
        except PromptTooLong as error:
            self.messages.pop()
            self._fail(f"the context is full: {error}; /reset starts a new conversation")
            return
        except (Error, ValueError, TypeError, MemoryError) as error:
            self.messages.pop()
            self._fail(" ".join(str(error).split()) or type(error).__name__)
            return
        if answer.strip():
            self.messages.append({"role": "assistant", "content": answer.strip()})
        else:
            self.messages.pop()
            why = f"{why}; " if why else ""
            why += "the answer is empty, so your message was removed"
        if why:
            _note(why)

    def _answer(self) -> tuple[str, str]:
        """Print an answer; return it, and why it is incomplete (an empty string if it is not)."""
        seed = self._chain.seed
        seed = None if seed is None else (seed + self._answers) % 2**64
        self._answers += 1
        pieces: list[str] = []
        started = False
        try:
            request = Request(self._options, dataclasses.replace(self._chain, seed=seed))
            chat_options = ChatOptions(template=self._template, session=self._session)
            stepper = chat_stepper(self._model, [self.messages], chat_options, request)
            for piece in stepper:
                pieces.append(piece)
                shown = piece if started else piece.lstrip()
                started = started or bool(shown)
                stream(shown)
        except KeyboardInterrupt:
            why = "stopped"
        else:
            why = self._incomplete(stepper.results()[0])
        if started:
            stream("\n")
        return "".join(pieces), why

    def _incomplete(self, g: Generation) -> str:
        limit = self._model.core.config["max_context"]
        if g.stop_reason == "length":
            return f"stopped after {len(g.ids)} tokens; -n sets the limit"
        if g.stop_reason == "context":
            return (
                f"the context is full: the conversation has {len(g.prompt_ids) + len(g.ids)} "
                f"tokens of at most {limit}; /reset starts a new one"
            )
        return ""

    # ---- commands ----

    def _reset(self, _: str) -> None:
        """Start a new conversation; keep the system message."""
        self.messages = [m for m in self.messages if m["role"] == "system"]
        self._session.reset()
        _note("started a new conversation")

    def _system(self, text: str) -> None:
        """Set the system message; without TEXT, remove it."""
        self.messages = [m for m in self.messages if m["role"] != "system"]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def _save(self, path: str) -> None:
        """Write the messages as JSON."""
        if not path:
            self._fail("/save has no path; expected /save PATH")
            return
        text = json.dumps(self.messages, ensure_ascii=False, indent=2) + "\n"
        try:
            # a byte that is not UTF-8 is written as \udcNN, which JSON can read
            Path(path).expanduser().write_text(text, "utf-8", errors="backslashreplace")
        except (OSError, RuntimeError) as error:
            self._fail(str(error))
        else:
            _note(f"saved {len(self.messages)} messages to {path}")

    def _help(self, _: str) -> None:
        """Show this help."""
        for name, function in _COMMANDS.items():
            shown = f"/{name} {_ARGUMENTS.get(name, '')}".rstrip()
            _note(f"{shown:13} {function.__doc__}", plain=True)
        _note(f"{'//...':13} Send a message that begins with /.", plain=True)
        _note("Ctrl-C stops an answer, Ctrl-D quits.", plain=True)


#: A new command is one row.
_COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    "reset": Chat._reset,
    "system": Chat._system,
    "save": Chat._save,
    "help": Chat._help,
}
_ARGUMENTS = {"system": "TEXT", "save": "PATH"}


def _note(text: str, plain: bool = False) -> None:
    """Print a note on stderr, so that stdout has only answers."""
    complain(text if plain else f"({text})")


# ---- the terminal ----


def history_file() -> Path:
    """Return the path of the history of typed lines, in the user's state directory.

    Returns
    -------
    pathlib.Path
        It follows the XDG Base Directory Specification.

    Examples
    --------
    >>> history_file().name
    'chat_history'
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if os.path.isabs(state) else Path("~/.local/state").expanduser()
    return base / "tinyllm" / "chat_history"


@contextlib.contextmanager
def _line_editing() -> Iterator[None]:
    """Enable line editing and history in `input`, as far as the system supports them."""
    try:
        import readline
    except ImportError:
        yield
        return
    try:
        path = history_file()
    except RuntimeError:  # no home directory
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(_HISTORY)
    readline.set_auto_history(True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            readline.write_history_file(path)


def _lines() -> Iterator[str]:
    """Yield lines until the end of the input; Ctrl-C at a prompt discards the typed line."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield from sys.stdin
        return
    with _line_editing():
        while True:
            try:
                yield input("> ")
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                _note("Ctrl-D quits")


def talk(chat: Chat) -> int:
    """Run a conversation until the input ends; return the exit status.

    Parameters
    ----------
    chat : Chat

    Returns
    -------
    int
        0, or 2 if a message or command from a pipe failed.
    """
    if sys.stdin is None:
        raise ValueError("standard input is closed; expected messages")
    interactive = sys.stdin.isatty()
    if interactive:
        _note("/help lists the commands; Ctrl-C stops an answer, Ctrl-D quits")
    for line in _lines():
        try:
            chat.line(line)
        except KeyboardInterrupt:  # between answers, there is nothing to stop
            continue
    return 2 if chat.failed and not interactive else 0
