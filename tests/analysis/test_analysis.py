"""Lens, attribution, circuits and sweeps, compared with separate float64 arithmetic."""

import re

import numpy as np
import pytest

import tinyllm as tl
from testkit import models

IDS = [3, 1, 4, 1, 5, 9, 2]
SIZES = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 60}


@pytest.fixture(scope="module", params=["plain", "biases, tied", "llama 3.1"])
def model(request, tmp_path_factory):
    options = {
        "plain": {},
        "biases, tied": {"biases": True, "tied": True},
        "llama 3.1": {"rope_freqs": np.linspace(1, 8, 4), "head_size": 8},
    }[request.param]
    return models.random_model(tmp_path_factory.mktemp("analysis"), context=80, **SIZES, **options)


@pytest.fixture(scope="module")
def trace(model):
    return model.trace(IDS, "*")


def test_the_lens_reads_every_layer_as_the_last(model, trace):
    result = tl.lens(trace, k=4)
    assert result.ids.shape == result.probs.shape == (2, 7, 4)
    assert result.names == ["blk.0.resid_post", "blk.1.resid_post"]
    norm = model.weights["output_norm.weight"].numpy(dtype="float64")
    name = "output.weight" if "output.weight" in model.weights else "token_embd.weight"
    matrix = model.weights[name].numpy(dtype="float64")
    for layer in range(2):
        x = trace[f"blk.{layer}.resid_post"].astype(np.float64)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + model.config.norm_epsilon)
        logits = x * norm @ matrix.T
        probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        for t in range(7):
            assert np.allclose(probs[t, result.ids[layer, t]], result.probs[layer, t], rtol=1e-4)
            assert np.isclose(result.probs[layer, t, 0], probs[t].max(), rtol=1e-4)
    assert np.array_equal(result.ids[-1, :, 0], trace["output"].argmax(axis=-1))
    assert (np.diff(result.probs, axis=-1) <= 0).all()
    assert result.pieces[0][0][0] == str(result.ids[0, 0, 0])  # no tokenizer: ids
    assert "7 tokens" in repr(result)
    assert "<table>" in result._repr_html_()
    assert tl.lens(trace, 1, taps="*resid_pre").names == ["blk.0.resid_pre", "blk.1.resid_pre"]


def test_the_lens_of_one_token(model, trace):
    whole = tl.lens(trace, k=60)
    result = tl.lens(trace, token=17)
    assert (result.token, result.id) == ("17", 17)
    assert result.ranks.shape == result.probs.shape == result.logprobs.shape == (2, 7)
    for layer in range(2):
        for t in range(7):
            rank = whole.ids[layer, t].tolist().index(17)
            assert result.ranks[layer, t] == rank
            assert np.isclose(result.probs[layer, t], whole.probs[layer, t, rank], rtol=1e-6)
    logits = trace["output"].astype(np.float64)
    want = logits[:, 17] - np.log(np.exp(logits).sum(axis=-1))
    assert np.allclose(result.logprobs[-1], want, atol=1e-6)
    assert "of '17': 2 layers, 7 tokens" in repr(result)
    assert result.table().rows[1][7] == f"{result.probs[1, 6]:.4f} #{result.ranks[1, 6]}"
    assert "<table>" in result._repr_html_()
    last = tl.lens(trace, token=17, at=-1)
    assert last.table().columns == ("tap", "probability", "log-probability", "rank")
    assert np.array_equal(last.logprobs, result.logprobs[:, 6:])


@pytest.mark.parametrize(
    ("at", "rows"),
    [(-1, [6]), (0, [0]), ([5, 1, -2], [5, 1, 5]), (slice(2, 4), [2, 3]), (np.int64(3), [3])],
)
def test_the_lens_at_some_tokens(model, trace, at, rows, monkeypatch):
    monkeypatch.setattr("tinyllm.analysis.lens._LOGITS", 3 * 60)  # several calls
    whole, some = tl.lens(trace), tl.lens(trace, at=at)
    assert np.array_equal(some.ids, whole.ids[:, rows])
    assert np.array_equal(some.probs, whole.probs[:, rows])
    assert some.positions.tolist() == rows
    assert some.tokens == [trace.pieces[row] for row in rows]
    assert some.pieces == [[layer[row] for row in rows] for layer in whole.pieces]


