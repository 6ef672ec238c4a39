"""Render real chat templates with tinyllm and with transformers, and compare the texts.

    pip install transformers jinja2
    python bench/chat_templates.py FOLDER [--show 3]

FOLDER has templates as *.jinja, or *.json files that map names to templates. Each template renders
46 conversations. Where the texts differ, transformers also renders the conversation with contents
and arguments of calls in their other form (text, parts, mapping). If that gives the text of
tinyllm, the difference is the adaptation that `tinyllm.chat.render_chat` documents. All other
differences are listed, and the exit status is 1.
"""

import argparse
import collections
import copy
import itertools
import json
import pathlib
import sys
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from tinyllm.chat import render_chat

NOW = "02 Jan 2026"
ARGUMENTS = {"city": "Genève", "days": 2, "opt": None, "l": [1, "a"]}


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


def call(arguments, key="call00001"):
    function = {"name": "get_weather", "arguments": arguments}
    return {"id": key, "type": "function", "function": function}


def conversations():
    """Yield (name, messages, options)."""
    user, more = said("user", "Hi there, what is <b>this</b> & that?"), said("user", "In Genève?")
    system = said("system", 'You are Zoë, a "helper".')
    answer = said("assistant", "  It is ‘that’.\nYes. ")
    result = said("tool", '{"temp": 21}', name="get_weather", tool_call_id="call00001")
    tool = {"type": "function", "function": {
        "name": "get_weather", "description": "Get the weather.", "parameters": {
            "type": "object", "required": ["city"], "properties": {
                "city": {"type": "string", "description": "The city."},
                "days": {"type": "integer"}}}}}  # fmt: skip
    other = {"type": "function", "function": {
        "name": "f2", "description": "Do it.", "parameters": {
            "type": "object", "required": [], "properties": {
                "x": {"type": "array", "items": {"type": "number"}}}}}}  # fmt: skip
    closed = {"add_generation_prompt": False}
    yield "user", [user], {}
    yield "user, closed", [user], closed
    yield "system", [system, user], {}
    yield "turns", [user, answer, more], {}
    yield "system, turns", [system, user, answer, more], {}
    yield "answered", [user, answer], closed
    yield "developer", [{**system, "role": "developer"}, user], {}
    yield "two systems", [system, system, user], {}
    yield "late system", [user, answer, system, more], {}
    yield "tools", [more], {"tools": [tool]}
    yield "system, tools", [system, more], {"tools": [tool, other]}
    yield "tools, turns", [user, answer, more], {"tools": [tool, other]}
    texts = [json.dumps(ARGUMENTS, ensure_ascii=False), '{"city":"Bern"}']
    for arguments, content in itertools.product([ARGUMENTS, *texts], ["", None, "Let me see."]):
        calls = [said("assistant", content, tool_calls=[call(arguments)])]
        kind = "mapping" if isinstance(arguments, dict) else f"text {len(arguments)}"
        yield f"call, {kind}, {content!r}", [more, *calls, result], {"tools": [tool]}
    calling = said("assistant", "", tool_calls=[call(ARGUMENTS)])
    without = {key: value for key, value in calling.items() if key != "content"}
    yield "call without content", [more, without, result], {"tools": [tool]}
    yield "call, answered", [system, more, calling, result, answer], {"tools": [tool], **closed}
    two = said("assistant", "", tool_calls=[call(ARGUMENTS), call({"city": "Bern"}, "call00002")])
    yield (
        "two calls",
        [more, two, result, {**result, "tool_call_id": "call00002"}],
        {"tools": [tool]},
    )
    yield "call without tools", [more, calling, result], {}
    yield "call, no result", [more, calling], {"tools": [tool], **closed}
    yield (
        "result in parts",
        [more, calling, {**result, "content": parts("sunny")}],
        {"tools": [tool]},
    )
    yield "parts", [said("user", parts("Hello ", "you"))], {}
    turns = [said(role, parts(f"Text of {role}.")) for role in ("system", "user", "assistant")]
    yield "parts, turns", [*turns, said("user", parts("And?"))], {}
    yield "image", [said("user", [{"type": "image"}, *parts("What is it?")])], {}
    for name in ("reasoning_content", "thinking", "reasoning"):
        yield name, [user, said("assistant", "Yes.", **{name: "I think so."}), more], {}
    yield "think in content", [user, said("assistant", "<think>\nhm\n</think>\n\nYes."), more], {}
    yield "reasoning, call", [more, {**calling, "reasoning": "Hm"}, result], {"tools": [tool]}
    yield "thinking off", [user], {"enable_thinking": False}
    yield "documents", [user], {"documents": [{"title": "T", "text": "Body"}]}
    for text in ("According to", "According to ", parts("Acc", "ording to")):
        last = said("assistant", text)
        yield f"continue {text!r}", [user, last], {**closed, "continue_final_message": True}
    last = said("assistant", "", reasoning_content="I thi")
    yield (
        "continue reasoning",
        [user, last],
        {**closed, "continue_final_message": "reasoning_content"},
    )
    yield "an assistant only", [answer], closed
    yield "an empty user", [said("user", "")], {}
    yield "another role", [said("critic", "Hm"), user], {}
    yield "two users", [user, more], {}


