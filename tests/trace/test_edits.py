"""Edits: what they change, what they do not change, and their errors."""

import pickle
import re

import numpy as np
import pytest

import tinyllm as tl
from testkit import models
from tinyllm import reference
from tinyllm.trace import edit_program

pytestmark = pytest.mark.sanitize

SMALL = {
    "layers": 2,
    "width": 32,
    "heads": 4,
    "kv_heads": 2,
    "ffn": 48,
    "vocab": 60,
    "biases": True,
    "context": 64,
}
IDS = [3, 1, 4, 1, 5, 9, 2]
T = len(IDS)
TAPS = models.tap_names(2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.random_model(tmp_path_factory.mktemp("edits"), **SMALL)


@pytest.fixture(scope="module")
def plain(model):
    return model.trace(IDS, "*")


def same_bits(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


# --- every tap ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tap", TAPS)
def test_writing_a_taps_own_value_back_changes_no_bit(model, plain, tap):
    for edit in (
        tl.apply(tap, lambda array, name: None),
        tl.patch(tap, plain),
        tl.set(tap, plain[tap]),
        tl.scale(tap, 1.0),
    ):
        assert same_bits(plain, model.trace(IDS, "*", edits=[edit])), edit
        assert np.array_equal(model.logits(IDS, edits=edit), plain["output"]), edit


@pytest.mark.parametrize("tap", TAPS)
def test_an_edit_changes_what_follows_and_nothing_before(model, plain, tap):
    t = model.trace(IDS, "*", edits=[tl.scale(tap, 1.5)])
    at = TAPS.index(tap)
    for name in TAPS[:at]:
        assert np.array_equal(t[name], plain[name]), name
    finite = np.isfinite(plain[tap])
    assert np.array_equal(t[tap][finite], plain[tap][finite] * np.float32(1.5))
    # ... and every later step reads what the edit wrote: float64, from this trace's own values
    taps = {**t, "tokens": np.array(IDS), "positions": np.arange(T)}
    for step in reference.steps(model.steps):
        if step.tap != tap:
            want = step.run(model.weights, taps)
            assert models.normwise_error(t[step.tap], want) < 2e-6, step.tap
    if tap != "output":
        assert not np.array_equal(t["output"], plain["output"])


@pytest.mark.parametrize("tap", TAPS)
def test_an_edit_of_one_token_leaves_the_tokens_before_it_alone(model, plain, tap):
    t = model.trace(IDS, "*", edits=[tl.scale(tap, 1.5, at=4)])
    for name in TAPS:
        rows = slice(0, 4)
        ours, theirs = t[rows][name], plain[rows][name]
        assert np.array_equal(ours, theirs), name
    changed = t[tap] if not tap.endswith(("scores", "probs")) else t[tap].swapaxes(0, 1)
    before = plain[tap] if not tap.endswith(("scores", "probs")) else plain[tap].swapaxes(0, 1)
    assert np.array_equal(changed[5:], before[5:])  # the same layer, another token
    assert not np.array_equal(changed[4], before[4])


# --- every kind --------------------------------------------------------------------------------


def expect(kind, old):
    """Return (edit, new values) of blk.1.attn_mix, (T, H, Dh)."""
    tap = "blk.1.attn_mix"
    value = np.random.default_rng(0).standard_normal(old.shape).astype(np.float32)
    rows, heads = np.ix_([1, -2], [0, 3])
    new = old.copy()
    if kind == "set":
        new[:] = value
        return tl.set(tap, value), new
    if kind == "set number":
        new[2:4] = 7
        return tl.set(tap, 7, at=slice(2, 4)), new
    if kind == "set at, head":
        new[1, 2] = value[0, 0]
        return tl.set(tap, value[0, 0], at=1, head=2), new
    if kind == "set list, list":
        new[rows, heads] = value[:2, :2]
        return tl.set(tap, value[:2, :2], at=[1, -2], head=[0, 3]), new
    if kind == "add":
        new[-1] += value[0]
        return tl.add(tap, value[0], at=-1), new
    if kind == "add head":
        new[:, 3] += value[:, 0]
        return tl.add(tap, value[:, 0], head=-1), new
    if kind == "scale":
        new[:, 1:3] *= np.float32(0.1)
        return tl.scale(tap, 0.1, head=slice(1, 3)), new
    if kind == "zero":
        new[0, [1, 2]] = 0
        return tl.zero(tap, at=0, head=[1, 2]), new
    if kind == "mean":
        new[3:, 2] = old[:, 2].mean(axis=0, dtype=np.float64)
        return tl.mean(tap, at=slice(3, None), head=2), new
    if kind == "mean list":
        new[rows, heads] = old[:, [0, 3]].mean(axis=0, dtype=np.float64)
        return tl.mean(tap, at=[1, -2], head=[0, 3]), new
    if kind == "apply ufunc":
        return tl.apply(tap, np.tanh), np.tanh(old)
    if kind == "apply in place":
        new[2:, 1] = 5

        def fill(array, name):
            assert name == tap
            assert array.shape == (T - 2, old.shape[2])
            array[:] = 5

        return tl.apply(tap, fill, at=slice(2, None), head=1), new
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "set",
        "set number",
        "set at, head",
        "set list, list",
        "add",
        "add head",
        "scale",
        "zero",
        "mean",
        "mean list",
        "apply ufunc",
        "apply in place",
    ],
)
def test_every_kind_of_edit(model, plain, kind):
    edit, want = expect(kind, plain["blk.1.attn_mix"])
    t = model.trace(IDS, "*", edits=edit)
    assert np.array_equal(t["blk.1.attn_mix"], want.astype(np.float32))
    assert not np.array_equal(t["output"], plain["output"])
    # in a session and in a generation the same values come out
    session = model.session()
    s = session.eval(IDS, "all", capture="*", edits=[edit])
    assert same_bits(t, s)
    g = model.generate(IDS, 1, temperature=0, capture="*", edits=[edit])
    assert same_bits(t, g.traces[0])


