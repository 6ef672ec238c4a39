"""The tests themselves: started by any parent, smoke, and what they say about skips."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def run(*arguments, shell="", **changes):
    """Run pytest in a process of its own, from a shell that does something first."""
    environment = {**os.environ, **changes}
    environment = {key: value for key, value in environment.items() if value is not None}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    if shell:
        command = ["sh", "-c", f'{shell}; exec "$@"', "sh", *command]
    return subprocess.run(
        command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.skipif(os.name != "posix", reason="needs sh")
def test_signals_reach_processes_whose_grandparent_ignored_them():
    """A background job of a shell has SIGINT ignored, and its children inherit that."""
    pytest.importorskip("jinja2")
    name = "tests/cli/test_chat.py::test_a_signal_stops_an_answer_to_a_pipe"
    done = run(name, shell="trap '' INT", PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_each_reason_for_skips_is_said_once():
    changes = {"TINYLLM_TEST_DATA": None, "CI": None}
    path = os.pathsep.join(filter(None, sys.path))
    done = run("tests/chat/test_calls.py", "-k", "template", PYTHONPATH=path, **changes)
    assert done.returncode == 0, done.stdout + done.stderr
    if "skipped" in done.stdout and "jinja2" not in done.stdout:
        assert done.stdout.count("TINYLLM_TEST_DATA") == 1
        assert "skipped 15: needs TINYLLM_TEST_DATA" in done.stdout


def test_smoke_reads_its_own_files_only():
    path = os.pathsep.join(filter(None, sys.path))
    done = run("-m", "smoke", "--collect-only", "tests", PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    files = {line.split("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert "tests/model/test_demo.py" in files
    assert "tests/core/test_forward.py" not in files
    assert all((TESTS.parent / file).exists() for file in files)
    listed = (TESTS / "conftest.py").read_text().split("SMOKE = (")[1].split(")")[0]
    assert files == {f"tests/{name}" for name in listed.replace('"', "").replace(",", "").split()}
