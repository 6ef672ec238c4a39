"""Models as Hugging Face checkpoints: what comes back, what is refused, tokenizers."""

import json

import numpy as np
import pytest

import tinyllm as tl
from testkit import data, hf
from testkit.architectures import random_architecture
from testkit.models import random_llama, write
from tinyllm.cli.main import main
from tinyllm.exporting.table import ROWS
from tinyllm.exporting.tokenizers import tokenizer_files
from tinyllm.files.arrays import read_arrays

#: Keys that say the same in another way.
OTHER = ("general.name", "rope.freq_base_swa", "rope.scaling.type", "rope.scaling.attn_factor")

CHECKPOINTS = [name for name, architecture in hf.CHECKPOINTS.items() if architecture in ROWS]


def test_the_test_data_have_every_architecture():
    assert {hf.CHECKPOINTS[name] for name in CHECKPOINTS} == set(ROWS)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_converted_and_exported_and_converted_again(tmp_path, name):
    first, again = tmp_path / "a.gguf", tmp_path / "b.gguf"
    tl.convert(data.path("hf", name), first)
    tl.export(first, tmp_path / "out")
    tl.convert(tmp_path / "out", again)
    before, after = tl.GGUF(first), tl.GGUF(again)
    assert set(after.tensors) == set(before.tensors)
    for key, weight in before.tensors.items():
        assert after.tensors[key].type == weight.type
        assert after.tensors[key].raw.tobytes() == weight.raw.tobytes(), key
    for key in {*before.metadata, *after.metadata}:
        if not key.endswith(OTHER):
            np.testing.assert_array_equal(after.metadata[key], before.metadata[key])
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"][0].endswith(("ForCausalLM", "LMHeadModel"))
    # the names are those of the original, too
    mine, _ = read_arrays(tmp_path / "out" / "model.safetensors")
    theirs, _ = read_arrays(data.path("hf", name) / "model.safetensors")
    fused = {key for key in theirs if ".experts.gate_up_proj" in key or ".experts.down" in key}
    if not fused:
        assert set(mine) == {key for key in theirs if "rotary_emb" not in key}
        for key in mine:
            assert mine[key].shape == theirs[key].shape