def test_patch_copies_values_of_another_run(model, plain):
    other = model.trace([8, 7, 6, 5, 4, 3, 2], "*")
    t = model.trace(IDS, "*", edits=tl.patch("blk.0.attn_mix", other, at=[2, 5], head=[1, 3]))
    want = plain["blk.0.attn_mix"].copy()
    cells = np.ix_([2, 5], [1, 3])
    want[cells] = other["blk.0.attn_mix"][cells]
    assert np.array_equal(t["blk.0.attn_mix"], want)
    # the whole stream is patched, so everything after it equals the other run
    t = model.trace(IDS, "*", edits=tl.patch("blk.1.resid_pre", other))
    assert np.array_equal(t["output"], other["output"])
    # attention matrices, of one head
    t = model.trace(IDS, "*", edits=tl.patch("blk.0.attn_probs", other, at=3, head=2))
    want = plain["blk.0.attn_probs"].copy()
    want[2, 3] = other["blk.0.attn_probs"][2, 3]
    assert np.array_equal(t["blk.0.attn_probs"], want)


def test_patch_counts_negative_positions_from_the_end_of_each_run(model):
    other = model.trace([8, 7, 6], "*")
    for at in (-1, [-1], slice(-1, None)):
        t = model.trace(IDS, "*", edits=tl.patch("blk.*.resid_post", other, at=at))
        assert np.array_equal(t["output"][-1], other["output"][-1])
        assert not np.array_equal(t["output"][-2], other["output"][-2])


def test_mean_over_a_trace(model, plain):
    other = model.trace([8, 7, 6], "*")
    t = model.trace(IDS, "*", edits=tl.mean("blk.*.ffn_down", other, at=[0, 6]))
    want = plain["blk.0.ffn_down"].copy()
    want[[0, 6]] = other["blk.0.ffn_down"].mean(axis=0, dtype=np.float64)
    assert np.array_equal(t["blk.0.ffn_down"], want)


def test_edits_are_applied_in_order_and_see_each_other(model, plain):
    a, b = tl.add("blk.0.resid_mid", 1), tl.scale("blk.0.*mid", 2)
    old = plain["blk.0.resid_mid"]
    assert np.array_equal(model.trace(IDS, edits=[a, b])["blk.0.resid_mid"], (old + 1) * 2)
    assert np.array_equal(model.trace(IDS, edits=[b, a])["blk.0.resid_mid"], old * 2 + 1)


def test_a_pattern_edits_every_layer_once(model):
    seen = []
    model.trace(IDS, edits=tl.apply(re.compile("ffn_(up|down)"), lambda a, name: seen.append(name)))
    assert seen == ["blk.0.ffn_up", "blk.0.ffn_down", "blk.1.ffn_up", "blk.1.ffn_down"]


