"""A trace knows the tokens of its whole context, and labels come from there."""

import json

import numpy as np
import pytest

import tinyllm as tl
from testkit import models
from tinyllm.files.arrays import read_arrays, write_arrays

SIZES = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 60}
IDS = [3, 1, 4, 1, 5, 9, 2, 6]
PIECES = [f"t{i}" for i in range(8)]  # the texts of these tokens differ, although ids repeat
ENDINGS = [".safetensors", ".npz"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.random_model(tmp_path_factory.mktemp("context"), **SIZES)


@pytest.fixture
def trace(model):
    t = model.trace(IDS, "*")
    t.relabel(np.array(IDS, np.int32), list(PIECES))
    return t


def in_a_session(model, *calls):
    """The trace of the last of several calls of a session."""
    session = model.session()
    for ids in calls:
        t = session.eval(ids, capture="*")
    return t


def paid(t, query, key):
    """The attention that a token pays to another, both given by position."""
    row = t.positions.tolist().index(query)
    return t["blk.1.attn_probs"][:, row, key].tolist()


@pytest.mark.parametrize("part", [slice(5), slice(5, 8), slice(2, 3), slice(-2, None), slice(3, 3)])
def test_a_slice_keeps_the_tokens_of_the_context(trace, part):
    t = trace[part]
    rows = list(range(8))[part]
    assert t.positions.tolist() == rows
    assert t.pieces == PIECES[part]
    assert t.context.tolist() == IDS
    assert t.context_pieces == PIECES
    assert t["blk.0.attn_probs"].shape == (4, len(rows), len(t.context))
    for query in rows:
        for key in range(8):
            assert paid(t, query, key) == paid(trace, query, key)
    for again in (t[1:], t[:0]):  # a slice of a slice
        assert again.context_pieces == PIECES
        assert again.positions.tolist() == rows[1:] or not len(again.tokens)


def test_a_session_gives_the_tokens_before_the_call(model):
    whole = model.trace(IDS, "*")
    for calls in ([IDS[:3], IDS[3:]], [IDS[:1], IDS[1:4], IDS[4:]], [[i] for i in IDS]):
        t = in_a_session(model, *calls)
        assert t.context.tolist() == IDS
        assert t.context_pieces == model.pieces(np.array(IDS))
        assert t.positions.tolist() == list(range(8))[-len(calls[-1]) :]
        assert paid(t, 7, 2) == paid(whole, 7, 2)
    assert in_a_session(model, IDS[:3], IDS[3:])[1:2].context.tolist() == IDS


def test_sessions_that_were_rewound_forked_saved_or_continued(model, tmp_path):
    session = model.session()
    first = session.eval(IDS[:4], capture="*")
    session.rewind(2)
    second = session.eval([7, 8, 9], capture="*")
    fork = session.fork()
    third = session.eval([10], capture="*")
    forked = fork.eval([11], capture="*")
    session.rewind(1)
    session.eval([12])
    fourth = session.eval([13], capture="*")
    session.save(tmp_path / "s.npz")
    loaded = model.session(tmp_path / "s.npz").eval([14], capture="*")
    assert first.context.tolist() == IDS[:4]
    assert second.context.tolist() == [3, 1, 7, 8, 9]
    assert third.context.tolist() == [3, 1, 7, 8, 9, 10]
    assert forked.context.tolist() == [3, 1, 7, 8, 9, 11]
    assert fourth.context.tolist() == [3, 1, 7, 8, 9, 12, 13]
    assert loaded.context.tolist() == [3, 1, 7, 8, 9, 12, 13, 14]


def test_the_traces_of_a_generation_share_the_memory_of_their_contexts(model):
    g = model.generate(IDS, 40, seed=1, capture="*probs")
    ids = [*IDS, *g.ids]
    assert len(g.traces) == 40
    for step, t in enumerate(g.traces):
        assert t.context.tolist() == ids[: 8 + step]
        assert t["blk.0.attn_probs"].shape[2] == len(t.context)
    blocks = {id(t.context.base): t.context.base.nbytes for t in g.traces}
    assert len(blocks) < 6  # they double; a copy per step would be 40
    assert not g.traces[-1].context.flags.writeable


def test_a_batch_and_a_run_from_a_layer(model):
    one, two = model.trace([IDS, IDS[:3]], "*")
    assert one.context.tolist() == IDS
    assert two.context.tolist() == IDS[:3]
    t = model.run_from(1, one["blk.1.resid_pre"], "*probs", tokens=IDS)
    assert t[2:].context.tolist() == IDS
    t = model.run_from(1, one["blk.1.resid_pre"], "*probs")
    assert t[2:].context_pieces == list("01234567")


def test_a_trace_does_not_change_with_the_callers_array(model):
    ids = np.array(IDS, np.int32)
    t = model.trace(ids, "*probs")
    ids[:] = 0
    assert t.tokens.tolist() == t.context.tolist() == IDS


# ---- files ----


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_keep_the_context(model, trace, tmp_path, ending):
    later = in_a_session(model, IDS[:5], IDS[5:])
    for i, t in enumerate((trace, trace[:5], trace[5:8], trace[3:3], later, later[1:2])):
        t.save(tmp_path / f"{i}{ending}")
        back = tl.read(tmp_path / f"{i}{ending}")
        assert back.context.tolist() == IDS
        assert back.context_pieces == t.context_pieces
        assert back.positions.tolist() == t.positions.tolist()
        assert np.array_equal(back["blk.1.attn_probs"], t["blk.1.attn_probs"])
        assert back[:1].context_pieces == t.context_pieces


def without_context(path):
    """Rewrite a file as older versions wrote it."""
    arrays, metadata = read_arrays(path)
    arrays = {name: np.array(arrays[name]) for name in arrays}
    write_arrays(path, arrays, {k: v for k, v in metadata.items() if not k.startswith("context")})


@pytest.mark.parametrize("ending", ENDINGS)
def test_older_files_are_read_and_label_only_what_is_known(model, trace, tmp_path, ending):
    path = tmp_path / f"old{ending}"
    for part in (slice(0, 8), slice(0, 5), slice(5, 8), slice(2, 4)):
        trace[part].save(path)
        without_context(path)
        back = tl.read(path)
        rows = range(8)[part]
        assert back.positions.tolist() == list(rows)
        assert back.context.tolist() == [IDS[i] if i in rows else -1 for i in range(8)]
        assert back.context_pieces == [PIECES[i] if i in rows else "" for i in range(8)]
    trace[2:4].save(path)
    arrays, metadata = read_arrays(path)
    small = {"output": np.array(arrays["output"])}
    write_arrays(path, small, {k: v for k, v in metadata.items() if not k.startswith("context")})
    assert tl.read(path).context.tolist() == [-1, -1, 4, 1]  # nothing says how many followed


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("context", "[3, 1]", "context_pieces is "),
        ("context", json.dumps([0] * 8), "context is"),
        ("context", "{}", "context is"),
        ("context_pieces", '["a"]', "context_pieces is '?1 strings"),
        ("context_pieces", "[1,1,1,1,1,1,1,1]", "context_pieces is"),
        ("start", "99999999999", "context is"),
    ],
)
def test_a_damaged_context_is_refused(trace, tmp_path, key, value, words):
    path = tmp_path / "t.npz"
    trace[2:5].save(path)
    arrays, metadata = read_arrays(path)
    arrays = {name: np.array(arrays[name]) for name in arrays}
    if key == "start":  # of an older file: it must not take memory for all positions before
        metadata = {k: v for k, v in metadata.items() if not k.startswith("context")}
    write_arrays(path, arrays, {**metadata, key: value})
    with pytest.raises(tl.FormatError, match=words):
        tl.read(path)["blk.0.attn_probs"]


