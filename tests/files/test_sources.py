"""Models by name: Hugging Face repositories from a server on loopback, and a store of Ollama."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

import tinyllm as tl
from tinyllm.cli.main import main
from tinyllm.files.model_file import DEMO
from tinyllm.files.sources import locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def split_demo(stem):
    """Return the demo model as two files of a split model, by name."""
    file = tl.GGUF(DEMO)
    names = list(file.tensors)
    halves = names[:5], names[5:]
    files = {}
    for i, half in enumerate(halves):
        metadata = file.metadata.typed() if i == 0 else {}
        metadata |= {
            "split.no": ("UINT16", i),
            "split.count": ("UINT16", 2),
            "split.tensors.count": ("INT32", len(names)),
        }
        tl.write_gguf("part.gguf", metadata, {name: file.tensors[name] for name in half})
        with open("part.gguf", "rb") as part:
            files[f"{stem}-{i + 1:05}-of-00002.gguf"] = part.read()
    return files


class Hub(BaseHTTPRequestHandler):
    """The part of the interface of huggingface.co that lists and sends files."""

    repos: ClassVar = {}
    requests: ClassVar = []

    def do_GET(self):
        self.answer(self.command == "GET")

    do_HEAD = do_GET

    def answer(self, body):
        path = unquote(urlsplit(self.path).path)
        Hub.requests.append((self.command, path, self.headers.get("Authorization")))
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            repo, revision = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main"
        else:
            repo, revision = "/".join(parts[:2]), parts[3]
        if repo == "owner/gated" and self.headers.get("Authorization") != "Bearer secret":
            return self.send(401, b"no", {"X-Error-Code": "GatedRepo"})
        if repo not in self.repos:
            return self.send(404, b"no", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", "v2", COMMIT):
            return self.send(404, b"no", {"X-Error-Code": "RevisionNotFound"})
        files = self.repos[repo]
        if parts[0] == "api":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in files.items()
            ]
            siblings = [{"rfilename": name} for name in files]
            info = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
            return self.send(200, json.dumps(tree if "tree" in parts else info).encode(), {})
        name = "/".join(parts[4:])
        if name not in files:
            return self.send(404, b"no", {"X-Error-Code": "EntryNotFound"})
        data = files[name]
        etag = hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = 0
        if (wanted := self.headers.get("Range")) is not None:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self.send(206 if wanted else 200, data[start:], headers, body)

    def send(self, status, data, headers, body=True):
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Run the server; yield the environment of a process that uses it."""
    pytest.importorskip("huggingface_hub")
    folder = tmp_path_factory.mktemp("hub")
    before = os.getcwd()
    os.chdir(folder)
    try:
        parts = split_demo("big/model-Q8_0")
    finally:
        os.chdir(before)
    demo = DEMO.read_bytes()
    Hub.repos = {
        "owner/one": {"README.md": b"hello", "model.gguf": demo, "mmproj-model.gguf": b"GGUF"},
        "owner/many": {
            "model-F16.gguf": demo,
            "model-BF16.gguf": b"GGUF",
            "model-Q4_K_M.gguf": demo,
            "Model.imatrix.gguf": b"GGUF",
            "UD/model.Q4_K_XL.gguf": demo,
            **parts,
        },
        "owner/gated": {"model.gguf": demo},
        "owner/page": {"model.gguf": POINTER},
        "owner/torch": {"config.json": b"{}", "model.safetensors": b"x"},
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    server.shutdown()
    server.server_close()
    thread.join()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"

SCRIPT = """
import json, sys, warnings
import tinyllm as tl
for name in sys.argv[1:]:
    try:
        model = tl.load(name, threads=1)
        print(json.dumps([model.path, model.logits([1, 2])[-1, :4].tolist()]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def loads(hub, *names, **environment):
    """Load names in a process of its own, because the library reads its environment at import."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names],
        env=os.environ | hub | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "Retrying" not in done.stderr  # the library would wait half a minute for a server
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_files_of_a_repository(hub):
    want = tl.load().logits([1, 2])[-1, :4].tolist()
    names = {
        "hf:owner/one": "one/snapshots/*/model.gguf",
        "hf:owner/one@v2": "model.gguf",
        "hf:owner/many:q4_k_m": "model-Q4_K_M.gguf",
        "hf:owner/many:F16": "model-F16.gguf",
        "hf:owner/many:Q4_K_XL": "UD/model.Q4_K_XL.gguf",
        "hf:owner/many:Q8_0": "big/model-Q8_0-00001-of-00002.gguf",
        "hf:owner/many/big/model-Q8_0-00001-of-00002.gguf": "big/model-Q8_0-00001-of-00002.gguf",
    }
    for name, (path, logits) in zip(names, loads(hub, *names), strict=True):
        assert path.replace(os.sep, "/").endswith(names[name].rpartition("*")[2]), name
        assert COMMIT in path
        assert logits == want, name


def test_errors_of_a_repository(hub):
    names = {
        "hf:owner/many": ("ValueError", "has 5 GGUF files; expected one of them, as in hf:owner/"),
        "hf:owner/many:Q2_K": ("FileNotFoundError", "'Q2_K'; it has UD/model.Q4_K_XL.gguf, big/"),
        "hf:owner/none": ("FileNotFoundError", "'hf:owner/none'"),
        "hf:owner/one@v9": ("FileNotFoundError", "'hf:owner/one@v9'"),
        "hf:owner/one/no.gguf": ("FileNotFoundError", "'hf:owner/one/no.gguf'"),
        "hf:owner/gated": ("PermissionError", "'hf:owner/gated'"),
        "hf:owner/torch": ("FileNotFoundError", "tinyllm.convert"),
        "hf:owner/page": ("FormatError", "a Git LFS pointer"),
        "hf:owner": ("ValueError", "expected hf:owner/repo"),
        "hf:owner/one:": ("ValueError", "expected hf:owner/repo"),
    }
    for name, (kind, text) in zip(names, loads(hub, *names), strict=True):
        assert kind == names[name][0], (name, text)
        assert names[name][1] in text, name
    ((path, _),) = loads(hub, "hf:owner/gated", HF_TOKEN="secret")
    assert path.endswith("model.gguf")


def test_cache_offline_and_without_a_server(hub):
    name = "hf:owner/many:Q4_K_M"
    ((path, _),) = loads(hub, name)
    Hub.requests.clear()
    ((again, _),) = loads(hub, name)
    assert again == path
    assert not any(request[0] == "GET" and "resolve" in request[1] for request in Hub.requests)
    Hub.requests.clear()
    offline = loads(hub, name, "hf:owner/many:Q6_K", "hf:owner/never", HF_HUB_OFFLINE="1")
    assert offline[0][0] == path
    assert offline[1][0] == "FileNotFoundError"
    assert offline[2][0] in ("OSError", "FileNotFoundError")
    assert not Hub.requests
    names = name, f"hf:owner/many/{os.path.basename(path)}", "hf:owner/many/other.gguf"
    gone = loads(hub, *names, HF_ENDPOINT="http://127.0.0.1:9")
    assert [gone[0][0], gone[1][0]] == [path, path]
    assert gone[2][0] == "OSError"
    assert "Connection refused" in gone[2][1]


def test_an_interrupted_download_resumes(hub):
    ((path, _),) = loads(hub, "hf:owner/one")
    blob = os.path.realpath(path)
    data = DEMO.read_bytes()
    os.remove(path)
    os.remove(blob)
    with open(f"{blob}.incomplete", "wb") as file:
        file.write(data[:1000])
    ((again, _),) = loads(hub, "hf:owner/one")
    with open(again, "rb") as file:
        assert file.read() == data


def test_commands_take_names(hub, tmp_path):
    for arguments in (
        ("info", "hf:owner/one", "--short"),
        ("weights", "hf:owner/one", "output_norm.weight"),
        ("generate", "-m", "hf:owner/one", "-n", "2", "--", "To"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "tinyllm", *arguments],
            env=os.environ | hub,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "tinyllm", "info", "hf:owner/none"],
        env=os.environ | hub,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_the_library_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        tl.load("hf:owner/repo")


def test_names_that_are_not_resolved(tmp_path, monkeypatch):
    for url, text in (
        ("https://huggingface.co/owner/repo/resolve/main/m.gguf", "hf:owner/repo"),
        ("http://example.com/m.gguf", "download the file"),
    ):
        with pytest.raises(ValueError, match=text):
            tl.load(url)
    monkeypatch.chdir(tmp_path)
    with open("hf:owner", "wb") as file:
        file.write(DEMO.read_bytes())
    assert tl.load("./hf:owner").path == "./hf:owner"
    assert locate("C:\\model.gguf") == "C:\\model.gguf"


# ---- Ollama ----

MODEL = "application/vnd.ollama.image.model"


def put(store, name, layers):
    """Add a model to a store, as Ollama lays it out."""
    listed = []
    for media_type, data in layers:
        digest = hashlib.sha256(data).hexdigest()
        blob = store / "blobs" / f"sha256-{digest}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        listed.append({"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)})
    manifest = store / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": listed}))
    return manifest


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    demo = DEMO.read_bytes()
    license_ = ("application/vnd.ollama.image.license", b"MIT")
    put(tmp_path, "registry.ollama.ai/library/llama3.2/latest", [license_, (MODEL, demo)])
    put(tmp_path, "registry.ollama.ai/library/llama3.2/1b", [(MODEL, demo), license_])
    put(tmp_path, "registry.ollama.ai/me/mine/v1", [(MODEL, demo)])
    put(tmp_path, "hf.co/Owner/Repo-GGUF/Q4_K_M", [(MODEL, demo)])
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["llama3.2", "llama3.2:1b", "LLama3.2:LATEST", "me/mine:v1", "hf.co/owner/repo-gguf:q4_k_m"],
)
def test_models_of_ollama(store, name, capsys):
    model = tl.load(f"ollama:{name}")
    assert np.array_equal(model.logits([1, 2]), tl.load().logits([1, 2]))
    assert "blobs" in model.path
    assert tl.load_tokenizer(f"ollama:{name}").encode("To") == model.tokenizer.encode("To")
    assert main(["info", "--short", f"ollama:{name}"]) == 0
    assert "embedding" in capsys.readouterr().out


