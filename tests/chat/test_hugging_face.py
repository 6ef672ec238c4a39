"""The arguments of apply_chat_template in transformers 5, in each call that renders a chat."""

import numpy as np
import pytest

import tinyllm as tl

pytest.importorskip("jinja2")
from tinyllm.chat import ChatTemplateError, render_chat

TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TALK = [{"role": "user", "content": "Sing"}, {"role": "assistant", "content": "According to "}]


@pytest.fixture(scope="module")
def model():
    return tl.load()


# ---- continue_final_message ----


def continued(source, content, field="content", key=True):
    last = {"role": "assistant", field: content}
    return render_chat(source, [TALK[0], last], continue_final_message=key)


def test_an_answer_is_continued():
    assert continued(TURNS, "According to ") == "<|user|>Sing<|end|><|assistant|>According to "
    # a template that trims takes the space away
    trims = TURNS.replace("m.content }}", "m.content | trim }}")
    assert continued(trims, "According to ") == "<|user|>Sing<|end|><|assistant|>According to"
    assert continued(trims, "According to") == "<|user|>Sing<|end|><|assistant|>According to"
    # the last text of parts
    assert continued(
        TURNS, [{"type": "text", "text": "One"}, {"type": "text", "text": " two"}]
    ) == ("<|user|>Sing<|end|><|assistant|>One two")
    # an earlier message with the same text stays whole
    same = [TALK[1], TALK[0], TALK[1]]
    assert render_chat(TURNS, same, continue_final_message=True) == (
        "<|assistant|>According to <|end|><|user|>Sing<|end|><|assistant|>According to "
    )


def test_another_text_is_continued():
    source = "{% for m in messages %}[{{ m.reasoning_content }}]{{ m.content }};{% endfor %}"
    for name in ("reasoning_content", "thinking", "reasoning"):
        assert continued(source, "I thi", name, name) == "[]Sing;[I thi"
    assert continued("{{ messages[-1].extra }}!", "so", "extra", "extra") == "so"


@pytest.mark.parametrize(
    ("source", "last", "key", "match"),
    [
        (TURNS, {}, True, "the last message has no text 'content'"),
        (TURNS, {"content": None}, True, "the last message has no text 'content'"),
        (TURNS, {"content": [{"type": "image"}]}, True, "the last message has no text 'content'"),
        (TURNS, {"content": "a"}, "reasoning_content", "no text 'reasoning_content'"),
        (TURNS, {"thinking": "a"}, "thinking", "template does not use 'thinking'"),
        ("{{ messages[0].content }}", {"content": "a b"}, True, "leaves out or changes.*'a b'"),
        ("{{ messages[-1].content | upper }}", {"content": "a"}, True, "leaves out or changes"),
    ],
)  # fmt: skip
def test_nothing_to_continue(source, last, key, match):
    with pytest.raises(ChatTemplateError, match=match):
        render_chat(source, [TALK[0], {"role": "assistant", **last}], continue_final_message=key)


def test_an_answer_is_started_or_continued():
    with pytest.raises(ValueError, match="both given"):
        render_chat(TURNS, TALK, None, True, continue_final_message=True)
    started = render_chat(TURNS, TALK)
    assert started.endswith("<|end|><|assistant|>")
    assert render_chat(TURNS, TALK, add_generation_prompt=False) + "<|assistant|>" == started


def test_calls_that_generate(model):
    want = "<|user|>Sing<|end|><|assistant|>According to "
    options = {"template": TURNS, "continue_final_message": True}
    tokenizer = model.tokenizer
    assert tokenizer.render_chat(TALK, **options) == want
    ids = tokenizer.encode_chat(TALK, **options)
    assert tokenizer.decode(ids, skip_special=True) == want
    g = model.chat(TALK, max_tokens=4, seed=1, **options)
    assert g.prompt_ids == ids
    assert "".join(model.chat_stream(TALK, max_tokens=4, seed=1, **options)) == g.text
    # through variables it is the same argument
    variables = {"continue_final_message": True}
    assert model.chat(TALK, max_tokens=1, template=TURNS, variables=variables).prompt_ids == ids
    # documents, and an answer that is not started
    source = "{{ documents[0].text }}{{ add_generation_prompt }}{{ enable_thinking }}"
    g = model.chat(TALK, max_tokens=1, template=source, documents=[{"text": "Body"}],
                   add_generation_prompt=False, variables={"enable_thinking": 3})  # fmt: skip
    assert tokenizer.decode(g.prompt_ids, skip_special=True) == "BodyFalse3"
    g = model.chat([{"role": "system", "content": "S"}, TALK[0]], max_tokens=1, merge_system=True,
                   template="{{ messages[0].role }}{{ messages[0].content if "
                            "messages[0].role == 'user' }}")  # fmt: skip
    assert "userS\nSing" in tokenizer.decode(g.prompt_ids)


