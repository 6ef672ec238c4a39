"""The machine that `cpu` describes, and the memory that a model takes."""

import os
import subprocess
import sys

import numpy as np
import pytest

import tinyllm as tl
from testkit import models
from tinyllm import _core
from tinyllm.base.units import size


def test_cpu_tells_what_runs(monkeypatch):
    cpu = tl.cpu()
    assert cpu.sets == tuple(_core.kernel_sets())
    assert cpu.cores == _core.cpu_count() >= 1
    assert cpu.name
    assert cpu.memory > 0
    monkeypatch.delenv("TINYLLM_ISA", raising=False)
    assert tl.cpu().isa == cpu.sets[-1]
    monkeypatch.setenv("TINYLLM_ISA", "scalar")
    assert tl.cpu().isa == "scalar"
    assert "scalar" in cpu._repr_html_()


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("TINYLLM_ISA", "mmx")
    with pytest.raises(tl.UnsupportedError, match=r"'mmx'.*scalar"):
        tl.cpu()
    with pytest.raises(tl.UnsupportedError, match=r"'mmx'.*scalar"):
        tl.load()


def test_memory_is_what_a_session_takes(tmp_path):
    path = tmp_path / "model.gguf"
    tl.write_gguf(path, *models.random_llama(layers=2, context=600))
    model = tl.load(path)
    assert model.memory().tokens == 600
    for tokens in (1, 256, 257, 600):
        session = model.session()
        session.eval(np.zeros(tokens, np.int32))
        memory = model.memory(tokens)
        assert memory.cache == session.core.nbytes
        assert memory.total == memory.weights + memory.cache + memory.workspace
    assert model.memory(600).workspace > model.memory(1).workspace
    assert memory.weights == sum(w.nbytes for w in model.weights.values())
    assert size(memory.total).replace(" ", "&nbsp;") in memory._repr_html_()
    for tokens in (0, -1, 601):
        with pytest.raises(ValueError, match="expected 1 to 600"):
            model.memory(tokens)
    with pytest.raises(TypeError):
        model.memory("many")


GROWTH = """
import sys, numpy as np, tinyllm as tl
def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096
model = tl.load(sys.argv[1])
model.session().eval([0])
session = model.session()
before = resident()
session.eval(np.zeros(600, np.int32))
memory = model.memory(600)
print(resident() - before, memory.cache + memory.workspace)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
def test_a_process_grows_by_about_that(tmp_path):
    path = tmp_path / "model.gguf"
    tl.write_gguf(path, *models.random_llama(layers=8, heads=4, kv_heads=4, context=600))
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(path)], capture_output=True, text=True, check=True
    )
    grown, told = map(int, done.stdout.split())
    assert told * 0.5 < grown < told * 1.3 + (4 << 20)
