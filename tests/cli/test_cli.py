"""The command line, in this process and in processes of its own."""

import subprocess
import sys

import pytest

from testkit import models
from tinyllm.cli.main import main


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "tinyllm", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **options,
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return models.write(tmp_path_factory.mktemp("cli") / "m.gguf", *models.random_llama("Q4_K"))


def test_generate(capsys):
    assert main(["generate", "ROMEO:", "-n", "8", "--seed", "1"]) == 0
    first = capsys.readouterr().out
    assert main(["generate", "--seed", "1", "-n", "8", "--threads", "1", "--", "ROMEO:"]) == 0
    assert capsys.readouterr().out == first
    assert main(["generate", "--echo", "ROMEO:", "-n", "8", "--seed", "1"]) == 0
    assert capsys.readouterr().out == "ROMEO:" + first


@pytest.mark.parametrize("prompt", [(), ("-",)])
def test_a_prompt_from_a_pipe(prompt):
    piped = run("generate", *prompt, "-n", "8", "--seed", "1", input="ROMEO:")
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == run("generate", "ROMEO:", "-n", "8", "--seed", "1").stdout


def test_trace(capsys):
    assert main(["trace", "ROMEO:", "--top", "3"]) == 0
    out = capsys.readouterr().out
    assert "blk.0.attn_q_rope" in out
    assert out.index("tokens:") < out.index("next token:") < out.index("token_embd")
    assert main(["trace", "ROMEO:", "-c", "blk.0.ffn_*", "-c", "output_norm"]) == 0
    out = capsys.readouterr().out
    assert "blk.0.ffn_up" in out
    assert "blk.0.attn_q" not in out
    assert "next token:" in out


def test_trace_writes_a_page(capsys, tmp_path):
    page = tmp_path / "t.html"
    assert main(["trace", "ROMEO:", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "next token:" in out
    assert f"{page}: " in out
    assert '"parts":{"names"' in page.read_text("utf-8")


def test_info(capsys, path):
    assert main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    for text in ("general.architecture", "blk.0.attn_q.weight", "Q4_K", "head_size", "21 tensors"):
        assert text in out
    assert main(["info", "demo", "--short"]) == 0
    assert "tokenizer.ggml.tokens" in capsys.readouterr().out


def test_info_about_a_file_that_cannot_run(capsys, tmp_path):
    metadata, tensors = models.random_llama("F32", layers=1)
    metadata["general.architecture"] = "rwkv6"
    file = models.write(tmp_path / "m.gguf", metadata, tensors)
    assert main(["info", str(file)]) == 0
    assert "'rwkv6'" in capsys.readouterr().out


def test_weights(capsys, path):
    assert main(["weights", str(path), "blk.0.attn_q.weight"]) == 0
    out = capsys.readouterr().out
    assert "(256, 256)" in out
    assert "std" in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("info", "/no/such/file"), "No such file"),
        (("weights", "demo", "blk.0.attn_qq.weight"), "the nearest are blk.0.attn_q.weight"),
        (("generate", "x", "-m", "/no/such/file"), "No such file"),
        (("generate", "x", "--threads", "0"), "threads is 0"),
        (("generate", "x", "--temperature", "-1"), "temperature"),
        (("trace", "x", "-c", "nothing"), "no tap matches 'nothing'"),
        (("info", __file__), "a text that begins with"),
    ],
)
def test_errors_are_one_line_on_stderr(arguments, text):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("tinyllm: ")
    assert text in done.stderr


def test_wrong_usage():
    assert run().returncode == 2
    assert run("fly").returncode == 2
    done = run("--help")
    assert done.returncode == 0
    commands = ("generate", "chat", "trace", "info", "weights", "convert", "quantize", "imatrix")
    for command in commands:
        assert command in done.stdout
        assert "usage" in run(command, "--help").stdout
    assert run("--version").stdout.startswith("tinyllm ")


def test_a_reader_that_goes_away():
    command = f"{sys.executable} -m tinyllm info demo | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
