"""Each sampler, compared with its formula over whole distributions in plain NumPy."""

import numpy as np
import pytest

import tinyllm as tl
from tinyllm.sampling.philox import uniform
from tinyllm.sampling.samplers import SAMPLERS

V = 60


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def logits_of(seed, history=False):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 2.5, V)
    x[rng.integers(0, V, 6)] = -np.inf
    return x


def left(logits, history=(), step=0, seed=0, before=(), **chain):
    """The logits after a chain, over the whole vocabulary; -inf for removed tokens."""
    found = tl.Sampler(before, **chain, seed=seed).candidates(logits, step, history)
    dense = np.full(len(logits), -np.inf)
    dense[found.ids] = found.logits
    order = np.lexsort((found.ids, -found.logits)) if found.ordered else np.argsort(found.ids)
    assert (order == np.arange(len(order))).all()
    return dense


def keep(logits, kept):
    return np.where(kept, logits, -np.inf)


SEEDS = range(12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("before", [[], [("top_k", 25)], [("temperature", 0.7)]])
def test_truncations(seed, before):
    x = logits_of(seed)
    start = left(x, before=before)
    p = softmax(start)
    order = np.argsort(-start, kind="stable")
    rank = np.empty(V, int)
    rank[order] = np.arange(V)

    for k in (1, 3, 17, V, 1000):
        np.testing.assert_array_equal(left(x, before=before, top_k=k), keep(start, rank < k))

    for limit in (0.1, 0.5, 0.9, 0.999):
        above = np.cumsum(p[order])[rank] - p  # the sum of the more probable ones
        np.testing.assert_array_equal(
            left(x, before=before, top_p=limit), keep(start, above < limit)
        )

    for limit in (0.01, 0.2, 1.0):
        want = keep(start, np.log(p / p.max(), where=p > 0, out=np.full(V, -np.inf))
                    >= np.log(limit) - 1e-12)  # fmt: skip
        np.testing.assert_array_equal(left(x, before=before, min_p=limit), want)

    for n in (0.3, 1.0, 2.0):
        finite = start[np.isfinite(start)]
        want = keep(start, start >= finite.max() - n * finite.std())
        np.testing.assert_array_equal(left(x, before=before, top_n_sigma=n), want)

    for limit in (0.2, 0.7, 0.95):
        surprise = -np.log(p, where=p > 0, out=np.full(V, -np.inf))
        entropy = (p * np.where(p > 0, surprise, 0)).sum()
        distance = np.where(p > 0, np.abs(surprise - entropy), np.inf)
        by_distance = np.lexsort((rank, distance))
        total = np.cumsum(p[by_distance])
        count = np.flatnonzero(total > limit)[0] + 1
        kept = np.isin(np.arange(V), by_distance[:count])
        np.testing.assert_array_equal(left(x, before=before, typical=limit), keep(start, kept))


@pytest.mark.parametrize("seed", SEEDS)
def test_temperatures(seed):
    x = logits_of(seed)
    np.testing.assert_array_equal(left(x, temperature=0.3), x / 0.3)
    p = softmax(x)
    entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
    for value, width, exponent in [(1.0, 0.5, 1.0), (0.4, 0.9, 2.5)]:
        low = max(value - width, 0)
        t = low + (value + width - low) * (entropy / np.log(V)) ** exponent
        chain = {"dynamic_temperature": {"value": value, "range": width, "exponent": exponent}}
        np.testing.assert_allclose(left(x, **chain), x / t, rtol=1e-12)
    same = {"dynamic_temperature": {"value": 0.3, "range": 0}}
    np.testing.assert_array_equal(left(x, **same), x / 0.3)


@pytest.mark.parametrize("seed", SEEDS)
def test_penalties(seed):
    rng = np.random.default_rng(seed)
    x = logits_of(seed)
    history = rng.integers(0, V, 100).tolist()
    for last_n, seen in [(64, history[-64:]), (-1, history), (0, []), (5, history[-5:])]:
        counts = np.bincount(np.array(seen, int), minlength=V)
        repeated = np.where(x > 0, x / 1.3, x * 1.3)
        np.testing.assert_array_equal(
            left(x, history, repeat_penalty={"value": 1.3, "last_n": last_n}),
            np.where(counts > 0, repeated, x),
        )
        np.testing.assert_array_equal(
            left(x, history, frequency_penalty={"value": 0.4, "last_n": last_n}), x - 0.4 * counts
        )
        np.testing.assert_array_equal(
            left(x, history, top_k=V, presence_penalty={"value": 0.4, "last_n": last_n}),
            x - 0.4 * (counts > 0),
        )


def dry_by_definition(history, token, breakers):
    """The longest earlier copy of the end of the text that was followed by the token."""
    best = 0
    for at in range(len(history)):
        if history[at] != token:
            continue
        n = 0
        while n < at and history[at - 1 - n] == history[-1 - n] and history[-1 - n] not in breakers:
            n += 1
        best = max(best, n)
    return best


@pytest.mark.parametrize("seed", range(40))
def test_dry(seed):
    rng = np.random.default_rng(seed)
    history = rng.integers(0, rng.integers(2, 6), rng.integers(0, 60)).tolist()
    breakers = {3} if seed % 2 else set()
    x = logits_of(seed)
    want = x.copy()
    for token in range(V):
        n = dry_by_definition(history, token, breakers)
        if n >= 2 and token not in breakers:
            want[token] -= 0.8 * 1.75 ** (n - 2)
    chain = {"dry": {"multiplier": 0.8, "breakers": breakers}}
    np.testing.assert_allclose(left(x, history, **chain), want, rtol=1e-12)


def test_dry_of_a_long_repetition_is_finite_and_linear():
    history = [1] * 20_000
    found = left(np.zeros(5), history, dry=1.0)
    assert np.isfinite(found).all()
    assert found[1] < -1e30
    assert (np.delete(found, 1) == 0).all()


def test_xtc():
    p = np.array([0.4, 0.3, 0.2, 0.06, 0.04])
    x = np.log(p)
    removed = 0
    for step in range(400):
        found = left(x, step=step, seed=5, xtc={"probability": 0.5, "threshold": 0.15})
        if uniform(5, step, 1) < 0.5:
            np.testing.assert_array_equal(found, keep(x, p < 0.25))
            removed += 1
        else:
            np.testing.assert_array_equal(found, x)
    assert 150 < removed < 250
    np.testing.assert_array_equal(left(x, xtc={"probability": 1.0, "threshold": 0.35}), x)
    np.testing.assert_array_equal(left(x, xtc={"probability": 1.0, "threshold": 0.6}), x)
    np.testing.assert_array_equal(left(x, xtc=0.0), x)


def test_ids():
    x = np.array([3.0, 2.0, 1.0, 0.0])
    np.testing.assert_array_equal(left(x, logit_bias={1: 5.0, 3: -np.inf}), [3, 7, 1, -np.inf])
    np.testing.assert_array_equal(left(x, logit_bias={}), x)
    np.testing.assert_array_equal(left(x, banned=[0, 2]), keep(x, [0, 1, 0, 1]))
    np.testing.assert_array_equal(left(x, allowed=[2]), keep(x, [0, 0, 1, 0]))
    s = tl.Sampler(forced=[3, 1], temperature=0)
    assert [s.sample(x, step) for step in range(3)] == [3, 1, 0]
    for chain in (
        {"banned": range(4)},
        {"allowed": []},
        {"logit_bias": dict.fromkeys(range(4), -np.inf)},
    ):
        with pytest.raises(ValueError, match="leaves no token"):
            tl.Sampler(**chain).sample(x, 0)


@pytest.mark.parametrize("name", ["mirostat", "mirostat_v2"])
def test_mirostat_keeps_the_surprise(name):
    rng = np.random.default_rng(0)
    # the paper assumes Zipf's law
    base = -1.1 * np.log(np.arange(1, 2001))
    s = tl.Sampler(**{name: {"tau": 4.0, "eta": 0.1}}, seed=9)
    surprises = []
    for step in range(600):
        x = base + rng.normal(0, 0.2, 2000)
        draw = s.draw(x, step)
        surprises.append(-np.log2(draw.probability))
    assert abs(np.mean(surprises[200:]) - 4.0) < 0.6


def test_mirostat_v2_by_hand():
    p = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625])
    s = tl.Sampler(mirostat_v2={"tau": 1.0, "eta": 0.5}, seed=0)
    state = {}
    mu = 2.0
    for step in range(20):
        kept = max(int((-np.log2(p) <= mu + 1e-12).sum()), 1)
        draw = s.draw(np.log(p), step, state=state)
        assert len(draw.candidates.ids) == kept
        mu -= 0.5 * (-np.log2(draw.probability) - 1.0)
        assert state["mirostat_v2"]["mu"] == pytest.approx(mu)


