"""Compare the speed of encoding with Hugging Face `tokenizers`, interleaved, on one thread.

    pip install tokenizers
    TINYLLM_TEST_DATA=... python bench/encode.py

Prints the best of several rounds, and the ratio ours / theirs (below 1: we are faster).
"""

import os
import sys
import time
import warnings
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tinyllm as tl  # noqa: E402
from testkit import hf_tokenizers  # noqa: E402
from testkit.gguf_bytes import read_metadata  # noqa: E402

FILES = (
    "ggml-vocab-llama-spm",
    "ggml-vocab-gpt-2",
    "rebuilt-llama-bpe",
    "rebuilt-qwen2",
    "ggml-vocab-falcon",
    "ggml-vocab-deepseek-coder",
)
ROUNDS = 7


def seconds(function, *args, **kwargs):
    start = time.perf_counter()
    function(*args, **kwargs)
    return time.perf_counter() - start


def main():
    warnings.simplefilter("ignore")
    data = Path(os.environ["TINYLLM_TEST_DATA"])
    text = (data / "text" / "tinyshakespeare.txt").read_text()[:1_000_000]
    lines = text.splitlines(keepends=True)
    print(f"1 MB of English, one thread, best of {ROUNDS}; seconds ours, theirs, ratio")
    for file in FILES:
        path = data / "vocab" / f"{file}.gguf"
        theirs = hf_tokenizers.build(dict(read_metadata(path)))
        ours = tl.load_tokenizer(path)
        times = {"load": [], "whole": [], "whole hf": [], "lines": [], "lines hf": []}
        for _ in range(ROUNDS):
            times["load"].append(seconds(lambda path=path: tl.load_tokenizer(path).encode("x")))
            times["whole"].append(seconds(ours.encode, text, False))
            fast = theirs.encode_batch_fast
            times["whole hf"].append(seconds(fast, [text], add_special_tokens=False))
            times["lines"].append(seconds(ours.encode_batch, lines, False))
            times["lines hf"].append(seconds(fast, lines, add_special_tokens=False))
        best = {name: min(found) for name, found in times.items()}
        print(
            f"{file:28} whole {best['whole']:.3f} {best['whole hf']:.3f} "
            f"{best['whole'] / best['whole hf']:.2f}   lines {best['lines']:.3f} "
            f"{best['lines hf']:.3f} {best['lines'] / best['lines hf']:.2f}   "
            f"load {len(ours)} tokens {best['load'] * 1e3:.0f} ms"
        )


if __name__ == "__main__":
    main()
