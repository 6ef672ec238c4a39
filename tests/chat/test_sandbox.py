"""Limits of chat templates: hostile ones end soon and small, and honest long ones are not counted
more often than they run."""

import sys
import time

import pytest

pytest.importorskip("jinja2")
from tinyllm.chat import MAX_MEMORY, MAX_SIZE, ChatTemplateError, limits, render_chat

USER = [{"role": "user", "content": "Hi"}]
#: Two different nests of 2 ** 60 items, in 60 lists each.
BOMBS = (
    "{% set a = namespace(x=[1], y=(1,)) %}{% set b = namespace(x=[1]) %}"
    "{% for i in range(60) %}{% set a.x = [a.x, a.x] %}{% set b.x = [b.x, b.x] %}"
    "{% set a.y = (a.y, a.y) %}{% endfor %}"
)


def nested(inner):
    return BOMBS + "{{ " + inner + " }}"


def many(values):
    return "".join(f"{{% set v{i} = {values} %}}" for i in range(1000))


HOSTILE = {
    # a huge value would be made by one operation
    "format width": "{{ '{:3000000000}'.format('x') }}",
    "format width argument": "{{ '{:{w}}'.format('x', w='900000000') }}",
    "format width in two steps": "{{ '{0:{1}}'.format('x', '9' * 10) }}",
    "format precision": "{{ '{:.900000000f}'.format(1.5) }}",
    "format fields": "{{ ('{0}' * 100000).format('a' * 10000) }}",
    "format_map": "{{ '{a:900000000}'.format_map({'a': 'x'}) }}",
    "format as an item": "{{ '{:900000000}'['format'](1) }}",
    "format as an attribute": "{{ ('{:900000000}' | attr('format'))(1) }}",
    "format in map": "{{ ['%900000000s'] | map('format', 1) | list }}",
    "format attribute in map": "{{ (['{:900000000}'] | map(attribute='format') | first)(1) }}",
    "percent width": "{{ '%3000000000s' % 'x' }}",
    "percent filter": "{{ '%3000000000s' | format('x') }}",
    "percent precision": "{{ '%.900000000f' % 1.5 }}",
    "percent star": "{{ '%*s' % (900000000, 1) }}",
    "percent mapping": "{{ ('%(a)s' * 100000) % {'a': 'b' * 10000} }}",
    "json indent": "{{ range(1000) | list | tojson(indent='x' * 1000000) }}",
    "json separators": "{{ ([0] * 100000) | tojson(separators=('a' * 100000, 'b')) }}",
    "json separators second": "{{ ([0] * 100000) | tojson(false, none, ('a' * 99999, 'b')) }}",
    "json escapes": "{{ ('\u0001' * 15000000) | tojson }}",
    "repr escapes": "{{ ['\U000e0001' * 15000000] | string }}",
    "bytes of an int": "{{ (1).to_bytes(3000000000, 'little') }}",
    "translate": "{{ ('a' * 15000000).translate({97: 'b' * 1000}) }}",
    "encode": "{{ ('a' * 15000000).encode('utf-32') }}",
    "split": "{{ ('ab,' * 5000000).split(',') }}",
    "splitlines": "{{ ('ab\n' * 5000000).splitlines() }}",
    "list of characters": "{{ ('a' * 15000000) | list }}",
    "star arguments": "{{ cycler(*('a' * 15000000)) }}",
    "items of an iterator": "{{ range(100000) | map('center', 100000) | list }}",
    "length of a loop": "{% for a in range(100000) | map('center', 100000) %}{{ loop.length }}"
                        "{% endfor %}",
    "batch": "{{ 'ab' | batch(100000000, 1) | list }}",
    "filter block": "{% filter center(900000000) %}a{% endfilter %}",
    "set block": "{% set x | center(900000000) %}a{% endset %}",
    "escapes": "{{ ('<' * 15000000) | e }}",
    "escapes of a sum": "{{ '<' | safe + '<' * 15000000 }}",
    # many values are kept
    "variables": "{% set x = 'a' * 15000000 %}" + many("x ~ 'b'"),
    "slices": "{% set x = 'a' * 15000000 %}" + many("x[1:]"),
    "methods": "{% set x = 'a' * 15000000 %}" + many("x.replace('a', 'b')"),
    "arguments": "{% macro f(n, x) %}{% if n %}{{ f(n - 1, x ~ n) }}{% endif %}{% endmacro %}"
                 "{{ f(90, 'a' * 14000000) }}",
    "lists of lists": "{{ (['\U0001f600' * 100000] * 100) | map('list') | list }}",
    # one operation would take long
    "equal": nested("a.x == b.x"),
    "equal in lists": nested("[a.x] == [b.x]"),
    "equal views": nested("{1: a.x}.items() == {1: b.x}.items()"),
    "in a list": nested("a.x in [b.x]"),
    "in a view": nested("a.x in {1: b.x}.values()"),
    "test of equality": nested("a.x is eq(b.x)"),
    "select": nested("[a.x] | select('equalto', b.x) | list"),
    "index": nested("[a.x].index(b.x)"),
    "max": nested("[a.x, b.x] | max"),
    "changed": BOMBS + "{% for i in [0, 1] %}{{ loop.changed(a.x if i else b.x) }}{% endfor %}",
    "hash of an item": nested("{}[a.y]"),
    "hash of a key": nested("{a.y: 1}"),
    "hash in get": nested("{}.get(a.y)"),
    "hash in in": nested("a.y in {}"),
    "hash in attr": nested("{} | attr(a.y)"),
    "hash in unique": nested("[a.y] | unique | list"),
    "hash in fromkeys": nested("dict.fromkeys([a.y])"),
    "hash in map": nested("[{}] | map(attribute=a.y) | list"),
    "written": nested("a.x"),
    "written view": nested("{1: a.x}.values()"),
    "joined": nested("[a.x] | join"),
    "concatenated": nested("'' ~ a.x"),
    "equal hashes": "{{ dict.fromkeys(range(0, 230584300921369395100000, 2305843009213693951)) }}",
    "equal hashes computed": "{% set m = 2305843009213693951 %}{{ range(0, m * 100000, m) }}",
    "backwards search": "{% set k = 'a' * 4000000 %}{{ ('a' * 8000000).rfind(k ~ 'b' ~ k) }}",
    "backwards split": "{% set k = 'a' * 4000000 %}{{ ('a' * 8000000).rsplit(k ~ 'b' ~ k) }}",
    "strip": "{{ ('a' * 8000000).strip('b' * 7000000 ~ 'a') }}",
    "trim": "{{ ('a' * 8000000) | trim('b' * 7000000 ~ 'a') }}",
    "search in equal texts": "{% set k = 'a' * 7000000 %}{{ k ~ 'b' in [k ~ 'c'] * 700000 }}",
    "round": "{{ 1 | round(10000000, 'floor') }}",
    "int": "{{ ('9' * 10000000) | int }}",
    "int in a base": "{{ ('z' * 10000000) | int(0, 36) }}",
    "sum of lists": "{{ ([{'a': [0]}] * 90000) | sum('a', start=[]) }}",
    "long attribute": "{{ range(100000) | map(attribute='a.' * 7000000) | list }}",
    "wordwrap": "{{ ('a' * 7000000) | wordwrap(1) }}",
    "title": "{{ ('a-' * 7000000) | title }}",
    "date": "{{ strftime_now('%A' * 1000000) }}",
    # long or deep sources
    "expressions": "{{1}}" * 200_000,
    "assignments": "{% set a=1 %}" * 70_000,
    "branches": "{% if x %}" + "{% elif x %}" * 20_000 + "{% endif %}",
    "unary": "{{ " + "-" * 15_000 + "1 }}",
    "attributes": "{{ x" + ".a" * 9000 + " }}",
    "digits": "{{ " + "1" * 500_000 + " }}",
    "hexadecimal": "{{ 0x" + "f" * 500_000 + " }}",
    # recursion
    "macro": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "call block": "{% macro f() %}{% call f() %}{% endcall %}{% endmacro %}{{ f() }}",
    # what templates cannot use
    "autoescape": "{% autoescape true %}{{ '<' * 1000 }}{% endautoescape %}",
    "method of a generator": "{{ (range(3) | map('string')).send(1) }}",
    "type": "{{ dict.__init__ }}{{ ''.__class__('a') }}",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template(name):
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.thread_time()
    with pytest.raises(ChatTemplateError) as error:
        render_chat(HOSTILE[name], USER)
    assert error.value.limit or "failed" in str(error.value) or "cannot" in str(error.value)
    assert time.thread_time() - start < 3  # refused, not stopped by the clock
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 300e6


def test_the_checks_have_no_names(monkeypatch):
    names = ("environment context tick made compare concatenate cut spread budget undefined "
             "resolve missing tl_tick tl_check tl_concat").split()  # fmt: skip
    for name in names:
        assert render_chat(f"{{{{ {name} is defined }}}}", USER) == "False"
    # a template may use the names for its own values, and they change nothing
    monkeypatch.setattr("tinyllm.chat.limits.MAX_SIZE", 1000)
    loop = "{% for i in range(20) %}" + "X" * 99 + "{{ [i][0:] }}{{ i ~ 1 }}{% endfor %}"
    for name in names:
        for around in (
            f"{{% set {name} = range %}}{loop}",
            f"{{% for {name} in [range] %}}{loop}{{% endfor %}}",
            f"{{% macro m({name}) %}}{loop}{{% endmacro %}}{{{{ m(range) }}}}",
        ):
            with pytest.raises(ChatTemplateError, match="too much output"):
                render_chat(around, USER)


@pytest.mark.parametrize(
    "writes",
    ["aaaaaaaaaa", "{{ 'a' * 10 }}", "{{ [1, 2, 3, 4] }}",
     "{% generation %}aaaaaaaaaa{% endgeneration %}",
     "{% if true %}aaaaaaaaaa{% endif %}", "{% set x %}aaaaaaaaaa{% endset %}",
     "{% filter upper %}aaaaaaaaaa{% endfilter %}", "{% with %}aaaaaaaaaa{% endwith %}"],
)  # fmt: skip
def test_all_that_is_written_counts(writes, monkeypatch):
    monkeypatch.setattr("tinyllm.chat.limits.MAX_SIZE", 1000)
    assert render_chat(f"{{% for i in range(40) %}}{writes}{{% endfor %}}", USER) is not None
    with pytest.raises(ChatTemplateError, match="too much output; expected at most 1000"):
        render_chat(f"{{% for i in range(200) %}}{writes}{{% endfor %}}", USER)


def test_values_count_while_they_are_held():
    half = MAX_MEMORY // 2
    value = f"('a' * {MAX_SIZE // 2}) ~ i"
    # one value after the other: ten times the limit in all
    dropped = f"{{% for i in range(80) %}}{{% set x = {value} %}}{{% endfor %}}done"
    assert render_chat(dropped, USER) == "done"
    kept = (
        f"{{% set ns = namespace(x=[]) %}}{{% for i in range(80) %}}"
        f"{{% set ns.x = ns.x + [{value}] %}}{{% endfor %}}"
    )
    with pytest.raises(ChatTemplateError, match=rf"values of \d+ bytes.*at most {MAX_MEMORY}"):
        render_chat(kept, USER)
    # the same value in many places counts once
    shared = f"{{% set x = 'a' * {min(half, MAX_SIZE)} %}}{{{{ ([x] * 1000) | length }}}}"
    assert render_chat(shared + shared.replace("set x", "set y"), USER) == "10001000"


def test_the_clock_stops_what_is_left(monkeypatch):
    monkeypatch.setattr("tinyllm.chat.sandbox.MAX_SECONDS", 0.2)
    for source in (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ range(100000) | map('string') | map('string') | map('upper') | list }}" * 99,
        "{% for i in range(99999) %}{{ range(50000) | sort | first }}{% endfor %}",
    ):
        start = time.thread_time()
        with pytest.raises(ChatTemplateError, match=r"ran for more than 0\.2 seconds"):
            render_chat(source, USER)
        assert time.thread_time() - start < 1.5