def test_a_token_does_not_see_the_future_whatever_an_edit_writes(model):
    t = model.trace(IDS, "*", edits=[tl.set("blk.0.attn_scores", 1.0), tl.set("*probs", 0.5)])
    hidden = np.triu(np.ones((T, T), bool), 1)
    assert (t["blk.0.attn_scores"][:, hidden] == -np.inf).all()
    assert (t["blk.0.attn_probs"][:, hidden] == 0).all()
    assert (t["blk.0.attn_probs"][:, ~hidden] == 0.5).all()
    alone = model.trace(IDS[:3], "*", edits=[tl.set("*scores", 1.0), tl.set("*probs", 0.5)])
    assert np.array_equal(alone["output"], t["output"][:3])


def test_logits_edited(model, plain):
    t = model.trace(IDS, [], edits=tl.set("logits", 9.0, at=2), logits="all")
    want = plain["output"].copy()
    want[2] = 9
    assert np.array_equal(t.logits, want)
    assert len(t) == 0


def test_in_a_batch_each_prompt_is_edited_alone(model):
    prompts = [IDS, [5, 6], [7, 8, 9, 10, 11]]
    edits = [
        tl.mean("blk.0.attn_mix", head=1),
        tl.add("blk.1.resid_mid", 0.5, at=-1),
        tl.scale("blk.1.attn_probs", 0.9, at=1),
        tl.apply("blk.0.ffn_act", lambda a, name: a - a.max()),
    ]
    together = model.trace(prompts, "*", edits=edits)
    for prompt, t in zip(prompts, together, strict=True):
        assert same_bits(model.trace(prompt, "*", edits=edits), t)
    assert np.array_equal(model.logits(prompts, edits=edits)[1], together[1]["output"])


# --- sessions and generation -------------------------------------------------------------------


def test_positions_are_absolute_in_a_session(model):
    edits = [
        tl.add("blk.0.resid_post", 1.0, at=4),
        tl.scale("blk.1.resid_mid", np.array([[2.0], [3.0]]), at=[1, 5]),
    ]
    whole = model.trace(IDS, "*", edits=edits)
    for size in (1, 2, 3):
        session = model.session()
        parts = [
            session.eval(IDS[i : i + size], "all", capture="*", edits=edits)
            for i in range(0, T, size)
        ]
        assert [part.start for part in parts] == list(range(0, T, size))
        for name in ("blk.0.resid_post", "blk.1.resid_mid", "output"):
            assert np.array_equal(np.concatenate([part[name] for part in parts]), whole[name])
        assert np.array_equal(
            parts[-1]["blk.1.attn_probs"][:, -1], whole["blk.1.attn_probs"][:, -1]
        )


def test_an_edited_key_or_value_stays_in_the_cache(model):
    for tap in ("blk.0.attn_k", "blk.0.attn_k_rope", "blk.0.attn_v"):
        edit = tl.scale(tap, 3.0)
        whole = model.trace(IDS, edits=tl.scale(tap, 3.0, at=slice(0, T - 1)))
        session = model.session()
        session.eval(IDS[:-1], edits=edit)
        logits = session.eval(IDS[-1:])
        assert np.array_equal(logits, whole["output"][-1])
        assert not np.array_equal(logits, model.logits(IDS)[-1])


def test_steering_a_generation(model):
    direction = np.zeros(SMALL["vocab"], np.float32)
    direction[17] = 1e6
    g = model.generate(IDS, 5, temperature=0, edits=tl.add("output", direction, at=-1))
    assert g.ids == [17] * 5
    # only from the third new token on
    edit = tl.add("output", direction, at=slice(T + 1, None))
    g = model.generate(IDS, 5, temperature=0, edits=edit)
    assert g.ids[2:] == [17] * 3
    assert g.ids[:2] == model.generate(IDS, 2, temperature=0).ids


