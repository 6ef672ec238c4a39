"""Copies of a GGUF file with other metadata and names."""

import gguf
import numpy as np
import pytest

import tinyllm as tl
from testkit.models import random_llama, write
from tinyllm.cli.main import main


@pytest.fixture
def source(tmp_path):
    metadata, tensors = random_llama("Q4_0", layers=2, vocab=64)
    metadata |= {
        "test.small": ("UINT8", 7),
        "test.list": ("ARRAY[INT16]", [1, 2]),
        "test.nested": ("ARRAY[ARRAY]", [[1, 2], ["a"]]),
        "test.text": b"\xff not text",
        "general.alignment": 64,
    }
    return write(tmp_path / "m.gguf", metadata, tensors)


def raw(path):
    return {name: (w.type, w.shape, w.raw.tobytes()) for name, w in tl.GGUF(path).tensors.items()}


def test_without_changes_the_bytes_are_the_same(source, tmp_path):
    tl.edit(source, tmp_path / "same.gguf")
    assert (tmp_path / "same.gguf").read_bytes() == source.read_bytes()


def test_values(source, tmp_path):
    out = tmp_path / "out.gguf"
    tl.edit(
        source,
        out,
        set={
            "test.small": 8,
            "test.list": [3],
            "test.text": "größer",
            "test.new": 2**40,
            "test.float": ("FLOAT64", 0.1),
            "test.flag": True,
        },
    )
    before, after = tl.GGUF(source).metadata, tl.GGUF(out).metadata
    assert list(after) == [*before, "test.new", "test.float", "test.flag"]
    kinds = {key: after.type(key) for key in list(after)[-3:]}
    assert kinds == {"test.new": "UINT64", "test.float": "FLOAT64", "test.flag": "BOOL"}
    assert all(after.type(key) == before.type(key) for key in before)
    assert (after["test.small"], list(after["test.list"]), after["test.text"]) == (8, [3], "größer")
    assert after["test.float"] == 0.1
    assert raw(out) == raw(source)
    assert tl.GGUF(out).alignment == 64
    field = gguf.GGUFReader(out).get_field("test.small")  # another reader sees the same
    assert (field.contents(), field.types) == (8, [gguf.GGUFValueType.UINT8])
    tl.edit(out, out, set={"test.small": ("INT32", -1), "general.alignment": 32})  # in place
    assert tl.GGUF(out).metadata.type("test.small") == "INT32"
    assert tl.GGUF(out).alignment == 32
    assert raw(out) == raw(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "out.gguf"]


def test_names(source, tmp_path):
    out = tmp_path / "out.gguf"
    tl.edit(source, out, remove=["test.*"], rename={"general.alignment": "general.other"})
    metadata = tl.GGUF(out).metadata
    assert not [key for key in metadata if key.startswith("test.")]
    assert metadata.type("general.other") == "UINT32"
    assert tl.GGUF(out).alignment == 32
    q, k = "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"
    tl.edit(source, out, rename={q: k, k: q})
    assert raw(out)[q] == raw(source)[k]
    assert list(raw(out))[: len(raw(source))] != list(raw(source))  # the order is that of the file
    first, second = (tl.load(path).trace([1, 2])["blk.0.ffn_up"] for path in (out, source))
    assert not np.array_equal(first, second)


def test_what_would_not_load_is_refused(source, tmp_path):
    out = tmp_path / "out.gguf"
    for change in (
        {"remove": "blk.1.*"},
        {"rename": {"output_norm.weight": "other.weight"}},
        {"set": {"llama.block_count": 1}},
        {"set": {"llama.attention.head_count": ("STRING", "two")}},
        {"remove": "general.architecture"},
    ):
        with pytest.raises(ValueError, match=r"would not load: .*force=True writes it anyway"):
            tl.edit(source, out, **change)
        assert not out.exists()
        tl.edit(source, out, **change, force=True)
        with pytest.raises(tl.Error):
            tl.load(out)
        tl.edit(out, out, set={"general.name": "still damaged"})  # it did not load before
        out.unlink()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"set": {"test.small": 300}}, ValueError, "does not fit UINT8"),
        ({"set": {"test.small": "x"}}, TypeError, "does not fit UINT8"),
        ({"set": {"test.list": 3}}, TypeError, "expected a sequence"),
        ({"set": {"test.new": None}}, TypeError, "no type for NoneType"),
        ({"set": {"": 1}}, ValueError, "0 bytes"),
        ({"remove": "no.such.*"}, ValueError, "'no.such.\\*'"),
        ({"rename": {"nothing": "else"}}, ValueError, "'nothing'"),
        ({"rename": {"test.small": "test.list"}}, ValueError, "taken"),
        ({"rename": {"test.small": "x", "test.list": "x"}}, ValueError, "taken"),
    ],
)
def test_wrong_changes(source, tmp_path, change, error, message):
    before = source.read_bytes()
    with pytest.raises(error, match=message):
        tl.edit(source, source, **change)
    assert source.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_the_command(source, tmp_path, capsys):
    out = tmp_path / "out.gguf"
    call = ["edit", str(source), str(out), "--set", "general.name=A = b", "--set", "test.small=9"]
    call += ["--set", "test.list=[4, 5]", "--set", "test.typed:FLOAT64=2", "--set", "test.yes=true"]
    call += ["--set", "test.digits:STRING=12", "--remove", "test.text"]
    call += ["--rename", "test.nested=test.deep"]
    assert main(call) == 0
    metadata = tl.GGUF(out).metadata
    assert metadata["general.name"] == "A = b"
    assert (metadata["test.small"], metadata.type("test.small")) == (9, "UINT8")
    assert list(metadata["test.list"]) == [4, 5]
    assert (metadata["test.typed"], metadata["test.yes"], metadata["test.digits"]) == (
        2,
        True,
        "12",
    )
    assert "test.text" not in metadata
    assert "test.deep" in metadata
    assert str(out) in capsys.readouterr().out
    assert main(["edit", str(source), str(out), "--remove", "blk.0.*"]) == 2
    assert "would not load" in capsys.readouterr().err
    assert main(["edit", str(source), str(out), "--rename", "x"]) == 2
    assert main(["edit", str(source), str(out), "--remove", "blk.0.*", "--force"]) == 0
