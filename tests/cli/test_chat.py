"""`tinyllm chat` in a terminal, with Ctrl-C, and in a pipe."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import tinyllm as tl
from testkit.terminal import SLOW, Terminal
from tinyllm.cli.conversation import COMMANDS, Chat, Manner
from tinyllm.cli.main import main
from tinyllm.cli.terminal import Wrapper, history_file

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
    assert "no command /nope; expected one of /reset, /system, /undo, /regen, /save, /load," in err
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


def test_wrong_options_are_told_before_the_first_line():
    status, out, err = piped(*PLAIN, "--temperature", "-1")
    assert (status, out) == (2, "")
    assert err.count("temperature is -1.0") == 1


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
    chat = Chat(model, Manner("plain"), {"max_tokens": 30, "seed": 1})
    chat.line("To be, or not to be, that is the question. " * 3)
    whole = ran[0]
    ran.clear()
    chat.line("Hm")
    assert ran[0] < whole / 2
    assert "stopped after" in capsys.readouterr().err


# ---- commands, options and blocks ----


def test_a_block_is_one_message(tmp_path):
    path = tmp_path / "talk.json"
    lines = ['"""one', "two", 'three"""', '"""short"""', f"/save {path}", '"""open', "end"]
    status, _, err = piped(*PLAIN, "-n", "3", text="\n".join(lines))
    assert status == 0
    assert "the block does not end" in err
    said = [m["content"] for m in json.loads(path.read_text()) if m["role"] == "user"]
    assert said == ["one\ntwo\nthree", "short"]


def test_undo_regen_and_load(tmp_path):
    first, second, third = (tmp_path / f"{i}.json" for i in range(3))
    lines = ["/undo", "One", "Two", f"/save {first}", "/regen", f"/save {second}", "/undo", "/undo",
             f"/load {first}", "/undo", f"/save {third}", "/quit", "never"]  # fmt: skip
    status, out, err = piped(*PLAIN, "-n", "6", text="\n".join(lines))
    assert status == 2
    assert err.count("there is no message yet") == 1
    one, two, three = (json.loads(p.read_text()) for p in (first, second, third))
    assert [m["content"] for m in one if m["role"] == "user"] == ["One", "Two"]
    assert two[:3] == one[:3]
    # the answer is drawn anew, with the next seed
    model = tl.load()
    want = model.chat(one[:3], max_tokens=6, seed=3, template="plain").text.strip()
    assert two[3] == {"role": "assistant", "content": want} != one[3]
    assert three == one[:2]
    assert len(out.splitlines()) >= 3
    assert "never" not in out


def test_load_of_something_else(tmp_path):
    bad = tmp_path / "bad.json"
    for text in ("{}", "[3]", '[{"role": "user"}]', "x"):
        bad.write_text(text)
        status, _, err = piped(*PLAIN, "-n", "3", text=f"/load {bad}\n/load\n/load /no/file\nHi")
        assert status == 2
        assert "holds no conversation" in err or "Expecting value" in err
        assert "/load has no path" in err
        assert "No such file" in err
        assert "Traceback" not in err


def test_set_stats_and_model():
    lines = ["/stats", "/set", "/set temperature 0", "/set min-p 0.2", "/set top_k nine",
             "/set x 1",
             "/set top_p 3", "Hi", "/set temperature", "Hi", "/stats", "/model", "/model demo",
             "/model /no/file", "Hi"]  # fmt: skip
    status, out, err = piped(*PLAIN, "-n", "5", "--stats", text="\n".join(lines))
    assert status == 2
    for text in ("there is no answer yet", "max_tokens 5", "temperature is 0", "min_p is 0.2",
                 "--top-k is 'nine'; expected int", "no option x; expected one of max_tokens",
                 "top_p is 3", "temperature is the default", "tokens/s; prompt:", "context: ",
                 "template: plain; context: 512 tokens", "/no/file"):  # fmt: skip
        assert text in err, text
    assert err.count("tokens/s; prompt:") == 4
    assert len(out.splitlines()) >= 3


