"""Pictures: what they draw, without a display, and what they refuse."""

import builtins
import re

import numpy as np
import pytest

import tinyllm as tl
from testkit import models

IDS = [3, 1, 4, 1, 5, 9, 2]
SIZES = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 60}


@pytest.fixture(scope="module")
def plt():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


@pytest.fixture(autouse=True)
def close(plt):
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.random_model(tmp_path_factory.mktemp("plot"), **SIZES)


@pytest.fixture(scope="module")
def trace(model):
    t = model.trace(IDS, "*")
    t.pieces = ["$x^2$", "a\nb", "", "$", "<b>", "一", "🙂\ud800"]
    return t


def draw(ax):
    ax.figure.canvas.draw()  # raises if a label is not valid mathematics
    return ax


def labels(ax, axis):
    return [text.get_text() for text in getattr(ax, f"get_{axis}ticklabels")()]


def test_attention_of_all_heads(plt, trace):
    ax = draw(tl.plot.attention(trace, 1))
    assert len(ax.child_axes) == 4
    for head, inset in enumerate(ax.child_axes):
        shown = np.asarray(inset.images[0].get_array())
        assert np.array_equal(shown, trace["blk.1.attn_probs"][head])
        assert inset.get_title() == f"head {head}"
    assert len(labels(ax.child_axes[0], "y")) == 7
    assert labels(ax.child_axes[1], "y") == []


def test_attention_of_one_head_and_of_a_later_call(plt, model, trace):
    ax = plt.subplots()[1]
    assert tl.plot.attention(trace, -1, head=2, ax=ax) is ax
    assert np.array_equal(np.asarray(ax.images[0].get_array()), trace["blk.1.attn_probs"][2])
    draw(ax)
    session = model.session()
    session.eval(IDS)
    later = session.eval([1, 2], capture="*probs")
    ax = draw(tl.plot.attention(later, 0, 0))
    assert len(labels(ax, "x")) == 9
    assert len(labels(ax, "y")) == 2


def test_the_lens_writes_the_guesses_into_the_cells(plt, trace):
    ax = draw(tl.plot.lens(trace))
    result = tl.lens(trace)
    texts = [text.get_text() for text in ax.texts]
    assert texts == [result.pieces[layer][t][0] for layer in range(2) for t in range(7)]
    assert labels(ax, "y") == ["0", "1"]
    assert ax.get_ylabel() == "layer of resid_post"
    assert draw(tl.plot.lens(result, ax=plt.subplots()[1]))
    mixed = tl.lens(trace, taps=["blk.0.resid_pre", "blk.1.resid_post"])
    assert labels(draw(tl.plot.lens(mixed)), "y") == mixed.names


def test_text_has_contrast_with_its_cell(plt, trace):
    ax = draw(tl.plot.lens(trace))
    image = ax.images[0]
    values = np.linspace(0, 1, 11)
    for value, (r, g, b, _) in zip(values, image.cmap(values), strict=True):
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (r, g, b)]
        luminance = np.dot(linear, (0.2126, 0.7152, 0.0722))
        ink = 0.0 if tl.plot._ink((r, g, b)) == "black" else 1.0
        low, high = sorted((luminance, ink))
        assert (high + 0.05) / (low + 0.05) >= 4.5, value  # WCAG AA
    assert {text.get_color() for text in ax.texts} <= {"black", "white"}


def test_the_lens_of_one_token_writes_ranks(plt, trace):
    result = tl.lens(trace, token=17)
    ax = draw(tl.plot.lens(result))
    assert [t.get_text() for t in ax.texts] == [str(rank) for rank in result.ranks.reshape(-1)]
    assert np.array_equal(np.asarray(ax.images[0].get_array()), result.logprobs)
    assert ax.get_title() == "logit lens: rank of 17"


