"""What capturing costs, and how a whole trace compares with TransformerLens.

    python bench/make_model.py Q4_K_M /tmp/tinyllama-Q4_K_M.gguf
    python bench/capture.py cost /tmp/tinyllama-Q4_K_M.gguf [--threads 2]
    python bench/capture.py transformer-lens [--threads 2]

`cost`: decoding and an exact prompt with and without capture, interleaved, so that a slow minute
of the machine hits both. `transformer-lens`: 4 layers of TinyLlama's shape in float32, 256
tokens, every tap and the attention matrices; needs torch, transformers and transformer_lens,
which get the same weights. On a busy machine all of it is noise: the spread is printed.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import tinyllm as tl


def interleaved(works, rounds):
    """Run each of several functions in turn, and so on; return name -> list of seconds."""
    seconds = {name: [] for name in works}
    for work in works.values():  # warm up
        work()
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def show(title, seconds, base):
    """Print medians, spreads, and each relative to one of them, from paired rounds."""
    print(title)
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds[base], strict=True))
        low, middle, high = np.percentile(values, [10, 50, 90]) * 1e3
        print(f"  {name:28} {middle:9.2f} ms  (10-90 %: {low:.2f}-{high:.2f})  x {ratio:.4f}")


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
    """Measure what capture costs in decode and in a prompt."""
    model = tl.load(path, threads=threads)
    print(model, f"{threads} threads")
    everything = [tap.name for tap in model.taps if not tap.matrix]
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, 128)
    works = {
        "decode 8 tokens": decode(model, None, ids, 8),
        "again, to see the noise": decode(model, None, ids, 8),
        "all but attention matrices": decode(model, everything, ids, 8),
        "all": decode(model, "*", ids, 8),
    }
    show("decode", interleaved(works, rounds), "decode 8 tokens")
    inner = [name for name in everything if name != "output"]  # logits of every row are more work
    works = {
        "prompt of 128": lambda: model.trace(ids, [], logits="all"),
        "again, to see the noise": lambda: model.trace(ids, [], logits="all"),
        "all but attention matrices": lambda: model.trace(ids, inner, logits="all"),
        "all": lambda: model.trace(ids, "*"),
    }
    show("exact prompt", interleaved(works, max(3, rounds // 3)), "prompt of 128")


def transformer_lens(threads, rounds):
    """Measure a whole trace against TransformerLens on the same weights."""
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
        # boot_transformers wants a tokenizer, and puts its own modules into the model it is given
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
                "Hugging Face forward": lambda: theirs(tokens),
                "run_with_cache": lambda: bridge.run_with_cache(tokens),
                "tinyllm, every tap": lambda: model.trace(ids, "*"),
                "tinyllm, logits only": lambda: model.logits(ids),
            }
            seconds = interleaved(works, rounds)
        show(f"256 tokens, 4 layers, float32, {threads} threads", seconds, "run_with_cache")


def main():
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["cost", "transformer-lens"])
    parser.add_argument("model", nargs="?", help="for cost: a GGUF file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if arguments.what == "transformer-lens":
        transformer_lens(arguments.threads, arguments.rounds)
    elif arguments.model is None:
        parser.error("cost needs a GGUF file")
    else:
        cost(arguments.model, arguments.threads, arguments.rounds)


if __name__ == "__main__":
    main()
