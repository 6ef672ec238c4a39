"""Random LoRA adapters on random models of rows: logits are those of llama.cpp.

pip install llama-cpp-python && pytest -m live tests/live/test_adapters.py
"""

import ctypes

import numpy as np
import pytest

import tinyllm as tl
from testkit import adapters, architectures, models

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.live


def theirs(path, files, ids):
    """Return the logits of llama.cpp with adapters: (path, scale)."""
    lib = llama_cpp
    options = lib.llama_model_default_params()
    options.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(path).encode(), options)
    assert model
    # before the context, whose graph has room for them
    found = [lib.llama_adapter_lora_init(model, str(file).encode()) for file, _ in files]
    assert all(found)
    options = lib.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = 256
    options.type_k = options.type_v = lib.GGML_TYPE_F32
    options.n_threads = options.n_threads_batch = 1
    options.flash_attn_type = 0
    context = lib.llama_init_from_model(model, options)
    assert context
    pointers = (lib.llama_adapter_lora_p_ctypes * len(found))(*found)
    scales = (ctypes.c_float * len(found))(*[scale for _, scale in files])
    assert lib.llama_set_adapters_lora(context, pointers, len(found), scales) == 0
    batch = lib.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.logits[i] = int(token), i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    assert lib.llama_decode(context, batch) == 0
    width = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    values = lib.llama_get_logits(context)
    result = np.ctypeslib.as_array(values, shape=(len(ids), width)).copy()
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    lib.llama_model_free(model)
    return result


@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "qwen3", "gemma3", "phi3", "qwen2moe", "olmo2", "lfm2"]
)
def test_logits_are_those_of_llama_cpp(name, tmp_path):
    metadata, tensors = architectures.random_architecture(name, "F32", context=512)
    for key, value in metadata.items():  # llama.cpp reads arrays of 32 bits
        if isinstance(value, np.ndarray) and value.dtype == np.int64:
            metadata[key] = value.astype(np.int32)
    metadata |= {"tokenizer.ggml.model": "none"}
    path = models.write(tmp_path / "m.gguf", metadata, tensors)
    model = tl.load(path)
    kinds = {n: k for n, k in adapters.targets(model).items() if not n.endswith("_inp.weight")}
    files = []
    for seed, scale in ((0, 1.0), (1, -0.5)):
        pairs = adapters.random_adapter(model, list(kinds), seed=seed, size=0.2)
        file = tmp_path / f"{seed}.gguf"
        files.append((adapters.write(file, pairs, architecture=name), scale))
    ids = models.random_ids(model, 40)
    adapted = tl.load(path, adapters=files)
    want = theirs(path, files, ids)
    bound = 5e-4 if name == "gemma3" else 3e-6  # llama.cpp reads GELU from a table of float16
    assert models.normwise_error(adapted.logits(ids), want) < bound
    assert models.normwise_error(model.logits(ids), want) > 0.05


def test_a_trained_adapter_runs_in_llama_cpp(tmp_path):
    demo = tl.load()
    path, file = tmp_path / "m.gguf", tmp_path / "a.gguf"
    tensors = {name: weight.numpy() for name, weight in demo.weights.items()}
    tl.write_gguf(path, demo.metadata.typed(), tensors)
    text = "one two three four five six seven eight nine ten " * 60
    run = tl.lora(path, text, steps=20, batch=4, context=32, out=file, progress=False)
    ids = np.array(demo.tokenizer.encode("one two three four"))
    want = theirs(path, [(file, 1.0)], ids)
    assert models.normwise_error(run.model.logits(ids), want) < 3e-6
    assert models.normwise_error(demo.logits(ids), want) > 0.2
