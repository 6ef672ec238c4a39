"""Messages as clients send them: the values are those of transformers 5.24, or a stated choice."""

import dataclasses
import json
import warnings

import numpy as np
import pytest

pytest.importorskip("jinja2")
from tinyllm.chat import ChatTemplateError, render_chat

USER = {"role": "user", "content": "Hi"}
WEATHER = {"city": "Genève", "days": 2}
TEXT = '{"city":"Genève","days":2}'


def call(arguments, **outside):
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}],
            **outside}  # fmt: skip


def over_calls(body):
    return (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{% set a = c.function.arguments %}"
        + body
        + "{% endfor %}{% endfor %}"
    )


# ---- tool arguments: text or mapping, by what the template does ----


@pytest.mark.parametrize(
    ("body", "of_text", "of_mapping"),
    [
        # joined or written: text stays as it is, a mapping becomes JSON, never Python's repr
        ("{{ '<' + a + '>' }}", f"<{TEXT}>", '<{"city": "Genève", "days": 2}>'),
        ("{{ a + '>' }}", TEXT + ">", '{"city": "Genève", "days": 2}>'),
        ("{{ '<' ~ a }}", "<" + TEXT, '<{"city": "Genève", "days": 2}'),
        ("{{ a }}", TEXT, '{"city": "Genève", "days": 2}'),
        ("{{ '%s' % a }}", TEXT, '{"city": "Genève", "days": 2}'),
        ("{{ '{}'.format(a) }}", TEXT, '{"city": "Genève", "days": 2}'),
        ("{{ a | string | trim }}", TEXT, '{"city": "Genève", "days": 2}'),
        ("{% if a is string %}{{ a }}{% else %}{{ a | tojson }}{% endif %}",
         TEXT, '{"city": "Genève", "days": 2}'),
        # read or written as JSON: both are a mapping
        *((body, want, want) for body, want in [
            ("{% for k, v in a.items() %}{{ k }}={{ v }};{% endfor %}", "city=Genève;days=2;"),
            ("{% for k, v in a | items %}{{ k }}={{ v }};{% endfor %}", "city=Genève;days=2;"),
            ("{% for k, v in a | dictsort %}{{ k }}={{ v }};{% endfor %}", "city=Genève;days=2;"),
            ("{% for k in a %}{{ k }}={{ a[k] }};{% endfor %}", "city=Genève;days=2;"),
            ("{{ a.keys() | join(',') }}", "city,days"),
            ("{{ a.city }}{{ a['days'] }}{{ a.get('x', 7) }}", "Genève27"),
            ("{{ a | tojson }}", '{"city": "Genève", "days": 2}'),
            ("{{ {'p': a} | tojson }}", '{"p": {"city": "Genève", "days": 2}}'),
            ("{{ [a, (a, 1)] | tojson }}",
             '[{"city": "Genève", "days": 2}, [{"city": "Genève", "days": 2}, 1]]'),
            ("{% if a is mapping %}{{ a | length > 0 }}{% endif %}", "True"),
            ("{{ a is string or a is mapping }}", "True"),
        ]),
    ],
)  # fmt: skip
def test_arguments_of_a_call(body, of_text, of_mapping):
    source = over_calls(body)
    assert render_chat(source, [USER, call(TEXT)]) == of_text
    assert render_chat(source, [USER, call(WEATHER)]) == of_mapping


def test_text_that_is_no_json_object_stays_text():
    for text in ("{", "[1]", "", "7", "[" * 100_000):
        source = over_calls("{{ a }}|{{ a | tojson }}|{{ a is mapping }}")
        assert render_chat(source, [USER, call(text)]) == f"{text}|{json.dumps(text)}|False"
    # a name of an argument that is also the name of a method
    source = over_calls("{{ a.title }}{{ a.upper() }}")
    assert render_chat(source, [USER, call('{"title": "T"}')]) == 'T{"TITLE": "T"}'