# ---- names that are no variables ----


@pytest.mark.parametrize(
    "name",
    ["conversation", "chat_template", "tokenize", "padding", "truncation", "max_length",
     "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
     "sanitize_control_tokens", "processor_kwargs"],
)  # fmt: skip
def test_arguments_are_not_swallowed_as_variables(model, name):
    calls = [
        lambda **options: render_chat(TURNS, TALK, **options),
        lambda **options: model.tokenizer.render_chat(TALK, template=TURNS, **options),
        lambda **options: model.tokenizer.encode_chat(TALK, template=TURNS, **options),
        lambda **options: model.chat(TALK, template=TURNS, max_tokens=1, variables=options),
        lambda **options: model.chat_stream(TALK, template=TURNS, variables=options),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=f"{name} is not a variable of chat templates; "):
            call(**{name: True})
    with pytest.raises(TypeError, match=name):
        model.chat(TALK, template=TURNS, max_tokens=1, **{name: True})


# ---- apply_chat_template ----


def test_apply_chat_template(model):
    t = model.tokenizer

    def apply(talk=TALK, **options):
        return t.apply_chat_template(talk, chat_template=TURNS, **options)

    text = "<|user|>Sing<|end|><|assistant|>According to <|end|>"
    assert apply(tokenize=False) == text
    assert apply(tokenize=False, add_generation_prompt=True) == text + "<|assistant|>"
    assert apply(tokenize=False, continue_final_message=True) == text.removesuffix("<|end|>")
    ids = t.encode(text, add_special=False, parse_special=True)
    assert apply() == {"input_ids": ids, "attention_mask": [1] * len(ids)}
    assert apply(return_dict=False) == ids
    assert apply(return_dict=False, truncation=True, max_length=3) == ids[:3]
    assert apply(return_dict=False, max_length=3) == ids
    array = apply(return_tensors="np")
    assert (array["input_ids"] == np.array([ids])).all()
    assert array["attention_mask"].shape == (1, len(ids))
    # several conversations
    assert apply([TALK, TALK[:1]], tokenize=False) == [text, "<|user|>Sing<|end|>"]
    both = apply([TALK, TALK[:1]])
    assert both["input_ids"][0] == ids
    assert len(both["attention_mask"][1]) == len(both["input_ids"][1])
    assert apply([TALK, TALK], return_tensors="np", return_dict=False).shape == (2, len(ids))
    # variables reach the template, and arguments that ask for nothing do not
    source = "{{ enable_thinking }}{{ padding }}{{ documents[0].t }}"
    assert t.apply_chat_template(TALK, None, [{"t": 1}], source, tokenize=False, padding=False,
                                 enable_thinking=True) == "True1"  # fmt: skip


def test_no_bos_is_added_by_apply_chat_template(model):
    t = model.tokenizer
    assert t.add_bos
    ids = t.encode_chat(TALK, template=TURNS, add_generation_prompt=False)
    assert ids == [t.bos, *t.apply_chat_template(TALK, chat_template=TURNS, return_dict=False)]


def test_control_tokens_can_be_plain(model):
    t = model.tokenizer
    special = t.vocab[t.eos]
    talk = [{"role": "user", "content": special}]
    source = "{{ messages[0].content }}{{ documents[0].text }}{{ tools[0].name }}"
    more = {"documents": [{"text": special}], "tools": [{"name": special}]}
    parsed = t.apply_chat_template(talk, chat_template=source, return_dict=False, **more)
    plain = t.apply_chat_template(
        talk, chat_template=source, return_dict=False, sanitize_control_tokens=True, **more
    )
    assert parsed.count(t.eos) == 3
    assert plain.count(t.eos) == 0
    assert t.decode(plain) == t.decode(parsed)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"padding": True}, "padding is True"),
        ({"padding": "max_length"}, "padding is 'max_length'"),
        ({"return_assistant_tokens_mask": True}, "return_assistant_tokens_mask is True"),
        ({"tokenizer_kwargs": {"a": 1}}, "tokenizer_kwargs is"),
        ({"return_tensors": "pt"}, "return_tensors is 'pt'; expected None or 'np'"),
    ],
)
def test_what_apply_chat_template_does_not_do(model, options, match):
    with pytest.raises(tl.UnsupportedError, match=match):
        model.tokenizer.apply_chat_template(TALK, chat_template=TURNS, **options)


def test_wrong_arguments_of_apply_chat_template(model):
    t = model.tokenizer
    with pytest.raises(ValueError, match="max_length is None"):
        t.apply_chat_template(TALK, chat_template=TURNS, truncation=True)
    with pytest.raises(tl.UnsupportedError, match="tinyllm does not pad"):
        t.apply_chat_template([TALK, TALK[:1]], chat_template=TURNS, return_tensors="np")
