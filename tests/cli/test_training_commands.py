"""The commands that make, change and compare models."""

import io
import json

import pytest

import tinyllm as tl
from tinyllm.cli.main import main

TEXT = "the cat sat on the mat; " * 40 + "\n"
SHAPE = "--layers 1 --width 16 --heads 2 --context 8".split()


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder with text.txt, and returns what it prints."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)

    def run(*arguments, status=0):
        assert main([str(a) for a in arguments]) == status
        captured = capsys.readouterr()
        return captured.err if status else captured.out

    return run


def test_from_an_empty_folder_to_a_wider_model(told):
    assert "1 layers of width 16, 13 tokens" in told("init", "new.gguf", "text.txt", *SHAPE)
    start = "train text.txt m.gguf --start new.gguf --steps 10 --batch 4".split()
    assert "10 steps" in told(*start)
    assert "--width is given" in told(*start, "--width", "8", status=2)
    assert "2 layers" in told("insert-layer", "m.gguf", "m2.gguf", "--at", "0")
    assert "3 heads" in told("insert-head", "m2.gguf", "m2.gguf")
    assert "the moments are zero" in told("reset-optimizer", "m2.gguf")
    assert "14 steps" in told("train", "text.txt", "m2.gguf", "--resume", "--steps", "14")
    history = [event["made"] for event in json.loads(told("log", "m2.gguf", "--json"))["history"]]
    assert history == ["init", "train", "insert-layer", "insert-head", "reset-optimizer", "resume"]
    assert [e["made"] for e in json.loads(told("info", "m2.gguf", "--json"))["history"]] == history
    assert "tokens, context 16" in told("init-with", "m2.gguf", "m3.gguf", "--context", "16")
    assert "269 tokens" in told(*"init-with m2.gguf m3.gguf text.txt --tokenizer bpe:300".split())
    assert "at is 9" in told("insert-layer", "m.gguf", "m3.gguf", "--at", "9", status=2)


def test_init_asks(told, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("2\nwide\n32\n\n8\nlearned\n\n5\n"))
    out = told("init", "new.gguf", "text.txt", "--interactive", "--width", "16")
    assert "2 layers of width 32, 13 tokens" in out
    config = tl.load("new.gguf").config
    assert (config.architecture, config.heads, config.context_length) == ("gpt2", 4, 8)


def test_compare(told):
    train = ["train", "text.txt", "m.gguf", *SHAPE, "--batch", "4"]
    told(*train, "--steps", "5")
    told("init-with", "m.gguf", "same.gguf", "--context", "8")
    told(*train[:2], "more.gguf", "--start", "same.gguf", "--steps", "5")
    out = told("compare", "same.gguf", "more.gguf", "--tokens", "--limit", "3")
    assert "init-with" in out
    assert "and 9 that have moved more" in out
    assert "head 1 moved" in out
    found = json.loads(told("compare", "same.gguf", "more.gguf", "--json"))
    assert len(found["weights"]["tensors"]) == 12
    assert found["weights"]["tensors"][0]["relative"] > 0
    assert len(found["heads"]["blk.0.attn_q.weight"]) == 2
    assert [event["made"] for event in found["history"]["common"]] == ["train", "init-with"]
    assert "--limit is 0" in told("compare", "m.gguf", "m.gguf", "--limit", "0", status=2)


def test_tokenizers(told):
    arguments = ["--count", "300", "--reserved", "<|x|>", "--lowercase"]
    assert "tokens" in told("train-bpe", "text.txt", "t.gguf", *arguments)
    tokens = [json.loads(line) for line in told("dump-tokenizer", "t.gguf", "--json").splitlines()]
    assert tokens[1] == {"id": 1, "type": "user_defined", "text": "<|x|>", "stored": "<|x|>"}
    assert tokens[-1]["id"] == len(tokens) - 1
    assert "user_defined" in told("dump-tokenizer", "t.gguf")
    out = told("count-tokens", "text.txt", "-m", "t.gguf", "--rows", "2")
    count = len(tl.load_tokenizer("t.gguf").encode(TEXT))
    assert f"{count:,} tokens of {len(TEXT)} bytes" in out
    assert "10 steps" in told(
        *["train", "text.txt", "m.gguf", *SHAPE, "--steps", "10", "--tokenizer", "t.gguf"]
    )
    assert "whole" in told("cluster-tokens", "m.gguf", "--count", "3", "--heads")


def test_chunks(told):
    out = told("score", "--chunks", "3", "--chunk-size", "8", "-f", "text.txt")
    losses = [float(line.split()[1]) for line in out.splitlines()[1:]]
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)
    ids = tl.load().tokenizer.encode(TEXT)
    chunks = tl.score_chunks(tl.load(), TEXT, size=8)
    assert len(chunks) == len(ids) // 8
    for chunk in chunks[:3]:
        score = tl.load().score(ids[chunk.start : chunk.start + 8])
        assert chunk.loss == -score.mean
    assert "expected at least 8" in told(
        "score", "ab", "--chunks", "1", "--chunk-size", "8", status=2
    )