def test_mirostat_forgets_between_generations():
    x = np.log(np.array([0.5, 0.25, 0.125, 0.125]))
    s = tl.Sampler(mirostat_v2=1.0, seed=3)
    first = [s.sample(x, step) for step in range(30)]
    assert [s.sample(x, step) for step in range(30)] == first
    one, two = {}, {}  # two generations at once with one sampler
    mixed = [(s.sample(x, i, state=one), s.sample(x, i, state=two)) for i in range(30)]
    assert mixed == [(t, t) for t in first]


def test_explain_neither_draws_nor_learns():
    x = np.log(np.array([0.5, 0.25, 0.125, 0.125]))
    s = tl.Sampler(top_k=3, mirostat_v2=1.0, seed=3)
    s.sample(x, 0)
    before = {name: dict(value) for name, value in s._state.items()}
    explained = s.explain(x, step=1)
    assert s._state == before
    assert [name for name, _ in explained.steps] == ["logits", "top_k=3", "mirostat_v2=1.0"]
    assert str(explained).splitlines()[0].split() == ["step", "kept", "best", "tokens"]
    assert "top_k=3             3  0 0.571, 1 0.286, 2 0.143" in str(explained)


def test_presets():
    assert [name for name, _ in tl.Sampler.llama_cpp().chain] == [
        "top_k", "top_p", "min_p", "temperature",
    ]  # fmt: skip
    assert [name for name, _ in tl.Sampler.hugging_face().chain] == [
        "temperature",
        "top_k",
        "top_p",
    ]


