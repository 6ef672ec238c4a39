"""Grammars: reading GBNF, matching, masks.

The tests compute the language of a grammar separately: as sets of texts that grow until they no
longer change.
"""

import itertools
import random
import re
import threading
import time

import numpy as np
import pytest

import tinyllm as tl
from tinyllm import _core
from tinyllm.grammar import expr, gbnf, matcher, regex
from tinyllm.grammar.automaton import accepts, build, build_fine
from tinyllm.grammar.expr import Alt, Chars, Machine, Ref, Repeat, Seq, Text, check, prune, to_gbnf
from tinyllm.grammar.language import Length, Matches, intersection

pytestmark = pytest.mark.sanitize

ALPHABET = "abé"
LONGEST = 4


# ---- random grammars, and their languages as sets of texts ----


def random_expr(rng, depth, names):
    kind = rng.choice(["text", "set", "ref", "seq", "alt", "repeat"] if depth else ["text", "set"])
    if kind == "text":
        return ("text", "".join(rng.choice(ALPHABET) for _ in range(rng.randrange(3))))
    if kind == "set":
        return ("set", rng.random() < 0.3, rng.choice(ALPHABET))
    if kind == "ref":
        return ("ref", rng.choice(names))
    if kind == "repeat":
        low = rng.randrange(3)
        high = rng.choice([None, low, low + rng.randrange(3)])
        return ("repeat", random_expr(rng, depth - 1, names), low, high)
    return (kind, [random_expr(rng, depth - 1, names) for _ in range(rng.randrange(1, 4))])


def spell(e):
    if e[0] == "text":
        return f'"{e[1]}"'
    if e[0] == "set":
        return f"[{'^' * e[1]}{e[2]}]"
    if e[0] == "ref":
        return e[1]
    if e[0] == "seq":
        return "(" + " ".join(map(spell, e[1])) + ")"
    if e[0] == "alt":
        return "(" + " | ".join(map(spell, e[1])) + ")"
    return f"({spell(e[1])}){{{e[2]},{'' if e[3] is None else e[3]}}}"


def joined(left, right):
    return {a + b for a in left for b in right if len(a + b) <= LONGEST}


def texts(e, known):
    if e[0] == "text":
        return {e[1]} if len(e[1]) <= LONGEST else set()
    if e[0] == "set":
        return set(ALPHABET) - {e[2]} if e[1] else {e[2]}
    if e[0] == "ref":
        return known[e[1]]
    if e[0] == "alt":
        return set().union(*(texts(item, known) for item in e[1]))
    if e[0] == "seq":
        found = {""}
        for item in e[1]:
            found = joined(found, texts(item, known))
        return found
    item, found = texts(e[1], known), {""}
    for _ in range(e[2]):
        found = joined(found, item)
    more = found
    for _ in range(LONGEST + 1 if e[3] is None else e[3] - e[2]):
        more = joined(more, item)
        found = found | more
    return found


def language(rules):
    known = {name: set() for name in rules}
    while True:
        grown = {name: texts(e, known) for name, e in rules.items()}
        if grown == known:
            return known
        known = grown


def test_random_grammars_accept_their_language_and_nothing_else():
    rng = random.Random(1)
    everything = [
        "".join(p) for n in range(LONGEST + 1) for p in itertools.product(ALPHABET, repeat=n)
    ]
    tried = 0
    while tried < 300:
        names = ["root", "x", "y"]
        rules = {name: random_expr(rng, 3, names) for name in names}
        source = "\n".join(f"{name} ::= {spell(e)}" for name, e in rules.items())
        try:
            grammar = tl.Grammar.gbnf(source)
        except ValueError as error:
            if not re.search("left-recursive|can never end|matches no text", str(error)):
                raise
            continue
        tried += 1
        want = language(rules)["root"]
        program = grammar._program
        for text in everything:
            state = matcher.advance(program, matcher.start(program), text.encode())
            assert matcher.is_complete(state) == (text in want), (source, text)
            assert grammar.accepts(text) == (text in want), (source, text)
        # the grammar written as GBNF and read again has the same language
        again = tl.Grammar.gbnf(str(grammar))
        assert [again.accepts(t) for t in everything] == [grammar.accepts(t) for t in everything]


