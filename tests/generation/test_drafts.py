"""Drafts change nothing but the time: texts, log-probabilities, traces and sessions are equal."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

import tinyllm as tl
from testkit import models
from testkit.drafts import VERSE, same
from tinyllm.generation import drafts
from tinyllm.generation.drafts import Costs, LookupDrafts, choose
from tinyllm.runtime.beginnings import run_beginnings

PROMPT = VERSE + VERSE + "ROMEO:\nIt is"


@pytest.fixture(scope="module")
def model():
    return tl.load(threads=1)


@pytest.fixture
def eager(monkeypatch):
    """Drafts are checked however improbable: calls of many rows seem to cost nothing."""
    monkeypatch.setattr(Costs, "of", lambda self, rows: 1.0)
    monkeypatch.setattr(drafts.ModelDrafts, "_count", lambda self, texts: 6)


class Wrong:
    """Guesses of which some are right and the rest are wrong, with a length that changes."""

    def __init__(self, texts, seed=0):
        self.texts, self.at = texts, [0] * len(texts)
        self.random = np.random.default_rng(seed)

    def propose(self, texts, rooms):
        found = []
        for i, room in zip(texts, rooms, strict=True):
            right = self.texts[i][self.at[i] : self.at[i] + room]
            count = int(self.random.integers(0, room + 1))
            guesses = [(t, 0.9) for t in right[:count]]
            if len(guesses) < room and self.random.random() < 0.7:
                guesses += [(int(t), 0.8) for t in self.random.integers(0, 300, 3)]
            found.append(guesses[:room])
        return found

    def drawn(self, text, token):
        self.at[text] += 1


@pytest.fixture
def wrong(monkeypatch, eager):
    """A source of guesses that is right at random: the harshest test of what is taken back."""

    def use(results, seed=0):
        texts = [g.ids for g in (results if isinstance(results, list) else [results])]
        monkeypatch.setattr(
            "tinyllm.generation.stepper.make_drafts",
            lambda draft, drawings: None if draft is None else Wrong(texts, seed),
        )

    return use


OPTIONS = [
    {"temperature": 0, "seed": 0},
    {"seed": 1},
    {"seed": 2, "temperature": 1.3, "top_k": 0, "top_p": 1.0},
    {"seed": 3, "min_p": 0.1, "repeat_penalty": 1.3, "logprobs": 3},
    {"seed": 4, "frequency_penalty": 0.4, "presence_penalty": {"value": 0.3, "last_n": 20}},
    {"seed": 5, "dry": {"multiplier": 0.8, "allowed_length": 2}},
    {"seed": 6, "mirostat": 4.0, "logprobs": 0},
    {"seed": 7, "mirostat_v2": 4.0},
    {"seed": 8, "dynamic_temperature": {"value": 1.0, "range": 0.5}, "typical": 0.9},
    {"seed": 9, "xtc": {"probability": 0.5, "threshold": 0.05}, "top_n_sigma": 1.5},
    {"temperature": 0, "seed": 0, "logit_bias": {13: 3.0, 20: -2.0}, "banned": [7]},
    {"seed": 10, "forced": [20, 30, 40, 50, 60]},
    {"seed": 11, "grammar": tl.Grammar.regex("[A-Za-z ,.:\n]{40,90}")},
    {"seed": 12, "grammar": tl.Grammar.json_schema({"type": "array", "items": {"enum": [1, 2]}})},
    {"temperature": 0, "seed": 0, "stop": ["sun", "the e"]},
    {"seed": 13, "min_tokens": 30, "stop_ids": [13, 46], "logprobs": 1},
    {"seed": 14, "edits": tl.scale("blk.1.ffn_act", 0.5)},
    {"seed": 15, "capture": ["blk.*.resid_post", "blk.0.attn_*", "output"], "logprobs": 2},
    {"temperature": 0, "seed": 0, "capture": "*"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(k for k in o if k != "seed"))
def test_nothing_changes(model, wrong, options):
    plain = model.generate(PROMPT, 60, **options)
    assert plain.timings.drafted == plain.timings.accepted == 0
    lookup = model.generate(PROMPT, 60, draft="lookup", **options)
    assert same(plain, lookup)
    wrong(plain)
    tried = model.generate(PROMPT, 60, draft="lookup", **options)
    assert same(plain, tried)
    assert tried.timings.accepted <= tried.timings.drafted
    if "edits" in options:
        assert tried.timings.drafted == 0
    elif len(plain.ids) > 20:
        assert 0 < tried.timings.accepted
        # a guess that the grammar refuses is not checked
        assert tried.timings.accepted < tried.timings.drafted or "grammar" in options


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_K", "Q6_K", "Q4_1"])
def test_both_modes_and_types(tmp_path, wrong, mode, kind):
    tl.write_gguf(tmp_path / "m.gguf", *models.random_llama(kind))
    model = tl.load(tmp_path / "m.gguf", threads=1, mode=mode)
    options = {"seed": 1, "temperature": 1.5, "logprobs": 2}
    plain = model.generate([3, 1, 4, 1, 5], 40, **options)
    wrong(plain)
    assert same(plain, model.generate([3, 1, 4, 1, 5], 40, draft="lookup", **options))


def test_batches(model, wrong):
    prompts = [PROMPT, "JULIET:\nO Romeo", "A", VERSE]
    options = {"seed": [1, 2, 3, 4], "logprobs": 2, "stop": "\n\n"}
    plain = model.generate(prompts, 50, **options)
    assert same(plain, model.generate(prompts, 50, draft="lookup", **options))
    wrong(plain)
    tried = model.generate(prompts, 50, draft="lookup", **options)
    assert same(plain, tried)
    assert same(plain, [model.generate(p, 50, **{**options, "seed": i + 1})
                        for i, p in enumerate(prompts)])  # fmt: skip
    assert all(g.timings.accepted for g in tried if len(g.ids) > 20)


def test_a_context_that_shifts(wrong):
    model = tl.load(threads=1, max_context=48)
    options = {"seed": 3, "context": "shift", "logprobs": 1, "capture": "blk.1.resid_post"}
    plain = model.generate(PROMPT, 120, **options)
    wrong(plain)
    assert same(plain, model.generate(PROMPT, 120, draft="lookup", **options))
    options["context"] = "stop"
    plain = model.generate("ROMEO:", **options)
    wrong(plain)
    tried = model.generate("ROMEO:", draft="lookup", **options)
    assert same(plain, tried)
    assert tried.stop_reason == "context"


def test_other_architectures(wrong):
    for architecture in ("gemma3", "qwen3moe", "gpt2", "gpt-oss", "deepseek2"):
        model = tl.testing.random_model(architecture)
        options = {"seed": 2, "temperature": 1.2, "logprobs": 1, "capture": "*"}
        plain = model.generate([1, 2, 3], 24, **options)
        wrong(plain)
        tried = model.generate([1, 2, 3], 24, draft="lookup", **options)
        assert same(plain, tried), architecture
        assert tried.timings.accepted, architecture


# ---- sessions ----


TALK = [{"role": "user", "content": VERSE + VERSE}]


def whole(session):
    """Whether a session goes on as a new one with its tokens, with the same cache."""
    ids = session.tokens
    fresh = session.model.session()
    fresh.eval(ids)
    assert len(session) == len(session.core) == len(ids)
    for mine, new in zip(session.core.cache(0), fresh.core.cache(0), strict=True):
        assert np.array_equal(mine, new)
    return np.array_equal(session.eval([7]), fresh.eval([7]))


@pytest.mark.parametrize("end", ["cancel", "close", "drop", "all", "error"])
@pytest.mark.parametrize("pieces", [1, 2, 7, 12])
def test_a_session_has_the_tokens_that_it_would_have_had(model, wrong, end, pieces):
    options = {"max_tokens": 40, "seed": 1, "template": "plain"}
    if end == "error":  # the grammar ends in what no token spells, after a few tokens
        grammar = tl.Grammar.gbnf("root ::= [a-z ]{" + str(pieces) + '} "\\U0001F600" [a-z]')
        options["grammar"] = grammar
    plain = model.session()
    texts = model.chat(TALK, **{k: v for k, v in options.items() if k != "grammar"})

    def run(session, **more):
        stream = model.chat_stream(TALK, session=session, **options, **more)
        seen = []
        for piece in stream:
            seen.append(piece)
            if end != "all" and len(seen) == pieces:
                break
        assert session.tokens[: len(stream.result.prompt_ids)] == stream.result.prompt_ids
        assert len(session.fork()) == len(session)
        if end in ("cancel", "close"):
            getattr(stream, end)()
            seen += list(stream)
        return seen, stream.result.ids

    want = run(plain)
    wrong(texts)
    session = model.session()
    assert run(session, draft="lookup") == want
    assert session.tokens == plain.tokens
    assert whole(session)


def test_a_session_that_is_read_meanwhile(model, wrong, tmp_path):
    """Whatever looks at the session, the text goes on as before."""
    options = {"max_tokens": 40, "seed": 1, "template": "plain"}
    plain = model.chat(TALK, **options)
    wrong(plain)
    session = model.session()
    stream = model.chat_stream(TALK, session=session, draft="lookup", **options)
    for i, _ in enumerate(stream):
        n = len(stream.result.prompt_ids) + len(stream.result.ids)
        assert n - 1 <= len(session) <= n
        assert session.tokens == [*stream.result.prompt_ids, *stream.result.ids][: len(session)]
        if i % 5 == 2:
            session.save(tmp_path / "s.npz")
            assert model.session(tmp_path / "s.npz").tokens == session.tokens
        if i % 7 == 3:
            assert whole(session.fork())
    assert same(plain, stream.result)


def test_a_second_turn(model, wrong):
    session, plain = model.session(), model.session()
    talk = list(TALK)
    for turn in range(3):
        options = {"max_tokens": 30, "seed": turn, "template": "plain"}
        want = model.chat(talk, session=plain, **options)
        wrong(want, turn)
        got = model.chat(talk, session=session, draft="lookup", **options)
        assert same(want, got)
        assert got.timings.prompt_tokens == want.timings.prompt_tokens
        assert session.tokens == plain.tokens
        talk += [{"role": "assistant", "content": got.text}, {"role": "user", "content": "And?"}]


def test_another_thread_cancels(model, wrong):
    session = model.session()
    options = {"max_tokens": 400, "seed": 1, "template": "plain"}
    wrong(model.chat(TALK, **{**options, "max_tokens": 100}))
    stream = model.chat_stream(TALK, session=session, draft="lookup", **options)
    next(stream)
    timer = threading.Timer(0.02, stream.cancel)
    timer.start()
    pieces = list(stream)
    timer.join()
    assert stream.result.stop_reason == "cancelled"
    assert len(pieces) < 400
    assert whole(session)


# ---- sources of guesses ----


def small_model(model, tmp_path, blocks=1, rename=None):
    """Return the first blocks of the demo model, with one token renamed."""
    metadata = dict(model.metadata)
    metadata[f"{model.config.architecture}.block_count"] = blocks
    if rename is not None:
        tokens = list(metadata["tokenizer.ggml.tokens"])
        tokens[rename] = "another"
        metadata["tokenizer.ggml.tokens"] = tokens
    keep = tuple(f"blk.{i}." for i in range(blocks))
    weights = {n: w for n, w in model.weights.items() if n[:4] != "blk." or n.startswith(keep)}
    tl.write_gguf(tmp_path / "small.gguf", metadata, weights)
    return tl.load(tmp_path / "small.gguf", threads=1)


@pytest.mark.parametrize("options", [OPTIONS[i] for i in (0, 1, 3, 5, 7, 11, 12, 14)],
                         ids=lambda o: " ".join(o))  # fmt: skip
def test_a_model_guesses(model, tmp_path, eager, options):
    small = small_model(model, tmp_path)
    plain = model.generate(PROMPT, 40, **options)
    assert same(plain, model.generate(PROMPT, 40, draft=small, **options))
    alike = model.generate(PROMPT, 40, draft=model, **options)
    assert same(plain, alike)
    # a model that guesses for itself is always right
    assert alike.timings.accepted == alike.timings.drafted > len(plain.ids) // 2


def test_a_model_guesses_for_a_batch(model, tmp_path, eager):
    small = small_model(model, tmp_path, 2)
    prompts, options = [PROMPT, "A", VERSE], {"seed": 5, "logprobs": 1}
    plain = model.generate(prompts, 40, **options)
    tried = model.generate(prompts, 40, draft=small, **options)
    assert same(plain, tried)
    assert sum(g.timings.accepted for g in tried) > 0
    assert sum(g.timings.drafted - g.timings.accepted for g in tried) > 0


def test_a_model_with_a_short_context(model, tmp_path, eager):
    short = tl.load(small_model(model, tmp_path).path, threads=1, max_context=40)
    plain = model.generate(PROMPT, 60, seed=1)
    assert same(plain, model.generate(PROMPT, 60, seed=1, draft=short))
    plain = model.generate("A", 60, seed=1)
    tried = model.generate("A", 60, seed=1, draft=short)
    assert same(plain, tried)
    assert 0 < tried.timings.drafted


def test_another_vocabulary(model, tmp_path):
    small = small_model(model, tmp_path, rename=300)
    old = model.metadata["tokenizer.ggml.tokens"][300]
    with pytest.raises(ValueError, match="token 300 is 'another' in the draft model") as error:
        model.generate("A", 5, draft=small)
    assert repr(old) in str(error.value)
    a, b = (tl.testing.random_model("llama", vocab=v) for v in (320, 352))
    with pytest.raises(ValueError, match="has 352 tokens, and the model has 320"):
        a.generate([1], 5, draft=b)


@pytest.mark.parametrize("draft", ["look", 3, True, b"lookup", ["lookup"]])
def test_wrong_drafts(model, draft):
    for call in (model.generate, model.stream):
        with pytest.raises(TypeError, match="expected None, 'lookup' or a smaller"):
            call("A", 5, draft=draft)


def test_models_without_drafts(model):
    state = tl.testing.random_model("mamba")
    with pytest.raises(ValueError, match=r"the model \(mamba\) has recurrent states"):
        state.generate([1], 5, draft="lookup")
    plain = tl.testing.random_model("llama", vocab=state.config.vocab_size)
    with pytest.raises(ValueError, match=r"the draft model \(mamba\) has recurrent states"):
        plain.generate([1], 5, draft=state)
    with pytest.raises(ValueError, match="a search draws no tokens"):
        model.beam_search("A", draft="lookup")


def find_plainly(text, count):
    """What `_core.Lookup.find` says, from its docstring: the last of the longest matches."""
    best, start = 1, 0
    for end in range(len(text) - 1, 0, -1):
        size = 0
        while size < min(end, 64) and text[end - 1 - size] == text[-1 - size]:
            size += 1
        if size > best:
            best, start = size, end
    if best < 2:
        return 0, []
    for i in range(count):
        text = [*text, text[start + i]]
    return best, text[len(text) - count :]


@pytest.mark.sanitize
def test_lookup_finds_the_longest_repetition():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        size, kinds = int(rng.integers(0, 60)), int(rng.integers(1, 6))
        text = rng.integers(-1, kinds, size).tolist()
        cut = int(rng.integers(0, size + 1))
        index = tl._core.Lookup(text[:cut])
        for token in text[cut:]:
            index.append([token])
        assert len(index) == size
        assert index.find(9) == find_plainly(text, 9), text
    text = rng.integers(0, 1 << 30, 50_000).astype(np.int32)
    index = tl._core.Lookup(text)
    index.append(text[777:900])
    assert index.find(5) == (64, text[900:905].tolist())
    assert index.find(0) == (64, [])
    for wrong in (-1, 65):
        with pytest.raises(ValueError, match="expected 0 to 64"):
            index.find(wrong)
    with pytest.raises(TypeError):
        index.append(np.array([1.5]))


def test_the_number_of_guesses_follows_chances_and_costs():
    costs = Costs()
    costs.record(1, 1.0)
    costs.record(9, 3.0)
    sure, doubtful = [(7, 0.98)] * 8, [(7, 0.4)] * 8
    assert choose([sure], 1, costs) == [8]
    assert choose([doubtful], 1, costs) == [0]
    assert choose([[], sure], 2, costs)[0] == 0
    for _ in range(50):
        costs.record(9, 30.0)  # a group became as slow as nine single tokens
    assert choose([sure], 1, costs)[0] < 8
    # one slow call counts little
    before = Costs()
    before.record(1, 1.0)
    before.record(1, 100.0)
    assert before.of(1) < 2


def test_a_text_without_repetition_has_no_draft():
    text = SimpleNamespace(history=list(range(500)))
    source = LookupDrafts([text])
    assert source.propose([0], [20]) == [[]]
    rng = np.random.default_rng(0)
    drafted = 0
    for token in rng.integers(0, 12, 500).tolist():  # repetitions, which mean nothing
        drafted += sum(choose(source.propose([0], [20]), 1, Costs()))
        source.drawn(0, token)
    assert drafted < 25
    # and one that repeats itself gets long ones
    for token in [*range(40), *range(30)]:
        source.drawn(0, token)
    assert choose(source.propose([0], [9]), 1, Costs()) == [9]
    assert [t for t, _ in source.propose([0], [9])[0]] == list(range(30, 39))


# ---- shared beginnings ----


def test_n_texts_are_those_of_the_seeds(model):
    found = model.generate(PROMPT, 20, seed=2**64 - 1, n=3, logprobs=1)
    assert [g.seed for g in found] == [2**64 - 1, 0, 1]
    for g in found:
        assert same(model.generate(PROMPT, 20, seed=g.seed, logprobs=1), g)
    ids = found[0].prompt_ids
    assert [g.timings.prompt_tokens for g in found] == [len(ids), 1, 1]
    both = model.generate(["A", VERSE], 9, seed=[5, 9], n=2, draft="lookup")
    assert [[g.seed for g in each] for each in both] == [[5, 6], [9, 10]]
    assert same(both[1][1], model.generate(VERSE, 9, seed=10))
    sampler = tl.Sampler(temperature=1.0, mirostat_v2=4.0, seed=3)
    chained = model.generate("A", 9, sampler=sampler, n=2)
    assert same(chained, [model.generate("A", 9, sampler=sampler.later(i)) for i in range(2)])
    assert len(model.generate("A", 2, n=1)) == 1
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"n is {wrong}"):
            model.generate("A", 2, n=wrong)


def test_common_beginnings_run_once(model, monkeypatch):
    rows = []
    run = type(model).run

    def counted(self, sessions, tokens, *arguments, **options):
        rows.append(sum(map(len, tokens)))
        return run(self, sessions, tokens, *arguments, **options)

    long = VERSE * 3
    prompts = [long + "ROMEO:", long + "JULIET: O", long, "A", long + "JULIET: My", "AB"]
    alone = [model.generate(p, 12, seed=4, logprobs=1) for p in prompts]
    monkeypatch.setattr(type(model), "run", counted)
    assert same(alone, model.generate(prompts, 12, seed=4, logprobs=1))
    shared = len(model.tokenizer.encode(long)) - 1
    assert rows[0] == shared
    assert rows[0] + rows[1] < shared + 40
    # what sees the whole prompt gets the whole prompt
    rows.clear()
    captured = model.generate(prompts, 1, seed=4, capture="output")
    assert len(captured[2].traces[0].tokens) == shared + 1
    assert len(rows) == 1


def test_any_texts_have_their_beginnings(model):
    rng = np.random.default_rng(1)
    for trial in range(20):
        base = rng.integers(5, 300, 120)
        texts = []
        for _ in range(int(rng.integers(1, 9))):
            cut = int(rng.integers(1, 120))
            tail = rng.integers(5, 300, int(rng.integers(0, 4)))
            texts.append(np.concatenate([base[:cut], tail]).astype(np.int32))
        sessions, ran = run_beginnings(model, texts)
        for text, session in zip(texts, sessions, strict=True):
            n = len(session)
            assert n < len(text)
            assert np.array_equal(session.tokens, text[:n]), trial
        assert sum(ran) <= sum(map(len, texts))
        (i,) = np.flatnonzero(np.arange(len(texts)) == trial % len(texts))
        logits, _ = model.run([sessions[i]], [texts[i][len(sessions[i]) :]],
                              [len(texts[i]) - len(sessions[i]) - 1])  # fmt: skip
        assert np.array_equal(logits[0], model.session().eval(texts[i]))


def test_models_with_states_share_beginnings():
    model = tl.testing.random_model("qwen35")
    long = list(range(5, 105))
    prompts = [[*long, 1], [*long, 2, 3], long]
    alone = [model.generate(p, 6, seed=1, logprobs=1) for p in prompts]
    assert same(alone, model.generate(prompts, 6, seed=1, logprobs=1))


def test_a_prompt_of_a_session_keeps_what_it_has(model):
    session = model.session()
    first, second = VERSE + "ROMEO:", VERSE + "JULIET:"
    session.prompt(first)
    logits = session.prompt(second, "all")
    ids = model.tokenizer.encode(second)
    assert session.tokens == ids
    assert len(logits) < 10
    assert np.array_equal(logits[-1], model.session().eval(ids))
    assert np.array_equal(session.prompt(second), logits[-1])  # the last token runs again
    assert session.prompt(second, "none") is None
    edit = tl.scale("blk.1.ffn_act", 0.5)
    edited = session.prompt(second, "all", edits=edit)
    assert len(edited) == len(ids)  # nothing that ran without the edit stays
    assert not np.array_equal(edited[-1], logits[-1])
    assert np.array_equal(session.prompt(second), logits[-1])
    before = session.tokens
    limit = model.core.config["max_context"]
    for wrong in ([5] * (limit + 1), [5, 100_000], [], [-1, 3]):
        with pytest.raises(ValueError):  # noqa: PT011
            session.prompt(wrong)
        assert session.tokens == before


def test_costs_belong_to_their_model(model):
    model.generate("A", 3, seed=1)
    assert drafts.costs_of(model).of(1) < 1
    fresh = drafts.costs_of(tl.testing.random_model("llama"))
    assert fresh.of(1) == 1.0
