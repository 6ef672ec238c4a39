"""Checkpoints in MXFP4 and FP8: one tensor in place of values and scales."""

import json
import shutil

import numpy as np
import pytest

import tinyllm as tl
from testkit import data, hf
from tinyllm.conversion.huggingface import read_checkpoint
from tinyllm.files.arrays import StoredArray

gguf = pytest.importorskip("gguf")


def write(path, tensors, dtypes):
    """Write a safetensors file whose bytes have the dtypes that are given, by the specification."""
    header, at, parts = {}, 0, []
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        dtype = dtypes.get(name) or {"uint8": "U8", "float32": "F32"}[array.dtype.name]
        span = [at, at + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": span}
        at += len(raw)
        parts.append(raw)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def copy(name, tmp_path, tensors, dtypes, change):
    folder = tmp_path / name
    shutil.copytree(data.path("hf", name), folder)
    write(folder / "model.safetensors", tensors, dtypes)
    hf.rewrite(folder, change)
    return folder


# ---- formats of 8 bits ----


def test_float8_is_that_of_its_definition():
    byte = np.arange(256, dtype=np.uint8)
    e4m3, e5m2, e8m0 = (
        StoredArray(name, (256,), byte).read() for name in ("F8_E4M3", "F8_E5M2", "F8_E8M0")
    )
    some = {0: 0, 1: 2**-9, 7: 7 * 2**-9, 8: 2**-6, 9: 9 * 2**-9, 0x38: 1, 0x39: 1.125, 0x7E: 448}
    for bits, value in some.items():
        assert (e4m3[bits], e4m3[bits + 128]) == (value, -value)
    assert np.flatnonzero(np.isnan(e4m3)).tolist() == [0x7F, 0xFF]
    assert (np.diff(e4m3[:127]) > 0).all()
    some = {1: 2**-16, 4: 2**-14, 0x3C: 1, 0x3D: 1.25, 0x7B: 57344, 0x7C: np.inf}
    for bits, value in some.items():
        assert (e5m2[bits], e5m2[bits + 128]) == (value, -value)
    assert np.isnan(e5m2).sum() == 6
    assert [e8m0[i] for i in (0, 127, 130, 254)] == [2.0**-127, 1, 8, 2.0**127]
    assert np.flatnonzero(np.isnan(e8m0)).tolist() == [255]


# ---- MXFP4 ----

FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]


