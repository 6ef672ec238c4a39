"""Calls in the C core point down, as its includes do: checked in the object files.

A header can declare what another folder defines, so an include alone does not show every call.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = "base types text files kernels model forward training py".split()
OURS = re.compile(r"_?(tlpy?_\w+)$")  # macOS puts an underscore before every name


def objects(build):
    """Yield the object files of a build with the folder of their source; leave out stale ones."""
    for path in sorted(build.glob("csrc/**/*.o")):
        source = path.relative_to(build).with_suffix(".c")
        if (ROOT / source).is_file():
            yield path, source.parts[1]


def symbols(path):
    """Return the names of ours that an object file defines, and those that it leaves undefined."""
    lines = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
    defined, undefined = set(), set()
    for line in lines.splitlines():
        *_, kind, name = line.split()
        if match := OURS.match(name):
            (undefined if kind == "U" else defined).add(match[1])
    return defined, undefined


@pytest.mark.objects
def test_calls_point_down():
    builds = [build for build in sorted(ROOT.glob("build/temp*")) if any(objects(build))]
    if not builds and not os.environ.get("CI"):
        pytest.skip("nothing compiled here; first: python setup.py build_ext --inplace")
    if shutil.which("nm") is None:
        pytest.skip("needs nm of the compiler's tools")
    assert builds
    for build in builds:
        files = [(path, folder, *symbols(path)) for path, folder in objects(build)]
        home = {name: folder for _, folder, defined, _ in files for name in defined}
        assert home
        upwards = [
            f"{path.relative_to(build)} uses {name} of {home.get(name, 'nowhere')}"
            for path, folder, _, undefined in files
            for name in sorted(undefined)
            if name not in home or LAYERS.index(home[name]) > LAYERS.index(folder)
        ]
        assert not upwards
