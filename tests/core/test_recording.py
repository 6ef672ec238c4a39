"""Every bit equals the recorded one: see testkit/recording.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from testkit import recording
from tinyllm import _core

KNOWN = json.loads(Path(__file__).with_name("recording.json").read_text())


@pytest.mark.parametrize(("type_name", "mode"), recording.CASES)
def test_bits_are_as_recorded(type_name, mode, tmp_path):
    path = recording.write(tmp_path / "m.gguf", type_name)
    assert recording.digest(path, mode) == KNOWN[recording.key(type_name, mode)]


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("isa", [s for s in _core.kernel_sets() if s != "plain"])
def test_bits_on_every_instruction_set(isa, tmp_path):
    done = subprocess.run(
        [sys.executable, recording.__file__, str(tmp_path / "now.json")],
        env={**os.environ, "TINYLLM_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0
    now = json.loads((tmp_path / "now.json").read_text())
    assert now == {name: KNOWN[name] for name in now}
