"""Programs that run with one set of kernels, which is chosen when a process starts."""

import os
import subprocess
import sys


def run(isa, *arguments):
    """Run Python with these arguments and a set of kernels; return what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "TINYLLM_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{isa}: {done.stderr}"
    return done.stdout
