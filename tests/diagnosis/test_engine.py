"""A plain engine of an outsider, right and with the mistakes that people make."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import real
from testkit.plain_engine import BUGS, Engine
from tinyllm.files.model_file import DEMO

PROMPT = "ROMEO: what light through yonder window breaks?"


@pytest.fixture(scope="module")
def model():
    return tl.load()


def engine(*bugs):
    return Engine(DEMO, bugs)


def names(found):
    return [{each.name, *each.also} for each in found.faults]


def test_the_engine_is_right(model):
    ids = model.tokenizer.encode(PROMPT)
    values = engine().run(ids)
    assert np.abs(values["output"] - model.logits(ids)).max() < 1e-4
    assert tl.doctor(model, values, PROMPT).ok


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_named(model, bug):
    ids = model.tokenizer.encode(PROMPT)
    values = engine(bug).run(ids)
    found = tl.doctor(model, values, PROMPT)
    assert found.faults[0].name == BUGS[bug]
    assert len(found.faults) == 1
    assert not found.unexplained
    assert found.faults[0].residual < 1e-5
    stream = {name: value for name, value in values.items() if name.endswith("resid_post")}
    found = tl.doctor(model, stream, PROMPT)
    assert BUGS[bug] in names(found)[0]
    assert len(found.faults) == 1


@pytest.mark.slow
@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug != "mask_sees_next"])
def test_a_bug_is_named_from_logits(model, bug):
    ids = model.tokenizer.encode(PROMPT)
    found = tl.doctor(model, {"output": engine(bug).run(ids)["output"][-4:]}, PROMPT)
    assert BUGS[bug] in names(found)[0]
    assert len(found.faults) == 1


@pytest.mark.parametrize("bug", ["rope_halves", "keys_as_values", "weights_in_file_order"])
def test_a_bug_is_named_from_generated_ids(model, bug):
    ids = model.tokenizer.encode(PROMPT)
    made = engine(bug).generate(ids, 8)
    found = tl.doctor(model, {"generated": made}, PROMPT)
    assert BUGS[bug] in names(found)[0]


def test_the_two_bugs_of_a_famous_port(model):
    # cos and sin are exchanged, and attention sums up keys; both are found in one call
    ids = model.tokenizer.encode(PROMPT)
    found = tl.doctor(model, engine("cos_sin_swapped", "keys_as_values").run(ids), PROMPT)
    assert {each.name for each in found.faults} == {"rope_cos_sin_swapped", "keys_as_values"}
    assert not found.unexplained
    for each in found.faults:
        assert each.residual < 1e-5 < 0.5 < each.error
        assert each.name in str(found)
    stream = engine("cos_sin_swapped", "keys_as_values").run(ids)
    stream = {name: value for name, value in stream.items() if name.endswith("resid_post")}
    found = tl.doctor(model, stream, PROMPT)
    assert {name for each in names(found) for name in each} >= {
        "rope_cos_sin_swapped",
        "keys_as_values",
    }


def test_names_of_another_program(model, tmp_path):
    # as the engine calls them, heads flat, with a batch axis, in a file
    ids = model.tokenizer.encode(PROMPT)
    values = engine("keys_as_values").run(ids)
    names = {
        "l{i}.v": "attn_v",
        "l{i}.p": "attn_probs",
        "l{i}.z": "attn_mix",
        "l{i}.k": "attn_k_rope",
    }
    theirs = {
        name.format(i=i): values[f"blk.{i}.{ours}"].reshape(1, len(ids), -1)
        if ours != "attn_probs"
        else values[f"blk.{i}.{ours}"][np.newaxis]
        for i in range(model.config.layers)
        for name, ours in names.items()
    }
    np.savez(tmp_path / "engine.npz", **theirs)
    dialect = {name: f"blk.{{i}}.{ours}" for name, ours in names.items()}
    dump = tl.read(tmp_path / "engine.npz", dialect, PROMPT, model=model)
    found = tl.doctor(model, dump, PROMPT)
    assert [each.name for each in found.faults] == ["keys_as_values"]


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.real
def test_smollm2():
    model = tl.load(real.path(f"{real.GGUFS[0]}.gguf"))
    ids = model.tokenizer.encode("The history of the steam engine begins long before")
    assert tl.doctor(model, Engine(model.path).run(ids), ids).ok
    for bug, name in BUGS.items():
        found = tl.doctor(model, Engine(model.path, [bug]).run(ids), ids)
        assert found.faults[0].name == name
        assert not found.unexplained