def test_generate_keeps_a_list_of_traces(model):
    g = model.generate(IDS, 3, temperature=0, capture=["blk.1.attn_probs", "output"])
    assert [len(t.tokens) for t in g.traces] == [T, 1, 1]
    assert [t.start for t in g.traces] == [0, T, T + 1]
    assert g.traces[2]["blk.1.attn_probs"].shape == (4, 1, T + 2)
    assert g.traces[1].tokens.tolist() == g.ids[:1]
    whole = model.trace([*IDS, *g.ids[:2]], "*")
    for i, t in enumerate(g.traces[1:], T):
        assert np.array_equal(t["output"][0], whole["output"][i])
    assert model.generate(IDS, 1, capture="output").traces[0]["output"].shape == (T, 60)
    assert model.generate(IDS, 2).traces == []


def test_stream_takes_edits():
    demo = tl.load()
    edit = tl.zero("blk.2.attn_mix")
    text = "".join(demo.stream("ROMEO:", 8, temperature=0, edits=edit))
    assert text == demo.generate("ROMEO:", 8, temperature=0, edits=edit).text
    assert text != demo.generate("ROMEO:", 8, temperature=0).text


# --- functions ---------------------------------------------------------------------------------


def test_a_functions_exception_comes_out_unchanged_and_leaves_the_session_alone(model):
    class OwnError(Exception):
        pass

    error = OwnError("mine")

    def fail(array, name):
        raise error

    session = model.session()
    session.eval(IDS)
    with pytest.raises(OwnError) as caught:
        session.eval([5], edits=tl.apply("blk.1.attn_probs", fail))
    assert caught.value is error
    assert session.tokens == IDS
    assert len(session.core) == T
    assert np.array_equal(session.eval([5]), model.logits([*IDS, 5])[-1])


def test_a_function_gets_a_copy_that_it_may_keep(model, plain):
    kept = []
    t = model.trace(IDS, "*", edits=tl.apply("blk.0.resid_mid", lambda a, name: kept.append(a)))
    kept[0][:] = 0
    assert np.array_equal(t["blk.0.resid_mid"], plain["blk.0.resid_mid"])
    assert kept[0].flags.writeable


def test_a_function_may_use_the_model(model, plain):
    def inner(array, name):
        return model.trace(IDS, name)[name]

    assert same_bits(plain, model.trace(IDS, "*", edits=tl.apply("blk.1.resid_pre", inner)))


def test_functions_of_one_and_of_two_arguments(model):
    def one(array):
        return array

    def optional(array, factor=2.0):
        return array * factor

    def two(array, name):
        assert name == "blk.0.ffn_up"

    for function in (one, optional, two, np.negative, lambda *a: None):
        model.trace([1], edits=tl.apply("blk.0.ffn_up", function))


