"""What is opened: paths of regular files, and nothing else."""

import os
import sys

import pytest

import tinyllm as tl
from tinyllm.files.paths import first_bytes

OPENERS = {
    "load": tl.load,
    "GGUF": tl.GGUF,
    "load_tokenizer": tl.load_tokenizer,
    "read": tl.read,
    "session": lambda path: tl.load().session(path),
}


@pytest.fixture(params=OPENERS)
def opener(request):
    return OPENERS[request.param]


@pytest.mark.parametrize("number", [0, 1, 2, True, 1.5])
def test_numbers_are_not_paths(opener, number):
    """An integer is a descriptor to open(), which closes standard output when it is done."""
    with pytest.raises(TypeError, match="expected a"):
        opener(number)
    os.fstat(sys.__stdout__.fileno())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_do_not_wait_for_ever(opener, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match=r"a pipe or a device; expected a regular file"):
            opener(path)


def test_a_folder_is_named(opener, tmp_path):
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        opener(tmp_path)


def test_first_bytes_of_a_short_file(tmp_path):
    (tmp_path / "x").write_bytes(b"GG")
    assert first_bytes(os.fsencode(tmp_path / "x")) == b"GG"
