"""The page of a trace: harmless, in one file, and interactive in a browser."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import tinyllm as tl
from testkit import models

HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=document.title='owned'>",
    "\ud800\0",
    "\\",
    '"',
    " a",
]
IDS = [3, 1, 4, 1, 5, 9]
SIZES = {"layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 60}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.random_model(tmp_path_factory.mktemp("page"), **SIZES)


@pytest.fixture(scope="module")
def trace(model):
    t = model.trace(IDS, "*")
    t.pieces = list(HOSTILE)
    return t


def page(trace):
    return trace.model.page(trace).html()


def data_of(text):
    return json.loads(re.search(r"id='data'>(.*?)</script>", text, re.DOTALL)[1])


def test_the_page_holds_the_traces_values(trace, tmp_path):
    trace.html(tmp_path / "t.html")
    text = (tmp_path / "t.html").read_text("utf-8")
    assert text.isprintable() or "\n" in text
    data = data_of(text)
    assert data["pieces"][0] == HOSTILE[0]
    assert data["ids"] == IDS
    for layer in range(3):
        block = data["attention"][str(layer)]
        assert block["top"] == 0
        steps = np.frombuffer(base64.b64decode(block["data"]), np.uint8).reshape(4, 6, 6)
        small = np.frombuffer(base64.b64decode(block["thumbs"]), np.uint8).reshape(4, 6, 6)
        assert np.array_equal(small, steps)
        assert np.abs(steps / 255 - trace[f"blk.{layer}.attn_probs"]).max() <= 0.5 / 255 + 1e-7
    norm = np.linalg.norm(trace["blk.1.ffn_down"], axis=1)
    assert np.allclose(data["norms"]["ffn_down"]["values"][1], norm, rtol=1e-4)
    result = tl.lens(trace)
    assert data["lens"]["pieces"] == result.pieces
    for t in range(6):  # the parts of the prediction, and the neurons, the largest first
        parts = tl.attribution(trace, int(result.ids[-1, t, 0]), at=t)
        order = np.argsort(-abs(parts.values), kind="stable")[:12]
        shown = data["parts"]
        assert shown["of"][t] == result.pieces[-1][t][0]
        assert [shown["names"][i] for i in shown["indices"][t]] == [parts.names[i] for i in order]
        assert np.allclose(shown["values"][t], parts.values[order], rtol=1e-3, atol=1e-7)
        active = np.stack([trace[f"blk.{i}.ffn_act"][t] for i in range(3)])
        shown = data["neurons"]
        want = np.argsort(-abs(active.reshape(-1)))[:8]
        names = [f"blk.{i // 48}.ffn_act[{i % 48}]" for i in want]
        assert [shown["names"][i] for i in shown["indices"][t]] == names
        assert np.allclose(shown["values"][t], active.reshape(-1)[want], rtol=1e-3)


def test_of_many_weights_the_page_has_the_largest(model, monkeypatch):
    monkeypatch.setattr("tinyllm.display.attention._WHOLE", 1000)
    t = model.trace(np.arange(50) % 60, "*")
    block = data_of(page(t))["attention"]["1"]
    top = block["top"]
    assert top == 8
    values = np.frombuffer(base64.b64decode(block["data"]), np.uint8).reshape(4, 50, top)
    places = np.frombuffer(base64.b64decode(block["places"]), "<u2").reshape(4, 50, top)
    probs = t["blk.1.attn_probs"]
    best = -np.sort(-probs, axis=2)[:, :, :top]
    assert np.abs(-np.sort(-values.astype(float), axis=2) / 255 - best).max() <= 0.5 / 255 + 1e-7
    shown = np.take_along_axis(probs, places.astype(int), axis=2)
    assert np.abs(values / 255 - shown).max() <= 0.5 / 255 + 1e-7
    small = np.frombuffer(base64.b64decode(block["thumbs"]), np.uint8).reshape(4, 16, 16)
    assert abs(int(small[2, 0, 0]) - 255 * probs[2, :4, :4].max()) <= 0.5
    assert small.max() == round(255 * float(probs.max()))


def test_a_trace_from_a_file(model, trace, tmp_path):
    trace.save(tmp_path / "t.npz")
    back = tl.read(tmp_path / "t.npz")
    back.html(tmp_path / "a.html")
    back.html(tmp_path / "b.html", model=model)
    without = data_of((tmp_path / "a.html").read_text("utf-8"))
    assert without["lens"] is without["parts"] is None
    assert without["neurons"] is not None
    assert data_of((tmp_path / "b.html").read_text("utf-8"))["lens"] is not None


def test_show_in_a_notebook(trace, monkeypatch):
    with pytest.raises(RuntimeError, match="needs a notebook"):
        trace.show()
    shown = []
    fake = type("display", (), {"HTML": str, "display": shown.append})
    monkeypatch.setattr("tinyllm.trace.trace.notebook", lambda: fake)
    trace.show(500)
    (html,) = shown
    assert html.startswith("<iframe srcdoc='&lt;!DOCTYPE html&gt;")
    assert "sandbox='allow-scripts'" in html
    assert "height:500px" in html
    assert html.count("<") == 2  # the rest is one attribute
    with pytest.raises(ValueError, match="height is 0"):
        trace.show(0)


def test_no_text_of_a_token_is_markup_and_nothing_is_fetched(trace):
    text = page(trace)
    assert text.count("<script") == 2
    assert "<img" not in text
    assert "default-src 'none'" in text
    namespace = "http://www.w3.org/2000/svg"  # a name, not an address
    assert not re.search(r"https?://|@import|url\(", text.replace(namespace, ""))


def test_a_page_of_what_there_is(model, trace):
    for capture in ("output", "*resid_post", "blk.1.attn_probs"):
        data = data_of(page(model.trace(IDS, capture)))
        assert bool(data["attention"]) == (capture == "blk.1.attn_probs")
        assert (data["lens"] is not None) == (capture == "*resid_post")
    assert data_of(page(trace[2:4]))["start"] == 2
    with pytest.raises(ValueError, match="no tokens"):
        page(trace[2:2])


def test_values_that_are_not_finite(model):
    nan = tl.apply("blk.1.resid_mid", lambda array: array * np.nan, at=3)
    with pytest.warns(RuntimeWarning, match="NaN"):
        t = model.trace(IDS, "*", edits=nan)
    json.dumps(data_of(page(t)), allow_nan=False)
    assert "<table>" in t._repr_html_()


def test_too_much_for_a_page_is_refused(trace, monkeypatch):
    monkeypatch.setattr("tinyllm.display.page._ROWS", 70)
    with pytest.raises(ValueError, match="72 rows of attention and 6 tokens; expected at most 70"):
        page(trace)


# --- in a browser ------------------------------------------------------------------------------


class Browser:
    """Headless Chromium, controlled over a pair of pipes (the DevTools protocol)."""

    def __init__(self, path, profile):
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()
        options = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-extensions"
        options += f" --remote-debugging-pipe --user-data-dir={profile} --window-size=1200,900"
        # Chromium reads from descriptor 3 and writes to 4
        code = "import os, sys; r, w = map(os.dup, map(int, sys.argv[1:3])); r = os.dup2(r, 20); "
        code += (
            "w = os.dup2(w, 21); os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(to_read), str(to_write), path, *options.split()],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._number = 0
        self._session = None
        self.messages = []

    def call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                part = os.read(self._in, 1 << 20)
                if not part:
                    raise RuntimeError("Chromium ended")
                self._buffer += part
            line, self._buffer = self._buffer.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.messages.append(answer)

    def open(self, url):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)
        for _ in range(200):
            if (
                self.value("document.readyState") == "complete"
                and self.value("location.href") == url
            ):
                return
        raise RuntimeError("the page does not load")

    def value(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def click(self, selector, down=0.5, right=0.5, press=True):
        code = f"(()=>{{const e=document.querySelector({json.dumps(selector)});e.scrollIntoView("
        code += "{block:'center'});const b=e.getBoundingClientRect();"
        code += f"return [b.x+b.width*{right},b.y+b.height*{down}]}})()"
        x, y = self.value(code)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased")[: 3 if press else 1]:
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path):
        shot = self.call("Page.captureScreenshot")["data"]
        path.write_bytes(base64.b64decode(shot))

    def close(self):
        self._process.terminate()
        self._process.wait(20)
        os.close(self._in)
        os.close(self._out)


@pytest.fixture
def browser(tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium")
    browser = Browser(path, tmp_path / "profile")
    yield browser
    browser.close()


def test_the_page_lives_in_a_browser(browser, trace, tmp_path):
    trace.html(tmp_path / "t.html")
    browser.open((tmp_path / "t.html").as_uri())
    browser.messages.clear()
    head = "document.querySelector('#head').textContent"
    assert browser.value(head) == "layer 0, head 0"
    assert browser.value("document.querySelectorAll('.token').length") == 6
    # 3 layers, 4 heads: the map has the layers as columns where that makes it larger
    wide = browser.value("document.querySelector('#map').offsetWidth")
    high = browser.value("document.querySelector('#map').offsetHeight")
    assert sorted((wide * 4 == high * 3, wide * 3 == high * 4)) == [False, True]
    across = wide < high
    browser.click("#map", *((3.5 / 4, 2.5 / 3) if across else (2.5 / 3, 3.5 / 4)))
    browser.click("[data-token='4']")
    assert browser.value(head) == "layer 2, head 3"
    assert browser.value("document.querySelector('#token').textContent") == 'token 4: "'
    # the pixels of the chosen row show the attention of that head
    code = "[...document.querySelector('#large').getContext('2d').getImageData(0,4,6,1).data]"
    alpha = np.array(browser.value(code)[3::4]) / 255
    assert np.allclose(alpha, trace["blk.2.attn_probs"][3, 4], atol=0.01)
    # a click into the picture chooses the row; the pointer shows the value
    browser.click("#large", 0.6)
    assert "attends to" in browser.value("document.querySelector('#under').textContent")
    assert browser.value("document.querySelector('#token').textContent").startswith("token 3")
    guesses = browser.value(
        "[...document.querySelectorAll('#lens tr:first-child .guess')].map(e => e.textContent)"
    )
    assert guesses == tl.lens(trace).pieces[-1][3]
    # the pointer on a token shows its attention; when it leaves, the chosen token is back
    browser.click("[data-token='1']", press=False)
    heading = "document.querySelector('#token').textContent"
    assert browser.value(heading).startswith("token 1")
    assert browser.value("document.querySelector('.token.chosen').dataset.token") == "3"
    browser.click("#under", press=False)
    assert browser.value(heading).startswith("token 3")
    # keys
    for key, want in {
        "ArrowLeft": "token 2",
        "ArrowRight": "token 3",
        "ArrowUp": "layer 1, head 3",
        "[": "layer 1, head 2",
        "ArrowDown": "layer 2, head 2",
        "]": "layer 2, head 3",
    }.items():
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        shown = browser.value(heading if "token" in want else head)
        assert shown.startswith(want), key
    # the prediction and what adds to it
    texts = "[...document.querySelectorAll('#{} tr td:first-child')].map(e => e.textContent)"
    assert browser.value(texts.format("prediction")) == tl.lens(trace).pieces[-1][3]
    parts = tl.attribution(trace, int(tl.lens(trace).ids[-1, 3, 0]), at=3)
    assert browser.value(texts.format("parts"))[0] == parts.names[abs(parts.values).argmax()]
    assert browser.value("document.querySelectorAll('#neurons tr').length") == 8
    assert browser.value("document.querySelectorAll('#norms polyline').length") == 3
    # hostile texts stay text
    assert "owned" not in browser.value("document.title")
    assert browser.value("document.querySelectorAll('img').length") == 0
    first = browser.value("document.querySelector('.token').textContent")
    assert first == HOSTILE[0].replace(" ", "·")
    errors = [
        m
        for m in browser.messages
        if m.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")
    ]
    assert errors == []
    asked = [m for m in browser.messages if m.get("method") == "Network.requestWillBeSent"]
    assert asked == []
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_a_slice_and_a_session_show_the_tokens_that_are_looked_at(browser, model, tmp_path):
    ids = [3, 1, 4, 15, 9, 2, 6, 5]
    session = model.session()
    session.eval(ids[:5])
    pieces = [f"t{i}" for i in range(8)]
    whole = model.trace(ids, "*")
    whole.relabel(np.array(ids, np.int32), pieces)
    probs = whole["blk.0.attn_probs"][0]
    for name, part in {
        "slice": whole[2:5],
        "session": session.eval(ids[5:], capture="*"),
    }.items():
        part.html(tmp_path / f"{name}.html")
        browser.open((tmp_path / f"{name}.html").as_uri())
        assert browser.value("document.querySelectorAll('.token').length") == 8
        assert browser.value("document.querySelectorAll('.token:not(.outside)').length") == 3
        texts = pieces if name == "slice" else part.context_pieces
        code = "[...document.querySelectorAll('.token')].map(e => e.textContent)"
        assert browser.value(code) == [t.replace(" ", "·") for t in texts]
        browser.click("[data-token='1']")
        position = part.start + 1
        heading = browser.value("document.querySelector('#token').textContent")
        assert heading.startswith(f"token {position}: ")
        # colours of the strip: each token as strongly as it is looked at
        code = "[...document.querySelectorAll('.token')].map(e => e.style.background)"
        alpha = [re.findall(r"[\d.]+(?=\))", color) for color in browser.value(code)]
        shown = [float(a[0]) if a else 0.0 for a in alpha]
        assert np.allclose(shown[: position + 1], probs[position, : position + 1], atol=0.01)
        assert not any(shown[position + 1 :])


@pytest.mark.parametrize("layers", [4, 30, 80])
def test_nothing_overlaps_at_any_size(browser, tmp_path, layers):
    model = models.random_model(tmp_path, **SIZES | {"layers": layers, "context": 1000})
    for tokens in (9, 200):
        t = model.trace(np.arange(tokens) % 60, "*")
        words = ["the", " international", "<0xE7>", "\n", "x" * 200]
        t.relabel(t.tokens, [words[i % 5] for i in range(tokens)])
        t.html(tmp_path / "t.html")
        browser.open((tmp_path / "t.html").as_uri())
        for width in (400, 1200, 2400):
            browser.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=900,
                deviceScaleFactor=1,
                mobile=False,
            )
            code = "[innerWidth, document.documentElement.scrollWidth]"
            inner, scroll = browser.value(code)
            assert inner == width
            assert scroll <= width  # nothing to scroll sideways
            boxes = "[...document.querySelectorAll('section')].map(e => {"
            boxes += (
                "const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]})"
            )
            first, second = browser.value(boxes)
            if width == 400:
                assert second[1] >= first[3]  # one below the other
            else:
                assert first[2] <= second[0]  # side by side, with equal shares
                assert abs((first[2] - first[0]) - (second[2] - second[0])) < 2
                lens = "document.querySelector('#lens').getBoundingClientRect().top"
                assert browser.value(lens) < 900  # seen without scrolling
