"""States and experts on a device of OpenCL: sessions of recurrent models, and edits of routers."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, devices, models
from tinyllm import _core
from tinyllm.runtime.device import _cache

pytestmark = pytest.mark.skipif(not devices.listed(), reason="needs a device of OpenCL")

DEVICE = "opencl:0"

RECURRENT = ["mamba", "mamba2", "rwkv7", "qwen3next", "lfm2"]


def bits(array):
    return np.ascontiguousarray(array, np.float32).view(np.uint32)


def both(tmp_path, name, kind="Q4_K"):
    """A random model of a tensor type on the CPU, and on the device."""
    path = architectures.random_model(tmp_path, name, kind).path
    return tl.load(path, device="cpu"), tl.load(path, device=DEVICE)


def compare_caches(mine, theirs, model):
    ops = ("cache", "conv", "shift", "delta", "scan", "scan_channels", "wkv")
    for i in range(sum(step.op in ops for step in model.steps)):
        for a, b in zip(mine.core.cache(i), theirs.core.cache(i), strict=True):
            assert np.array_equal(bits(a), bits(b)), i


def compare_sessions(cpu, gpu, ids):
    """Calls that end before, at and behind the position where states are kept."""
    want = cpu.logits(ids)
    mine, theirs = gpu.session(), cpu.session()
    for first, end in ((0, 1), (1, 200), (200, 256), (256, 300), (300, 520)):
        assert np.array_equal(mine.eval(ids[first:end], "all"), want[first:end]), first
        theirs.eval(ids[first:end])
    compare_caches(mine, theirs, cpu)
    fork = mine.fork()
    assert np.array_equal(fork.eval(ids[520:], "all"), want[520:])
    mine.rewind(1)
    assert len(mine) in (512, 519)  # states are kept at 512
    left = len(mine)
    assert np.array_equal(mine.eval(ids[left:], "all"), want[left:])
    compare_caches(mine, fork, cpu)


def test_every_op_runs_on_the_device(tmp_path):
    for name in ("mamba", "rwkv7", "qwen3next", "deepseek2"):
        gpu = both(tmp_path, name)[1]
        assert all(gpu.core.on_device), name


@pytest.mark.slow
@pytest.mark.parametrize("name", RECURRENT)
def test_sessions_of_recurrent_models(name, tmp_path):
    cpu, gpu = both(tmp_path, name)
    compare_sessions(cpu, gpu, models.random_ids(cpu, 540))


@pytest.mark.parametrize("name", ["mamba", "qwen3next"])
def test_random_halves_of_the_steps(name, tmp_path):
    cpu, gpu = both(tmp_path, name)
    flags = np.random.default_rng(5).integers(0, 2, len(gpu.steps)).astype(np.uint8)
    gpu.core = devices.some_steps(gpu, flags)
    assert 0 < sum(gpu.core.on_device) < len(gpu.steps)
    compare_sessions(cpu, gpu, models.random_ids(cpu, 540))


def test_a_saved_state(tmp_path):
    """It goes to the host, into a file, and back to the device."""
    cpu, gpu = both(tmp_path, "mamba2")
    ids = models.random_ids(cpu, 90)
    session = gpu.session()
    session.eval(ids[:60])
    session.save(tmp_path / "state.npz")
    for model in (cpu, gpu):
        again = tl.Session.load(model, tmp_path / "state.npz")
        assert np.array_equal(again.eval(ids[60:], "all"), cpu.logits(ids)[60:])


def test_edited_experts(tmp_path):
    """Edited ids are followed if they are different experts, and refused on both sides else."""
    cpu, gpu = both(tmp_path, "qwen3moe")
    ids = models.random_ids(cpu, 21)
    name = next(step.tap for step in cpu.steps if step.op == "route_ids")

    def turned(values):
        return values[:, ::-1]

    def other(values):
        return values * 0 + np.arange(values.shape[1], dtype=np.float32)

    for edit in (turned, other):
        mine, theirs = (model.trace(ids, "*", edits=[tl.apply(name, edit)]) for model in (gpu, cpu))
        for tap in theirs:
            assert np.array_equal(bits(mine[tap]), bits(theirs[tap])), tap
    for value in (0.0, 1e9, -1.0, 0.5):
        for model in (gpu, cpu):
            with pytest.raises(ValueError, match=r"3 different whole numbers from 0 to 7"):
                model.trace(ids, name, edits=[tl.set(name, value)])


def on(gpu, **options):
    """The model with another opening of its device."""
    gpu.device = _core.Device(0, cache=_cache(), **options)
    gpu.core = devices.some_steps(gpu, [1] * len(gpu.steps))
    return gpu


def compare_taps(cpu, gpu, ids):
    want, got = cpu.trace(ids, "*"), gpu.trace(ids, "*")
    for tap in want:
        assert np.array_equal(bits(got[tap]), bits(want[tap])), tap


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 8, 48])
def test_the_sizes_of_work_groups(group, tmp_path):
    cpu, gpu = both(tmp_path, "qwen3next")
    compare_taps(cpu, on(gpu, group=group), models.random_ids(cpu, 19))


@pytest.mark.parametrize("name", ["mamba", "mamba2", "rwkv7", "qwen3next", "deepseek2"])
def test_launches_of_one_group(name, tmp_path):
    """Work is cut into launches: here each has one work-group, and states get one row."""
    cpu, gpu = both(tmp_path, name)
    compare_taps(cpu, on(gpu, launch=1), models.random_ids(cpu, 11))


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("level", ["float32", "integers"])
@pytest.mark.parametrize("name", ["mamba", "mamba2", "rwkv7", "qwen3next", "gemma3n", "phimoe"])
def test_the_levels(name, level, tmp_path):
    """Devices without float64, or without any arithmetic of floats. Types: test_device.py."""
    cpu, gpu = both(tmp_path, name, "F32")
    compare_taps(cpu, on(gpu, level=level), models.random_ids(cpu, 9))
