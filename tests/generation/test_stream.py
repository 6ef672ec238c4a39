"""Streams: cancelling, timeouts, and a context that shifts; sessions stay whole."""

import asyncio
import math
import pickle
import threading
import time

import numpy as np
import pytest

import tinyllm as tl
from testkit import models
from tinyllm.generation.stepper import shifted

TALK = [{"role": "user", "content": "Good morrow"}]


@pytest.fixture(scope="module")
def model():
    return tl.load(threads=1)


def slow(seconds, tap="blk.0.resid_post"):
    """An edit that changes nothing and takes time."""
    return tl.apply(tap, lambda array: time.sleep(seconds))


def whole(session):
    """Whether a session goes on as a new one with its tokens."""
    ids = session.tokens
    fresh = session.model.session()
    assert len(session.core) == len(ids) == session.core.cache(0)[0].shape[0]
    return np.array_equal(session.eval([7]), fresh.eval([*ids, 7]))


# ---- cancel ----


def test_another_thread_ends_a_stream_after_the_present_token(model):
    stream = model.stream("ROMEO:", 400, seed=1, edits=slow(0.005))
    want = model.stream("ROMEO:", 400, seed=1)
    pieces = []
    timer = threading.Timer(0.15, stream.cancel)
    timer.start()
    pieces.extend(stream)
    timer.join()
    assert 0 < len(pieces) < 300
    assert pieces == [next(want) for _ in pieces]
    assert stream.result.stop_reason == "cancelled"
    assert stream.result.text == "".join(pieces)
    assert list(stream) == []


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_a_cancelled_session_is_whole_and_free(model, end):
    session = model.session()
    options = {"max_tokens": 400, "seed": 1, "template": "plain", "session": session}
    stream = model.chat_stream(TALK, **options)
    want = list(model.chat_stream(TALK, **{**options, "session": None, "max_tokens": 60}))
    pieces = [next(stream)]
    threading.Timer(0.03, getattr(stream, end)).start()
    pieces.extend(stream)
    assert len(pieces) < 400
    assert all(map(str.__eq__, pieces, want))
    stream.close()
    assert session.tokens[: len(stream.result.prompt_ids)] == stream.result.prompt_ids
    assert whole(session)


def test_a_long_prompt_is_given_up(model):
    ran = []
    edit = tl.apply("blk.*.resid_post", lambda array, name: ran.append(name) or time.sleep(0.15))
    session = model.session()
    session.eval([5, 6, 7])
    stream = model.chat_stream(
        TALK, max_tokens=5, seed=1, template="plain", session=session, edits=edit
    )
    threading.Timer(0.2, stream.cancel).start()
    assert list(stream) == []
    assert 0 < len(ran) < 4
    assert stream.result.stop_reason == "cancelled"
    assert stream.result.ids == []
    assert whole(session)


def test_cancelled_before_it_begins(model):
    stream = model.stream("ROMEO:", 5, seed=1)
    stream.cancel()
    assert list(stream) == []
    assert stream.result.stop_reason == "cancelled"
    assert model.stream("ROMEO:", 5, seed=1).result.stop_reason == ""


def test_text_that_was_held_back_comes_last(model):
    want = model.generate("ROMEO:", 12, temperature=0).text
    stop = want[3:6] + "\0"  # never comes, but may always begin
    stream = model.stream("ROMEO:", 12, temperature=0, stop=[stop])
    pieces = [next(stream)]
    stream.cancel()
    pieces.extend(stream)
    assert "".join(pieces) == stream.result.text
    assert want.startswith("".join(pieces))


def test_a_stream_closes_itself(model):
    with model.stream("ROMEO:", 50, seed=1) as stream:
        next(stream)
    assert list(stream) == []
    stream.close()
    stream.cancel()

    def from_inside(array):
        streams[0].close()

    streams = []
    edit = tl.apply("output", from_inside)
    streams.append(model.stream("ROMEO:", 50, seed=1, edits=edit))
    assert len(list(streams[0])) == 1  # the present token is the last


