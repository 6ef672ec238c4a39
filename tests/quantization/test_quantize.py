"""Files with smaller weights."""

import os
import warnings

import gguf
import numpy as np
import pytest

import tinyllm as tl
from testkit.architectures import random_architecture
from testkit.models import random_llama, write
from tinyllm import _core
from tinyllm.cli.main import main


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    metadata, tensors = random_llama("F16", layers=2, vocab=64, tied=True)
    metadata["test.kept"] = ("ARRAY[INT16]", [1, 2])
    metadata["split.count"] = ("UINT16", 1)
    return write(tmp_path_factory.mktemp("quantize") / "m.gguf", metadata, tensors)


def test_a_file_that_gguf_reads(source, tmp_path):
    out = tmp_path / "out.gguf"
    tl.quantize(source, out, "q4_k_m")
    before, after = tl.GGUF(source), tl.GGUF(out)
    assert list(after.tensors) == list(before.tensors)
    changed = {"general.file_type": 15, "general.quantization_version": 2}
    kept = {key for key in before.metadata if key != "split.count"}
    assert set(after.metadata) == kept | set(changed)
    assert after.metadata.type("test.kept") == "ARRAY[INT16]"
    assert {key: after.metadata[key] for key in changed} == changed
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(out).tensors}
    for name, weight in after.tensors.items():
        expected = before.tensors[name].numpy()
        if len(weight.shape) == 1:
            assert weight.raw.tobytes() == before.tensors[name].raw.tobytes()
            continue
        assert weight.type in ("Q4_K", "Q6_K")
        assert np.linalg.norm(weight.numpy() - expected) < 0.09 * np.linalg.norm(expected)
        packed = _core.pack(weight.type, expected)
        np.testing.assert_array_equal(weight.raw.reshape(-1), packed)
        read = gguf.quants.dequantize(theirs[name].data, theirs[name].tensor_type)
        np.testing.assert_array_equal(read.reshape(weight.shape), weight.numpy())


def test_a_loaded_model_gives_the_same_file(source, tmp_path):
    tl.quantize(source, tmp_path / "a.gguf", "Q3_K_S")
    tl.quantize(tl.load(source), tmp_path / "b.gguf", "Q3_K_S")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_importance(source, tmp_path):
    model = tl.load(source)
    matrix = tl.imatrix(model, np.arange(60))
    matrix.datasets = ["some text"]
    matrix.save(tmp_path / "m.gguf")
    tl.quantize(source, tmp_path / "plain.gguf", "Q2_K")
    tl.quantize(source, tmp_path / "a.gguf", "Q2_K", imatrix=tmp_path / "m.gguf")
    file = tl.GGUF(tmp_path / "a.gguf")
    assert file.metadata["quantize.imatrix.file"] == "m.gguf"
    assert file.metadata["quantize.imatrix.dataset"] == "some text"
    assert file.metadata["quantize.imatrix.entries_count"] == 14
    assert file.metadata["quantize.imatrix.chunks_count"] == 1
    name = "blk.0.ffn_down.weight"
    weight = matrix.importance(name, 1, 512)[0]
    expected = model.weights[name].numpy()

    def error(path):
        return float(
            ((tl.GGUF(tmp_path / path).tensors[name].numpy() - expected) ** 2 @ weight).sum()
        )

    assert error("a.gguf") < 0.99 * error("plain.gguf")
    embedding = "token_embd.weight"  # which has no importance
    plain = tl.GGUF(tmp_path / "plain.gguf").tensors[embedding].raw
    np.testing.assert_array_equal(file.tensors[embedding].raw, plain)


def test_each_expert_has_its_importance(tmp_path):
    path = tmp_path / "m.gguf"
    tl.write_gguf(path, *random_architecture("qwen3moe", "F16", vocab=64))
    name = "blk.1.ffn_down_exps.weight"
    sums = np.random.default_rng(0).lognormal(0, 1, (8, 256))
    counts = np.arange(8.0)
    matrix = tl.Imatrix({name: sums.reshape(-1)}, {name: counts})
    tl.quantize(path, tmp_path / "out.gguf", "Q4_K_M", imatrix=matrix)
    weight = tl.GGUF(tmp_path / "out.gguf").tensors[name]
    values = tl.GGUF(path).tensors[name].numpy()
    for expert in range(8):
        relative = (sums[expert] / sums[expert].mean()).astype(np.float32)
        expected = _core.pack(weight.type, values[expert], relative if expert else None)
        np.testing.assert_array_equal(weight.raw[expert].reshape(-1), expected)