# --- bad arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        (
            lambda t: tl.zero("blk.0.attn_mx"),
            ValueError,
            "edits[0], tl.zero('blk.0.attn_mx'): no t",
        ),
        (lambda t: tl.zero("blk.9.*"), ValueError, "blk.9.*"),
        (lambda t: tl.zero("blk.0.attn_mx"), ValueError, "blk.0.attn_mix"),
        (lambda t: tl.set("blk.0.resid_mid", np.ones(5)), ValueError, "(7, 32)"),
        (lambda t: tl.set("blk.0.attn_q", np.ones((7, 32)), head=1), ValueError, "(7, 8)"),
        (lambda t: tl.add("blk.0.resid_mid", np.ones((8, 32))), ValueError, "edits[0], tl.add("),
        (lambda t: tl.scale("blk.0.resid_mid", [1, 2], at=1), ValueError, "the factor"),
        (lambda t: tl.set("blk.0.attn_q", np.ones((3, 1, 1)), at=[1, 2]), ValueError, "(2, 4, 8)"),
        (lambda t: tl.zero("blk.0.attn_q", at=7), IndexError, "at holds 7, which is not in"),
        (lambda t: tl.zero("blk.0.attn_q", at=[0, -8]), IndexError, "at holds -8"),
        (lambda t: tl.zero("blk.0.attn_q", head=4), IndexError, "head is 4; expected -4 to 3"),
        (lambda t: tl.zero("blk.*.attn_k", head=[0, 2]), IndexError, "at 'blk.0.attn_k'"),
        (lambda t: tl.zero("blk.0.resid_mid", head=0), ValueError, "has no heads"),
        (lambda t: tl.mean("blk.0.attn_probs"), ValueError, "no mean"),
        (lambda t: tl.patch("blk.0.attn_probs", t[:3]), IndexError, "positions 0 to 2"),
        (lambda t: tl.patch("blk.0.resid_mid", t[:3]), IndexError, "positions 0 to 2"),
        (lambda t: tl.patch("blk.0.resid_mid", t[:3], at=3), IndexError, "expected position 3"),
        (lambda t: tl.patch("blk.0.attn_q", t["blk.0.attn_q"]), TypeError, "expected a Trace"),
        (lambda t: tl.mean("blk.0.attn_q", over=3), TypeError, "over is 3"),
        (lambda t: tl.apply("blk.0.attn_q", 3), TypeError, "expected a function"),
        (lambda t: tl.apply("blk.0.attn_q", lambda a: np.ones(3)), ValueError, "returned"),
        (lambda t: tl.apply("blk.0.attn_q", lambda a: "x"), TypeError, "real numbers"),
        (lambda t: tl.set("blk.0.attn_q", "x"), TypeError, "real numbers"),
        (lambda t: tl.set("blk.0.attn_q", 1j), TypeError, "real numbers"),
        (lambda t: tl.set("blk.0.attn_q", [[1], [1, 2]]), TypeError, "real numbers"),
        (lambda t: tl.zero("blk.0.attn_q", at=1.5), TypeError, "at is 1.5"),
        (lambda t: tl.zero("blk.0.attn_q", at="1"), TypeError, "at is '1'"),
        (lambda t: tl.zero("blk.0.attn_q", at=True), TypeError, "at is True"),
        (lambda t: tl.zero("blk.0.attn_q", head=[[1]]), TypeError, "head is"),
        (lambda t: tl.zero("blk.0.attn_q", at=slice(0, 4, 2)), ValueError, "step 1"),
        (lambda t: tl.zero(None), TypeError, "tap is None"),
        (lambda t: tl.zero(5), TypeError, "tap holds 5"),
        (lambda t: 5, TypeError, "edits is 5"),
        (lambda t: [tl.zero("output"), "zero"], TypeError, "edits[1] is 'zero'"),
    ],
)
def test_bad_edits_are_refused_by_name(model, plain, edit, error, words):
    with pytest.raises(error, match=re.escape(words)):
        model.trace(IDS, "*", edits=edit(plain))
    if words.startswith(("at holds ", "positions ")):
        return  # in a session they may belong to other calls
    session = model.session()
    with pytest.raises(error, match=re.escape(words)):
        session.eval(IDS, edits=edit(plain))
    assert len(session) == 0
    with pytest.raises(error, match=re.escape(words)):
        model.generate(IDS, 1, temperature=0, edits=edit(plain))


def test_a_patch_needs_the_tap_in_its_trace(model):
    t = model.trace(IDS, "output")
    with pytest.raises(ValueError, match=r"at 'blk.0.resid_mid': the trace does not have this tap"):
        model.trace(IDS, edits=tl.patch("*resid_mid", t))


def test_a_patch_needs_the_shape_of_the_run(model):
    t = model.trace(IDS[:3], "*")
    with pytest.raises(ValueError, match="apart from axis 1, the tokens"):
        model.trace(IDS, edits=tl.patch("blk.0.attn_probs", t, at=-1))


def test_all_edits_are_checked_before_anything_runs(model):
    def fail(array, name):
        raise AssertionError("ran")

    session = model.session()
    with pytest.raises(IndexError, match="at holds 64; expected less than the context length"):
        session.eval(IDS, edits=[tl.apply("token_embd", fail), tl.zero("output", at=64)])
    assert len(session) == 0


def test_edits_show_how_they_were_made():
    assert repr(tl.zero("blk.5.attn_mix", head=3)) == "tl.zero('blk.5.attn_mix', head=3)"
    assert repr(tl.add("output", np.ones(99), at=-1)) == "tl.add('output', <array (99,)>, at=-1)"


def test_an_edit_does_not_notice_what_happens_to_its_array_later(model, plain):
    value = np.ones(32, np.float32)
    edit = tl.add("blk.0.resid_mid", value)
    value[:] = 100
    t = model.trace(IDS, edits=edit)
    assert np.array_equal(t["blk.0.resid_mid"], plain["blk.0.resid_mid"] + 1)


