"""The progress bar: shown on a terminal if a run takes long, and silent otherwise."""

import io
import os
import pty
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tinyllm
from testkit import models
from tinyllm.base import progress
from tinyllm.base.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    def watch():  # called inside the test, because pytest replaces stderr for each test
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(progress, "PATIENCE", 0)
        return stream

    return watch


@pytest.fixture
def without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)


def test_a_plain_bar(terminal, without_tqdm):
    stream = terminal()
    with Progress(4, "working") as bar:
        for _ in range(4):
            bar.add(1)
    text = stream.getvalue()
    assert "working [#######.......................]  25 %" in text
    assert "100 %" in text
    assert text.endswith("\r")
    assert text.rsplit("\r", 2)[1].strip() == ""  # the bar is erased at the end


def test_tqdm_when_it_is_there(terminal):
    pytest.importorskip("tqdm")
    stream = terminal()
    with Progress(1.0, "working") as bar:
        bar.to(0.25)
        time.sleep(0.2)  # tqdm draws ten times a second
        bar.to(0.5)
    assert "working:  50%" in stream.getvalue()


def test_silent_when_quick_or_not_watched_or_told_to(terminal, without_tqdm, monkeypatch):
    watched = terminal()
    with Progress(1, "x", enabled=False) as bar:
        bar.add(1)
    monkeypatch.setattr(progress, "PATIENCE", 5)
    with Progress(1, "x") as bar:
        bar.add(1)
    assert watched.getvalue() == ""
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(progress, "PATIENCE", 0)
        with Progress(1, "x") as bar:
            bar.add(1)
            assert not bar.shown
        assert stream is None or stream.getvalue() == ""


def test_a_long_prompt_reports_rising_fractions(tmp_path):
    model = models.random_model(tmp_path, layers=6, context=4096)
    ids = np.tile(models.random_ids(model, 1500), 2).astype(np.int32)
    seen = []
    want = model.logits(ids)
    from tinyllm import _core

    got = model.core.forward(
        (_core.Session(model.core),), (ids,), np.arange(3000), threads=1, progress=seen.append
    )
    assert np.array_equal(got, want)
    assert len(seen) >= 2
    assert seen == sorted(seen)
    assert 0 <= seen[0] < seen[-1] <= 1


def test_an_error_in_progress_comes_out_and_leaves_the_session_alone(tmp_path):
    from tinyllm import _core

    model = models.random_model(tmp_path, layers=6, context=4096)
    ids = np.tile(models.random_ids(model, 1500), 2).astype(np.int32)
    session = _core.Session(model.core)

    def fail(fraction):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        model.core.forward((session,), (ids,), [0], threads=1, progress=fail)
    assert len(session) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_on_a_real_terminal(monkeypatch, without_tqdm):
    ours, theirs = pty.openpty()
    monkeypatch.setattr(progress, "PATIENCE", 0)
    with os.fdopen(theirs, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress(2, "working") as bar:
            assert bar.shown
            bar.add(1)
        monkeypatch.undo()
        assert b"50 %" in os.read(ours, 1000)
    os.close(ours)


def test_a_bar_inside_a_bar_is_silent(terminal, without_tqdm):
    stream = terminal()
    with Progress(2, "outer") as outer:
        with Progress(2, "inner") as inner:
            inner.add(1)
            assert not inner.shown
        outer.add(1)

    def fail():
        with Progress(2, "again") as bar:
            bar.add(1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert Progress(1, "x").shown
    assert "inner" not in stream.getvalue()
    assert "again" in stream.getvalue()


NOTEBOOK = """
import tinyllm.base.progress as progress
progress.PATIENCE = 0
print("before")
with progress.Progress(4, "<counting>") as bar:
    bar.add(1)
    bar.add(1)
print("after", bar.shown)
"""


def test_in_a_notebook(monkeypatch, tmp_path):
    """A real kernel. The bar is updated in place, and nothing of it is left in the file."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    book = nbformat.v4.new_notebook()
    book.cells.append(nbformat.v4.new_code_cell(NOTEBOOK))
    seen = []

    class Client(nbclient.NotebookClient):
        def process_message(self, msg, cell, cell_index):
            if msg["msg_type"] in ("display_data", "update_display_data"):
                seen.append((msg["msg_type"], dict(msg["content"]["data"])))
            return super().process_message(msg, cell, cell_index)

    # the kernel is another process: it must find the same tinyllm as this one
    path = [str(Path(tinyllm.__file__).parents[1]), *filter(None, sys.path)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    Client(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [kind for kind, _ in seen] == ["display_data"] + ["update_display_data"] * 2
    assert seen[0][1]["text/plain"] == "<counting> 25 %"
    assert "&lt;counting&gt; <progress value='50' max='100'>" in seen[1][1]["text/html"]
    assert seen[2][1] == {}
    printed = [out.text for out in book.cells[0].outputs if out.output_type == "stream"]
    assert "".join(printed) == "before\nafter True\n"
    assert all(not out.data for out in book.cells[0].outputs if out.output_type == "display_data")
