"""Every code block and every command of the pages runs, in order, with NumPy and nothing else.

A block that needs another package says so in place: `pip install NAME`.
"""

import doctest
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tinyllm as tl
from testkit import data
from tinyllm.files.model_file import DEMO

ROOT = Path(__file__).parents[2]
NUMPY_ONLY = ROOT / "tests" / "testkit" / "numpy_only"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

#: What `pip install NAME` in a block allows: the package with what it needs, or everything.
ALLOWS = {"jinja2": "jinja2 markupsafe", "huggingface_hub": "huggingface_hub", "pydantic": "*",
          "matplotlib": "*"}  # fmt: skip
#: Commands that only CI, or a person with hours, runs.
ELSEWHERE = ("pip", "sphinx-build", "pytest", "ruff", "mypy", "python scripts/train_demo.py",
             "python setup.py",
             "python -m pytest", "git")  # fmt: skip

#: Stands in for the package huggingface_hub: a repository whose files are the model of the test.
HUB = """
from . import errors
from types import SimpleNamespace
class HfApi:
    def model_info(self, repo, revision=None):
        name = repo.split("/")[1].removesuffix("-GGUF")
        files = ["README.md", f"{name}-Q4_K_M.gguf", f"{name}-Q8_0.gguf"]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])
def hf_hub_download(repo, file, revision=None, local_files_only=False):
    assert repo.count("/") == 1 and file.endswith(".gguf")
    import shutil
    return shutil.copy("model.gguf", file)
"""
HUB_ERRORS = "HfHubHTTPError = RepositoryNotFoundError = GatedRepoError = type('E', (OSError,), {})"

RUN_PYTHON = """
import doctest, json, sys
only = next(f for f in sys.meta_path if hasattr(f, "more"))
names = {"__name__": "page"}
for source, where, allowed in json.load(open("blocks.json")):
    only.more[:] = allowed
    if source.lstrip().startswith(">>>"):
        test = doctest.DocTestParser().get_doctest(source, names, where, where, 0)
        failed, _ = doctest.DocTestRunner().run(test, clear_globs=False)
        names.update(test.globs)
        if failed:
            sys.exit(f"{where} failed")
    else:
        exec(compile(source, where, "exec"), names)
"""


def blocks(path):
    """The fenced blocks of a page: language, text, and the number of the first line."""
    text = path.read_text("utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield found[1], found[2], text.count("\n", 0, found.start()) + 2


def allowed(text):
    """The packages that a text says to install."""
    named = re.findall(r"pip install ([\w .=\"[\]-]+)", text)
    words = [word for line in named for word in line.split()]
    return " ".join(ALLOWS[word] for word in words if word in ALLOWS).split()


def commands(text):
    """The commands of a shell block, with those in comments."""
    for line in text.splitlines():
        line, _, comment = line.partition("  #")
        line = line.split(" # ")[0]
        also = comment.strip().removeprefix("or: ") if comment.strip().startswith("or: ") else ""
        for part in (*line.split("&&"), also):
            if part.strip():
                yield part.strip()


def environment(folder, more=()):
    places = [NUMPY_ONLY, folder / "fake", Path(tl.__file__).parents[1]]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "TINYLLM_TEST_ALLOW": " ".join(more),
        "MPLBACKEND": "agg",
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }


@pytest.fixture
def folder(tmp_path):
    """A folder with the files that pages name, and the command tinyllm."""
    from tinyllm.chat.templates import TEMPLATES

    template = "{% if tools %}{{ tools | tojson }}{% endif %}" + TEMPLATES["chatml"].source
    metadata = tl.GGUF(DEMO).metadata.typed() | {"tokenizer.chat_template": template}
    tl.write_gguf(tmp_path / "model.gguf", metadata, tl.GGUF(DEMO).tensors)
    hub = tmp_path / "fake" / "huggingface_hub"
    hub.mkdir(parents=True)
    (hub / "__init__.py").write_text(HUB)
    (hub / "errors.py").write_text(HUB_ERRORS)
    (tmp_path / "calibration.txt").write_text("To be, or not to be, that is the question. " * 40)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "tinyllm"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tinyllm "$@"\n')
    command.chmod(0o755)
    return tmp_path


def ran(command, folder, more=(), **options):
    return subprocess.run(
        command, cwd=folder, env=environment(folder, more), capture_output=True, text=True,
        timeout=600, **options,
    )  # fmt: skip


