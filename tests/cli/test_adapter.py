"""The option --adapter, and adapters in `tinyllm info`."""

import re

import pytest

import tinyllm as tl
from testkit import adapters
from tinyllm.cli.common import adapter_and_scale
from tinyllm.cli.main import main


@pytest.fixture
def file(tmp_path):
    demo = tl.load()
    names = ["blk.0.attn_q.weight", "blk.3.ffn_down.weight"]
    return adapters.write(tmp_path / "a.gguf", adapters.random_adapter(demo, names))


def out(capsys, *words):
    assert main(list(map(str, words))) == 0
    return capsys.readouterr().out


def test_commands_use_adapters(file, capsys):
    model = tl.load(adapters=[(file, 0.5)])
    words = ("generate", "ROMEO:", "-n", 12, "--temperature", 0, "--adapter", f"{file}:0.5")
    assert out(capsys, *words).strip() == model.generate("ROMEO:", 12, temperature=0).text.strip()
    shown = out(capsys, "trace", "ROMEO:", "-c", "*", "--adapter", file)
    assert "attn_q.lora_a" in shown
    twice = out(capsys, "trace", "ROMEO:", "-c", "*", "--adapter", file, "--adapter", file)
    assert "attn_q.lora_a_2" in twice


def test_lora_trains_an_adapter(tmp_path, capsys):
    text, file = tmp_path / "t.txt", tmp_path / "a.gguf"
    text.write_text("one two three four five six seven eight nine ten " * 20)
    words = ["lora", text, file, "--rank", 2, "--steps", 4, "--batch", 2, "--context", 8]
    words += ["--target", "attn_q", "--target", "blk.1.*", "--threads", 1, "--sample", "one two"]
    assert main(list(map(str, words))) == 0
    captured = capsys.readouterr()
    assert "4 steps, loss" in captured.out
    assert "step 4 of 4: loss" in captured.err
    assert re.search("['\"]one two", captured.err)  # quotes as in a repr
    assert len(tl.Adapter(file).tensors) == 7 + 3
    more = ["lora", text, file, "--steps", 6, "--resume"]
    assert "6 steps, loss" in out(capsys, *more)
    assert "mean loss" in out(capsys, "log", file)
    assert main(["lora", str(text), str(file), "--target", "q_proj"]) == 2
    assert "fits no tensor" in capsys.readouterr().err


def test_info_shows_an_adapter(file, capsys, tmp_path):
    shown = out(capsys, "info", file)
    assert "a LoRA adapter for a model of the architecture llama" in shown
    assert "blk.3.ffn_down.weight     3       2  F32" in shown
    assert "adapter.lora.alpha" in shown
    bad = tmp_path / "bad.gguf"
    tl.write_gguf(bad, tl.GGUF(file).metadata.typed(), {})
    assert "tinyllm cannot use this adapter" in out(capsys, "info", bad)


def test_an_option_with_and_without_a_scale(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert adapter_and_scale("a.gguf") == ("a.gguf", 1.0)
    assert adapter_and_scale("a.gguf:-0.5") == ("a.gguf", -0.5)
    assert adapter_and_scale("C:/a.gguf") == ("C:/a.gguf", 1.0)
    (tmp_path / "a:2").touch()
    assert adapter_and_scale("a:2") == ("a:2", 1.0)


def test_a_wrong_adapter_is_one_line(file, capsys):
    assert main(["generate", "a", "--adapter", f"{tl.load().path}"]) == 2
    assert "general.type is" in capsys.readouterr().err