def test_a_lens_of_many_tokens_in_a_notebook(model):
    result = tl.lens(model.trace(np.arange(40) % 60))
    assert result._repr_html_().count("<th ") == 11
    assert "the last 10 are shown" in result._repr_html_()
    assert len(result.table().columns) == 41
    with pytest.raises(ValueError, match="last is 0"):
        result.table(0)


def test_attribution_sums_to_the_logit(model, trace):
    for token in (0, 17, 59):
        for at in (-1, 0, 3):
            parts = tl.attribution(trace, token, at=at)
            logit = float(trace["output"][at, token])
            assert abs(parts.total - logit) < 1e-5 * max(1, np.abs(parts.values).max())
            assert parts.total == pytest.approx(parts.values.sum())
            assert parts.at == at % 7
    both = tl.attribution(trace, 17, minus=20)
    one, other = tl.attribution(trace, 17), tl.attribution(trace, 20)
    assert np.allclose(both.values, one.values - other.values)
    assert both.heads.shape == (2, 4)
    assert both.values[both.names.index("blk.1.attn_mix[2]")] == both.heads[1, 2]
    assert both.values[both.names.index("blk.1.ffn_down")] == both.ffn[1]
    assert "'17' - '20'" in repr(both)
    assert "sum" in both._repr_html_()


def test_the_part_of_a_head_is_what_the_logit_loses_without_it(model, trace):
    """Zero one head of the last layer and keep the ffn and the scale of the final norm."""
    parts = tl.attribution(trace, 7)
    for head in range(4):
        edits = [
            tl.zero("blk.1.attn_mix", head=head),
            tl.patch("blk.1.ffn_down", trace),
            tl.patch("output_norm_scale", trace),
        ]
        without = model.trace(IDS, "output", edits=edits)["output"][-1, 7]
        fall = float(trace["output"][-1, 7]) - float(without)
        assert fall == pytest.approx(parts.heads[1, head], abs=1e-5)


def test_head_outputs_sum_to_the_attention_output(model, trace):
    for layer in (0, 1, -1):
        parts = trace.head_outputs(layer)
        assert parts.shape == (7, 4, 32)
        assert parts.dtype == np.float32
        total = parts.sum(axis=1, dtype=np.float64)
        name = f"blk.{layer % 2}.attn_output.bias"
        if name in model.weights:
            total = total + model.weights[name].numpy()
        assert np.allclose(total, trace[f"blk.{layer % 2}.attn_output"], atol=1e-5)


def test_qk_circuit_gives_the_scores(model, trace):
    if "blk.0.attn_q.bias" in model.weights:
        pytest.skip("scores have biases, circuits have none")
    for layer in range(2):
        x = trace[f"blk.{layer}.resid_pre"] * trace[f"blk.{layer}.attn_norm_scale"][:, None]
        for head in range(4):
            for i, j in ((0, 0), (4, 4), (6, 2), (5, 0)):
                qk = tl.qk_circuit(model, layer, head, offset=i - j)
                score = trace[f"blk.{layer}.attn_scores"][head, i, j]
                assert x[i] @ qk @ x[j] == pytest.approx(score, abs=2e-4)