def test_quantized_weights_in_shards(tmp_path):
    metadata, tensors = random_llama("Q4_K", layers=2, vocab=64, tied=True)
    model = tl.load(write(tmp_path / "m.gguf", metadata, tensors))
    tl.export(model, tmp_path / "out", max_shard_bytes=200_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    tl.convert(tmp_path / "out", tmp_path / "again.gguf")
    again = tl.load(tmp_path / "again.gguf")
    for name, weight in model.weights.items():
        np.testing.assert_array_equal(again.weights[name].numpy(), weight.numpy())
    with pytest.raises(FileExistsError, match="holds a checkpoint"):
        tl.export(model, tmp_path / "out")


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_types(tmp_path, dtype):
    tl.export("demo", tmp_path / "out", dtype)
    arrays, _ = read_arrays(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    values = tl.load().weights["blk.0.ffn_down.weight"].numpy()
    stored = arrays["model.layers.0.mlp.down_proj.weight"]
    error = {"F32": 0, "F16": 2**-11, "BF16": 2**-8}[dtype]
    assert np.abs(stored - values).max() <= error * np.abs(values).max()
    with pytest.raises(ValueError, match="dtype is 'Q8_0'"):
        tl.export("demo", tmp_path / "other", "Q8_0")


def test_what_is_refused(tmp_path):
    out = tmp_path / "out"
    path = write(tmp_path / "m.gguf", *random_architecture("mamba"))
    with pytest.raises(tl.UnsupportedError, match=r"architecture mamba cannot be exported"):
        tl.export(path, out)
    metadata, tensors = random_llama("F32", layers=2, vocab=64)
    metadata["llama.attention.scale"] = 0.5  # the config of a Llama has no such number
    with pytest.raises(tl.UnsupportedError, match=r"factor of blk.0.attn_scores would be"):
        tl.export(write(tmp_path / "m.gguf", metadata, tensors), out)
    metadata, tensors = random_llama("F32", layers=2, vocab=64)
    tensors["rope_freqs.weight"] = np.linspace(1, 3, 8, dtype=np.float32)
    head = metadata["llama.embedding_length"] // metadata["llama.attention.head_count"]
    tensors["rope_freqs.weight"] = np.linspace(1, 3, head // 2, dtype=np.float32)
    with pytest.raises(tl.UnsupportedError, match=r"rope_freqs.weight"):
        tl.export(write(tmp_path / "m.gguf", metadata, tensors), out)
    assert not out.exists()


TEXTS = [
    "ROMEO: What light through yonder window breaks?\n\n",
    "  two  spaces, 123 4567, don't WE'LL",
    "naïve e\u0301 日本語 🦙 \t\r\n",
    "",
    "a <|endoftext|> text",
]


def test_the_tokenizer_gives_the_same_ids(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tl.export("demo", tmp_path / "out")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    mine = tl.load().tokenizer
    for text in TEXTS:
        ids = [int(i) for i in mine.encode(text, parse_special=True)]
        assert theirs.encode(text).ids == ids
        assert theirs.decode(ids, skip_special_tokens=False) == mine.decode(ids)


@pytest.mark.parametrize("name", ["bert-bge", "ugm_en", "falcon", "phi-3", "llama-spm"])
def test_the_tokenizers_of_real_models(name):
    """WordPiece, Unigram, byte-level BPE, and BPE of SentencePiece."""
    tokenizers = pytest.importorskip("tokenizers")
    file = next(data.path("vocab").glob(f"*-{name}.gguf"))
    files, mine = tokenizer_files(tl.GGUF(file).metadata)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    for text in (
        *TEXTS,
        "  leading and trailing  ",
        "naïve cafe\u0301 привет 日本 🦙",
        "\ta\n\nb\r\n",
    ):
        assert theirs.encode(text).ids == list(mine.encode(text, parse_special=True)), text


@pytest.mark.parametrize("prefix", [True, False])
def test_a_tokenizer_of_sentencepiece(tmp_path, prefix):
    tokenizers = pytest.importorskip("tokenizers")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    words = ["▁", "a", "b", "c", "▁a", "ab", "▁ab", "abc", "▁▁", "bc", "cab"]
    metadata, tensors = random_llama("F32", layers=1, vocab=len(pieces) + len(words))
    metadata |= {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*pieces, *words],
        "tokenizer.ggml.scores": np.float32([0] * len(pieces) + [-i for i in range(len(words))]),
        "tokenizer.ggml.token_type": np.int32([2, 3, 3] + [6] * 256 + [1] * len(words)),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": prefix,
        "tokenizer.chat_template": "{{ messages }}",
    }
    model = tl.load(write(tmp_path / "m.gguf", metadata, tensors))
    tl.export(model, tmp_path / "out")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    for text in ("abc cab  a", "ä abab", "bcabc", "a</s>b"):
        assert theirs.encode(text).ids == [
            int(i) for i in model.tokenizer.encode(text, parse_special=True)
        ]
    options = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert options["chat_template"] == "{{ messages }}"
    tl.convert(tmp_path / "out", tmp_path / "again.gguf")
    again = tl.load(tmp_path / "again.gguf")
    for text in ("abc cab  a", "ä abab", "bcabc"):
        np.testing.assert_array_equal(again.tokenizer.encode(text), model.tokenizer.encode(text))


def test_the_command(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", "demo", str(out), "--dtype", "F16"]) == 0
    assert str(out) in capsys.readouterr().out
    assert main(["export", "demo", str(out)]) == 2
    assert "holds a checkpoint" in capsys.readouterr().err
