"""Large files: memory holds a few tensors of them, and a killed process leaves no half file."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tinyllm as tl
from testkit import sparse
from testkit.models import random_llama, write

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process")
PEAK = """
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
before = peak()
"""


def python(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(tl.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys, tinyllm as tl\n{code}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def rise(call, *arguments):
    """Return by how many bytes the peak of the memory of a new process rises."""
    code = f"tl.load('demo')\n{PEAK}\n{call}\nprint(peak() - before)"
    with python(code, *arguments) as process:
        out, _ = process.communicate()
    assert process.returncode == 0
    return int(out) * 1024


CONVERT = "tl.convert(sys.argv[1], sys.argv[2], {dtype!r}, progress=False)"
QUANTIZE = "tl.quantize(sys.argv[1], sys.argv[2], {type!r}, progress=False)"


@linux
def test_memory_holds_a_few_tensors(tmp_path):
    total = sparse.checkpoint(tmp_path, layers=18, width=1024, inner=2048, shards=3)
    assert total > 350e6
    full, small = tmp_path / "full.gguf", tmp_path / "small.gguf"
    assert rise(CONVERT.format(dtype="auto"), tmp_path, full) < 60e6
    assert full.stat().st_size > total
    assert rise(QUANTIZE.format(type="Q8_0"), full, small) < 60e6
    assert small.stat().st_size > total / 2
    assert rise(QUANTIZE.format(type="BF16"), full, small) < 60e6  # every tensor is copied
    assert small.stat().st_size == full.stat().st_size


@linux
@pytest.mark.nightly
@pytest.mark.slow
def test_five_gigabytes_within_one(tmp_path):
    total = sparse.checkpoint(
        tmp_path, layers=24, width=3072, inner=8192, vocab=32000, shards=5, written=1 << 20
    )
    assert total > 5e9
    full, small = tmp_path / "full.gguf", tmp_path / "small.gguf"
    peaks = {
        "convert": rise(CONVERT.format(dtype="auto"), tmp_path, full),
        "quantize": rise(QUANTIZE.format(type="Q4_K_M"), full, small),
    }
    print(f"{total / 1e9:.2f} GB: " + ", ".join(f"{k} {v / 1e6:.0f} MB" for k, v in peaks.items()))
    assert full.stat().st_size > 5e9
    assert max(peaks.values()) < 900e6  # and about 50 MB for Python and NumPy


def kill_at_random_moments(folder, call, source, out, kills):
    """Kill a call many times; return what is in the folder after the next one, which is not."""
    with python(f"print(flush=True)\n{call}", source, out) as process:
        process.stdout.readline()
        start = time.monotonic()
        assert process.wait() == 0
    usual, expected = time.monotonic() - start, out.read_bytes()
    chance, killed = random.Random(0), 0
    for _ in range(kills):
        out.unlink(missing_ok=True)
        with python(f"print(flush=True)\n{call}", source, out) as process:
            process.stdout.readline()  # the imports are done
            time.sleep(chance.uniform(0, usual))
            process.send_signal(signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
        assert not out.exists() or out.read_bytes() == expected
    assert killed > kills / 2  # the others were faster
    with python(call, source, out) as process:
        assert process.wait() == 0
    assert out.read_bytes() == expected
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="needs locks that end with their process")
@pytest.mark.parametrize(
    "kills", [5, pytest.param(50, marks=[pytest.mark.nightly, pytest.mark.slow])]
)
def test_killed_processes_leave_no_half_file(tmp_path, kills):
    (tmp_path / "folder").mkdir()
    sparse.checkpoint(tmp_path / "folder", layers=4, width=512, inner=1024)
    outs = tmp_path / "outs"
    outs.mkdir()
    call = CONVERT.format(dtype="Q8_0")
    out = outs / "full.gguf"
    assert kill_at_random_moments(outs, call, tmp_path / "folder", out, kills) == ["full.gguf"]
    call, small = QUANTIZE.format(type="Q4_K_M"), outs / "small.gguf"
    left = kill_at_random_moments(outs, call, out, small, kills)
    assert left == ["full.gguf", "small.gguf"]


def test_pages_of_a_weight_are_read_again(tmp_path):
    metadata, tensors = random_llama("F16", layers=2, vocab=64)
    weights = tl.GGUF(write(tmp_path / "m.gguf", metadata, tensors)).tensors
    for weight in weights.values():
        before = weight.raw.copy()
        weight.forget()
        assert (weight.raw == before).all()
    copy = tl.GGUF((tmp_path / "m.gguf").read_bytes()).tensors["token_embd.weight"]
    copy.forget()  # nothing is mapped
    assert (copy.raw == weights["token_embd.weight"].raw).all()
