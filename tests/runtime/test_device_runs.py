"""Models on a device of OpenCL: the bits of the CPU, whatever runs where."""

import subprocess
import sys

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, devices, models
from tinyllm import _core
from tinyllm.runtime.device import _cache

pytestmark = pytest.mark.skipif(not devices.listed(), reason="needs a device of OpenCL")

DEVICE = "opencl:0"
FLOATS = ("F32", "F16", "BF16")


def bits(array):
    return np.ascontiguousarray(array, np.float32).view(np.uint32)


def compare(trace, want):
    """The values of two traces are the same; returns how many were compared."""
    count = 0
    assert list(trace) == list(want)
    for name in want:
        assert np.array_equal(bits(trace[name]), bits(want[name])), name
        count += want[name].size
    return count


def both(path):
    """A model on the CPU, and one on the device."""
    return tl.load(path, device="cpu"), tl.load(path, device=DEVICE)


@pytest.fixture(scope="module")
def demo():
    return both("demo")


@pytest.fixture(scope="module")
def ids(demo):
    return models.random_ids(demo[0], 300)


def test_all_taps_of_the_demo_model(demo, ids):
    cpu, gpu = demo
    assert all(gpu.core.on_device)
    assert gpu.core.device_bytes > 0
    assert compare(gpu.trace(ids, "*"), cpu.trace(ids, "*")) > 9_000_000


def test_sessions(demo, ids):
    """Any split of the prompt, forks, rewinds, and what a session keeps."""
    cpu, gpu = demo
    want = cpu.logits(ids)
    session = gpu.session()
    got = [session.eval(ids[a:b], "all") for a, b in ((0, 1), (1, 40), (40, 256), (256, 290))]
    assert np.array_equal(np.concatenate(got), want[:290])
    fork = session.fork()
    assert np.array_equal(fork.eval(ids[290:], "all"), want[290:])
    session.rewind(20)
    assert np.array_equal(session.eval(ids[270:], "all"), want[270:])
    other = cpu.session()
    other.eval(ids)
    for mine, theirs in zip(session.core.cache(0), other.core.cache(0), strict=True):
        assert np.array_equal(bits(mine), bits(theirs))


def test_a_batch(demo, ids):
    cpu, gpu = demo
    prompts = [ids[:5].tolist(), ids[:1].tolist(), ids[7:90].tolist()]
    for mine, theirs in zip(gpu.trace(prompts, "*"), cpu.trace(prompts, "*"), strict=True):
        compare(mine, theirs)


def test_edits(demo, ids):
    """Also of scores and probabilities, which makes their region run on the CPU."""
    cpu, gpu = demo
    taps = ("blk.1.attn_scores", "blk.1.attn_probs", "blk.2.ffn_out", "blk.0.q")
    names = [step.tap for step in cpu.steps if step.tap in taps]
    assert len(names) >= 2
    for name in names:
        edits = [tl.scale(name, 0.5)]
        compare(gpu.trace(ids[:40], "*", edits=edits), cpu.trace(ids[:40], "*", edits=edits))


def test_generation(demo):
    cpu, gpu = demo
    options = {"max_tokens": 12, "seed": 3, "temperature": 0.8, "logprobs": 2}
    mine, theirs = (model.generate("ROMEO:", **options) for model in (gpu, cpu))
    assert (mine.text, mine.ids) == (theirs.text, theirs.ids)


@pytest.mark.parametrize("seed", range(4))
def test_random_halves_of_the_steps(seed, ids):
    """Values and caches move between the two sides at any step."""
    cpu, gpu = both("demo")
    random = np.random.default_rng(seed)
    gpu.core = devices.some_steps(gpu, random.integers(0, 2, len(gpu.steps)).astype(np.uint8))
    assert 0 < sum(gpu.core.on_device) < len(gpu.steps)
    compare(gpu.trace(ids[:70], "*"), cpu.trace(ids[:70], "*"))
    want, session = cpu.logits(ids[:270]), gpu.session()
    got = [session.eval(ids[a:b], "all") for a, b in ((0, 250), (250, 260), (260, 261), (261, 270))]
    assert np.array_equal(np.concatenate(got), want)
    session.rewind(15)
    assert np.array_equal(session.fork().eval(ids[255:270], "all"), want[255:])


def test_the_first_layers(ids):
    cpu, gpu = tl.load(), tl.load(device=DEVICE, device_layers=2)
    on = {s.layer for s, on in zip(gpu.steps, gpu.core.on_device, strict=True) if on}
    assert on <= {-1, 0, 1}
    assert {0, 1} <= on
    compare(gpu.trace(ids[:20], "*"), cpu.trace(ids[:20], "*"))
    none = tl.load(device=DEVICE, device_layers=0)
    assert not any(
        s
        for s, layer in zip(none.core.on_device, none.steps, strict=True)
        if layer.layer >= 0 and s
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [*models.TYPES, *models.RARE_TYPES])
def test_every_type(name, tmp_path):
    cpu, gpu = both(models.random_model(tmp_path, name).path)
    ids = models.random_ids(cpu, 37)
    compare(gpu.trace(ids, "*"), cpu.trace(ids, "*"))


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("name", [*models.TYPES, *models.RARE_TYPES])
def test_random_halves_of_every_type(name, tmp_path):
    cpu, gpu = both(models.random_model(tmp_path, name).path)
    ids = models.random_ids(cpu, 37)
    want = cpu.trace(ids, "*")
    for seed in range(3):
        flags = np.random.default_rng(seed).integers(0, 2, len(gpu.steps)).astype(np.uint8)
        gpu.core = devices.some_steps(gpu, flags)
        assert 0 < sum(gpu.core.on_device) < len(gpu.steps)
        compare(gpu.trace(ids, "*"), want)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("level", ["division", "float32", "integers"])