def other_forms(messages):
    """Yield a conversation with its contents and arguments in each combination of forms."""

    def as_text(content):
        whole = isinstance(content, list) and all("text" in part for part in content)
        return "".join(part["text"] for part in content) if whole else content

    def as_parts(content):
        return parts(content) if isinstance(content, str) else content

    def parsed(arguments):
        return json.loads(arguments) if isinstance(arguments, str) else arguments

    def dumped(arguments):
        text = isinstance(arguments, str)
        return arguments if text else json.dumps(arguments, ensure_ascii=False)

    def same(value):
        return value

    for content, arguments in itertools.product((same, as_text, as_parts), (same, parsed, dumped)):
        changed = copy.deepcopy(messages)
        for message in changed:
            if "content" in message:
                message["content"] = content(message["content"])
            for one in message.get("tool_calls") or ():
                one["function"]["arguments"] = arguments(one["function"]["arguments"])
        yield changed


def transformers_text(source, messages, options):
    """Return what transformers writes; None if it raises."""
    from transformers.utils import chat_template_utils as peer

    options = {**copy.deepcopy(options), "strftime_now": lambda pattern: NOW}
    options.setdefault("add_generation_prompt", True)
    date = options.pop("strftime_now")
    try:
        talk = peer._normalize_chat_messages(copy.deepcopy(messages))
        peer._compile_jinja_template(source).environment.globals["strftime_now"] = date
        texts, _ = peer.render_jinja_template(
            [talk], chat_template=source, bos_token="<BOS>", eos_token="<EOS>", **options
        )
    except Exception:
        return None
    return texts[0]


def tinyllm_text(source, messages, options):
    """Return what tinyllm writes; None if it raises."""
    tokens = {"bos_token": "<BOS>", "eos_token": "<EOS>", "strftime_now": lambda pattern: NOW}
    try:
        return render_chat(source, messages, **tokens, **options)
    except Exception:
        return None


def read_templates(folder):
    found = {}
    for path in sorted(pathlib.Path(folder).iterdir()):
        if path.suffix == ".jinja":
            found[path.name] = path.read_text()
        elif path.suffix == ".json":
            found.update(json.loads(path.read_text()))
    return {name: text for name, text in found.items() if isinstance(text, str)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--show", type=int, default=3, help="how many differences to print whole")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    counts, rest = collections.Counter(), []
    for template, source in read_templates(args.folder).items():
        for name, messages, options in conversations():
            ours = tinyllm_text(source, messages, options)
            theirs = transformers_text(source, messages, options)
            forms = (transformers_text(source, m, options) for m in other_forms(messages))
            if ours == theirs:
                counts["agree"] += 1
            elif ours is not None and ours in forms:
                counts["agree in another form of the messages"] += 1
            elif ours is None and "{'type'" in (theirs or ""):
                counts["an error instead of Python's repr of parts"] += 1
            else:
                counts["differ"] += 1
                rest.append((template, name, ours, theirs))
    for what, count in counts.items():
        print(f"{count:6} {what}")
    for template, name, *_ in rest:
        print(f"differ: {template}: {name}")
    for template, name, ours, theirs in rest[: args.show]:
        print(f"\n{template}: {name}\n--- tinyllm\n{ours}\n--- transformers\n{theirs}")
    return 1 if rest else 0


if __name__ == "__main__":
    sys.exit(main())
