"""Texts with and without drafts: random requests of every kind, and what must be equal."""

from collections import Counter

import numpy as np

import tinyllm as tl

#: One entry per kind of draw: what it adds to a request, given a random generator.
KINDS = {
    "greedy": lambda r: {"temperature": 0},
    "default": lambda r: {},
    "hot": lambda r: {"temperature": float(r.uniform(0.9, 1.6)), "top_k": 0, "top_p": 1.0},
    "top_p": lambda r: {"top_p": float(r.uniform(0.3, 0.9)), "top_k": int(r.integers(2, 60))},
    "min_p": lambda r: {"min_p": float(r.uniform(0.02, 0.3)), "temperature": 1.2},
    "typical": lambda r: {"typical": float(r.uniform(0.3, 0.95))},
    "top_n_sigma": lambda r: {"top_n_sigma": float(r.uniform(0.5, 2))},
    "xtc": lambda r: {"xtc": {"probability": 0.5, "threshold": 0.05}},
    "dynamic": lambda r: {"dynamic_temperature": {"value": 1.0, "range": 0.6}},
    "repeat": lambda r: {"repeat_penalty": float(r.uniform(1.02, 1.4))},
    "frequency": lambda r: {"frequency_penalty": 0.3, "presence_penalty": 0.2},
    "dry": lambda r: {"dry": {"multiplier": 0.8, "allowed_length": int(r.integers(1, 4))}},
    "mirostat": lambda r: {"mirostat": float(r.uniform(2, 6))},
    "mirostat_v2": lambda r: {"mirostat_v2": float(r.uniform(2, 6))},
    "bias": lambda r: {"logit_bias": {int(r.integers(0, 300)): 2.0}, "banned": [5, 6]},
    "forced": lambda r: {"forced": r.integers(10, 300, 5).tolist()},
    "ends": lambda r: {"stop_ids": r.integers(0, 300, 9).tolist(), "min_tokens": 6},
    "edits": lambda r: {"edits": tl.scale("blk.0.resid_post", 0.9)},
    "traces": lambda r: {"capture": ["blk.*.resid_post", "blk.0.attn_probs"]},
}

#: Kinds for models with text.
TEXT_KINDS = {
    "grammar": lambda r: {"grammar": tl.Grammar.regex("([a-z]{1,7}[ ,.]){3,20}")},
    "schema": lambda r: {
        "grammar": tl.Grammar.json_schema(
            {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "integer"}}}}
        )
    },
    "stop": lambda r: {"stop": ["the ", "e e", "\n\n"]},
}

VERSE = "ROMEO:\nIt is the east, and Juliet is the sun.\n"
TEXTS = (
    VERSE * 2,
    "def area(width, height):\n    return width * height\n\n\ndef area(width, height):\n",
    "one two three four one two three four one two",
    "The capital of France is",
    "ababab",
)


def same(a, b):
    """Whether two generations, or lists of them, are equal in all that is not a time."""
    if isinstance(a, list):
        assert len(a) == len(b)
        return all(map(same, a, b))
    for name in ("ids", "text", "prompt_ids", "stop_reason", "stop", "complete", "seed", "end_id"):
        assert getattr(a, name) == getattr(b, name), name
    assert a.timings.tokens == b.timings.tokens
    if a.logprobs is not None:
        assert np.array_equal(a.end_logprob or 0.0, b.end_logprob or 0.0, equal_nan=True)
        for name in ("logprobs", "probabilities", "top_ids", "top_logprobs"):
            assert np.array_equal(getattr(a.logprobs, name), getattr(b.logprobs, name)), name
    assert len(a.traces) == len(b.traces)
    for one, two in zip(a.traces, b.traces, strict=True):
        assert list(one) == list(two)
        assert one.start == two.start
        assert np.array_equal(one.tokens, two.tokens)
        assert np.array_equal(one.context, two.context)
        assert one.context_pieces == two.context_pieces
        for name in one:
            assert one[name].shape == two[name].shape, name
            assert np.array_equal(one[name], two[name], equal_nan=True), name
    return True


def compare(model, count, seed=0, length=40, draft="lookup"):
    """Generate `count` texts with and without a draft; raise at the first difference.

    Returns what was seen: texts, tokens, guesses and accepted guesses, and the texts of each kind.
    """
    random = np.random.default_rng(seed)
    kinds = dict(KINDS)
    if model.tokenizer is not None:
        kinds |= TEXT_KINDS
    seen = Counter()
    while seen["texts"] < count:
        name = list(kinds)[int(random.integers(len(kinds)))]
        options = {"seed": int(random.integers(1 << 60)), **kinds[name](random)}
        if random.random() < 0.5:
            options["logprobs"] = int(random.integers(0, 4))
        prompts = [_prompt(model, random) for _ in range(min(4, count - seen["texts"]))]
        if random.random() < 0.5:
            prompts = prompts[0]
        plain = model.generate(prompts, length, **options)
        tried = model.generate(prompts, length, draft=draft, **options)
        assert same(plain, tried), (name, options)
        for g in tried if isinstance(tried, list) else [tried]:
            seen.update(texts=1, tokens=len(g.ids), drafted=g.timings.drafted,
                        accepted=g.timings.accepted)  # fmt: skip
            seen[name] += 1
    return seen


def _prompt(model, random):
    """Return a prompt that invites a repetition."""
    if model.tokenizer is not None:
        return TEXTS[int(random.integers(len(TEXTS)))]
    ids = random.integers(0, min(model.config.vocab_size, 300), int(random.integers(3, 12)))
    return np.tile(ids, 3)
