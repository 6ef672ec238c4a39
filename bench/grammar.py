"""Measure how long the mask of a grammar takes, per token of a text that matches it.

    python bench/grammar.py VOCABULARY.gguf

The first pass over the text is cold: no state has been computed. The later passes show what a
second answer under the same grammar costs. Only the CPU time of the calling thread counts, so that
other work on the machine does not.
"""

import argparse
import json
import time

import numpy as np

import tinyllm as tl

JSON = r"""
root ::= value
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= ("-"? ("0" | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 80},
        "born": {"type": "string", "format": "date"},
        "height": {"type": "number", "minimum": 0.2, "maximum": 2.8},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 20},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "number": {"type": "integer"}},
            "required": ["street"],
        },
        "friends": {"type": "array", "items": {"$ref": "#"}},
    },
    "required": ["name", "tags"],
}


def person(depth):
    return {
        "name": "Wolfeschlegelsteinhausenbergerdorff, Zoë 😀",
        "born": "1997-02-28",
        "height": 1.75,
        "tags": ["quick brown fox", "jumps over the lazy dog", 'said "no"'],
        "address": {"street": "Unter den Linden", "number": 77},
        "friends": [person(depth - 1)] * 2 if depth else [],
    }


def cases():
    text = json.dumps(person(2), indent=1, ensure_ascii=False)
    yield "JSON, GBNF", tl.Grammar.gbnf(JSON), text
    # schemas take no blank before a comma or a colon, and indents up to 20
    yield "person, JSON schema", tl.Grammar.json_schema(PERSON), text
    prose = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 6
    yield "anything, .*", tl.Grammar.gbnf("root ::= .*"), prose
    yield "words, regex", tl.Grammar.regex(r"([A-Za-z]{1,12}[,.]? ?){1,200}"), prose.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vocabulary", help="a GGUF file with a tokenizer")
    tokenizer = tl.load_tokenizer(parser.parse_args().vocabulary)
    print(f"{tokenizer!r}")
    print("milliseconds per token         tokens   cold: mean    max   warm: mean    max   states")
    for name, grammar, text in cases():
        ids = tokenizer.encode(text, add_special=False)
        constraint = grammar.constraint(tokenizer)
        rows = []
        for _ in range(4):
            state, times = constraint.start(), []
            for token in ids:
                start = time.thread_time()
                mask = constraint.mask(state)
                times.append(time.thread_time() - start)
                assert mask[token], (name, tokenizer.pieces([token]))
                state = constraint.accept(state, token)
            assert constraint.is_complete(state)
            rows.append(1e3 * np.array(times))
        warm = np.concatenate(rows[1:])
        print(
            f"{name:30} {len(ids):6} {rows[0].mean():12.3f} {rows[0].max():6.3f} "
            f"{warm.mean():12.3f} {warm.max():6.3f} {constraint.states:8}"
        )


if __name__ == "__main__":
    main()