def test_the_time_is_that_of_all_renders(monkeypatch):
    # the user's text is missing, and so is that of the system: each would be a render of its own
    monkeypatch.setattr("tinyllm.chat.sandbox.MAX_SECONDS", 1.0)
    source = "{% for i in range(3000) %}{{ range(1000) | sort | first }}{% endfor %}"
    talk = [{"role": "system", "content": "S"}, *USER]
    for ending in ("", "{{ raise_exception('no') }}"):
        start = time.monotonic()
        with pytest.raises(ChatTemplateError, match=r"ran for more than 1 seconds"):
            render_chat("{% for k in range(9) %}" + source + "{% endfor %}" + ending, talk)
        assert time.monotonic() - start < 1.9


# ---- honest templates ----


def conversation(n):
    talk = [
        {"role": "user" if i % 2 == 0 else "assistant", "content": f"message {i}"} for i in range(n)
    ]
    for i in range(1, n, 2):
        arguments = {"path": "a/b", "n": i, "more": [1, 2, 3]}
        call = {
            "id": f"c{i}",
            "type": "function",
            "function": {"name": "f", "arguments": arguments},
        }
        talk[i]["tool_calls"] = [call]
    return talk


@pytest.mark.parametrize(
    "body",
    [
        "{{ messages | length }}",
        "{{ (messages | length - 1) - loop.index0 }}{{ loop.last }}{{ loop.length }}",
        "{{ messages[-1].content }}{{ messages[loop.index0].role }}",
        "{{ m is mapping and m.tool_calls is defined and 'content' in m }}",
        "{% set ns.last = messages %}{% set ns.n = ns.n + 1 %}",
        "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}",
        "{{ f(messages, m) }}",
        "{% set x = {'all': messages, 'one': m} %}{{ x.all | length }}{{ [messages, m] | length }}",
    ],
)  # fmt: skip
def test_the_work_grows_with_the_conversation(body):
    source = (
        "{% macro f(all, one) %}{{ all | length }}{{ one.role }}{% endmacro %}"
        "{% set ns = namespace(n=0) %}{% for m in messages %}" + body + "{% endfor %}"
    )

    def steps(n):
        """Return the number of calls of functions, in Python and C."""
        talk, count = conversation(n), 0
        render_chat(source, talk)  # compiles

        def event(frame, kind, argument):
            nonlocal count
            count += kind in ("call", "c_call")

        sys.setprofile(event)
        try:
            render_chat(source, talk)
        finally:
            sys.setprofile(None)
        return count

    assert steps(800) < 4.4 * steps(200)