def test_ov_circuit_gives_what_a_head_writes(model, trace):
    """Each token attends to the first token only."""
    first = np.zeros((7, 7), np.float32)
    first[:, 0] = 1
    for layer in range(2):
        t = model.trace(IDS, "*", edits=tl.set(f"blk.{layer}.attn_probs", first))
        x = t[f"blk.{layer}.resid_pre"][0] * t[f"blk.{layer}.attn_norm_scale"][0]
        for head in range(4):
            want = t.head_outputs(layer)[3, head].astype(np.float64)
            if "blk.0.attn_v.bias" in model.weights:
                bias = model.weights[f"blk.{layer}.attn_v.bias"].numpy().reshape(2, 8)[head // 2]
                out = model.weights[f"blk.{layer}.attn_output.weight"].numpy()
                want -= out[:, head * 8 : head * 8 + 8] @ bias
            assert np.allclose(tl.ov_circuit(model, layer, head) @ x, want, atol=1e-5)
    assert np.linalg.matrix_rank(tl.ov_circuit(model, 0, 0)) == 8


def test_induction_scores_of_attention_that_is_known(model, monkeypatch):
    scores = tl.induction_scores(model, 10, batch=3, seed=1)
    assert scores.shape == (2, 4)
    # by hand
    random = np.random.default_rng(1)
    total = np.zeros((2, 4))
    for _ in range(3):
        once = random.integers(0, 60, 10).tolist()
        t = model.trace(once + once, "*probs")
        for layer in range(2):
            for i in range(10, 19):
                total[layer] += t[f"blk.{layer}.attn_probs"][:, i, i - 9]
    assert np.allclose(scores, total / 27)
    with pytest.raises(ValueError, match="length is 40; expected 2 to 39"):
        tl.induction_scores(model, 40)
    with pytest.raises(ValueError, match="batch is 0"):
        tl.induction_scores(model, 10, batch=0)


def test_entropy(model, trace):
    got = tl.attention_entropy(trace)
    assert got.shape == (2, 4, 7)
    p = trace["blk.1.attn_probs"][2, 5, :6].astype(np.float64)
    assert got[1, 2, 5] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-6)
    even = np.tril(np.ones((7, 7))) / np.arange(1, 8)[:, None]
    flat = model.trace(IDS, "*probs", edits=tl.set("*probs", even))
    assert np.allclose(tl.attention_entropy(flat), np.log(np.arange(1, 8)), atol=1e-6)


# --- sweeps ------------------------------------------------------------------------------------


def metric(logits):
    return logits[-1, 3] - logits[-1, 4]


@pytest.mark.parametrize("logits", ["last", "all"])
@pytest.mark.parametrize(
    ("taps", "by"),
    [
        ("blk.*.resid_pre", "tokens"),
        ("blk.*.attn_mix", "heads"),
        (["blk.1.attn_v", "blk.0.ffn_down"], "tokens"),
        ("blk.*.attn_k_rope", "heads"),
        ("blk.1.attn_probs", "heads"),
    ],
)
def test_a_sweep_is_many_runs(model, taps, by, logits, monkeypatch):
    monkeypatch.setattr("tinyllm.analysis.sweep._ROWS", 20)  # several calls per layer
    clean, corrupted = IDS, [3, 8, 4, 1, 5, 7, 2]
    grid = tl.patch_sweep(model, clean, corrupted, taps, metric, by=by, logits=logits)
    source = model.trace(clean, "*")
    names = source.names(taps)
    assert grid.shape[0] == len(names)
    for i, name in enumerate(names):
        for j in range(grid.shape[1]):
            where = {"at": j} if by == "tokens" else {"head": j}
            edit = tl.patch(name, source, **where)
            assert grid[i, j] == metric(model.logits(corrupted, edits=edit)), (name, j)
    again = tl.patch_sweep(model, source, model.trace(corrupted), taps, metric, by=by)
    assert np.array_equal(grid, again)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"metric": 3}, TypeError, "metric is 3"),
        ({"by": "layers"}, ValueError, "by is 'layers'"),
        ({"logits": "none"}, ValueError, "logits is 'none'"),
        ({"taps": "output"}, ValueError, "taps holds 'output'; expected taps in blocks"),
        ({"taps": "blk.0.attn_qq"}, ValueError, "taps|no tap"),
        ({"taps": []}, ValueError, "expected at least one tap"),
        ({"by": "heads"}, ValueError, "has no heads"),
        ({"clean": [1, 2]}, ValueError, "2 tokens and corrupted 7"),
        ({"clean": [[1, 2]]}, TypeError, "clean is a batch"),
    ],
)
def test_bad_sweeps(model, options, error, words):
    given = {"clean": IDS, "corrupted": IDS, "metric": metric, **options}
    with pytest.raises(error, match=words):
        tl.patch_sweep(model, **given)