def test_arguments_outside_of_function():
    flat = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": TEXT}]}
    source = "{{ messages[0].tool_calls[0].arguments.city }}"
    assert render_chat(source, [flat]) == "Genève"
    old = {"role": "assistant", "function_call": {"name": "f", "arguments": WEATHER}}
    assert render_chat("{{ messages[0].function_call.arguments }}", [old]) == (
        '{"city": "Genève", "days": 2}'
    )
    assert old["function_call"]["arguments"] is WEATHER


# ---- contents: text or parts ----


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("{{ m.content }}", "Good day"),
        ("{{ m['content'] ~ '!' }}", "Good day!"),
        ("{{ '<' + m.content + '>' }}", "<Good day>"),
        ("{{ m.content | trim | upper }}", "GOOD DAY"),
        ("{{ m.content.split(' ')[1] }}", "day"),
        ("{{ m.content.startswith('Good') and 'day' in m.content }}", "True"),
        ("{{ m.content == 'Good day' }}{{ m.content != 'x' }}", "TrueTrue"),
        ("{{ m.content | replace('day', 'night') }}", "Good night"),
        ("{{ '%s' % m.content }}{{ '{}'.format(m.content) }}", "Good dayGood day"),
        ("{{ m.content[:1] }}", "Good "),
        # a template that reads parts gets parts
        ("{% if m.content is string %}{{ m.content }}{% else %}"
         "{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endif %}", "[Good ][day]"),
        ("{{ m.content | map(attribute='text') | join('|') }}", "Good |day"),
        ("{{ m.content | tojson }}",
         '[{"type": "text", "text": "Good "}, {"type": "text", "text": "day"}]'),
        ("{{ m.content[0].type }}{{ m.content | length }}{{ 'Good day' }}", "text2Good day"),
        # a template that takes text and leaves out all else is rendered again with text
        ("{% if m.content is string %}{{ m.content }}{% endif %}", "Good day"),
    ],
)  # fmt: skip
def test_content_in_parts(body, want):
    source = "{% for m in messages %}" + body + "{% endfor %}"
    assert render_chat(source, [{"role": "user", "content": parts("Good ", "day")}]) == want


def test_a_text_for_a_template_that_reads_parts_only():
    source = (
        "{% for m in messages %}{{ m.role }}:{% for p in m.content %}"
        "{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %};{% endfor %}"
    )
    talk = [USER, {"role": "assistant", "content": "Yes"}, {"role": "user", "content": "And?"}]
    assert render_chat(source, talk) == "user:Hi;assistant:Yes;user:And?;"
    # a template that raises for a text
    strict = source.replace("{{ m.role }}:", "{% if m.content is string %}"
                            "{{ raise_exception('expected parts') }}{% endif %}")  # fmt: skip
    assert render_chat(strict, talk) == "Hi;Yes;And?;"


def test_parts_that_are_no_text():
    picture = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    talk = [{"role": "user", "content": picture}]
    source = "{% for p in messages[0].content %}{{ p.text or '<image>' }}{% endfor %}"
    assert render_chat(source, talk) == "<image>What is it?"
    for use in ("c", "c | trim", "'' + c", "c.strip()", "c ~ ''"):
        source = "{% set c = messages[0].content %}{{ " + use + " }}"
        with pytest.raises(ChatTemplateError, match=r"types \['image', 'text'\].*takes a text"):
            render_chat(source, talk)
    # plain strings are parts too
    assert render_chat("{{ messages[0].content }}", [{**USER, "content": ["a", "b"]}]) == "ab"


# ---- keys ----


def test_keys_without_a_value_are_left_out():
    source = (
        "{% for m in messages %}{{ m.content is defined }}{{ m.get('content', '-') }}"
        "{{ m.tool_calls is defined }};{% endfor %}"
    )
    talk = [{"role": "user", "content": "Hi", "tool_calls": None}, call(WEATHER, content=None)]
    assert render_chat(source, talk) == "TrueHiFalse;False-True;"
    # only the keys of messages: None inside of arguments is a value
    assert render_chat(over_calls("{{ a | tojson }}"), [call({"a": None})]) == '{"a": null}'


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_names_of_the_reasoning(name):
    source = "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{% endfor %}"
    assert render_chat(source, [{"role": "assistant", name: "so"}]) == "soso"
    both = {"role": "assistant", "reasoning": "c", "thinking": "b", "reasoning_content": None}
    assert render_chat(source + "{{ messages[0].reasoning }}", [both]) == "bbc"


