"""Traces in memory and between processes: what keeps what alive, copies, pickles."""

import concurrent.futures
import copy
import functools
import gc
import multiprocessing
import pickle
import re
import weakref

import numpy as np
import pytest

import tinyllm as tl
from testkit import models, worker
from tinyllm.trace import arena

SIZES = {"layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 60}
IDS = [3, 1, 4, 1, 5, 9, 2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.random_model(tmp_path_factory.mktemp("memory"), **SIZES)


def behind(array):
    """The bytes that an array keeps alive."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.nbytes


# ---- what keeps what alive ----


def test_a_row_keeps_its_own_tensor_and_no_more(model):
    for t in (model.trace(IDS, "*"), *model.trace([IDS, IDS[:3], IDS], "*"), model.trace([2], "*")):
        for name in t:
            assert behind(t[name][-1:]) <= t[name].nbytes
            assert t[name] is t[name] or t[name].base is t[name].base
            assert not t[name].flags.writeable
        part = t[:2]
        assert all(behind(part[name]) <= t[name].nbytes for name in t)
    session = model.session()
    session.eval(IDS)
    t = session.eval([1, 2], capture="*")
    assert all(behind(t[name]) <= t[name].nbytes for name in t)
    g = model.generate([IDS, IDS[:2]], 3, seed=1, capture="*")
    for t in (trace for each in g for trace in each.traces):
        assert all(behind(t[name]) <= t[name].nbytes for name in t)


def test_looking_at_a_trace_copies_nothing(model, tmp_path):
    t = model.trace(IDS, "*")
    repr(t), t.table(), t._repr_html_(), t.nbytes, t.stack("blk.*.attn_q"), pickle.dumps(t)
    t.save(tmp_path / "t.npz")
    assert t._arrays._copies == {}
    assert t.nbytes == sum(array.nbytes for array in t.values())


def test_a_large_array_is_a_view_until_it_is_copied(model, monkeypatch):
    monkeypatch.setattr(arena, "_SMALL", 100)
    t = model.trace(IDS, "*")
    x = t["blk.1.attn_q"]
    assert np.shares_memory(x, t.stack("blk.*.attn_q"))
    assert behind(x) == 3 * x.nbytes
    copied = t.copy("blk.1.*")
    assert list(copied) == [name for name in t if name.startswith("blk.1.")]
    for name in copied:
        assert np.array_equal(copied[name], t[name])
        assert behind(copied[name]) == t[name].nbytes
    part = model.trace([IDS, IDS], "*")[1][2:4]
    before = {name: part[name].copy() for name in part}
    assert behind(part["output"]) == 14 * 60 * 4
    part.compact()
    for name in part:
        assert np.array_equal(part[name], before[name])
        assert behind(part[name]) == part[name].nbytes
        assert not part[name].flags.writeable
    assert part.positions.tolist() == [2, 3]
    assert part.context.tolist() == IDS
    assert part.stack("blk.*.attn_q").shape == (3, 2, 4, 8)
    assert part.by_role("resid_post") == [f"blk.{i}.resid_post" for i in range(3)]
    with pytest.raises(ValueError, match="no tap matches 'zzz'"):
        t.copy("zzz")
    with pytest.raises(KeyError, match="'output' was not captured"):
        copied["output"]


def test_a_copy_keeps_its_model_and_can_be_analysed(model):
    t = model.trace(IDS, logits="all")
    for each in (t.copy(), copy.deepcopy(t), copy.copy(t)):
        assert each.model is model
        assert np.array_equal(tl.lens(each).probs, tl.lens(t).probs)
        assert np.array_equal(each.logits, t.logits)
    deep = copy.deepcopy(t)
    assert not np.shares_memory(deep["output"], t["output"])
    deep.pieces[0] = "changed"
    assert t.pieces[0] != "changed"
    assert model.trace(IDS, []).copy().tokens.tolist() == IDS
    model.trace(IDS, []).compact()


# ---- pickles ----


def same(a, b):
    return all(
        (
            list(a) == list(b),
            all(np.array_equal(a[name], b[name]) for name in a),
            a.tokens.tolist() == b.tokens.tolist(),
            a.pieces == b.pieces,
            a.context.tolist() == b.context.tolist(),
            a.context_pieces == b.context_pieces,
            a.positions.tolist() == b.positions.tolist(),
            a.fingerprint == b.fingerprint,
            a.config == b.config,
            a.names("*resid*") == b.names("*resid*"),
            a.by_role("resid_post") == b.by_role("resid_post"),
        )
    )


def traces(model, tmp_path):
    session = model.session()
    session.eval(IDS)
    model.trace(IDS, "*").save(tmp_path / "t.npz")
    return {
        "all": model.trace(IDS, "*", logits="all"),
        "part": model.trace(IDS, "*")[2:5],
        "batch": model.trace([IDS, IDS[:3]], "*")[1],
        "session": session.eval([1, 2], capture="*"),
        "copy": model.trace(IDS).copy("output"),
        "nothing": model.trace(IDS, []),
        "file": tl.read(tmp_path / "t.npz"),
    }


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_traces(model, tmp_path, protocol):
    for name, t in traces(model, tmp_path).items():
        back = pickle.loads(pickle.dumps(t, protocol))
        assert same(back, t), name
        assert back.model is None
        assert not any(array.flags.writeable for array in back.values())
        assert same(pickle.loads(pickle.dumps(back, protocol)), t)
        assert same(back[1:], t[1:])
    back = pickle.loads(pickle.dumps(model.trace(IDS, logits="last")))
    assert np.array_equal(back.logits, model.trace(IDS, logits="last").logits)
    assert np.array_equal(tl.lens(back, model=model).probs, tl.lens(model.trace(IDS)).probs)


def test_a_pickle_has_only_what_the_trace_has(model):
    t = model.trace([list(range(50))] * 4, "*")[0][:2]
    assert len(pickle.dumps(t)) < t.nbytes + 20_000


def test_generations_with_traces(model):
    for g in (
        model.generate(IDS, 3, seed=1, capture="output_norm", logprobs=2),
        *model.generate([IDS, IDS[:2]], 3, seed=1, capture="*"),
    ):
        for back in (pickle.loads(pickle.dumps(g)), copy.deepcopy(g)):
            assert back.ids == g.ids
            assert all(map(same, back.traces, g.traces))


EDITS = {
    "set": tl.set("blk.1.resid_post", [0.1] * 32, at=-1),
    "add": tl.add("blk.*.attn_q", 0.5, head=[1, 2]),
    "scale": tl.scale(re.compile("attn_output$"), np.float32(0.3)),
    "zero": tl.zero(["blk.0.attn_mix", "blk.1.attn_mix"], head=1, at=slice(1, 3)),
    "mean": tl.mean("blk.0.ffn_down"),
    "apply": tl.apply("blk.0.ffn_act", np.tanh),
    "apply with def": tl.apply("blk.0.ffn_act", worker.twice, at=[0, -1]),
    "apply with partial": tl.apply("blk.0.ffn_act", functools.partial(np.multiply, 2)),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits(model, name):
    edit = EDITS[name]
    back = pickle.loads(pickle.dumps(edit))
    assert repr(back) == repr(edit)
    want = model.logits(IDS, edits=edit)
    assert not np.array_equal(want, model.logits(IDS))
    assert np.array_equal(model.logits(IDS, edits=back), want)
    assert copy.deepcopy(edit) is copy.copy(edit) is edit


def test_edits_with_traces(model):
    source = model.trace(IDS[::-1])
    for edit in (
        tl.patch("blk.1.resid_post", source, at=2),
        tl.mean("blk.1.resid_post", source[1:3]),
    ):
        back = pickle.loads(pickle.dumps(edit))
        assert np.array_equal(model.logits(IDS, edits=back), model.logits(IDS, edits=edit))


def test_functions_that_cannot_be_pickled_say_why(model):
    def local(array):
        return array

    for edit in (
        tl.apply("output", lambda array: array),
        tl.apply("output", local),
        tl.zero(lambda name: name == "output"),
    ):
        with pytest.raises(TypeError, match=r"tl\.\w+\(.*cannot be pickled.*defined by `def`"):
            pickle.dumps(edit)
        assert copy.deepcopy(edit) is edit


def test_tokenizers():
    model = tl.load()
    text = "Good morrow, 你好 <|endoftext|>"
    tokenizer = model.tokenizer
    back = pickle.loads(pickle.dumps(tokenizer))
    assert type(back) is type(tokenizer)
    for special in (False, True):
        assert back.encode(text, parse_special=special) == tokenizer.encode(
            text, parse_special=special
        )
    assert back.eog_ids == tokenizer.eog_ids
    assert back.vocab == tokenizer.vocab
    assert back.chat_templates == tokenizer.chat_templates
    assert copy.deepcopy(tokenizer) is tokenizer
    decoder = pickle.loads(pickle.dumps(tokenizer.stream_decoder()))
    assert decoder.feed(tokenizer.id("e")) == "e"


def test_grammars_and_samplers():
    model = tl.load()
    for grammar in (
        tl.Grammar.gbnf('root ::= "a" root | "b"'),
        tl.Grammar.regex("(rich|poor)!?"),
        tl.Grammar.json_schema({"type": "array", "items": {"type": "integer"}, "maxItems": 3}),
    ):
        model.generate("x", 2, grammar=grammar, seed=1)  # fills its caches
        back = pickle.loads(pickle.dumps(grammar))
        assert str(back) == str(grammar)
        want = model.generate("x", 8, grammar=grammar, seed=1).ids
        assert model.generate("x", 8, grammar=back, seed=1).ids == want
        assert copy.deepcopy(grammar) is grammar
        sampler = tl.Sampler(
            [("grammar", {"grammar": grammar, "tokenizer": model.tokenizer})], seed=1
        )
        want = model.generate("x", 3, sampler=sampler).ids
        for back in (pickle.loads(pickle.dumps(sampler)), copy.deepcopy(sampler)):
            assert model.generate("x", 3, sampler=back).ids == want


def test_weights():
    model = tl.load()
    for name, weight in list(model.weights.items())[:6]:
        back = pickle.loads(pickle.dumps(weight))
        assert (back.name, back.shape, back.type) == (name, weight.shape, weight.type)
        assert np.array_equal(back.raw, weight.raw)
        assert copy.deepcopy(weight) is copy.copy(weight) is weight
    odd = tl.Weight("\udcff é", (), "F32", np.float32(3).tobytes())
    back = pickle.loads(pickle.dumps(odd))
    assert (back.name, back.shape, float(back.numpy())) == (odd.name, (), 3.0)
    every = pickle.loads(pickle.dumps(model.weights))
    assert list(every) == list(model.weights)
    again = weakref.ref(pickle.loads(pickle.dumps(weight)))
    gc.collect()
    assert again() is None


def test_what_belongs_to_a_process_says_so(model):
    session = model.session()
    session.eval(IDS)
    with pytest.raises(TypeError, match=r"a Model cannot be pickled.*'.*\.gguf'.*tl\.load"):
        pickle.dumps(model)
    with pytest.raises(TypeError, match=r"a Session cannot be pickled.*Session\.save"):
        pickle.dumps(session)
    assert copy.deepcopy(model) is copy.copy(model) is model
    for fork in (copy.copy(session), copy.deepcopy(session)):
        fork.eval([1])
        assert (len(session), len(fork)) == (7, 8)
        assert fork.model is model


def test_between_processes():
    model = tl.load()
    edit = tl.apply("blk.0.ffn_act", worker.twice)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        g, t = pool.submit(worker.work, model.path, edit, model.tokenizer).result()
    want = model.generate("ROMEO:", 2, seed=1, edits=edit, capture="output")
    assert g.ids == want.ids
    assert all(map(same, g.traces, want.traces))
    assert same(t, model.trace("ROMEO:", "*")[2:])
