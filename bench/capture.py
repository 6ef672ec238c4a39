"""Measure what capturing costs, and compare a whole trace with TransformerLens.

    python bench/make_model.py Q4_K_M /tmp/tinyllama-Q4_K_M.gguf
    python bench/capture.py cost /tmp/tinyllama-Q4_K_M.gguf [--threads 2]
    python bench/capture.py transformer-lens [--threads 2]

`cost`: decoding and an exact prompt with and without capture, interleaved, so that a slow minute
of the machine hits both. `transformer-lens`: 4 layers of TinyLlama's shape in float32, 256
tokens, every tap and the attention matrices; needs torch, transformers and transformer_lens,
which get the same weights. On a busy machine the figures are noise, so their spread is printed.
Writes OUT.json and OUT.md.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
import report

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import tinyllm as tl


def interleaved(works, rounds):
    """Run several functions in turn, `rounds` times; return name -> list of seconds."""
    seconds = {name: [] for name in works}
    for work in works.values():  # warm up
        work()
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def table(title, seconds):
    """Return a table of medians and spreads; ratios to the first row are from paired rounds."""
    lines = [f"{title}:", "", "| what | ms | 10 % to 90 % | ratio |", "|---|---|---|---|"]
    base = next(iter(seconds.values()))
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
        low, middle, high = np.percentile(values, [10, 50, 90]) * 1e3
        lines.append(f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} | {ratio:.3f} |")
    return [*lines, ""]


def decode(model, capture, prompt, count):
    """Return a function that decodes `count` tokens after the prompt, with or without capture."""
    start = model.session()
    start.eval(prompt)

    def work():
        session = start.fork()
        kept = [session.eval([i], capture=capture) for i in range(1, count + 1)]
        return kept

    return work


def cost(path, threads, rounds):
    """Measure what capture costs in decode and in a prompt; return title -> seconds."""
    model = tl.load(path, threads=threads)
    everything = [tap.name for tap in model.taps if not tap.matrix]
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, 128)
    works = {
        "decode 8 tokens": decode(model, None, ids, 8),
        "again, to see the noise": decode(model, None, ids, 8),
        "all but attention matrices": decode(model, everything, ids, 8),
        "all": decode(model, "*", ids, 8),
    }
    found = {f"decode, {threads} threads": interleaved(works, rounds)}
    inner = [name for name in everything if name != "output"]  # logits of every row are more work
    works = {
        "prompt of 128": lambda: model.trace(ids, [], logits="all"),
        "again, to see the noise": lambda: model.trace(ids, [], logits="all"),
        "all but attention matrices": lambda: model.trace(ids, inner, logits="all"),
        "all": lambda: model.trace(ids, "*"),
    }
    found[f"exact prompt, {threads} threads"] = interleaved(works, max(3, rounds // 3))
    return found


def transformer_lens(threads, rounds):
    """Compare a whole trace with TransformerLens on the same weights; return title -> seconds."""
    import hf
    import tokenizers
    import torch
    import transformers
    from transformer_lens.model_bridge import TransformerBridge

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=4,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    with tempfile.TemporaryDirectory() as directory:
        theirs = transformers.LlamaForCausalLM._from_config(config, attn_implementation="eager")
        theirs = theirs.eval()
        theirs.save_pretrained(directory)
        path = os.path.join(directory, "model.gguf")
        tl.write_gguf(path, *hf.load_checkpoint(directory))
        model = tl.load(path, threads=threads)
        # boot_transformers needs a tokenizer, and replaces modules of the model that it is given
        words = tokenizers.models.WordLevel({"<s>": 0, "<unk>": 1}, unk_token="<unk>")
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer(words), bos_token="<s>", unk_token="<unk>"
        ).save_pretrained(directory)
        bridge = TransformerBridge.boot_transformers(
            directory,
            hf_model=transformers.LlamaForCausalLM.from_pretrained(
                directory, dtype=torch.float32, attn_implementation="eager"
            ),
        )
        ids = np.random.default_rng(0).integers(0, 32000, 256)
        tokens = torch.from_numpy(ids[np.newaxis])
        with torch.no_grad():
            logits, cache = bridge.run_with_cache(tokens)
            cells = {(value.data_ptr(), value.shape): value.nbytes for value in cache.values()}
            print(f"run_with_cache: {len(cache)} names, {sum(cells.values()):,} bytes")
            plan = model.plan(ids, "*")
            print(f"tinyllm: {len(plan.shapes)} taps, {plan.nbytes:,} bytes")
            ours = model.trace(ids, "*")["output"]
            gap = np.abs(logits[0].numpy() - ours).max() / np.abs(ours).max()
            print(f"largest difference of logits: {gap:.1e} of the largest logit")
            works = {
                "run_with_cache": lambda: bridge.run_with_cache(tokens),
                "Hugging Face forward": lambda: theirs(tokens),
                "tinyllm, every tap": lambda: model.trace(ids, "*"),
                "tinyllm, logits only": lambda: model.logits(ids),
            }
            title = f"256 tokens, 4 layers, float32, {threads} threads"
            return {title: interleaved(works, rounds)}


def main():
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["cost", "transformer-lens"])
    parser.add_argument("model", nargs="?", help="for cost: a GGUF file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", default="capture")
    arguments = parser.parse_args()
    if arguments.what == "transformer-lens":
        found = transformer_lens(arguments.threads, arguments.rounds)
    elif arguments.model is None:
        parser.error("cost needs a GGUF file")
    else:
        found = cost(arguments.model, arguments.threads, arguments.rounds)
    lines = [line for title, seconds in found.items() for line in table(title, seconds)]
    report.save(arguments.out, lines, {"seconds": found})


if __name__ == "__main__":
    main()
