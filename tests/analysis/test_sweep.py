"""Sweeps give the bits of single runs, whatever they share, on every kind of model."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, models

IDS = [3, 1, 4, 1, 5, 9, 2]
SIZES = {"layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 60}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.random_model(tmp_path_factory.mktemp("sweep"), context=80, **SIZES)


def metric(logits):
    return logits[-1, 3] - 2 * logits[0, 4] + len(logits)


def random_edits(model, trace, seed, count=30):
    """Return lists of edits of all kinds, at all kinds of places."""
    rng = np.random.default_rng(seed)
    taps = [tap for tap in model.taps if not tap.matrix and not tap.choices]
    makes = [
        lambda tap, **where: tl.zero(tap, **where),
        lambda tap, **where: tl.scale(tap, 0.5, **where),
        lambda tap, **where: tl.mean(tap, **where),
        lambda tap, **where: tl.mean(tap, over=[trace, trace[2:4]], **where),
        lambda tap, **where: tl.patch(tap, trace, **where),
        lambda tap, **where: tl.apply(tap, np.tanh, **where),
    ]
    n = len(trace.tokens)
    places = [None, -1, 0, n - 2, [n - 1, 2], slice(3, None), slice(-2, None)]
    found = []
    for _ in range(count):
        edits = []
        for _ in range(rng.integers(1, 3)):
            tap = taps[rng.integers(len(taps))]
            where = {"at": places[rng.integers(len(places))]}
            if tap.heads and rng.random() < 0.5:
                where["head"] = 0
            edits.append(makes[rng.integers(len(makes))](tap.name, **where))
        found.append(edits)
    return [*found, [], tl.zero("output", at=-1), tl.zero("token_embd", at=3)]


@pytest.mark.parametrize("logits", ["last", "all"])
@pytest.mark.parametrize("seed", range(3))
def test_a_sweep_has_the_bits_of_single_runs(model, seed, logits, monkeypatch):
    monkeypatch.setattr("tinyllm.analysis.sweep._ROWS", [1, 20, 1024][seed])
    trace = model.trace([8, 7, 6, 5, 4, 3, 2], "*")
    edits = random_edits(model, trace, seed)
    got = tl.sweep(model, IDS, edits, metric, logits=logits)
    assert got.shape == (len(edits),)
    for value, edit in zip(got, edits, strict=True):
        whole = model.logits(IDS, edits=edit)
        assert value == metric(whole if logits == "all" else whole[-1:]), edit


@pytest.mark.parametrize(
    "name",
    ["gemma2", "gemma3n", "gemma4", "phi2", "qwen3next", "lfm2", "mamba", "gpt2", "deepseek2"],
)
def test_on_every_kind_of_model(name, tmp_path):
    """Blocks with states, with caches of other blocks, in parallel, and of a second embedding."""
    model = architectures.random_model(tmp_path, name, layers=2)
    trace = model.trace([8, 7, 6, 5, 4, 3, 2], "*")
    edits = random_edits(model, trace, 5, count=12)
    got = tl.sweep(model, IDS, edits, metric, logits="all")
    for value, edit in zip(got, edits, strict=True):
        assert value == metric(model.logits(IDS, edits=edit)), edit


def test_a_batch_and_an_array_of_edits(model):
    prompts = [IDS, [7, 7, 2], [5]]
    edits = np.empty((3, 4), object)
    for layer in range(3):
        for head in range(4):
            edits[layer, head] = [tl.zero(f"blk.{layer}.attn_mix", head=head)]
    got = tl.sweep(model, prompts, edits, metric)
    assert got.shape == (3, 4, 3)
    for i, prompt in enumerate(prompts):
        assert got[2, 1, i] == metric(model.logits(prompt, edits=edits[2, 1])[-1:])
    assert np.array_equal(tl.ablation_sweep(model, prompts, metric=metric), got)
    assert tl.sweep(model, IDS, [], metric).shape == (0,)


def test_work_that_is_shared_runs_once(model, monkeypatch):
    ran = []
    run = model.run

    def watched(sessions, tokens, rows, layout=None, edits=(), first_layer=0, resid=None):
        ran.append((first_layer, sum(map(len, tokens))))
        return run(sessions, tokens, rows, layout, edits, first_layer, resid)

    monkeypatch.setattr(model, "run", watched)
    edits = [tl.zero(f"blk.{layer}.ffn_down", at=5) for layer in range(3)]
    tl.sweep(model, IDS, edits, metric)
    assert ran == [(0, 7), (0, 2), (1, 2), (2, 2)]
    ran.clear()
    tl.sweep(model, IDS, [tl.zero("blk.1.attn_mix", head=h) for h in range(4)], metric)
    assert ran == [(0, 7), (1, 28)]
    ran.clear()
    tl.sweep(model, IDS, [tl.mean("blk.1.ffn_down", at=5), []], metric)
    assert ran == [(0, 7), (1, 7), (3, 1)]


def test_ablation_by_neuron(model):
    got = tl.ablation_sweep(model, IDS, "blk.*.ffn_act", metric, by="index")
    old = model.trace(IDS, "*ffn_act")["blk.1.ffn_act"]
    assert got.shape == (3, old.shape[1])
    new = old.copy()
    new[:, 11] = 0
    want = model.logits(IDS, edits=tl.set("blk.1.ffn_act", new))[-1:]
    assert got[1, 11] == metric(want)
    assert len(np.unique(got)) > 100
    got = tl.patch_sweep(model, IDS, IDS[::-1], "*attn_v", metric, by=("heads", "index", "tokens"))
    patch = tl.patch("blk.2.attn_v", model.trace(IDS, "*attn_v"), head=1, index=3, at=4)
    assert got[2, 1, 3, 4] == metric(model.logits(IDS[::-1], edits=patch)[-1:])


def test_ablation_by_token_and_head(model):
    got = tl.ablation_sweep(model, IDS, "blk.*.attn_v", metric, by=("tokens", "heads"))
    assert got.shape == (3, 7, 2)
    want = model.logits(IDS, edits=tl.zero("blk.1.attn_v", at=4, head=1))[-1:]
    assert got[1, 4, 1] == metric(want)
    traces = [model.trace(ids, "*") for ids in ([1, 2, 3], [9, 8, 7, 6])]

    def edit(tap, **where):
        return tl.mean(tap, over=traces, **where)

    got = tl.ablation_sweep(model, IDS, "blk.*.attn_mix", metric, edit=edit)
    rows = np.concatenate([t["blk.2.attn_mix"] for t in traces]).astype(np.float64)
    mean = rows.mean(axis=0).astype(np.float32)
    want = model.logits(IDS, edits=tl.set("blk.2.attn_mix", mean[3], head=3))[-1:]
    assert got[2, 3] == metric(want)
    assert np.array_equal(
        tl.ablation_sweep(model, IDS, "blk.*.resid_pre", metric, by="tokens"),
        tl.ablation_sweep(model, [IDS], "blk.*.resid_pre", metric, by="tokens")[..., 0],
    )


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: tl.sweep(m, IDS, [], 3), TypeError, "metric is 3"),
        (lambda m: tl.sweep(m, IDS, [3], metric), TypeError, "edits is 3"),
        (lambda m: tl.sweep(m, IDS, [tl.zero("x")], metric), ValueError, "no tap"),
        (lambda m: tl.sweep(m, IDS, [tl.zero("output", at=9)], metric), IndexError, "holds 9"),
        (lambda m: tl.sweep(m, [99], [], metric), ValueError, "99"),
        (lambda m: tl.sweep(m, IDS, [], metric, logits="x"), ValueError, "logits is 'x'"),
        (lambda m: tl.ablation_sweep(m, IDS, metric=metric, by=()), ValueError, "by is"),
        (lambda m: tl.ablation_sweep(m, IDS, metric=metric, by="x"), ValueError, "by is 'x'"),
        (
            lambda m: tl.ablation_sweep(m, [IDS, [1]], metric=metric, by="tokens"),
            ValueError,
            "equal numbers",
        ),
        (lambda m: tl.ablation_sweep(m, IDS, "output", metric), ValueError, "no heads"),
        (
            lambda m: tl.ablation_sweep(m, IDS, "*attn_probs", metric, by="index"),
            ValueError,
            "no neurons",
        ),
        (lambda m: tl.mean("output", over=[3]), TypeError, "a list of traces"),
        (lambda m: tl.sweep(m, IDS, [tl.mean("output", over=[])], metric), ValueError, "no tokens"),
    ],
)
def test_bad_arguments(model, call, error, words):
    with pytest.raises(error, match=words):
        call(model)
