"""Training, against PyTorch and llama.cpp.

pip install torch transformers llama-cpp-python && pytest -m live tests/live/test_training.py
"""

from pathlib import Path

import numpy as np
import pytest

import tinyllm as tl
from tinyllm import _core
from tinyllm.files.model_file import DEMO
from tinyllm.training.network import Network

pytestmark = pytest.mark.live

TEXT = "".join("abcdefgh"[i % 8] + "@#$%^"[i % 5] * 2 for i in range(2000))


@pytest.mark.parametrize(
    ("positions", "tokenizer"), [("rope", "char"), ("learned", "byte"), ("none", "bpe:270")]
)
def test_llama_cpp_runs_what_is_trained(positions, tokenizer, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    path = tmp_path / "model.gguf"
    run = tl.train(
        TEXT,
        layers=2,
        width=48,
        heads=4,
        context=64,
        batch=16,
        steps=60,
        positions=positions,
        tokenizer=tokenizer,
        out=path,
        progress=False,
    )
    theirs = llama_cpp.Llama(str(path), n_ctx=64, verbose=False, n_threads=1)
    prompt = "c%%d^^e@@f"
    found = theirs.create_completion(prompt, max_tokens=20, temperature=0.0)
    ids = theirs.tokenize(prompt.encode(), add_bos=False)
    assert ids == run.model.tokenizer.encode(prompt)
    ours = run.model.generate(prompt, max_tokens=20, temperature=0)
    assert ours.text == found["choices"][0]["text"]


@pytest.mark.parametrize("prompt", ["ROMEO:\n", "My lord, farewell.\n\n"])
def test_llama_cpp_writes_what_the_demo_model_writes(prompt):
    llama_cpp = pytest.importorskip("llama_cpp")
    theirs = llama_cpp.Llama(str(DEMO), n_ctx=512, verbose=False, n_threads=1)
    found = theirs.create_completion(prompt, max_tokens=60, temperature=0.0)
    model = tl.load()
    encode = model.tokenizer.encode
    ids = encode(prompt + found["choices"][0]["text"])
    ours = encode(prompt + model.generate(prompt, max_tokens=60, temperature=0).text)
    if ours == ids:
        return
    # llama.cpp rounds activations to eight bits, which can turn over a near tie
    first = next(i for i, (mine, other) in enumerate(zip(ours, ids, strict=False)) if mine != other)
    logits = model.logits(ids[:first])[-1]
    assert first > len(encode(prompt)) + 20
    assert logits[ours[first]] - logits[ids[first]] < 0.02


def hugging_face_loss(theirs, ids):
    torch = pytest.importorskip("torch")
    tokens = torch.tensor(ids.astype(np.int64))
    logits = theirs(input_ids=tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1)
    )
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_derivatives_by_weights(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    config = {
        "llama": lambda: transformers.LlamaConfig(
            vocab_size=96,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64
        ),
    }[name]()
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    tl.convert(tmp_path, tmp_path / "model.gguf", "F32", vocab=False)
    network = Network(Path(tmp_path / "model.gguf").read_bytes(), threads=2)
    ids = np.random.default_rng(0).integers(0, 96, (3, 21)).astype(np.int32)
    expected = hugging_face_loss(theirs, ids)
    inputs, targets = (np.ascontiguousarray(x) for x in (ids[:, :-1], ids[:, 1:]))
    loss = network.add_gradients(inputs, targets, 1 / inputs.size) / inputs.size
    assert loss == pytest.approx(expected, rel=1e-6)
    # a converted model has other names and layouts: the gradients are converted as weights are
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    theirs.save_pretrained(tmp_path)
    tl.convert(tmp_path, tmp_path / "gradients.gguf", "F32", vocab=False)
    for tensor, weight in tl.GGUF(tmp_path / "gradients.gguf").tensors.items():
        gradient = weight.numpy()
        error = np.linalg.norm(network.gradients[tensor] - gradient)
        assert error < 1e-5 * np.linalg.norm(gradient), tensor


def test_adamw_is_pytorchs():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    w = random.normal(size=(40, 24)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(w.copy()))
    optimizer = torch.optim.AdamW([theirs], lr=3e-3, betas=(0.9, 0.99), weight_decay=0.1)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step in range(1, 8):
        g = random.normal(size=w.shape).astype(np.float32)
        theirs.grad = torch.tensor(g.copy())
        optimizer.step()
        _core.adamw(((w, g, m, v, 0.1),), rate=3e-3, beta1=0.9, beta2=0.99, step=step)
    np.testing.assert_allclose(w, theirs.detach().numpy(), atol=5e-7)


def test_muon_is_pytorchs():
    """PyTorch iterates in bfloat16, whose errors are about 1 %."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this version of PyTorch has no Muon")
    random = np.random.default_rng(0)
    w = random.normal(size=(24, 40)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(w.copy()))
    optimizer = torch.optim.Muon([theirs], lr=0.02, momentum=0.95, weight_decay=0.0)
    m, before = np.zeros_like(w), w.copy()
    for _ in range(4):
        g = random.normal(size=w.shape).astype(np.float32)
        theirs.grad = torch.tensor(g.copy())
        optimizer.step()
        _core.muon(((w, g, m, 0.0),), (24,), rate=0.02, momentum=0.95)
    moved = theirs.detach().numpy() - before
    assert np.linalg.norm(w - before - moved) < 0.03 * np.linalg.norm(moved)
