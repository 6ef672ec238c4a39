"""Many threads, many sessions, and a fork of the process in between."""

import os
import subprocess
import sys

import pytest

from testkit import crowd, models

pytestmark = pytest.mark.threads


@pytest.mark.parametrize("type_name", ["Q4_K", "F16"])
def test_a_crowd(type_name, tmp_path):
    # a separate program, because it also tests the first use of the pool
    path = models.write(tmp_path / "m.gguf", *models.random_llama(type_name, layers=1, ffn=256))
    done = subprocess.run(
        [sys.executable, crowd.__file__, str(path), "12"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