def test_the_oldest_turns_are_dropped_aloud(tmp_path):
    path = tmp_path / "talk.json"
    lines = [f"To be, or not to be, that is question {i}. " * 4 for i in range(9)]
    lines.append(f"/save {path}")
    status, _, err = piped(*PLAIN, "-n", "20", "--system", "Be brief.", text="\n".join(lines))
    assert status == 0, err
    assert "the context of 512 tokens is full: the model no longer sees the oldest" in err
    assert len(json.loads(path.read_text())) == 19  # the file has them all
    status, _, err = piped(*PLAIN, "-n", "20", "--on-full", "stop", text="\n".join(lines))
    assert status == 2
    assert "the context is full: the prompt has" in err
    # the answers are those of the shorter conversation
    chat = Chat(tl.load(), Manner("plain"), {"max_tokens": 20, "seed": 1}, "Be brief.")
    for line in lines[:-1]:
        chat.line(line)
    kept = chat.messages[:1] + chat.messages[1 + chat._dropped : -1]
    want = tl.load().chat(kept, max_tokens=20, seed=9, template="plain").text.strip()
    assert chat.messages[-1]["content"] == want
    assert chat._dropped > 0


def test_answers_as_json(tmp_path):
    (tmp_path / "system.txt").write_text("Be brief.\n")
    file = ("--system-file", str(tmp_path / "system.txt"))
    status, out, err = piped(*PLAIN, "-n", "5", "--json", *file, "--min-p", "0.1")
    assert status == 0, err
    first, second = map(json.loads, out.splitlines())
    assert first["stop_reason"] == "length"
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Good morrow!"},
    ]
    want = tl.load().chat(messages, max_tokens=5, seed=1, min_p=0.1, template="plain")
    assert first["ids"] == want.ids
    assert second["prompt_ids"] != first["prompt_ids"]


def test_help_lists_every_command(capsys):
    chat = Chat(tl.load(), Manner("plain"), {"max_tokens": 3})
    chat.line("/help")
    shown = capsys.readouterr().err
    for name, command in COMMANDS.items():
        assert f"/{name}" in shown
        assert command.help.endswith(".")
        assert command.help in shown


@pytest.mark.parametrize(
    ("pieces", "width", "want"),
    [
        (["To be", ", or not", " to be"], 10, "To be, or\nnot to be"),
        (["a" * 25], 10, "a" * 10 + "\n" + "a" * 10 + "\n" + "a" * 5),
        (["one two\n", "  three"], 10, "one two\n  three"),
        (["one  two   three"], 10, "one  two\nthree"),
        (["漢字漢字漢字漢字"], 10, "漢字漢字漢\n字漢字"),
        (["one two three"], 0, "one two three"),
        (["12345 6789"], 10, "12345 6789"),
        (["e\u0301" * 12], 10, "e\u0301" * 10 + "\n" + "e\u0301" * 2),
    ],
)
def test_words_are_wrapped(pieces, width, want):
    written = []
    wrapper = Wrapper(written.append, width)
    for piece in pieces:
        wrapper.feed(piece)
    wrapper.finish()
    assert "".join(written) == want


# ---- a terminal ----


@pytest.fixture
def terminal(tmp_path):
    pytest.importorskip("pty")
    started = []

    def start(*arguments, **options):
        started.append(Terminal(arguments, XDG_STATE_HOME=str(tmp_path / "state"), **options))
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


def test_a_paste_is_one_message(terminal, tmp_path):
    pytest.importorskip("readline")
    path = tmp_path / "talk.json"
    t = terminal(*PLAIN, "-n", "3", TERM="xterm")
    first = t.until("> ")
    assert "template: plain; context: 512 tokens; /help lists the commands" in first
    assert "model: " in first
    t.type("\x1b[200~one\ntwo\nthree\x1b[201~\n")
    t.until("(stopped after 3 tokens")
    t.type(f"/save {path}\n")
    t.until("(saved 2 messages")
    assert json.loads(path.read_text())[0]["content"] == "one\ntwo\nthree"
    t.type('"""four\n')
    t.until("... ")
    t.type('five"""\n')
    t.until("(stopped after 3 tokens")
    t.type(f"/save {path}\n")
    t.until("(saved 4 messages")
    assert json.loads(path.read_text())[2]["content"] == "four\nfive"
    t.type('"""dropped\n')
    t.until("... ")
    time.sleep(0.3)
    t.type("\x03")
    t.until("> ")
    t.type("/quit\n")
    assert t.status() == 0


def test_an_answer_is_wrapped_at_the_edge(terminal):
    t = terminal(*PLAIN, "-n", "60", columns=30)
    t.until("> ")
    t.type("Good morrow!\n")
    t.until("Good morrow!\n")
    answer = t.until("(stopped after").removesuffix("(stopped after")
    _, [whole] = conversation(["Good morrow!"], 1, 60)
    assert answer.split() == whole.split()  # no word is cut
    assert max(map(len, answer.splitlines())) <= 30
    assert len(answer.splitlines()) > len(whole.strip().splitlines())
    t.type("/quit\n")
    assert t.status() == 0