def test_a_sweep_needs_its_taps(model, trace):
    part = model.trace(IDS, "output")
    with pytest.raises(ValueError, match=r"clean does not have blk\.0\.resid_pre"):
        tl.patch_sweep(model, part, trace, metric=metric)
    with pytest.raises(ValueError, match="starts at position 1"):
        tl.patch_sweep(model, trace[1:], trace, metric=metric)


# --- bad arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, t: tl.lens(t, 0), ValueError, "k is 0"),
        (lambda m, t: tl.lens(t, at=7), IndexError, "at is 7; expected 0 to 6"),
        (lambda m, t: tl.lens(t, at=[0, -8]), IndexError, "at is -8"),
        (lambda m, t: tl.lens(t, at=1.5), TypeError, "at is 1.5; expected an integer"),
        (lambda m, t: tl.lens(t, at=[]), ValueError, "selects no token"),
        (lambda m, t: tl.lens(t, token=60), ValueError, "token is 60"),
        (lambda m, t: tl.lens(t, token=" Paris"), ValueError, "no tokenizer"),
        (lambda m, t: tl.lens(t, taps="*attn_q"), ValueError, "shape (T, D)"),
        (lambda m, t: tl.lens(t, taps="nothing"), ValueError, "no tap"),
        (lambda m, t: tl.attribution(t, 60), ValueError, "token is 60"),
        (lambda m, t: tl.attribution(t, "a"), ValueError, "no tokenizer"),
        (lambda m, t: tl.attribution(t, 1.5), TypeError, "token is 1.5"),
        (lambda m, t: tl.attribution(t, 1, minus=-1), ValueError, "minus is -1"),
        (lambda m, t: tl.attribution(t, 1, at=7), IndexError, "at is 7"),
        (lambda m, t: tl.attribution(m.trace(IDS, "output"), 1), ValueError, "token_embd, blk.0"),
        (lambda m, t: t.head_outputs(2), IndexError, "layer is 2"),
        (lambda m, t: t.head_outputs("0"), TypeError, "layer is '0'"),
        (lambda m, t: m.trace(IDS, "output").head_outputs(0), ValueError, "blk.0.attn_mix"),
        (lambda m, t: tl.ov_circuit(m, 0, 4), IndexError, "head is 4"),
        (lambda m, t: tl.qk_circuit(m, -3, 0), IndexError, "layer is -3"),
        (lambda m, t: tl.qk_circuit(m, 0, 0, offset="x"), TypeError, "offset"),
        (lambda m, t: tl.attention_entropy(m.trace(IDS)), ValueError, "attn_probs"),
    ],
)
def test_bad_arguments(model, trace, call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call(model, trace)


def test_a_trace_from_a_file_needs_the_model(model, trace, tmp_path):
    trace.save(tmp_path / "t.npz")
    back = tl.read(tmp_path / "t.npz")
    with pytest.raises(ValueError, match="give model="):
        tl.lens(back)
    assert np.array_equal(tl.lens(back, model=model).ids, tl.lens(trace).ids)
    assert np.array_equal(back.head_outputs(1, model=model), trace.head_outputs(1))
    other = models.random_model(tmp_path, seed=5, **SIZES)
    with pytest.raises(ValueError, match="model has the fingerprint"):
        tl.attribution(back, 3, model=other)


def test_layers_of_different_sizes(tmp_path):
    sizes = {**SIZES, "heads": [4, 2], "kv_heads": [2, 1], "head_size": 8}
    model = models.random_model(tmp_path, **sizes)
    t = model.trace(IDS, "*")
    parts = tl.attribution(t, 5)
    assert abs(parts.total - t["output"][-1, 5]) < 1e-5
    assert np.isnan(parts.heads[1, 2:]).all()
    assert np.isnan(tl.induction_scores(model, 5)[1, 2:]).all()
    grid = tl.patch_sweep(model, IDS, IDS, "*attn_mix", metric, by="heads")
    assert np.isnan(grid[1, 2:]).all()
    assert not np.isnan(grid[0]).any()
    with pytest.raises(ValueError, match="expected equal shapes"):
        tl.attention_entropy(t)