def test_objects_of_clients():
    @dataclasses.dataclass
    class Message:
        role: str
        content: str
        tool_calls: list | None = None

    class Model:
        def model_dump(self):
            return {"role": "assistant", "content": "Yes", "refusal": None}

    source = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    assert render_chat(source, [Message("user", "Hi"), Model()]) == (
        '{"role": "user", "content": "Hi"}{"role": "assistant", "content": "Yes"}'
    )
    values = {"role": "user", "content": "Hi", "n": np.int64(3), "x": np.float32(0.5),
              "b": np.bool_(False), "o": object()}  # fmt: skip
    source = (
        "{{ messages[0].n + 1 }} {{ messages[0].x }} {{ not messages[0].b }}{{ messages[0].o }}"
    )
    assert render_chat(source, [values]) == "4 0.5 True<object>"
    assert render_chat("{{ messages[0].content }}", iter([USER])) == "Hi"


def test_wrong_conversations():
    with pytest.raises(ValueError, match="messages is empty; expected at least one"):
        render_chat("", [])
    for wrong in (3, None):
        with pytest.raises(TypeError, match="expected a list of messages"):
            render_chat("", wrong)
    with pytest.raises(TypeError, match=r"documents\[0\] is 'a'; expected a mapping"):
        render_chat("{{ documents }}", [USER], documents=["a"])


# ---- what a template leaves out ----

SYSTEM = {"role": "system", "content": "Be kind."}
DROPS = "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
REFUSES = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)
ALTERNATES = (
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}"
)


def test_a_system_message_that_the_template_leaves_out():
    with pytest.warns(UserWarning, match="leaves out the system message; merge_system=True"):
        assert render_chat(DROPS, [SYSTEM, USER]) == "user: Hi\n"
    with pytest.warns(UserWarning, match="leaves out the system message"):
        render_chat(
            DROPS.replace("'system'", "'developer'"), [{**SYSTEM, "role": "developer"}, USER]
        )
    with pytest.raises(ChatTemplateError, match="no system role; merge_system=True puts"):
        render_chat(REFUSES, [SYSTEM, USER])
    # of old Mistral models: roles alternate, and the error has no word of the system message
    with pytest.raises(ChatTemplateError, match="roles must alternate; merge_system=True puts"):
        render_chat(ALTERNATES, [SYSTEM, USER])
    for source in (DROPS, REFUSES, ALTERNATES):
        assert render_chat(source, [SYSTEM, USER], merge_system=True) == "user: Be kind.\nHi\n"
    # without the system message it fails too, so that is not the cause
    with pytest.raises(ChatTemplateError, match=r"no$"):
        render_chat("{{ raise_exception('no') }}", [SYSTEM, USER])
    # the template has it: nothing is merged, and there is no warning, also if it is changed
    for change in ("", " | upper", " | tojson", "[::-1]", ".split('.')[0]"):
        source = f"{{% for m in messages %}}{{{{ (m.content{change}) }}}}{{% endfor %}}"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plain = render_chat(source, [SYSTEM, USER])
            assert render_chat(source, [SYSTEM, USER], merge_system=True) == plain
    # parts, and a system message alone
    talk = [SYSTEM, {"role": "user", "content": parts("Hi")}]
    assert render_chat(DROPS, talk, merge_system=True) == "user: Be kind.\nHi\n"
    assert render_chat(DROPS, [SYSTEM], merge_system=True) == "user: Be kind.\n"


def test_tools_and_documents_that_the_template_does_not_use():
    tool = {"type": "function", "function": {"name": "f"}}
    with pytest.warns(UserWarning, match="does not use tools="):
        render_chat("{{ messages[0].content }}", [USER], [tool])
    with pytest.warns(UserWarning, match="does not use documents="):
        render_chat("{{ messages[0].content }}", [USER], documents=[{"text": "a"}])
    source = "{{ tools[0].function.name }}{{ documents[0].text }}"
    assert render_chat(source, [USER], [tool], documents=[{"text": "a"}]) == "fa"
