"""Every row of the table: what its plan computes, its shapes, edits, sessions and files."""

import re
from pathlib import Path

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, hf, models
from tinyllm import reference
from tinyllm.architectures.table import ARCHITECTURES, MISSING, find

ROOT = Path(__file__).parents[2]
TOKENS = 70  # more than the windows of the random models


@pytest.fixture(scope="module", params=architectures.DISTINCT)
def case(request, tmp_path_factory):
    """A random model, tokens, and the trace of all taps."""
    model = architectures.random_model(tmp_path_factory.mktemp("row"), request.param)
    ids = models.random_ids(model, TOKENS)
    return model, ids, model.trace(ids, "*")


@pytest.mark.sanitize
def test_every_step_is_that_of_the_reference(case):
    """Each step alone, from the inputs that it had, and all steps together."""
    model, ids, trace = case
    inputs = {"tokens": ids, "positions": np.arange(TOKENS), **trace}
    for step in reference.steps(model.steps):
        want = step.run(model.weights, inputs)
        assert models.normwise_error(trace[step.tap], want) < 1e-6, step.tap
    last = model.steps[-1].tap
    want = reference.forward(model.steps, model.weights, ids)
    assert list(trace) == list(want)
    assert models.normwise_error(trace[last], want[last]) < 5e-5


def test_the_core_derives_the_shapes_that_the_plan_states(case):
    model, _, trace = case
    assert model.core.shapes == tuple(s.shape if s.visible else None for s in model.steps)
    for step in model.steps:
        if step.visible:
            want = (TOKENS, *step.shape)
            if step.matrix:
                want = (*step.shape, TOKENS, TOKENS)
            assert trace[step.tap].shape == want, step.tap


@pytest.mark.sanitize
def test_an_edit_that_changes_nothing_changes_no_bit(case):
    model, ids, trace = case
    last = model.steps[-1].tap
    all_at_once = model.trace(ids, "*", edits=[tl.apply("*", lambda x: x)])
    for name in trace:
        assert np.array_equal(all_at_once[name], trace[name]), name
    short = model.trace(ids[:20], last)[last]
    first = {step.family: step.tap for step in reversed(model.steps) if step.visible}
    for name in first.values():
        edited = model.trace(ids[:20], last, edits=[tl.apply(name, lambda x: x)])
        assert np.array_equal(edited[last], short), name


def test_the_quantized_model_is_that_of_the_reference(case, tmp_path):
    model, ids, _ = case
    name = model.config.architecture
    quantized = architectures.random_model(tmp_path, name, "Q4_K")
    last, some = model.steps[-1].tap, ids[:20]
    want = reference.forward(quantized.steps, quantized.weights, some)[last]
    assert models.normwise_error(quantized.trace(some, last)[last], want) < 5e-5


def test_attribution_sums_to_the_logit(case):
    model, _, trace = case
    if not model.steps.roles("logits"):
        with pytest.raises(ValueError, match="is an encoder"):
            tl.attribution(trace, 5)
        return
    for at in (0, TOKENS - 1):
        parts = tl.attribution(trace, 5, at=at)
        uncapped = "output_uncapped" if "output_uncapped" in trace else "output"
        want = float(trace[uncapped][at, 5])
        assert abs(parts.total - want) < 1e-4 * max(1, np.abs(parts.values).sum())


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_trace_comes_back_from_a_file(case, suffix, tmp_path):
    _, _, trace = case
    trace.save(tmp_path / f"t.{suffix}")
    back = tl.read(tmp_path / f"t.{suffix}")
    assert list(back) == list(trace)
    for name in trace:
        assert np.array_equal(back[name], trace[name]), name


def test_what_shows_a_model_takes_every_row(case, tmp_path):
    model, ids, trace = case
    trace.html(tmp_path / "page.html")
    assert len(model.hidden_states(ids)) == model.config.layers + 1
    assert model.memory(100).cache > 0
    for shown in (trace, model, model.steps):
        assert shown._repr_html_()
    assert str(trace.table())
    for _, norms in trace.stream_norms().values():
        assert all(len(row) == TOKENS for row in norms)


@pytest.mark.sanitize
def test_sessions_go_on_and_come_back(case, tmp_path):
    model, ids, trace = case
    if not model.steps.roles("logits"):
        with pytest.raises(ValueError, match="is an encoder"):
            model.session()
        return
    want = trace["output"]
    session = model.session()
    session.eval(ids[:50])
    session.save(tmp_path / "s.npz")
    for again in (session, model.session(tmp_path / "s.npz"), session.fork()):
        got = again.eval(ids[len(again) :], "all")
        assert np.array_equal(got, want[-len(got) :])
        again.rewind(TOKENS - 50)
    text = model.generate(ids[:9], max_tokens=4, temperature=0)
    assert text.ids[0] == want[8].argmax()


def test_every_number_of_the_plan_has_a_source(case):
    model, _, _ = case
    text = str(model.steps)
    assert "blk.0.resid_post" in text
    for step in model.steps:
        for number in step.numbers:
            assert np.isfinite(number.value), (step.tap, number)


def test_the_documents_list_every_row():
    text = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    table = text[text.index("| `general.architecture`") : text.index("Where Hugging Face and")]
    first = [line.split("|")[1] for line in table.splitlines()[2:] if line.startswith("|")]
    listed = [name for cell in first for name in re.findall(r"`([^`]+)`", cell)]
    assert sorted(listed) == sorted(ARCHITECTURES)


def test_every_row_of_the_documents_has_an_oracle():
    """Checkpoints of Hugging Face that become the row, or llama.cpp (tests/live), or none."""
    text = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    table = text[text.index("| `general.architecture`") : text.index("Where Hugging Face and")]
    confirmed = set()
    for line in table.splitlines()[2:]:
        if line.startswith("|"):
            names = re.findall(r"`([^`]+)`", line.split("|")[1])
            oracles = [oracle.strip() for oracle in line.split("|")[3].split(",")]
            if oracles == ["none"]:
                assert all(ARCHITECTURES[name].experimental for name in names), names
            elif oracles == ["llama.cpp"]:
                assert set(names) <= set(architectures.LLAMA_CPP), names
            else:
                assert {hf.CHECKPOINTS[oracle] for oracle in oracles} == set(names), names
            confirmed |= set(names) - {name for name in names if ARCHITECTURES[name].experimental}
    assert confirmed >= {name for name, row in ARCHITECTURES.items() if not row.experimental}


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("deepseek4", "compressed keys"),
        ("kimi-k3", "delta"),
        ("rwkv6", "recurrence"),
        ("talkie", "skip"),
    ],
)
def test_another_architecture_says_what_it_needs(name, needs):
    with pytest.raises(tl.UnsupportedError, match=rf"{name}.*needs.*{needs}.*tinyllm\.GGUF"):
        find(name)
    with pytest.raises(tl.UnsupportedError, match="'newest'; this version supports llama"):
        find("newest")


def test_the_documents_say_what_is_missing():
    text = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    table = text[text.index("| name | what is missing") :].split("\n\n", 1)[0]
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    listed = {name.strip(" `"): needs.strip() for name, needs in rows}
    assert listed == {name: needs for name, needs in MISSING.items() if name != "clip"}
    assert len(listed) + len(ARCHITECTURES) == 152  # those of llama.cpp in October 2026


def test_no_row_that_runs_is_called_missing():
    assert not set(MISSING) & set(ARCHITECTURES)