def test_long_contexts_have_words(plt, model):
    t = model.trace(np.arange(300) % 60, ["*probs", "*resid_post"])
    t.relabel(t.tokens, [f"word{i}" for i in range(300)])
    for ax in (tl.plot.attention(t, 0, 0), tl.plot.attention(t, 1).child_axes[0]):
        draw(ax)
        for axis in "xy":
            shown = labels(ax, axis)
            places = getattr(ax, f"get_{axis}ticks")()
            assert 5 < len(shown) < 100
            assert shown == [f"{i} word{i}" for i in places]
    ax = draw(tl.plot.attention(t, 0, 0, tokens=slice(100, 110)))
    assert labels(ax, "x") == labels(ax, "y") == [f"word{i}" for i in range(100, 110)]
    assert np.array_equal(ax.images[0].get_array(), t["blk.0.attn_probs"][0, 100:110, 100:110])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("key", "query")
    ax = draw(tl.plot.lens(t))  # the last ones
    assert labels(ax, "x") == [f"word{i}" for i in range(260, 300)]
    assert len(ax.texts) == 2 * 40
    assert "40 of 300" in ax.get_title()
    whole = tl.lens(t)
    ax = draw(tl.plot.lens(whole, tokens=slice(7, 12)))
    assert [x.get_text() for x in ax.texts[:5]] == [whole.pieces[0][i][0] for i in range(7, 12)]
    ax = draw(tl.plot.lens(tl.lens(t, at=[5, 200])))
    assert labels(ax, "x") == ["word5", "word200"]
    assert not draw(tl.plot.lens(whole, tokens=slice(None))).texts  # an overview
    for tokens, error in ((slice(5, 5), ValueError), (slice(0, 9, 2), TypeError), (3, TypeError)):
        with pytest.raises(error, match="tokens is"):
            tl.plot.lens(t, tokens=tokens)
        with pytest.raises(error, match="tokens is"):
            tl.plot.attention(t, 0, tokens=tokens)


