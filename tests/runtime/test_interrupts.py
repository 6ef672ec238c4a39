"""Ctrl-C at random points of every call that runs the core: a session is old or new, never else.

The signal is a timer's, whose handler raises KeyboardInterrupt as Ctrl-C's does.
"""

import random
import signal

import numpy as np
import pytest

import tinyllm as tl
from testkit import models, recurrent

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer")

START = [1, 2, 3, 4, 5]
EDIT = tl.scale("blk.0.attn_v", 0.5)
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.random_model(
        tmp_path_factory.mktemp("interrupts"), layers=3, width=64, ffn=96, vocab=60, context=256,
        threads=1,
    )  # fmt: skip


class Alarm:
    """A timer that interrupts a call once."""

    def __init__(self):
        self._armed = False

    def ring(self, *_):
        if self._armed:
            self._armed = False
            raise KeyboardInterrupt

    def interrupts(self, call, seconds):
        """Run a call with the timer. Return whether it rang before the end."""
        try:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, seconds)
            call()
            self._armed = False
        except KeyboardInterrupt:
            return True
        return False


@pytest.fixture
def alarm():
    alarm = Alarm()
    before = signal.signal(signal.SIGALRM, alarm.ring)
    yield alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def begun(model):
    session = model.session()
    session.eval(START)
    return session


def stream(model, session, **options):
    talk = [{"role": "user", "content": "ROMEO: But soft"}]
    options = {"seed": 1, "template": TEMPLATE, "max_tokens": 12, "session": session, **options}
    return model.chat_stream(talk, **options)


def long_chat(model, session):
    """A generation in which the context shifts."""
    for _ in stream(model, session, max_tokens=40, context="shift"):
        pass


#: calls that run the core in a session: (model, session) -> anything
CALLS = {
    "eval": lambda model, session: session.eval([5] * 20),
    "eval of one": lambda model, session: session.eval([6]),
    "eval with edits": lambda model, session: session.eval([5] * 20, edits=EDIT),
    "trace": lambda model, session: session.eval([5] * 12, capture="*"),
    "rewind and eval": lambda model, session: (session.rewind(3), session.eval([9] * 3)),
    "generate": lambda model, session: model.chat(
        [{"role": "user", "content": "ROMEO: But soft"}],
        max_tokens=12, seed=1, template=TEMPLATE, session=session,
    ),
    "stream": lambda model, session: list(stream(model, session)),
    "stream with edits": lambda model, session: list(stream(model, session, edits=EDIT)),
    "stream with a draft": lambda model, session: list(stream(model, session, draft="lookup")),
    "session.prompt": lambda model, session: session.prompt([*START[:2], *[9] * 12]),
    "stream that is left": lambda model, session: next(stream(model, session)),
    "stream that shifts": long_chat,
}  # fmt: skip


def next_bits(model, session, edits):
    """The logits after one more token, in the session and in a new one with its tokens."""
    if len(session) == model.core.config["max_context"]:
        session.rewind(1)
    ids = session.tokens
    assert len(session) == len(ids) == session.core.cache(0)[0].shape[0]
    edits = edits[: len(ids)]
    other = model.session()
    for token, under in zip(ids, edits, strict=True):
        other.eval([token], "none", edits=under)
    return session.eval([7]), other.eval([7])


def interrupted(alarm, name, model, seconds):
    """Run one call with an alarm. Return whether it rang, after the checks of the session."""
    session = begun(model)
    if not alarm.interrupts(lambda: CALLS[name](model, session), seconds):
        return False
    ids = session.tokens
    plain = len(ids) if "edits" not in name else len(START)
    if name == "stream with edits" and ids != START:
        plain = 0
    # The session never takes a token for one that ran without edits, or with them, if it did not.
    assert session.fork().keep([*ids, 0]) <= plain
    assert session.fork().keep([*ids, 0], [EDIT]) <= (len(ids) if plain == 0 else 0)
    got, want = next_bits(model, session, [() if i < plain else EDIT for i in range(len(ids))])
    assert np.array_equal(got, want), (name, seconds, ids)
    if session.logits is not None:
        assert np.array_equal(session.logits, got)
    # and it is free: nothing waits for the generation that was interrupted
    session.reset()
    assert len(session) == 0
    return True


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_thousand_interrupts(name, model, alarm):
    draw = random.Random(name)
    runner = model if "eval" in name or name == "trace" else tl.load(threads=1, max_context=30)
    CALLS[name](runner, begun(runner))  # imports what it needs
    hits = tries = 0
    longest = 0.002
    while hits < 120:
        tries += 1
        assert tries < 20_000
        hit = interrupted(alarm, name, runner, 1e-6 + draw.random() * longest)
        hits += hit
        # the alarm should ring in most calls, and sometimes after
        longest = min(longest * (1.1 if hit else 0.97), 0.2)
        longest = max(longest, 0.0002)


def test_a_model_is_not_changed_by_interrupts(model, alarm):
    """Calls without a session leave nothing but caches, which must stay right."""
    demo = tl.load(threads=1)
    grammar = tl.Grammar.regex("(rich|poor)[a-z ]*")
    calls = {
        "trace": lambda: model.trace([[3, 1, 4, 1], [5, 9]], "*", edits=EDIT)[1][
            "output"
        ].tobytes(),
        "sweep": lambda: tl.patch_sweep(
            model, [1, 2, 3], [1, 4, 3], metric=lambda logits: logits[-1, 5]
        ).tobytes(),
        "grammar": lambda: demo.generate("A ", 6, seed=1, grammar=grammar).ids,
        "beams": lambda: demo.beam_search("A ", 3, 3)[0].ids,
        "score": lambda: demo.score("Good morrow").total,
    }
    draw = random.Random(1)
    for name, call in calls.items():
        want = call()
        hits = sum(alarm.interrupts(call, 1e-6 + draw.random() * 0.004) for _ in range(40))
        assert hits > 0, name
        assert call() == want, name


def test_some_interrupts(model, alarm):
    draw = random.Random(5)
    for name in ("eval", "trace"):
        hits = sum(interrupted(alarm, name, model, 1e-6 + draw.random() * 0.001) for _ in range(60))
        assert hits > 0


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["lfm2", "qwen35"])
def test_interrupts_of_recurrent_models(architecture, alarm, tmp_path):
    """A rewind runs tokens again, from the states that the session keeps."""
    tl.write_gguf(tmp_path / "m.gguf", *recurrent.random_model(architecture))
    model = tl.load(tmp_path / "m.gguf", threads=1)
    start = [(7 * i) % 90 for i in range(262)]
    whole = model.session()
    whole.eval(start)
    calls = {
        "eval": lambda session: session.eval([5] * 9),
        "trace": lambda session: session.eval([5] * 9, capture="*"),
        "rewind": lambda session: session.rewind(3),
        "rewind and eval": lambda session: (session.rewind(3), session.eval([9] * 3)),
    }
    draw = random.Random(architecture)
    for name, call in calls.items():
        call(whole.fork())
        hits = tries = 0
        while hits < 25 and tries < 2000:
            tries += 1
            session = whole.fork()
            seconds = 1e-6 + draw.random() * 0.003
            if not alarm.interrupts(lambda: call(session), seconds):  # noqa: B023 (runs at once)
                continue
            hits += 1
            ids = session.tokens
            assert len(session) == len(ids)
            fresh = model.session()
            fresh.eval(ids)
            assert session.fork().keep([*ids, 0]) <= len(ids)
            assert np.array_equal(session.eval([7]), fresh.eval([7])), name
        assert hits == 25, name
