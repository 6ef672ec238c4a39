"""Measure what drafts save: tokens per second with and without, on texts of three kinds.

    python bench/drafts.py smollm2.gguf qwen2.5-coder.gguf [--draft smaller.gguf] [--tokens 300]
        [--threads 2] [--rounds 3] [--batches 2,4,8,16] [--out drafts]

The tasks, each as a chat message, with greedy draws:

- rewrite: a Python file of 60 lines is to be written again with one name changed,
- summary: a page is to be summarized,
- free: a story without a model.

Each round runs every engine without and with its draft, one after the other, so that a slow minute
of the machine hits all of them. Engines: tinyllm in both modes with ``draft="lookup"`` (and with a
smaller model, if `--draft` names one), and llama.cpp (`pip install llama-cpp-python`), whose
lookup is `LlamaPromptLookupDecoding`. The texts of tinyllm with and without a draft are compared.
Texts of llama.cpp may differ from them, so its gain may be that of another text. A gain is the
median over rounds of tokens per second with a draft / without. Batches are of texts about other
things, and count the tokens of all of them. Writes OUT.json and OUT.md.
"""

import argparse
import itertools
import pathlib
import statistics
import time

import report

import tinyllm as tl

ROOT = pathlib.Path(__file__).resolve().parents[1]
THINGS = "lighthouse river violin market desert clock harbor orchard bridge library storm garden"
THINGS = (THINGS + " train island castle bakery").split()


def tasks():
    """Return the message of each task."""
    lines = (ROOT / "tinyllm/sampling/philox.py").read_text("utf-8").splitlines()
    code = "\n".join(lines[lines.index("from __future__ import annotations") :][:60])
    page = (ROOT / "docs/demo-model.md").read_text("utf-8")[:2500]
    return {
        "rewrite": "Rewrite this file with the function `philox4x32` renamed to `block`. Print the "
        f"whole file, and change nothing else.\n\n```python\n{code}\n```",
        "summary": f"Summarize this page.\n\n{page}",
        "free": "Write a long story about a lighthouse.",
    }


class Ours:
    """tinyllm in one of its modes."""

    def __init__(self, path, mode, threads, draft):
        self.model = tl.load(path, threads=threads, mode=mode)
        self.draft = "lookup" if draft is None else tl.load(draft, threads=threads, mode=mode)
        self.texts = {}

    def run(self, messages, tokens, draft):
        """Generate; return the number of tokens, the seconds, and guesses drawn / checked."""
        found = self.model.chat(
            messages, max_tokens=tokens, temperature=0, draft=self.draft if draft else None
        )
        ids = [g.ids for g in found]
        if self.texts.setdefault((tokens, *messages), ids) != ids:
            raise SystemExit("a draft changed a text")
        timings = [g.timings for g in found]
        drafted = sum(t.drafted for t in timings)
        accepted = sum(t.accepted for t in timings)
        # the first token of each text comes from its prompt
        return sum(len(each) - 1 for each in ids), timings[0].seconds, [accepted, drafted]


class LlamaCpp:
    """llama.cpp, without a draft and with its lookup."""

    def __init__(self, path, threads, encode):
        import llama_cpp
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        options = {
            "n_ctx": 4096,
            "n_batch": 4096,  # with a draft it keeps the logits of so many tokens and no more
            "n_threads": threads,
            "n_threads_batch": threads,
            "verbose": False,
        }
        self.encode = encode
        self.models = [
            llama_cpp.Llama(path, **options),
            llama_cpp.Llama(
                path, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=10), **options
            ),
        ]

    def run(self, messages, tokens, draft):
        """As `Ours.run`, for one message."""
        model, count, start = self.models[draft], 0, 0.0
        model.reset()
        for _ in itertools.islice(model.generate(self.encode(messages[0]), temp=0.0), tokens):
            start = start or time.perf_counter()  # the prompt has run
            count += 1
        return count - 1, time.perf_counter() - start, [0, 0]


def measure(engine, messages, tokens, rounds):
    """Return tokens per second without and with a draft, a list over rounds each."""
    speeds, guesses = ([], []), [0, 0]
    for _ in range(rounds):
        for draft in (False, True):
            count, seconds, seen = engine.run(messages, tokens, draft)
            speeds[draft].append(count / seconds)
            guesses = seen if draft else guesses
    gain = statistics.median(b / a for a, b in zip(*speeds, strict=True))
    plain, with_draft = map(statistics.median, speeds)
    return {"plain": plain, "draft": with_draft, "gain": gain, "guesses": guesses}


def main():
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="GGUF files of models that chat")
    parser.add_argument("--draft", help="a smaller model of the same vocabulary")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", default="2,4,8,16", help="none: an empty text")
    parser.add_argument("--engines", default="exact,fast,llama.cpp")
    parser.add_argument("--tasks", default="rewrite,summary,free")
    parser.add_argument("--out", default="drafts")
    options = parser.parse_args()
    rows = []
    for path in options.models:
        name = pathlib.Path(path).stem
        for engine in options.engines.split(","):
            if engine == "llama.cpp":
                tokenizer = tl.load(path).tokenizer
                one = LlamaCpp(
                    path,
                    options.threads,
                    lambda text, t=tokenizer: t.encode_chat([{"role": "user", "content": text}]),
                )
            else:
                one = Ours(path, engine, options.threads, options.draft)
            work = {k: [v] for k, v in tasks().items() if k in options.tasks.split(",")}
            for size in options.batches.split(",") if engine != "llama.cpp" else ():
                if size:
                    texts = [f"Write a long story about a {thing}." for thing in THINGS]
                    work[f"free, batch of {size}"] = texts[: int(size)]
            for task, messages in work.items():
                one.run(messages, 8, False)  # warm up
                found = measure(one, messages, options.tokens, options.rounds)
                rows.append({"model": name, "engine": engine, "task": task, **found})
                print(rows[-1], flush=True)
    lines = ["| file | task | engine | tokens/s | with a draft | gain | guesses drawn |"]
    lines += ["|---|---|---|---|---|---|---|"]
    lines += [
        f"| {r['model']} | {r['task']} | {r['engine']} | {r['plain']:.1f} | {r['draft']:.1f} | "
        f"{r['gain']:.2f} | {r['guesses'][0]} of {r['guesses'][1]} |"
        for r in sorted(rows, key=lambda r: (r["model"], r["task"]))
    ]
    report.save(options.out, lines, {"rows": rows})


if __name__ == "__main__":
    main()