@pytest.mark.parametrize("name", [*models.TYPES, *models.RARE_TYPES])
def test_every_type_at_every_level(name, level):
    """Its rows and its matmuls, in exact and in fast mode."""
    device = _core.Device(0, level=level, cache=_cache())
    assert device.level == level
    for fast in (False, True)[: 1 if name in FLOATS else 2]:
        compared, differ, first = device.test(_core.tensor_types()[name][0], fast)
        assert compared > 150_000
        assert differ == 0, first


def test_fast_mode(ids):
    """The bits of the CPU's fast mode, wherever that has the arithmetic of docs/numerics.md."""
    if _core.kernel_set() in ("avx2", "avx512"):
        pytest.skip("this instruction set rounds the activations of Q8_0 to 16 bits")
    cpu, gpu = (tl.load("demo", mode="fast", device=device) for device in ("cpu", DEVICE))
    assert any(gpu.core.on_device)
    compare(gpu.trace(ids[:40], "*"), cpu.trace(ids[:40], "*"))
    assert not np.array_equal(gpu.logits(ids[:40]), tl.load("demo").logits(ids[:40]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*models.TYPES, *models.RARE_TYPES])
def test_fast_mode_of_every_type(name):
    """Against the kernels in plain C, with any bits in the blocks, subnormals and NaN."""
    number = _core.tensor_types()[name][0]
    compared, differ, first = tl.load(device=DEVICE).device.test(number, name not in FLOATS)
    assert compared > 150_000
    assert differ == 0, first


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures.DISTINCT)
def test_every_architecture(name, tmp_path):
    cpu, gpu = both(architectures.random_model(tmp_path, name, "Q4_K").path)
    ids = models.random_ids(cpu, 37)
    compare(gpu.trace(ids, "*"), cpu.trace(ids, "*"))
    if cpu.steps.roles("logits"):
        session = gpu.session()
        got = [session.eval(ids[a:b], "all") for a, b in ((0, 20), (20, 21), (21, 37))]
        assert np.array_equal(np.concatenate(got), cpu.logits(ids))


def test_the_sizes_of_work_groups(ids):
    """No result depends on how the work is divided."""
    cpu = tl.load()
    want = cpu.trace(ids[:19], "*")
    for group in (1, 8, 48):
        gpu = tl.load(device=DEVICE)
        gpu.device = _core.Device(0, group=group, cache=_cache())
        gpu.core = devices.some_steps(gpu, [1] * len(gpu.steps))
        compare(gpu.trace(ids[:19], "*"), want)


@pytest.mark.parametrize("launch", [1, 30_000])
def test_the_sizes_of_launches(ids, launch):
    """No result depends on how the work is cut: into launches of one or of a few work-groups."""
    cpu, gpu = both("demo")
    gpu.device = _core.Device(0, launch=launch, cache=_cache())
    gpu.core = devices.some_steps(gpu, [1] * len(gpu.steps))
    compare(gpu.trace(ids[:9], "*"), cpu.trace(ids[:9], "*"))


def test_memory_counts_that_of_the_device(demo, ids):
    cpu, gpu = demo
    assert cpu.memory(300).device == 0
    assert gpu.memory(300).device > gpu.memory(100).device > gpu.core.device_bytes > 0
    mine, theirs = gpu.session(), cpu.session()
    for session in (mine, theirs):
        session.eval(ids)
    cache = gpu.memory(300).device - gpu.core.device_bytes
    assert mine.core.nbytes >= theirs.core.nbytes + cache
    mine.reset()
    assert mine.core.nbytes == 0


def test_a_device_that_is_not_listed():
    with pytest.raises(ValueError, match="device is 'no such thing'; expected 'cpu', 'gpu'"):
        tl.load(device="no such thing")


FORK = """
import os, sys
import tinyllm as tl
model = tl.load(device="opencl:0")
session = model.session()
session.eval("ROMEO:")
pid = os.fork()
if pid == 0:
    try:
        session.eval([5])
    except tl.DeviceError as error:
        assert "before this process was forked" in str(error)
        assert len(session.tokens) == len(model.tokenizer.encode("ROMEO:"))
        os._exit(7)
    os._exit(1)
session.eval([5])
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(sys.modules["os"], "fork"), reason="needs fork")
def test_a_forked_process():
    code = FORK
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert result.stdout.split() == ["7"]
