"""Checkpoints and tokenizers of llama2.c: the three versions, and damaged ones."""

import struct

import numpy as np
import pytest

import tinyllm
from testkit import data
from tinyllm.files.gguf import GGUF
from tinyllm.files.llama2c import read_llama2c, read_tokenizer_bin

pytestmark = pytest.mark.sanitize

# dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
DIMS = (12, 20, 2, 3, 1, 7, 5)
NAMES = {
    "attn_q": "wq", "attn_k": "wk", "attn_v": "wv", "attn_output": "wo", "ffn_gate": "w1",
    "ffn_down": "w2", "ffn_up": "w3", "attn_norm": "rms_att", "ffn_norm": "rms_ffn",
}  # fmt: skip
MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")


def make_weights(dims=DIMS, seed=0):
    """All tensors under the names of llama2.c, with layers stacked."""
    d, h, layers, heads, kv_heads, vocab, _ = dims
    kv = d // heads * kv_heads
    shapes = {
        "tok": (vocab, d), "rms_att": (layers, d), "wq": (layers, d, d), "wk": (layers, kv, d),
        "wv": (layers, kv, d), "wo": (layers, d, d), "rms_ffn": (layers, d), "w1": (layers, h, d),
        "w2": (layers, d, h), "w3": (layers, h, d), "rms_final": (d,), "wcls": (vocab, d),
    }  # fmt: skip
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def v0(weights, shared, dims=DIMS):
    order = ["tok", "rms_att", "wq", "wk", "wv", "wo", "rms_ffn", "w1", "w2", "w3", "rms_final"]
    head = struct.pack("<7i", *dims[:5], dims[5] if shared else -dims[5], dims[6])
    rope = bytes(4 * dims[6] * (dims[0] // dims[3]))
    tail = b"" if shared else weights["wcls"].tobytes()
    return head + b"".join(weights[name].tobytes() for name in order) + rope + tail


def head_of(version, shared, dims=DIMS, group=0):
    head = struct.pack("<Ii7iB", 0x616B3432, version, *dims, shared)
    return (head + (struct.pack("<i", group) if version == 2 else b"")).ljust(256, b"\0")


def v1(weights, shared, dims=DIMS):
    order = ["rms_att", "rms_ffn", "rms_final", "tok", *MATRICES]
    order += [] if shared else ["wcls"]
    return head_of(1, shared, dims) + b"".join(weights[name].tobytes() for name in order)


def v2(weights, shared, group, dims=DIMS):
    """A version 2 file, and the float64 values of its integers."""
    data = [head_of(2, shared, dims, group)]
    exact = dict(weights)
    data += [weights[name].tobytes() for name in ("rms_att", "rms_ffn", "rms_final")]
    for name in ("tok", *MATRICES, *([] if shared else ["wcls"])):
        stack = weights[name] if name in MATRICES else weights[name][None]
        exact[name] = np.zeros(stack.shape)
        for i, tensor in enumerate(stack):
            groups = tensor.reshape(-1, group)
            scale = np.abs(groups).max(1) / np.float32(127)
            q = np.round(groups / scale[:, None]).astype(np.int8)
            data += [q.tobytes(), scale.tobytes()]
            exact[name][i] = (q * scale[:, None].astype(np.float64)).reshape(tensor.shape)
        exact[name] = exact[name] if name in MATRICES else exact[name][0]
    return b"".join(data), exact


def check(tensors, weights, shared, dims=DIMS):
    expected = {"token_embd.weight": weights["tok"], "output_norm.weight": weights["rms_final"]}
    if not shared:
        expected["output.weight"] = weights["wcls"]
    for layer in range(dims[2]):
        for name, theirs in NAMES.items():
            expected[f"blk.{layer}.{name}.weight"] = weights[theirs][layer]
    assert sorted(tensors) == sorted(expected)
    for name, values in expected.items():
        assert tensors[name].type == "F32"
        assert tensors[name].name == name
        np.testing.assert_array_equal(tensors[name].numpy(), values.astype(np.float32))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("version", ["v0", "v1", "v2"])
@pytest.mark.parametrize("source", ["mapped", "read", "bytes", "bytearray"])
def test_versions(tmp_path, version, shared, source):
    weights = make_weights()
    if version == "v2":
        data, weights = v2(weights, shared, group=4)
    else:
        data = {"v0": v0, "v1": v1}[version](weights, shared)
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    given = {"bytes": data, "bytearray": bytearray(data)}.get(source, path)
    metadata, tensors = read_llama2c(given, mmap=source != "read")
    check(tensors, weights, shared)
    assert metadata == {
        "general.architecture": "llama",
        "llama.vocab_size": 7,
        "llama.context_length": 5,
        "llama.embedding_length": 12,
        "llama.block_count": 2,
        "llama.feed_forward_length": 20,
        "llama.attention.head_count": 3,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "llama.rope.dimension_count": 4,
        "llama.rope.freq_base": 10000.0,
    }


@pytest.mark.parametrize("group", [1, 2, 3, 4, 6, 12])
def test_groups_run_over_the_flattened_tensor(group):
    weights = make_weights(seed=group)
    data, exact = v2(weights, True, group)
    check(read_llama2c(data)[1], exact, True)


def test_float32_weights_are_views(tmp_path):
    data = v0(make_weights(), True)
    _, tensors = read_llama2c(data)
    start = np.frombuffer(data, np.uint8).ctypes.data
    assert tensors["token_embd.weight"].raw.ctypes.data == start + 28
    path = tmp_path / "m.bin"
    path.write_bytes(data)
    _, tensors = read_llama2c(path)
    path.unlink()
    np.testing.assert_array_equal(tensors["token_embd.weight"].numpy(), make_weights()["tok"])


def test_stories260k():
    path = data.path("stories260K", "stories260K.bin")
    metadata, tensors = read_llama2c(path)
    floats = np.fromfile(path, "<f4", offset=28)
    assert metadata["llama.attention.head_count_kv"] == 4
    assert metadata["llama.feed_forward_length"] == 172
    np.testing.assert_array_equal(tensors["token_embd.weight"].numpy().ravel(), floats[: 512 * 64])
    assert len(tensors) == 2 + 5 * 9


# ---- damage ----


@pytest.mark.parametrize("kind", ["v0", "v1", "v2"])
def test_truncation_at_every_byte(kind):
    weights = make_weights()
    data = v2(weights, False, 4)[0] if kind == "v2" else {"v0": v0, "v1": v1}[kind](weights, False)
    for size in [*range(300), *range(300, len(data), 13), len(data) - 1]:
        with pytest.raises(tinyllm.FormatError) as error:
            read_llama2c(data[:size])
        assert error.value.field == "file size"
        assert error.value.value == size
    with pytest.raises(tinyllm.FormatError, match="file size"):
        read_llama2c(data + b"\0")


FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [0, -1, -(2**31), 2**31 - 1])
def test_bad_dimensions(version, field, value):
    i = FIELDS.index(field)
    data = bytearray(v0(make_weights(), True))
    if version:
        data = bytearray(head_of(version, True, group=4) + bytes(5000))
    at = 4 * i if version == 0 else 8 + 4 * i
    struct.pack_into("<i", data, at, value)
    with pytest.raises(tinyllm.FormatError) as error:
        read_llama2c(bytes(data))
    # version 0 allows a negative vocab_size; too large sizes only show in the file's size
    if value <= 0 and not (version == 0 and field == "vocab_size" and value < 0):
        assert (error.value.field, error.value.value, error.value.offset) == (field, value, at)
    else:
        assert error.value.field in (field, "file size", "n_heads", "n_kv_heads", "group_size")


@pytest.mark.parametrize(
    ("data", "field", "value"),
    [
        (b"", "file size", 0),
        (bytes(27), "file size", 27),
        (bytes(28), "dim", 0),
        (struct.pack("<7i", 12, 20, 2, 5, 1, 7, 5) + bytes(9999), "n_heads", 5),
        (struct.pack("<7i", 12, 20, 2, 4, 1, 7, 5) + bytes(9999), "n_heads", 4),
        (struct.pack("<7i", 12, 20, 2, 6, 4, 7, 5) + bytes(9999), "n_kv_heads", 4),
        (head_of(3, True), "version", 3),
        (head_of(0, True), "version", 0),
        (head_of(-1, True), "version", -1),
        (head_of(1, 2), "shared_classifier", 2),
        (head_of(2, True, group=0), "group_size", 0),
        (head_of(2, True, group=-4), "group_size", -4),
        (head_of(2, True, group=5), "group_size", 5),
        (head_of(2, True, group=2**31 - 1), "group_size", 2**31 - 1),
        (b"GGUF" + bytes(300), "hidden_dim", 0),
    ],
)
def test_rejected(tmp_path, data, field, value):
    path = tmp_path / "m.bin"
    path.write_bytes(data)
    for source, name in ((data, None), (path, str(path))):
        with pytest.raises(tinyllm.FormatError) as error:
            read_llama2c(source)
        assert (error.value.field, error.value.value) == (field, value)
        assert error.value.path == name


def test_scales_may_be_anything():
    data, _ = v2(make_weights(), True, 4)
    at = 256 + 4 * (2 * 12 * 2 + 12) + 7 * 12  # after the integers of the embedding
    for scale in (np.nan, np.inf, 3e38, 0):
        changed = bytearray(data)
        struct.pack_into("<f", changed, at, scale)
        values = read_llama2c(bytes(changed))[1]["token_embd.weight"].numpy()
        if scale == 0:
            assert (values[0, :4] == 0).all()
        else:
            assert not np.isfinite(values[0, :4]).all()


def test_errors_of_the_system(tmp_path):
    for read in (read_llama2c, read_tokenizer_bin):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "missing.bin")
        with pytest.raises(TypeError):
            read(3)


