"""Inner values against Hugging Face, live, through forward hooks.

    pip install torch transformers && pytest -m live tests/live/test_hooks.py

Small checkpoints with golden values come from TINYLLM_TEST_DATA.
"""

import numpy as np
import pytest

import tinyllm as tl
from testkit import data, hf, models
from tinyllm.architectures.table import find

pytestmark = pytest.mark.live

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]


def split(array, heads):
    """(1, T, heads * size) -> (T, heads, size)."""
    return array[0].reshape(array.shape[1], heads, -1)


def pairs(array, heads):
    """Reorder q or k from Hugging Face's halves to the pairs of GGUF's rows."""
    array = split(array, heads)
    t, _, size = array.shape
    return array.reshape(t, heads, 2, size // 2).swapaxes(2, 3).reshape(t, heads, size)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", hf.LLAMAS)
def test_the_taps_are_those_of_hugging_faces_modules(name, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    directory = data.path("hf", name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    path = tmp_path / "m.gguf"
    tl.write_gguf(path, *hf.load_checkpoint(directory))
    model = tl.load(path)
    by_head = pairs if find(model.config.architecture).rope == "pairs" else split
    seen = {}

    def keep(name):
        def hook(module, inputs, output):
            if inputs:
                seen[f"{name}.in"] = inputs[0].detach().numpy()
            outputs = output if isinstance(output, tuple) else (output,)
            for i, value in enumerate(outputs):
                if torch.is_tensor(value):
                    seen[f"{name}.out{i or ''}"] = value.detach().numpy()

        return hook

    for module_name, module in theirs.named_modules():
        module.register_forward_hook(keep(module_name))
    with torch.no_grad():
        theirs(torch.tensor([IDS]), use_cache=False)
    t = model.trace(IDS, "*")
    want = {
        "token_embd": seen["model.embed_tokens.out"][0],
        "output_norm": seen["model.norm.out"][0],
        "output": seen["lm_head.out"][0],
    }
    for i in range(model.config.layers):
        at, ours = f"model.layers.{i}", f"blk.{i}"
        h, k = model.config.layer("heads", i), model.config.layer("kv_heads", i)
        q, keys, values = (seen[f"{at}.self_attn.{kind}_proj.out"] for kind in "qkv")
        gate, up = (seen[f"{at}.mlp.{kind}_proj.out"] for kind in ("gate", "up"))
        want |= {
            f"{ours}.resid_pre": seen[f"{at}.input_layernorm.in"][0],
            f"{ours}.attn_norm": seen[f"{at}.input_layernorm.out"][0],
            f"{ours}.attn_q": by_head(q, h),
            f"{ours}.attn_k": by_head(keys, k),
            f"{ours}.attn_v": split(values, k),
            f"{ours}.attn_probs": seen[f"{at}.self_attn.out1"][0],
            f"{ours}.attn_mix": split(seen[f"{at}.self_attn.o_proj.in"], h),
            f"{ours}.attn_output": seen[f"{at}.self_attn.o_proj.out"][0],
            f"{ours}.resid_mid": seen[f"{at}.post_attention_layernorm.in"][0],
            f"{ours}.ffn_norm": seen[f"{at}.post_attention_layernorm.out"][0],
            f"{ours}.ffn_gate": gate[0],
            f"{ours}.ffn_up": up[0],
            f"{ours}.ffn_act": seen[f"{at}.mlp.down_proj.in"][0],
            f"{ours}.ffn_down": seen[f"{at}.mlp.down_proj.out"][0],
            f"{ours}.resid_post": seen[f"{at}.out"][0],
        }
    for tap, array in want.items():
        assert models.normwise_error(t[tap], np.asarray(array, np.float64)) < 3e-6, tap
