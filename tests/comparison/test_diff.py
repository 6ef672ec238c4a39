"""`tinyllm.diff`: where two runs part, what counts as rounding, and how it is shown."""

import math
import re

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, models
from tinyllm.cli.main import main
from tinyllm.comparison.measure import measure, worst
from tinyllm.comparison.rounding import noise, rounding_of

IDS = [5, 9, 2, 77, 31, 8, 200]
SIZES = {"width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 320, "layers": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return architectures.random_model(tmp_path_factory.mktemp("diff"), "llama", **SIZES)


@pytest.fixture(scope="module")
def trace(model):
    return model.trace(IDS, "*")


def test_equal_runs_are_the_same(model, trace):
    d = tl.diff(trace, trace)
    assert d.same
    assert d.first is None
    assert (len(d), d.tolerance) == (len(trace), 1e-5)
    assert [row.tap for row in d] == list(trace)  # as the forward pass computes them
    assert "all the same" in str(d)


@pytest.mark.parametrize(
    ("tap", "change", "token", "head"),
    [
        ("blk.1.attn_q_rope", {"at": 3, "head": 2}, 3, 2),
        ("blk.0.attn_v", {"at": 0, "head": 1}, 0, 1),
        ("blk.2.ffn_gate", {"at": 6}, 6, None),
        ("blk.0.attn_probs", {"at": 4, "head": 3}, 4, 3),
        ("output", {"at": 5}, 5, None),
        ("blk.1.ffn_norm_scale", {"at": 2}, 2, None),
    ],
)
def test_the_first_difference_is_found(model, trace, tap, change, token, head):
    wrong = model.trace(IDS, "*", edits=tl.scale(tap, 1.25, **change))
    first = tl.diff(trace, wrong).first
    assert (first.tap, first.token, first.head) == (tap, token, head)
    a, b = trace[tap].astype(np.float64), wrong[tap].astype(np.float64)
    apart = np.abs(a - np.where(np.isfinite(b), b, a))
    index = np.unravel_index(np.argmax(apart), apart.shape)
    assert first.index == tuple(index)
    assert (first.a, first.b) == (a[index], b[index])
    rows = (a[:, token], b[:, token]) if tap.endswith("probs") else (a[token], b[token])
    assert first.error == pytest.approx(
        np.linalg.norm(rows[0] - rows[1]) / np.linalg.norm(rows[0]), rel=1e-6
    )
    cosine = np.sum(rows[0] * rows[1]) / np.linalg.norm(rows[0]) / np.linalg.norm(rows[1])
    assert first.cosine == pytest.approx(cosine)
    assert first.verdict == "apart"
    assert str(first).startswith(f"{tap}, token {token}")


def test_what_is_not_finite_has_its_own_verdict(model, trace):
    for value, verdict in ((np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "inf")):
        dump = {name: np.array(array) for name, array in trace.items()}
        dump["blk.1.ffn_up"][2, 5] = value
        dump["blk.1.attn_q"][4, 3, 1] = value
        first = tl.diff(model, dump, tokens=IDS).first
        assert (first.verdict, first.tap, first.token, first.head) == (
            verdict, "blk.1.attn_q", 4, 3,
        )  # fmt: skip
        assert first.index == (4, 3, 1)
        assert first.b == value or (math.isnan(first.b) and math.isnan(value))
    # what both sides have is not a difference
    both = {"output": np.array(trace["output"])}
    both["output"][1, 1] = np.nan
    assert tl.diff(both, both, model=model).same


def test_a_mask(model, trace):
    scores = np.array(trace["blk.0.attn_scores"])
    for low in (-1e9, -65504.0, np.finfo(np.float32).min):  # other ways of writing it
        dump = {"blk.0.attn_scores": np.where(np.isfinite(scores), scores, np.float32(low))}
        assert tl.diff(trace, dump).same
    scores[1, 3, 5] = 0.25
    first = tl.diff(trace, {"blk.0.attn_scores": scores}).first
    assert (first.verdict, first.token, first.head, first.index) == ("mask", 3, 1, (1, 3, 5))


def test_measure_and_worst_agree_with_numpy():
    random = np.random.default_rng(0)
    a = random.standard_normal((5, 3, 4)).astype(np.float32)
    a[2] = 0  # a token that is zero counts with a thousandth of the usual norm
    b = a + random.standard_normal(a.shape).astype(np.float32) * 1e-3
    found = measure(a, b, False, True)
    x, y = a.astype(np.float64).reshape(5, -1), b.astype(np.float64).reshape(5, -1)
    norms = np.linalg.norm(x, axis=1)
    norms[2] = 1e-3 * np.sqrt((norms**2).mean())
    np.testing.assert_allclose(found.by_token, np.linalg.norm(x - y, axis=1) / norms)
    np.testing.assert_allclose(
        found.errors, np.linalg.norm((x - y).reshape(5, 3, 4), axis=2) / norms[:, np.newaxis]
    )
    assert worst(a, b) == np.unravel_index(np.argmax(np.abs(a - b)), a.shape)


# ---- what the sides may be ----


def test_sides(model, trace, tmp_path):
    flat = {"layer1_q": trace["blk.1.attn_q"].reshape(len(IDS), -1), "tokens": np.array(IDS)}
    np.savez(tmp_path / "e.npz", **flat)
    loose = tl.read({"layer1_q": flat["layer1_q"]})
    for side in (flat, tmp_path / "e.npz", str(tmp_path / "e.npz"), loose, trace):
        for d in (tl.diff(model, side, tokens=IDS), tl.diff(trace, side), tl.diff(side, trace)):
            assert d.same
            assert len(d) in (1, len(trace))
    assert tl.diff(model, flat).same  # with the tokens of the dump
    assert tl.diff(flat, flat, model=model).same
    assert tl.diff({"x0": np.ones((3, 4))}, {"x0": np.ones((3, 4))}).same  # without a model
    last = {"logits": trace["output"][-1]}
    d = tl.diff(trace, last)
    assert (d.same, d["output"].token) == (True, len(IDS) - 1)
    last["logits"] = last["logits"] * np.float32(1.5)
    assert tl.diff(trace, last).first.token == len(IDS) - 1
    own = {"mine 1": trace["blk.1.resid_post"]}
    assert tl.diff(model, own, dialect={"mine {i}": "blk.{i}.resid_post"}, tokens=IDS).same
    with pytest.raises(ValueError, match="a has 7 tokens, and b has 6"):
        tl.diff(trace, model.trace(IDS[:-1]))
    with pytest.raises(
        ValueError, match=r"no tap in common: a has token_embd, .*; and b has|common"
    ):
        tl.diff(model.trace(IDS, "token_embd"), model.trace(IDS, "output"))
    with pytest.raises(ValueError, match="does not have its tokens; give tokens="):
        tl.diff(model, last)
    with pytest.raises(TypeError, match="models"):
        tl.diff(model, model)
    with pytest.raises(TypeError, match="a side is 3"):
        tl.diff(trace, 3)
    with pytest.raises(ValueError, match="tolerance is -1"):
        tl.diff(trace, trace, -1)


def test_other_tokens_are_noted(model, trace):
    d = tl.diff(trace, model.trace([5, 9, 3, *IDS[3:]]))
    assert d.first.tap == "token_embd"
    assert d.notes == [
        "the tokens differ: token 2 is 3 instead of 2, so that everything after it must"
    ]
    assert d.notes[0] in str(d)


def test_a_part_of_a_context(model, trace):
    session = model.session()
    session.eval(IDS[:4], capture=[])
    later = session.eval(IDS[4:], capture="*")
    assert tl.diff(trace[4:], later[:], 1e-4).same if set(later) else True


# ---- rounding ----


def rounded(trace, to):
    return {name: to(array) for name, array in trace.items()}


def bfloat16(x):
    return ((x.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)


def test_the_tolerance_follows_from_the_sides(tmp_path):
    path = tmp_path / "q.gguf"
    tl.write_gguf(path, *models.random_llama("Q8_0", layers=2, width=256))
    exact, fast = tl.load(path), tl.load(path, mode="fast")
    a = exact.trace(IDS, "*")
    d = tl.diff(a, fast.trace(IDS, "*"))
    assert (d.tolerance, d.same) == (5e-2, True)
    assert max(row.error for row in d) > 1e-3
    d = tl.diff(exact, {n: bfloat16(v) for n, v in a.items()}, tokens=IDS)
    assert (d.tolerance, d.same) == (2e-2, True)
    d = tl.diff(a, {n: v.astype(np.float16) for n, v in a.items() if "scores" not in n})
    assert (d.tolerance, d.same) == (5e-3, True)
    # an engine of which nothing is known
    dump = dict(fast.trace(IDS, "*"))
    d = tl.diff(exact, dump, tokens=IDS)
    assert d.same
    assert 5e-3 < d.tolerance <= 5e-2
    assert "which looks like rounding" in d.reason
    # and what is too large for rounding, or in a step that does not round, is apart
    for edit, tap in (
        (tl.scale("blk.0.attn_norm", 1.01), "blk.0.attn_norm"),
        (tl.scale("blk.0.attn_v", 1.2), "blk.0.attn_v"),
        (tl.scale("blk.1.ffn_up", 1.5), "blk.1.ffn_up"),
    ):
        first = tl.diff(exact, dict(fast.trace(IDS, "*", edits=edit)), tokens=IDS).first
        assert first.tap == tap, edit
    assert tl.diff(exact, dict(exact.trace(IDS, "*")), tokens=IDS).tolerance == 1e-5


def test_the_models_own_noise_raises_the_tolerance_where_values_cancel(model):
    """A step that amplifies: the difference of two large values that are almost equal."""
    ids = IDS[:4]
    for kind, low, high in (
        ("float32", 1e-8, 1e-5),
        ("float16", 1e-5, 1e-2),
        ("bfloat16", 1e-4, 5e-2),
        ("8 bits", 1e-4, 1e-1),
    ):
        error = noise(model, ids, ["output", "blk.0.attn_scores"], kind)
        for array in error.values():
            assert array.shape == (4,)
            assert (array < high).all()
            assert array.max() > low
    a, b = model.trace(ids, "output"), model.trace(ids, "output")
    assert rounding_of(a, b, {}, model).kind == "float32"


# ---- showing ----


def test_it_prints_a_table_that_fits_a_terminal(model, trace):
    wrong = model.trace(IDS, "*", edits=tl.scale("blk.1.attn_q_rope", -1.0))
    for d in (tl.diff(trace, wrong), tl.diff(trace, trace), tl.diff(trace[:2], wrong[:2])):
        lines = str(d).splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 100, max(lines, key=len)
        assert repr(d) == str(d)
        html = d._repr_html_()
        assert "<table>" in html
        assert len(d.table.rows) == len(d)
    text = str(tl.diff(trace, wrong))
    assert "the first one is\n  blk.1.attn_q_rope, token 0, head" in text
    assert re.search(r"blk\.1\.attn_q_rope .* apart\n", text)
    d = tl.diff(trace, wrong)
    assert d["blk.1.attn_q_rope"] is d.first
    assert d.errors("blk.1.attn_q_rope").shape == (7, 4)
    with pytest.raises(KeyError, match="'zzz' was not compared"):
        d["zzz"]
    with pytest.raises(KeyError):
        d.errors("zzz")


def test_tokens_of_a_file_do_not_control_the_terminal(model):
    a = tl.load().trace("ROMEO:")
    wrong = tl.load().trace("ROMEO:", edits=tl.scale("blk.0.attn_q", 2.0))
    a.pieces[0] = wrong.pieces[0] = "\x1b[2J<b>"
    d = tl.diff(a, wrong)
    assert "\x1b" not in str(d)
    assert "<b>" not in d._repr_html_()


def test_plot(model, trace):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    wrong = model.trace(IDS, "*", edits=tl.scale("blk.1.attn_q_rope", 2.0))
    ax = tl.diff(trace, wrong).plot()
    assert ax.get_xlabel() == "first apart: blk.1.attn_q_rope"
    assert len(ax.patches) == len(trace)
    same = tl.diff(trace, trace).plot(plt.figure().add_subplot())
    assert same.get_yscale() == "log"
    plt.close("all")


# ---- the command ----


def test_the_command_exits_with_1_when_they_part(tmp_path, capsys):
    model = tl.load()
    t = model.trace("ROMEO:")
    np.savez(tmp_path / "right.npz", **{"layer0_q": t["blk.0.attn_q"], "tokens": t.tokens})
    np.savez(tmp_path / "wrong.npz", **{"layer0_q": 2 * t["blk.0.attn_q"]})
    assert main(["diff", str(tmp_path / "right.npz")]) == 0
    assert "all the same" in capsys.readouterr().out
    assert main(["diff", str(tmp_path / "right.npz"), "ROMEO:", "--all"]) == 0
    assert main(["diff", "-m", "demo", str(tmp_path / "wrong.npz"), "ROMEO:"]) == 1
    assert "blk.0.attn_q, token 0" in capsys.readouterr().out
    assert main(["diff", str(tmp_path / "wrong.npz"), "ROMEO:", "--tolerance", "2"]) == 0
    assert main(["diff", str(tmp_path / "wrong.npz")]) == 2
    assert "give tokens=" in capsys.readouterr().err
    assert main(["diff", str(tmp_path / "wrong.npz"), "R", "--dialect", "x"]) == 2
