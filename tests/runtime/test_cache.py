"""Keys and values that are stored as float16 or Q8_0: what is stored, and what reads it."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, every_set, every_split, models
from testkit.devices import listed
from tinyllm import _core

pytestmark = pytest.mark.sanitize

ROUNDED = ["f16", "q8"]
#: A head size that is no multiple of 32, and values that are padded.
ODD = {"heads": 6, "kv_heads": 2, "head_size": 40, "width": 96, "ffn": 96, "layers": 2}


def rounded(x, cache):
    """The values that a cache stores for float32 vectors along the last axis, by NumPy alone."""
    if cache == "f16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    size = x.shape[-1]
    whole = np.zeros((*x.shape[:-1], -(-size // 32) * 32), np.float32)
    whole[..., :size] = x
    blocks = whole.reshape(*x.shape[:-1], -1, 32)
    most = np.abs(blocks).max(-1, keepdims=True)
    d = most / np.float32(127)  # quantize_row_q8_0_ref of ggml
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d > 3e-39)
    scaled = blocks * inverse
    q = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))  # exact for |scaled| < 2^22
    q = np.where(np.abs(scaled - np.rint(scaled)) < 0.5, np.rint(scaled), q)
    values = q.astype(np.float32) * d.astype(np.float16).astype(np.float32)
    return values.reshape(whole.shape)[..., :size]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    metadata, tensors = models.random_llama("F32", **ODD)
    metadata["llama.context_length"] = 3000
    return models.write(tmp_path_factory.mktemp("cache") / "odd.gguf", metadata, tensors)


@pytest.fixture(scope="module")
def ids(odd):
    return models.random_ids(tl.load(odd), 700)


@pytest.mark.parametrize("cache", ROUNDED)
def test_what_is_stored_is_what_numpy_rounds(odd, ids, cache):
    model = tl.load(odd, cache=cache)
    assert model.cache == cache
    session = model.session()
    trace = session.eval(ids[:300], capture=["blk.*.attn_k_rope", "blk.*.attn_v"])
    for layer in range(2):
        for tap, stored in zip(("attn_k_rope", "attn_v"), session.core.cache(layer), strict=True):
            values = trace[f"blk.{layer}.{tap}"]
            assert np.array_equal(stored, rounded(values, cache)), tap
            assert not np.array_equal(stored, values)


def special_values():
    random = np.random.default_rng(0)
    x = random.standard_normal((64, 2, 40)).astype(np.float32)
    x *= 10.0 ** random.integers(-12, 4, (64, 2, 1)).astype(np.float32)
    x[0] = 0
    x[1, 0, 0], x[1, 1, 39] = 65519, -65504
    x[2, 0, :32] = np.arange(32) - 15.5  # halves: away from zero
    x[2, 0, 31] = 127
    x[3] = 2.0**-24 * np.arange(40) / 4
    x[4] = -0.0
    x[5, 0, :] = 1e-42
    return x


@pytest.mark.parametrize("cache", ROUNDED)
def test_rounding_of_special_values(odd, cache):
    x = special_values()
    session = tl.load(odd, cache=cache).session()
    session.core.fill(np.ones(64, np.int32), [(x, x[::-1].copy())] * 2)
    keys, values = session.core.cache(1)
    assert np.array_equal(keys, rounded(x, cache))
    assert np.array_equal(values, rounded(x[::-1], cache))
    again = tl.load(odd, cache=cache).session()  # rounding what is rounded changes nothing
    again.core.fill(np.ones(64, np.int32), [(keys, values)] * 2)
    assert np.array_equal(again.core.cache(0)[0], keys)


@pytest.mark.parametrize("cache", ROUNDED)
@pytest.mark.parametrize("bad", [np.inf, np.nan, 9e6])
def test_a_value_that_cannot_be_stored_is_not_hidden(odd, cache, bad):
    x = np.ones((20, 2, 40), np.float32)
    x[7, 1, 3] = bad
    session = tl.load(odd, cache=cache).session()
    session.core.fill(np.ones(20, np.int32), [(x, x)] * 2)
    for stored in session.core.cache(0):
        assert not np.isfinite(stored[7, 1, 3])
        finite = np.isfinite(stored)
        finite[7, 1] = True  # of its head, those of a block may be lost with it
        assert finite.all()
        finite = np.isfinite(stored)
        assert (stored[finite] == rounded(np.ones(32, np.float32), cache)[0]).all()
    assert np.isnan(session.eval([1])).any()


def rounding_edits(model, cache):
    """Edits that round what the caches of a model store; None if other steps would see them."""
    steps = [step for step in model.steps.caches if step.op == "cache"]
    taps = [tap for step in steps for tap in step.reads]
    others = [step for step in model.steps if step.op not in ("cache", "scores", "mix")]
    if not taps or any(set(taps) & set(step.reads) for step in others):
        return None
    return [tl.apply(tap, lambda x: rounded(np.array(x), cache)) for tap in taps]


@pytest.mark.parametrize("cache", ROUNDED)
@pytest.mark.parametrize("name", architectures.DISTINCT)
def test_results_are_those_of_rounded_keys_and_values(name, cache, tmp_path):
    """A model that rounds by edits, with a cache of float32, gives the same bits."""
    plain = architectures.random_model(tmp_path, name, "Q8_0")
    model = architectures.load(plain.path, cache=cache)
    if name == "t5":  # the encoder rounds too
        encoder = tl.load(plain.path)
        source = models.random_ids(encoder, 37)
        plain = encoder.decoder(source, edits=rounding_edits(encoder, cache))
    edits = rounding_edits(plain, cache)
    if edits is None:
        pytest.skip("there is no cache, or other steps would see the edits")
    ids, last = models.random_ids(plain, 300), plain.steps[-1].tap
    want = plain.trace(ids, last, edits=edits)[last]
    assert np.array_equal(model.trace(ids, last)[last], want)
    assert not np.array_equal(plain.trace(ids, last)[last], want)
    probs = [step.tap for step in plain.steps if step.op == "softmax"]
    assert np.array_equal(model.trace(ids, [last, *probs])[last], want)


@pytest.mark.parametrize("cache", ROUNDED)
@pytest.mark.parametrize("window", [0, 900])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 1), (3, 3), (12, 4)])
def test_bits_over_a_long_context(heads, kv_heads, window, cache, tmp_path):
    """One token at a time, several, and all at once, with numbers of threads that split it."""
    shape = {"heads": heads, "kv_heads": kv_heads, "head_size": 24, "width": 96, "ffn": 96}
    metadata, tensors = models.random_llama("F32", **shape)
    metadata["llama.attention.sliding_window"] = window
    path = models.write(tmp_path / "long.gguf", metadata, tensors)
    ids = models.random_ids(tl.load(path), 1550)
    want = tl.load(path, cache=cache).logits(ids)[1500:]
    for threads in (1, 3, 8):
        session = tl.load(path, threads=threads, cache=cache).session()
        session.eval(ids[:1500], "none")
        got = [session.eval(ids[i : i + 1]) for i in range(1500, 1530)]
        got += list(session.eval(ids[1530:], "all"))
        assert np.array_equal(np.array(got), want)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("cache", ROUNDED)
def test_bits_on_every_instruction_set(cache, mode, odd):
    digests = {}
    for isa in _core.kernel_sets():
        if isa == "plain":
            continue
        digests[isa] = every_set.run(isa, every_split.__file__, mode, cache, "280", str(odd))
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize("cache", ROUNDED)
def test_sessions_fork_rewind_and_share(odd, ids, cache):
    model = tl.load(odd, cache=cache)
    want = model.logits(ids)
    session = model.session()
    session.eval(ids[:300], "none")
    fork = session.fork()
    fork.eval([1, 2, 3] * 9, "none")
    fork.rewind(27 + 50)
    assert np.array_equal(fork.eval(ids[250:310], "all"), want[250:310])
    assert np.array_equal(session.eval(ids[300:], "all"), want[300:])
    assert np.array_equal(session.prompt(ids[:290]), want[289])
    assert session.fork().core.nbytes == session.core.nbytes
    options = {"max_tokens": 12, "temperature": 0.8, "seed": 3}
    prompts = [ids[:280].tolist(), [*ids[:270].tolist(), 1, 2]]
    alone = [model.generate(each, **options).ids for each in prompts]
    assert [each.ids for each in model.generate(prompts, **options)] == alone
    assert model.generate(prompts[0], draft="lookup", **options).ids == alone[0]


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
@pytest.mark.parametrize("cache", ROUNDED)
def test_a_saved_session_goes_on(odd, ids, cache, ending, tmp_path):
    model = tl.load(odd, cache=cache)
    session = model.session()
    session.eval(ids[:290], "none")
    path = tmp_path / f"context{ending}"
    session.save(path)
    again = tl.load(odd, cache=cache).session(path)
    for mine, theirs in zip(session.core.cache(1), again.core.cache(1), strict=True):
        assert np.array_equal(mine, theirs)
    assert np.array_equal(again.eval(ids[290:300], "all"), session.eval(ids[290:300], "all"))
    for other in {"f32", "f16", "q8"} - {cache}:
        with pytest.raises(tl.FormatError, match=f"load the model with cache='{cache}'") as error:
            tl.load(odd, cache=other).session(path)
        assert error.value.field == "cache"


def test_a_session_without_a_type_is_of_float32(odd, ids, tmp_path):
    """Files of versions that had one type."""
    from tinyllm.files.arrays import read_arrays, write_arrays

    session = tl.load(odd).session()
    session.eval(ids[:5])
    session.save(tmp_path / "a.npz")
    arrays, metadata = read_arrays(tmp_path / "a.npz")
    assert metadata.pop("cache") == "f32"
    write_arrays(tmp_path / "b.npz", arrays, metadata)
    assert tl.load(odd).session(tmp_path / "b.npz").tokens == session.tokens
    with pytest.raises(tl.FormatError, match="load the model with cache='f32'"):
        tl.load(odd, cache="q8").session(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("cache", "bytes_per_token"), [("f32", 4 * 88), ("f16", 2 * 88), ("q8", 96)]
)
def test_memory(odd, ids, cache, bytes_per_token):
    model = tl.load(odd, cache=cache)
    session = model.session()
    session.eval(ids[:300], "none")
    # two layers and kv heads, blocks of 256 positions; values are padded from 40 to 48, and q8 has
    # two scales for the key and two for the value
    assert session.core.nbytes == model.memory(300).cache == 2 * 2 * 512 * bytes_per_token
    assert (f"({cache})" in repr(session)) == (cache != "f32")
    assert (f"({cache})" in str(session.table())) == (cache != "f32")


def test_names_that_are_no_type(odd):
    with pytest.raises(ValueError, match="cache is 'q4'; expected 'f32' or 'f16' or 'q8'"):
        tl.load(odd, cache="q4")
    model = tl.load(odd)
    with pytest.raises(ValueError, match="cache is 'q4'; expected 'f32', 'f16' or 'q8'"):
        _core.Model(
            model.steps.lowered(), model.weights.values(), layers=2, max_context=9, cache="q4"
        )
    with pytest.raises(TypeError, match="cache="):
        tl.load(odd, type_k="f16")


def test_other_forms_of_a_model_keep_the_type(odd, tmp_path):
    from testkit import adapters

    model = tl.load(odd, cache="q8")
    path = tmp_path / "adapter.gguf"
    adapters.write(path, adapters.random_adapter(model))
    assert model.with_adapter(path).cache == "q8"
    other = architectures.random_model(tmp_path, "t5")
    assert architectures.load(other.path, cache="f16").cache == "f16"


@pytest.mark.skipif(not listed(), reason="needs an OpenCL device")
@pytest.mark.parametrize("cache", ROUNDED)
def test_a_device_refuses(odd, cache):
    with pytest.raises(tl.UnsupportedError, match=f"cache is '{cache}'.*expected cache 'f32'"):
        tl.load(odd, cache=cache, device=listed()[0]["name"])
