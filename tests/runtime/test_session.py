"""Sessions: a context is extended, rewound, forked, interrupted, and used by threads."""

import os
import signal
import sys
import threading
import time
import weakref

import numpy as np
import pytest

import tinyllm as tl
from testkit import models

pytestmark = pytest.mark.sanitize


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.random_model(tmp_path_factory.mktemp("session"), "Q8_0", context=600)


@pytest.fixture(scope="module")
def ids(model):
    return models.random_ids(model, 300)


def test_what_eval_returns(model, ids):
    want = model.logits(ids)
    session = model.session()
    assert session.logits is None
    assert np.array_equal(session.eval(ids), want[-1])
    assert np.array_equal(session.logits, want[-1])
    session.reset()
    assert np.array_equal(session.eval(ids, "all"), want)
    session.reset()
    assert session.eval(ids, "none") is None
    assert session.logits is None
    session.reset()
    assert np.array_equal(session.eval(ids, [5, -1, 5]), want[[5, -1, 5]])
    session.reset()
    assert session.eval(ids, []).shape == (0, model.config.vocab_size)
    assert session.tokens == ids.tolist()
    assert len(session) == 300


def test_rewind_forgets(model, ids):
    want = model.logits(ids)
    session = model.session()
    session.eval(ids[:270], "none")
    session.eval([1, 2, 3, 4] * 10, "none")  # crosses no block, then one
    session.rewind(40 + 20)
    assert session.tokens == ids[:250].tolist()
    assert session.logits is None
    assert np.array_equal(session.eval(ids[250:], "all"), want[250:])
    session.rewind(0)
    assert len(session) == 300
    session.rewind(300)
    assert np.array_equal(session.eval(ids[:3], "all"), want[:3])
    for n in (-1, 4):
        with pytest.raises(ValueError, match=rf"n is {n}; expected 0 to 3"):
            session.rewind(n)


def test_forks_go_their_own_ways(model, ids):
    want = model.logits(ids)
    other = np.concatenate([ids[:258], ids[:30]])
    want_other = model.logits(other)
    session = model.session()
    session.eval(ids[:258], "none")
    fork = session.fork()
    assert fork.tokens == session.tokens
    # both write to the block that they share
    assert np.array_equal(fork.eval(ids[:30], "all"), want_other[258:])
    assert np.array_equal(session.eval(ids[258:], "all"), want[258:])
    # a rewound session writes to blocks that its fork still uses
    third = session.fork()
    session.rewind(300 - 10)
    session.eval(ids[100:200], "none")
    third.rewind(10)
    assert np.array_equal(third.eval(ids[290:], "all"), want[290:])
    del session, fork
    third.rewind(300)
    assert np.array_equal(third.eval(ids, "all"), want)


def test_memory_grows_with_the_context(model, ids):
    session = model.session()
    assert session.core.nbytes == 0
    session.eval(ids[:1], "none")
    one = session.core.nbytes
    session.eval(ids[1:256], "none")
    assert session.core.nbytes == one
    session.eval(ids[256:257], "none")
    assert session.core.nbytes == 2 * one
    session.reset()
    assert session.core.nbytes == 0


def test_bad_tokens_leave_the_session_as_it_was(model, ids):
    want = model.logits(ids)
    session = model.session()
    session.eval(ids[:280], "none")
    size = model.config.vocab_size
    cases = [
        ([1, size], ValueError, rf"tokens\[1\] is {size}; the vocabulary has {size} entries"),
        ([-1], ValueError, r"tokens\[0\] is -1"),
        ([2**40], ValueError, "holds 1099511627776; expected token ids"),
        ([], ValueError, "tokens is empty"),
        ([[1, 2]], TypeError, "2-dimensional"),
        ([1.5], TypeError, "float64"),
        ([True], TypeError, "bool"),
        ("text", ValueError, "no tokenizer"),
        (list(ids[:300]) + [1] * 21, ValueError, "321 tokens after 280 .* context length of 600"),
    ]
    for tokens, error, match in cases:
        with pytest.raises(error, match=match):
            session.eval(tokens)
        assert session.tokens == ids[:280].tolist()
    with pytest.raises(ValueError, match="logits is 'first'"):
        session.eval(ids[:1], "first")
    with pytest.raises(IndexError, match=r"logits\[0\] is 1; expected -1 to 0"):
        session.eval(ids[:1], [1])
    assert np.array_equal(session.eval(ids[280:], "all"), want[280:])


