"""The public names: where they live, that the stubs agree, and that results can be pickled."""

import ast
import dataclasses
import importlib
import inspect
import pickle
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinyllm as tl

PACKAGE = Path(tl.__file__).parent

#: Modules whose records are returned to users or sent to workers.
SENT = (
    "analysis",
    "architectures.config",
    "evaluation",
    "files.gguf_write",
    "generation.result",
    "quantization.compare",
    "runtime",
    "sampling",
    "tokenizer.diff",
    "tokenizer.explain",
    "trace.arena",
    "trace.taps",
)


def modules():
    for info in pkgutil.walk_packages(tl.__path__, "tinyllm."):
        if info.name not in ("tinyllm.__main__", "tinyllm._core"):
            yield importlib.import_module(info.name)


def classes():
    """The public classes of all modules."""
    for module in modules():
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isclass(value) and value.__module__ == module.__name__:
                yield value


def test_type_checkers_are_told_the_same_names_and_homes():
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    homes, others = {}, []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            homes |= {alias.asname: node.module for alias in node.names}
            assert all(alias.asname == alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            others += [alias.asname for alias in node.names]
    assert homes == tl._HOMES
    assert tuple(others) == tl._MODULES
    assert set(tl.__all__) == {*homes, "__version__"}


def test_public_names_are_where_they_are_said_to_be():
    for name, home in tl._HOMES.items():
        module = importlib.import_module(f"tinyllm.{home}")
        assert getattr(tl, name) is getattr(module, name)
        assert name in module.__all__


def test_importing_tinyllm_loads_no_submodule():
    code = "import sys, tinyllm; print(*(n for n in sys.modules if n.startswith('tinyllm.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# ---- results can be pickled ----


def read_nothing():
    return b""


@pytest.fixture(scope="module")
def examples():
    """An instance of each public class that is only data."""
    model = tl.load()
    trace = model.trace("ROMEO:")
    text = "To be, or not to be, that is the question"
    compared = tl.compare_quantizations(model, text, ["Q4_0"])
    generation = model.generate("ROMEO:", max_tokens=3, seed=1, logprobs=2)
    sampler = tl.Sampler(top_k=2, seed=1)
    tokenizer = model.tokenizer
    found = [
        model.config,
        tl.lens(trace, 2),
        tl.attribution(trace, 5),
        model.score(text),
        model.perplexity(text, method="hf"),
        tl.kl(model, model, text),
        tl.TensorSource((0,), "F32", read_nothing),
        generation,
        generation.logprobs,
        generation.timings,
        tl.cpu(),
        model.memory(),
        sampler.draw([0.0, 1.0, 2.0], 0),
        sampler.explain([0.0, 1.0, 2.0]),
        sampler.candidates([0.0, 1.0, 2.0]),
        tl.tokenizer.diff_tokens([1, 2], [1, 3], tokenizer),
        tokenizer.explain("Hi"),
        tokenizer.explain("Hi").steps[0],
        model.plan("ROMEO:"),
        model.taps[0],
        compared,
        compared.results[1],
    ]
    return {type(item): item for item in found}


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(
            same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)
        )
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def test_every_public_record_can_be_pickled(examples):
    #: holds functions, and lives only during one draw
    local = {"Context"}
    records = {
        c
        for c in classes()
        if (dataclasses.is_dataclass(c) or hasattr(c, "_fields"))
        and c.__module__.removeprefix("tinyllm.").startswith(SENT)
        and c.__name__ not in local
    }
    assert records == set(examples)
    for item in examples.values():
        assert same(item, pickle.loads(pickle.dumps(item))), item


def test_every_exception_can_be_pickled():
    found = [c for c in classes() if issubclass(c, BaseException)]
    assert {tl.Error, tl.FormatError, tl.UnsupportedError} <= set(found)
    for kind in found:
        error = kind("what is wrong")
        if kind is tl.FormatError:
            error = kind("wrong", path="p", field="f", value=(1, 2), expected="e", offset=3)
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


# ---- a source tree without its compiled core ----


def test_a_source_tree_without_its_core_says_what_to_do(tmp_path):
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "data")
    shutil.copytree(PACKAGE, tmp_path / "tinyllm", ignore=ignored)
    command = [sys.executable, "-I", "-c", "import sys; sys.path.insert(0, ''); "]
    for line in ("import tinyllm; tinyllm.load()", "import tinyllm.chat, tinyllm.cli.main"):
        done = subprocess.run(
            [*command[:-1], command[-1] + line], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert done.stderr.count("Traceback") == 1
        last = done.stderr.strip().split("\n")[-1]
        assert last.startswith(f"ImportError: {tmp_path / 'tinyllm'} is the source of tinyllm")
        assert "from another folder" in last
        assert last.endswith("python setup.py build_ext --inplace")
