import numpy as np
import pytest

from tinyllm.sampling.philox import philox4x32, uniform
from tinyllm.sampling.sampler import SAMPLERS, Sampler


def words(text):
    return tuple(int(word, 16) for word in text.split())


# kat_vectors of the Random123 library
@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter, key, want):
    assert philox4x32(words(counter), words(key)) == words(want)


def test_uniform_is_uniform():
    draws = np.array([uniform(7, i) for i in range(20000)])
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, 64, (0, 1))[0]
    chi2 = ((counts - 312.5) ** 2 / 312.5).sum()
    assert 30 < chi2 < 115  # 63 degrees of freedom; outside with p < 1e-4
    assert len({uniform(s, 0) for s in range(1000)}) == 1000
    assert uniform(2**64 - 1, 2**40) != uniform(2**64 - 1, 2**40 + 2**32)


def test_chi_square_of_the_draw():
    logits = np.array([0.5, -1.0, 2.0, 0.0, 1.0, -3.0])
    s = Sampler(temperature=1.0, seed=11)
    draws = np.bincount([s.sample(logits, i) for i in range(20000)], minlength=6)
    want = np.exp(logits) / np.exp(logits).sum() * 20000
    assert ((draws - want) ** 2 / want).sum() < 25.7  # 5 degrees of freedom, p = 1e-4


def test_greedy_takes_the_lowest_of_equals():
    assert Sampler.greedy().sample([1.0, 3.0, 3.0], 0) == 1
    assert Sampler(temperature=0).sample(np.array([-np.inf, -5.0]), 9) == 1
    assert Sampler(top_k=2, temperature=0).sample([1.0, 3.0, 3.0], 0) == 1


def test_top_k_keeps_the_lowest_ids_of_equals():
    left = Sampler(top_k=3).candidates([1.0, 2.0, 1.0, 1.0, 3.0])
    assert left.ids.tolist() == [4, 1, 0]
    assert Sampler(top_k=0).candidates([1.0, 2.0]).ids.tolist() == [0, 1]


def test_top_p_keeps_the_fewest():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    for p, count in [(0.0, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4), (1.0, 4)]:
        assert len(Sampler(top_p=p).candidates(logits).ids) == count, p


def test_min_p():
    logits = np.log([0.5, 0.26, 0.24])
    assert Sampler(min_p=0.5).candidates(logits).ids.tolist() == [0, 1]


def test_order_of_the_chain_is_the_order_given():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    hot_first = Sampler(temperature=4.0, top_p=0.6).candidates(logits)
    hot_last = Sampler(top_p=0.6, temperature=4.0).candidates(logits)
    assert len(hot_first.ids) == 3
    assert len(hot_last.ids) == 2
    again = Sampler([("top_p", 0.6), ("temperature", 4.0)]).candidates(logits)
    assert again.ids.tolist() == hot_last.ids.tolist()


def test_a_seed_gives_what_it_gave():
    # recorded: if these change, every seeded text changes
    logits = np.sin(np.arange(50.0)) * 3
    s = Sampler(temperature=0.8, top_k=40, top_p=0.95, seed=1234)
    assert [s.sample(logits, i) for i in range(10)] == FROZEN


FROZEN = [40, 2, 46, 7, 45, 8, 33, 20, 8, 1]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"temperature": -1}, ValueError, "temperature is -1"),
        ({"temperature": float("nan")}, ValueError, "temperature"),
        ({"temperature": "hot"}, TypeError, "temperature is 'hot'"),
        ({"top_k": 1.5}, TypeError, "top_k is 1.5"),
        ({"top_p": -0.1}, ValueError, "top_p"),
        ({"min_p": 2}, ValueError, "min_p"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"seed": 2**64}, ValueError, "seed"),
        ({"seed": 1.5}, TypeError, "seed"),
        ({"no_such": 1}, ValueError, "no sampler 'no_such'"),
    ],
)
def test_wrong_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        Sampler(**arguments)


@pytest.mark.parametrize("logits", [[], [[1.0]], [np.nan, 1.0], [np.inf, 0.0], [-np.inf, -np.inf]])
def test_wrong_logits(logits):
    with pytest.raises(ValueError, match="logit"):
        Sampler().sample(logits, 0)


def test_impossible_tokens_are_never_drawn():
    logits = np.full(10, -np.inf)
    logits[[2, 7]] = 0
    s = Sampler(temperature=1.0, seed=0)
    assert {s.sample(logits, i) for i in range(200)} == {2, 7}


def test_registry_names_are_functions():
    assert {"temperature", "top_k", "top_p", "min_p"} <= set(SAMPLERS)
