"""`tinyllm train` and `tinyllm log`."""

import json

import pytest

import tinyllm as tl
from tinyllm.cli.main import main

TEXT = "the cat sat on the mat; " * 40 + "\n"


def test_train_and_log(tmp_path, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "model.gguf"
    text.write_text(TEXT)
    shape = "--layers 1 --width 16 --heads 2 --context 8 --batch 4 --threads 1".split()
    given = ["train", str(text), str(out), *shape, "--steps", "20", "--sample", "the"]
    assert main(given) == 0
    captured = capsys.readouterr()
    assert "20 steps, loss" in captured.out
    assert "weights; about" in captured.err
    assert "step 2 of 20: loss" in captured.err
    assert "tokens/s" in captured.err
    assert tl.load(out).logits("the").shape == (3, 13)
    assert main(["train", str(text), str(out), "--resume", "--steps", "30"]) == 0
    assert "30 steps" in capsys.readouterr().out
    assert main(["log", str(out), "--rows", "3"]) == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 4
    assert main(["log", str(out), "--json"]) == 0
    log = json.loads(capsys.readouterr().out)
    assert len(log["loss"]) == log["step"] == 30
    assert [event["made"] for event in log["history"]] == ["train", "resume"]
    assert main(["log", str(out), "--rows", "0"]) == 2
    assert main(["log", str(text)]) == 2
    assert "cannot be resumed" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "none.txt"), str(out)]) == 2


def test_plot_of_the_loss():
    pytest.importorskip("matplotlib").use("agg")
    run = tl.train(TEXT, layers=1, width=8, heads=2, context=8, batch=2, steps=4, progress=False)
    axes = tl.plot.loss(run, smooth=2)
    assert [len(line.get_xdata()) for line in axes.lines] == [3, 4]
    with pytest.raises(ValueError, match="expected 1 to 4"):
        tl.plot.loss(run, smooth=5)
