"""The day of somebody who calls tinyllm from scripts: pipes, JSON, exit codes, asyncio."""

import asyncio
import json
import subprocess
import sys

import pytest

import tinyllm as tl


def shell(command, **options):
    line = command.replace("tinyllm", f"{sys.executable} -m tinyllm", 1)
    return subprocess.run(
        line, shell=True, capture_output=True, text=True, timeout=120, **options
    )  # fmt: skip


def test_pipes_and_json(tmp_path):
    (tmp_path / "prompt.txt").write_text("ROMEO:")
    (tmp_path / "schema.json").write_text(
        '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}'
    )
    done = shell("tinyllm generate -f prompt.txt -n 12 --seed 1 --json --logprobs 2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    want = tl.load().generate("ROMEO:", 12, seed=1, logprobs=2)
    assert (found["text"], found["ids"]) == (want.text, want.ids)
    done = shell("tinyllm generate --seed 1 -n 12", input="ROMEO:", cwd=tmp_path)
    assert done.stdout == want.text + "\n"
    done = shell("tinyllm generate x --schema schema.json -n 200 --seed 1 --json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["complete"]
    assert json.loads(found["text"])["n"] in (1, 2)
    done = shell("tinyllm tokenize 'ROMEO:' --ids")
    assert json.loads(done.stdout) == want.prompt_ids
    done = shell("tinyllm embed a b --pooling mean")
    assert [len(json.loads(line)) for line in done.stdout.splitlines()] == [256, 256]


def test_exit_codes_and_streams():
    for command, words in (
        ("tinyllm generate x -m /no/file", "No such file"),
        ("tinyllm generate x --min-p 3", "min_p is 3"),
        ("tinyllm score ''", "at least"),
    ):
        done = shell(command)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert words in done.stderr
    assert shell("tinyllm generate x --no-such-option").returncode == 2
    done = shell("tinyllm generate ROMEO: -n 400 | head -c 5")
    assert done.stderr == ""
    assert len(done.stdout) == 5


def test_a_chat_in_a_pipe():
    pytest.importorskip("jinja2")
    lines = 'Good morrow!\n"""one\ntwo"""\n/nope\n'
    command = "tinyllm chat --template plain --seed 1 -n 8 --json"
    done = shell(command, input=lines)
    assert done.returncode == 2  # of /nope
    first, second = map(json.loads, done.stdout.splitlines())
    want = tl.load().chat("Good morrow!", max_tokens=8, seed=1, template="plain")
    assert first["ids"] == want.ids
    assert second["stop_reason"] == "length"
    assert "no command /nope" in done.stderr


def weather(city: str, days: int = 1) -> str:
    """Return the weather.

    Args:
        city: The name of the city.
        days: How many days.
    """
    return f"{days} days of sun in {city}"


def test_a_loop_with_tools():
    """The model's part is played; everything around it is real."""
    pytest.importorskip("jinja2")
    model = tl.load()
    template = ("{% for m in messages %}{{ m.role }}: {{ m.content or m.tool_calls | tojson }}\n"
                "{% endfor %}{{ tools | tojson }}")  # fmt: skip
    schema = {"const": {"name": "weather", "arguments": {"city": "Paris", "days": 2}}}
    messages = [{"role": "user", "content": "How is the weather in Paris?"}]
    answer = model.chat(messages, tools=[weather], template=template, max_tokens=300, seed=1,
                        grammar=tl.Grammar.json_schema(schema))  # fmt: skip
    assert answer.complete
    [call] = answer.tool_calls
    assert weather(**call["function"]["arguments"]) == "2 days of sun in Paris"
    messages += [{"role": "assistant", "content": "", "tool_calls": [call]},
                 {"role": "tool", "content": "sun", "name": "weather"}]  # fmt: skip
    text = model.tokenizer.render_chat(messages, [weather], template=template)
    assert '"Paris"' in text
    assert "tool: sun" in text
    found = json.loads(json.dumps(answer.to_openai("demo")))
    assert found["choices"][0]["finish_reason"] == "tool_calls"
    assert found["choices"][0]["message"]["content"] is None
    assert found["usage"]["completion_tokens"] == len(answer.ids)


def test_a_server_that_answers_many():
    """Requests run side by side; one goes away, and its generation ends."""
    model = tl.load()
    want = [model.generate(f"ACT {i}", 30, seed=i).text for i in range(4)]

    async def answer(i):
        return "".join([piece async for piece in model.astream(f"ACT {i}", 30, seed=i)])

    async def serve():
        gone = asyncio.create_task(model.agenerate("ROMEO:", max_tokens=400, seed=1))
        texts = await asyncio.gather(*(answer(i) for i in range(4)))
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        return texts

    assert asyncio.run(serve()) == want


def test_every_kind_of_end_is_named():
    model = tl.load()
    assert model.generate("ROMEO:", 5, seed=1).stop_reason == "length"
    ended = model.generate("ROMEO:", 200, seed=1, stop="\n\n")
    assert (ended.stop_reason, ended.stop) == ("stop", "\n\n")
    assert "\n\n" not in ended.text
    assert model.generate("x", grammar=tl.Grammar.regex("yes"), seed=1).stop_reason == "grammar"
    assert model.generate("ROMEO:", timeout=1e-9, seed=1).stop_reason == "timeout"
    assert model.generate("ROMEO:", seed=1).stop_reason == "context"
    batch = model.generate(["ROMEO:", "JULIET:"], 8, seed=[1, 2], min_p=0.1)
    alone = model.generate("JULIET:", 8, seed=2, min_p=0.1)
    assert batch[1].to_dict()["ids"] == alone.ids
