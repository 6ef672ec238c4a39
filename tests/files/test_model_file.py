"""Opening any model: by path, or from any object that holds its bytes."""

import array
import ctypes
import mmap

import numpy as np
import pytest

import tinyllm as tl
from tinyllm.files.model_file import DEMO

DATA = DEMO.read_bytes()


def mapped():
    with DEMO.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


BUFFERS = {
    "bytes": lambda: DATA,
    "bytearray": lambda: bytearray(DATA),
    "memoryview": lambda: memoryview(DATA),
    "numpy": lambda: np.frombuffer(DATA, np.uint8),
    "numpy, two axes": lambda: np.frombuffer(DATA, np.uint8).reshape(-1, 32),
    "array": lambda: array.array("B", DATA),
    "ctypes": lambda: (ctypes.c_char * len(DATA)).from_buffer_copy(DATA),
    "mmap": mapped,
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_a_model_from_a_buffer(kind):
    model = tl.load(BUFFERS[kind]())
    assert model.path is None
    assert np.array_equal(model.logits([1, 2, 3]), tl.load().logits([1, 2, 3]))
    assert len(tl.GGUF(BUFFERS[kind]()).tensors) == len(model.weights)


@pytest.mark.parametrize("wrong", [1, None, 1.5, ["demo"], np.zeros(3)[::2]])
def test_what_is_neither_a_path_nor_a_buffer(wrong):
    with pytest.raises((TypeError, tl.FormatError, ValueError), match="expected"):
        tl.load(wrong)
