"""The product of matrices that training uses, on every instruction set."""

import numpy as np
import pytest

from tinyllm import _core

SHAPES = [
    (1, 1, 1),
    (7, 17, 5),
    (8, 64, 20),
    (9, 33, 193),
    (20, 80, 64),
    (3, 300, 7),
    (50, 81, 400),
]


def multiply(a, b, transpose, isa, start=None):
    (m, k), n = a.shape, b.shape[1]
    out = np.full((m, n), np.nan, np.float32) if start is None else start.copy()
    a = a.T if transpose[0] == "T" else a
    b = b.T if transpose[1] == "T" else b
    seconds = _core._product(
        (m, n, k), a.copy(), b.copy(), out, transpose, add=start is not None, isa=isa
    )
    assert seconds >= 0
    return out


@pytest.mark.sanitize
@pytest.mark.parametrize("transpose", ["NN", "NT", "TN", "TT"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_set_has_the_bits_of_the_plain_one(shape, transpose):
    m, n, k = shape
    random = np.random.default_rng(0)
    a, b, c = (random.normal(size=s).astype(np.float32) for s in ((m, k), (k, n), (m, n)))
    plain = multiply(a, b, transpose, "plain")
    added = multiply(a, b, transpose, "plain", c)
    exact = a.astype(np.float64) @ b
    # the bound of a sum of k products in float32
    bound = k * 2.0**-24 * (np.abs(a).astype(np.float64) @ np.abs(b)) + 1e-30
    assert (np.abs(plain - exact) <= bound).all()
    assert (np.abs(added - (c + exact)) <= bound + 2.0**-23 * np.abs(added)).all()
    for isa in _core.kernel_sets():
        assert np.array_equal(multiply(a, b, transpose, isa), plain), isa
        assert np.array_equal(multiply(a, b, transpose, isa, c), added), isa


def test_wrong_arguments():
    x = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match=r"shape \(2, 2, 3\)"):
        _core._product((2, 2, 3), x, x, x.copy())
    with pytest.raises(ValueError, match="isa is 'x'"):
        _core._product((2, 2, 2), x, x, x.copy(), isa="x")
