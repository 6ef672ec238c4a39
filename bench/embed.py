"""Compare the speed of embeddings with sentence-transformers and onnxruntime, interleaved.

    pip install sentence-transformers onnxruntime onnx
    python bench/embed.py FOLDER TEXT [--count 1000] [--rounds 5]

FOLDER is a sentence-transformers folder whose pooling is the mean, such as all-MiniLM-L6-v2. TEXT
is a file whose words make the sentences, of 3 to 120 words. Every engine gets the same weights and
2 threads. Each round runs every engine once. Prints the medians of sentences per second and of the
time of the processor, the largest difference from sentence-transformers, and installed sizes. On a
busy machine compare the times of the processor.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

THREADS = 2
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = str(THREADS)
os.environ["RAYON_NUM_THREADS"] = str(THREADS)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

import tinyllm as tl  # noqa: E402

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def sentences(text, count):
    """Return pieces of a text of 3 to 120 words, most of them short."""
    random = np.random.default_rng(0)
    words, found, at = text.split(), [], 0
    for _ in range(count):
        n = int(np.clip(random.lognormal(2.8, 0.8), 3, 120))
        found.append(" ".join(words[at : at + n]))
        at = (at + n) % max(len(words) - 120, 1)
    return found


def with_torch(folder):
    """Return the model of sentence-transformers."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(THREADS)
    return SentenceTransformer(str(folder), device="cpu")


def with_onnx(model, path):
    """Return a function with the model's weights in onnxruntime: batches of 32, sorted."""
    import onnxruntime
    import torch

    class Inside(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = model[0].auto_model

        def forward(self, *inputs):
            return self.inside(**dict(zip(INPUTS, inputs, strict=True))).last_hidden_state

    tokenizer = model.tokenizer
    example = tokenizer(["a b c", "d"], padding=True, return_tensors="pt")
    axes = {name: {0: "batch", 1: "tokens"} for name in (*INPUTS, "states")}
    with torch.no_grad():
        torch.onnx.export(
            Inside().eval(),
            tuple(example[name] for name in INPUTS),
            str(path),
            input_names=list(INPUTS),
            output_names=["states"],
            dynamic_axes=axes,
            dynamo=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def embed(texts):
        order = np.argsort([-len(text) for text in texts])
        result = []
        for start in range(0, len(texts), 32):
            part = [texts[i] for i in order[start : start + 32]]
            batch = tokenizer(part, padding=True, truncation=True, return_tensors="np")
            (states,) = session.run(["states"], {name: batch[name] for name in INPUTS})
            mask = batch["attention_mask"][..., np.newaxis].astype(np.float32)
            mean = (states * mask).sum(axis=1) / mask.sum(axis=1)
            result.append(mean / np.linalg.norm(mean, axis=1, keepdims=True))
        return np.concatenate(result)[np.argsort(order)]

    return embed


def engines(folder, work):
    """Return name -> function from texts to embeddings, sentence-transformers first."""
    torch_model = with_torch(folder)
    found = {
        "sentence-transformers": lambda texts: torch_model.encode(
            texts, normalize_embeddings=True, show_progress_bar=False
        )
    }
    try:
        found["onnxruntime"] = with_onnx(torch_model, work / "model.onnx")
    except ImportError as error:
        print(f"onnxruntime is left out: {error}")
    for kind, mode in (("F32", "exact"), ("Q8_0", "exact"), ("Q8_0", "fast")):
        path = work / f"{kind}.gguf"
        if not path.exists():
            tl.convert(folder, path, dtype=kind)
        found[f"tinyllm {kind} {mode}"] = tl.load(path, threads=THREADS, mode=mode).embed
    return found


def installed_bytes(*names):
    """Return the bytes of packages and of all that they require, as their records state."""
    seen, waiting, total = set(), list(names), 0
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a requirement of another platform
        total += sum(file.size or 0 for file in package.files or ())
        for line in package.requires or ():
            if "extra ==" not in line:
                waiting.append(re.match(r"[\w.-]+", line)[0])
    return total


def print_sizes():
    """Print what each way of embedding takes on disk, without the weights."""
    package = Path(tl.__file__).parent
    files = [path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    ours = sum(path.stat().st_size for path in files) + installed_bytes("numpy")
    print(f"installed: tinyllm with NumPy {ours / 1e6:.0f} MB")
    theirs = installed_bytes("sentence-transformers")
    print(f"installed: sentence-transformers and what it requires {theirs / 1e6:.0f} MB")
    theirs = installed_bytes("onnxruntime", "tokenizers")
    print(f"installed: onnxruntime with tokenizers {theirs / 1e6:.0f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    texts = sentences(args.text.read_text("utf-8"), args.count)
    with tempfile.TemporaryDirectory() as work:
        found = engines(args.folder, Path(work))
        times = {name: [] for name in found}
        results = {name: run(texts[:32]) for name, run in found.items()}  # warm
        for _ in range(args.rounds):
            for name, run in found.items():
                start, busy = time.perf_counter(), time.process_time()
                results[name] = run(texts)
                times[name].append((time.perf_counter() - start, time.process_time() - busy))
    for name, rounds in times.items():
        wall, busy = (statistics.median(column) for column in zip(*rounds, strict=True))
        away = np.abs(results[name] - results["sentence-transformers"]).max()
        print(
            f"{name:22} {len(texts) / wall:8.1f} sentences/s   {busy:7.2f} s of CPU time   "
            f"difference {away:.1e}"
        )
    print_sizes()


if __name__ == "__main__":
    main()
