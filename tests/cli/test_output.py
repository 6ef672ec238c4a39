"""What the commands write where output is closed, full, in another encoding, or a terminal."""

import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest

import tinyllm as tl
from testkit import models
from tinyllm.errors import printable
from tinyllm.files.model_file import DEMO

pty = pytest.importorskip("pty", reason="needs terminals")

BAD = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]")


def run(*arguments, command="exec {}", **options):
    words = " ".join(f"'{word}'" for word in (sys.executable, "-m", "tinyllm", *arguments))
    return subprocess.run(
        ["sh", "-c", command.format(words)],
        capture_output=True,
        timeout=120,
        check=False,
        **options,
    )


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A model with control characters wherever its file can have them."""
    metadata, tensors = models.random_llama("F32", layers=1)
    width = tensors["output_norm.weight"].shape[0]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), BAD, f"▁{BAD}"]
    random = np.random.default_rng(0)
    for name in ("token_embd.weight", "output.weight"):
        tensors[name] = random.standard_normal((len(tokens), width)).astype(np.float32)
    metadata |= {
        "general.name": f"a{BAD}",
        f"other.{BAD}": BAD,
        "list": [BAD, BAD],
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.zeros(len(tokens), np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3, *[6] * 256, 1, 3], np.int32),
        "tokenizer.chat_template": "{{ raise_exception('" + BAD + "') }}",
        f"tokenizer.chat_template.{BAD}": "{{ 1 }}",
    }
    metadata.pop("llama.vocab_size", None)
    return models.write(tmp_path_factory.mktemp("hostile") / "m.gguf", metadata, tensors)


def test_what_printable_escapes():
    assert printable("a\tb\nc é 漢 😀") == "a\tb\nc é 漢 😀"
    assert printable("\x00\x1b[2J\x7f\x9b\u202e\udcff") == r"\x00\x1b[2J\x7f\x9b\u202e\udcff"
    assert CONTROL.search(printable("".join(map(chr, range(0x2100))))) is None


def test_tables_and_errors_have_no_control_characters(hostile, tmp_path):
    pytest.importorskip("jinja2")
    model = tl.load(hostile)
    ids = [1, 259, 260]
    session = model.session()
    session.eval(ids)
    trace = model.trace(ids)
    file = tl.GGUF(hostile)
    shown = {
        "model": repr(model),
        "model table": str(model.table()),
        "session": repr(session) + str(session.table()),
        "trace": repr(trace) + str(trace.table()),
        "file": repr(file) + repr(file.metadata),
        "tokenizer": repr(model.tokenizer) + str(model.tokenizer.explain(BAD)),
        "lens": str(tl.lens(trace, model=model)),
        "plan": str(model.steps),
        "generation": repr(model.generate(ids, 3, seed=1)),
    }
    for name, text in shown.items():
        assert CONTROL.search(text) is None, (name, text)

    def unused():
        metadata, tensors = models.random_llama("F32", layers=1)
        extra = {f"odd{BAD}": np.zeros(2, np.float32)}
        tl.load(models.write(tmp_path / "odd.gguf", metadata, tensors | extra))

    def damaged():
        metadata, tensors = models.random_llama("F32", layers=1)
        tl.load(
            models.write(tmp_path / "d.gguf", metadata | {"general.architecture": BAD}, tensors)
        )

    def text():
        (tmp_path / "text").write_text(f"not a model {BAD}")
        tl.load(tmp_path / "text")

    for use in (
        unused,
        damaged,
        text,
        lambda: model.tokenizer.render_chat([{"role": "user", "content": "x"}]),
        lambda: model.tokenizer.render_chat([{"role": "user", "content": "x"}], template="none"),
        lambda: model.trace(ids, f"tap{BAD}"),
    ):
        with pytest.raises((tl.Error, ValueError, KeyError)) as error:
            use()
        assert CONTROL.search(str(error.value)) is None, str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii", "utf-16-le", "gbk"])
@pytest.mark.parametrize(
    "arguments", [("info", "demo"), ("trace", "né 漢"), ("generate", "--echo", "-n3", "né 漢")]
)
def test_an_encoding_without_the_characters(arguments, encoding):
    done = run(*arguments, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode(encoding)


@pytest.mark.parametrize("command", ["info", "trace", "weights", "generate", "chat"])
def test_hostile_files_on_the_command_line(command, hostile):
    arguments = {
        "info": ("info", hostile),
        "weights": ("weights", hostile, f"no{BAD}"),
        "trace": ("trace", "-m", hostile, BAD),
        "generate": ("generate", "-m", hostile, "-n", "5", "--seed", "1", "a"),
        "chat": ("chat", "-m", hostile),
    }[command]
    done = run(*map(str, arguments))
    assert done.returncode == (2 if command in ("weights", "chat") else 0), done.stderr
    out = done.stderr if command == "generate" else done.stdout + done.stderr
    assert CONTROL.search(out.decode()) is None


def test_text_is_exact_in_a_pipe_and_escaped_on_a_terminal():
    code = f"""
