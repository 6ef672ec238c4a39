"""`merge_adapter`: the merged model computes what the model with its adapters does."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import adapters, architectures
from tinyllm.cli.main import main

IDS = [5, 9, 3, 9, 1]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama", "F32"), ("llama", "Q8_0"), ("gpt2", "F32"), ("qwen2moe", "F32"), ("gemma2", "F32")],
)
def test_the_logits_are_those_of_the_adapters(name, kind, tmp_path):
    model = architectures.random_model(tmp_path, name, kind)
    kinds = adapters.targets(model)
    names = list(kinds)
    files = []
    for i, size in enumerate((0.1, 0.05)):
        pairs = adapters.random_adapter(model, names, size=size, kinds=kinds, seed=i)
        files.append((adapters.write(tmp_path / f"{i}.gguf", pairs, architecture=name), 1 - i / 4))
    expected = model.with_adapters(files).logits(IDS)
    out = tmp_path / "merged.gguf"
    tl.merge_adapter(model.path, files, out, type="F32")
    merged = tl.load(out)
    assert not merged.adapters
    scale = np.abs(expected).max()
    np.testing.assert_allclose(merged.logits(IDS), expected, atol=2e-5 * scale)
    assert np.abs(model.logits(IDS) - expected).max() > 1e-2 * scale


def test_types_and_the_command(tmp_path):
    model = architectures.random_model(tmp_path, "llama", "Q8_0")
    name = "blk.0.attn_q.weight"
    pairs = adapters.random_adapter(model, [name], size=0.1)
    file = adapters.write(tmp_path / "a.gguf", pairs, architecture="llama")
    out = tmp_path / "merged.gguf"
    main(["merge", model.path, str(out), "--adapter", f"{file}:0.5"])
    weights = tl.load(out).weights
    a, b = pairs[name]
    factor = tl.Adapter(file).factor(name, 0.5)
    expected = model.weights[name].numpy(dtype="float64") + factor * (b.astype(float) @ a)
    assert weights[name].type == "F16"
    assert np.array_equal(weights[name].numpy(), expected.astype(np.float32).astype(np.float16))
    assert {w.type for n, w in weights.items() if n != name} == {
        w.type for n, w in model.weights.items() if n != name
    }
    with pytest.raises(ValueError, match="adapters is empty"):
        tl.merge_adapter(model.path, [], out)
    with pytest.raises(ValueError, match="type is 'Q9'"):
        tl.merge_adapter(model.path, file, out, type="Q9")
