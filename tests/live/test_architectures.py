"""Random models of rows, and Hugging Face's checkpoints: logits are those of llama.cpp.

pip install llama-cpp-python && pytest -m live tests/live/test_architectures.py
"""

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, data, hf, models
from tinyllm.architectures.table import ARCHITECTURES

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.live

TOKENS = 70

#: llama.cpp reads GELU from a table of float16 numbers.
GELU = ("codeshell", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3")

#: llama.cpp has one epsilon for all norms.
LATENT = ("glm-dsa", "deepseek32", "plm")

#: Checkpoints whose sizes llama.cpp does not take, or which it ends the process for (mistral4).
REFUSED = ("olmoe", "deepseek_v2", "dots1", "gemma3n", "glm", "nemotron", "mistral4")

#: Checkpoints with which llama.cpp computes something else: see docs/architectures.md.
DIFFERENT = {
    "gemma2": "it does not read the factor of attention",
    "gemma3": "it does not read the factor of attention",
    "gptoss": "it rounds YaRN's range of pairs",
    "embeddinggemma": "the last step here is a projection after pooling",
    "bitnet": "it has SiLU",
    "deepseek_v2_groups": "the score of a group is another",
    "exaone4": "it has windows with 64 blocks only",
    "llama4": "its chunks have 8,192 tokens whatever the file states",
    "minicpm3": "its factors are constants",
    "mellum": "blocks with a window have the base of the others",
    "phimoe": "its router has a softmax",
}


def with_indexer(name, metadata, tensors):
    """Add what a file with an indexer has. It chooses all keys of a short context."""
    rng = np.random.default_rng(0)
    metadata |= {f"{name}.attention.indexer.{k}": 64 for k in ("head_count", "key_length")}
    shapes = {
        "k_norm.weight": (64,),
        "k_norm.bias": (64,),
        "proj.weight": (64, 256),
        "attn_k.weight": (64, 256),
        "attn_q_b.weight": (4096, 64),
    }
    for layer in range(2):
        for part, shape in shapes.items():
            values = 0.1 * rng.normal(size=shape)
            tensors[f"blk.{layer}.indexer.{part}"] = values.astype(np.float32)


def with_unused_values(tensors):
    """Add the tensors of the first block that llama.cpp asks for and does not use."""
    for i, shape in enumerate(((256,), (32, 256), (256, 32))):
        tensors[f"blk.0.time_mix_v{i}.weight"] = np.ones(shape, np.float32)


def file_of(name, layers, path):
    size = {"layers": layers, "width": 64, "ffn": 64} if layers else {}
    metadata, tensors = architectures.random_architecture(name, "F32", context=512, **size)
    if name in ("glm-dsa", "deepseek32"):
        with_indexer(name, metadata, tensors)
    if name in ("rwkv7", "arwkv7"):
        with_unused_values(tensors)
    if name in LATENT:
        metadata[f"{name}.attention.layer_norm_rms_epsilon"] = 1e-6
    if name == "smallthinker":  # whose window is 4096 whatever the file states
        metadata["smallthinker.attention.sliding_window"] = 4096
    for key, value in metadata.items():  # llama.cpp reads arrays of 32 bits
        if isinstance(value, np.ndarray) and value.dtype == np.int64:
            metadata[key] = value.astype(np.int32)
    metadata |= {"tokenizer.ggml.model": "none", "tokenizer.ggml.token_type_count": 1}
    return models.write(path, metadata, tensors)


def run(function, context, ids):
    """Call llama_encode or llama_decode with all tokens, and ask for the results of each."""
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.logits[i] = int(token), i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    assert function(context, batch) == 0
    llama_cpp.llama_batch_free(batch)


def theirs(path, ids, encoder, source=None):
    """Return the logits of llama.cpp, after a source if given, or an encoder's last values."""
    lib = llama_cpp
    options = lib.llama_model_default_params()
    options.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(path).encode(), options)
    assert model
    options = lib.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = 256
    options.type_k = options.type_v = lib.GGML_TYPE_F32
    options.n_threads = options.n_threads_batch = 1
    options.flash_attn_type = 0
    options.embeddings = encoder
    options.pooling_type = 0 if encoder else -1
    context = lib.llama_init_from_model(model, options)
    assert context
    if source is not None:
        run(lib.llama_encode, context, source)
    run(lib.llama_encode if encoder else lib.llama_decode, context, ids)
    if encoder:
        values, width = lib.llama_get_embeddings(context), lib.llama_model_n_embd(model)
    else:
        values = lib.llama_get_logits(context)
        width = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    result = np.ctypeslib.as_array(values, shape=(len(ids), width)).copy()
    lib.llama_free(context)
    lib.llama_model_free(model)
    return result


@pytest.mark.parametrize(
    ("name", "layers"),
    [(name, 0) for name in architectures.LLAMA_CPP if name != "baichuan"]
    + [("baichuan", 32), ("baichuan", 40)],  # 40 blocks: ALiBi
)
def test_results_are_those_of_llama_cpp(name, layers, tmp_path):
    path = file_of(name, layers, tmp_path / "m.gguf")
    model = tl.load(path)
    ids = models.random_ids(model, TOKENS)
    last = model.steps[-1].tap
    want = theirs(path, ids, not model.steps.roles("logits"))
    error = models.normwise_error(model.trace(ids, last)[last], want)
    assert error < (5e-4 if name in GELU else 3e-6)


@pytest.mark.parametrize(
    "name",
    [n for n, row in hf.CHECKPOINTS.items() if row in ARCHITECTURES and n not in REFUSED],
)
def test_checkpoints_give_what_llama_cpp_gives(name, tmp_path):
    directory = data.path("hf", name)
    ids = np.load(directory.with_suffix(".npz"))["ids"].reshape(-1)[:TOKENS]
    metadata, tensors = hf.load_checkpoint(directory)
    for key, value in list(metadata.items()):
        if key.startswith("tokenizer."):
            del metadata[key]
        elif isinstance(value, np.ndarray) and value.dtype == np.int64:
            metadata[key] = value.astype(np.int32)
    metadata |= {"tokenizer.ggml.model": "none"}
    if "bert" in name:
        metadata["tokenizer.ggml.token_type_count"] = 2
    path = models.write(tmp_path / "m.gguf", metadata, tensors)
    model, source = tl.load(path), None
    if name == "t5":
        source, ids = ids, np.load(directory.with_suffix(".npz"))["decoder_ids"]
        model = model.decoder(source)
    last = model.steps[-1].tap
    want = theirs(path, ids, not model.steps.roles("logits"), source)
    error = models.normwise_error(model.trace(ids, last)[last], want)
    assert (error > 2e-3) == (name in DIFFERENT), error


def test_mellum_with_one_base_of_rope(tmp_path):
    """llama.cpp reads the base of blocks with a window, and does not use it."""
    directory = data.path("hf", "mellum")
    ids = np.load(directory.with_suffix(".npz"))["ids"].reshape(-1)[:TOKENS]
    metadata, tensors = hf.load_checkpoint(directory)
    metadata["mellum.rope.freq_base_swa"] = metadata["mellum.rope.freq_base"]
    metadata = {k: v for k, v in metadata.items() if not k.startswith("tokenizer.")}
    metadata["tokenizer.ggml.model"] = "none"
    path = models.write(tmp_path / "m.gguf", metadata, tensors)
    assert models.normwise_error(tl.load(path).logits(ids), theirs(path, ids, False)) < 3e-6
