"""Perplexity by each method, with the logits of llama.cpp.

pip install llama-cpp-python && pytest -m live tests/live/test_scoring.py
"""

import math

import numpy as np
import pytest

import tinyllm as tl
from tinyllm.files.model_file import DEMO

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.live

TEXT = (
    "ROMEO:\nBut soft, what light through yonder window breaks?\nIt is the east, and Juliet is "
    "the sun.\n\nJULIET:\nO Romeo, Romeo, wherefore art thou Romeo?\n"
) * 3


@pytest.fixture(scope="module")
def theirs():
    return llama_cpp.Llama(str(DEMO), n_ctx=512, logits_all=True, verbose=False, n_threads=1)


def losses(theirs, ids):
    """Entry i is the loss of ids[i + 1]."""
    theirs.reset()
    theirs.eval([int(i) for i in ids])
    x = np.array(theirs.scores[: len(ids) - 1], np.float64)
    x -= x.max(-1, keepdims=True)
    return (np.log(np.exp(x).sum(-1)) - x[np.arange(len(x)), ids[1:]]).tolist()


def test_llama_cpp_recipe(theirs):
    model = tl.load()
    ids = model.tokenizer.encode(TEXT)
    assert ids == theirs.tokenize(TEXT.encode(), add_bos=True, special=False)
    window = 64
    scored = []
    for at in range(0, len(ids) - window + 1, window):
        chunk = ids[at : at + window]
        if model.tokenizer.add_bos:
            chunk = [theirs.token_bos(), *chunk[1:]]
        scored += losses(theirs, chunk)[window // 2 :]
    p = model.perplexity(TEXT, window=window)
    assert p.count == len(scored)
    assert p.value == pytest.approx(math.exp(np.mean(scored)), rel=5e-3)


def test_hugging_face_recipe(theirs):
    model = tl.load()
    ids = model.tokenizer.encode(TEXT)
    window, stride = 64, 24
    total = count = before = 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        new = end - before
        of_window = losses(theirs, ids[begin:end])[-new:]
        # the guide multiplies the mean by the number of labels after its shift
        labels = new - 1
        total += np.mean(of_window) * labels
        count += labels
        before = end
        if end == len(ids):
            break
    p = model.perplexity(TEXT, stride=stride, window=window, method="hf")
    assert p.value == pytest.approx(math.exp(total / count), rel=5e-3)