def mxfp4(tmp_path, change=lambda values: None):
    """A gpt-oss whose sizes are multiples of 32, with random blocks; and its experts' values."""
    rng = np.random.default_rng(0)
    size = {80: 64, 112: 96, 224: 192}
    tensors, values = {}, {}
    for name, array in hf.sources("gptoss").items():
        shape = tuple(size.get(n, n) for n in array.shape)
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, columns, rows = shape
            blocks = rng.integers(0, 256, (experts, rows, columns // 32, 16), np.uint8)
            scales = rng.integers(118, 123, blocks.shape[:-1], np.uint8)
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
            value = np.empty((experts, rows, columns // 32, 32))
            for i in range(16):
                value[..., 2 * i] = np.take(FP4, blocks[..., i] % 16)
                value[..., 2 * i + 1] = np.take(FP4, blocks[..., i] // 16)
            value *= 2.0 ** (scales[..., np.newaxis].astype(float) - 127)
            values[name] = value.reshape(experts, rows, columns).astype(np.float32)
        else:
            tensors[name] = np.ascontiguousarray(array[tuple(map(slice, shape))])
    change(tensors)

    def config(values):
        values.update(hidden_size=64, intermediate_size=96)
        values["quantization_config"] = {"quant_method": "mxfp4"}

    return copy("gptoss", tmp_path, tensors, {}, config), values


def test_mxfp4_keeps_its_values(tmp_path):
    folder, values = mxfp4(tmp_path)
    out = tmp_path / "m.gguf"
    tl.convert(folder, out)
    tensors = {t.name: t for t in gguf.GGUFReader(out).tensors}
    _, plain = read_checkpoint(folder)
    for layer in range(3):
        theirs = f"model.layers.{layer}.mlp.experts."
        both, down = values[f"{theirs}gate_up_proj"], values[f"{theirs}down_proj"]
        parts = {"gate": both[:, 0::2], "up": both[:, 1::2], "down": down}
        for part, want in parts.items():
            name = f"blk.{layer}.ffn_{part}_exps.weight"
            tensor = tensors[name]
            assert tensor.tensor_type.name == "MXFP4"
            got = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(got, want)
            np.testing.assert_array_equal(plain[name], want)
    model = tl.load(out)
    assert model.metadata["general.file_type"] == 38
    tl.convert(folder, tmp_path / "f32.gguf", "F32")
    exact = tl.load(tmp_path / "f32.gguf")
    name = "blk.1.ffn_up_exps.weight"
    assert exact.weights[name].type == "F32"
    np.testing.assert_array_equal(exact.weights[name].numpy(), model.weights[name].numpy())


def test_mxfp4_of_wrong_shape(tmp_path):
    name = "model.layers.1.mlp.experts.down_proj_scales"

    def change(tensors):
        tensors[name] = tensors[name][:, :-1]

    with pytest.raises(tl.FormatError, match=r"layers\.1\.mlp\.experts\.down_proj_blocks is of"):
        read_checkpoint(mxfp4(tmp_path, change)[0])


def test_mxfp4_without_scales_is_unknown(tmp_path):
    folder, _ = mxfp4(tmp_path, lambda t: t.pop("model.layers.1.mlp.experts.down_proj_scales"))
    with pytest.raises(tl.UnsupportedError, match=r"down_proj_blocks.*quantized with mxfp4"):
        read_checkpoint(folder)


# ---- FP8 ----


def fp8(tmp_path, suffix, scales_of, config=None, extra=None):
    """A qwen3 with random bytes in FP8 as layers' matrices; and what they are worth."""
    rng = np.random.default_rng(1)
    tensors, dtypes, worth = {}, {}, {}
    for name, array in hf.sources("qwen3").items():
        tensors[name] = array
        if "_proj" not in name:
            continue
        raw = rng.integers(0, 127, array.shape, np.uint8) | rng.choice([0, 128], array.shape)
        raw = raw.astype(np.uint8)
        scale, full = scales_of(rng, array.shape)
        tensors[name], dtypes[name] = raw, "F8_E4M3"
        tensors[name + suffix] = np.float32(scale)
        worth[name] = StoredArray("F8_E4M3", raw.shape, raw.reshape(-1)).read() * full
        for ending in extra or ():
            tensors[name.removesuffix(".weight") + ending] = np.float32([1])
    config = {"quant_method": "fp8", **(config or {})}
    change = lambda values: values.update(quantization_config=config)  # noqa: E731
    return copy("qwen3", tmp_path, tensors, dtypes, change), worth


def by_block(rows, columns):
    def scales(rng, shape):
        scale = rng.random((-(-shape[0] // rows), -(-shape[1] // columns)), np.float32) * 1e-3
        full = np.empty(shape, np.float32)
        for i, j in np.ndindex(shape):
            full[i, j] = scale[i // rows, j // columns]
        return scale, full

    return scales


def by_row(rng, shape):
    scale = rng.random((shape[0], 1), np.float32)
    return scale, np.broadcast_to(scale, shape)


def by_row_without_axis(rng, shape):
    scale, full = by_row(rng, shape)
    return scale[:, 0], full


def of_all(rng, shape):
    return [0.25], np.full(shape, 0.25, np.float32)


@pytest.mark.parametrize(
    ("suffix", "scales", "config", "extra"),
    [
        ("_scale_inv", by_block(128, 128), {}, ()),
        ("_scale_inv", by_block(48, 32), {"weight_block_size": [48, 32]}, ()),
        ("_scale_inv", of_all, {"weight_block_size": None}, (".activation_scale",)),
        ("_scale", by_row, {"quant_method": "compressed-tensors"}, (".input_scale",)),
        ("_scale", by_row_without_axis, {}, ()),
    ],
)
def test_fp8_is_multiplied_by_its_scales(suffix, scales, config, extra, tmp_path):
    folder, worth = fp8(tmp_path, suffix, scales, config, extra)
    _, tensors = read_checkpoint(folder)
    ours = {"self_attn.q": "attn_q", "self_attn.o": "attn_output", "mlp.down": "ffn_down"}
    for theirs, name in ours.items():
        want = worth[f"model.layers.1.{theirs}_proj.weight"]
        np.testing.assert_array_equal(tensors[f"blk.1.{name}.weight"], want)
    tl.convert(folder, tmp_path / "m.gguf")
    weights = tl.load(tmp_path / "m.gguf").weights
    assert weights["blk.1.ffn_down.weight"].type == "BF16"
    assert len(weights) == len(tensors)


def test_scales_that_do_not_fit(tmp_path):
    folder, _ = fp8(tmp_path, "_scale_inv", by_block(16, 16), {"weight_block_size": [32, 32]})
    _, tensors = read_checkpoint(folder)
    with pytest.raises(tl.FormatError, match=r"scales of .*q_proj\.weight.* 32 x 32"):
        tensors["blk.0.attn_q.weight"]


@pytest.mark.parametrize("size", [128, [128], [0, 128], ["a", "b"], [True, 128]])
def test_a_wrong_block_size(size, tmp_path):
    folder, _ = fp8(tmp_path, "_scale_inv", of_all, {"weight_block_size": size})
    with pytest.raises(tl.FormatError, match="weight_block_size"):
        read_checkpoint(folder)


def test_other_quantizations_are_refused(tmp_path):
    tensors = hf.sources("qwen3")
    name = "model.layers.0.mlp.up_proj"
    del tensors[f"{name}.weight"]
    tensors[f"{name}.qweight"] = np.zeros((8, 8), np.uint8)
    change = lambda values: values.update(quantization_config={"quant_method": "gptq"})  # noqa: E731
    folder = copy("qwen3", tmp_path, tensors, {}, change)
    with pytest.raises(tl.UnsupportedError, match=r"mlp\.up_proj\.qweight.*quantized with gptq"):
        read_checkpoint(folder)
