"""The public names: where they live, that the stubs agree, and that results can be pickled."""

import ast
import builtins
import copy
import dataclasses
import functools
import importlib
import inspect
import pickle
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinyllm as tl
from tinyllm.base.words import ATTRIBUTES, KEYWORDS
from tinyllm.sampling.samplers import SAMPLERS

PACKAGE = Path(tl.__file__).parent

#: Modules whose records are returned to users or sent to workers.
SENT = (
    "analysis",
    "architectures.config",
    "editing",
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
    builtin = {name for name in homes if hasattr(builtins, name)}
    assert set(tl.__all__) == {*homes, "__version__"} - builtin
    assert set(dir(tl)) == {*homes, *tl._MODULES, "__version__"}


def test_star_imports_and_completion():
    names = {}
    exec("from tinyllm import *", names)
    assert set(dir(builtins)) & set(names) <= {"__doc__", "__name__", "__package__", "__loader__",
                                               "__spec__"}  # fmt: skip
    model = tl.load()
    trace = model.trace("ROMEO:")
    for item in (model, trace, model.session(), model.tokenizer, model.config):
        shown = [name for name in dir(item) if not name.startswith("_")]
        assert all(hasattr(item, name) for name in shown if name != "logits")
        # what completion shows has a docstring, in the class or in its list of attributes
        for name in shown:
            text = inspect.getdoc(inspect.getattr_static(type(item), name, None)) or ""
            known = [text] + [inspect.getdoc(base) or "" for base in type(item).__mro__]
            assert text or any(re.search(rf"\b{name}\b", doc) for doc in known), (item, name)
    assert not {"core", "run", "layout"} & set(dir(model))


def test_words_of_other_libraries_lead_to_names_that_exist():
    model = tl.load()
    items = {"Model": model, "Config": model.config, "Tokenizer": model.tokenizer,
             "Trace": model.trace("a"), "tinyllm": tl}  # fmt: skip
    assert set(items) == set(ATTRIBUTES)
    for owner, item in items.items():
        for word, ours in ATTRIBUTES[owner].items():
            assert not hasattr(item, word), (owner, word)
            with pytest.raises(AttributeError, match=f"has no attribute {word}; ") as caught:
                getattr(item, word)
            if ours.startswith("nothing: "):
                continue
            assert ours in str(caught.value)
            for root, value in (("tl", tl), ("model", model), ("tokenizer", model.tokenizer)):
                for path in re.findall(rf"\b{root}\.([\w.]+)", ours):
                    functools.reduce(getattr, path.split("."), value)
            own = re.fullmatch(r"(\w+)(\(.*\))?", ours)
            if own and own[1] not in ("dict", "len"):
                getattr(item, own[1])
    calls = {"load": tl.load, "generate": model.generate, "stream": model.stream,
             "chat": model.chat, "chat_stream": model.chat_stream}  # fmt: skip
    assert set(calls) == set(KEYWORDS)
    for name, function in calls.items():
        known = {*inspect.signature(function).parameters, *SAMPLERS}
        for word, ours in KEYWORDS[name].items():
            assert word not in known
            with pytest.raises(TypeError, match=rf"^{name}\(\) has no argument {word}; "):
                function("demo", **{word: 1})
            for ours_too in re.findall(r"^(\w+)=", ours):
                assert ours_too in known
    with pytest.raises(TypeError, match=r"a model is no function; model\.generate"):
        model("Hello")
    assert copy.copy(model.config) == model.config == pickle.loads(pickle.dumps(model.config))


def test_no_private_name_in_messages():
    """A wrong argument of any kind ends in a message without the names of private classes."""
    model = tl.load()
    trace = model.trace("ROMEO:")
    odd = [None, object(), 3.5, model, trace, model.tokenizer, [model], b"\xff", {}]
    functions = [
        model.generate,
        model.stream,
        model.chat,
        model.trace,
        model.logits,
        model.score,
        model.embed,
        model.session().eval,
        model.tokenizer.encode,
        model.tokenizer.decode,
        tl.load,
        tl.GGUF,
        tl.read,
        tl.load_tokenizer,
        tl.lens,
        tl.kl,
        tl.Sampler,
        tl.Grammar.gbnf,
        tl.Grammar.regex,
        tl.Grammar.json_schema,
        tl.zero,
        tl.add,
        tl.patch,
        tl.attribution,
        trace.__getitem__,
        trace.stack,
        model.weights.get,
    ]
    for function in functions:
        for value in odd:
            for arguments in ((value,), (value, value), ("ROMEO:", value)):
                try:
                    function(*arguments)
                except Exception as error:
                    said = re.sub(r"<[^<>]*object at 0x[^<>]*>", "", str(error))
                    assert not re.search(r"(?<![\w.])_[A-Z]\w+|tinyllm\._core|_core\.", said), (
                        function,
                        arguments,
                        said,
                    )


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
    weights = tl.diff_weights(model, model)
    compared = tl.compare_quantizations(model, text, ["Q4_0"])
    generation = model.generate("ROMEO:", max_tokens=3, seed=1, logprobs=2)
    sampler = tl.Sampler(top_k=2, seed=1)
    tokenizer = model.tokenizer
    found = [
        model.config,
        tl.lens(trace, 2),
        tl.lens(trace, token=5),
        tl.attribution(trace, 5),
        model.score(text),
        model.perplexity(text, method="hf"),
        tl.score_chunks(model, text, size=5)[0],
        tl.kl(model, model, text),
        tl.TensorSource((0,), "F32", read_nothing),
        generation,
        generation.logprobs,
        generation.timings,
        tl.cpu(),
        tl.Device("a GPU", "opencl:0", "gpu", 2**30, "native", None, "1.0"),
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
        weights,
        weights.tensors[0],
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
