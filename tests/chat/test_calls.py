"""Tool calls in answers: what each shipped template writes for a call is read back."""

import json

import pytest

from testkit import data
from tinyllm.chat.calls import NOTATIONS, read_calls
from tinyllm.generation.result import Generation

TEMPLATES = {
    "CohereForAI-c4ai-command-r-plus-tool_use": 2,
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": 2,
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": 2,
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": 2,
    "Qwen-Qwen2.5-7B-Instruct": 2,
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": 2,
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": 2,
    "fireworks-ai-llama-3-firefunction-v2": 2,
    "llama-cpp-deepseek-r1": 2,
    "meetkai-functionary-medium-v3.1": 2,
    "meetkai-functionary-medium-v3.2": 2,
    "meta-llama-Llama-3.1-8B-Instruct": 1,
    "meta-llama-Llama-3.2-3B-Instruct": 1,
    "meta-llama-Llama-3.3-70B-Instruct": 1,
    "mistralai-Mistral-Nemo-Instruct-2407": 2,
}
#: What ends a turn, which is no part of an answer's text.
ENDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "</s>", "<|END_OF_TURN_TOKEN|>",
        "<｜end▁of▁sentence｜>")  # fmt: skip
ARGUMENTS = {"city": 'Genève "x" }]```', "days": 3, "deep": {"a": [1, None, True]}}
JSON_TEXT = ("deepseek", "functionary", "firefunction")  # their templates join arguments as text


def written(name, count):
    """What a template writes for an answer that calls `count` tools."""
    jinja2 = pytest.importorskip("jinja2.sandbox")
    env = jinja2.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                               extensions=["jinja2.ext.loopcontrols"])  # fmt: skip
    env.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    env.globals["strftime_now"] = lambda form: "today"
    template = env.from_string(data.path("chat", f"{name}.jinja").read_text("utf-8"))
    arguments = ARGUMENTS
    if any(word in name for word in JSON_TEXT):
        arguments = json.dumps(arguments, ensure_ascii=False)
    calls = [
        {"id": f"abcdefgh{i}", "type": "function",
         "function": {"name": f"get_weather{i}", "arguments": arguments}}
        for i in range(count)
    ]  # fmt: skip
    question = {"role": "user", "content": "Hi"}
    answer = {"role": "assistant", "content": None, "tool_calls": calls}
    if "Cohere" in name:
        answer["content"] = ""
    more = {"bos_token": "", "eos_token": "</s>", "tools": [], "functions": "[]", "datetime": ""}
    head = template.render(messages=[question], add_generation_prompt=True, **more)
    whole = template.render(messages=[question, answer], add_generation_prompt=False, **more)
    at = 0
    while at < min(len(head), len(whole)) and head[at] == whole[at]:
        at += 1
    text = whole[at:]
    ends = [text.index(end) for end in ENDS if end in text]
    return text[: min(ends)] if ends else text


@pytest.mark.parametrize(("name", "most"), TEMPLATES.items())
def test_what_a_template_writes_is_read(name, most):
    for count in range(1, most + 1):
        text = written(name, count)
        calls, rest = read_calls(text)
        assert [call.name for call in calls] == [f"get_weather{i}" for i in range(count)], text
        assert all(call.arguments == ARGUMENTS for call in calls)
        assert "get_weather" not in rest
        for call in calls:
            assert call.id in (None, *(f"abcdefgh{i}" for i in range(2)), "0", "1")


def test_builtin_tools_and_code_of_llama():
    calls, rest = read_calls('<|python_tag|>brave_search.call(query="a, b", n=2)')
    assert [(c.name, c.arguments) for c in calls] == [("brave_search", {"query": "a, b", "n": 2})]
    assert rest == ""
    calls, _ = read_calls("<|python_tag|>print(1)\nprint(2)")
    assert [(c.name, c.arguments) for c in calls] == [("python", {"code": "print(1)\nprint(2)"})]
    calls, _ = read_calls("<|python_tag|>x.call(__import__('os').system('ls'))")
    assert calls[0].name == "python"  # never run, only shown


def test_newer_notations():
    calls, _ = read_calls('[TOOL_CALLS]add[CALL_ID]a1b2c3d4e[ARGS]{"a": 1}[TOOL_CALLS]sub[ARGS]{}')
    assert [(c.name, c.arguments, c.id) for c in calls] == [
        ("add", {"a": 1}, "a1b2c3d4e"),
        ("sub", {}, None),
    ]
    text = ("<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\nx y\n"
            "</parameter>\n</function>\n</tool_call>")  # fmt: skip
    calls, rest = read_calls("Well. " + text)
    assert [(c.name, c.arguments) for c in calls] == [("f", {"a": 1, "b": "x y"})]
    assert rest == "Well."


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello",
        '{"name": "Anna", "age": 3}',
        '{"name": "Anna", "parameters": {}, "age": 3}',
        '[{"name": "Anna"}]',
        "<tool_call>",
        '<tool_call>{"name": "f"',
        "<tool_call>" + "[" * 100_000,
        "Action: ```json\n[]\n```",
        "functools are fun",
        '{"name": 3, "parameters": {}}',
        "all\nHello there",
        "python\nprint(1)",
        ">>>" * 1000,
    ],
)
def test_no_call(text):
    assert read_calls(text) == ([], text)


def test_a_hostile_answer_takes_no_time():
    for notation in NOTATIONS:
        for part in ("<tool_call>", "<function=a>", "[TOOL_CALLS]", "{", " ", ">>>a\n", "```json",
                     "<function=a><parameter=b>", "Action:"):  # fmt: skip
            list(notation(part * 3000))


def test_calls_of_a_generation():
    text = 'Let me see.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    g = Generation(text, [1, 2], [3], "eog", 0)
    call = {"id": "call_0", "type": "function",
            "function": {"name": "add", "arguments": {"a": 1}}}  # fmt: skip
    assert g.tool_calls == [call]
    choice = g.to_openai()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
    assert Generation("Hi", [1], [3], "eog", 0).tool_calls == []
