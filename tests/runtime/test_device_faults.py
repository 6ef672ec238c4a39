"""A device on a bad day: calls that fail, memory that is used up, several processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from testkit import devices

pytestmark = [
    pytest.mark.skipif(not devices.listed(), reason="needs a device of OpenCL"),
    pytest.mark.skipif(sys.platform != "linux", reason="the library of faults is for Linux"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
]

SOURCE = Path(__file__).parents[1] / "c/opencl_faults.c"

BEGIN = """
import ctypes, gc, os, sys
import numpy as np
import tinyllm as tl

faults = ctypes.CDLL(os.environ["TINYLLM_OPENCL"])
calls_left, bytes_left, buffers = (
    ctypes.c_long.in_dll(faults, name) for name in ("calls_left", "bytes_left", "buffers")
)
status = ctypes.c_int.in_dll(faults, "status")
cpu = tl.load("demo", device="cpu")
ids = np.arange(300) % 200

def refused(call, error, *words):
    try:
        call()
    except error as problem:
        assert all(word in str(problem) for word in words), str(problem)
        return str(problem)
    raise AssertionError(f"expected {error}")
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults") / "libfaults.so"
    link = ["-Wl,--no-as-needed", "-l:libOpenCL.so.1", "-ldl"]
    command = ["cc", "-shared", "-fPIC", "-o", path, SOURCE, *link]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip(f"the library of faults cannot be built: {result.stderr[-300:]}")
    return path


