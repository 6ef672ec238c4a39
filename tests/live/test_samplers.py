"""The samplers of tinyllm and of llama.cpp on the same logits.

    pip install llama-cpp-python && pytest -m live tests/live/test_samplers.py

llama.cpp computes in float32. So the logits keep every candidate away from the limits of the
samplers, where rounding would decide.
"""

import ctypes

import numpy as np
import pytest

import tinyllm as tl
from testkit import data

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.live
SIZES = [2, 7, 60, 1000, 5000]  # llama.cpp uses other sorting algorithms above 128 and 1024


@pytest.fixture(scope="module", autouse=True)
def backend():
    llama_cpp.llama_backend_init()


def random_logits(size, seed):
    rng = np.random.default_rng([size, seed])
    scale = rng.choice([0.5, 2.0, 5.0])
    logits = rng.normal(0, scale, size).astype(np.float32)
    if size > 7 and seed % 3 == 0:
        logits[rng.integers(0, size, size // 10)] = -np.inf
    return logits


class Theirs:
    """One sampler of llama.cpp, and the token that it chose."""

    def __init__(self, made):
        self.sampler = made
        self.selected = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        llama_cpp.llama_sampler_free(self.sampler)

    def accept(self, ids):
        for token in ids:
            llama_cpp.llama_sampler_accept(self.sampler, int(token))

    def apply(self, logits, ids=None):
        """Return {id: logit} of the remaining candidates, without those of -inf."""
        ids = range(len(logits)) if ids is None else ids
        data = (llama_cpp.llama_token_data * len(logits))(
            *[(int(i), float(x), 0.0) for i, x in zip(ids, logits, strict=True)]
        )
        array = llama_cpp.llama_token_data_array(data, len(logits), -1, False)
        llama_cpp.llama_sampler_apply(self.sampler, ctypes.byref(array))
        left = [array.data[i] for i in range(array.size)]
        self.selected = left[array.selected].id if array.selected >= 0 else None
        return {entry.id: entry.logit for entry in left if entry.logit > -np.inf}


def ours(logits, history=(), **chain):
    found = tl.Sampler(**chain, seed=0).candidates(logits, 0, history)
    pairs = zip(found.ids.tolist(), found.logits.tolist(), strict=True)
    return {token: logit for token, logit in pairs if logit > -np.inf}


def same(mine, theirs, tolerance=2e-5):
    assert mine.keys() == theirs.keys()
    ids = sorted(mine)
    both = []
    for logits in (mine, theirs):
        x = np.array([logits[i] for i in ids], np.float64)
        e = np.exp(x - x.max())
        both.append(e / e.sum())
    np.testing.assert_allclose(both[0], both[1], rtol=tolerance, atol=1e-9)


L = llama_cpp
#: (chain of tinyllm, constructor of llama.cpp) of samplers that need only logits.
PLAIN = [
    *[({"top_k": k}, lambda k=k: L.llama_sampler_init_top_k(k)) for k in (0, 1, 5, 40, 900)],
    *[({"top_p": p}, lambda p=p: L.llama_sampler_init_top_p(p, 1)) for p in (0.0, 0.3, 0.95, 1.0)],
    *[({"min_p": p}, lambda p=p: L.llama_sampler_init_min_p(p, 1)) for p in (0.0, 0.05, 0.5, 1.0)],
    *[({"typical": p}, lambda p=p: L.llama_sampler_init_typical(p, 1)) for p in (0.2, 0.9, 1.0)],
    *[({"temperature": t}, lambda t=t: L.llama_sampler_init_temp(t)) for t in (0.0, 0.7, 1.8)],
    *[
        ({"dynamic_temperature": {"value": t, "range": r, "exponent": e}},
         lambda t=t, r=r, e=e: L.llama_sampler_init_temp_ext(t, r, e))
        for t, r, e in ((1.0, 0.5, 1.0), (0.6, 0.9, 1.0), (1.5, 0.7, 2.5), (0.8, 0.0, 1.0))
    ],
    *[
        ({"top_n_sigma": n}, lambda n=n: L.llama_sampler_init_top_n_sigma(n))
        for n in (-1.0, 0.5, 1.0, 3.0)
    ],
    *[
        ({"xtc": {"probability": p, "threshold": t}},
         lambda p=p, t=t: L.llama_sampler_init_xtc(p, t, 0, 1))
        for p, t in ((1.0, 0.1), (1.0, 0.02), (1.0, 0.5), (1.0, 0.6), (0.0, 0.1))
    ],
]  # fmt: skip


@pytest.mark.parametrize(("chain", "make"), PLAIN, ids=[str(chain) for chain, _ in PLAIN])
def test_samplers_of_logits(chain, make):
    for size in SIZES:
        for seed in range(8):
            logits = random_logits(size, seed)
            if "typical" in chain:  # llama.cpp takes the logarithm of 0
                logits = np.maximum(logits, -30)
            with Theirs(make()) as theirs:
                same(ours(logits, **chain), theirs.apply(logits))


@pytest.mark.parametrize("seed", range(12))
def test_penalties(seed):
    rng = np.random.default_rng(seed)
    logits = random_logits(300, seed)
    history = rng.integers(0, 40, 90).tolist()
    for repeat, frequency, presence, last in (
        (1.3, 0.0, 0.0, 64), (1.0, 0.4, 0.0, 20), (1.0, 0.0, 0.7, 64), (1.2, 0.2, 0.3, 90),
        (1.2, 0.2, 0.3, 0), (1.0, 0.0, 0.0, 64),
    ):  # fmt: skip
        made = L.llama_sampler_init_penalties(300, last, repeat, frequency, presence)
        with Theirs(made) as theirs:
            theirs.accept(history)
            mine = ours(
                logits,
                history,
                repeat_penalty={"value": repeat, "last_n": last},
                frequency_penalty={"value": frequency, "last_n": last},
                presence_penalty={"value": presence, "last_n": last},
            )
            same(mine, theirs.apply(logits))


@pytest.mark.parametrize("seed", range(20))
def test_dry(seed):
    rng = np.random.default_rng(seed)
    logits = random_logits(50, 1)
    history = rng.integers(0, 3 + seed % 4, 150).tolist()
    history += history[40 : 40 + int(rng.integers(0, 12))]
    for multiplier, base, allowed, last in (
        (0.8, 1.75, 2, 1000), (0.5, 1.1, 1, 1000), (0.8, 1.5, 4, 60), (0.0, 1.75, 2, 1000),
        (1.5, 1.0, 3, 1000),
    ):  # fmt: skip
        made = L.llama_sampler_init_dry(None, multiplier, base, allowed, last, None, 0)
        with Theirs(made) as theirs:
            theirs.accept(history)
            settings = {"multiplier": multiplier, "base": base, "allowed_length": allowed,
                        "last_n": last}  # fmt: skip
            same(ours(logits, history, dry=settings), theirs.apply(logits))


def test_dry_with_breakers():
    path = data.path("vocab", "ggml-vocab-gpt-2.gguf")
    parameters = L.llama_model_default_params()
    parameters.vocab_only = True
    model = L.llama_model_load_from_file(str(path).encode(), parameters)
    vocab = L.llama_model_get_vocab(model)
    tokenizer = tl.load_tokenizer(path)
    breakers = [i for i, p in enumerate(tokenizer.pieces_bytes(range(len(tokenizer)))) if b":" in p]
    assert len(breakers) > 10
    strings = (ctypes.c_char_p * 1)(b":")
    logits = random_logits(len(tokenizer), 1)
    used = [*tokenizer.encode("a b:c"), breakers[3]]
    for seed in range(10):
        rng = np.random.default_rng(seed)
        history = rng.choice(used, 80).tolist()
        made = L.llama_sampler_init_dry(vocab, 0.8, 1.75, 1, 1000, strings, 1)
        with Theirs(made) as theirs:
            theirs.accept(history)
            settings = {"multiplier": 0.8, "allowed_length": 1, "breakers": breakers}
            mine, other = ours(logits, history, dry=settings), theirs.apply(logits)
            assert sum(mine[i] != float(logits[i]) for i in mine) <= 5
            same(mine, other, tolerance=1e-4)
    L.llama_model_free(model)


def test_logit_bias():
    logits = random_logits(80, 1)
    biases = {3: 2.5, 7: -1.25, 40: -np.inf, 79: 100.0}
    entries = (L.llama_logit_bias * len(biases))(*biases.items())
    with Theirs(L.llama_sampler_init_logit_bias(80, len(biases), entries)) as theirs:
        same(ours(logits, logit_bias=biases), theirs.apply(logits))


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat(version):
    """Compare the candidates of each step; then tinyllm's state learns the token of llama.cpp.

    The probabilities follow Zipf's law roughly, as the method assumes. Flat ones would give a k
    that does not fit an int; there llama.cpp keeps one token and tinyllm keeps all.
    """
    for size in (60, 1000):
        for tau, eta in ((3.0, 0.1), (5.0, 0.3), (1.0, 0.05)):
            if version == 1:
                made = L.llama_sampler_init_mirostat(size, 5, tau, eta, 100)
                sampler = tl.Sampler(mirostat={"tau": tau, "eta": eta, "m": 100}, seed=0)
            else:
                made = L.llama_sampler_init_mirostat_v2(5, tau, eta)
                sampler = tl.Sampler(mirostat_v2={"tau": tau, "eta": eta}, seed=0)
            state = {}
            with Theirs(made) as theirs:
                for step in range(30):
                    rng = np.random.default_rng(step)
                    logits = -1.2 * np.log(np.arange(1, size + 1)) + rng.normal(0, 0.1, size)
                    logits = rng.permutation(logits).astype(np.float32)
                    context = sampler._context(step, (), state)
                    left = sampler._run(logits, context, None)
                    mine = dict(zip(left.ids.tolist(), left.logits.tolist(), strict=True))
                    same(mine, theirs.apply(logits))
                    at = left.ids.tolist().index(theirs.selected)
                    for learn in context.after:
                        learn(float(left.probabilities[at]))


@pytest.mark.parametrize("seed", range(10))
def test_a_whole_chain(seed):
    logits = random_logits(2000, seed)
    made = L.llama_sampler_chain_init(L.llama_sampler_chain_default_params())
    for one in (L.llama_sampler_init_top_k(40), L.llama_sampler_init_typical(0.9, 1),
                L.llama_sampler_init_top_p(0.95, 1), L.llama_sampler_init_min_p(0.05, 1),
                L.llama_sampler_init_temp(0.8)):  # fmt: skip
        L.llama_sampler_chain_add(made, one)
    with Theirs(made) as theirs:
        chain = {"top_k": 40, "typical": 0.9, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8}
        same(ours(logits, **chain), theirs.apply(logits))
