"""Traces and sessions as files: what is read back, and what malformed files do."""

import json
import struct
import zipfile

import numpy as np
import pytest

import tinyllm as tl
from testkit import models
from tinyllm.files.arrays import read_arrays, write_arrays

SIZES = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 60}
IDS = [3, 1, 4, 1, 5]
ENDINGS = [".safetensors", ".npz"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.random_model(tmp_path_factory.mktemp("storage"), context=600, **SIZES)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_trace_comes_back_as_it_was(model, tmp_path, ending):
    t = model.trace(IDS, "*")
    t.pieces = ["a", "\ud800", "\0<é", "", "🙂"]
    path = tmp_path / f"run{ending}"
    for _ in range(2):  # the second replaces the first
        t.save(path)
    back = tl.read(path)
    assert list(back) == list(t)
    for name in t:
        assert back[name].dtype == np.float32
        assert np.array_equal(back[name], t[name])
        assert not back[name].flags.writeable
    assert back.pieces == t.pieces
    assert np.array_equal(back.tokens, t.tokens)
    assert back.tokens.dtype == t.tokens.dtype
    assert back.config == model.config
    assert back.fingerprint == model.fingerprint
    assert back.model is None
    assert back.start == 0
    assert back.stack("*attn_probs").shape == (2, 4, 5, 5)
    assert back[2:].start == 2
    assert list(tmp_path.iterdir()) == [path]
    part = t[1:3]
    part.save(path)
    again = tl.read(path)
    assert again.start == 1
    assert np.array_equal(again["blk.1.attn_scores"], part["blk.1.attn_scores"])
    again.save(tmp_path / f"copy{ending}")  # what was read can be saved
    assert tl.read(tmp_path / f"copy{ending}").fingerprint == model.fingerprint


def test_the_same_trace_is_the_same_file(model, tmp_path):
    for ending in ENDINGS:
        for name in "ab":
            model.trace(IDS).save(tmp_path / f"{name}{ending}")
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


def test_numpy_reads_our_npz(model, tmp_path):
    t = model.trace(IDS)
    t.save(tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz") as file:
        assert np.array_equal(file["blk.1.attn_mix"], t["blk.1.attn_mix"])
        assert json.loads(json.loads(bytes(file["__metadata__"]))["tokens"]) == IDS


def test_the_safetensors_package_reads_ours_and_we_its(model, tmp_path):
    numpy_files = pytest.importorskip("safetensors.numpy")
    t = model.trace(IDS)
    t.save(tmp_path / "t.safetensors")
    theirs = numpy_files.load_file(tmp_path / "t.safetensors")
    assert all(np.array_equal(theirs[name], t[name]) for name in t)
    numpy_files.save_file(theirs, tmp_path / "u.safetensors")
    assert set(read_arrays(tmp_path / "u.safetensors")[0]) == set(t)


def test_reading_is_lazy(model, tmp_path):
    t = model.trace(IDS, "*")
    t.save(tmp_path / "t.npz")
    back = tl.read(tmp_path / "t.npz")
    assert len(back) == len(t)
    assert back["output"] is back["output"]  # and kept after the first reading
    damaged = bytearray((tmp_path / "t.npz").read_bytes())
    at = bytes(damaged).index(t["blk.0.attn_q"].tobytes())
    damaged[at] ^= 1
    (tmp_path / "d.npz").write_bytes(damaged)
    back = tl.read(tmp_path / "d.npz")
    assert np.array_equal(back["output"], t["output"])
    with pytest.raises(tl.FormatError, match=r"d\.npz.*attn_q"):
        back["blk.0.attn_q"]


def test_arrays_of_any_origin(tmp_path):
    arrays = {
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 5), np.float16),
        "scalar": np.array(3, np.int64),
        "bool": np.array([True, False]),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    back, metadata = read_arrays(tmp_path / "a.npz")
    assert metadata == {}
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)
    bf16 = np.array([0x3F80, 0xC000], "<u2").tobytes()
    write_safetensors(tmp_path / "b", {"w": entry("BF16", [2], [1, 5])}, b"x" + bf16)
    assert read_arrays(tmp_path / "b")[0]["w"].tolist() == [1.0, -2.0]