# ---- the tokenizer ----


def tokenizer(tokens, longest=None):
    data = struct.pack("<I", max(map(len, tokens)) if longest is None else longest)
    for i, token in enumerate(tokens):
        data += struct.pack("<fi", -float(i), len(token)) + token
    return data


SPECIAL = [b"<unk>", b"\n<s>\n", b"\n</s>\n"]


def test_tokenizer():
    tokens = [*SPECIAL, b"<0x00>", b"<0xfF>", b"<0x-1>", b"<0x1>", b" ", b"a b", b"\xff", b"a b"]
    found = read_tokenizer_bin(tokenizer(tokens), len(tokens))
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.tokens"] == [
        "<unk>", "<s>", "</s>", "<0x00>", "<0xFF>", "<0x-1>", "<0x1>", "▁", "a▁b", "\udcff", "a▁b",
    ]  # fmt: skip
    assert found["tokenizer.ggml.token_type"].tolist() == [2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1]
    assert found["tokenizer.ggml.scores"].tolist() == [-float(i) for i in range(11)]
    assert found["tokenizer.ggml.scores"].dtype == np.float32


def test_tokenizer_with_raw_bytes():
    tokens = [*SPECIAL, *(bytes([i]) for i in range(256)), b"a", b" x"]
    found = read_tokenizer_bin(tokenizer(tokens))
    names = found["tokenizer.ggml.tokens"]
    assert names[3] == "<0x00>"
    assert names[3 + 97] == "<0x61>"
    assert names[259:] == ["a", "▁x"]
    assert found["tokenizer.ggml.token_type"][3:].tolist() == [6] * 256 + [1, 1]