def test_types_by_patterns(source, tmp_path, capsys):
    out = tmp_path / "out.gguf"
    tl.quantize(source, out, "Q8_0", types={"blk.0.*": "MXFP4", "blk.*.ffn_up.weight": "Q2_K"})
    types = {name: weight.type for name, weight in tl.GGUF(out).tensors.items()}
    assert types["blk.0.ffn_up.weight"] == types["blk.0.attn_q.weight"] == "MXFP4"
    assert types["blk.1.ffn_up.weight"] == "Q2_K"
    assert types["blk.1.ffn_down.weight"] == types["token_embd.weight"] == "Q8_0"
    assert types["blk.0.attn_norm.weight"] == "F32"
    again = tmp_path / "again.gguf"
    options = ["--tensor-type", "blk.0.*=MXFP4", "--tensor-type", "blk.*.ffn_up.weight=Q2_K"]
    assert main(["quantize", str(source), str(again), "Q8_0", *options]) == 0
    assert capsys.readouterr().out == f"{again}: {os.path.getsize(again):,} bytes\n"
    assert again.read_bytes() == out.read_bytes()


def test_the_command_imatrix(tmp_path, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "m.dat"
    text.write_text("But soft, what light through yonder window breaks?")
    assert main(["imatrix", str(text), str(out), "--window", "8"]) == 0
    assert "28 tensors" in capsys.readouterr().out
    small = tmp_path / "small.gguf"
    assert main(["quantize", "demo", str(small), "Q2_K_S", "--imatrix", str(out)]) == 0
    assert tl.GGUF(small).metadata["quantize.imatrix.dataset"] == str(text)
    assert np.isfinite(tl.load(small).logits("But soft")).all()


def test_quantized_weights_cause_a_warning(tmp_path):
    tl.quantize("demo", tmp_path / "a.gguf", "Q4_0")  # from Q8_0, which is near enough
    with pytest.warns(UserWarning, match=r"quantized already, .* as Q4_0: their errors add up"):
        tl.quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q2_K")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tl.quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q4_0")


def test_no_file_after_an_error(source, tmp_path):
    metadata, tensors = random_llama("F32", layers=1, vocab=64)
    values = tensors["blk.0.ffn_up.weight"].numpy().copy()
    values[5, 7] = np.inf
    tensors["blk.0.ffn_up.weight"] = values
    tl.write_gguf(tmp_path / "m.gguf", metadata, tensors)
    with pytest.raises(
        ValueError, match=r"blk\.0\.ffn_up\.weight has the value inf in row 5, column 7"
    ):
        tl.quantize(tmp_path / "m.gguf", tmp_path / "out.gguf")
    values[5, 7] = 1e6
    tl.write_gguf(tmp_path / "m.gguf", metadata, tensors)
    with pytest.raises(ValueError, match=r"1e\+06 in row 5, .* at most 65504 for Q4_K"):
        tl.quantize(tmp_path / "m.gguf", tmp_path / "out.gguf", "Q4_K_S")
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_wrong_arguments(source, tmp_path):
    out = tmp_path / "out.gguf"
    with pytest.raises(ValueError, match="type is 'Q4_X'; expected one of F32, F16"):
        tl.quantize(source, out, "Q4_X")
    with pytest.raises(ValueError, match=r"types\['\*'\] is 'Q8_K'; expected one of"):
        tl.quantize(source, out, types={"*": "Q8_K"})
    with pytest.raises(ValueError, match=r"no tensor has a name like 'blk\.7"):
        tl.quantize(source, out, types={"blk.7.*": "Q8_0"})
    with pytest.raises(ValueError, match="needs an imatrix"):
        tl.quantize(source, out, "Q2_K_S")
    with pytest.raises(
        ValueError, match=r"blk\..* would be IQ2_XXS in type 'IQ2_XXS', which needs"
    ):
        tl.quantize(source, out, "IQ2_XXS")
    with pytest.raises(ValueError, match=r"ffn_up.weight would be IQ3_XXS in type 'Q8_0'"):
        tl.quantize(source, out, "Q8_0", types={"*.ffn_up.weight": "IQ3_XXS"})
    with pytest.raises(FileNotFoundError):
        tl.quantize(tmp_path / "no.gguf", out)
    assert not out.exists()
