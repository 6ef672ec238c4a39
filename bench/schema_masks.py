"""Measure what real JSON schemas cost: compiling them, and the masks along a valid text.

    python bench/schema_masks.py VOCABULARY.gguf FOLDER [--every 10] [--form any]
    pip install llguidance
    python bench/schema_masks.py VOCABULARY.gguf FOLDER --every 10 --llguidance

FOLDER holds JSON files of MaskBench (``maskbench/data``: a schema and its tests). Each schema is
compiled, and its first valid text is read token by token. With ``--llguidance`` the same is done
with llguidance; "of both" are the schemas that both take. All times are CPU times of the thread.
tinyllm keeps the mask of a state, so only states that are new are counted; llguidance is counted at
every token.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

import tinyllm as tl

LONGEST = 300


class Tinyllm:
    """Grammars of this package."""

    name = "tinyllm"

    def __init__(self, tokenizer, form):
        self.tokenizer, self.form = tokenizer, form

    def compile(self, schema):
        """Return what `masks` takes; None if the schema is refused."""
        try:
            return tl.Grammar.json_schema(schema, form=self.form)
        except (ValueError, tl.UnsupportedError):
            return None

    def masks(self, grammar, tokens):
        """Yield the seconds of the mask of each new state."""
        constraint = grammar.constraint(self.tokenizer)
        state, seen = constraint.start(), set()
        for token in tokens:
            if state not in seen:
                seen.add(state)
                start = time.thread_time()
                constraint.mask(state)
                yield time.thread_time() - start
            state = constraint.accept(state, token)
            if state == 0:
                return


class Llguidance:
    """Grammars of llguidance, with the same vocabulary."""

    name = "llguidance"

    def __init__(self, tokenizer):
        import llguidance

        pieces = tokenizer.pieces_bytes(range(len(tokenizer)), skip_special=True)

        class Wrapped:
            def __init__(self):
                self.eos_token_id, self.bos_token_id = min(tokenizer.eog_ids), None
                self.tokens = [p or b"\xff<%d>" % i for i, p in enumerate(pieces)]
                self.special_token_ids = [i for i, p in enumerate(pieces) if not p]

            def __call__(self, text):
                return tokenizer.encode(text, add_special=False)

        self.matcher = llguidance.LLMatcher
        self.tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Wrapped()))

    def compile(self, schema):
        """Return what `masks` takes; None if the schema is refused."""
        try:
            grammar = self.matcher.grammar_from_json_schema(json.dumps(schema))
            matcher = self.matcher(self.tokenizer, grammar)
        except ValueError:
            return None
        return None if matcher.get_error() else matcher

    def masks(self, matcher, tokens):
        """Yield the seconds of the mask before each token."""
        for token in tokens:
            start = time.thread_time()
            matcher.compute_bitmask()
            yield time.thread_time() - start
            if not matcher.consume_token(token):
                return


def shown(times, scale):
    times = scale * np.array(times or [0.0])
    points = np.percentile(times, [50, 90, 95, 99, 99.9])
    columns = " ".join(f"{x:8.2f}" for x in (times.mean(), *points, times.max()))
    return f"{len(times):7} {columns}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vocabulary", help="a GGUF file with a tokenizer")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--form", choices=("compact", "any"), default="compact")
    parser.add_argument("--every", type=int, default=1, help="take only each n-th file")
    parser.add_argument("--llguidance", action="store_true")
    options = parser.parse_args()
    tokenizer = tl.load_tokenizer(options.vocabulary)
    engines = [Tinyllm(tokenizer, options.form)]
    engines += [Llguidance(tokenizer)] if options.llguidance else []
    for engine in engines:
        engine.compile({})  # what is loaded at the first use is not measured
    compiles = {engine.name: [] for engine in engines}
    masks = {engine.name: [] for engine in engines}
    for path in sorted(options.folder.glob("*.json"))[:: options.every]:
        case = json.loads(path.read_text("utf-8"))
        texts = [json.dumps(t["data"], ensure_ascii=False) for t in case["tests"] if t["valid"]]
        for engine in engines:
            start = time.thread_time()
            grammar = engine.compile(case["schema"])
            took = time.thread_time() - start
            compiles[engine.name].append(None if grammar is None else took)
            if grammar is None:
                continue
            for text in texts[:1]:
                tokens = tokenizer.encode(text, add_special=False)[:LONGEST]
                masks[engine.name] += engine.masks(grammar, tokens)
    print(f"{tokenizer!r}, form {options.form!r}")
    print(f"{'':26} number     mean      50%      90%      95%      99%    99.9%  largest")
    by_schema = list(zip(*compiles.values(), strict=True))
    for i, engine in enumerate(engines):
        times = [row[i] for row in by_schema if row[i] is not None]
        common = [row[i] for row in by_schema if None not in row]
        print(f"{engine.name:12} compile, ms {shown(times, 1e3)}")
        if len(engines) > 1:
            print(f"{'':12}   of both   {shown(common, 1e3)}")
        print(f"{engine.name:12} mask, us    {shown(masks[engine.name], 1e6)}")


if __name__ == "__main__":
    main()
