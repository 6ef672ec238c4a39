"""The day of somebody who studies a model: traces, the lens, ablations, patches, pictures."""

import numpy as np
import pytest

import tinyllm as tl

CLEAN = "ROMEO: I love thee, Juliet. JULIET: I love thee,"


@pytest.fixture(scope="module")
def model():
    return tl.load()


def test_a_slice_keeps_its_labels(model, tmp_path):
    trace = model.trace(CLEAN, "*")
    part = trace[5:8]
    assert part.pieces == trace.pieces[5:8]
    assert "".join(trace.context_pieces).endswith(CLEAN)
    part.html(tmp_path / "page.html")
    assert part.pieces[0] in (tmp_path / "page.html").read_text("utf-8")
    assert len(trace._repr_html_()) < 40_000


def test_the_lens_says_where_a_token_appears(model):
    trace = model.trace(CLEAN)
    final = int(model.logits(CLEAN)[-1].argmax())
    best = tl.lens(trace, 3, at=-1)
    assert best.ids[-1, 0, 0] == final
    one = tl.lens(trace, token=final, at=-1)
    assert one.ranks[-1, 0] == 0
    assert one.probs[-1, 0] == pytest.approx(best.probs[-1, 0, 0])
    logprobs = tl.lens(trace, token=final, at=-1).logprobs
    assert np.exp(logprobs[-1, 0]) == pytest.approx(one.probs[-1, 0])


def test_ablations_are_single_runs(model):
    final = int(model.logits(CLEAN)[-1].argmax())
    found = tl.ablation_sweep(model, CLEAN, metric=lambda logits: logits[-1, final])
    assert found.shape == (model.config.layers, model.config.heads)
    layer, head = np.unravel_index(found.argmin(), found.shape)
    edit = tl.zero(f"blk.{layer}.attn_mix", head=int(head))
    assert model.logits(CLEAN, edits=[edit])[-1, final] == found.min()


def test_patches_move_the_answer(model):
    clean = model.tokenizer.encode(CLEAN)
    place = 5
    corrupt = [*clean[:place], clean[place] + 1, *clean[place + 1 :]]

    def metric(logits):
        return logits[-1, clean[place]] - logits[-1, corrupt[place]]

    found = tl.patch_sweep(model, clean, corrupt, metric=metric)
    assert found.shape == (model.config.layers, len(clean))
    low, high = (metric(model.logits(ids)) for ids in (corrupt, clean))
    assert low != high
    everything = tl.patch("blk.0.resid_pre", model.trace(clean, "blk.0.resid_pre"))
    assert metric(model.logits(corrupt, edits=[everything])) == high
    assert (found[0, :place] == low).all()  # what comes before the difference is equal
    assert found[0, place] == high


def test_gradients_agree_with_small_steps(model):
    final = int(model.logits(CLEAN)[-1].argmax())
    gradients = model.gradients(CLEAN, of=tl.logit(final), wrt="blk.1.resid_post")
    slope = gradients["blk.1.resid_post"][-1]
    step = 1e-2 * slope / np.linalg.norm(slope)
    up, down = (
        model.logits(CLEAN, edits=[tl.add("blk.1.resid_post", sign * step, at=-1)])[-1, final]
        for sign in (1, -1)
    )
    assert (up - down) / 2e-2 == pytest.approx(np.linalg.norm(slope), rel=1e-2)


def test_pictures(model):
    pytest.importorskip("matplotlib")
    import matplotlib.pyplot as plt

    trace = model.trace(CLEAN, "*")
    for axes in (tl.plot.attention(trace, 0, head=1), tl.plot.lens(trace)):
        labels = [text.get_text() for text in axes.get_xticklabels()]
        assert any("·I" in label for label in labels), labels
        assert axes.get_xlabel()
    plt.close("all")


def test_what_is_wrong_is_said(model):
    trace = model.trace(CLEAN)
    with pytest.raises(KeyError, match=r"blk\.0\.attn_probs.*was not captured"):
        trace["blk.0.attn_probs"]
    with pytest.raises(KeyError, match="resid_post"):
        trace["blocks.0.hook_resid_post_"]
    with pytest.raises(ValueError, match="NaN"):
        model.logits("a", edits=[tl.add("blk.0.resid_post", np.full(model.config.width, np.nan))])
