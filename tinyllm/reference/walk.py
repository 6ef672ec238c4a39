"""Walking a plan: every step of a model in NumPy float64, together or one alone.

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
    """One step of a plan, ready to run alone.

    Parameters
    ----------
    step : tinyllm.architectures.plan.Step
        The step as the plan has it.
    """

    step: PlanStep

    @property
    def tap(self) -> str:
        """The name of its value."""
        return self.step.tap

    @property
    def reads(self) -> tuple[str, ...]:
        """The taps, and ``"tokens"`` or ``"positions"``, that it needs."""
        return self.step.reads

    @property
    def weights(self) -> tuple[str, ...]:
        """The tensors that it needs."""
        return tuple(name for name in self.step.weights if name is not None)

    def compute(self, *arrays: Any) -> Float64:
        """Compute the value from what it reads and its weights, in that order.

        Parameters
        ----------
        *arrays : float64 arrays
            None for a weight that the model does not have.

        Returns
        -------
        float64 array
        """
        # a file stores these numbers as float32: its 1e-5 is 9.99999974737875e-06
        numbers = {n.name: float(np.float32(n.value)) for n in self.step.numbers}
        value: Float64 = OPS[self.step.op](*arrays, **numbers)
        return value

    def run(self, weights: Mapping[str, Any], taps: Mapping[str, ArrayLike]) -> Float64:
        """Compute this step alone.

        Parameters
        ----------
        weights : mapping
            Tensor name -> array, or an object with ``numpy(dtype=...)`` such as `Weight`.
        taps : mapping
            Tap name -> array, with at least the names in `reads`. Where `reads` has
            ``tokens`` or ``positions``, they are integers; all others become float64.

        Returns
        -------
        float64 array
            The tap.

        Raises
        ------
        ValueError
            A tap or a weight is missing, or shapes do not fit.
        """
        inputs = [_input(taps, name) for name in self.reads]
        parameters = [_weight(weights, name) for name in self.step.weights]
        try:
            # exp(-x) may overflow to inf, and x / inf is the right limit.
            with np.errstate(over="ignore"):
                return self.compute(*inputs, *parameters)
        except (ValueError, IndexError) as error:
            shapes = [None if a is None else a.shape for a in (*inputs, *parameters)]
            error.add_note(f"in step {self.tap} of {self.reads + self.weights}: shapes {shapes}")
            raise


def _input(taps: Mapping[str, ArrayLike], name: str) -> NDArray[Any]:
    if name not in taps:
        raise ValueError(f"taps: {name!r} is missing")
    return np.asarray(taps[name], dtype=np.int64 if name in INPUTS else np.float64)


def _weight(weights: Mapping[str, Any], name: str | None) -> Float64 | None:
    if name is None:
        return None
    if name not in weights:
        raise ValueError(f"weights: {name!r} is missing")
    weight = weights[name]
    if hasattr(weight, "numpy"):
        weight = weight.numpy(dtype=np.float64)
    return np.asarray(weight, dtype=np.float64)


def _plan(model: Any, weights: Collection[str] | None) -> ForwardPlan:
    if isinstance(model, ForwardPlan):
        return model
    if weights is None:
        raise TypeError(
            "weights is None; expected the model's, since the config alone does not "
            "say which biases there are"
        )
    return make_plan(model, weights)


def steps(model: Any, weights: Collection[str] | None = None) -> list[Step]:
    """Return every step of a model that has a value, in the order of the forward pass.

    Parameters
    ----------
    model : ForwardPlan or Config
        ``model.steps``, or the config of a model.
    weights : collection of str, optional
        Names of the model's tensors, or a mapping from them. Needed with a config: they decide
        which biases there are, and whether there is an output matrix.

    Returns
    -------
    list of Step
        One per tap.

    Raises
    ------
    TypeError
        `model` is a config, and `weights` is missing.
    UnsupportedError
        The architecture is unknown.

    Examples
    --------
    >>> import tinyllm
    >>> [step.tap for step in steps(tinyllm.load().steps)][:3]
    ['token_embd', 'blk.0.resid_pre', 'blk.0.attn_norm_scale']
    """
    return [Step(each) for each in _plan(model, weights) if each.visible]


def step(model: Any, name: str, weights: Collection[str] | None = None) -> Step:
    """Return the step that writes one tap.

    Parameters
    ----------
    model, weights
        As for `steps`.
    name : str
        The tap, such as ``"blk.3.attn_q"``.

    Returns
    -------
    Step
        Its ``run(weights, taps)`` computes the tap from given inputs.

    Raises
    ------
    ValueError
        The model has no such tap.
    TypeError
        `model` is a config, and `weights` is missing.
    UnsupportedError
        The architecture is unknown.

    Examples
    --------
    >>> import tinyllm
    >>> step(tinyllm.load().steps, "blk.1.resid_pre").reads
    ('blk.0.resid_post',)
    """
    for each in _plan(model, weights):
        if each.tap == name and each.visible:
            return Step(each)
    raise ValueError(f"name: the model has no tap {name!r}")


def forward(
    model: Any,
    weights: Mapping[str, Any],
    tokens: ArrayLike,
    positions: ArrayLike | None = None,
) -> dict[str, Float64]:
    """Run the model and return every inner value.

    Parameters
    ----------
    model : ForwardPlan or Config
        ``model.steps``, or the config of a model.
    weights : mapping
        Tensor name -> array, or an object with ``numpy(dtype=...)`` such as `Weight`, whose
        exact value is used. One step's weights at a time are held in float64.
    tokens : (T,) array_like of int
        The token ids.
    positions : (T,) array_like of int, optional
        The positions that RoPE uses; 0, 1, 2 ... by default. They do not change the mask: each
        token sees itself and the tokens before it in `tokens`.

    Returns
    -------
    dict of str to float64 array
        Tap name -> value, in the order of computation, from ``token_embd`` (T, D) to
        ``output`` (T, V), the logits.

    Raises
    ------
    TypeError
        Tokens or positions are not integers.
    ValueError
        They are not one-dimensional, or not of one length; a weight is missing.
    IndexError
        A token id is negative or above the vocabulary.
    UnsupportedError
        The architecture or the RoPE scaling is unknown.

    Examples
    --------
    The module's docstring has one.
    """
    tokens = _integers("tokens", tokens)
    positions = np.arange(len(tokens)) if positions is None else _integers("positions", positions)
    if positions.shape != tokens.shape:
        raise ValueError(f"positions: {len(positions)} numbers for {len(tokens)} tokens")
    if tokens.min() < 0:
        raise IndexError(f"tokens: id {tokens.min()} is negative")
    inputs = {"tokens": tokens, "positions": positions}
    taps: dict[str, Float64] = {}
    for each in steps(model, weights):
        taps[each.tap] = each.run(weights, {**inputs, **taps})
    return taps


def _integers(name: str, values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: shape {array.shape}: expected one dimension, not empty")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name}: {array.dtype}: expected integers")
    return array.astype(np.int64)
