"""Devices of OpenCL: the test of their arithmetic, and what happens where there is none."""

import os
import subprocess
import sys

import pytest

import tinyllm as tl
from testkit import devices
from tinyllm import _core

needs_device = pytest.mark.skipif(not devices.listed(), reason="needs a device of OpenCL")


def test_the_list():
    found = tl.devices()
    assert len(found) == len(devices.listed())
    for device in found:
        assert (device.level is None) != (device.reason is None)
        assert device.memory > 0
        assert device.name in device._repr_html_()


def run(code, **environment):
    """The last line that a process prints."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return result.stdout.strip().splitlines()[-1]


DESCRIBE = """
import tinyllm as tl
from tinyllm.runtime.device import choose
assert tl.devices() == []
assert choose("auto") is None
try:
    choose("gpu")
except tl.UnsupportedError as error:
    print(error)
"""


def test_without_a_library():
    assert "nowhere.so" in run(DESCRIBE, TINYLLM_OPENCL="/nowhere.so")


def test_a_library_of_something_else():
    """The C library has none of the calls."""
    assert "libc.so.6 lacks clGetPlatformIDs" in run(DESCRIBE, TINYLLM_OPENCL="libc.so.6")


@needs_device
def test_without_a_driver(tmp_path):
    text = run(DESCRIBE, OCL_ICD_VENDORS=str(tmp_path))
    assert text == "device is 'gpu', and there is no GPU; OpenCL lists: none"


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match=r"OpenCL lists|index is -1"):
        _core.Device(-1)
    with pytest.raises(ValueError, match="level is 'double'"):
        _core.Device(0, level="double")
    if devices.listed():
        with pytest.raises(ValueError, match="device is 99; OpenCL lists"):
            _core.Device(99)


@needs_device
@pytest.mark.slow
@pytest.mark.parametrize("level", ["native", "float32", "integers"])
def test_every_level_gives_the_bits_of_the_cpu(level):
    device = _core.Device(0, level=level)
    assert device.level == level
    assert device.compared > 300_000
    assert device.used == 0


@needs_device
def test_flushed_denormals_are_noticed():
    """A device that flushes denormals gets the level that does no arithmetic with floats."""
    assert _core.Device(0, options="-cl-denorms-are-zero").level == "integers"


@needs_device
def test_contraction_is_noticed():
    """A compiler that may fuse a product and a sum, or divide loosely."""
    assert _core.Device(0, options="-cl-fast-relaxed-math").level == "integers"


@needs_device
@pytest.mark.slow
def test_an_fma_of_two_roundings_is_noticed():
    """These are the names that PoCL gives to the functions of OpenCL."""
    assert _core.Device(0, options="-D_cl_fma=_cl_mad").level == "integers"


PRODUCT = "as_char4(a).s{0}*as_char4(b).s{0}"

#: The dot product of cl_khr_integer_dot_product, for a compiler that lacks it.
DOT = "-DTL_DOTS -Ddot_4x8packed_ss_int(a,b)=(" + "+".join(map(PRODUCT.format, range(4))) + ")"


@needs_device
@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "Q6_K", "IQ1_S", "NVFP4"])
def test_dot_products_of_the_device(name):
    """What fast mode does with them; here a macro is the device's function."""
    number = _core.tensor_types()[name][0]
    device = _core.Device(0, options=DOT)
    compared, differ, first = device.test(number, True)
    assert compared > 400
    assert differ == 0, first


@needs_device
def test_wrong_dot_products_are_noticed():
    device = _core.Device(0, options=DOT.replace("(as_char4(a).s0", "(1+as_char4(a).s0"))
    assert device.test(_core.tensor_types()["Q8_0"][0], True)[1] > 100


@needs_device
def test_wrong_integers_are_noticed():
    """No level is below that of integers: the device is refused, and the message says why."""
    with pytest.raises(tl.UnsupportedError, match=r"results differ, first: float32 fma of"):
        _core.Device(0, options="-D_cl_clz=_cl_popcount", level="integers")
