"""The bits of exact mode depend only on the model and the tokens."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, every_set, every_split, models
from testkit.exact_arithmetic import OTHER_FAST
from tinyllm import _core

TOKENS = 300
ALL_TYPES = [*models.TYPES, *models.RARE_TYPES]


def result(model, ids):
    """The logits, or the last values of an encoder."""
    last = model.steps[-1].tap
    return model.trace(ids, last)[last]


def is_encoder(model):
    """Whether a model has no sessions and no logits (tests/embedding)."""
    return not model.steps.roles("logits")


@pytest.fixture(scope="module", params=[*ALL_TYPES, "wide", *architectures.DISTINCT])
def case(request, tmp_path_factory):
    """A model of every type and architecture; one ffn is wider than a superchunk of float sums."""
    directory = tmp_path_factory.mktemp("bits")
    if request.param == "wide":
        model = models.random_model(directory, "F16", ffn=4352, layers=1)
    elif request.param in architectures.DISTINCT:
        model = architectures.random_model(directory, request.param, "Q4_K")
    else:
        model = models.random_model(directory, request.param)
    ids = models.random_ids(model, TOKENS)
    return model, ids, result(model, ids)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads(case, threads):
    model, ids, want = case
    other = architectures.load(model.path, threads=threads)
    assert np.array_equal(result(other, ids), want)


@pytest.mark.parametrize("chunk", [1, 7, 33])
def test_how_the_prompt_is_fed(case, chunk):
    model, ids, want = case
    if is_encoder(model):
        return
    session = model.session()
    parts = [session.eval(ids[i : i + chunk], "all") for i in range(0, TOKENS, chunk)]
    assert np.array_equal(np.concatenate(parts), want)


def test_capturing(case):
    model, ids, want = case
    assert np.array_equal(model.trace(ids, "*")[model.steps[-1].tap], want)
    if not is_encoder(model):
        assert np.array_equal(model.logits(ids), want)


@pytest.mark.parametrize("window", [0, 900])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 1), (3, 3), (12, 4)])
def test_decoding_over_a_long_context(heads, kv_heads, window, tmp_path):
    """If kv heads do not divide evenly among threads, one token is split by positions."""
    shape = {"heads": heads, "kv_heads": kv_heads, "head_size": 24, "width": 96, "ffn": 96}
    metadata, tensors = models.random_llama("F32", **shape)
    metadata["llama.attention.sliding_window"] = window
    path = models.write(tmp_path / "long.gguf", metadata, tensors)
    ids = models.random_ids(tl.load(path), 1560)
    want = tl.load(path).logits(ids)[1500:]
    for threads in (1, 2, 3, 5, 8):
        session = tl.load(path, threads=threads).session()
        session.eval(ids[:1500], "none")
        got = [session.eval(ids[i : i + 1]) for i in range(1500, 1560)]
        assert np.array_equal(np.array(got), want)
        session.rewind(3)
        traced = session.eval(ids[1557:1558], capture="*")  # a captured token is not split
        assert np.array_equal(traced["output"][0], want[57])
        looked = session.eval(ids[1558:1559], capture=["blk.1.attn_mix", "output"])
        assert np.array_equal(looked["output"][0], want[58])


@pytest.mark.parametrize("window", [0, 900])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 1), (6, 2), (3, 3)])
def test_a_few_tokens_over_a_long_context(heads, kv_heads, window, tmp_path):
    """Several tokens of the heads that share keys are a task, even if the scores fit no cache."""
    shape = {"heads": heads, "kv_heads": kv_heads, "head_size": 24, "width": 96, "ffn": 96}
    metadata, tensors = models.random_llama("F32", **shape)
    metadata["llama.attention.sliding_window"] = window
    metadata["llama.context_length"] = 6000
    path = models.write(tmp_path / "long.gguf", metadata, tensors)
    ids = models.random_ids(tl.load(path), 5500)
    rng = np.random.default_rng(0)
    size = (5440, kv_heads, 24)
    caches = [[rng.standard_normal(size, np.float32) for _ in range(2)] for _ in range(2)]
    want = None
    for threads, counts in [(1, [1] * 60), (1, [2, 16, 40, 2]), (2, [5] * 12), (3, [8, 52])]:
        session = tl.load(path, threads=threads).session()
        session.core.fill(np.array(ids[:5440], np.int32), caches)
        got, at = [], 5440
        for count in counts:
            got.append(np.atleast_2d(session.eval(ids[at : at + count], "all")))
            at += count
        want = np.concatenate(got) if want is None else want
        assert np.array_equal(np.concatenate(got), want), (threads, counts)


def test_alibi_over_a_long_context(tmp_path):
    """A single token over a long context is split by positions, with the distances of all keys."""
    size = {"width": 96, "heads": 6, "ffn": 64, "vocab": 50}
    path = architectures.random_model(tmp_path, "refact", **size).path
    ids = models.random_ids(tl.load(path), 1460)
    want = tl.load(path).logits(ids)[1450:]
    for threads in (1, 5):
        session = tl.load(path, threads=threads).session()
        session.eval(ids[:1450], "none")
        got = [session.eval(ids[i : i + 1]) for i in range(1450, 1460)]
        assert np.array_equal(np.array(got), want)


def test_ragged_batch(case):
    model, ids, want = case
    cuts = [ids, ids[:1], ids[:97], ids[5:270]]
    traces = model.trace([list(map(int, cut)) for cut in cuts], "*")
    assert np.array_equal(traces[0][model.steps[-1].tap], want)
    for cut, trace in zip(cuts, traces, strict=True):
        alone = model.trace(cut, "*")
        for name in alone:
            assert np.array_equal(trace[name], alone[name]), name


def test_wanted_rows(case):
    model, ids, want = case
    if is_encoder(model):
        return
    session = model.session()
    got = session.eval(ids, [-1, 3, 3, 0])
    assert np.array_equal(got, want[[-1, 3, 3, 0]])


def test_more_tokens_than_run_at_once(tmp_path):
    model = models.random_model(tmp_path, "Q4_K", layers=1)
    ids = models.random_ids(model, 1100)
    want = model.logits(ids)
    session = model.session()
    got = [session.eval(ids[:513], "all"), session.eval(ids[513:], "all")]
    assert np.array_equal(np.concatenate(got), want)


SCRIPT = """
import hashlib, sys
import numpy as np
import tinyllm as tl
for path in sys.argv[3:]:
    model = tl.load(path, threads=2, mode=sys.argv[1])
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, int(sys.argv[2]))
    if model.config.architecture == "t5":
        model = model.decoder(ids)
    trace = model.trace(ids, "*")
    digest = hashlib.sha256()
    for name in trace:
        digest.update(np.ascontiguousarray(trace[name]).tobytes())
    if model.steps.roles("logits"):
        session = model.session()
        for token in ids[:5]:
            digest.update(session.eval([token]).tobytes())
    print(digest.hexdigest())
