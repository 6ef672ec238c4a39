"""llama2.c checkpoints of all three versions, compared with the output of run.c."""

import json
import struct

import numpy as np
import pytest

import tinyllm as tl
from testkit import data, models
from tinyllm import reference

pytestmark = pytest.mark.sanitize


@pytest.fixture(scope="module")
def folder():
    return data.path("stories260K")


@pytest.fixture(scope="module")
def model(folder):
    return tl.load(folder / "stories260K.bin", tokenizer=folder / "tok512.bin")


@pytest.fixture(scope="module")
def golden(folder):
    return json.loads((folder / "golden.json").read_text())


@pytest.mark.parametrize(("key", "count"), [("greedy_empty_prompt", 200), ("greedy_prompt", 64)])
def test_greedy_tokens_are_those_of_run_c(model, golden, key, count):
    run = golden[key]
    fed = run["tokens_fed"]
    assert len(fed) == count
    ids = model.tokenizer.encode(run.get("prompt", ""))
    assert ids == run["prompt_tokens"]
    made = model.generate(ids, max_tokens=count + 1 - len(ids), temperature=0).ids
    assert ids + made[:-1] == fed
    assert made[-1] == run["next_after_last"]


def test_logits_are_those_of_run_c(model, golden):
    run = golden["greedy_empty_prompt"]
    logits = model.logits(run["tokens_fed"]).astype(np.float64)
    for entry in run["positions"]:
        row = logits[entry["pos"]]
        assert int(row.argmax()) == entry["argmax"]
        assert np.abs(row[:16] - entry["first16"]).max() < 2e-4
        assert abs(np.linalg.norm(row) - entry["l2"]) < 2e-3


def test_the_tokenizers_ids(model, golden):
    for case in golden["encode_bos"]:
        assert model.tokenizer.encode(case["text"]) == case["ids"]


def test_a_text_ends_where_the_next_begins(model):
    assert model.tokenizer.bos in model.eog_ids


def read_v0(data):
    """Header and float32 tensors of a version 0 file, in the file's order."""
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack_from("<7i", data)
    kv = dim * kv_heads // heads
    shapes = [
        ("token_embd", (vocab, dim)),
        ("attn_norm", (layers, dim)),
        ("wq", (layers, dim, dim)),
        ("wk", (layers, kv, dim)),
        ("wv", (layers, kv, dim)),
        ("wo", (layers, dim, dim)),
        ("ffn_norm", (layers, dim)),
        ("w1", (layers, hidden, dim)),
        ("w2", (layers, dim, hidden)),
        ("w3", (layers, hidden, dim)),
        ("final_norm", (dim,)),
    ]
    tensors, at = {}, 28
    for name, shape in shapes:
        count = int(np.prod(shape))
        tensors[name] = np.frombuffer(data, "<f4", count, at).reshape(shape)
        at += 4 * count
    return (dim, hidden, layers, heads, kv_heads, vocab, length), tensors


MATRICES = ("token_embd", "wq", "wk", "wv", "wo", "w1", "w2", "w3")
NORMS = ("attn_norm", "ffn_norm", "final_norm")


def header(version, numbers, *more):
    return (struct.pack("<Ii7i", 0x616B3432, version, *numbers) + b"".join(more)).ljust(256, b"\0")


def test_version_1_is_bit_equal_to_version_0(folder, model, tmp_path):
    numbers, tensors = read_v0((folder / "stories260K.bin").read_bytes())
    path = tmp_path / "v1.bin"
    order = (*NORMS, *MATRICES)
    path.write_bytes(
        header(1, numbers, b"\1") + b"".join(tensors[name].tobytes() for name in order)
    )
    ids = np.random.default_rng(0).integers(0, 512, 100)
    assert np.array_equal(tl.load(path).logits(ids), model.logits(ids))


def test_a_classifier_of_its_own(folder, tmp_path):
    data = (folder / "stories260K.bin").read_bytes()
    numbers, _ = read_v0(data)
    own = np.random.default_rng(1).standard_normal((512, 64)).astype("<f4")
    path = tmp_path / "own.bin"
    changed = (*numbers[:5], -numbers[5], numbers[6])
    path.write_bytes(struct.pack("<7i", *changed) + data[28:] + own.tobytes())
    model = tl.load(path)
    assert not model.config.tied
    trace = model.trace([1, 2, 3], ["output_norm", "output"])
    want = trace["output_norm"].astype(np.float64) @ own.T.astype(np.float64)
    assert models.normwise_error(trace["output"], want) < 1e-6


@pytest.mark.parametrize("group", [4, 64])
def test_version_2_runs_its_dequantized_weights(folder, tmp_path, group):
    numbers, tensors = read_v0((folder / "stories260K.bin").read_bytes())
    parts = [header(2, numbers, b"\1", struct.pack("<i", group))]
    parts += [tensors[name].tobytes() for name in NORMS]
    dequantized = {}
    for name in MATRICES:
        stacked = tensors[name] if name != "token_embd" else tensors[name][np.newaxis]
        values = []
        for tensor in stacked:  # groups run over each flattened tensor
            groups = tensor.reshape(-1, group)
            scale = (np.abs(groups).max(1) / 127).astype("<f4")
            quants = np.round(groups / scale[:, None]).astype(np.int8)
            parts += [quants.tobytes(), scale.tobytes()]
            values.append((quants * scale[:, None].astype(np.float64)).reshape(tensor.shape))
        dequantized[name] = np.stack(values)
    path = tmp_path / "v2.bin"
    path.write_bytes(b"".join(parts))
    model = tl.load(path)
    ids = np.random.default_rng(0).integers(0, 512, 100)

    names = {"wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output"}
    names |= {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}
    weights = {"token_embd.weight": dequantized["token_embd"][0]}
    weights["output_norm.weight"] = tensors["final_norm"].astype(np.float64)
    for layer in range(numbers[2]):
        for old, new in names.items():
            weights[f"blk.{layer}.{new}.weight"] = dequantized[old][layer]
        for norm in ("attn_norm", "ffn_norm"):
            weights[f"blk.{layer}.{norm}.weight"] = tensors[norm][layer].astype(np.float64)
    want = reference.forward(model.steps, weights, ids)["output"]
    assert models.normwise_error(model.logits(ids), want) < 2e-6


def test_it_becomes_a_gguf_file(folder, model, tmp_path):
    path = tmp_path / "stories.gguf"
    own = {**model.metadata}
    from tinyllm.files.llama2c import read_tokenizer_bin

    own.update(read_tokenizer_bin(folder / "tok512.bin"))
    tl.write_gguf(path, own, model.weights)
    again = tl.load(path)
    assert np.array_equal(again.logits("Once upon a time"), model.logits("Once upon a time"))
    assert again.eog_ids == model.eog_ids
