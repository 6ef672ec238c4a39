"""Rules of the whole project."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tinyllm as tl
from tinyllm import _core
from tinyllm.architectures.table import ARCHITECTURES

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc").rglob("*.[ch]"))


def needs_checkout():
    if not SOURCES:
        pytest.skip("needs the source tree")


def test_nothing_was_committed_by_accident():
    """An example that was run in the checkout leaves its files there."""
    needs_checkout()
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    files = {Path(name) for name in done.stdout.split("\0") if name}
    if not files:
        pytest.skip("needs a clone")
    assert {path.name for path in files if path.suffix == ".gguf"} == {"demo.gguf"}
    assert {path.suffix for path in files if len(path.parts) == 1} == {
        "",
        ".md",
        ".py",
        ".toml",
        ".in",
    }


def modules():
    names = [info.name for info in pkgutil.walk_packages(tl.__path__, "tinyllm.")]
    return [name for name in names if name != "tinyllm.__main__"]


@pytest.mark.parametrize("name", modules())
def test_the_examples_in_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"needs an extra: {error}")
    failed, _ = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert failed == 0


def public():
    for name in tl.__all__:
        value = getattr(tl, name)
        if inspect.isclass(value) or callable(value):
            yield name, value


def test_everything_public_has_a_docstring_with_an_example():
    for name, value in public():
        assert value.__doc__, name
        assert ">>>" in value.__doc__ or issubclass(value, Exception), name


def test_everything_public_in_c_is_documented():
    for name, value in vars(_core).items():
        if not name.startswith("_") and (inspect.isclass(value) or callable(value)):
            assert value.__doc__, name
            members = vars(value).items() if inspect.isclass(value) else ()
            for member, item in members:
                if not member.startswith("__"):
                    assert inspect.getdoc(item), f"{name}.{member}"


def test_importing_tinyllm_imports_numpy_and_no_other_package():
    code = "import sys, numpy; before = set(sys.modules); import tinyllm; tinyllm.load; "
    code += "print(*sorted({n.split('.')[0] for n in set(sys.modules) - before}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    foreign = set(done.stdout.split()) - set(sys.stdlib_module_names) - {"numpy", "tinyllm"}
    assert foreign == set()


def test_only_the_binding_knows_python():
    needs_checkout()
    for path in SOURCES:
        text = path.read_text()
        if path.parent.name != "py":
            assert "Python.h" not in text, path
            assert not re.search(r"\b(printf|abort|exit|assert|puts)\(", text), path
        assert ("numpy/" in text) == (path.name == "py_array.c"), path


SYSTEM = {"os.h", "os_posix.c", "os_windows.c", "os_limits.c", "os_guard.c"}


def test_only_the_os_files_know_the_system():
    needs_checkout()
    for path in SOURCES:
        if path.name not in SYSTEM:
            assert not re.search(r"#include <(pthread|sys/|unistd|windows|sched)", path.read_text())


def test_templates_include_nothing_and_are_listed_once():
    needs_checkout()
    kernels = ROOT / "csrc" / "kernels"
    listed = (kernels / "template" / "kernel_set_template.h").read_text()
    chosen = "".join(path.read_text() for path in kernels.glob("kernels_*.c"))
    for path in sorted(kernels.glob("template/*.h")):
        text = path.read_text()
        assert path.name.endswith("_template.h")
        assert re.search(r"^ \* Needs: .*^ \* Defines: ", text, re.M | re.S), path
        assert not re.search(r"^#ifndef TL_", text, re.M), path
        if path.name != "kernel_set_template.h":
            assert "#include" not in text, path
            assert listed.count(f"/{path.name}") == 1 or f"/{path.name}" in chosen, path


def test_no_file_is_too_long():
    needs_checkout()
    for pattern in ("csrc/**/*.[ch]", "tinyllm/**/*.py", "tests/**/*.py", "bench/*.py"):
        for path in ROOT.glob(pattern):
            assert path.read_text().count("\n") <= 900, path


def test_documents_are_wrapped():
    needs_checkout()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        prose = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.M | re.S)
        for line in prose.splitlines():
            assert len(line) <= 100 or line.startswith("|"), f"{path.name}: {line}"


def test_file_names_are_unique():
    needs_checkout()
    names = [path.name for path in SOURCES]
    assert len(names) == len(set(names))


def test_version_is_told_once():
    needs_checkout()
    assert f'version = "{tl.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_no_text_installs_the_other_project_named_tinyllm():
    """The name tinyllm on PyPI belongs to another project."""
    needs_checkout()
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    for path in [*pages, *(ROOT / "tinyllm").rglob("*.py"), ROOT / "pyproject.toml"]:
        text = path.read_text("utf-8")
        assert not re.search(r"""install\s+(-\S+\s+)*["'\\]*tinyllm(?!-gguf)\b""", text), path
    assert 'name = "tinyllm-gguf"' in (ROOT / "pyproject.toml").read_text()


def test_the_lines_of_an_architecture_are_counted():
    """Three rows of known length, one of which has builders of its own."""
    needs_checkout()
    command = [sys.executable, str(ROOT / "scripts" / "count_rows.py"), "--all"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {line.split()[0]: line for line in done.stdout.splitlines() if line[0] != "|"}
    assert set(found) == set(ARCHITECTURES)
    assert re.search(r"row +1, own +0,", found["qwen2"])
    assert re.search(r"row +14, own +0,", found["gpt-oss"])
    source = (ROOT / "tinyllm" / "architectures" / "gemma3n.py").read_text("utf-8")
    own = re.search(r"own +(\d+)", found["gemma3n"])
    assert 0.6 * len(source.splitlines()) < int(own[1]) < len(source.splitlines())