def overlapping(texts, renderer):
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
    return [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


@pytest.mark.parametrize("count", [31, 200])
def test_labels_do_not_overlap(plt, model, count):
    t = model.trace(np.arange(count) % 60, ["*probs", "*resid_post"])
    t.relabel(t.tokens, ["international"] * count)
    plots = [tl.plot.attention(t, 0, 0), tl.plot.lens(t), *tl.plot.attention(t, 1).child_axes[:2]]
    plots.append(tl.plot.grid(np.ones((count, count)), t.pieces, t.pieces))
    for ax in plots:
        draw(ax)
        renderer = ax.figure.canvas.get_renderer()
        for axis in "xy":
            assert not overlapping(getattr(ax, f"get_{axis}ticklabels")(), renderer), axis


def test_side_by_side(plt, trace, tmp_path):
    figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
    weight = models.random_model(tmp_path, "Q8_0", layers=1).weights["blk.0.ffn_up.weight"]
    tl.plot.weights(weight, ax=axes[0])
    tl.plot.attention(trace, 0, ax=axes[1])
    tl.plot.weights(weight, ax=axes[2])
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    boxes = [ax.get_tightbbox(renderer) for ax in axes]
    assert boxes[0].x1 <= boxes[1].x0
    assert boxes[1].x1 <= boxes[2].x0


def test_only_what_the_font_lacks_is_a_box(plt):
    assert tl.plot._label("naïve – “€” → Ω Ж") == "naïve·–·“€”…"
    assert tl.plot._label("→Ω≤∞€") == "→Ω≤∞€"
    assert tl.plot._label("一🙂") == "□□"
    assert tl.plot._label("a\x1bb\n\t\ud800") == r"a\x1bb\n\t\ud800"
    assert tl.plot._label("a$b") == r"a\$b"


def test_parts_of_characters_are_shown_as_bytes(plt):
    model = tl.load()
    t = model.trace(model.tokenizer.encode("猫"), ["*probs", "*resid_post"])
    shown = labels(draw(tl.plot.attention(t, 0, 0)), "x")
    assert {"<0xE7>", "<0x8C>", "<0xAB>"} <= set(shown)


def test_norms(plt, trace, model):
    ax = draw(tl.plot.norms(trace))
    (line,) = (line for line in ax.lines if line.get_label() == "resid_post")
    want = [np.linalg.norm(trace[f"blk.{i}.resid_post"], axis=1).mean() for i in range(2)]
    assert np.allclose(line.get_ydata(), want)
    assert len(ax.lines) == 3
    assert len(tl.plot.norms(model.trace(IDS, "*ffn_down")).lines) == 1


def test_attribution(plt, trace):
    parts = tl.attribution(trace, 7, minus=3)
    ax = draw(tl.plot.attribution(parts, top=5))
    widths = [bar.get_width() for bar in ax.patches]
    order = np.argsort(-abs(parts.values))[:5]
    assert np.allclose(widths, parts.values[order])
    assert labels(ax, "y") == [parts.names[i] for i in order]
    assert draw(tl.plot.attribution(trace, 7, minus=3, at=2))


@pytest.mark.parametrize(
    "type_name", ["F32", "Q4_0", "Q8_0", "Q4_K", "Q6_K", "BF16", "IQ4_NL", "IQ4_XS", "MXFP4"]
)
def test_weights(plt, type_name, tmp_path):
    model = models.random_model(tmp_path, type_name, layers=1)
    weight = model.weights["blk.0.ffn_up.weight"]
    ax = draw(tl.plot.weights(weight))
    assert len(ax.images[0].get_array()) == 256
    assert bool(ax.child_axes) == (type_name not in ("F32", "BF16"))
    if type_name == "Q8_0":  # a block's scale is its largest value / 127
        values = weight.numpy().reshape(weight.shape[0], -1, 32)
        rows = np.unique(np.linspace(0, weight.shape[0] - 1, 256).astype(int))
        want = abs(values).max(axis=2).mean(axis=1)[rows] / 127
        assert np.allclose(ax.child_axes[0].lines[0].get_xdata(), want, rtol=0.01)
    if type_name == "MXFP4":  # the largest of a block is 6 to 12 times its scale
        largest = abs(weight.numpy().reshape(weight.shape[0], -1, 32)).max(axis=2)
        rows = np.unique(np.linspace(0, weight.shape[0] - 1, 256).astype(int))
        ratio = largest.mean(axis=1)[rows] / ax.child_axes[0].lines[0].get_xdata()
        assert ((ratio > 6) & (ratio <= 12)).all()
    assert draw(tl.plot.weights(model.weights["output_norm.weight"]))


def test_grid(plt, trace):
    ax = draw(tl.plot.grid(np.arange(14).reshape(2, 7), ["a", "b"], trace.pieces, title="$"))
    assert ax.images[0].get_clim() == (-13, 13)
    assert labels(ax, "x")[0] == r"\$x^2\$"
    draw(tl.plot.grid([[np.nan, 0.0]]))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda t: tl.plot.attention(t, 2), IndexError, "layer is 2"),
        (lambda t: tl.plot.attention(t, 0, 4), IndexError, "head is 4"),
        (lambda t: tl.plot.attention(t, 0, ax=3), TypeError, "ax is 3"),
        (lambda t: tl.plot.norms(t.model.trace(IDS, "output")), ValueError, "resid_post"),
        (lambda t: tl.plot.attention(t.model.trace(IDS), 0), ValueError, "blk.0.attn_probs"),
        (lambda t: tl.plot.attribution(t), TypeError, "token is None"),
        (lambda t: tl.plot.weights(t["output"]), TypeError, "expected a tinyllm.Weight"),
        (lambda t: tl.plot.grid([1, 2]), ValueError, "(rows, columns)"),
        (lambda t: tl.plot.grid([[1, 2]], columns=["a"]), ValueError, "columns has 1 labels"),
    ],
)
def test_bad_arguments(plt, trace, call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call(trace)


def test_without_matplotlib_the_error_says_what_to_install(trace, monkeypatch):
    real = builtins.__import__

    def fail(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        tl.plot.norms(trace)
