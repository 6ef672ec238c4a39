"""Pauses of the garbage collector."""

import gc
import threading

import pytest

from tinyllm.base.garbage import no_collection


def test_the_last_of_several_pauses_ends_it():
    inside, leave = threading.Event(), threading.Event()

    def other():
        with no_collection():
            inside.set()
            leave.wait(10)

    with no_collection():
        thread = threading.Thread(target=other)
        thread.start()
        inside.wait(10)
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_an_error_ends_a_pause():
    with pytest.raises(KeyError), no_collection():
        raise KeyError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
