"""What test_memory.py runs in another process: a spawned process imports it by this name."""

import tinyllm as tl


def twice(array):
    return array * 2


def work(path, edit, tokenizer):
    """Get edits and a tokenizer from another process, and hand traces back."""
    model = tl.load(path, threads=1)
    g = model.generate(tokenizer.encode("ROMEO:"), 2, seed=1, edits=edit, capture="output")
    return g, model.trace("ROMEO:", "*")[2:]