def test_pages_are_there():
    if not (ROOT / "README.md").exists():
        pytest.skip("needs the source tree")
    assert {"README.md", "generation.md", "inspection.md"} <= {path.name for path in PAGES}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_code_hides_in_another_form(path):
    for language, text, line in blocks(path):
        assert language in ("python", "sh", "text"), f"{path.name}:{line}"
        if language == "text":
            assert "tinyllm" not in text, f"{path.name}:{line}"
    assert not re.search(r"^ {4}(tinyllm|pip|python|import|tl\.) ", path.read_text("utf-8"), re.M)


def pages_with(*languages):
    return [p for p in PAGES if any(language in languages for language, _, _ in blocks(p))]


@pytest.mark.parametrize("path", pages_with("python"), ids=lambda path: path.name)
def test_the_code_of_a_page_runs(path, folder):
    found = [
        (text, f"{path.name}:{line}", allowed(text))
        for language, text, line in blocks(path)
        if language == "python"
    ]
    if any("Qwen3-0.6B" in text for text, _, _ in found):
        shutil.copytree(data.path("hf", "qwen3"), folder / "Qwen3-0.6B")
    (folder / "blocks.json").write_text(json.dumps(found))
    for package in {name for _, _, names in found for name in names}:
        if package not in ("*", "huggingface_hub"):
            pytest.importorskip(package)
    if any("*" in names for _, _, names in found):
        pytest.importorskip("matplotlib")
        pytest.importorskip("pydantic")
    done = ran([sys.executable, "-c", RUN_PYTHON], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("path", pages_with("sh"), ids=lambda path: path.name)
def test_the_commands_of_a_page_run(path, folder):
    if os.name != "posix":
        pytest.skip("needs sh")
    for language, text, line in blocks(path):
        for command in commands(text) if language == "sh" else ():
            if command.startswith(ELSEWHERE):
                continue
            if "Qwen3-0.6B" in command and not (folder / "Qwen3-0.6B").exists():
                shutil.copytree(data.path("hf", "qwen3"), folder / "Qwen3-0.6B")
            more = allowed(text)
            for package in more:
                if package not in ("*", "huggingface_hub"):
                    pytest.importorskip(package)
            done = ran(command, folder, more, shell=True, input="Hi\n")
            assert done.returncode == 0, (
                f"{path.name}:{line}: {command}\n{done.stdout}{done.stderr}"
            )
            assert done.stdout, command


def test_the_readme_names_a_real_model():
    if not (ROOT / "README.md").exists():
        pytest.skip("needs the source tree")
    text = (ROOT / "README.md").read_text("utf-8")
    assert re.search(r"tinyllm chat -m hf:[\w.-]+/[\w.-]+-GGUF:Q\w+$", text, re.MULTILINE)


RUN_DOCSTRINGS = """
SLOW = ("comparison", "diagnosis", "peers", "quantization", "testing", "training")
import doctest, importlib, os, pkgutil, sys, tempfile, time, tinyllm
failed, ran, top = 0, 0, os.getcwd()
for info in pkgutil.walk_packages(tinyllm.__path__, "tinyllm."):
    # what trains or searches is slow: its examples run once, in test_project.py
    if info.name.split(".")[1] in ("__main__", *SLOW):
        continue
    try:
        module = importlib.import_module(info.name)
    except ModuleNotFoundError as error:
        assert not error.name.startswith("tinyllm"), error
        continue  # the module itself is for another package, such as pytest
    start = time.perf_counter()
    os.chdir(tempfile.mkdtemp(dir=top))
    for test in doctest.DocTestFinder().find(module):
        if any("pip install" in example.source for example in test.examples):
            continue
        runner = doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
        failed += runner.run(test).failed
        ran += len(test.examples)
    if time.perf_counter() - start > 5:
        print("slow", info.name, round(time.perf_counter() - start))
assert "jinja2" not in sys.modules and "matplotlib" not in sys.modules
print("ran", ran)
sys.exit(failed)
"""


def test_docstrings_run_with_numpy_only(tmp_path):
    """An example that needs more says `pip install`; `test_project.py` runs it."""
    (tmp_path / "fake").mkdir()
    done = ran([sys.executable, "-c", RUN_DOCSTRINGS], tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) > 500


def test_the_hook_of_these_tests_refuses_packages(tmp_path):
    for package, status in (("numpy", 0), ("jinja2", 1), ("matplotlib", 1)):
        done = ran([sys.executable, "-c", f"import {package}"], tmp_path)
        assert (done.returncode, "No module" in done.stderr) == (status, bool(status)), done.stderr
    assert doctest.DocTestParser().get_examples(">>> 1\n1\n")
