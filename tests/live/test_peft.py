"""Adapters made by PEFT on tiny checkpoints: converted, they give what PEFT computes.

pip install peft transformers && pytest -m live tests/live/test_peft.py
"""

import numpy as np
import pytest

import tinyllm as tl
from testkit import data
from tinyllm.training.network import Network
from tinyllm.training.optimizer import Optimizer
from tinyllm.training.settings import LoraSettings

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


def test_gradients_and_a_step_are_those_of_pytorch(tmp_path):
    """Loss 1e-6, gradients by A and B 1e-5, and the weights after clipping and AdamW."""
    made("qwen2", tmp_path / "a", **PLAIN)
    path = data.path("hf", "qwen2")
    tl.convert(path, tmp_path / "m.gguf", "F32", vocab=False)
    tl.convert(tmp_path / "a", tmp_path / "a.gguf")
    base = tl.load(tmp_path / "m.gguf")
    network = Network((tmp_path / "a.gguf").read_bytes(), 1, (), base)
    rows = np.random.default_rng(0).integers(1, base.config.vocab_size, (3, 17)).astype(np.int32)
    ids, targets = np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])
    loss = network.add_gradients(ids, targets, 1 / ids.size) / ids.size

    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "a", is_trainable=True).double()
    logits = theirs(torch.tensor(ids.astype(np.int64))).logits
    expected = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), torch.tensor(targets.astype(np.int64)).reshape(-1)
    )
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    names = {"self_attn.q_proj": "attn_q", "self_attn.v_proj": "attn_v", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "self_attn.o_proj": "attn_output"}  # fmt: skip
    modules = dict(theirs.named_modules())
    pairs = {}
    for theirs_name, ours in names.items():
        for layer in range(base.config.layers):
            module = modules[f"base_model.model.model.layers.{layer}.{theirs_name}"]
            for part, linear in (("a", module.lora_A), ("b", module.lora_B)):
                name = f"blk.{layer}.{ours}.weight.lora_{part}"
                pairs[name] = linear["default"].weight
    for name, parameter in pairs.items():
        want = parameter.grad.numpy()
        assert np.linalg.norm(network.gradients[name] - want) < 1e-5 * np.linalg.norm(want), name

    settings = LoraSettings.of(base.config, rank=4, batch=3, steps=10, context=16, warmup=0)
    norm = Optimizer(network, settings).step(0)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)), rel=1e-5)
    torch.optim.AdamW(trained, 1e-3, (0.9, 0.99), 1e-8, 0.0).step()
    for name, parameter in pairs.items():
        want = parameter.detach().numpy()
        assert np.abs(network.weights[name] - want).max() < 1e-6, name
