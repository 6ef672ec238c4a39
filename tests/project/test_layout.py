"""Which part may use which: imports and includes point down, and there are no cycles.

The folders of `tinyllm/` and of `csrc/` are listed from the bottom up. A file uses files of its own
folder and of those before it. ARCHITECTURE.md says what lives where.
"""

import ast
import graphlib
import importlib
import pkgutil
import re
import shutil
from pathlib import Path

import pytest

import tinyllm

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())
PACKAGE = Path(tinyllm.__file__).parent

LAYERS = {
    "tinyllm": """
        errors _core base display _callbacks files architectures reference chat tokenizer grammar
        sampling conversion trace runtime generation evaluation embedding analysis model loading
        editing exporting quantization comparison peers diagnosis testing training harvesting plot
        __init__ cli __main__
    """.split(),
    "csrc": "base types text files kernels device model forward training py".split(),
}

#: Folders and files that hold no code.
DATA = {"data", "py.typed", "__pycache__"}


def imports(path, root):
    """Every file that a Python file imports: at its top, in functions, and under TYPE_CHECKING."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            modules = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            modules = [(*base, alias.name) for alias in node.names]
        else:
            continue
        for module in modules:
            for parts in (module, module[:-1]):  # the last part may be a name in the module
                if (found := module_file(root.joinpath(*parts))) is not None:
                    yield found
                    break


def module_file(stem):
    files = stem.with_suffix(".py"), stem.with_suffix(".pyi"), stem / "__init__.py"
    return next((file for file in files if file.is_file()), None)


def includes(path, root):
    """Every file that a C file includes; includes are written from `csrc/`."""
    names = re.findall(r'^\s*#\s*include\s+"(.+)"', path.read_text("utf-8"), re.MULTILINE)
    return [root / "csrc" / name for name in names]


def graph(top, root=ROOT):
    """Each file of a tree, and those that it uses."""
    read = imports if top == "tinyllm" else includes
    suffixes = (".py",) if top == "tinyllm" else (".c", ".h")
    files = [path for path in (root / top).rglob("*") if path.suffix in suffixes]
    return {path: set(read(path, root)) - {path} for path in files}


def layer(top, path, root=ROOT):
    """The place of a file's folder in the list; a folder that is missing there is an error."""
    return LAYERS[top].index(path.relative_to(root / top).parts[0].split(".")[0])


def upward(top, root=ROOT):
    """The imports that point up, as text."""
    return sorted(
        f"{path.relative_to(root)} uses {target.relative_to(root)}"
        for path, targets in graph(top, root).items()
        for target in targets
        if layer(top, target, root) > layer(top, path, root)
    )


@pytest.fixture(params=list(LAYERS))
def top(request):
    if not (ROOT / request.param).is_dir():
        pytest.skip("needs the source tree")
    return request.param


def test_uses_point_down(top):
    assert upward(top) == []


def test_there_are_no_cycles(top):
    try:
        graphlib.TopologicalSorter(graph(top)).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(str(path.relative_to(ROOT)) for path in error.args[1]))


def test_every_folder_has_its_place(top):
    names = {path.name.split(".")[0] for path in (ROOT / top).iterdir() if path.name not in DATA}
    assert names <= set(LAYERS[top])


UPWARD = {
    "tinyllm": (
        "trace/taps.py",
        "\n\ndef late() -> None:\n    from ..model import Model\n",
        "tinyllm/trace/taps.py uses tinyllm/model.py",
    ),
    "csrc": (
        "base/base.c",
        '\n#include "py/py_weight.h"\n',
        "csrc/base/base.c uses csrc/py/py_weight.h",
    ),
}


def test_one_use_that_points_up_is_found(top, tmp_path):
    shutil.copytree(ROOT / top, tmp_path / top, ignore=shutil.ignore_patterns("*.so", "data"))
    name, line, message = UPWARD[top]
    with (tmp_path / top / name).open("a") as file:
        file.write(line)
    assert upward(top, tmp_path) == [message]


def test_uses_for_type_checkers_count(tmp_path):
    (tmp_path / "tinyllm" / "base").mkdir(parents=True)
    (tmp_path / "tinyllm" / "model.py").write_text("")
    lines = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .. import model\n"
    (tmp_path / "tinyllm" / "base" / "checks.py").write_text(lines)
    assert upward("tinyllm", tmp_path) == ["tinyllm/base/checks.py uses tinyllm/model.py"]


def test_no_module_hides_a_public_name():
    # after `from .lens import x` in the package, tinyllm.lens would be the module
    names = {path.name.split(".")[0] for path in PACKAGE.iterdir()}
    assert not names & set(tinyllm.__all__)


def test_no_package_hands_on_a_name_that_one_of_its_modules_has():
    for path in PACKAGE.rglob("__init__.py"):
        package = importlib.import_module(".".join(path.parent.relative_to(PACKAGE.parent).parts))
        inside = {info.name for info in pkgutil.iter_modules(package.__path__)}
        assert not inside & set(getattr(package, "__all__", ())), package.__name__


# ---- the map ----


def the_map():
    path = ROOT / "ARCHITECTURE.md"
    if not path.is_file():
        pytest.skip("needs the source tree")
    return path.read_text("utf-8")


def test_the_map_names_every_folder_in_its_order(top):
    section = the_map().split(f"## {top}/\n")[1].split("\n## ")[0]
    rows = [name.rstrip("/") for name in re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)]
    there = {path.name for path in (ROOT / top).iterdir() if path.suffix != ".so"} - DATA
    there -= {"_core.py", "__init__.pyi"}  # named beside the other one
    assert set(rows) == there
    places = [LAYERS[top].index(name.split(".")[0]) for name in rows]
    assert places == sorted(places)


def test_every_path_that_the_documents_name_is_there():
    tops = "tinyllm|csrc|tests|bench|docs|notebooks|scripts"
    documents = [ROOT / name for name in ("ARCHITECTURE.md", "README.md", "CONTRIBUTING.md")]
    for document in [*documents, *(ROOT / "docs").glob("*.md")]:
        if not document.is_file():
            pytest.skip("needs the source tree")
        text = document.read_text("utf-8")
        for name in re.findall(rf"(?<![\w/.-])(?:{tops})/[\w./<>-]*\w", text):
            if "<" not in name:
                assert (ROOT / name).exists(), f"{document.name}: {name}"
