"""Exported checkpoints in transformers: logits, token ids and texts are those of the model.

pip install transformers torch && pytest -m live tests/live/test_export.py
"""

import numpy as np
import pytest

import tinyllm as tl
from testkit import data, hf, real
from tinyllm.exporting.table import ROWS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.live

CHECKPOINTS = [name for name, architecture in hf.CHECKPOINTS.items() if architecture in ROWS]


def logits(folder, ids):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_are_those_of_the_original(tmp_path, name):
    tl.convert(data.path("hf", name), tmp_path / "m.gguf")
    tl.export(tmp_path / "m.gguf", tmp_path / "out")
    ids = np.random.default_rng(0).integers(3, 50, 40).tolist()
    first, second = logits(data.path("hf", name), ids), logits(tmp_path / "out", ids)
    np.testing.assert_array_equal(first, second)


TEXTS = (
    "Hello, world! don't we'LL 3.14159 12 1234567",
    "  leading and trailing  ",
    "naïve café e\u0301 日本語のテキスト 한국어 привет Мир",
    "def f(x):\n    return x+1\n\n\n\t\ttabs\r\n\r\n",
    "🦙🚀👨‍👩‍👧 HTMLParser camelCase a  b   c !?!? ... ==>",
)


@pytest.mark.real
@pytest.mark.parametrize("file", ["smollm2-135m-q4_1.gguf", "qwen2.5-coder-0.5b-q4_k_m.gguf"])
def test_real_models(tmp_path, file):
    model = tl.load(real.path(file))
    tl.export(model, tmp_path / "out", "F32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == list(model.tokenizer.encode(text))
    ids = list(model.tokenizer.encode("The capital of France is"))
    mine, theirs = model.logits(ids), logits(tmp_path / "out", ids)
    assert np.linalg.norm(mine - theirs) < 1e-5 * np.linalg.norm(mine)