from tinyllm.cli.output import standard_streams, stream
with standard_streams():
    stream({BAD!r})
    stream("\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.decode() == BAD + "\n"
    here, there = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stdout=there, check=True)
    os.close(there)
    with open(here, "rb", buffering=0) as terminal:
        assert terminal.read(1000).decode() == printable(BAD) + "\r\n"


CLOSED = {
    "stdout closed": ("info demo", "exec {} >&-", 2, b"standard output is closed"),
    "stdout closed, text": ("generate a -n3", "exec {} >&-", 2, b"standard output is closed"),
    "stdout full": ("info demo", "exec {} >/dev/full", 2, b"No space left"),
    "text on a full disk": ("generate a -n3", "exec {} >/dev/full", 2, b"No space left"),
    "stderr closed": ("info /no/such/file", "exec {} 2>&-", 2, b""),
    "both closed": ("info demo", "exec {} >&- 2>&-", 2, b""),
    "all closed": ("generate a -n3", "exec {} <&- >&- 2>&-", 2, b""),
    "stdin closed": ("generate -n3", "exec {} <&-", 2, b"standard input is closed"),
    "stdin closed, chat": ("chat --template plain", "exec {} <&-", 2, b"standard input is closed"),
    "a reader that ends": ("info demo", "{} | head -c 10 >/dev/null", 0, b""),
    "a reader that never reads": ("info demo", "{} | true", 0, b""),
    "text for a reader that ends": (
        "generate a -n200 --seed 1",
        "{} | head -c 1 >/dev/null",
        0,
        b"",
    ),
    "help for a reader that ends": ("--help", "{} | true", 0, b""),
}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("name", CLOSED)
def test_output_that_cannot_be_written(name):
    arguments, command, status, error = CLOSED[name]
    if arguments.startswith("chat"):
        pytest.importorskip("jinja2")
    done = run(*arguments.split(), command=command)
    assert done.returncode == status, done.stderr
    assert error in done.stderr
    assert done.stderr.count(b"\n") == (1 if error else 0), done.stderr
    assert done.stdout == b""


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path):
    """A file that is written with number 2 would get whatever is written on standard error."""
    code = """
import os
from tinyllm.cli.output import _open_missing
os.close(0), os.close(2)
_open_missing()
assert os.open(os.devnull, os.O_RDONLY) > 2
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_prompt_that_is_not_text():
    done = run("generate", "-n2", "--seed=1", input=b"caf\xe9 \xff")
    assert (done.returncode, done.stderr) == (0, b"")


def test_warnings_are_one_line(tmp_path):
    metadata = tl.GGUF(DEMO).metadata.typed() | {"tokenizer.ggml.pre": f"new{BAD}"}
    tl.write_gguf(tmp_path / "m.gguf", metadata, tl.GGUF(DEMO).tensors)
    done = run("generate", "-m", str(tmp_path / "m.gguf"), "-n2", "a")
    assert done.returncode == 0
    assert done.stderr.startswith(b"tinyllm: warning: tokenizer.ggml.pre is 'new")
    assert CONTROL.search(done.stderr.decode()) is None


def test_warnings_have_no_control_characters(tmp_path):
    file = tl.GGUF(DEMO)
    odd = {f"odd{BAD}": np.zeros(2, np.float32)}
    for name, keys, tensors in (
        ("pre-tokenizer", {"tokenizer.ggml.pre": BAD}, {}),
        ("key", {f"llama.new{BAD}": 1}, {}),
        ("tensor", {}, odd),
    ):
        path = tmp_path / f"{name}.gguf"
        tl.write_gguf(path, file.metadata.typed() | keys, {**file.tensors, **tensors})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tl.load(path, strict=False)
        assert caught, name
        for warning in caught:
            assert CONTROL.search(str(warning.message)) is None, name
