"""The random numbers of generation: Philox4x32-10, a counter-based generator.

Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). The random number of a
token depends only on the seed and on the token's `step`, not on samplers, threads, batches or
earlier draws. Therefore a new sampler never changes the numbers of a seed.
"""

from __future__ import annotations

import secrets

__all__ = ["new_seed", "philox4x32", "uniform"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox4x32(
    counter: tuple[int, int, int, int], key: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the Philox4x32-10 block of a counter and a key.

    Parameters
    ----------
    counter : tuple of four int
        Below 2**32 each.
    key : tuple of two int
        Below 2**32 each.

    Returns
    -------
    tuple of four int
        Below 2**32 each.

    Examples
    --------
    The first known answer of the authors' Random123 library (``kat_vectors``):

    >>> [f"{word:08x}" for word in philox4x32((0, 0, 0, 0), (0, 0))]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        a = _MULTIPLIERS[0] * c0
        b = _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & _MASK, (a >> 32) ^ c3 ^ k1, a & _MASK
        k0 = (k0 + _WEYL[0]) & _MASK
        k1 = (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, step: int, stream: int = 0) -> float:
    """Return the random number in [0, 1) of a token under a seed.

    The key is the seed, low word first. The counter is (step low, step high, stream, 0). The
    number is the top 53 bits of w0 + 2**32 w1, where w0 and w1 are the block's first two words.

    Parameters
    ----------
    seed : int
        0 to 2**64 - 1.
    step : int
        The position of the token in the generation: 0, 1, ...
    stream : int
        0 for the draw of the token. Samplers that need their own number use other streams.

    Returns
    -------
    float

    Examples
    --------
    >>> uniform(0, 0) == (0xE169C58D6627E8D5 >> 11) / 2**53
    True
    """
    block = philox4x32(
        (step & _MASK, step >> 32 & _MASK, stream, 0), (seed & _MASK, seed >> 32 & _MASK)
    )
    return ((block[1] << 32 | block[0]) >> 11) * 2.0**-53


def new_seed() -> int:
    """Return a seed from the operating system.

    Returns
    -------
    int
        0 to 2**64 - 1.

    Examples
    --------
    >>> 0 <= new_seed() < 2**64
    True
    """
    return secrets.randbits(64)