@pytest.mark.parametrize(
    ("path", "reference", "size"),
    [
        ("stories260K/tok512.bin", "vocab/rebuilt-tok512.gguf", 512),
        ("llama2c/tokenizer.bin", "vocab/ggml-vocab-llama-spm.gguf", 32000),
    ],
)
def test_tokenizers_equal_llama_cpp(path, reference, size):
    found = read_tokenizer_bin(data.path(path), size)
    expected = GGUF(data.path(reference)).metadata
    assert len(found["tokenizer.ggml.tokens"]) == size
    for key, value in found.items():
        if key != "tokenizer.ggml.add_space_prefix":  # these files rely on the default
            assert np.array_equal(expected[key], value), key


@pytest.mark.parametrize(
    ("data", "size", "field"),
    [
        (b"", None, "max_token_length"),
        (b"\5\0\0", None, "max_token_length"),
        (b"\5\0\0\0", None, "number of tokens"),
        (tokenizer(SPECIAL[:2]), None, "number of tokens"),
        (tokenizer(SPECIAL), 4, "number of tokens"),
        (tokenizer(SPECIAL), 2, "number of tokens"),
        (tokenizer(SPECIAL) + b"\0", None, "token 3"),
        (tokenizer(SPECIAL)[:-1], None, "token 2"),
        (tokenizer(SPECIAL, 5), None, "token 2 length"),
        (tokenizer(SPECIAL) + struct.pack("<fi", 0, -1), None, "token 3 length"),
        (tokenizer(SPECIAL) + struct.pack("<fi", np.nan, 0), None, "token 3 score"),
        (tokenizer(SPECIAL, 2**32 - 1) + struct.pack("<fi", 0, 2**31 - 1), None, "token 3"),
    ],
)
def test_bad_tokenizers(tmp_path, data, size, field):
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(data)
    with pytest.raises(tinyllm.FormatError) as error:
        read_tokenizer_bin(path, size)
    assert error.value.field == field
    assert error.value.path == str(path)
    assert 0 <= error.value.offset <= len(data)
