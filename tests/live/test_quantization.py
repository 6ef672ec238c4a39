"""Quantization beside llama.cpp's: types, errors, and files that llama.cpp runs.

pip install llama-cpp-python && pytest -m live tests/live/test_quantization.py

`python tests/live/test_quantization.py`, with tests/ and the root of the repository in PYTHONPATH,
writes tests/quantization/llama_cpp_types.json anew.
"""

import ctypes
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import tinyllm as tl
from tinyllm import _core
from tinyllm.quantization.mixes import COARSE, MIXES, NEED_IMATRIX, choose_types

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.live

RECORD = Path(__file__).parents[1] / "quantization" / "llama_cpp_types.json"
TYPES = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4".split()
TYPES += "TQ1_0 TQ2_0 Q2_0 Q1_0 IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ1_S IQ1_M NVFP4".split()
SEARCHED = [t for t in TYPES if t not in ("F32", "F16", "BF16", "Q8_0", "Q1_0")]


def mixes():
    """The module of the recorded test, which is no package."""
    path = RECORD.parent / "test_mixes.py"
    spec = importlib.util.spec_from_file_location("recorded_mixes", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@llama_cpp.llama_log_callback
def silent(level, text, data):
    pass


class Entry(ctypes.Structure):
    """llama_model_imatrix_data"""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    )


def their_quantize(path, out, mix, imatrix=None):
    """Run llama_model_quantize. `imatrix` maps names to mean squares."""
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = MIXES[mix].file_type, 2, True
    values = {k.encode(): np.ascontiguousarray(v, np.float32) for k, v in (imatrix or {}).items()}
    entries = (Entry * (len(values) + 1))()
    for entry, (name, value) in zip(entries, values.items(), strict=False):
        entry.name, entry.size = name, value.size
        entry.data = value.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if values:
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    status = llama_cpp.llama_model_quantize(
        str(path).encode(), str(out).encode(), ctypes.byref(params)
    )
    assert status == 0
    return tl.GGUF(out)


def cases(tensors):
    ones = {
        name: np.ones(int(np.prod(w.shape[:-2])) * w.shape[-1])
        for name, w in tensors.items()
        if len(w.shape) > 1
    }
    for mix in MIXES:
        if mix == "Q1_0" and any(w.shape[-1] % 128 for w in tensors.values() if len(w.shape) > 1):
            continue  # which llama.cpp refuses
        if mix not in NEED_IMATRIX:
            yield mix, mix, None
        yield f"{mix}+imatrix", mix, ones


def their_types(name, directory):
    """Yield (case, types) of each mix for a model of the record."""
    metadata, tensors = mixes().shapes(name)
    path = directory / "m.gguf"
    tl.write_gguf(path, metadata, tensors)
    for case, mix, imatrix in cases(tensors):
        out = directory / "out.gguf"
        file = their_quantize(path, out, mix, imatrix)
        yield case, {key: weight.type for key, weight in file.tensors.items()}


@pytest.mark.parametrize("name", ["llama, rows of 320, one key head", "qwen3moe"])
def test_types(name, tmp_path):
    metadata, tensors = mixes().shapes(name)
    sizes = {key: (weight.shape, weight.type) for key, weight in tensors.items()}
    for case, expected in their_types(name, tmp_path):
        mix, _, imatrix = case.partition("+")
        assert choose_types(metadata, sizes, mix, imatrix=bool(imatrix)) == expected, case


@pytest.fixture(scope="module")
def ggml():
    path = next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.*"))
    library = ctypes.CDLL(str(path))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip

    def quantize(kind, x, weight=None):
        number, items, size, _ = _core.tensor_types()[kind]
        out = np.empty(x.size // items * size, np.uint8)
        given = None if weight is None else weight.ctypes.data
        library.ggml_quantize_chunk(number, x.ctypes.data, out.ctypes.data, 0, *x.shape, given)
        return out

    return quantize


def error(kind, x, raw, weight=1.0):
    values = tl.Weight("w", x.shape, kind, raw.tobytes()).numpy(dtype=np.float64)
    return float(((values - x) ** 2 * weight).mean())


@pytest.mark.parametrize("kind", TYPES)
def test_the_error_is_no_larger_than_that_of_ggml(kind, ggml):
    random = np.random.default_rng(0)
    x = random.standard_normal((32, 1024)).astype(np.float32)
    x[:16] *= random.lognormal(0, 1, (16, 1024)).astype(np.float32)  # heavier tails
    weight = random.lognormal(0, 1, 1024).astype(np.float32)
    ones = np.ones(1024, np.float32) if kind in COARSE else None
    ours, theirs = error(kind, x, _core.pack(kind, x)), error(kind, x, ggml(kind, x, ones))
    assert ours <= theirs
    if kind in SEARCHED:
        assert ours < 0.99 * theirs
    else:
        np.testing.assert_array_equal(_core.pack(kind, x), ggml(kind, x))
    ours = error(kind, x, _core.pack(kind, x, weight), weight)
    assert ours <= error(kind, x, ggml(kind, x, weight), weight)


@pytest.fixture(scope="module")
def matrix():
    return tl.imatrix(tl.load("demo"), "ROMEO:\nBut soft, what light through yonder window breaks?")


@pytest.mark.parametrize("mix", [*MIXES, "NVFP4"])
def test_llama_cpp_runs_the_file_as_we_do(mix, matrix, tmp_path):
    path = tmp_path / "m.gguf"
    if mix in MIXES:
        tl.quantize("demo", path, mix, imatrix=matrix)
    else:
        tl.quantize("demo", path, "Q8_0", types={"blk.*": mix})
    ours = tl.load(path)
    theirs = llama_cpp.Llama(str(path), n_ctx=128, logits_all=True, verbose=False, n_threads=1)
    ids = ours.tokenizer.encode("ROMEO:\nBut soft, what light through yonder window breaks?")
    theirs.eval(ids)
    scores = np.array(theirs.scores[: len(ids)])
    logits = ours.logits(ids)
    # llama.cpp rounds activations to eight bits
    assert np.abs(scores - logits).max() < 0.05 * np.abs(logits).max()


def record():
    import tempfile

    letters = {kind: chr(ord("A") + i) for i, kind in enumerate(TYPES)}
    found = {"letters": letters, "shapes": {}}
    for name in mixes().SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            found["shapes"][name] = {
                case: "".join(letters[types[key]] for key in sorted(types))
                for case, types in their_types(name, Path(folder))
            }
    RECORD.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    record()
