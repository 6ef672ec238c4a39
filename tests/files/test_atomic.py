"""Files appear whole or not at all, and killed writers leave nothing behind for long."""

import os
import signal
import subprocess
import sys

import pytest

from tinyllm.files.atomic import write_atomically

KILLED = """
import os, signal, sys
from tinyllm.files.atomic import write_atomically
def write(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(sys.argv[1], write)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="needs locks that end with their process")
def test_what_a_killed_writer_left_is_removed(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
        assert done.returncode == -signal.SIGKILL
    left = [name for name in names(tmp_path) if name.endswith(".tmp")]
    assert len(left) == 1  # the second writer removed what the first had left
    assert path.read_bytes() == b"old"
    others = [".m.gguf.0123456789abcdeg.tmp", ".n.gguf.0123456789abcdef.tmp", "m.gguf.tmp"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / "target").touch()
    (tmp_path / ".m.gguf.0123456789abcdef.tmp").symlink_to(tmp_path / "target")
    (tmp_path / ".m.gguf.0123456789abcde0.tmp").mkdir()

    def write(file):
        file.write(b"new")
        write_atomically(path, lambda inner: inner.write(b"in between"))
        assert path.read_bytes() == b"in between"  # and the outer file was not removed

    write_atomically(path, write)
    assert path.read_bytes() == b"new"
    made = [".m.gguf.0123456789abcdef.tmp", ".m.gguf.0123456789abcde0.tmp", "target", "m.gguf"]
    assert names(tmp_path) == sorted([*others, *made])


def test_a_failed_write_leaves_nothing(tmp_path):
    def write(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", write)
    assert names(tmp_path) == []
    with pytest.raises(FileNotFoundError) as error:
        write_atomically(tmp_path / "no" / "a", write)
    assert error.value.filename == str(tmp_path / "no" / "a")