def test_what_is_left_out_in_c_is_what_python_leaves_out():
    rng, kinds = random.Random(5), []
    texts = ["".join(p) for n in range(5) for p in itertools.product(ALPHABET, repeat=n)]
    for _ in range(300):
        names = ["root", "x", "y"]
        rules = {name: random_expr(rng, 3, names) for name in names}
        source = "\n".join(f"{name} ::= {spell(e)}" for name, e in rules.items())
        rules = gbnf.parse(source)
        for name in names:  # parts that begin and match no text
            dead = Seq((Text(rng.choice("abé")), rng.choice([Alt(()), Chars(())])))
            edges = ((dead, 1), (Text("a"), 2)), ((Text("b"), 1),), ((dead, 1), (rules[name], 1))
            rules[name] = rng.choice(
                [
                    *[rules[name]] * 6,
                    Alt((rules[name], dead)),
                    Seq((Repeat(dead, 0, None), rules[name])),
                    Machine(edges, frozenset([1]), False),
                ]
            )
        found = build_fine(rules)
        ends = expr._fixpoint(rules, "ends")
        left = prune(rules, ends)
        if isinstance(found, set):
            assert found == ends, source
            kinds.append("not fine")
            if "root" in ends:
                with pytest.raises(ValueError, match="left-recursive"):
                    expr._check_left(rules)
            continue
        expr._check_left(left)
        assert found.ends == (None if ends == set(rules) and left == rules else ends), source
        kinds.append("whole" if found.ends is None else "left out")
        want = build(expr.reachable(left, "root"))
        looks = []
        for program in (found, want):
            automaton = _core.Automaton(program.array, program.root)
            states = [automaton.advance(automaton.start, text.encode()) for text in texts]
            looks.append([automaton.look(state)[::2] for state in states])
        assert looks[0] == looks[1], source
    assert min(map(kinds.count, ("not fine", "whole", "left out"))) > 20


def test_left_recursion_is_found_exactly_where_it_is():
    # a rule is left-recursive if it can reach itself without a letter: computed over pairs of rules
    rng = random.Random(2)
    kinds = set()
    for _ in range(300):
        names = ["root", "x", "y"]
        rules = {name: random_expr(rng, 2, names) for name in names}
        empty = {name for name, found in language(rules).items() if "" in found}

        def first(e, names=names, empty=empty):
            if e[0] == "ref":
                return {e[1]}
            if e[0] == "alt":
                return set().union(*map(first, e[1]))
            if e[0] == "repeat":
                return set() if e[3] == 0 else first(e[1])
            found = set()
            for item in e[1] if e[0] == "seq" else ():
                found |= first(item)
                if "" not in texts(item, {n: {""} if n in empty else set() for n in names}):
                    break
            return found

        reach = {name: first(e) for name, e in rules.items()}
        for _ in names:
            reach = {n: r.union(*(reach[m] for m in r)) for n, r in reach.items()}
        source = "\n".join(f"{name} ::= {spell(e)}" for name, e in rules.items())
        try:
            used = set(tl.Grammar.gbnf(source).rules)
        except ValueError as error:
            kinds.add("left" if "left-recursive" in str(error) else "other")
            if "left-recursive" in str(error):
                assert any(name in reach[name] for name in names), source
        else:
            assert not any(name in reach[name] for name in used), source
    assert kinds == {"left", "other"}


# ---- GBNF ----


