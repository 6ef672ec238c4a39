"""Every row of the table: what its plan computes, its shapes, edits, sessions and files."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, models
from tinyllm import reference
from tinyllm.architectures.table import ARCHITECTURES

pytestmark = pytest.mark.sanitize

TOKENS = 70  # more than the windows of the random models


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request, tmp_path_factory):
    """A random model, tokens, and the trace of all taps."""
    model = architectures.random_model(tmp_path_factory.mktemp("row"), request.param)
    ids = models.random_ids(model, TOKENS)
    return model, ids, model.trace(ids, "*")


def test_every_tap_is_that_of_the_reference(case):
    model, ids, trace = case
    want = reference.forward(model.steps, model.weights, ids)
    assert list(trace) == list(want)
    for name, array in want.items():
        assert models.normwise_error(trace[name], array) < 2e-6, name


def test_the_core_derives_the_shapes_that_the_plan_states(case):
    model, _, trace = case
    assert model.core.shapes == tuple(s.shape if s.visible else None for s in model.steps)
    for step in model.steps:
        if step.visible:
            want = (TOKENS, *step.shape)
            if step.matrix:
                want = (*step.shape, TOKENS, TOKENS)
            assert trace[step.tap].shape == want, step.tap


def test_an_edit_that_changes_nothing_changes_no_bit(case):
    model, ids, trace = case
    for name in trace:
        edited = model.trace(ids, "output", edits=[tl.apply(name, lambda x: x)])
        assert np.array_equal(edited["output"], trace["output"]), name


def test_the_quantized_model_is_that_of_the_reference(case, tmp_path):
    model, ids, _ = case
    name = model.config.architecture
    quantized = architectures.random_model(tmp_path, name, "Q4_K")
    want = reference.forward(quantized.steps, quantized.weights, ids)["output"]
    assert models.normwise_error(quantized.logits(ids), want) < 4e-6


def test_every_number_of_the_plan_has_a_source(case):
    model, _, _ = case
    text = str(model.steps)
    assert "blk.0.resid_post" in text
    for step in model.steps:
        for number in step.numbers:
            assert np.isfinite(number.value), (step.tap, number)
