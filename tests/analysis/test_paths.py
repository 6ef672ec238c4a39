"""Path patching against the arithmetic of the residual stream in float64."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, models
from tinyllm import reference

SIZES = {"layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 60}
CLEAN = [3, 1, 4, 1, 5, 9]
OTHER = [3, 8, 4, 7, 5, 2]


def metric(logits):
    return float(logits[-1, 5]) - float(logits[-1, 6])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.random_model(tmp_path_factory.mktemp("paths"), context=64, **SIZES)


def walk(model, ids, changed=()):
    """The forward pass in float64, with some values replaced."""
    taps = {"tokens": np.array(ids), "positions": np.arange(len(ids))}
    for step in reference.steps(model.steps):
        taps[step.tap] = step.run(model.weights, taps)
        if step.tap in dict(changed):
            taps[step.tap] = dict(changed)[step.tap]
    return taps


def effect(model, clean, other, sender, receiver):
    """One path by arithmetic: the clean stream plus the change of what the sender adds to it."""
    name, head = sender
    layer = int(name.split(".")[1])
    if head is None:
        change = other[name] - clean[name]
    else:
        weight = model.weights[f"blk.{layer}.attn_output.weight"].numpy(dtype="float64")
        size = clean[name].shape[2]
        columns = weight[:, head * size : (head + 1) * size]
        change = (other[name][:, head] - clean[name][:, head]) @ columns.T
    tap, head = receiver
    if tap == "output":
        source, before = f"blk.{SIZES['layers'] - 1}.resid_post", True
    else:
        mine = int(tap.split(".")[1])
        source = f"blk.{mine}.{'resid_mid' if tap.endswith('ffn_norm') else 'resid_pre'}"
        before = layer < mine or (mine == layer and "attn" in name and tap.endswith("ffn_norm"))
    if not before:
        return metric(clean["output"])
    # recompute from the stream to the receiver: norm, and the matrix if it has one
    found = dict(clean) | {source: clean[source] + change}
    started = False
    for step in reference.steps(model.steps):
        if started:
            if any(step.tap.endswith(end) for end in ("attn_mix", "ffn_down")):
                break
            found[step.tap] = step.run(model.weights, found)
        started |= step.tap == source
    new = clean[tap].copy()
    where = slice(None) if head is None else (slice(None), head)
    new[where] = found[tap][where]
    return metric(walk(model, CLEAN, {tap: new}.items())["output"])


def test_against_the_arithmetic_of_the_stream(model, monkeypatch):
    monkeypatch.setattr("tinyllm.analysis.paths._ROWS", 20)  # several batches of senders
    clean, other = walk(model, CLEAN), walk(model, OTHER)
    senders = [("blk.0.attn_mix", 1), ("blk.1.attn_mix", 3), ("blk.0.ffn_down", None)]
    senders += [("blk.2.ffn_down", None), ("blk.1.attn_output", None)]
    receivers = [("blk.1.attn_q", 2), ("blk.2.attn_k", 1), ("blk.2.attn_v", 0)]
    receivers += [("blk.1.ffn_norm", None), ("blk.2.attn_q", None), ("output", None)]
    got = tl.path_patching(model, CLEAN, OTHER, senders, receivers, metric)
    want = [[effect(model, clean, other, s, r) for r in receivers] for s in senders]
    effects = np.array(want) - metric(clean["output"])
    assert np.abs(effects).max() > 0.05
    assert np.count_nonzero(np.abs(effects) > 1e-4) >= 16
    assert np.abs(got - want).max() < 1e-5
    # a receiver that comes before the sender hears nothing, not even in the last bit
    assert got[3, 0] == metric(model.logits(CLEAN))


def test_all_paths_are_plain_patching(model):
    """Everything that is added to the stream, from the other run, gives the other run."""
    every = ["token_embd"]
    for layer in range(3):
        every += [(f"blk.{layer}.attn_mix", head) for head in range(4)] + [f"blk.{layer}.ffn_down"]
    got = tl.path_patching(model, CLEAN, OTHER, [every], ["output"], metric)
    assert got[0, 0] == metric(model.logits(OTHER))
    # a stream that sends to itself, or to the logits from the end, is a patch
    senders = ["blk.1.resid_pre", "blk.2.resid_post"]
    got = tl.path_patching(model, CLEAN, OTHER, senders, ["blk.1.resid_pre", "output"], metric)
    other = model.trace(OTHER, "*resid_pre")
    want = metric(model.logits(CLEAN, edits=tl.patch("blk.1.resid_pre", other)))
    assert got[0, 0] == want
    assert got[1, 1] == metric(model.logits(OTHER))
    assert got[1, 0] == metric(model.logits(CLEAN))
    # equal prompts: nothing is sent
    got = tl.path_patching(model, CLEAN, CLEAN, every, ["output", "blk.2.attn_q"], metric)
    assert np.all(got == metric(model.logits(CLEAN)))


def test_networks_in_between_can_be_computed_anew(model):
    clean = model.trace(CLEAN, "*attn_mix")
    other = model.trace(OTHER, "*attn_mix")
    held = [tl.patch("*attn_mix", clean), tl.patch("blk.0.attn_mix", other, head=2)]
    got = tl.path_patching(
        model, CLEAN, OTHER, [("blk.0.attn_mix", 2)], ["output"], metric, freeze_ffn=False
    )
    assert got[0, 0] == metric(model.logits(CLEAN, edits=held))
    direct = tl.path_patching(model, CLEAN, OTHER, [("blk.0.attn_mix", 2)], ["output"], metric)
    assert got[0, 0] != direct[0, 0]


def test_receivers_together(model):
    both = [("blk.1.attn_q", 0), ("blk.2.attn_q", 3)]
    sender = ("blk.0.attn_mix", 0)
    got = tl.path_patching(model, CLEAN, OTHER, [sender], [both, *both], metric)
    held = [tl.patch("*attn_mix", model.trace(CLEAN, "*attn_mix"))]
    held += [tl.patch("*ffn_down", model.trace(CLEAN, "*ffn_down"))]
    held += [tl.patch("blk.0.attn_mix", model.trace(OTHER, "*attn_mix"), head=0)]
    heard = model.trace(CLEAN, "*attn_q", edits=held)
    edits = [tl.patch(tap, heard, head=head) for tap, head in both]
    assert got[0, 0] == metric(model.logits(CLEAN, edits=edits))
    assert len(set(got[0])) == 3


@pytest.mark.parametrize("name", ["gemma2", "gemma3n", "phi2", "qwen3moe", "mamba"])
def test_on_other_blocks(name, tmp_path):
    """All paths together give the other run in parallel blocks, experts and blocks of states."""
    model = architectures.random_model(tmp_path, name)
    steps = model.steps
    senders = [[tap.name for tap in model.taps if tap.layer < 0]]  # embeddings
    for layer in range(model.config.layers):
        for role in ("attn_mix", "ffn_add"):
            if steps.has_role(role, layer):
                senders[0].append(steps.role(role, layer))
        if not steps.has_role("attn_mix", layer):
            senders[0].append(steps.role("attn_add", layer))
    got = tl.path_patching(model, CLEAN, OTHER, senders, ["output"], metric)
    assert got[0, 0] == metric(model.logits(OTHER))


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("falcon-h1", tl.UnsupportedError, "block 0 has attention and states side by side"),
        ("bert", ValueError, "logits"),
    ],
)
def test_models_without_paths(name, error, words, tmp_path):
    model = architectures.random_model(tmp_path, name)
    with pytest.raises(error, match=words):
        tl.path_patching(model, CLEAN, OTHER, ["token_embd"], ["output"], metric)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"corrupted": [1, 2]}, ValueError, "clean has 6 tokens and corrupted 2"),
        ({"clean": [[1, 2], [3]]}, TypeError, "clean is a batch"),
        ({"senders": "blk.0.attn_mix"}, TypeError, "expected a list"),
        ({"senders": []}, ValueError, "at least one"),
        ({"senders": ["blk.0.attn_v"]}, ValueError, "not added to the residual stream"),
        ({"senders": ["blk.*.attn_mix"]}, ValueError, "is 3 taps; expected one"),
        ({"senders": [("blk.0.attn_mix", 4)]}, IndexError, "head is 4; expected -4 to 3"),
        ({"senders": [("blk.0.attn_mix", 1.5)]}, TypeError, "expected a tap or"),
        ({"senders": ["nothing"]}, ValueError, "no tap"),
        ({"receivers": ["blk.1.attn_mix"]}, ValueError, "holds at its clean value"),
        ({"receivers": [("blk.1.ffn_norm", 0)]}, ValueError, "no heads"),
        ({"receivers": [3]}, TypeError, "receivers holds 3"),
        ({"metric": 3}, TypeError, "metric is 3"),
    ],
)
def test_bad_arguments(model, options, error, words):
    given = {
        "clean": CLEAN,
        "corrupted": OTHER,
        "senders": ["token_embd"],
        "receivers": ["output"],
        "metric": metric,
    }
    with pytest.raises(error, match=words):
        tl.path_patching(model, **{**given, **options})
