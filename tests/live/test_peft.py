"""Adapters made by PEFT on tiny checkpoints: converted, they give what PEFT computes.

pip install peft transformers && pytest -m live tests/live/test_peft.py
"""

import numpy as np
import pytest

import tinyllm as tl
from testkit import data

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

#: Those whose experts Hugging Face does not compute in float64.
FLOAT32 = ("qwen2moe",)

PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


def made(name, folder, **settings):
    """Make an adapter; returns the ids, and the logits without and with it."""
    path = data.path("hf", name)
    dtype = torch.float32 if name in FLOAT32 else torch.float64
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation="eager"
    ).eval()
    torch.manual_seed(0)
    ids = np.load(path.with_suffix(".npz"))["ids"].reshape(-1)[:20]
    before = model(torch.tensor(ids)[None]).logits[0].detach().numpy()
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
    for key, parameter in adapted.named_parameters():
        if "lora_" in key:
            parameter.data = (torch.randn(parameter.shape) * 0.1).float().to(dtype)
    after = adapted(torch.tensor(ids)[None]).logits[0].detach().numpy()
    adapted.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    tensors = safetensors().load_file(file)
    safetensors().save_file({key: value.float() for key, value in tensors.items()}, file)
    return ids, before, after


def safetensors():
    import safetensors.torch

    return safetensors.torch


def check(name, tmp_path, **settings):
    ids, before, after = made(name, tmp_path / "adapter", **settings)
    tl.convert(data.path("hf", name), tmp_path / "m.gguf", "F32", vocab=False)
    tl.convert(tmp_path / "adapter", tmp_path / "a.gguf")
    model = tl.load(tmp_path / "m.gguf", adapters=[tmp_path / "a.gguf"])
    got = model.logits(ids)
    assert np.linalg.norm(got - after) < 1e-5 * np.linalg.norm(after)
    assert np.linalg.norm(before - after) > 0.02 * np.linalg.norm(after)
    return model


@pytest.mark.parametrize(
    "name",
    ["llama", "gpt2", "qwen2", "gemma3", "phi3", "mistral", "gptneox", "falcon", "bloom", "olmo2",
     "lfm2", "starcoder2", "glm4", "cohere", "granite", "stablelm", *FLOAT32],
)  # fmt: skip
def test_all_linear_modules(name, tmp_path):
    check(name, tmp_path, **PLAIN)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}},
        {"alpha_pattern": {"v_proj": 3, "down_proj": 20}},
        {"use_rslora": True, "rank_pattern": {"o_proj": 9}, "alpha_pattern": {"o_proj": 5}},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"init_lora_weights": "gaussian", "layers_to_transform": [1], "target_modules": ["v_proj"]},
    ],
    ids=lambda settings: " ".join(settings),
)
@pytest.mark.parametrize("name", ["llama", "llama_bias_tied"])
def test_settings(name, settings, tmp_path):
    check(name, tmp_path, **{**PLAIN, **settings})


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "changes biases"),
        ({"lora_bias": True}, "biases of B"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"init_lora_weights": "pissa"}, "changes the model's own weights"),
        ({"trainable_token_indices": [1, 2]}, "embeddings of single tokens"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layers that are used several times"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_refusals(settings, text, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        data.path("hf", "llama_bias_tied"), dtype=torch.float32
    )
    targets = {**PLAIN, "target_modules": ["q_proj"], **settings}
    peft.get_peft_model(model, peft.LoraConfig(**targets)).save_pretrained(tmp_path / "a")
    with pytest.raises(tl.UnsupportedError, match=text):
        tl.convert(tmp_path / "a", tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()