@pytest.mark.parametrize(
    ("source", "good", "bad"),
    [
        (r'root ::= "a\n\t\\\"\x41\u00e9\U0001F600"', ['a\n\t\\"Aé😀'], ["a"]),
        ("root ::= [a-c-]+", ["a-c", "b"], ["d", ""]),
        ("root ::= [-a]", ["-", "a"], ["b"]),
        (r"root ::= [^\]\n]", ["[", "x", "é", "😀"], ["]", "\n", ""]),
        ("root ::= .", ["\n", "é", "\x00", "\U0010ffff"], ["", "ab"]),
        ('root ::= "ab"*', ["", "abab"], ["aba"]),
        ('root ::= "a"{2}', ["aa"], ["a", "aaa"]),
        ('root ::= "a"{2,}', ["aa", "aaaa"], ["a"]),
        ('root ::= "a"{,2}', ["", "aa"], ["aaa"]),
        ('root ::= "a"{1,2}?', ["", "a", "aa"], ["aaa"]),
        ('root ::= ("a" | # c\n "b")', ["a", "b"], ["ab"]),
        ('root ::= "a" |\n "b"\n', ["a", "b"], ["ab"]),
        ('# first\n\nroot ::=\n  x # end\nx ::= "q"\r\n', ["q"], [""]),
        ('root ::= | "a"', ["", "a"], ["aa"]),
        ('root ::=\n  | "a"\n\n  | "b"\nx ::= "c"', ["", "a", "b"], ["ab"]),
        ('root ::= "a"\n  | "b"', ["a", "b"], ["", "ab"]),
        (r"root ::= [a\-z\^]", ["a", "-", "z", "^"], ["b"]),
        (r'root ::= "a\-\^"', ["a-^"], ["a"]),
        ('\ufeffroot ::= "a"', ["a"], ["\ufeffa"]),
        ("root ::= (", None, "no '\\)'|expected"),
    ],
)
def test_gbnf(source, good, bad):
    if good is None:
        with pytest.raises(ValueError, match=bad):
            tl.Grammar.gbnf(source)
        return
    grammar = tl.Grammar.gbnf(source)
    for text in good:
        assert grammar.accepts(text), text
    for text in bad:
        assert not grammar.accepts(text), text
    assert check(gbnf.parse(to_gbnf(grammar.rules)), "root") is not None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "no rule 'root'"),
        ('x ::= "a"', "no rule 'root'"),
        ("root ::= x", "'root' refers to 'x'"),
        ('root ::= "a', "line 1, column 10 in rule 'root': the text"),
        ("root ::= [a", "the set"),
        ("root ::= []", "no character"),
        ("root ::= [z-a]", "backwards"),
        (r'root ::= "\q"', "unknown escape"),
        (r'root ::= "\x4"', "2 hexadecimal"),
        (r'root ::= "\uD800"', "not a character"),
        (r'root ::= "\U00110000"', "not a character"),
        ('root ::= "\ud800"', "lone surrogate"),
        ('root ::= "a" )', "expected the end of the line, found '\\)'"),
        ('root ::= "a"\nroot ::= "b"', "line 2, column 1.*defined twice"),
        ("root ::= *", "nothing before it"),
        ('root ::= "a"{3,2}', "at least 3"),
        ('root ::= "a"{}', r"expected \{m\}"),
        ('root ::= "a"{1000000}', "more than 100,000"),
        ('root ::= "a"{99999999999999999999}', "more than 100,000"),
        ("root = x", "expected '::='"),
        ("root ::= <think", "expected a token"),
        ("root ::= !x", "expected the end of the line, found '!'"),
        ("root ::= " + "(" * 5000 + ")" * 5000, "nested more than 100"),
        ('root ::= root "a"', "'root' is left-recursive .root -> root"),
        ('root ::= x\nx ::= y | "b"\ny ::= x "c"', "x -> y -> x"),
        ('root ::= ""* root | "a"', "left-recursive"),
        ('root ::= "a"? root "b" | "c"', "left-recursive"),
        ('root ::= "a" root', "'root' can never end"),
        ('root ::= "a" | x\nx ::= "b" y\ny ::= "c" x', "'x' can never end.*x -> y -> x"),
        (
            "root ::= " + " ".join(f'"{c}"{{100000}}' for c in "abcdef"),
            "too large.* in rule 'root'",
        ),
        ("root ::= x\nx ::= " + " ".join(f"[a-{c}]{{50000}}" for c in "bcdefghijk"), "rule 'x'"),
    ],
)
def test_grammars_that_are_refused(source, words):
    with pytest.raises(ValueError, match=words):
        tl.Grammar.gbnf(source)


def test_tokens_by_id_and_by_text():
    tokenizer = tl.load().tokenizer
    first, last = tokenizer.id("e"), tokenizer.id("t")
    end = next(iter(tokenizer.eog_ids))
    grammar = tl.Grammar.gbnf(f"root ::= <[{first}]> !<[{last}]>* <[{last}]> ([a-z] | <[{first}]>)")
    assert tl.Grammar.gbnf(str(grammar)).rules == grammar.rules
    assert not grammar.accepts("et")  # the texts of the tokens are not the tokens
    constraint = grammar.constraint(tokenizer)
    ids = {token: program for program, token in enumerate(grammar._program.tokens)}
    assert set(ids) == {first, last}
    rng = random.Random(4)
    pieces = tokenizer.pieces_bytes(range(len(tokenizer)), skip_special=True)
    for token in tokenizer.eog_ids:
        pieces[token] = b""
    for _ in range(30):
        state, slow = constraint.start(), matcher.start(grammar._program)
        while True:
            mask = constraint.mask(state)
            want = [
                bool(matcher.accept(grammar._program, slow, token, piece))
                for token, piece in enumerate(pieces)
            ]
            for token in tokenizer.eog_ids:
                want[token] = matcher.is_complete(slow)
            assert mask.tolist() == want
            if constraint.is_finished(state):
                break
            allowed = [i for i in np.flatnonzero(mask) if i not in tokenizer.eog_ids]
            token = last if last in allowed and rng.random() < 0.5 else int(rng.choice(allowed))
            state = constraint.accept(state, token)
            slow = matcher.accept(grammar._program, slow, token, pieces[token])
        assert constraint.accept(constraint.start(), end) == 0
    with pytest.raises(ValueError, match="names the token '<nope>'"):
        tl.Grammar.gbnf("root ::= <nope>").constraint(tokenizer)
    with pytest.raises(ValueError, match=f"token 99999; expected an id below {len(tokenizer)}"):
        tl.Grammar.gbnf("root ::= <[99999]>").constraint(tokenizer)