@pytest.mark.parametrize(
    ("chain", "error", "words"),
    [
        ({"typical": 0}, ValueError, "typical"),
        ({"xtc": 2}, ValueError, "xtc"),
        ({"xtc": {"probability": 0.5, "threshold": -1}}, ValueError, "threshold"),
        ({"dynamic_temperature": {"value": 1, "range": -1}}, ValueError, "range"),
        ({"repeat_penalty": 0}, ValueError, "repeat_penalty"),
        ({"repeat_penalty": {"value": 1.1, "last_n": 1.5}}, TypeError, "last_n"),
        ({"frequency_penalty": np.inf}, ValueError, "frequency_penalty"),
        ({"presence_penalty": "a"}, TypeError, "presence_penalty"),
        ({"dry": {"multiplier": 1, "base": 0.5}}, ValueError, "dry base"),
        ({"dry": {"multiplier": 1, "allowed_length": 0}}, ValueError, "allowed_length"),
        ({"logit_bias": [1]}, TypeError, "mapping"),
        ({"logit_bias": {1: np.inf}}, ValueError, r"logit_bias\[1\] is inf"),
        ({"banned": 3}, TypeError, "banned is 3"),
        ({"allowed": "abc"}, TypeError, "allowed"),
        ({"forced": [1.5]}, TypeError, "forced"),
        ({"mirostat": -1}, ValueError, "mirostat"),
        ({"mirostat_v2": {"tau": 5, "eta": -1}}, ValueError, "eta"),
    ],
)
def test_wrong_parameters(chain, error, words):
    with pytest.raises(error, match=words):
        tl.Sampler(**chain)


def test_every_sampler_has_a_docstring_and_a_test():
    with open(__file__) as file:
        source = file.read()
    for name, function in SAMPLERS.items():
        assert function.__doc__, name
        assert name in source, name


# ---- a grammar in the chain ----


@pytest.fixture(scope="module")
def model():
    return tl.load()


def in_chain(grammar, model, **more):
    return tl.Sampler(grammar={"grammar": grammar, "tokenizer": model.tokenizer}, **more)


