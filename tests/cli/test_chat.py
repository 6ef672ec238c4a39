"""`tinyllm chat` in a terminal, with Ctrl-C, and in a pipe."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time

import pytest

import tinyllm as tl
from tinyllm.cli.conversation import Chat, history_file
from tinyllm.cli.main import main
from tinyllm.generation.options import Chain

pytest.importorskip("jinja2")

PLAIN = ("chat", "--template", "plain", "--seed", "1")
LINES = "Good morrow!\nAnd you?\n"


def piped(*arguments, text=LINES, data=None, **options):
    done = subprocess.run(
        [sys.executable, "-m", "tinyllm", *arguments],
        input=data if data is not None else text.encode(),
        capture_output=True,
        check=False,
        timeout=120,
        **options,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def conversation(lines, seed, n):
    """The messages and answers of one conversation by `Model.chat`, without a session."""
    model, messages, answers = tl.load(), [], []
    for turn, line in enumerate(lines):
        messages.append({"role": "user", "content": line})
        g = model.chat(messages, template="plain", seed=seed + turn, max_tokens=n)
        answers.append(g.text)
        messages.append({"role": "assistant", "content": g.text.strip()})
    return messages, answers


# ---- pipes ----


def test_each_line_of_a_pipe_is_a_message(tmp_path):
    path = tmp_path / "talk.json"
    status, out, err = piped(*PLAIN, "-n", "20", text=f"{LINES}\n  \n/save {path}\n")
    messages, answers = conversation(LINES.splitlines(), 1, 20)
    assert status == 0
    assert out == "".join(answer.lstrip() + "\n" for answer in answers)
    assert err.count("(stopped after 20 tokens; -n sets the limit)") == 2
    assert f"(saved 4 messages to {path})" in err
    assert json.loads(path.read_text()) == messages


def test_commands(tmp_path):
    first, second = tmp_path / "a b.json", tmp_path / "2.json"
    lines = ["/system Be  brief.", "One", f"/save {first}", "/reset", "//two", "/system",
             f"/save {second}", "/help"]  # fmt: skip
    status, out, err = piped(*PLAIN, "-n", "5", "--system", "Old", text="\n".join(lines))
    assert status == 0
    one = json.loads(first.read_text())
    assert [m["role"] for m in one] == ["system", "user", "assistant"]
    assert one[0]["content"] == "Be  brief."
    assert [m["content"] for m in json.loads(second.read_text())][:1] == ["/two"]
    assert out.count("\n") >= 2
    for text in ("/reset", "/system TEXT", "/save PATH", "/help", "Ctrl-D"):
        assert text in err


def test_what_goes_wrong_is_named_and_the_next_line_is_answered(tmp_path):
    bad = tmp_path / "bad.jinja"
    bad.write_text("{% for m in messages %}{% if m.content == 'x' %}{{ raise_exception('no x') }}"
                   "{% endif %}{{ m.content }}:{% endfor %}")  # fmt: skip
    path = tmp_path / "talk.json"
    lines = ["/nope 1", "/", "x", "/save", "/save /no/such/place", "ROMEO", f"/save {path}"]
    status, out, err = piped(
        "chat", "--template", str(bad), "--seed", "1", "-n", "6", text="\n".join(lines)
    )
    assert status == 2
    assert "no command /nope; expected one of /reset, /system, /save, /help" in err
    assert "no command /;" in err
    assert "no x" in err
    assert "/save has no path; expected /save PATH" in err
    assert "/no/such/place" in err
    # the message that failed is not in the conversation
    assert [m["content"] for m in json.loads(path.read_text())] == ["ROMEO", out.strip()]


def test_a_full_context_is_told_and_the_program_goes_on(tmp_path):
    path = tmp_path / "talk.json"
    lines = ["To be, or not to be " * 30, "Hm", "word " * 2000, f"/save {path}", "/reset", "Hi"]
    status, out, err = piped(*PLAIN, "-n", "500", text="\n".join(lines))
    assert status == 2, err
    assert "the context is full: the prompt has" in err
    assert "context length of 512" in err
    assert "/reset starts a new" in err
    assert all("word" not in m["content"] for m in json.loads(path.read_text()))
    assert out.strip()


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "talk.json"
    data = b"caf\xe9 \xf0\x9f\x98\x80 \x00\n/save " + str(path).encode() + b"\n"
    status, _, err = piped(*PLAIN, "-n", "5", data=data)
    assert status == 0, err
    assert json.loads(path.read_text())[0]["content"] == "caf\udce9 😀 \x00"
    status, out, _ = piped(*PLAIN, "-n", "5", text="")
    assert (status, out) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("chat",), "demo has no chat template, so it was probably not trained to chat"),
        (("chat", "--template", "nope"), "expected Jinja2 source or one of ['chatml', 'plain']"),
        (("chat", "--template", __file__ + "x"), "expected Jinja2 source"),
        (("chat", "--template", os.devnull), "expected Jinja2 source"),
        (("chat", "--template", "{% for %}"), "the chat template failed"),
        ((*PLAIN, "-m", "/no/such/file"), "No such file"),
    ],
)
def test_errors_before_the_first_line(arguments, text):
    status, out, err = piped(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("tinyllm: ")
    assert text in err


def test_wrong_options_are_told_at_each_line():
    status, out, err = piped(*PLAIN, "--temperature", "-1")
    assert (status, out) == (2, "")
    assert err.count("temperature is -1.0") == 2


def test_a_file_that_is_no_template(tmp_path, capsys):
    (tmp_path / "t").write_text("hello")
    assert main(["chat", "--template", str(tmp_path / "t")]) == 2
    assert "not a Jinja2 template" in capsys.readouterr().err


def test_only_what_is_new_runs(monkeypatch, capsys):
    model = tl.load()
    ran = []
    run = tl.Model.run

    def counted(self, sessions, tokens, *args, **options):
        ran.append(sum(map(len, tokens)))
        return run(self, sessions, tokens, *args, **options)

    monkeypatch.setattr(tl.Model, "run", counted)
    chat = Chat(model, "plain", max_tokens=30, chain=Chain(temperature=0.8, seed=1))
    chat.line("To be, or not to be, that is the question. " * 3)
    whole = ran[0]
    ran.clear()
    chat.line("Hm")
    assert ran[0] < whole / 2
    assert "stopped after" in capsys.readouterr().err


# ---- a terminal ----

SLOW = """
import fcntl, sys, termios, time, tinyllm as tl
if sys.stdin.isatty():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from tinyllm.cli.main import main
run = tl.Model.run
def slow(self, *args, **options):
    time.sleep(0.02)
    return run(self, *args, **options)