class Alarm(Exception):
    pass


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_signal_interrupts_a_long_prompt(tmp_path, threads):
    model = models.random_model(
        tmp_path, "F32", layers=12, width=512, ffn=2048, context=8192, threads=threads
    )
    ids = models.random_ids(model, 8000)
    want = model.logits(ids[:20])
    session = model.session()
    session.eval(ids[:10], "none")

    def ring(*_):
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Alarm):
            session.eval(ids, "none")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(session.core) == len(session) == 10
    assert np.array_equal(session.eval(ids[10:20], "all"), want[10:])


@pytest.mark.threads
def test_two_threads_in_one_session(model, ids):
    session = model.session()
    errors = []
    finished = 0
    start = threading.Barrier(4)

    def work():
        nonlocal finished
        start.wait()
        for _ in range(20):
            try:
                model.run([session.core], [np.asarray(ids[:2], np.int32)], [1])
                finished += 1
            except RuntimeError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert finished >= 1
    assert len(session.core) == 2 * finished  # a refused call has changed nothing
    assert all("in use" in error for error in errors)


@pytest.mark.threads
def test_sessions_in_different_threads(model, ids):
    want = model.logits(ids)
    results = {}

    def work(i):
        session = model.session()
        chunk = 1 + 7 * i
        parts = [session.eval(ids[j : j + chunk], "all") for j in range(0, 300, chunk)]
        results[i] = np.concatenate(parts)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    for result in results.values():
        assert np.array_equal(result, want)


@pytest.mark.skipif(
    not hasattr(os, "fork") or "TINYLLM_DEVICE" in os.environ,
    reason="needs fork, and a session on the CPU",
)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_after_fork(model, ids):
    want = model.logits(ids)  # starts the threads of the pool; the child process will not have them
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if np.array_equal(model.logits(ids), want) else 2
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    assert np.array_equal(model.logits(ids), want)


@pytest.mark.skipif(
    not hasattr(os, "fork") or "TINYLLM_DEVICE" in os.environ,
    reason="needs fork, and a session on the CPU",
)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_session_in_use_at_a_fork(model, ids):
    """In the child, the thread that used it does not exist, and never gives it back."""
    session, idle = model.session(), model.session()
    idle.eval(ids[:3])
    inside, go_on = threading.Event(), threading.Event()

    def wait(values):
        inside.set()
        go_on.wait(60)
        return values

    user = threading.Thread(
        target=session.eval, args=(ids[:3],), kwargs={"edits": [tl.apply("blk.0.ffn_act", wait)]}
    )
    user.start()
    assert inside.wait(60)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if np.array_equal(idle.eval(ids[3:5]), model.logits(ids[:5])[-1]) else 2
            session.eval(ids[3:5])
        except RuntimeError as error:
            status += 0 if "was in use when the process was forked" in str(error) else 3
        else:
            status += 4
        finally:
            os._exit(status)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(RuntimeError, match="by another thread"):
            session.eval(ids[3:5])
    finally:
        go_on.set()
        user.join()
    assert session.tokens == list(ids[:3])
    assert session.eval(ids[3:5]) is not None


def test_a_session_keeps_its_model_alive(tmp_path, ids):
    model = models.random_model(tmp_path, "Q8_0", context=600)
    want = model.logits(ids[:5])
    session = model.session().core
    core = model.core
    del model
    got = core.forward((session,), (np.asarray(ids[:5], np.int32),), range(5), threads=1)
    assert np.array_equal(got, want)


def test_a_session_of_another_model(model, tmp_path):
    other = models.random_model(tmp_path, "F32")
    with pytest.raises(ValueError, match="belongs to another model"):
        model.run([other.session().core], [np.asarray([1], np.int32)], [0])


def test_the_same_session_twice_in_one_call(model):
    session = model.session().core
    ids = np.asarray([1], np.int32)
    with pytest.raises(RuntimeError, match="twice"):
        model.run([session, session], [ids, ids], [0])
    assert len(session) == 0


def test_repr(model):
    session = model.session()
    session.eval([1, 2])
    assert repr(session).startswith("<tinyllm.Session: 2 tokens, kv cache ")
    assert "<table>" in session._repr_html_()


def test_the_table_tells_shapes_and_what_is_likely(model):
    session = model.session()
    assert "logits" not in str(session.table())
    logits = session.eval([1, 2])
    rows = dict(session.table().rows)
    c = model.config
    assert rows["keys"] == f"(2, {c.kv_heads}, {c.head_size}) in {c.layers} layers"
    assert f"max {logits.max():.4g}" in rows["logits"].plain
    probability = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert rows["next"].startswith(f"'{logits.argmax()}' {100 * probability.max():.1f} %")
    session.eval([3, 4], logits="all")
    assert dict(session.table().rows)["logits"].plain.startswith(f"(2, {c.vocab_size})")
    with pytest.warns(RuntimeWarning, match="NaN"):
        session.eval([5], edits=[tl.apply("output", lambda array: array * np.nan)])
    assert "no finite values" in session._repr_html_()
    session.rewind(1)
    assert "next" not in dict(session.table().rows)