"""


def run_isa(isa, tokens, paths, mode="exact"):
    return every_set.run(isa, "-c", SCRIPT, mode, str(tokens), *map(str, paths)).split()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("isa")
    paths = [
        models.write(directory / f"{name}.gguf", *models.random_llama(name)) for name in ALL_TYPES
    ]
    wide = models.random_llama("F32", ffn=4352, layers=1)
    odd = models.random_llama("F16", heads=5, kv_heads=1, head_size=20, ffn=144, width=80)
    paths.append(models.write(directory / "wide.gguf", *wide))
    paths.append(models.write(directory / "odd.gguf", *odd))
    for name in architectures.DISTINCT:
        row = architectures.random_architecture(name, "Q4_K")
        paths.append(models.write(directory / f"{name}.gguf", *row))
    return paths


SETS = [name for name in _core.kernel_sets() if name not in ("plain", "scalar")]


@pytest.mark.parametrize("isa", SETS)
def test_every_tap_on_every_instruction_set(isa, files):
    assert run_isa(isa, 70, files) == run_isa("scalar", 70, files)


@pytest.mark.parametrize("isa", SETS)
def test_fast_mode_on_every_instruction_set(isa, files):
    same = [f for f in files if isa not in OTHER_FAST.get(f.stem, ())]
    assert run_isa(isa, 70, same, "fast") == run_isa("scalar", 70, same, "fast")


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("type_name", ALL_TYPES)
def test_every_split_on_every_instruction_set(type_name, mode, tmp_path):
    path = models.write(tmp_path / "m.gguf", *models.random_llama(type_name, layers=1))
    digests = {}
    for isa in ("scalar", *SETS):
        digests[isa] = every_set.run(isa, every_split.__file__, mode, "f32", "600", str(path))
    if mode == "fast":
        others = OTHER_FAST.get(type_name, ())
        assert len({digests.pop(isa) for isa in others if isa in digests}) <= 1
    assert len(set(digests.values())) == 1, digests


def test_without_fused_operations_in_hardware(files):
    # the C library's fma is slow: a few types and rows stand for their classes of kernels
    rows = (
        "llama",
        "gemma3",
        "gpt2",
        "falcon",
        "gpt-oss",
        "qwen35",
        "lfm2",
        "bert",
        "mamba",
        "bloom",
    )
    some = [f for f in files if f.stem in ("F32", "Q5_1", "Q8_0", "odd", *rows)]
    assert run_isa("plain", 9, some) == run_isa("scalar", 9, some)


def test_an_instruction_set_that_is_not_there_is_an_error(tmp_path):
    path = models.write(tmp_path / "m.gguf", *models.random_llama(layers=1))
    code = "import sys, tinyllm as tl; tl.load(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "TINYLLM_ISA": "mmx"},
        check=False,
    )
    assert done.returncode != 0
    assert "mmx" in done.stderr
    assert "scalar" in done.stderr


def test_flush_to_zero_in_the_calling_thread(tmp_path):
    """A library linked with -ffast-math switches the thread that loads it to flush-to-zero."""
    compiler = sysconfig.get_config_var("CC") or "cc"
    if shutil.which(compiler.split()[0]) is None:
        pytest.skip("needs a C compiler")
    source = tmp_path / "fast.c"
    source.write_text("int one(void) { return 1; }\n")
    library = tmp_path / "libfast.so"
    subprocess.run(
        [*compiler.split(), "-shared", "-fPIC", "-ffast-math", str(source), "-o", str(library)],
        check=True,
    )
    # tiny weights, so that subnormal numbers are everywhere
    metadata, tensors = models.random_llama("F32", layers=1)
    for name, weight in tensors.items():
        if "ffn" in name and "norm" not in name:
            tensors[name] = weight.numpy() * np.float32(1e-20)
    path = models.write(tmp_path / "m.gguf", metadata, tensors)
    code = f"""