# --- starting in the middle --------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_run_from(model, plain, layer):
    resid = plain[f"blk.{layer}.resid_pre"] if layer < 2 else plain["blk.1.resid_post"]
    again = model.run_from(layer, resid, "*", tokens=IDS)
    assert again.pieces == plain.pieces
    assert same_bits(again, plain)
    later = [
        n
        for n in TAPS
        if n.startswith("output") or int(n.split(".")[1] if "." in n else -1) >= layer
    ]
    assert list(again) == later


def test_run_from_with_edits(model, plain):
    edit = tl.zero("blk.1.attn_mix", head=2, at=3)
    got = model.run_from(1, plain["blk.1.resid_pre"], [], edits=edit, logits="last").logits
    assert np.array_equal(got, model.logits(IDS, edits=edit)[-1])


def test_run_from_refuses(model, plain):
    resid = plain["blk.1.resid_pre"]
    for arguments, error, words in (
        ((3, resid), IndexError, "layer is 3; expected 0 to 2"),
        (("1", resid), TypeError, "layer"),
        ((1, resid[:, :5]), ValueError, "expected (tokens, 32)"),
        ((1, resid[:0]), ValueError, "expected (tokens, 32)"),
        ((1, resid, "blk.0.attn_q"), ValueError, "blk.0.attn_q"),
    ):
        with pytest.raises(error, match=re.escape(words)):
            model.run_from(*arguments)
    with pytest.raises(ValueError, match="expected layer 1 or later"):
        model.run_from(1, resid, edits=tl.zero("blk.*.attn_q"))
    with pytest.raises(ValueError, match="7"):
        model.run_from(1, resid, tokens=[1, 2])


# ---- edits that have no or only some effect are refused or said aloud ----

TAP = "blk.1.resid_post"


def test_a_patch_of_another_length_is_refused(model):
    source = model.trace(list(range(5, 14)), TAP)
    own = list(range(20, 26))
    for part in (source, source[:7], source[:5], source[3:]):  # longer, longer, shorter, later
        with pytest.raises(IndexError, match=r"trace has positions \d to \d; expected"):
            model.trace(own, edits=tl.patch(TAP, part))
    with pytest.raises(IndexError, match="trace has no positions"):
        model.trace(own, edits=tl.patch(TAP, source[:0]))
    t = model.trace(own, TAP, edits=tl.patch(TAP, source[:6]))
    assert np.array_equal(t[TAP], source[TAP][:6])
    t = model.trace(own, TAP, edits=tl.patch(TAP, source, at=slice(0, 6)))  # and if it is wanted
    assert np.array_equal(t[TAP], source[TAP][:6])


def test_a_session_is_patched_call_by_call_in_full_or_not_at_all(model):
    source = model.trace(list(range(5, 11)), TAP)
    edit = tl.patch(TAP, source)
    session = model.session()
    first = session.eval([1, 2], capture=TAP, edits=edit)
    rest = session.eval([3, 4, 5, 6], capture=TAP, edits=edit)
    assert np.array_equal(np.concatenate([first[TAP], rest[TAP]]), source[TAP])
    after = session.eval([7, 8], capture=TAP, edits=edit)  # the trace has none of these
    other = model.session()
    for ids in ([1, 2], [3, 4, 5, 6]):
        other.eval(ids, edits=edit)
    assert np.array_equal(after[TAP], other.eval([7, 8], capture=TAP)[TAP])
    session = model.session()
    session.eval([1, 2])
    with pytest.raises(IndexError, match="expected position 6, too"):
        session.eval([3, 4, 5, 6, 7], edits=edit)
    assert len(session) == 2
    with pytest.raises(IndexError, match="expected position 6, too"):
        model.generate(list(range(9)), 2, seed=0, edits=edit)
    assert len(model.generate(list(range(6)), 2, seed=0, edits=edit).ids) == 2


@pytest.mark.parametrize("kind", [tl.set, tl.add, tl.scale])
@pytest.mark.parametrize("value", [np.nan, [1.0, np.nan], np.float16("nan")])
def test_nan_is_no_value_of_an_edit(kind, value):
    with pytest.raises(ValueError, match="holds NaN"):
        kind(TAP, value)


def test_values_that_float32_does_not_hold():
    for value in (1e300, -1e39, [1.0, 1e300], 10**40):
        with pytest.raises((ValueError, TypeError), match="expected"):
            tl.set(TAP, value)
    assert tl.set(TAP, 3e38)