def test_errors_of_ollama(store, monkeypatch):
    for name in ("none", "llama3.2:3b", "../../x", "mine:v1", ""):
        with pytest.raises(FileNotFoundError, match=r"it has hf.co/Owner/Repo-GGUF:Q4_K_M, llama3"):
            tl.load(f"ollama:{name}")
    adapter = ("application/vnd.ollama.image.adapter", b"x")
    put(store, "registry.ollama.ai/library/tuned/latest", [(MODEL, b"GGUF"), adapter])
    with pytest.raises(tl.UnsupportedError, match="has an adapter"):
        tl.load("ollama:tuned")
    put(store, "registry.ollama.ai/library/mlx/latest", [("application/x.tensor", b"x")])
    with pytest.raises(tl.UnsupportedError, match=r"its parts are application/x.tensor"):
        tl.load("ollama:mlx")
    manifest = put(store, "registry.ollama.ai/library/bad/latest", [(MODEL, b"lost")])
    (store / "blobs" / f"sha256-{hashlib.sha256(b'lost').hexdigest()}").unlink()
    with pytest.raises(FileNotFoundError, match="ollama pull bad"):
        tl.load("ollama:bad")
    for text in (
        "{",
        "[]",
        '{"layers": 1}',
        '{"layers": [1]}',
        "[" * 100_000,
        '{"layers": [{"mediaType": "m", "digest": "sha256:../../x"}]}',
    ):
        manifest.write_text(text)
        with pytest.raises(tl.FormatError) as error:
            tl.load("ollama:bad")
        assert error.value.path == str(manifest)
    monkeypatch.setenv("OLLAMA_MODELS", str(store / "nowhere"))
    with pytest.raises(FileNotFoundError, match="it has none"):
        tl.load("ollama:llama3.2")


def test_the_usual_store_of_ollama(store, monkeypatch, tmp_path):
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / ".ollama").mkdir(parents=True)
    (tmp_path / "home" / ".ollama" / "models").symlink_to(store, target_is_directory=True)
    assert tl.load("ollama:llama3.2").config.architecture == "llama"
