"""Running the steps of a plan in NumPy float64, all together or one alone.

Examples
--------
>>> import numpy as np
>>> from types import SimpleNamespace
>>> from tinyllm import reference
>>> config = SimpleNamespace(
...     architecture="llama", layers=1, width=8, heads=2, kv_heads=1, head_size=4, value_size=4,
...     ffn_width=12, vocab_size=10, context_length=16, norm_epsilon=1e-5, rope_base=10000.0,
...     rope_scaling=None, rope_dimension=4, attention_scale=None,
... )
>>> random = np.random.default_rng(0)
>>> shapes = {
...     "token_embd.weight": (10, 8), "output_norm.weight": (8,),
...     "blk.0.attn_norm.weight": (8,), "blk.0.attn_q.weight": (8, 8),
...     "blk.0.attn_k.weight": (4, 8), "blk.0.attn_v.weight": (4, 8),
...     "blk.0.attn_output.weight": (8, 8), "blk.0.ffn_norm.weight": (8,),
...     "blk.0.ffn_gate.weight": (12, 8), "blk.0.ffn_up.weight": (12, 8),
...     "blk.0.ffn_down.weight": (8, 12),
... }
>>> weights = {name: random.normal(size=shape) for name, shape in shapes.items()}
>>> taps = reference.forward(config, weights, [3, 1, 4])
>>> taps["output"].shape
(3, 10)
>>> step = reference.step(config, "blk.0.attn_probs", weights)
>>> step.reads
('blk.0.attn_scores',)
>>> np.array_equal(step.run(weights, taps), taps["blk.0.attn_probs"])
True
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..architectures.plan import INPUTS, ForwardPlan
from ..architectures.plan import Step as PlanStep
from ..architectures.table import make_plan
from ..base.numeric import Float64
from .ops import OPS

__all__ = ["Step", "forward", "step", "steps"]


@dataclass(frozen=True)
class Step:
    """One step of a plan, which can be run alone.

    Parameters
    ----------
    step : tinyllm.architectures.plan.Step
        The step of the plan.
    """

    step: PlanStep

    @property
    def tap(self) -> str:
        """The name of the step's value."""
        return self.step.tap

    @property
    def reads(self) -> tuple[str, ...]:
        """The taps that the step reads, and ``"tokens"`` or ``"positions"``."""
        return self.step.reads

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of the tensors that the step uses."""
        return tuple(name for name in self.step.weights if name is not None)

    def compute(self, *arrays: Any) -> Float64:
        """Return the value of the step.

        Parameters
        ----------
        *arrays : float64 arrays
            The values that the step reads, then its weights. None for an optional weight that
            the model does not have.

        Returns
        -------
        float64 array
        """
        # A file stores these numbers as float32 (1e-5 is 9.99999974737875e-06), and the core
        # uses the ones that follow from a rule as float32 too.
        numbers = {n.name: float(np.float32(n.value)) for n in self.step.numbers}
        value: Float64 = OPS[self.step.op](*arrays, **numbers)
        return value

    def run(self, weights: Mapping[str, Any], taps: Mapping[str, ArrayLike]) -> Float64:
        """Return the value of the step, computed from values and weights given by name.

        Parameters
        ----------
        weights : mapping
            Tensor name -> array, or an object with ``numpy(dtype=...)`` such as `Weight`.
        taps : mapping
            Tap name -> array, with at least the names in `reads`. ``tokens`` and ``positions``
            are converted to int64, all others to float64.

        Returns
        -------
        float64 array

        Raises
        ------
        ValueError
            If a tap or a weight is missing, or shapes do not fit.
        """
        inputs = [_input(taps, name) for name in self.reads]
        parameters = [_weight(weights, name) for name in self.step.weights]
        try:
            # silu: exp(-x) may overflow to inf, and then x / inf is the correct limit.
            with np.errstate(over="ignore"):
                return self.compute(*inputs, *parameters)
        except (ValueError, IndexError) as error:
            shapes = [None if a is None else a.shape for a in (*inputs, *parameters)]
            error.add_note(f"in step {self.tap} of {self.reads + self.weights}: shapes {shapes}")
            raise


def _input(taps: Mapping[str, ArrayLike], name: str) -> NDArray[Any]:
    if name not in taps:
        raise ValueError(f"taps has no {name!r}; expected every name in reads")
    return np.asarray(taps[name], dtype=np.int64 if name in INPUTS else np.float64)


def _weight(weights: Mapping[str, Any], name: str | None) -> Float64 | None:
    if name is None:
        return None
    if name not in weights:
        raise ValueError(f"weights has no {name!r}; expected every weight of the step")
    weight = weights[name]
    if hasattr(weight, "numpy"):
        weight = weight.numpy(dtype=np.float64)
    return np.asarray(weight, dtype=np.float64)


def _plan(model: Any, weights: Collection[str] | None) -> ForwardPlan:
    if isinstance(model, ForwardPlan):
        return model
    if weights is None:
        raise TypeError(
            "weights is None; expected the names of the model's tensors, because the config alone "
            "does not tell which biases there are"
        )
    return make_plan(model, weights)


def steps(model: Any, weights: Collection[str] | None = None) -> list[Step]:
    """Return every step of a model that has a tap, in the order of the forward pass.

    Parameters
    ----------
    model : ForwardPlan or Config
        ``model.steps``, or the config of a model.
    weights : collection of str, optional
        Names of the model's tensors, or a mapping from them. Required if `model` is a config:
        they decide which biases there are, and whether there is an output matrix.

    Returns
    -------
    list of Step
        One per tap.

    Raises
    ------
    TypeError
        If `model` is a config and `weights` is missing.
    UnsupportedError
        If the architecture is not supported.

    Examples
    --------
    >>> import tinyllm
    >>> [step.tap for step in steps(tinyllm.load().steps)][:3]
    ['token_embd', 'blk.0.resid_pre', 'blk.0.attn_norm_scale']
    """
    return [Step(each) for each in _plan(model, weights) if each.visible]


def step(model: Any, name: str, weights: Collection[str] | None = None) -> Step:
    """Return the step that computes one tap.

    Parameters
    ----------
    model, weights
        As in `steps`.
    name : str
        The tap, such as ``"blk.3.attn_q"``.

    Returns
    -------
    Step
        Its ``run(weights, taps)`` computes the tap from given inputs.

    Raises
    ------
    ValueError
        If the model has no such tap.
    TypeError
        If `model` is a config and `weights` is missing.
    UnsupportedError
        If the architecture is not supported.

    Examples
    --------
    >>> import tinyllm
    >>> step(tinyllm.load().steps, "blk.1.resid_pre").reads
    ('blk.0.resid_post',)
    """
    for each in _plan(model, weights):
        if each.tap == name and each.visible:
            return Step(each)
    raise ValueError(f"name is {name!r}; expected a tap of the model")


def forward(
    model: Any,
    weights: Mapping[str, Any],
    tokens: ArrayLike,
    positions: ArrayLike | None = None,
) -> dict[str, Float64]:
    """Run a model and return the values of all its taps.

    Parameters
    ----------
    model : ForwardPlan or Config
        ``model.steps``, or the config of a model.
    weights : mapping
        Tensor name -> array, or an object with ``numpy(dtype=...)`` such as `Weight`. Each step
        converts its weights to float64 without rounding, and then frees them.
    tokens : (T,) array_like of int
        The token ids.
    positions : (T,) array_like of int, optional
        The positions for RoPE. Default: 0, 1, 2, and so on. They do not change the mask: each
        token attends to itself and to the tokens before it in `tokens`.

    Returns
    -------
    dict of str to float64 array
        Tap name -> value, in the order of computation, from ``token_embd`` (T, D) to
        ``output`` (T, V), the logits.

    Raises
    ------
    TypeError
        If tokens or positions are not integers.
    ValueError
        If they are not one-dimensional or differ in length, or if a weight is missing.
    IndexError
        If a token id is outside the vocabulary.
    UnsupportedError
        If the architecture or the RoPE scaling is not supported.

    Examples
    --------
    See the docstring of the module.
    """
    tokens = _integers("tokens", tokens)
    positions = np.arange(len(tokens)) if positions is None else _integers("positions", positions)
    if positions.shape != tokens.shape:
        raise ValueError(f"positions has length {len(positions)}; expected {len(tokens)}")
    if tokens.min() < 0:
        raise IndexError(f"tokens holds the id {tokens.min()}; expected no negative ids")
    inputs = {"tokens": tokens, "positions": positions}
    taps: dict[str, Float64] = {}
    for each in steps(model, weights):
        taps[each.tap] = each.run(weights, {**inputs, **taps})
    return taps


def _integers(name: str, values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; expected one dimension, not empty")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} has dtype {array.dtype}; expected integers")
    return array.astype(np.int64)