def test_two_threads_may_read_one_stream(model):
    stream = model.stream("ROMEO:", 60, seed=1)
    pieces = []
    threads = [threading.Thread(target=lambda: pieces.extend(stream)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(pieces) == sorted(model.stream("ROMEO:", 60, seed=1))


def test_a_task_of_asyncio(model):
    async def read(stream):
        try:
            while (piece := await asyncio.to_thread(next, stream, None)) is not None:
                pieces.append(piece)
        finally:
            stream.cancel()

    pieces = []
    stream = model.stream("ROMEO:", 400, seed=1, edits=slow(0.01))

    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(read(stream), 0.3)

    asyncio.run(main())
    assert stream._stepper._cancelled
    list(stream)
    assert 0 < len(pieces) < 100


def test_a_stream_stays_in_its_process(model):
    with pytest.raises(TypeError, match="a GenerationStream cannot be pickled"):
        pickle.dumps(model.stream("ROMEO:", 5, seed=1))


# ---- timeout ----


def test_a_timeout_ends_a_text_with_what_there_is(model):
    want = model.generate("ROMEO:", 40, seed=1)
    g = model.generate("ROMEO:", 40, seed=1, edits=slow(0.05), timeout=0.3)
    assert g.stop_reason == "timeout"
    assert 0 < len(g.ids) < 8
    assert g.ids == want.ids[: len(g.ids)]
    assert want.text.startswith(g.text)
    assert model.generate("ROMEO:", 4, seed=1, timeout=60).ids == want.ids[:4]
    answer = model.chat(TALK, None, 40, seed=1, template="plain", edits=slow(0.05), timeout=0.3)
    assert answer.stop_reason == "timeout"
    assert len(list(model.stream("ROMEO:", 40, seed=1, edits=slow(0.05), timeout=0.3))) < 8


def test_a_timeout_cuts_off_the_prompt(model):
    edit = slow(0.15, "blk.*.resid_post")
    for g in model.generate(["ROMEO:", "JULIET:"], 4, seed=1, edits=edit, timeout=0.2):
        assert (g.stop_reason, g.ids, g.text) == ("timeout", [], "")


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_timeouts_that_are_none(model, value):
    with pytest.raises(ValueError, match="timeout is"):
        model.generate("ROMEO:", timeout=value)
    for wrong in (True, "1"):
        with pytest.raises(TypeError, match="timeout is"):
            model.stream("ROMEO:", timeout=wrong)


# ---- the end token ----


def ending(directory, at):
    """A model that draws its end token first: the row of the output is largest for all inputs."""
    metadata, tensors = models.random_llama(layers=1, width=32, ffn=48, vocab=60, context=64)
    directory.mkdir(exist_ok=True)
    values = {name: weight.numpy() for name, weight in tensors.items()}
    norm = values["output_norm.weight"]
    values["output.weight"] = values["output.weight"].copy()
    values["output.weight"][at] = 50 * norm / np.linalg.norm(norm)
    tl.write_gguf(directory / "m.gguf", metadata, values)
    return tl.load(directory / "m.gguf")


def test_the_log_probability_of_the_end_can_be_read(tmp_path):
    model = ending(tmp_path, 7)
    for prompt in range(60):  # one that ends at once, and one that goes on for a while
        options = {"temperature": 0, "logprobs": 2, "stop_ids": 7, "max_tokens": 20}
        g = model.generate([prompt], **options)
        logits = model.logits([prompt, *g.ids]).astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        if g.stop_reason == "stop":
            assert (g.end_id, g.stop) == (7, 7)
            assert math.isclose(g.end_logprob, logprobs[len(g.ids), 7], rel_tol=1e-6, abs_tol=1e-9)
            beam = model.beam_search([prompt], 1, 20, stop_ids=7)[0]
            assert beam.ids == g.ids
            total = g.logprobs.logprobs.sum() + g.end_logprob
            assert math.isclose(total, beam.score, rel_tol=1e-9, abs_tol=1e-9)
            break
    else:
        raise AssertionError("the model never ended")
    assert len(g.logprobs.logprobs) == len(g.ids)
    plain = model.generate([prompt], temperature=0, stop_ids=7)
    assert (plain.end_id, plain.end_logprob) == (7, None)
    other = model.generate([prompt], 3, temperature=0, logprobs=1, stop_ids=[7], min_tokens=3)
    assert (other.stop_reason, other.end_id, other.end_logprob) == ("length", None, None)


# ---- a context that shifts ----


def test_what_stays():
    assert shifted(range(8), 8, False) == list(range(8))
    assert shifted(range(9), 8, False) == [4, 5, 6, 7, 8]
    assert shifted(range(12), 8, False) == [4, 5, 6, 7, 8, 9, 10, 11]
    assert shifted(range(13), 8, False) == [8, 9, 10, 11, 12]
    assert shifted(range(9), 8, True) == [0, 4, 5, 6, 7, 8]
    assert shifted(range(100), 8, True) == [0, *range(94, 100)]
    for limit in range(1, 12):
        for size in range(1, 60):
            for first in (False, True):
                stays = shifted(range(size), limit, first)
                assert 0 < len(stays) <= limit
                assert stays[-1] == size - 1
                if size > limit:
                    assert len(stays) > limit // 2 - 1


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return models.random_model(tmp_path_factory.mktemp("shift"), layers=2, width=32, ffn=48,
                               vocab=60, context=16)  # fmt: skip


def by_hand(model, prompt, count, limit, first=False):
    """Greedy ids, each step computed by a new context of the tokens that stay."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model.logits(shifted(ids, limit, first))[-1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("size", [1, 10, 16, 17, 40])
def test_each_step_is_that_of_the_tokens_that_stay(short, size):
    prompt = [(7 * i) % 60 for i in range(size)]
    g = short.generate(prompt, 40, temperature=0, context="shift")
    assert g.ids == by_hand(short, prompt, 40, 16)
    assert (g.stop_reason, g.prompt_ids) == ("length", prompt)
    if size <= 16:
        stop = short.generate(prompt, 40, temperature=0)
        assert stop.stop_reason == "context"
        assert g.ids[: len(stop.ids)] == stop.ids


def test_prompts_of_a_batch_shift_alone(short):
    prompts = [[1, 2, 3], list(range(16)), list(range(30))]
    together = short.generate(prompts, 30, seed=5, context="shift", capture="blk.0.attn_probs")
    for prompt, g in zip(prompts, together, strict=True):
        alone = short.generate(prompt, 30, seed=5, context="shift")
        assert g.ids == alone.ids
        history = list(prompt)
        for t, token in zip(g.traces, g.ids, strict=True):
            assert t.context.tolist() == shifted(history, 16, False)
            history.append(token)


def test_the_first_special_token_stays_and_sessions_go_on(model):
    text = "To be, or not to be, that is the question: "
    small = tl.load(max_context=24, threads=1)
    assert small.tokenizer.add_bos
    prompt = small.tokenizer.encode(text * 3)
    assert len(prompt) > 24
    g = small.generate(text * 3, 30, temperature=0, context="shift")
    assert g.ids == by_hand(small, prompt, 30, 24, first=True)
    session = small.session()
    options = {"template": "plain", "temperature": 0, "context": "shift", "session": session}
    talk = [{"role": "user", "content": text * 3}]
    for _ in range(3):
        answer = small.chat(talk, None, 12, **options)
        history = [*answer.prompt_ids, *answer.ids]
        assert session.tokens[0] == small.tokenizer.bos
        assert session.tokens == shifted(history[:-1], 24, True)
        fork = session.fork()
        assert np.array_equal(fork.eval([9])[:5], small.session().eval([*fork.tokens])[:5])
        talk += [
            {"role": "assistant", "content": answer.text},
            {"role": "user", "content": "Go on"},
        ]
    with pytest.raises(ValueError, match=r"go beyond the context.*context='shift'"):
        small.generate(text * 3, 4)
    with pytest.raises(ValueError, match="context is 'slide'; expected 'stop' or 'shift'"):
        small.generate(text, 4, context="slide")
