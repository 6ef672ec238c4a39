"""The derivatives of a network by its weights, compared with finite differences in float64."""

import numpy as np
import pytest

from tinyllm import reference


def nll(logits, targets):
    x = logits - logits.max(axis=-1, keepdims=True)
    return -(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))[np.arange(len(x)), targets].sum()


def check_network(network, names, limit):
    """Compare the loss of four tokens, and its derivatives by these tensors in one direction.

    An error is relative to the norm of the tensor's gradient.
    """
    ids = np.array([[5, 9, 3, 9]], np.int32)
    targets = np.array([[9, 3, 9, -1]], np.int32)  # the last one is masked
    loss = network.add_gradients(ids, targets, 1.0)
    weights = {n: w.numpy(dtype=np.float64) for n, w in network.model.weights.items()}

    def run(changed):
        taps = reference.forward(network.model.steps, {**weights, **changed}, ids[0])
        return nll(taps[network.model.steps[-1].tap][:-1], targets[0, :-1])

    assert loss == pytest.approx(run({}), rel=1e-5)
    assert network.losses(ids, targets).sum() == pytest.approx(loss, rel=1e-6)
    for tensor in names:
        gradient = network.gradients[tensor].astype(np.float64)
        direction = np.random.default_rng(0).normal(size=gradient.shape)
        size = 1e-5 * np.abs(weights[tensor]).mean()
        ends = [run({tensor: weights[tensor] + sign * size * direction}) for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * size)
        # the bias of the keys changes nothing, so its gradient is rounding
        typical = np.linalg.norm(gradient) + 1e-3 * np.linalg.norm(network.flat)
        assert abs((gradient * direction).sum() - expected) < limit * typical, tensor