def test_hostile_token_texts_are_escaped_in_the_table(model, monkeypatch):
    monkeypatch.setattr(type(model), "pieces", lambda self, ids: ["<script>\udcff"] * len(ids))
    session = model.session()
    session.eval([1, 2])
    page = session._repr_html_()
    page.encode()
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") >= 2 + 5  # in the text, and in five likely tokens


DIRECTION = tl.add("blk.0.resid_post", 0.5)


def test_tokens_that_ran_under_other_edits_are_not_taken_over(model):
    """A conversation with edits, continued without them, kept keys and values of the edited run."""
    session = model.session()
    session.eval([1, 2, 3])
    session.eval([4, 5], edits=[DIRECTION])
    fork = session.fork()
    assert session.keep([1, 2, 3, 4, 5, 6]) == 3
    assert fork.keep([1, 2, 3, 4, 5, 6], [DIRECTION]) == 0
    other = model.session()
    other.eval([1, 2, 3], edits=[DIRECTION])
    assert other.fork().keep([1, 2, 3, 4], [DIRECTION]) == 3
    assert other.fork().keep([1, 2, 3, 4], [tl.add("blk.0.resid_post", 0.5)]) == 0
    assert other.keep([1, 2, 3, 4], [DIRECTION, DIRECTION]) == 0


def test_a_saved_session_remembers_that_it_was_edited(model, tmp_path):
    session = model.session()
    session.eval([1, 2])
    session.eval([3, 4], edits=[DIRECTION])
    session.eval([5])
    session.save(tmp_path / "s.npz")
    again = model.session(tmp_path / "s.npz")
    assert again.tokens == [1, 2, 3, 4, 5]
    assert again.keep([1, 2, 3, 4, 5, 6]) == 2


def test_a_session_belongs_to_a_generation_until_it_ends(model):
    session = model.session()
    session.eval([1, 2, 3])

    def generation():
        yield

    generator = generation()
    session.lend(weakref.ref(generator))
    for call in (
        lambda: session.eval([4]),
        lambda: session.rewind(1),
        lambda: session.reset(),
        lambda: session.lend(weakref.ref(generation())),
    ):
        with pytest.raises(RuntimeError, match="a generation that has not ended"):
            call()
    assert session.fork().eval([4]) is not None
    assert session.tokens == [1, 2, 3]
    generator.close()
    session.eval([4])


def test_logits_are_those_of_the_last_token(model):
    session = model.session()
    logits = session.eval([1, 2, 3])
    assert session.logits is logits
    fork = session.fork()
    assert fork.logits is logits
    session.rewind(1)
    assert session.logits is None
    session.eval([3], "none")
    assert session.logits is None
    session.rewind(0)
    assert np.array_equal(session.eval([7]), fork.eval([7]))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_interrupts_leave_the_old_state_or_the_new_one(model):
    """A signal between the run and the bookkeeping left tokens and cache of different lengths."""
    random = np.random.default_rng(0)
    session, fresh = model.session(), model.session()
    hits = 0
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(400):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 1e-3))
                if len(session) > 12:
                    session.rewind(9)
                session.eval([5] * int(random.integers(1, 20)), edits=[DIRECTION])
                session.eval([6])
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                hits += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            ids = session.tokens
            assert len(session) == len(ids) == len(session.core.cache(0)[0])
            assert len(session._ran_under()) == len(ids)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert hits > 20
    session.keep([*session.tokens, 1])  # what is left ran without edits, and nothing else
    fresh.eval([*session.tokens, 7])
    assert np.array_equal(session.eval([7]), fresh.logits)


def test_tokens_do_not_inherit_the_edits_of_forgotten_ones(model):
    """An interrupt after a run can keep the session from noting under which edits it ran."""
    session = model.session()
    session.eval([1, 2, 3, 4, 5])
    assert session.keep([9, 9, 9], [DIRECTION]) == 0
    model.run([session.core], [np.array([1, 2, 3], np.int32)], [])  # nothing is noted
    assert session.tokens == [1, 2, 3]
    assert session.keep([1, 2, 3, 4]) == 0