def run(library, code):
    result = subprocess.run(
        [sys.executable, "-c", BEGIN + code],
        env={**os.environ, "TINYLLM_OPENCL": str(library), "TESTS": str(SOURCE.parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-500:] + result.stderr[-3000:]
    return result.stdout.split()


LOST = """
model = tl.load("demo", device="opencl:0")
context = ctypes.c_void_p.in_dll(faults, "newest").value
want = cpu.logits(ids[:40])
session = model.session()
session.eval(ids[:20])
failed = 0
for status.value in (-59, -36):
    for calls in (1, 2, 5, 20, 90, 300):
        calls_left.value = calls
        try:
            session.eval(ids[20:40], "all")
        except tl.DeviceError as problem:
            failed += 1
            assert f"failed with {status.value} (CL_" in str(problem), problem
            assert len(session) == 20
        else:
            session.rewind(20)
        calls_left.value = -1
        assert np.array_equal(session.eval(ids[20:40], "all"), want[20:]), calls
        session.rewind(20)
assert failed >= 8, failed
calls_left.value = 1  # lost for good: the session can still be read, kept and closed
refused(lambda: session.eval(ids[20:22]), tl.DeviceError)
refused(lambda: session.core.cache(0), tl.DeviceError)
refused(session.fork, tl.DeviceError)
refused(lambda: tl.load("demo", device="opencl:0"), tl.DeviceError)
assert len(session.tokens) == 20
device = model.device
assert device.lost
calls_left.value = -1
assert not device.lost
ctypes.c_void_p.in_dll(faults, "lost").value = context
assert device.lost
again = tl.load("demo", device="opencl:0")  # the device is opened anew
assert again.device is not device
assert np.array_equal(again.logits(ids[:40]), want)
del again
del session, model
gc.collect()
assert device.used == 0
assert buffers.value == 0, buffers.value
"""


def test_a_device_that_is_lost(library):
    """At any call: the error names it, and the session is as before. No buffer is left behind."""
    run(library, LOST)


MEMORY = """
model = tl.load("demo", device="opencl:0")
weights = model.device.used
assert weights >= model.core.device_bytes > 0
device = model.device
del model
gc.collect()
assert device.used == 0
bytes_left.value = weights // 2
refused(lambda: tl.load("demo", device="opencl:0"), MemoryError,
        "has no memory for", "bytes of the weights", "in all", "are in use", "device_layers=")
gc.collect()
assert device.used == 0
assert buffers.value == 0
bytes_left.value = -1
half = tl.load("demo", device="opencl:0", device_layers=1)
session = half.session()
want = cpu.logits(ids)
session.eval(ids[:20])
bytes_left.value = 1000
refused(lambda: session.eval(ids[20:280]), MemoryError, "has no memory for")
assert len(session) == 20
bytes_left.value = -1
assert np.array_equal(session.eval(ids[20:280], "all"), want[20:280])
status.value = -4  # a driver may find out when a kernel is launched
calls_left.value = 3
refused(lambda: session.eval(ids[280:]), MemoryError, "has no memory", "device_layers=")
calls_left.value = -1
assert np.array_equal(session.eval(ids[280:], "all"), want[280:])
"""


def test_memory_that_is_used_up(library):
    run(library, MEMORY)


STATES = """
sys.path.insert(0, os.environ["TESTS"])
from testkit import architectures, models
from pathlib import Path
import tempfile
path = architectures.random_model(Path(tempfile.mkdtemp()), "qwen3next", "Q4_K").path
cpu, model = (tl.load(path, device=device) for device in ("cpu", "opencl:0"))
ids = models.random_ids(cpu, 300)
want = cpu.logits(ids)
session = model.session()
session.eval(ids[:250])
status.value = -36
for calls in (1, 30, 60, 90, 120):
    calls_left.value = calls
    refused(lambda: session.eval(ids[250:260]), tl.DeviceError)
    calls_left.value = -1
    assert len(session) == 250
assert np.array_equal(session.fork().eval(ids[250:260], "all"), want[250:260])
assert np.array_equal(session.eval(ids[250:], "all"), want[250:])
device = model.device
del session, model
gc.collect()
assert device.used == 0
assert buffers.value == 0, buffers.value
"""


def test_states_of_a_device_that_is_lost(library):
    run(library, STATES)


LAUNCHES = """
from tinyllm import _core
from tinyllm.runtime.device import _cache
sys.path.insert(0, os.environ["TESTS"])
from testkit import devices
launches, most_groups, interrupted = (
    ctypes.c_long.in_dll(faults, name) for name in ("launches", "most_groups", "interrupted")
)
model = tl.load("demo", device="opencl:0")
ids = ids[:40]
want = cpu.logits(ids)
counts = []
for launch in (0, 1):
    if launch:
        model.device = _core.Device(0, launch=launch, cache=_cache())
        model.core = devices.some_steps(model, [1] * len(model.steps))
    launches.value = most_groups.value = 0
    session = model.session()
    assert np.array_equal(session.eval(ids, "all"), want)
    counts.append((launches.value, most_groups.value))
assert counts[0][1] > 100, counts
assert counts[1][1] == 1, counts
assert counts[1][0] > 20 * counts[0][0], counts
session.reset()
launches.value = 0
interrupted.value = counts[1][0] // 4
refused(lambda: session.eval(ids), KeyboardInterrupt)
assert len(session) == 0
assert launches.value < counts[1][0] * 3 // 4, (launches.value, counts)
interrupted.value = -1
assert np.array_equal(session.eval(ids, "all"), want)
"""


def test_work_is_cut_into_launches(library):
    """Into those of one work-group if a test asks for it, and Ctrl-C comes between two."""
    run(library, LAUNCHES)


TWO = """
import numpy as np, tinyllm as tl
ids = np.arange(60) % 200
gpu, cpu = (tl.load("demo", device=device) for device in ("opencl:0", "cpu"))
for _ in range(5):
    assert np.array_equal(gpu.logits(ids), cpu.logits(ids))
print("same")
"""


@pytest.mark.slow
@pytest.mark.nightly
def test_two_processes_on_one_device(tmp_path):
    """They compile the same programs at the same time, into one cache."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO],
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [p.communicate(timeout=300)[0].strip() for p in processes] == ["same", "same"]
    assert [p.suffix for p in (tmp_path / "tinyllm/kernels").iterdir()].count(".bin") > 3
    assert not list((tmp_path / "tinyllm/kernels").glob("*.tmp"))
