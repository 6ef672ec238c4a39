"""A file that becomes shorter while it is mapped: an exception that names it, and no signal."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from testkit import models

pytestmark = pytest.mark.skipif(os.name == "nt", reason="nobody can shorten a mapped file there")

PROGRAM = """
import os, sys
import numpy as np
import tinyllm as tl
from tinyllm import _core
P, OUT = sys.argv[1:]
def raises(use, path=P):
    try:
        use()
    except OSError as error:
        assert error.filename == path, error
        assert "became shorter" in str(error), error
    else:
        raise SystemExit("no exception")
def cut(size=20000, path=P):
    os.truncate(path, size)
"""


def run(code, *arguments, status=0):
    """Run code in a process of its own, which may die."""
    program = PROGRAM + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done


@pytest.fixture
def path(tmp_path):
    return models.write(tmp_path / "m.gguf", *models.random_llama("Q8_0"))


USES = {
    "a run": "m = tl.load(P); cut(); raises(lambda: m.logits([1, 2, 3]))",
    "threads": "m = tl.load(P, threads=4); cut(); raises(lambda: m.logits(list(range(64))))",
    "only the last matrix": """
        m = tl.load(P, threads=4)
        m.logits(list(range(64)))
        cut(os.path.getsize(P) - 4096)
        raises(lambda: m.logits(list(range(64))))
        """,
    "a session keeps its state": """
        m = tl.load(P, threads=2)
        s = m.session()
        s.eval([1, 2, 3])
        before = [values.copy() for values in s.core.cache(0)]
        cut()
        for _ in range(3):  # zeros stay until the file is opened again
            raises(lambda: s.eval([4, 5]))
        assert s.tokens == [1, 2, 3]
        assert all(map(np.array_equal, before, s.core.cache(0)))
        """,
    "weights": """
        w = list(tl.GGUF(P).tensors.values())[-1]
        cut()
        for use in (w.numpy, lambda: w.numpy(dtype="float64"), lambda: w[0], lambda: w.raw,
                    w.check, lambda: np.asarray(w)):
            raises(use)
        """,
    "a view": """
        w = list(tl.GGUF(P).tensors.values())[-1]
        raw = w.raw
        cut()
        assert not raw.any()
        raises(w.check)
        """,
    "metadata": "g = tl.GGUF(P); cut(0); raises(lambda: dict(g.metadata.items()))",
    "writing": "g = tl.GGUF(P); cut(); raises(lambda: tl.write_gguf(OUT, {}, g.tensors))",
    "other files go on": """
        import shutil
        shutil.copy(P, OUT)
        other, lost = tl.load(OUT, threads=2), tl.load(P, threads=2)
        want = other.logits([1, 2, 3])
        cut()
        raises(lambda: lost.logits([1, 2, 3]))
        assert np.array_equal(other.logits([1, 2, 3]), want)
        for _ in range(20):  # addresses are used again
            del lost
            lost = tl.load(OUT)
            assert np.array_equal(lost.logits([1, 2, 3]), want)
        """,
    "a trace": """
        tl.load().trace([1, 2]).save(OUT)
        t = tl.read(OUT)
        kept = t["output"]
        cut(9000, OUT)
        raises(lambda: [t[name] for name in t], OUT)
        assert kept.any()
        """,
    "not mapped": "m = tl.load(P, mmap=False); w = m.logits([1]); cut(); m.logits([1])",
}


@pytest.mark.parametrize("name", USES)
def test_what_reads_a_lost_part_raises(name, path, tmp_path):
    run(USES[name], path, tmp_path / "out.safetensors")


def test_a_checkpoint_of_llama2c(tmp_path):
    header = np.array([64, 256, 2, 4, 4, 300, 64], np.int32)
    heads, width, ffn, layers, vocab = 4, 64, 256, 2, 300
    count = vocab * width + layers * (width * 2 + 4 * width * width + 3 * width * ffn) + width
    count += 64 * (width // heads)
    path = tmp_path / "m.bin"
    path.write_bytes(header.tobytes() + np.full(count, 0.1, np.float32).tobytes())
    code = "m = tl.load(P); m.logits([1]); cut(8192); raises(lambda: m.logits([1]))"
    run(code, path, tmp_path / "out")


def test_other_signals_are_left_to_others(path, tmp_path):
    arguments = path, tmp_path / "out"
    send = "os.kill(os.getpid(), signal.SIGBUS)"
    load = "import signal\n{}\nm = tl.load(P)\n" + send
    run(load.format(""), *arguments, status=-7)
    mine = "signal.signal(signal.SIGBUS, lambda *_: print('mine'))"
    assert run(load.format(mine), *arguments).stdout == "mine\n"
    run(load.format("signal.signal(signal.SIGBUS, signal.SIG_IGN)"), *arguments)
    other = """
        import mmap
        m = tl.load(P)
        with open(OUT, "wb") as file:
            file.write(bytes(100000))
        with open(OUT, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        os.truncate(OUT, 0)
        data[50000]
        """
    run(other, *arguments, status=-7)
    faulty = "import faulthandler\nfaulthandler.enable()\n"
    done = run(faulty + textwrap.dedent(other), *arguments, status=-7)
    assert "Bus error" in done.stderr
    both = faulty + textwrap.dedent(USES["a run"])
    assert run(both, *arguments).stderr == ""