def test_two_thousand_messages_with_calls():
    source = """{%- for message in messages[::-1] %}
        {%- set index = (messages|length - 1) - loop.index0 %}
    {%- endfor %}
    {%- for message in messages %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endfor %}"""
    start = time.thread_time()
    text = render_chat(source, conversation(2000))
    assert time.thread_time() - start < 1.5  # 0.1 s on an idle machine
    assert text.count("<|im_start|>") == 2000
    assert '{"name": "f", "arguments": {"path": "a/b", "n": 1999, "more": [1, 2, 3]}}' in text


@pytest.mark.parametrize(
    ("source", "want"),
    [
        ("{{ dict(b=2, **{'a': 1}) | tojson }}", '{"b": 2, "a": 1}'),
        ("{% macro f(a, b) %}{{ a }}-{{ b }}{% endmacro %}{{ f(*[1, 2]) }}", "1-2"),
        ("{{ dict.fromkeys(['a', 'b'], 0) }}{{ dict([('a', 1)]).a }}", "{'a': 0, 'b': 0}1"),
        ("{% set c = cycler(1, 2) %}{{ c.next() }}{{ c.next() }}{{ c.current }}", "121"),
        ("{% set j = joiner('-') %}{{ j() }}a{{ j() }}b", "a-b"),
        ("{% for x in [[1, [2]]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}",
         "12"),
        ("{% for x in 'aab' %}{{ loop.changed(x) }}{{ loop.cycle('-', '+') }}{% endfor %}",
         "True-False+True-"),
        ("{{ 1 < 2 < 3 }}{% set x = 2 %}{{ 1 < x <= x }}{{ x in [x] and x not in (1, 3) }}",
         "TrueTrueTrue"),
        ("{{ [1, 2, 3][1:] }}{{ 'abc'[::-1] }}{{ (1, 2)[:1] }}{{ range(5)[1:3] | list }}",
         "[2, 3]cba(1,)[1, 2]"),
        ("{{ {('a', 1): 2}[('a', 1)] }}", "2"),
        ("{{ ['b', 'A'] | sort | join }}{{ [1, 1, 2] | unique | list }}", "Ab[1, 2]"),
        ("{% for g in messages | groupby('role') %}{{ g.grouper }}{{ g.list[0].content }}"
         "{% endfor %}", "userHi"),
        ("{{ 'a b  c'.split() }}{{ 'a-b'.rsplit('-', 1) }}{{ 'a\nb'.splitlines() }}",
         "['a', 'b', 'c']['a', 'b']['a', 'b']"),
        ("{{ ' a '.strip() }}{{ 'xax'.strip('x') }}{{ 'abc'.removeprefix('a') }}", "aabc"),
        ("{{ 'a'.zfill(3) }}{{ 'a'.center(3) }}{{ '\t'.expandtabs(2) }}|", "00a a   |"),
        ("{{ '{:>3}{}{x!r}'.format(1, 'b', x='c') }}{{ '{a}'.format_map({'a': 1}) }}", "  1b'c'1"),
        ("{{ 3.7 | round | int }}{{ 10 // 3 }}{{ 2 ** 8 }}{{ -7 % 3 }}", "432562"),
        ("{{ 42.55 | round(1, 'floor') }}", "42.5"),
        ("{{ 'a<b' | e }}{{ ('<' | safe) ~ '<' }}", "a&lt;b<<"),
        ("{{ 'x' | indent }}{{ 'a\nb' | indent(2) }}", "xa\n  b"),
        ("{{ [1, 2, 3] | batch(2) | list }}{{ [1, 2, 3] | sum }}{{ [3, 1] | min }}",
         "[[1, 2], [3]]61"),
        ("{{ undefined_name }}{{ messages[0].missing }}{{ messages.__class__ }}|", "|"),
        ("{{ 'abcdef' | truncate(5, true, '..', 0) }}{{ 'the end' | title }}", "abc..The End"),
    ],
)  # fmt: skip
def test_operations_with_checks_give_what_jinja_gives(source, want):
    assert render_chat(source, USER) == want


def test_sizes():
    bomb = [1]
    for _ in range(60):
        bomb = [bomb, bomb]
    assert limits.text_size(bomb, 1000) == 1001
    assert limits.text_size({"ab": "cdef"}) == limits.ITEM * 3 + limits.ESCAPED * 6
    assert limits.text_size({1: [2]}.items(), 10**9) == limits.ITEM * 5


def test_an_error_is_no_longer_than_a_page():
    with pytest.raises(ChatTemplateError) as error:
        render_chat("{{ raise_exception('a' * 15000000) }}", USER)
    assert len(str(error.value)) < 3000
