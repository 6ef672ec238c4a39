"""The day of somebody who chats in a terminal."""

import json
import time

import pytest

from testkit.terminal import Terminal

pytest.importorskip("jinja2")
pytest.importorskip("pty")
pytest.importorskip("readline")


@pytest.fixture
def start(tmp_path):
    started = []

    def begin(*arguments, columns=40):
        more = {"XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "xterm"}
        started.append(Terminal(("chat", "--template", "plain", *arguments), columns, **more))
        return started[-1]

    yield begin
    for one in started:
        one.close()


def messages(path):
    return json.loads(path.read_text())


def test_the_day(start, tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    t = start("--seed", "1", "-n", "24", "--system", "Be brief.", "--stats")
    first = t.until("/help lists the commands")
    for text in ("model: ", "template: plain", "context: 512 tokens"):
        assert text in first.replace("\n", "")

    # a paste with several lines is one message, and so is a block
    t.until("> ")
    t.type("\x1b[200~Here is a letter.\nIt has lines.\n\nYours\x1b[201~\n")
    t.until("tokens/s; prompt: ")  # --stats
    t.until("> ")
    t.type('"""And a poem:\n')
    t.until("... ")
    t.type('roses are red"""\n')
    t.until("tokens/s; prompt: ")
    t.until("> ")
    t.type(f"/save {one}\n")
    t.until("(saved 5 messages")
    said = [m["content"] for m in messages(one) if m["role"] == "user"]
    assert said == ["Here is a letter.\nIt has lines.\n\nYours", "And a poem:\nroses are red"]
    assert messages(one)[0] == {"role": "system", "content": "Be brief."}

    # another answer; then the message is taken back
    t.until("> ")
    t.type("/regen\n")
    t.until("tokens/s; prompt: ")
    t.until("> ")
    t.type(f"/save {two}\n")
    t.until("(saved 5 messages")
    assert messages(two)[:4] == messages(one)[:4]
    assert messages(two)[4] != messages(one)[4]
    t.until("> ")
    t.type("/undo\n")
    t.until("(removed your last message")
    t.until("> ")
    t.type("/set temperature 0\n")
    t.until("(temperature is 0)")
    t.until("> ")
    t.type("/set temprature 1\n")
    t.until("(no option temprature; expected one of")
    t.until("> ")
    t.type(f"/load {one}\n")
    t.until("(loaded 5 messages")
    t.until("> ")
    t.type("/stats\n")
    t.until("context: ")
    t.until("> ")
    t.type("/quit\n")
    assert t.status() == 0


def test_a_long_day(start, tmp_path):
    """The context is full: the oldest turns go, aloud, and Ctrl-C stops one answer only."""
    path = tmp_path / "talk.json"
    t = start("--seed", "1", "-n", "16", columns=32)
    dropped = False
    for turn in range(6):
        t.until("> ")
        t.type(f"{turn}: " + "to be or not to be " * 14 + "\n")
        text = t.until("(stopped after", "no longer sees", "> ")
        dropped = dropped or "no longer sees" in text
    assert dropped or "no longer sees" in t.until("(stopped after")
    t.until("> ")
    t.type("/set max_tokens 400\n")
    t.until("(max_tokens is 400)")
    t.until("> ")
    t.type("Tell me a story.\n")
    t.until("Tell me a story.\n")
    t.until("a")  # the answer has begun
    time.sleep(0.3)
    t.type("\x03")
    answer = t.until("(stopped)")
    assert max(len(line) for line in answer.splitlines()) <= 32
    t.until("> ")
    t.type(f"/save {path}\n")
    t.until("(saved")
    assert messages(path)[-2]["content"] == "Tell me a story."
    t.until("> ")
    t.type("\x04")
    assert t.status() == 0
