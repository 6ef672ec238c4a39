"""Gradients, against PyTorch's autograd on the same weights.

pip install torch transformers gguf accelerate && pytest -m live tests/live/test_gradients.py
"""

import numpy as np
import pytest

import tinyllm as tl
from testkit import real

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.live

SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SMALL, head_dim=16, query_pre_attn_scalar=16, sliding_window=5
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=96, n_embd=64, n_layer=3, n_head=4, n_positions=64
    ),
}


def random_pair(name, folder):
    """A random model in Hugging Face's format, and the same one as GGUF."""
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs.save_pretrained(folder)
    tl.convert(folder, folder / "model.gguf", "F32", vocab=False)
    return theirs, tl.load(folder / "model.gguf")


def streams(theirs, ids):
    """The loss, and the residual streams of a run, whose gradients are kept."""
    kept = []
    inner = theirs.model if hasattr(theirs, "model") else theirs.transformer
    blocks = inner.layers if hasattr(inner, "layers") else inner.h

    def keep(module, arguments, output):
        found = output[0] if isinstance(output, tuple) else output
        found.retain_grad()
        kept.append(found)

    hooks = [block.register_forward_hook(keep) for block in blocks]
    logits = theirs(input_ids=torch.tensor(ids[np.newaxis].astype(np.int64))).logits[0]
    for hook in hooks:
        hook.remove()
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:].astype(np.int64)))
    loss.backward()
    return loss.item(), [each.grad.reshape(len(ids), -1).numpy() for each in kept]


def compare(theirs, model, ids, tolerance):
    loss, expected = streams(theirs, ids)
    g = model.gradients(ids, of=tl.nll(), wrt="blk.*.resid_post")
    assert g.value == pytest.approx(loss, rel=1e-5)
    for name, gradient in zip(g, expected, strict=True):
        error = np.linalg.norm(g[name] - gradient) / np.linalg.norm(gradient)
        assert error < tolerance, (name, error)


@pytest.mark.parametrize("name", CONFIGS)
def test_random_models(name, tmp_path):
    theirs, model = random_pair(name, tmp_path)
    ids = np.random.default_rng(0).integers(0, 96, 20).astype(np.int32)
    compare(theirs, model, ids, 2e-5)


@pytest.mark.real
def test_smollm2():
    path = real.path(f"{real.GGUFS[0]}.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    model = tl.load(path)
    ids = np.asarray(model.tokenizer.encode("The capital of France is Paris, and"), np.int32)
    compare(theirs, model, ids, 1e-4)
