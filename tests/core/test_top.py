"""The most likely tokens of rows of logits, compared with NumPy."""

import numpy as np
import pytest

from testkit import every_set
from tinyllm import _core


def expected(x, k):
    """Return ids by a stable sort, with NaN last."""
    keys = np.where(np.isnan(x), -np.inf, x)
    order = np.lexsort((np.broadcast_to(np.arange(x.shape[1]), x.shape), np.isnan(x), -keys))
    return order[:, :k]


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 255, 256, 257, 1000])
@pytest.mark.parametrize("kind", ["normal", "few values", "strange"])
def test_order_probabilities_and_sums(n, kind):
    rng = np.random.default_rng(n)
    x = (rng.standard_normal((6, n)) * 5).astype(np.float32)
    if kind != "normal":
        x = np.rint(x / 4).astype(np.float32)
        x[rng.random(x.shape) < 0.3] = -0.0
    if kind == "strange":
        x[rng.random(x.shape) < 0.3] = -np.inf
        x[:, 0] = 1  # not all of a row
    for k in {1, min(5, n), n}:
        ids, probs, sums, ranks = _core.top_k(x, k, token=n - 1, threads=3)
        assert np.array_equal(ids, expected(x, k))
        real = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
        total = real.sum(axis=1)
        assert np.allclose(probs, np.take_along_axis(real, ids, 1) / total[:, None], rtol=3e-7)
        assert np.allclose(sums, np.log(total) + x.max(axis=1), rtol=0, atol=3e-7)
        assert np.array_equal(ranks, np.argmax(expected(x, n) == n - 1, axis=1))
        again = _core.top_k(x, k, token=n - 1)  # the same bits with one thread
        for one, three in zip(again, (ids, probs, sums, ranks), strict=True):
            assert np.array_equal(one, three)


def test_nan_is_last_and_spreads_to_the_probabilities():
    x = np.array([[1, np.nan, 3, -np.inf, np.nan, 3]], np.float32)
    ids, probs, sums, ranks = _core.top_k(x, 6, token=4)
    assert ids.tolist() == [[2, 5, 0, 3, 1, 4]]
    assert np.isnan(probs).all()
    assert np.isnan(sums).all()
    assert ranks.tolist() == [5]
    ids, probs, sums, _ = _core.top_k(np.full((1, 3), -np.inf, np.float32), 3)
    assert ids.tolist() == [[0, 1, 2]]
    assert not probs.any()


def test_no_rows():
    ids, probs, sums, ranks = _core.top_k(np.zeros((0, 5), np.float32), 2)
    assert (len(ids), len(probs), len(sums), len(ranks)) == (0, 0, 0, 0)


def test_every_kernel_set_gives_the_same_bits():
    code = (
        "import numpy as np; from tinyllm import _core;"
        "x = np.random.default_rng(1).standard_normal((3, 777)).astype('f4') * 9;"
        "print([a.tobytes().hex() for a in _core.top_k(x, 9, 3)])"
    )
    outputs = {every_set.run(name, "-c", code) for name in _core.kernel_sets()}
    assert len(outputs) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([1.0, 2.0], 1), ValueError, r"logits has shape \(2,\); expected \(rows, V\)"),
        (([[1.0, 2.0]], 0), ValueError, "k is 0; expected 1 to 2"),
        (([[1.0, 2.0]], 3), ValueError, "k is 3; expected 1 to 2"),
        (([[1.0, 2.0]], 1, 2), ValueError, "token is 2; expected -1 to 1"),
        (([[1.0, 2.0]], 1, -2), ValueError, "token is -2"),
        (([[1.0, 2.0]], 1, 0, 0), ValueError, "threads is 0"),
        ((["a"], 1), ValueError, "could not convert"),
        ((np.zeros((2, 0), np.float32), 1), ValueError, "k is 1"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        _core.top_k(*arguments)