# --- malformed files ---------------------------------------------------------------------------


def entry(dtype, shape, offsets):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write_safetensors(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


@pytest.mark.parametrize(
    ("header", "length", "words"),
    [
        (b"", 1 << 63, "header length"),
        (b"{}", 3, "header length"),
        (b"{", None, "not valid JSON"),
        (b"[" * 100_000, None, "not valid JSON"),
        (b"\xff", None, "not valid JSON"),
        (b'{"a":1' + b"0" * 5000 + b"}", None, "header"),
        (b"[]", None, "an object"),
        (b'{"a":{},"a":{}}', None, "duplicate key"),
        ({"__metadata__": {"a": 1}}, None, "__metadata__"),
        ({"a": 5}, None, "tensor 'a'"),
        ({"a": entry("F99", [1], [0, 4])}, None, "dtype"),
        ({"a": entry(["F32"], [1], [0, 4])}, None, "dtype"),
        ({"a": entry("F32", [-1], [0, 4])}, None, "shape"),
        ({"a": entry("F32", "1", [0, 4])}, None, "shape"),
        ({"a": entry("F32", [1] * 99, [0, 4])}, None, "shape"),
        ({"a": entry("F32", [True], [0, 4])}, None, "shape"),
        ({"a": entry("F32", [1], [0, 5])}, None, "data_offsets"),
        ({"a": entry("F32", [1], [4, 0])}, None, "data_offsets"),
        ({"a": entry("F32", [1], [0, 400])}, None, "data_offsets"),
        ({"a": entry("F32", [1], [0])}, None, "data_offsets"),
        ({"a": entry("F32", [1], None)}, None, "data_offsets"),
        ({"a": entry("F32", [2**61, 2**61, 8], [0, 8])}, None, "data_offsets"),
        ({}, None, "no arrays"),
        ({"__metadata__": {"format": "tinyllm.trace", "version": "2"}}, None, "version"),
        ({"__metadata__": {"format": "tinyllm.trace", "version": "1"}}, None, "config"),
        ({"__metadata__": {"format": "tinyllm.session", "version": "1"}}, None, "Model.session"),
    ],
)
def test_malformed_safetensors(tmp_path, header, length, words):
    path = tmp_path / "bad.safetensors"
    write_safetensors(path, header, bytes(8), length)
    if length == 3:
        path.write_bytes(struct.pack("<Q", 3) + b"{}")
    with pytest.raises(tl.FormatError, match=words) as caught:
        tl.read(path)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("content", [b"", b"P", b"PK", b"PK\x03\x04", b"\0" * 7, b"\0" * 8])
def test_short_files(tmp_path, content):
    path = tmp_path / "short"
    path.write_bytes(content)
    with pytest.raises(tl.FormatError):
        tl.read(path)


def bad_metadata():
    for key, value in {
        "tokens": ["[1.5]", "{}", "nul", '["1"]', "[99999999999]", "[true,1,1,1,1]"],
        "pieces": ["[]", '["a"]', "[1,2,3,4,5]", '"abcde"'],
        "start": ["", "-1", "1.0", "9" * 30, "²"],
        "config": ["{}", "[]", "7"],
    }.items():
        for text in value:
            yield key, text


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("key", "text"), list(bad_metadata()))
def test_metadata_that_makes_no_sense(model, tmp_path, ending, key, text):
    path = tmp_path / f"t{ending}"
    model.trace(IDS, "output").save(path)
    arrays, metadata = read_arrays(path)
    write_arrays(path, {**arrays}, {**metadata, key: text})
    with pytest.raises(tl.FormatError, match=key):
        tl.read(path)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 0},
        {"layers": 2**40},
        {"layers": 2**30},
        {"heads": [4, 4, 4]},
        {"heads": "4"},
        {"heads": -4},
        {"width": 33},
        {"norm_epsilon": "x"},
        {"norm_epsilon": float("inf")},
        {"rope_scaling": 5},
        {"architecture": None},
        {"tied": 1},
    ],
)
def test_a_config_that_makes_no_sense(model, tmp_path, change):
    path = tmp_path / "t.safetensors"
    model.trace(IDS, "*").save(path)
    arrays, metadata = read_arrays(path)
    config = {**json.loads(metadata["config"]), **change}
    write_arrays(path, {**arrays}, {**metadata, "config": json.dumps(config)})
    with pytest.raises(tl.FormatError):
        tl.read(path)