# ---- labels ----


def ticks(ax, axis):
    places = getattr(ax, f"get_{axis}ticks")().tolist()
    texts = [text.get_text() for text in getattr(ax, f"get_{axis}ticklabels")()]
    return dict(zip(places, texts, strict=True))


@pytest.mark.parametrize("part", [slice(0, 8), slice(0, 5), slice(5, 8), slice(2, 3)])
def test_plots_label_the_cells_with_their_tokens(trace, part):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ax = tl.plot.attention(trace[part], 1, head=2)
    queries, keys = ticks(ax, "y"), ticks(ax, "x")
    assert keys == dict(enumerate(PIECES))
    assert queries == {i: PIECES[i] for i in range(8)[part]}
    image = ax.images[0]
    left, right, bottom, top = image.get_extent()
    cells = np.asarray(image.get_array())
    for query, of in queries.items():  # the cell that is drawn at the labels' coordinates
        for key, to in keys.items():
            row = int((query - top) / (bottom - top) * cells.shape[0])
            column = int((key - left) / (right - left) * cells.shape[1])
            want = trace["blk.1.attn_probs"][2, PIECES.index(of), PIECES.index(to)]
            assert cells[row, column] == want
    every = tl.plot.attention(trace[part], 1)
    assert ticks(every.child_axes[0], "x") == keys
    assert ticks(every.child_axes[0], "y") == queries
    lens = tl.plot.lens(trace[part])
    assert ticks(lens, "x") == queries
    assert [text.get_position()[0] for text in lens.texts[: len(queries)]] == list(queries)
    plt.close("all")


def test_plots_without_labels_count_positions(model):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    t = model.trace(np.arange(200) % 60, "*")[100:180]
    ax = tl.plot.attention(t, 0, head=0)
    assert ax.images[0].get_extent() == [-0.5, 199.5, 179.5, 99.5]
    assert tl.plot.lens(t).images[0].get_extent()[:2] == [139.5, 179.5]
    whole = tl.plot.lens(t, tokens=slice(None))
    assert whole.images[0].get_extent()[:2] == [99.5, 179.5]
    plt.close("all")


@pytest.mark.parametrize("part", [slice(0, 8), slice(0, 5), slice(5, 8), slice(2, 3)])
def test_the_page_has_the_tokens_of_the_columns(trace, part):
    text = trace[part].page().html()
    data = json.loads(text.split("id='data'>")[1].split("</script>")[0])
    rows = range(8)[part]
    assert data["pieces"] == PIECES
    assert data["ids"] == IDS
    assert (data["start"], data["rows"]) == (rows.start, len(rows))
    assert data["attention"]["0"]["keys"] == 8