tl.Model.run = slow
sys.exit(main(sys.argv[1:]))
"""


class Terminal:
    """A program that runs in a pseudo-terminal."""

    def __init__(self, arguments, **environment):
        import pty

        self.fd, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SLOW, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "dumb", **environment},
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""

    def until(self, *wanted, seconds=60):
        """Read until one of these texts appears; return everything up to its end."""
        end = time.monotonic() + seconds
        while True:
            for text in wanted:
                if text in self.text:
                    at = self.text.index(text) + len(text)
                    before, self.text = self.text[:at], self.text[at:]
                    return before
            assert time.monotonic() < end, f"no {wanted} in {self.text!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                data = b""
                with contextlib.suppress(OSError):  # the program has ended
                    data = os.read(self.fd, 65536)
                assert data, f"the end before {wanted}: {self.text!r}"
                self.text += data.decode(errors="replace").replace("\r\n", "\n")

    def type(self, text):
        os.write(self.fd, text.encode())

    def status(self):
        end = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError):
                if select.select([self.fd], [], [], 0.05)[0]:
                    os.read(self.fd, 65536)
        return self.process.poll()  # None: it still runs

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture
def terminal(tmp_path):
    pytest.importorskip("pty")
    started = []

    def start(*arguments):
        started.append(Terminal(arguments, XDG_STATE_HOME=str(tmp_path / "state")))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal, tmp_path):
    path = tmp_path / "talk.json"
    t = terminal(*PLAIN, "-n", "400")
    t.until("> ")
    t.type("Good morrow!\n")
    t.until("Good morrow!\n")
    for _ in range(5):  # the answer has begun
        t.until("e")
    t.type("\x03")
    t.until("(stopped)\n")
    t.until("> ")
    t.type("dropped")
    t.until("dropped")
    time.sleep(0.3)  # Python's readline misses a signal that comes just before it waits
    t.type("\x03")
    t.until("(Ctrl-D quits)\n")
    t.until("> ")
    t.type(f"/save {path}\n")
    t.until("(saved")
    messages = json.loads(path.read_text())
    assert [m["role"] for m in messages] == ["user", "assistant"]
    _, answers = conversation(["Good morrow!"], 1, 400)
    # the stopped answer stays in the conversation; it is the beginning of the whole answer
    assert answers[0].strip().startswith(messages[1]["content"])
    assert 0 < len(messages[1]["content"]) < len(answers[0].strip())
    # the conversation continues from there
    t.until("> ")
    t.type("And you?\n")
    t.until("And you?\n")
    t.until("e")
    t.type("\x03")
    t.until("(stopped)\n")
    t.until("> ")
    t.type("\x04")
    assert t.status() == 0


def test_a_signal_from_elsewhere_stops_the_answer_too(terminal):
    t = terminal(*PLAIN, "-n", "400")
    t.until("> ")
    t.type("Good morrow!\n")
    t.until("Good morrow!\n")
    t.until("e")
    t.process.send_signal(signal.SIGINT)
    t.until("(stopped)\n")
    t.until("> ")
    t.type("\x04")
    assert t.status() == 0


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
def test_a_signal_stops_an_answer_to_a_pipe(tmp_path):
    path = tmp_path / "talk.json"
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *PLAIN, "-n", "400"],
        bufsize=0,  # a buffer would hide bytes from communicate()
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            process.stdin.write(b"Good morrow!\n")
            process.stdin.flush()
            first = process.stdout.read(5)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(f"/save {path}\n/nope\n".encode(), timeout=60)
        finally:
            process.kill()
    assert process.returncode == 2
    assert err.decode().index("(stopped)") < err.decode().index("no command /nope")
    messages = json.loads(path.read_text())
    assert (first + out).decode().strip() == messages[1]["content"]


def test_lines_are_remembered(terminal, tmp_path):
    pytest.importorskip("readline")
    t = terminal(*PLAIN, "-n", "3")
    t.until("> ")
    t.type("Good morrow!\n")
    t.until("(stopped after 3 tokens")
    t.until("> ")
    t.type("\x04")
    assert t.status() == 0
    history = tmp_path / "state" / "tinyllm" / "chat_history"
    assert history.read_text().splitlines()[-1] == "Good morrow!"
    t = terminal(*PLAIN, "-n", "3")
    t.until("> ")
    t.type("\x10\n")  # Ctrl-P: the previous line
    t.until("Good morrow!")
    t.until("(stopped after 3 tokens")
    t.until("> ")
    t.type("\x04")
    assert t.status() == 0


def test_without_a_place_for_the_history(terminal, tmp_path):
    (tmp_path / "state").write_text("a file where the directory should be")
    t = terminal(*PLAIN, "-n", "3")
    t.until("> ")
    t.type("Good morrow!\n")
    t.until("(stopped after 3 tokens")
    t.until("> ")
    t.type("\x04")
    assert t.status() == 0


def test_where_the_history_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_file() == tmp_path / "tinyllm" / "chat_history"
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):  # the XDG specification ignores these
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert history_file() == tmp_path / ".local/state/tinyllm/chat_history"