def test_infinity_and_nan_are_said_aloud_except_where_they_hide_a_token(model):
    ids = [3, 1, 4, 1]
    hide = np.zeros((4, 4, 4), np.float32)
    hide[:, 1:, 0] = -np.inf
    t = model.trace(ids, "blk.0.attn_probs", edits=tl.add("blk.0.attn_scores", hide))
    assert (t["blk.0.attn_probs"][:, 1:, 0] == 0).all()  # no warning: warnings are errors here
    t = model.trace(ids, "output", edits=tl.add("output", [-np.inf] * 30 + [0.0] * 30))
    assert np.isneginf(t["output"][:, :30]).all()
    bad = {
        "set": tl.set(TAP, np.inf, at=1),
        "add": tl.add(TAP, -np.inf),
        "scale": [tl.set(TAP, 1e30), tl.scale(TAP, 1e30)],
        "apply": tl.apply(TAP, lambda array: array * np.nan),
    }
    for name, edit in bad.items():
        with pytest.warns(RuntimeWarning, match=rf"tl\.{name}.*are NaN or infinite"):
            model.trace(ids, TAP, edits=edit)
    with pytest.warns(RuntimeWarning, match="are NaN or infinite") as said:
        model.trace(ids, TAP, edits=[tl.apply(TAP, lambda array: array * np.nan), tl.scale(TAP, 2)])
    assert len(said) == 1  # the edit that made them, and no other


def test_places_beyond_the_call_are_refused(model):
    ids = [3, 1, 4]
    for at in (slice(3, 9), slice(10, None)):
        with pytest.raises(IndexError, match=r"begins after the call; expected a position up to 2"):
            model.trace(ids, edits=tl.zero(TAP, at=at))
    with pytest.raises(IndexError, match="expected less than 4, the heads"):
        model.trace(ids, edits=tl.zero("blk.0.attn_mix", head=slice(4, 9)))
    whole = model.trace(ids, TAP)
    for edit in (tl.zero(TAP, at=slice(1, 1)), tl.zero(TAP, at=[])):  # chosen to be empty
        assert np.array_equal(model.trace(ids, TAP, edits=edit)[TAP], whole[TAP])
    session = model.session()
    session.eval([3])
    t = session.eval([1, 4], capture=TAP, edits=tl.zero(TAP, at=slice(7, 9)))  # a later call's
    assert np.array_equal(t[TAP], whole[TAP][1:])


def test_a_mean_over_no_tokens(model):
    with pytest.raises(ValueError, match="over has no tokens"):
        model.trace([1, 2], edits=tl.mean(TAP, model.trace([1, 2])[:0]))


def test_each_prompt_of_a_batch_has_its_own_edits(model):
    prompts = [[3, 1, 4], [1, 5], [9, 2, 6]]
    edits = [[tl.zero("blk.0.ffn_down")], [], [tl.scale("blk.1.attn_mix", 2), tl.zero("output")]]
    for prompt, each, t in zip(prompts, edits, model.trace(prompts, "*", edits=edits), strict=True):
        alone = model.trace(prompt, "*", edits=each)
        assert all(np.array_equal(t[name], alone[name]) for name in alone)
    got = model.logits(prompts, edits=edits)
    assert all(
        np.array_equal(a, model.logits(p, edits=e))
        for a, p, e in zip(got, prompts, edits, strict=True)
    )
    with pytest.raises(ValueError, match="edits has 2 lists and the batch 3 prompts"):
        model.trace(prompts, edits=edits[:2])
    with pytest.raises(TypeError, match="expected an edit"):
        model.trace(prompts[0], edits=edits)


