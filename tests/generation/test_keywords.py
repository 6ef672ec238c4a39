"""Every sampler as a keyword of `generate`, and results in the forms of JSON and asyncio."""

import asyncio
import json
import threading

import numpy as np
import pytest

import tinyllm as tl
from tinyllm.sampling.keywords import DEFAULTS, ORDER, SamplerKeywords, ordered
from tinyllm.sampling.sampler import SAMPLERS


@pytest.fixture(scope="module")
def model():
    return tl.load()


VALUES = {
    "logit_bias": {13: 2.0},
    "allowed": range(5, 1000),
    "banned": [13],
    "repeat_penalty": 1.2,
    "frequency_penalty": {"value": 0.5, "last_n": 32},
    "presence_penalty": 0.5,
    "dry": {"multiplier": 0.8},
    "dynamic_temperature": {"value": 1.0, "range": 0.5},
    "min_p": 0.05,
    "typical": 0.9,
    "top_n_sigma": 1.0,
    "xtc": {"probability": 0.5, "threshold": 0.05},
    "forced": [20, 30],
    "mirostat": 5.0,
    "mirostat_v2": {"tau": 5.0, "eta": 0.2},
}


def test_every_sampler_is_a_keyword():
    assert set(VALUES) == set(SamplerKeywords.__annotations__)
    assert {*VALUES, *DEFAULTS, "grammar"} == set(SAMPLERS) == set(ORDER)
    assert set(tl.Model.generate.__doc__.split("`")) >= set(VALUES)


@pytest.mark.parametrize("name", VALUES)
def test_a_keyword_is_a_step_of_the_chain(model, name):
    value = VALUES[name]
    chain = ordered(DEFAULTS, {name: value})
    assert list(chain) == [step for step in ORDER if step in chain]
    want = model.generate("ROMEO:", 12, sampler=tl.Sampler(seed=3, **chain))
    assert model.generate("ROMEO:", 12, seed=3, **{name: value}).ids == want.ids
    plain = model.generate("ROMEO:", 12, seed=3)
    assert model.generate("ROMEO:", 12, seed=3, **{name: None}).ids == plain.ids
    streamed = model.stream("ROMEO:", 12, seed=3, **{name: value})
    assert "".join(streamed) == want.text
    talk = {"max_tokens": 5, "seed": 3, "template": "plain", name: value}
    assert "".join(model.chat_stream("Hi", **talk)) == model.chat("Hi", **talk).text


def test_what_a_sampler_replaces():
    assert list(ordered(DEFAULTS, {"mirostat": 5.0})) == ["temperature", "mirostat"]
    given = {**DEFAULTS, "top_k": 7}
    assert list(ordered(given, {"mirostat_v2": 5.0})) == ["temperature", "top_k", "mirostat_v2"]
    assert "temperature" not in ordered(DEFAULTS, {"dynamic_temperature": {}})
    assert list(ordered(DEFAULTS, {"mine": 1, "forced": [1]}))[-2:] == ["mine", "forced"]


def test_wrong_keywords(model):
    with pytest.raises(
        TypeError, match=r"^generate\(\) has no argument max_new_tokens; here it is"
    ):
        model.generate("a", max_new_tokens=5)
    with pytest.raises(
        TypeError, match=r"^stream\(\) has no argument repetition_penalty; .*repeat_"
    ):
        model.stream("a", repetition_penalty=1.1)
    with pytest.raises(TypeError, match=r"did you mean min_p=\?"):
        model.chat("a", minp=0.1)
    with pytest.raises(TypeError, match=r"^chat_stream\(\) has no argument xyzzy$"):
        model.chat_stream("a", xyzzy=0.1)
    with pytest.raises(ValueError, match="both min_p and sampler"):
        model.generate("a", min_p=0.1, sampler=tl.Sampler())
    with pytest.raises(ValueError, match="min_p is 2"):
        model.generate("a", min_p=2)


def test_a_text_is_a_message(model):
    options = {"max_tokens": 8, "seed": 1, "template": "plain"}
    message = [{"role": "user", "content": "Good morrow!"}]
    one = model.chat("Good morrow!", **options)
    assert one.ids == model.chat(message, **options).ids
    two = model.chat(["Good morrow!", message], **options)
    assert [g.ids for g in two] == [one.ids, one.ids]


# ---- results ----


def test_to_dict_is_json(model):
    g = model.generate("ROMEO:", 4, seed=1, logprobs=2, capture="blk.0.resid_post", stop="zzz")
    found = json.loads(json.dumps(g.to_dict(), allow_nan=False))
    assert "traces" not in found
    assert found["ids"] == g.ids
    assert found["text"] == g.text
    assert found["logprobs"]["top_ids"] == g.logprobs.top_ids.tolist()
    assert found["timings"]["tokens"] == 4
    assert "tool_calls" not in found
    banned = model.generate("ROMEO:", 2, seed=1, logprobs=1)
    banned.logprobs.logprobs[0] = -np.inf
    assert banned.to_dict()["logprobs"]["logprobs"][0] is None
    json.dumps(banned.to_openai(), allow_nan=False)


