"""Importance matrices beside llama.cpp: the inputs of each product of matrices, as it has them.

llama.cpp's imatrix tool sums their squares in a callback (collect_imatrix in its
tools/imatrix/imatrix.cpp). So does this test, with llama.cpp's own values.

pip install llama-cpp-python && pytest -m live tests/live/test_imatrix.py
"""

import ctypes
from pathlib import Path

import numpy as np
import pytest

import tinyllm as tl
from testkit import data
from tinyllm.peers.callbacks import _Tensor

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.live


def array(tensor, kind):
    """The values of a tensor, in NumPy's order of the axes."""
    shape, strides = list(tensor.ne)[::-1], list(tensor.nb)[::-1]
    nbytes = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 4
    raw = np.ctypeslib.as_array((ctypes.c_byte * nbytes).from_address(tensor.data))
    return np.lib.stride_tricks.as_strided(raw.view(kind), shape, strides).copy()


def their_sums(path, windows):
    """Return the sums of squares and the counts, (experts, inputs) and (experts,), by names."""
    base = next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.*"))
    op_name = ctypes.CDLL(str(base)).ggml_op_name
    op_name.restype = ctypes.c_char_p
    sums, counts = {}, {}

    def look(address, ask, user):
        tensor = _Tensor.from_address(address)
        op = op_name(tensor.op)
        if op not in (b"MUL_MAT", b"MUL_MAT_ID"):
            return not ask
        weight = _Tensor.from_address(tensor.src[0])
        name = weight.name.decode()
        if ask or not name.startswith("blk."):
            return name.startswith("blk.") or not ask
        x = array(_Tensor.from_address(tensor.src[1]), np.float32).astype(np.float64)[0] ** 2
        experts = weight.ne[2]
        total = sums.setdefault(name, np.zeros((experts, x.shape[-1])))
        count = counts.setdefault(name, np.zeros(experts))
        if op == b"MUL_MAT":
            rows = x.reshape(-1, x.shape[-1])
            total[0] += rows.sum(axis=0)
            count[0] += len(rows)
        else:
            picks = array(_Tensor.from_address(tensor.src[2]), np.int32)[0, 0]  # (tokens, used)
            used = np.broadcast_to(x, (*picks.shape, x.shape[-1]))
            np.add.at(total, picks, used)
            np.add.at(count, picks, 1)
        return True

    callback = llama_cpp.ggml_backend_sched_eval_callback(look)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        str(path).encode(), llama_cpp.llama_model_default_params()
    )
    assert model
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 128
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = params.flash_attn_type = 0  # F32, and no flash attention
    params.cb_eval = callback
    context = llama_cpp.llama_init_from_model(model, params)
    for ids in windows:
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, 1
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        assert llama_cpp.llama_decode(context, batch) == 0
        llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return sums, counts


def compare(path, ids, window):
    ours = tl.imatrix(tl.load(path), ids, window=window)
    ids = ids.copy()
    if tl.load(path).tokenizer is not None:
        ids[::window] = tl.load(path).tokenizer.bos
    sums, counts = their_sums(path, ids[: len(ids) // window * window].reshape(-1, window))
    assert set(ours.sums) == set(sums)
    for name, theirs in sums.items():
        np.testing.assert_array_equal(ours.counts[name], counts[name], err_msg=name)
        mine = ours.sums[name].reshape(theirs.shape)
        assert np.linalg.norm(mine - theirs) < 1e-4 * np.linalg.norm(theirs), name


def test_sums_of_the_demo_model(tmp_path):
    path = tmp_path / "m.gguf"
    tl.quantize("demo", path, "F32")  # llama.cpp would round the inputs of other types
    ids = tl.load(path).tokenizer.encode(
        "ROMEO:\nBut soft, what light through yonder window?\n" * 9
    )
    compare(path, np.array(ids), 64)


def test_experts(tmp_path):
    full, path = tmp_path / "full.gguf", tmp_path / "m.gguf"
    tl.convert(data.path("hf", "mixtral"), full, dtype="F32")
    tl.edit(full, path, set={"tokenizer.ggml.model": "none", "tokenizer.ggml.token_type_count": 1})
    compare(path, np.random.default_rng(0).integers(3, 50, 96), 32)
