"""Traces: names, patterns, shapes, slices, batches, plans, memory."""

import gc
import re
import threading

import numpy as np
import pytest

import tinyllm as tl
from testkit import models
from tinyllm import _core
from tinyllm.trace.arena import Arena, Layout
from tinyllm.trace.taps import match, select

SIZES = {"width": 32, "ffn": 48, "vocab": 60, "context": 64}
IDS = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trace")
    return models.random_model(directory, layers=3, heads=4, kv_heads=2, **SIZES)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A model whose layers differ in heads and ffn width."""
    options = {"layers": 3, "heads": [4, 2, 4], "kv_heads": [2, 1, 2], "head_size": 8}
    directory = tmp_path_factory.mktemp("trace")
    return models.random_model(directory, **{**SIZES, "ffn": [48, 48, 64]}, **options)


def test_the_vocabulary(model):
    """Fails when a tap is renamed, dropped, reordered, or gets another shape."""
    t = model.trace(IDS, "*")
    shapes = {name: array.shape for name, array in t.items()}
    block = {
        "resid_pre": (5, 32),
        "attn_norm_scale": (5,),
        "attn_norm": (5, 32),
        "attn_q": (5, 4, 8),
        "attn_k": (5, 2, 8),
        "attn_v": (5, 2, 8),
        "attn_q_rope": (5, 4, 8),
        "attn_k_rope": (5, 2, 8),
        "attn_scores": (4, 5, 5),
        "attn_probs": (4, 5, 5),
        "attn_mix": (5, 4, 8),
        "attn_output": (5, 32),
        "resid_mid": (5, 32),
        "ffn_norm_scale": (5,),
        "ffn_norm": (5, 32),
        "ffn_gate": (5, 48),
        "ffn_up": (5, 48),
        "ffn_act": (5, 48),
        "ffn_down": (5, 32),
        "resid_post": (5, 32),
    }
    want = {"token_embd": (5, 32)}
    want |= {f"blk.{i}.{name}": shape for i in range(3) for name, shape in block.items()}
    want |= {"output_norm_scale": (5,), "output_norm": (5, 32), "output": (5, 60)}
    assert list(shapes.items()) == list(want.items())
    assert [tap.name for tap in model.taps] == list(want)
    assert all(tap.shape(5, 5) == want[tap.name] for tap in model.taps)
    (probs,) = select(model.taps, "blk.1.attn_probs")
    assert probs.shape(2, 9) == (4, 2, 9)
    assert model.plan(IDS, "*").shapes == want
    assert model.plan(IDS, "*").nbytes == t.nbytes == sum(a.nbytes for a in t.values())


def test_captures_by_name_pattern_expression_and_function(model):
    def names(capture):
        return list(model.trace(IDS, capture))

    every = [tap.name for tap in model.taps]
    assert names(None) == [n for n in every if not n.endswith(("scores", "probs"))]
    assert names("blk.1.attn_q") == ["blk.1.attn_q"]
    assert names("logits") == ["output"]
    assert names(["*resid_mid", "blk.0.attn_?"]) == [
        "blk.0.attn_q",
        "blk.0.attn_k",
        "blk.0.attn_v",
        "blk.0.resid_mid",
        "blk.1.resid_mid",
        "blk.2.resid_mid",
    ]
    assert names("blk.[02].ffn_up") == ["blk.0.ffn_up", "blk.2.ffn_up"]
    assert names(re.compile(r"\.2\..*scale$")) == ["blk.2.attn_norm_scale", "blk.2.ffn_norm_scale"]
    assert names(["output", re.compile("embd")]) == ["token_embd", "output"]
    assert names(lambda name: "mix" in name) == [f"blk.{i}.attn_mix" for i in range(3)]
    assert names([]) == []
    assert names(lambda name: False) == []


@pytest.mark.parametrize("capture", ["blk.0.attn_qq", ["output", "blk.7.*"], re.compile("zzz")])
def test_an_unknown_name_raises_and_names_the_nearest(model, capture):
    for call in (model.trace, model.plan):
        with pytest.raises(ValueError, match="no tap matches"):
            call(IDS, capture)
    with pytest.raises(ValueError, match=r"blk\.0\.attn_q'"):
        model.trace(IDS, "blk.0.attn_qq")
    with pytest.raises(TypeError, match="capture holds 5"):
        model.trace(IDS, ["output", 5])
    with pytest.raises(TypeError, match="capture holds 5"):
        model.trace(IDS, 5)


def test_any_choice_of_layers_gives_the_same_values(model, uneven):
    """Stacks of layers with gaps, and of layers of different sizes."""
    for each in (model, uneven):
        whole = each.trace(IDS, "*")
        for capture in ("blk.[02].*", "blk.1.*", ["blk.2.attn_q", "blk.0.attn_probs", "output"]):
            t = each.trace(IDS, capture)
            assert list(t) == match(list(whole), capture)
            assert all(np.array_equal(t[name], whole[name]) for name in t)
        batch = each.trace([[7, 8, 9, 10, 11], IDS[:2], IDS], "*")
        assert all(np.array_equal(batch[2][name], whole[name]) for name in whole)


def test_a_batch_is_a_list_and_one_prompt_is_not(model):
    one = model.trace(IDS, "output")
    assert isinstance(one, tl.Trace)
    assert isinstance(model.trace(np.array(IDS), "output"), tl.Trace)
    for batch in ([IDS, IDS], [np.array(IDS), IDS], np.array([IDS, IDS]), (IDS, tuple(IDS))):
        traces = model.trace(batch, "output")
        assert len(traces) == 2
        assert all(np.array_equal(t["output"], one["output"]) for t in traces)
    assert len(model.trace([IDS])) == len(model.trace([IDS], [])) == 1
    assert len(model.logits([IDS, IDS[:2]])) == len(model.hidden_states([IDS, IDS[:2]])) == 2
    assert np.array_equal(model.hidden_states([IDS])[0], model.hidden_states(IDS))


def test_arrays_are_read_only_and_outlive_everything(model, tmp_path):
    own = models.random_model(tmp_path, layers=1, heads=2, kv_heads=2, **SIZES)
    t = own.trace(IDS, "*")
    array, copy = t["blk.0.attn_q"], t["blk.0.attn_q"].copy()
    stack = t.stack("blk.*.ffn_up")
    assert not any(a.flags.writeable for a in t.values())
    assert not stack.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[:] = 0
    with pytest.raises(TypeError):
        t["output"] = array
    del t, own
    gc.collect()
    for _ in range(20):
        model.trace(IDS, "*")
    assert np.array_equal(array, copy)


def test_slices_of_tokens(model):
    t = model.trace(IDS, "*")
    part = t[1:4]
    assert part.tokens.tolist() == IDS[1:4]
    assert part.pieces == t.pieces[1:4]
    assert part.start == 1
    assert part[1:].start == 2
    for name in t:
        rows = t[name][:, 1:4] if name.endswith(("probs", "scores")) else t[name][1:4]
        assert np.array_equal(part[name], rows)
    assert part.stack("*attn_probs").shape == (3, 4, 3, 5)
    assert part.stack("*resid_post").shape == (3, 3, 32)
    assert len(t[2:2].tokens) == 0
    assert t[-1:].logits.shape == (1, 60)
    with pytest.raises(ValueError, match="step"):
        t[::2]
    with pytest.raises(TypeError, match="expected the name of a tap or a slice"):
        t[3]


def test_stack(model, uneven):
    t = model.trace(IDS, "*")
    stack = t.stack("blk.*.attn_q")
    assert stack.shape == (3, 5, 4, 8)
    assert np.shares_memory(stack, t.stack("blk.*.attn_q"))  # no copy
    assert np.array_equal(t.stack(["blk.2.resid_mid", "blk.0.resid_mid"])[1], t["blk.2.resid_mid"])
    assert t.stack("*attn_probs").shape == (3, 4, 5, 5)
    assert t.stack("*resid_p*").shape == (6, 5, 32)
    with pytest.raises(ValueError, match="expected equal shapes"):
        t.stack("blk.0.*")
    with pytest.raises(ValueError, match="no tap matches"):
        model.trace(IDS, "output").stack("*mix")
    with pytest.raises(ValueError, match="expected equal shapes"):
        uneven.trace(IDS).stack("*attn_q")
    assert uneven.trace(IDS).stack("blk.[02].attn_q").shape == (2, 5, 4, 8)


def test_a_mapping(model):
    t = model.trace(IDS, ["output", "blk.0.*"])
    assert t["logits"] is not None
    assert "logits" in t
    assert "output" in t
    assert "blk.1.attn_q" not in t
    assert 5 not in t
    assert len(t) == len(list(t)) == 21
    with pytest.raises(KeyError, match="nearest are"):
        t["blk.0.attn_qx"]
    assert t.names("*norm*") == [n for n in t if "norm" in n]
    assert t.names("nothing*") == []
    assert t == t
    assert t != model.trace(IDS, ["output", "blk.0.*"])
    assert "5 tokens, 21 taps" in repr(t)


def test_logits_argument(model):
    want = model.logits(IDS)
    assert np.array_equal(model.trace(IDS, [], logits="all").logits, want)
    assert np.array_equal(model.trace(IDS, [], logits="last").logits, want[-1])
    assert np.array_equal(model.trace(IDS, "output", logits="last").logits, want[-1])
    assert np.array_equal(
        model.trace(IDS, "*resid_mid", logits=[3, 0, -1]).logits, want[[3, 0, -1]]
    )
    batch = model.trace([IDS, IDS[:3]], [], logits=[1, -1])
    assert np.array_equal(batch[1].logits, want[[1, 2]])
    assert np.array_equal(model.trace(IDS).logits, want)
    with pytest.raises(AttributeError, match="logits='all'"):
        _ = model.trace(IDS, "token_embd").logits
    with pytest.raises(ValueError, match="logits is 'first'"):
        model.trace(IDS, logits="first")
    with pytest.raises(IndexError, match=r"logits\[1\] is 5"):
        model.trace(IDS, logits=[0, 5])


def test_a_sessions_captures_have_absolute_positions(model):
    session = model.session()
    session.eval(IDS[:2])
    t = session.eval(IDS[2:], "all", capture="*")
    assert t.start == 2
    assert t["blk.0.attn_probs"].shape == (4, 3, 5)
    whole = model.trace(IDS, "*")[2:]
    assert all(np.array_equal(t[name], whole[name]) for name in t)
    assert np.array_equal(session.logits, t.logits)
    assert session.eval([1], "none", capture="token_embd").start == 5


def test_a_capture_that_does_not_fit_raises_before_anything_runs(model, monkeypatch):
    monkeypatch.setattr(_core, "memory_available", lambda: 1 << 20, raising=False)
    layout = model.layout("*")
    with pytest.raises(MemoryError, match=r"takes [0-9,]+ bytes and 1,048,576 are available"):
        Arena(layout, [4000], [4000])


def test_layouts_are_made_once(model):
    assert model.layout("*mix") is model.layout(["blk.*.attn_mix"])
    assert model.layout("*mix") is not model.layout("*mid")
    layout = Layout(select(model.taps, ["blk.0.attn_q", "blk.2.attn_q"]))
    assert [model.steps[i].tap for i in layout.families[0].steps] == list(layout.places)


def test_tables_show_hostile_names_and_tokens_as_text(model, tmp_path):
    t = model.trace(IDS, "*")
    t.pieces = ["<script>alert(1)</script>"] * 5
    html = t._repr_html_()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    assert "blk.*.ffn_down</td><td style=text-align:left>0-2" in html
    assert "nan" not in str(t.table())
    assert "(4, 5, 5)" in str(t.table())


@pytest.mark.slow
def test_ten_thousand_traces_leak_nothing(model):
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1])

    def run(count):
        for _ in range(count):
            model.trace(IDS, "*", edits=tl.scale("*attn_probs", 1.0))

    run(1000)
    before = resident()
    run(10_000)
    assert resident() - before < 256  # pages: one megabyte


# --- the memory of captures --------------------------------------------------------------------


def test_memory_of_captures_is_used_again():
    shape = (64, 1024)
    array = _core.empty(shape)
    assert array.shape == shape
    assert array.dtype == np.float32
    assert array.flags.writeable
    assert array.flags.c_contiguous
    address = array.ctypes.data
    assert address % 64 == 0
    view = array[3:5]
    del array
    other = _core.empty(shape)
    assert other.ctypes.data != address  # a view keeps its block of memory alive
    view[:] = 1
    del view
    before = _core.block_cache_bytes()
    again = _core.empty((65_536,))
    assert again.ctypes.data == address
    assert _core.block_cache_bytes() == before - again.nbytes
    del again
    assert _core.block_cache_bytes() == before


def test_the_memory_that_is_kept_is_bounded():
    arrays = [_core.empty((1 << 21,)) for _ in range(100)]  # 800 MiB, never touched
    del arrays
    assert _core.block_cache_bytes() <= 512 << 20
    sizes = [_core.empty((20_000 + 3000 * i,)) for i in range(200)]
    del sizes
    assert _core.block_cache_bytes() <= 512 << 20


def test_empty_refuses_what_is_no_shape():
    assert _core.empty(()).shape == ()
    assert _core.empty((0, 5)).size == 0
    with pytest.raises(ValueError, match=r"shape\[1\] is -1"):
        _core.empty((2, -1))
    with pytest.raises(TypeError, match="tuple"):
        _core.empty(3)
    with pytest.raises(TypeError):
        _core.empty((1.5,))
    with pytest.raises(MemoryError):
        _core.empty((2**40, 2**40))
    with pytest.raises(MemoryError):
        _core.empty((2**60,))


@pytest.mark.threads
def test_captures_from_several_threads(model):
    want = model.trace(IDS * 10, "*")
    wrong = []

    def work():
        for _ in range(20):
            t = model.trace(IDS * 10, "*")
            if not all(np.array_equal(t[name], want[name]) for name in t):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_was_captured_before_is_not_taken_for_what_is_asked_now(model):
    wanted = {"output"}
    assert list(model.trace(IDS, wanted.__contains__)) == ["output"]
    wanted.add("token_embd")
    assert list(model.trace(IDS, wanted.__contains__)) == ["token_embd", "output"]
    assert model.layout(["output"]) is model.layout(("output",))
    assert model.layout("token_embd") is not model.layout("output")
    for nonsense in ([["output"]], [{}], [3], {"output": 1}.items()):
        with pytest.raises(TypeError, match="capture holds"):
            model.trace(IDS, nonsense)


def test_a_tap_that_was_not_captured_is_not_called_unknown(model):
    trace = model.trace(IDS, "output")
    with pytest.raises(KeyError, match=r"'blk\.0\.attn_probs' was not captured"):
        trace["blk.0.attn_probs"]
    with pytest.raises(KeyError, match=r"no tap matches 'blk\.0\.attn_prob'; the nearest are"):
        trace["blk.0.attn_prob"]