def test_to_openai(model):
    g = model.generate("ROMEO:", 4, seed=1, logprobs=2)
    found = g.to_openai("demo")
    assert found["object"] == "chat.completion"
    assert found["model"] == "demo"
    [choice] = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": g.text}
    assert choice["finish_reason"] == "length"
    entry = choice["logprobs"]["content"][0]
    assert bytes(entry["bytes"]).decode() == entry["token"] == g.logprobs.pieces[0]
    assert entry["logprob"] == g.logprobs.logprobs[0]
    assert [t["token"] for t in entry["top_logprobs"]] == g.logprobs.top_pieces[0]
    assert found["usage"]["total_tokens"] == len(g.prompt_ids) + 4
    ended = model.generate("Rich or poor? ", grammar=tl.Grammar.regex("rich|poor"), seed=1)
    assert ended.to_openai()["choices"][0]["finish_reason"] == "stop"
    assert ended.to_openai()["choices"][0]["logprobs"] is None


def test_a_stream_has_what_was_asked_for(model):
    stream = model.stream("ROMEO:", 4, seed=1, logprobs=1, capture="blk.0.resid_post")
    list(stream)
    want = model.generate("ROMEO:", 4, seed=1, logprobs=1)
    assert np.array_equal(stream.result.logprobs.logprobs, want.logprobs.logprobs)
    assert len(stream.result.traces) == 4


# ---- schemas ----


def test_schemas_in_every_form(model):
    schema = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 9,
              "minimum": 0}}, "required": ["age"]}  # fmt: skip
    text = json.dumps(schema)

    class Person:
        model_json_schema = staticmethod(lambda: schema)

    want = str(tl.Grammar.json_schema(schema))
    for form in (text, text.encode(), Person, Person()):
        assert str(tl.Grammar.json_schema(form)) == want
    g = model.generate("x", grammar=tl.Grammar.json_schema(Person), seed=1, max_tokens=300)
    assert g.complete, g
    assert 0 <= json.loads(g.text)["age"] <= 9
    with pytest.raises(ValueError, match="the schema is not JSON"):
        tl.Grammar.json_schema("{")
    with pytest.raises(ValueError, match="nested too deeply"):
        tl.Grammar.json_schema("[" * 100_000)


def test_classes_of_pydantic(model):
    pydantic = pytest.importorskip("pydantic")

    class Address(pydantic.BaseModel):
        city: str = pydantic.Field(max_length=3)

    class Person(pydantic.BaseModel):
        age: int = pydantic.Field(ge=0, le=9)
        address: Address
        nick: str | None = pydantic.Field(max_length=3)

    grammar = tl.Grammar.json_schema(Person)
    g = model.generate("x", grammar=grammar, seed=1, max_tokens=200)
    assert g.complete
    assert 0 <= Person.model_validate_json(g.text).age <= 9
    grammar = tl.Grammar.json_schema(pydantic.TypeAdapter(list[Address]))
    assert grammar.accepts('[{"city": "Bis"}]')


# ---- asyncio ----


def test_other_tasks_run_while_the_model_does(model):
    want = model.generate("ROMEO:", 30, seed=1)

    async def main():
        beats = 0

        async def beat():
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0)

        heart = asyncio.create_task(beat())
        pair = await asyncio.gather(
            model.agenerate("ROMEO:", max_tokens=30, seed=1, logprobs=1),
            model.agenerate(["ROMEO:", "JULIET:"], max_tokens=5, seed=1),
        )
        pieces = [piece async for piece in model.astream("ROMEO:", max_tokens=30, seed=1)]
        chat = model.chat_stream("Hi", max_tokens=5, seed=1, template="plain")
        talk = [piece async for piece in chat]
        heart.cancel()
        return pair, pieces, talk, beats

    (one, two), pieces, talk, beats = asyncio.run(main())
    assert one.ids == want.ids
    assert len(one.logprobs) == 30
    assert two[1].ids == model.generate("JULIET:", 5, seed=1).ids
    assert "".join(pieces) == want.text
    assert "".join(talk) == model.chat("Hi", max_tokens=5, seed=1, template="plain").text
    assert beats > 10


def test_a_cancelled_task_ends_its_generation(model):
    ran = threading.Event()
    count = 0

    def seen(values, site=None):
        nonlocal count
        count += 1
        ran.set()
        return values

    edits = [tl.apply("blk.0.resid_post", seen)]

    async def main(task_of):
        task = asyncio.create_task(task_of())
        await asyncio.to_thread(ran.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return count

    async def pull():
        return [p async for p in model.astream("ROMEO:", max_tokens=450, seed=1, edits=edits)]

    for task_of in (lambda: model.agenerate("ROMEO:", 450, seed=1, edits=edits), pull):
        ran.clear()
        count = 0
        seen_then = asyncio.run(main(task_of))
        assert seen_then < 400
        assert count == seen_then  # nothing ran afterwards


def test_wrong_options_of_agenerate(model):
    with pytest.raises(TypeError, match="max_new_tokens; here it is max_tokens="):
        asyncio.run(model.agenerate("a", max_new_tokens=5))
    with pytest.raises(ValueError, match="top_p is 2"):
        asyncio.run(model.agenerate("a", max_tokens=5, top_p=2))