@pytest.mark.parametrize("seed", range(6))
def test_a_grammar_in_the_chain_gives_what_the_option_of_generate_gives(model, seed):
    grammar = tl.Grammar.gbnf('root ::= "[" [a-z]+ ("," " "? [a-z]+)* "]"')
    rest = {"temperature": 1.5, "top_k": 30, "seed": seed}
    sampler = in_chain(grammar, model, **rest)
    want = model.generate("x", 40, sampler=tl.Sampler(**rest), grammar=grammar)
    for _ in range(2):  # the sampler can be used again
        g = model.generate("x", 40, sampler=sampler)
        assert g.ids == want.ids
        # a sampler cannot end the text, so the end is drawn as a token
        assert g.stop_reason == {"grammar": "eog", "length": "length"}[want.stop_reason]
    both = model.generate(["x", "To be"], 40, sampler=sampler)
    assert both[0].ids == want.ids
    assert both[1].ids == model.generate("To be", 40, sampler=sampler).ids


def test_a_grammar_acts_at_its_place_in_the_chain(model):
    grammar = tl.Grammar.regex("[0-9]+")
    spec = {"grammar": grammar, "tokenizer": model.tokenizer}
    logits = model.logits("ROMEO:")[-1]
    first = tl.Sampler([("grammar", spec), ("top_k", 5)]).candidates(logits)
    assert len(first.ids) == 5
    assert all(piece.isdigit() for piece in model.tokenizer.pieces(first.ids))
    last = tl.Sampler([("top_k", 900), ("grammar", spec)]).candidates(logits)
    assert all(piece.isdigit() for piece in model.tokenizer.pieces(last.ids))
    with pytest.raises(ValueError, match=r"expects one of the bytes '0123.*put grammar before"):
        tl.Sampler([("top_k", 1), ("grammar", spec)]).candidates(logits)
    # two grammars apply together
    even = {"grammar": tl.Grammar.regex(".*[02468]"), "tokenizer": model.tokenizer}
    two = tl.Sampler([("grammar", spec), ("grammar", even)], seed=1)
    text = model.generate("x", 30, sampler=two).text
    assert text.isdigit()
    explained = two.explain(logits, 0, [1, 2])
    assert len(explained.steps) == 3
    assert "grammar" in str(explained)


def test_wrong_grammars_in_the_chain(model):
    grammar = tl.Grammar.regex("ab")
    for wrong in (grammar, "root ::= x", {"grammar": grammar}, {"tokenizer": model.tokenizer}):
        with pytest.raises(TypeError, match="grammar"):
            tl.Sampler(grammar=wrong)
    sampler = in_chain(grammar, model)
    logits = np.zeros(model.config.vocab_size)
    with pytest.raises(ValueError, match="step 3 and history has 1 ids"):
        sampler.sample(logits, 3, [1])
    with pytest.raises(ValueError, match="token 5 was generated"):
        sampler.sample(logits, 1, [5], {})
    # the text is complete, but no token that ends it can be drawn
    a, b = model.tokenizer.id("a"), model.tokenizer.id("b")
    logits[sorted(model.eog_ids)] = -np.inf
    with pytest.raises(ValueError, match="requires the end of the text"):
        sampler.sample(logits, 2, [a, b], {})


# ---- every step that draws or remembers, and the threads ----


def test_the_same_seed_gives_the_same_text_with_any_threads_alone_or_in_a_batch():
    chain = {
        "repeat_penalty": 1.1,
        "dry": 0.5,
        "dynamic_temperature": {"value": 1.2, "range": 0.5},
        "xtc": {"probability": 0.5, "threshold": 0.05},
        "typical": 0.98,
        "top_n_sigma": 3.0,
    }
    prompts = ["ROMEO:", "To be, or not to be: that is the", "x"]
    for last in ({"mirostat": 4.0}, {"mirostat_v2": 4.0}):
        texts = set()
        for threads in (1, 2, 5):
            model = tl.load(threads=threads)
            sampler = tl.Sampler(**chain, **last, seed=11)
            together = [g.ids for g in model.generate(prompts, 25, sampler=sampler)]
            alone = [model.generate(p, 25, sampler=sampler).ids for p in prompts]
            again = [model.generate(p, 25, sampler=tl.Sampler(**chain, **last, seed=11)).ids
                     for p in prompts]  # fmt: skip
            assert together == alone == again
            texts.add(str(alone))
        assert len(texts) == 1
        other = tl.Sampler(**chain, **last, seed=12)
        assert model.generate("ROMEO:", 25, sampler=other).ids != alone[0]