CHAINS = {
    "calls": ("r{i} ::= r{next}", ""),
    "optional ends": ('r{i} ::= r{next} "b"?', ""),
    "twice": ('r{i} ::= r{next} | r{next} "c"', ""),
    "may be empty": ("r{i} ::= r{next}?", ""),
    "cycle": ("r{i} ::= r{next}", "left-recursive"),
    "endless": ('r{i} ::= "a" r{next}', "can never end"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_rules_take_time_in_proportion_to_the_text(name):
    pattern, error = CHAINS[name]

    def seconds(n):
        lines = [pattern.format(i=i, next=(i + 1) % n if error else i + 1) for i in range(n)]
        source = "\n".join([*lines, "root ::= r0", *([] if error else [f'r{n} ::= "a"'])])
        start = time.process_time()
        if error:
            with pytest.raises(ValueError, match=error) as caught:
                tl.Grammar.gbnf(source)
            assert len(str(caught.value)) < 500
        else:
            tl.Grammar.gbnf(source)
        return time.process_time() - start

    small = min(seconds(2000) for _ in range(3))
    assert seconds(16_000) < 8 * 4 * small + 0.5


def test_a_rule_of_many_rules_takes_time_in_proportion():
    def seconds(n):
        names = [f"r{i}" for i in range(n)]
        rules = "\n".join(f'{name} ::= "a"?' for name in names)
        start = time.process_time()
        tl.Grammar.gbnf(f"root ::= {' '.join(names)}\n{rules}")
        return time.process_time() - start

    small = min(seconds(1000) for _ in range(3))
    assert seconds(8000) < 8 * 4 * small + 0.5


def test_assertions_of_regular_expressions_agree_with_re():
    patterns = [
        r"^(?!foo).*$", r"(?=.*a)(?=.*b)", r"\bfoo\b", r"a(?!b)", r"(?<!a)b", r"^a|b$", r"(^a|b)c",
        r"(?i)aB", r"(?i:a)b", r"a\Bb", r"a(?=b$)b", r"(?<=a)b+(?!c)", r"^(a|(?!b)c)?$",
        r"^(?!foo\b).*$", r"^(?=a|b$).*o$", r"a(?=(?!b)c)", r"^(?!^a|b).*", r"^(?:(?=a)..)?c$",
    ]  # fmt: skip
    texts = ["".join(p) for n in range(5) for p in itertools.product("abcfo ", repeat=n)]
    texts += ["foobar", "xfoo", "foo foo", "AB", "Ab", "FOO"]
    for pattern in patterns:
        found = [text for text in texts if re.search(pattern, text)]
        if pattern == r"^(?!^a|b).*":
            with pytest.raises(tl.UnsupportedError, match="looks out of"):
                regex.parse(pattern, True)
            continue
        grammar = tl.Grammar({"root": regex.parse(pattern, True)})
        assert [text for text in texts if grammar.accepts(text)] == found, pattern


def test_intersections_agree_with_their_parts():
    rng = random.Random(6)
    everything = ["".join(p) for n in range(6) for p in itertools.product("ab1", repeat=n)]
    for _ in range(60):
        patterns = [(random_pattern(rng, 2), rng.random() < 0.7) for _ in range(2)]
        low, high = rng.choice([(0, None), (1, 3), (2, 2), (0, 4)])
        conditions = [Matches(regex.parse(p), positive) for p, positive in patterns]
        found = intersection([*conditions, Length(low, high)])
        want = [
            text
            for text in everything
            if low <= len(text) <= (9 if high is None else high)
            and all(bool(re.fullmatch(p, text, re.ASCII)) == yes for p, yes in patterns)
        ]
        program = build({"root": found}) if found else None
        assert [text for text in everything if program and accepts(program, text)] == want


def test_gbnf_takes_text():
    with pytest.raises(TypeError, match="bytes"):
        tl.Grammar.gbnf(b"root ::= x")


def test_ambiguous_grammars_stay_small_or_end_in_an_error():
    # each letter may be read as A or as B: 2 ** n ways to read n letters
    source = 'root ::= s\ns ::= "x" s a | "x" s b | "x"\na ::= "1" a? | "2"\nb ::= "1" b? | "3"'
    grammar = tl.Grammar.gbnf(source)
    assert grammar.accepts("x" * 200 + "1" * 150 + "2" * 199)
    assert not grammar.accepts("x" * 200 + "4")
    assert tl.Grammar.gbnf('root ::= ((("a"{1000}){1000}){1000})').accepts("a" * 99) is False
    hostile = tl.Grammar.gbnf(
        "root ::= " + " ".join(f"[a-b]{{0,{n}}} [a-c]{{0,{n}}}" for n in (3000,) * 6)
    )
    with pytest.raises(tl.UnsupportedError, match=r"too ambiguous.*in rule 'root'"):
        hostile.accepts("a" * 5000)


def test_deep_nesting():
    grammar = tl.Grammar.gbnf('root ::= "(" root? ")"')
    n = 100_000
    assert grammar.accepts("(" * n + ")" * n)
    assert not grammar.accepts("(" * n + ")" * (n - 1))


def test_long_repetitions_are_counted():
    grammar = tl.Grammar.gbnf('root ::= "ab"{40000} [c-d]{70000,70001}')
    assert grammar.accepts("ab" * 40000 + "c" * 70000)
    assert grammar.accepts("ab" * 40000 + "d" * 70001)
    assert not grammar.accepts("ab" * 39999 + "c" * 70000)
    assert not grammar.accepts("ab" * 40000 + "c" * 70002)


def test_right_recursion_takes_no_memory():
    grammar = tl.Grammar.gbnf('root ::= "a" root | "b"')
    automaton = _core.Automaton(grammar._program.array, grammar._program.root)
    automaton.advance(automaton.start, b"a" * 100_000)
    assert automaton.states < 10


def test_characters_are_their_utf8():
    """The edges of ranges, and of the code points that take one byte more."""
    edges = [0, 0x7F, 0x80, 0x7FF, 0x800, 0xFFF, 0x1000, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x3FFFF,
             0x40000, 0x10FFFF]  # fmt: skip
    near = sorted({p + d for p in edges for d in (-1, 0, 1, 65) if 0 <= p + d <= 0x10FFFF})
    near = [p for p in near if not 0xD800 <= p <= 0xDFFF]
    rng = random.Random(3)
    for _ in range(60):
        ranges = [sorted(rng.sample(near, 2)) for _ in range(rng.randrange(1, 4))]
        chars = Chars.of(ranges)
        program = build(check({"root": chars}, "root"))
        automaton = _core.Automaton(program.array, program.root)
        for point in near:
            state = automaton.advance(automaton.start, chr(point).encode())
            assert automaton.look(state)[0] == any(a <= point <= b for a, b in ranges)


class Unhashable(dict):
    __hash__ = None


@pytest.mark.parametrize(
    ("rules", "error", "words"),
    [
        ({"root": "a"}, TypeError, "a rule has a str; expected an expression"),
        ({"root": Ref("x")}, ValueError, "a rule refers to 'x', which is not defined"),
        ({"root": Ref(Unhashable())}, TypeError, "unhashable"),
        ({"root": Seq([Text("a")])}, TypeError, "items is list; expected a tuple"),
        ({"root": Seq((Text("a"), None))}, TypeError, "NoneType"),
        ({"root": Text(b"a")}, TypeError, "a text is bytes"),
        ({"root": Text("\ud800")}, UnicodeEncodeError, "surrogates"),
        ({"root": Chars(((5, 0x110000),))}, ValueError, "kind 1 has parts"),
        ({"root": Chars(((7, 5),))}, ValueError, "kind 1 has parts that do not fit"),
        ({"root": Chars((5,))}, TypeError, "5; expected a tuple of two"),
        ({"root": Repeat(Text("a"), 3, 2)}, ValueError, "kind 4 has parts that do not fit"),
        ({"root": Repeat(Text("a"), 0, 2**40)}, ValueError, "1099511627776; expected at most"),
        ({"root": Machine((), frozenset())}, ValueError, "kind 6 has parts that do not fit"),
        ({"root": Machine((((Text("a"), 2),),), frozenset([0]))}, ValueError, "kind 6"),
        ({"root": Machine((((Text("a"), -1),),), frozenset([0]))}, ValueError, "kind 6"),
        ({}, ValueError, "built once, from one of its rules"),
    ],
)
def test_expressions_that_are_none(rules, error, words):
    with pytest.raises(error, match=words):
        build(rules)


def test_expressions_in_many_others():
    """As deep as Python can read them, or an error."""
    expr, refused = Text("a"), 0
    for depth in range(3000):
        expr = Seq((expr, Text("b"))) if depth % 2 else Alt((expr, Text("c")))
        if depth % 100 == 0:
            try:
                build({"root": expr})
            except (RecursionError, ValueError):
                refused += 1
    assert 5 < refused < 30


def test_equal_parts_are_built_once():
    parts = [Seq((Alt((Text("ab"), Text("ac"))), Chars.among("xyz"))) for _ in range(50)]
    sizes = []
    for n in (2, 50):
        rules = {"root": Alt(tuple(Seq((Text("a"), part)) for part in parts[:n]))}
        sizes.append(len(build(rules).array))
    assert sizes[0] == sizes[1]


# ---- masks ----

PIECES = [
    *(bytes([b]) for b in range(256)),
    *(
        a + b
        for a in (b"a", b"b", b'"', b"{", b"[", b",", b"]", b"}")
        for b in (b"a", b'"', b"]", b"}")
    ),
    *('é 😀 éa aé " }} ]] ]} {" ": true false null ru tr 12 1. .5 e5'.encode().split()),
    *rb"-1 \u \n 00".split(),
    b"\xc3",
    b"a\xc3",
    b"\xa9a",
    b"\xf0\x9f",
    b"",
    b'"' * 9,
    b'","b":[1,2,',
    b'"a"',
    b'"a"',
]
JSON = r"""
root ::= value
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" (string ":" value ("," string ":" value)*)? "}"
array ::= "[" (value ("," value)*)? "]"
string ::= "\"" char* "\""
char ::= [^"\\\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4})
number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([eE] [-+]? [0-9]+)?
"""
SOURCES = {
    "json": JSON,
    "letters": 'root ::= ([a-b] | [é-😀]){2,5} ("a" | "]")*',
    "recursive": 'root ::= "a" root "b" | "b" root? "a" | "{" root "}"',
    "ambiguous": 'root ::= s s\ns ::= "a" s "a" | "a"+ | "ab" s | "b"*',
    "any": "root ::= .*",
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_masks_are_what_every_token_by_itself_says(source):
    rng = random.Random(4)
    grammar = tl.Grammar.gbnf(source)
    program = grammar._program
    trie = _core.Trie(PIECES)
    automaton = _core.Automaton(grammar._program.array, program.root, trie)
    plain = _core.Automaton(grammar._program.array, program.root)
    for _ in range(30):
        state, other, slow = automaton.start, plain.start, matcher.start(program)
        for _ in range(12):
            want = matcher.mask(program, slow, PIECES)
            mask = automaton.mask(state)
            assert mask.dtype == np.bool_
            assert np.array_equal(mask, want)
            assert want.tolist() == [bool(p) and plain.advance(other, p) != 0 for p in PIECES]
            complete, node, following = automaton.look(state)
            assert complete == matcher.is_complete(slow)
            assert (node >= 0) == bool(following) == bool(want[:256].any())
            assert list(following) == np.flatnonzero(want[:256]).tolist()
            if not want.any():
                break
            piece = PIECES[rng.choice(np.flatnonzero(want))]
            state, other = automaton.advance(state, piece), plain.advance(other, piece)
            slow = matcher.advance(program, slow, piece)


def _many_pieces():
    """Return pieces of mixed length and script, whole characters or cut, most of them text."""
    rng = random.Random(11)
    letters = 'abcdefgh  ABC019_-./é߿ࠀ日\u2027\u2028퟿￿😀\U0010ffff"\\\n\x7f'
    weights = [9] * (len(letters) - 4) + [1] * 4
    pieces = {bytes([b]) for b in range(256)}
    for _ in range(3000):
        among = rng.choice([letters, letters, "abcdefABC019", "abcABC019-./"])
        weight = weights if among is letters else None
        text = "".join(rng.choices(among, weight, k=rng.randint(1, 24))).encode()
        pieces.add(text[rng.random() < 0.1 :][: rng.randint(1, 40)])
    return sorted(pieces - {b""})


@pytest.mark.parametrize(
    "source",
    [
        r'root ::= "\"" [^"\\\x00-\x1f]* "\"" ","',
        r'root ::= "\"" [^"\\\x00-\x1f]{0,19} "\"" ","',
        r'root ::= "\"" ([a-zA-Z0-9_ !#-\[\]-~] | [\x80-\U0010ffff]){0,30} "\""',
        r'root ::= "\"" [ !#-\[\]-~]* "\""',  # ASCII
        r'root ::= "\"" [ !#-\[\]-~\x80-\uffff]* "\""',  # not the longest characters
        r'root ::= "\"" [ !#-\[\]-z\x80-\U0010ffff]* "\""',  # not the braces
        r'root ::= "\"" word ("," word)* "\"" word ::= [^"\\,]*',
        'root ::= "<" text "a" text text ::= [^"\\\\]{0,70}',  # a rule that may end anywhere
        "root ::= [^a]* .",
        "root ::= .*",
        r'root ::= "\"" [A-Za-z0-9]* "\""',
        r'root ::= "\"" [A-Za-z0-9]{0,18} "-"? "\""',
        r'root ::= "\"" [!$&-;=?-Z_a-z~]* "\""',  # of a path
        r'root ::= "\"" [!$&-+--;=?-Z_a-z~]* "\""',  # not all of a path
        r'root ::= "\"" [^"\\\n\r\u2028\u2029]* "\""',  # what a dot matches
        r'root ::= "\"" [^"\\\x00-\x1f\x7f]{0,7} "\""',  # few characters
        r'root ::= "\"" ([^"\\\x00-\x1f]{0,5} | "a" [^"\\\x00-\x1f]{0,3}) "\""',
        r'root ::= "\"" ([^"\\\x00-\x1f]{0,5} | [a-z]{8}) "\""',
        r'root ::= "<" text text text ::= ">"? [^"\\\x00-\x1f]{0,12}',  # of a rule that ends
        r'root ::= ([^"\\\x00-\x1f]{4} "\"")*',
        {"type": "string", "maxLength": 5},
        {"type": "string", "maxLength": 30},  # some characters are a rule that is called
        {"type": "string", "minLength": 3, "maxLength": 12},
        {"type": "array", "items": {"type": "string", "minLength": 1}},
        {"type": "string", "format": "uri-reference"},
    ],
)
def test_masks_of_text_are_what_every_token_by_itself_says(source):
    """Whole branches of a vocabulary are plain text, which a mask takes in one step."""
    pieces = _many_pieces()
    if isinstance(source, str):
        grammar = tl.Grammar.gbnf(re.sub(r" (\w+ ::=)", r"\n\1", source))
    else:
        grammar = tl.Grammar.json_schema(source)
    program = grammar._program
    automaton = _core.Automaton(program.array, program.root, _core.Trie(pieces))
    plain = _core.Automaton(program.array, program.root)
    rng = random.Random(3)
    for _ in range(4):
        state, other = automaton.start, plain.start
        for step in range(7):
            want = [plain.advance(other, p) != 0 for p in pieces]
            assert np.array_equal(automaton.mask(state), want), step
            allowed = np.flatnonzero(want)
            if not allowed.size:
                break
            piece = pieces[rng.choice(allowed)]
            state, other = automaton.advance(state, piece), plain.advance(other, piece)


@pytest.mark.parametrize(
    "part",
    ["a", '"ab"', "[é-😀x]", '("a" | "b"+ "c")', "s", '("" | "a")', '""', '("x" s){1,5}', "<[3]>"],
)
@pytest.mark.parametrize("times", ["{6}", "{0,6}", "{3,9}", "{5,}"])
def test_copies_are_what_writing_them_out_is(part, times):
    """From the third copy on, the nodes of the second are moved."""
    rule = '\na ::= [a-c]\ns ::= "(" s? ")"'
    low, high = (int(n) if n else None for n in f"{times[1:-1]},{times[1:-1]}".split(",")[:2])
    tail = f"({part})*" if high is None else "".join(f"({part}" for _ in range(high - low))
    ends = "" if high is None else ")?" * (high - low)
    one = tl.Grammar.gbnf(f"root ::= ({part}){times} [!-~]{rule}")._program
    other = tl.Grammar.gbnf(f"root ::= {f'({part}) ' * low}{tail}{ends} [!-~]{rule}")._program
    automata = [_core.Automaton(p.with_tokens([3] * len(p.tokens)), p.root) for p in (one, other)]
    pieces = [b"a", b"b", b"c", b"ab", b"x", b"(", b")", "é".encode(), "😀".encode(), b"!"]
    rng = random.Random(5)
    for _ in range(60):
        states = [m.start for m in automata]
        for _ in range(14):
            seen = [m.look(s) for m, s in zip(automata, states, strict=True)]
            assert seen[0][::2] == seen[1][::2]
            if one.tokens and rng.random() < 0.8:
                states = [m.accept(s, 3, b"") for m, s in zip(automata, states, strict=True)]
            else:
                fitting = [p for p in pieces if p[:1] in bytes(seen[0][2])] or pieces
                piece = rng.choice(fitting)
                states = [m.advance(s, piece) for m, s in zip(automata, states, strict=True)]
            assert (states[0] == 0) == (states[1] == 0)


def test_a_state_stays_what_it_is():
    grammar = tl.Grammar.gbnf(JSON)
    automaton = _core.Automaton(grammar._program.array, grammar._program.root, _core.Trie(PIECES))
    states = [automaton.advance(automaton.start, t) for t in (b"[", b'{"a', b"[[[[1", b"x")]
    before = [automaton.mask(s) for s in states]
    for i in range(200):
        automaton.mask(automaton.advance(automaton.start, b"[" * i + b'{"a":"' + b"b" * i))
    assert states[-1] == 0
    for state, mask in zip(states, before, strict=True):
        assert np.array_equal(automaton.mask(state), mask)


def test_wrong_arguments_of_the_core():
    nodes = np.array([[3, 0, 0, 0, 0], [0, 65, 65, 0, 0]], np.int32)
    automaton = _core.Automaton(nodes, 1, _core.Trie([b"A", b"B"]))
    assert automaton.mask(automaton.start).tolist() == [True, False]
    for call, error, words in (
        (lambda: _core.Automaton(nodes, 2), ValueError, "root is 2"),
        (lambda: _core.Automaton(nodes, -1), ValueError, "root"),
        (lambda: _core.Automaton(nodes[:0], 0), ValueError, "nodes"),
        (lambda: _core.Automaton([[1, 0, 0, 0, 5]], 0), ValueError, "node 0"),
        (lambda: _core.Automaton([[2, 0, 0, 0, -2]], 0), ValueError, "node 0"),
        (lambda: _core.Automaton([[4, 0, 0, 0, -1]], 0), ValueError, "node 0"),
        (lambda: _core.Automaton([[5, 0, 0, 0, 0]], 0), ValueError, "node 0"),
        (lambda: _core.Automaton(nodes, 1, [b"A"]), TypeError, "trie"),
        (lambda: _core.Automaton(nodes, 1).mask(1), ValueError, "without a trie"),
        (lambda: _core.Trie([b"a", "b"]), TypeError, r"pieces\[1\]"),
        (lambda: automaton.mask(10**6), ValueError, "state is 1000000"),
        (lambda: automaton.advance(10**6, b"a"), ValueError, "state is 1000000"),
        (lambda: automaton.look(-1), (ValueError, OverflowError), None),
        (lambda: automaton.advance(2, "a"), TypeError, None),
    ):
        with pytest.raises(error, match=words):
            call()
    assert len(_core.Trie([])) == 0


@pytest.mark.threads
def test_constraints_are_shared_between_threads():
    tokenizer = tl.load().tokenizer
    grammar = tl.Grammar.gbnf(JSON)
    assert grammar.constraint(tokenizer) is grammar.constraint(tokenizer)
    constraint = grammar.constraint(tokenizer)
    want = {
        t: constraint.mask(constraint.accept_bytes(constraint.start(), t)) for t in (b"[", b'"a')
    }
    wrong = []

    def work(seed):
        rng = random.Random(seed)
        for _ in range(50):
            text = rng.choice(list(want))
            mask = constraint.mask(constraint.accept_bytes(constraint.start(), text))
            if not np.array_equal(mask, want[text]):
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_tokens_that_are_no_text_never_may_come():
    tokenizer = tl.load().tokenizer
    constraint = tl.Grammar.gbnf("root ::= .+").constraint(tokenizer)
    start = constraint.start()
    mask = constraint.mask(start)
    special = [i for i in range(len(tokenizer)) if tokenizer.is_special(i)]
    assert special
    assert not mask[special].any()
    state = constraint.accept(start, tokenizer.id("e"))
    assert np.flatnonzero(constraint.mask(state) & ~mask).tolist() == sorted(tokenizer.eog_ids)
    assert constraint.accept(start, special[0]) == 0
    assert "bytes" in constraint.expected(start)


# ---- regular expressions ----


def random_pattern(rng, depth):
    kind = rng.randrange(8 if depth else 4)
    if kind < 2:
        return rng.choice(["a", "b", "é", r"\.", r"\x61", r"\n", "c", "-"])
    if kind == 2:
        return rng.choice(["[ab]", "[^a]", "[a-c]", "[x-]", r"[\d]", "."])
    if kind == 3:
        return rng.choice([r"\d", r"\w", r"\s"])
    inner = "".join(random_pattern(rng, depth - 1) for _ in range(rng.randrange(1, 3)))
    if kind == 4:
        return f"({inner})" + rng.choice(["*", "+", "?", "{2}", "{1,2}", "{1,}", "??"])
    if kind == 5:
        return f"(?:{inner}|{random_pattern(rng, depth - 1)})"
    return inner


@pytest.mark.parametrize("search", [False, True])
def test_regular_expressions_match_like_python_does(search):
    from tinyllm.grammar import Grammar, regex

    rng = random.Random(5)
    for _ in range(300):
        pattern = random_pattern(rng, 3)
        if search:
            pattern = rng.choice(["", "^"]) + pattern + rng.choice(["", "$"])
        grammar = Grammar({"root": regex.parse(pattern, search)})
        compiled = re.compile(pattern, re.ASCII)
        for _ in range(40):
            text = "".join(rng.choice("aabbcé1 .-x\n") for _ in range(rng.randrange(6)))
            if search and pattern.endswith("$") and text.endswith("\n"):
                continue  # Python's $ also matches before a final line end
            found = compiled.search(text) if search else compiled.fullmatch(text)
            assert grammar.accepts(text) == bool(found), (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "error", "words"),
    [
        ("(a", ValueError, r"no '\)'"),
        ("a)", ValueError, r"no '\('"),
        ("[a", ValueError, "no ']'"),
        ("*a", ValueError, "nothing to repeat"),
        ("a**", ValueError, "nothing to repeat"),
        ("a{3,1}", ValueError, "at least 3"),
        ("a{1000001}", ValueError, "more than"),
        ("[z-a]", ValueError, "backwards"),
        ("a\\", ValueError, "backslash at the end"),
        (r"(?=a)", ValueError, "matches no text"),
        (r"a(?i)b", tl.UnsupportedError, "in the middle"),
        (r"(?m)b", tl.UnsupportedError, "not supported"),
        (r"(?:(?!ab).)*", tl.UnsupportedError, "inside a repetition"),
        (r"(?!\bfoo)o", tl.UnsupportedError, "looks out of"),
        (r"\p{Nope}", tl.UnsupportedError, "class"),
        (r"(a)\1", tl.UnsupportedError, "not supported"),
        (r"a^b", ValueError, "matches no text"),
        (r"(a$)b", ValueError, "matches no text"),
        (r"a++", tl.UnsupportedError, "possessive"),
        ("(" * 3000 + ")" * 3000, ValueError, "nested"),
        (5, TypeError, "expected str"),
    ],
)
def test_regular_expressions_that_are_refused(pattern, error, words):
    with pytest.raises(error, match=words):
        tl.Grammar.regex(pattern)