import ctypes, hashlib, sys
import tinyllm as tl
model = tl.load({str(path)!r}, threads=2)
def digest():
    trace = model.trace([1, 2, 3, 4, 5], "*")
    return hashlib.sha256(b"".join(trace[n].tobytes() for n in trace)).hexdigest()
before = digest()
ctypes.CDLL({str(library)!r})
tiny = 2.5e-308
print(tiny / 4 == 0.0, digest() == before, tiny / 4 == 0.0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    flushed, same, still_flushed = done.stdout.split()
    if flushed == "False":
        pytest.skip("this compiler's -ffast-math does not switch flush-to-zero on")
    assert same == "True"
    assert still_flushed == "True"  # the caller's state is restored


@pytest.mark.parametrize("name", [*ALL_TYPES, *architectures.DISTINCT])
def test_fast_mode_does_not_depend_on_threads_splits_or_captures(name, tmp_path):
    if name in architectures.DISTINCT:
        type_name, file = "Q4_K", architectures.random_architecture(name, "Q4_K")
    else:
        type_name, file = name, models.random_llama(name)
    path = models.write(tmp_path / "m.gguf", *file)
    load = architectures.load
    exact, fast = load(path), load(path, mode="fast", threads=1)
    ids = models.random_ids(exact, 70)
    want = result(fast, ids)
    for threads in (2, 5):
        other = load(path, mode="fast", threads=threads)
        assert np.array_equal(result(other, ids), want)
    for chunk in () if is_encoder(fast) else (1, 33):
        session = fast.session()
        parts = [session.eval(ids[i : i + chunk], "all") for i in range(0, len(ids), chunk)]
        assert np.array_equal(np.concatenate(parts), want)
    assert np.array_equal(fast.trace(ids, "*")[fast.steps[-1].tap], want)
    error = models.normwise_error(want, result(exact, ids))
    if not any(step.op == "route_ids" for step in exact.steps):  # which may choose other experts
        assert error < 0.03
    exact_types = {"F32", "F16", "BF16"} - {
        other for other, sets in OTHER_FAST.items() if _core.kernel_set() in sets
    }
    assert (error == 0) == (type_name in exact_types)


def test_the_demo_models_bits():
    """The recorded bits of the demo model on one prompt never change."""
    model = tl.load()
    trace = model.trace([1, 2, 3, 5, 8, 13, 21, 34], "*")
    digest = hashlib.sha256(b"".join(trace[name].tobytes() for name in trace)).hexdigest()
    assert digest == GOLDEN


GOLDEN = "c68a255e835d1327681052d10e14cffc659d5793aa4f248558098a8d7b2fea90"