@pytest.mark.parametrize("name", ["blk.2.attn_q", "blk.00.attn_q", "attn_q", "x.output", "logits"])
def test_arrays_that_are_no_taps(model, tmp_path, name):
    for ending in ENDINGS:
        path = tmp_path / f"t{ending}"
        model.trace(IDS, "output").save(path)
        arrays, metadata = read_arrays(path)
        write_arrays(path, {name: arrays["output"]}, metadata)
        with pytest.raises(tl.FormatError, match="tap"):
            tl.read(path)


def test_arrays_of_another_shape_or_type(model, tmp_path):
    path = tmp_path / "t.npz"
    model.trace(IDS, "output").save(path)
    _, metadata = read_arrays(path)
    for array in (np.zeros((5, 61), np.float32), np.zeros((5, 60)), np.zeros(5, np.float32)):
        write_arrays(path, {"output": array}, metadata)
        with pytest.raises(tl.FormatError, match=r"float32 \(5, 60\)"):
            tl.read(path)["output"]


def test_pickles_and_bombs_in_an_npz(tmp_path):
    np.savez(tmp_path / "o.npz", x=np.array([print], object))
    with pytest.raises(tl.FormatError, match=r"x\.npy"):
        read_arrays(tmp_path / "o.npz")[0]["x"]
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive, archive.open("x.npy", "w") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 50,)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(tl.FormatError, match="0 bytes"):
        read_arrays(tmp_path / "z.npz")[0]["x"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_any_damage_ends_in_a_format_error(model, tmp_path, ending):
    """A cut or a flipped bit gives an error, or floats of the right shape."""
    path = tmp_path / f"t{ending}"
    model.trace(IDS, ["blk.0.attn_q", "output"]).save(path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for i in range(300):
        bad = bytearray(whole)
        if i % 3 == 0:
            del bad[random.integers(len(bad)) :]
        else:
            for _ in range(int(random.integers(1, 6))):
                bad[random.integers(len(bad))] = random.integers(256)
        path.write_bytes(bad)
        message = str(path)
        try:
            t = tl.read(path)
            for name in t:
                assert t[name].dtype == np.float32
        except tl.FormatError as error:
            message = str(error)
        assert str(path) in message


def test_other_endings_and_places_are_refused(model, tmp_path):
    t = model.trace(IDS, "output")
    for name in ("t", "t.npy", "t.pt"):
        with pytest.raises(ValueError, match=r"\.safetensors or \.npz"):
            t.save(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        t.save(tmp_path / "missing" / "t.npz")
    with pytest.raises(FileNotFoundError):
        tl.read(tmp_path / "missing.npz")
    assert list(tmp_path.iterdir()) == []


# --- sessions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_session_goes_on_where_it_was_saved(model, tmp_path, ending):
    ids = models.random_ids(model, 300)
    session = model.session()
    for i in range(0, 260, 130):
        session.eval(ids[i : i + 130], edits=tl.scale("blk.0.attn_v", 2.0, at=7))
    path = tmp_path / f"s{ending}"
    session.save(path)
    again = model.session(path)
    assert again.tokens == session.tokens
    assert np.array_equal(again.logits, session.logits)
    for layer in range(2):
        for a, b in zip(again.core.cache(layer), session.core.cache(layer), strict=True):
            assert np.array_equal(a, b)
    assert np.array_equal(again.eval(ids[260:], "all"), session.eval(ids[260:], "all"))
    again.rewind(100)
    session.rewind(100)
    assert np.array_equal(again.eval([1, 2], "all"), session.eval([1, 2], "all"))


def test_the_cache_holds_keys_after_rope_and_values(model):
    session = model.session()
    t = session.eval(IDS, capture="*")
    for layer in range(2):
        keys, values = session.core.cache(layer)
        assert np.array_equal(keys, t[f"blk.{layer}.attn_k_rope"])
        assert np.array_equal(values, t[f"blk.{layer}.attn_v"])
    for layer in (-1, 2):
        with pytest.raises(IndexError, match="the model has 2 caches"):
            session.core.cache(layer)


def test_an_empty_session(model, tmp_path):
    model.session().save(tmp_path / "s.npz")
    assert len(model.session(tmp_path / "s.npz")) == 0


def test_a_session_of_another_model_is_refused(model, tmp_path):
    session = model.session()
    session.eval(IDS)
    session.save(tmp_path / "s.npz")
    (tmp_path / "other").mkdir()
    other = models.random_model(tmp_path / "other", context=600, seed=1, **SIZES)
    assert other.fingerprint != model.fingerprint
    with pytest.raises(tl.FormatError, match="another model"):
        other.session(tmp_path / "s.npz")
    model.trace(IDS).save(tmp_path / "t.npz")
    with pytest.raises(tl.FormatError, match=r"a trace, which tinyllm\.read opens"):
        model.session(tmp_path / "t.npz")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a, m: a.pop("blk.1.values"), "blk.1.values"),
        (lambda a, m: a.update({"blk.1.values": a["blk.1.values"][:4]}), "blk.1.values"),
        (lambda a, m: a.update({"blk.0.keys": a["blk.0.keys"].astype(np.float64)}), "blk.0.keys"),
        (lambda a, m: a.update(logits=np.zeros(3, np.float32)), "logits"),
        (lambda a, m: m.update(tokens="[1,2,3,4,60]"), "ids below 60"),
        (lambda a, m: m.update(tokens="[1,2,3,4,-1]"), "ids below 60"),
        (lambda a, m: m.update(tokens=str([1] * 601)), "at most 600"),
        (lambda a, m: m.update(tokens="[1]"), "blk.0.keys"),
        (lambda a, m: m.pop("fingerprint"), "fingerprint"),
    ],
)
def test_malformed_sessions(model, tmp_path, change, words):
    path = tmp_path / "s.safetensors"
    session = model.session()
    session.eval(IDS)
    session.save(path)
    arrays, metadata = read_arrays(path)
    arrays, metadata = {name: np.array(a) for name, a in arrays.items()}, dict(metadata)
    change(arrays, metadata)
    write_arrays(path, arrays, metadata)
    with pytest.raises(tl.FormatError, match=words):
        model.session(path)


def test_fill_checks_what_it_is_given(model):
    session = model.session()
    session.eval(IDS)
    cache = [session.core.cache(layer) for layer in range(2)]
    core = type(session.core)
    for layers, words in (
        (cache[:1], "1 caches; expected 2"),
        ([cache[0], (cache[1][0][:3], cache[1][1])], "expected 5 rows"),
        ([(c[0].ravel()[:-1], c[1]) for c in cache], "expected"),
        ([(np.zeros((601, 2, 8), np.float32),) * 2] * 2, "at most 600"),
    ):
        empty = core(model.core)
        with pytest.raises(ValueError, match=words):
            empty.fill(np.arange(max(len(layers[0][1]), 5), dtype=np.int32), layers)
        assert len(empty) == 0
    with pytest.raises(ValueError, match="not empty"):
        session.core.fill(np.arange(5, dtype=np.int32), cache)
    with pytest.raises(TypeError):
        core(model.core).fill([1], 5)
    assert len(session.core) == 5


def test_fingerprints(model, tmp_path):
    same = tl.load(model.path)
    assert same.fingerprint == model.fingerprint
    assert len(model.fingerprint) == 32
    assert model.trace(IDS, "output").fingerprint == model.fingerprint
