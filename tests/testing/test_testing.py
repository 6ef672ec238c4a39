"""What an engine's author gets: random models, `assert_same`, and the plugin for pytest."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures
from tinyllm.architectures.table import ARCHITECTURES
from tinyllm.testing.recipes import float_bytes

SMALL = {"width": 64, "ffn": 96}


@pytest.mark.filterwarnings("ignore:the architecture")
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt2", "olmoe", "lfm2", "mamba2"])
def test_a_random_model_runs_and_has_no_zeros(name, tmp_path):
    model = tl.testing.random_model(name, path=tmp_path / "m.gguf")
    assert Path(model.path) == tmp_path / "m.gguf"
    assert np.isfinite(model.logits([1, 2, 3, 4])).all()
    for weight in model.weights.values():
        assert weight.numpy().any(), weight.name  # a forgotten weight would not show
    again = tl.testing.random_model(name)
    assert again.fingerprint == model.fingerprint
    assert again.path is None
    assert tl.testing.random_model(name, seed=1).fingerprint != model.fingerprint


def test_sizes_and_types(tmp_path):
    model = tl.testing.random_model("llama", 3, type="BF16", vocab=50, context=64)
    assert (model.config.layers, model.config.vocab_size, model.config.context_length) == (
        3,
        50,
        64,
    )
    assert model.weights["blk.2.attn_q.weight"].type == "BF16"
    base = tl.testing.random_model("llama", metadata={"llama.rope.freq_base": 500.0}, **SMALL)
    assert base.config.rope_base == 500.0
    with pytest.raises(ValueError, match="architecture is 'lama'; expected one of"):
        tl.testing.random_model("lama")
    with pytest.raises(ValueError, match="type is 'Q4_K'; expected F32, F16 or BF16"):
        tl.testing.random_model(type="Q4_K")
    with pytest.raises(ValueError, match="layers is 2; expected 3 for lfm2"):
        tl.testing.random_model("lfm2", 2)


def test_the_types_are_those_of_gguf():
    gguf = pytest.importorskip("gguf")
    values = np.random.default_rng(1).standard_normal((3, 64))
    values[0, 0] = 1e-41  # a float32 without leading one
    for kind in ("F16", "BF16"):
        theirs = gguf.quants.quantize(
            values.astype(np.float32), gguf.GGMLQuantizationType[kind]
        ).tobytes()
        assert float_bytes(np.random.default_rng(0), values, kind) == theirs


def test_every_architecture_has_a_recipe():
    """The tests of the rows run all of them; here, they only have to be made."""
    for name in ("llama", "deepseek2", "qwen35moe"):
        if name in ARCHITECTURES:
            metadata, tensors = architectures.random_architecture(name)
            assert metadata["general.architecture"] == name
            assert len(tensors) > 10


# ---- the assertion ----


def test_assert_same():
    model = tl.testing.random_model("llama", 2, **SMALL)
    ids = [3, 1, 4, 1, 5]
    t = model.trace(ids, "*")
    right = {f"layer{i}_v": t[f"blk.{i}.attn_v"].reshape(5, -1) for i in range(2)}
    tl.testing.assert_same(model, right, tokens=ids)
    tl.testing.assert_same(t, right)
    tl.testing.assert_same(t, t)
    wrong = {**right, "layer1_v": right["layer1_v"] * np.float32(0.9)}
    with pytest.raises(AssertionError) as caught:
        tl.testing.assert_same(model, wrong, tokens=ids)
    assert "blk.1.attn_v, token 0, head" in str(caught.value)
    assert "blk.1.attn_v, token 0, head" in str(caught.value).splitlines()[3]
    tl.testing.assert_same(model, wrong, "blk.0.*", tokens=ids)
    tl.testing.assert_same(model, wrong, tol=0.2, tokens=ids)
    tl.testing.assert_same(model, {"mine": t["blk.1.ffn_up"]}, dialect={"mine": "blk.1.ffn_up"},
                           tokens=ids)  # fmt: skip
    with pytest.raises(ValueError, match="no tap matches"):
        tl.testing.assert_same(model, wrong, "blk.7.*", tokens=ids)


def test_the_message_names_the_mistake():
    model = tl.load()
    t = model.trace("ROMEO: I am here", "*")
    engine = dict(t)
    for i in range(model.config.layers):
        keys = np.repeat(t[f"blk.{i}.attn_k_rope"], 2, axis=1)
        engine[f"blk.{i}.attn_mix"] = np.einsum("hts,shd->thd", t[f"blk.{i}.attn_probs"], keys)
    with pytest.raises(AssertionError, match="\nlikely keys_as_values: Attention sums up keys"):
        tl.testing.assert_same(model, engine, tokens=t.tokens)


def run_pytest(tmp_path, code):
    (tmp_path / "test_engine.py").write_text(textwrap.dedent(code))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tinyllm.testing.plugin", "-p",
               "no:cacheprovider", "test_engine.py"]  # fmt: skip
    return subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )


def test_the_plugin(tmp_path):
    done = run_pytest(
        tmp_path,
        """
        import numpy as np

        def engine(path, ids, factor=1):
            import tinyllm as tl
            return {"logits": np.float32(factor) * tl.load(path).logits(ids)}

        def test_right(tiny_model, assert_same):
            model = tiny_model("qwen2", layers=1, width=64, ffn=96)
            assert model is tiny_model("qwen2", layers=1, width=64, ffn=96)
            assert_same(model, engine(model.path, [1, 2, 3]), tokens=[1, 2, 3])

        def test_wrong(tiny_model, assert_same):
            model = tiny_model(layers=1, width=64, ffn=96)
            assert_same(model, engine(model.path, [1, 2, 3], 2), tokens=[1, 2, 3])
        """,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "output, token 0: error 1, cosine 1.0000" in done.stdout
    assert "assertions.py" not in done.stdout  # the message, not our frames


def test_the_plugin_is_light():
    """pytest loads it in every run of every project."""
    code = "import sys, tinyllm.testing.plugin; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
