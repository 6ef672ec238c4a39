"""Arrays and scalars of NumPy are taken wherever lists and numbers of Python are."""

import array

import numpy as np
import pytest

import tinyllm as tl

PROMPT = "ROMEO: But"


@pytest.fixture(scope="module")
def model():
    return tl.load(threads=1)


@pytest.fixture(scope="module")
def trace(model):
    return model.trace(PROMPT)


def edited(model, edit):
    return model.logits(PROMPT, edits=[edit]).tobytes()


def session_after(model, use):
    session = model.session()
    session.eval(model.tokenizer.encode(PROMPT))
    use(session)
    return session.tokens


LISTS = {
    "prompt": ([1, 2, 3], lambda m, t, x: m.logits(x).tobytes()),
    "generate": ([1, 2, 3], lambda m, t, x: m.generate(x, 3, seed=1).ids),
    "beam_search": ([1, 2, 3], lambda m, t, x: m.beam_search(x, 2, max_tokens=3)[0].ids),
    "score": ([1, 2, 3], lambda m, t, x: m.score(x).logprobs.tolist()),
    "eval": ([1, 2, 3], lambda m, t, x: m.session().eval(x).tobytes()),
    "rows": ([0, 2], lambda m, t, x: m.session().eval(PROMPT, x).tobytes()),
    "keep": ([1, 2, 3], lambda m, t, x: session_after(m, lambda s: s.keep(x))),
    "stop_ids": ([198, 5], lambda m, t, x: m.generate(PROMPT, 9, seed=1, stop_ids=x).ids),
    "seeds": ([1, 2], lambda m, t, x: [g.ids for g in m.generate([PROMPT] * 2, 3, seed=x)]),
    "zero at": ([0, 1], lambda m, t, x: edited(m, tl.zero("blk.0.ffn_act", at=x))),
    "zero head": ([0, 1], lambda m, t, x: edited(m, tl.zero("blk.0.attn_mix", head=x))),
    "mean at": ([0, 1], lambda m, t, x: edited(m, tl.mean("blk.0.ffn_act", t, at=x))),
    "patch at": ([0, 1], lambda m, t, x: edited(m, tl.patch("blk.0.ffn_act", t, at=x))),
    "decode": ([1, 2, 3], lambda m, t, x: m.tokenizer.decode(x)),
    "pieces": ([1, 2, 3], lambda m, t, x: m.tokenizer.pieces(x)),
    "feed": ([1, 2, 3], lambda m, t, x: m.tokenizer.stream_decoder().feed(x)),
}

INTS = {
    "max_tokens": (4, lambda m, t, x: m.generate(PROMPT, x, seed=1).ids),
    "min_tokens": (2, lambda m, t, x: m.generate(PROMPT, 5, seed=1, min_tokens=x).ids),
    "top_k": (3, lambda m, t, x: m.generate(PROMPT, 5, seed=1, top_k=x).ids),
    "seed": (7, lambda m, t, x: m.generate(PROMPT, 3, seed=x).ids),
    "stop_ids": (198, lambda m, t, x: m.generate(PROMPT, 9, seed=1, stop_ids=x).ids),
    "at": (1, lambda m, t, x: edited(m, tl.zero("blk.0.ffn_act", at=x))),
    "head": (-1, lambda m, t, x: edited(m, tl.zero("blk.0.attn_mix", head=x))),
    "rewind": (2, lambda m, t, x: session_after(m, lambda s: s.rewind(x))),
    "decode": (5, lambda m, t, x: m.tokenizer.decode(x)),
    "is_eog": (5, lambda m, t, x: m.tokenizer.is_eog(x)),
    "score": (5, lambda m, t, x: m.tokenizer.score(x)),
    "feed": (5, lambda m, t, x: m.tokenizer.stream_decoder().feed(x)),
    "circuit": (1, lambda m, t, x: tl.ov_circuit(m, x, x).tobytes()),
    "run_from": (1, lambda m, t, x: m.run_from(x, t["blk.1.resid_pre"])["output"].tobytes()),
    "beams": (2, lambda m, t, x: m.beam_search(PROMPT, x, max_tokens=3)[0].ids),
    "row of a weight": (2, lambda m, t, x: m.weights["token_embd.weight"][x].tobytes()),
    "max_context": (64, lambda m, t, x: tl.load(max_context=x).core.config["max_context"]),
    "window": (16, lambda m, t, x: str(m.perplexity(list(range(99)), window=x))),
}

FLOATS = {
    "temperature": (0.5, lambda m, t, x: m.generate(PROMPT, 5, seed=1, temperature=x).ids),
    "top_p": (0.5, lambda m, t, x: m.generate(PROMPT, 5, seed=1, top_p=x).ids),
    "scale": (2.0, lambda m, t, x: edited(m, tl.scale("blk.0.ffn_act", x))),
}


@pytest.mark.parametrize("name", LISTS)
def test_arrays(model, trace, name):
    ids, use = LISTS[name]
    want = use(model, trace, ids)
    read_only = np.array(ids)
    read_only.flags.writeable = False
    for given in (
        *(np.array(ids, dtype) for dtype in ("i8", "i4", "u2", "u8", ">i4", object)),
        np.repeat(np.array(ids), 2)[::2],
        read_only,
        [np.int64(i) for i in ids],
        [np.array(i) for i in ids],
        tuple(ids),
        array.array("q", ids),
    ):
        assert use(model, trace, given) == want, repr(given)


@pytest.mark.parametrize("name", INTS)
def test_integers(model, trace, name):
    number, use = INTS[name]
    want = use(model, trace, number)
    for given in (np.int64(number), np.int16(number), np.array(number), np.array(number, "i4")):
        assert use(model, trace, given) == want, repr(given)


@pytest.mark.parametrize("name", FLOATS)
def test_floats(model, trace, name):
    number, use = FLOATS[name]
    want = use(model, trace, number)
    for given in (np.float64(number), np.float32(number), np.float16(number), np.array(number)):
        assert use(model, trace, given) == want, repr(given)


def test_arrays_of_texts_and_of_arrays(model):
    texts = ["ROMEO:", "But"]
    want = [g.ids for g in model.generate(texts, 3, seed=1)]
    for given in (np.array(texts), np.array(texts, object), tuple(texts)):
        assert [g.ids for g in model.generate(given, 3, seed=1)] == want
    ids = [[1, 2], [3, 4]]
    ragged = np.empty(2, object)
    ragged[:] = [np.array([1, 2]), np.array([3])]
    for given, lengths in ((np.array(ids), [2, 2]), ([*np.array(ids)], [2, 2]), (ragged, [2, 1])):
        assert [len(t.tokens) for t in model.trace(given)] == lengths
    stop = model.generate("a", 8, seed=1, stop=["e"]).ids
    assert model.generate("a", 8, seed=1, stop=np.array(["e"])).ids == stop
    names = ["output", "blk.0.*"]
    assert model.trace("a", np.array(names)).names() == model.trace("a", names).names()
    assert model.tokenizer.encode_batch(np.array(texts)) == model.tokenizer.encode_batch(texts)


@pytest.mark.parametrize("wrong", [[1.5], [True], [[1]], [[1, 2], [3, 4]]])
def test_other_arrays_are_named(model, wrong):
    for use in (
        lambda x: model.generate(PROMPT, 3, stop_ids=x),
        lambda x: model.logits(PROMPT, edits=[tl.zero("blk.0.ffn_act", at=x)]),
        lambda x: model.tokenizer.decode(x),
    ):
        with pytest.raises(TypeError, match=r"(?s)(stop_ids|at|ids)(\[0\])? is .*; expected"):
            use(np.array(wrong))
