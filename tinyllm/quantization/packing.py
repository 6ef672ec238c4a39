"""Quantizing the rows of a tensor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import _core
from ..base.numeric import Float32

__all__ = ["CHUNK", "pack"]

#: The largest magnitudes of the types whose scales are no float16.
_LIMITS = {"NVFP4": 2688.0, **dict.fromkeys(("F32", "BF16", "MXFP4"), float(np.finfo("f4").max))}

#: Values that are dequantized at a time.
CHUNK = 1 << 22


def pack(
    name: str, kind: str, values: Float32, importance: Float32 | None, first: int
) -> npt.NDArray[np.uint8]:
    """Return the blocks of some rows of a tensor.

    Parameters
    ----------
    name : str
        The tensor's name, for messages.
    kind : str
        The new type.
    values : (rows, columns) float32 array
    importance : (columns,) float32 array or None
        The weights of the squared errors of the columns.
    first : int
        The number of the first row, for messages.

    Returns
    -------
    uint8 array

    Raises
    ------
    ValueError
        If a value is not finite or too large for the type.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.quantization.packing import pack
    >>> pack("w", "Q8_0", np.ones((2, 32), np.float32), None, 0).size
    68
    """
    try:
        return _core.pack(kind, values, importance)
    except ValueError:
        limit = _LIMITS.get(kind, 65504.0)  # of float16, which most scales are
        wrong = np.argwhere(~(np.abs(values) <= limit))
        if not len(wrong):
            raise
        row, column = wrong[0]
        raise ValueError(
            f"{name} has the value {values[row, column]:.6g} in row {first + row}, column "
            f"{column}; expected a finite number of at most {limit:.6g} for {kind}"
        ) from None
