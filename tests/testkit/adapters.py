"""Random LoRA adapters for the tests, and models whose weights include their change."""

import numpy as np

import tinyllm


def targets(model):
    """The tensors of a model that an adapter can change, by their kind."""
    kinds = {}
    for step in model.steps:
        name = step.weights[0] if step.weights else None
        if step.op == "embed" and step.number("index") == 0:
            kinds[name] = "embed"
        elif step.op in ("linear", "experts") and name not in kinds:
            kinds[name] = step.op
    return kinds


def random_adapter(model, names=None, *, rank=3, seed=0, size=0.3, kinds=None):
    """Return an adapter's tensors: name -> (A, B), float32."""
    random = np.random.default_rng(seed)
    kinds = kinds or targets(model)
    pairs = {}
    for name in kinds if names is None else names:
        shape = model.weights[name].shape
        shape = shape if len(shape) > 1 else (1, *shape)
        if kinds[name] == "linear":  # the rows of heads may be an axis of their own
            shape = (int(np.prod(shape[:-1])), shape[-1])
        *count, outputs, inputs = shape
        a, b = (*count, rank, inputs), (*count, outputs, rank)
        if kinds[name] == "embed":
            a, b = (outputs, rank), (inputs, rank)
        values = [random.standard_normal(s) * scale for s, scale in ((a, inputs**-0.5), (b, size))]
        pairs[name] = tuple(v.astype(np.float32) for v in values)
    return pairs


def write(path, pairs, *, alpha=6.0, architecture="llama", **keys):
    """Write an adapter as llama.cpp's converter does."""
    metadata = {
        "general.type": "adapter",
        "general.architecture": architecture,
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
    }
    metadata |= {key.replace("__", "."): value for key, value in keys.items()}
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors |= {f"{name}.lora_a": a, f"{name}.lora_b": b}
    tinyllm.write_gguf(path, metadata, tensors)
    return path


def merged(path, model, changes, names=None):
    """Write a model whose weights include changes: (pairs, factor). Returns the loaded model."""
    kinds = targets(model)
    tensors = {name: w.numpy() for name, w in model.weights.items()}
    for pairs, factor in changes:
        for name, (a, b) in pairs.items():
            product = a @ b.T if kinds[name] == "embed" else b @ a
            tensors[name] = tensors[name] + np.float32(factor) * product.reshape(
                tensors[name].shape
            )
    metadata = dict(model.metadata)
    tinyllm.write_gguf(path, metadata, tensors)
    return tinyllm.load(path)