# --- neurons and dimensions --------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, -1, [5, 2], slice(1, 4), None])
@pytest.mark.parametrize("head", [1, [3, 0], slice(1, 3), None])
@pytest.mark.parametrize("at", [2, [4, -1], slice(1, 3), None])
def test_index_selects_entries_of_the_last_axis(model, plain, at, head, index):
    """Against a mask, which knows nothing of how NumPy orders the axes of an outer index."""
    other = model.trace(IDS[::-1], "*")
    cases = [("blk.1.attn_mix", head), ("blk.1.ffn_act", None)][: 1 if head is not None else 2]
    for tap, heads in cases:
        old = plain[tap]
        mask = np.array(True)
        for n, what in zip(
            old.shape, [at, heads, index] if old.ndim == 3 else [at, index], strict=True
        ):
            axis = np.zeros(n, bool)
            axis[slice(None) if what is None else what] = True
            mask = np.multiply.outer(mask, axis)
        where = {"at": at, "head": heads, "index": index}
        average = np.broadcast_to(old.mean(axis=0, dtype=np.float64).astype(np.float32), old.shape)
        theirs = other[tap].mean(axis=0, dtype=np.float64).astype(np.float32)
        for edit, new in (
            (tl.zero(tap, **where), 0 * old),
            (tl.set(tap, 3, **where), 0 * old + 3),
            (tl.add(tap, 1, **where), old + 1),
            (tl.scale(tap, 2, **where), old * 2),
            (tl.mean(tap, **where), average),
            (tl.mean(tap, over=other, **where), np.broadcast_to(theirs, old.shape)),
            (tl.apply(tap, np.tanh, **where), np.tanh(old)),
            (tl.patch(tap, other, **where), other[tap]),
        ):
            got = model.trace(IDS, tap, edits=edit)[tap]
            assert np.array_equal(got, np.where(mask, new, old)), edit


def test_values_are_broadcast_to_an_index(model, plain):
    tap = "blk.0.attn_mix"
    value = np.arange(2 * 3 * 2, dtype=np.float32).reshape(2, 3, 2)
    want = plain[tap].copy()
    edit = tl.set(tap, value, at=[5, 1], head=[2, 0, 3], index=[6, 1])
    for i, row in enumerate([5, 1]):
        for j, head in enumerate([2, 0, 3]):
            for k, entry in enumerate([6, 1]):
                want[row, head, entry] = value[i, j, k]
    assert np.array_equal(model.trace(IDS, tap, edits=edit)[tap], want)
    again = pickle.loads(pickle.dumps(edit))
    assert repr(again) == repr(edit)
    assert "index=[6, 1]" in repr(edit)
    assert np.array_equal(model.trace(IDS, tap, edits=again)[tap], want)


@pytest.mark.parametrize(
    ("tap", "index", "error", "words"),
    [
        ("blk.0.ffn_act", 48, IndexError, "index is 48; expected -48 to 47, for 48 entries"),
        ("blk.0.ffn_act", [0, -49], IndexError, "expected -48 to 47"),
        ("blk.0.ffn_act", slice(48, None), IndexError, "expected less than 48"),
        ("blk.0.attn_mix", 8, IndexError, "-8 to 7"),
        ("blk.0.attn_probs", 0, ValueError, "no neurons or dimensions"),
        ("blk.0.attn_norm_scale", 0, ValueError, "no neurons or dimensions"),
    ],
)
def test_an_index_that_is_not_there(model, tap, index, error, words):
    with pytest.raises(error, match=words):
        model.trace(IDS, edits=tl.zero(tap, index=index))


@pytest.mark.parametrize("index", [1.5, float("nan"), "all", [[1]], slice(0, 4, 2)])
def test_what_is_no_index(index):
    with pytest.raises((TypeError, ValueError), match="index is"):
        tl.zero("blk.0.ffn_act", index=index)


# --- generation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "checked"),
    [
        (tl.scale("blk.*.ffn_down", 0.5), 4),  # both layers: the prompt, then any token
        (tl.zero("blk.1.attn_mix", head=1, at=-1), 2),
        (tl.set("blk.1.ffn_act", 2, at=8), 6),  # a position: each step is another case
        (tl.scale("blk.0.attn_scores", 0.5), 6),  # the context grows
    ],
)
def test_steps_of_a_generation_share_what_is_the_same(model, monkeypatch, edit, checked):
    """Checking an edit of every layer took longer than applying it."""
    made = []
    site = edit_program.Site

    def counted(label, where, tap, piece):
        made.append((piece.start, piece.length))
        return site(label, where, tap, piece)

    monkeypatch.setattr(edit_program, "Site", counted)
    ids = model.generate(IDS, max_tokens=6, temperature=0, edits=edit).ids
    assert len(made) == checked
    session = model.session()
    want, row = [], session.eval(IDS, edits=edit)
    for _ in range(6):
        want.append(int(np.argmax(row)))
        row = session.eval([want[-1]], edits=edit)
    assert list(ids) == want
