"""Gradients, against finite differences of `tinyllm.reference` in float64."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, every_set, models
from tinyllm import _core, reference

pytestmark = pytest.mark.sanitize


class Double:
    """A model in float64 whose values can be changed on the way."""

    def __init__(self, model):
        self.model = model
        self.weights = {name: w.numpy(dtype=np.float64) for name, w in model.weights.items()}
        self.steps = reference.steps(model.steps)

    def run(self, ids, change=None):
        inputs = {"tokens": np.asarray(ids), "positions": np.arange(len(ids))}
        taps = {}
        for step in self.steps:
            taps[step.tap] = step.run(self.weights, {**inputs, **taps})
            if change is not None and step.tap in change:
                taps[step.tap] = change[step.tap](taps[step.tap])
        return taps

    def slope(self, ids, f, tap, direction, change=None):
        """The derivative of f(taps) along a direction of a tap, after the changes of it."""
        results = []
        size = 1e-6 * max(1.0, abs(direction).max())
        for sign in (1, -1):
            moved = dict(change or {})
            before = moved.get(tap, lambda x: x)
            moved[tap] = lambda x, sign=sign, before=before: before(x) + sign * size * direction
            results.append(f(self.run(ids, moved)))
        return (results[0] - results[1]) / (2 * size)


def direction_of(array, seed=0):
    random = np.random.default_rng(seed)
    finite = np.isfinite(array)
    size = np.abs(array[finite]).mean() + 1e-9
    return np.where(finite, random.normal(size=array.shape) * size, 0.0)


def check(gradient, direction, expected, tolerance):
    """Compare a slope with the gradient, relative to what a random direction gives."""
    found = float((gradient.astype(np.float64) * direction).sum())
    typical = np.linalg.norm(gradient) * np.linalg.norm(direction) / np.sqrt(direction.size)
    assert abs(found - expected) <= tolerance * max(typical, abs(expected)), (found, expected)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return models.random_model(tmp_path_factory.mktemp("llama"), layers=2)


@pytest.fixture(scope="module")
def ids(llama):
    return models.random_ids(llama, 6)


def loss(ids):
    def nll(taps):
        x = taps["output"] - taps["output"].max(axis=-1, keepdims=True)
        log = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
        return -log[np.arange(len(ids) - 1), ids[1:]].mean()

    return nll


def test_every_tap(llama, ids):
    double = Double(llama)
    values = double.run(ids)
    g = llama.gradients(ids, of=tl.nll(), wrt="*")
    assert list(g) == list(llama.trace(ids, "*"))
    assert g.value == pytest.approx(loss(ids)(values), abs=1e-5)
    seen = np.tri(len(ids), dtype=bool)
    for name, gradient in g.items():
        if name.startswith("blk.0."):
            continue  # the same ops as in block 1
        direction = direction_of(values[name])
        if name.endswith("attn_probs"):  # the double model would mix values of later tokens
            assert not gradient[:, ~seen].any()
            direction = direction * seen
        expected = double.slope(ids, loss(ids), name, direction)
        check(gradient, direction, expected, 1e-5)


@pytest.mark.parametrize(
    "name",
    "mistral3 qwen3 gemma2 phi3 granite gpt2 falcon stablelm nemotron command-r "
    "qwen2moe granitemoe gpt-oss lfm2 hy_v3 deepseek2 qwen35 apertus laguna "
    "gemma3n t5 mamba mamba2 jamba falcon-h1 nemotron_h granitehybrid rwkv7 arwkv7".split(),
)
def test_architectures(name, tmp_path):
    model = architectures.random_model(tmp_path, name)
    ids = models.random_ids(model, 4)
    double = Double(model)
    values = double.run(ids)
    last, first = model.steps[-1].tap, model.steps.role("embedding")
    factors = np.random.default_rng(1).normal(size=values[last].shape)

    def f(taps):
        return float((taps[last] * factors).sum())

    g = model.gradients(ids, of=lambda logits: ((logits * factors).sum(), factors), wrt=first)
    direction = direction_of(values[first])
    check(g[first], direction, double.slope(ids, f, first, direction), 1e-5)


@pytest.mark.parametrize("name", ["mpt", "t5"])
def test_a_soft_cap_before_a_bias_by_distance(name, tmp_path):
    """The captured scores have the bias of ALiBi or of a bucket, which the cap does not see."""
    keys = {f"{name}.attn_logit_softcapping": 2.0}
    model = architectures.random_model(tmp_path, name, metadata=keys)
    ids = models.random_ids(model, 6)
    double = Double(model)
    values = double.run(ids)
    for tap in ("blk.1.attn_q", "blk.1.attn_k"):
        g = model.gradients(ids, of=tl.nll(), wrt=tap)
        direction = direction_of(values[tap])
        check(g[tap], direction, double.slope(ids, loss(ids), tap, direction), 1e-5)


@pytest.mark.parametrize(
    ("name", "ops"),
    [("mamba", ("scan_channels",)), ("mamba2", ("scan",)), ("rwkv7", ("shift", "wkv", "exp")),
     ("gemma3n", ("combine", "add_shared", "match_rms", "sparsify"))],
)  # fmt: skip
def test_every_read_of_an_op(name, ops, tmp_path):
    """Of the last step of each op, so that few steps lie between it and the result."""
    model = architectures.random_model(tmp_path, name)
    ids = models.random_ids(model, 5)
    double = Double(model)
    values = double.run(ids)
    last = model.steps[-1].tap
    factors = np.random.default_rng(1).normal(size=values[last].shape)
    found = {step.op: step for step in model.steps if step.op in ops}
    assert set(found) == set(ops)
    reads = sorted({read for step in found.values() for read in step.reads})
    g = model.gradients(ids, of=lambda logits: ((logits * factors).sum(), factors), wrt=reads)
    for read in reads:
        direction = direction_of(values[read])
        want = double.slope(ids, lambda taps: float((taps[last] * factors).sum()), read, direction)
        check(g[read], direction, want, 1e-5)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q4_0", "BF16", *models.RARE_TYPES])
def test_quantized_weights(kind, tmp_path):
    model = models.random_model(tmp_path, kind, layers=1)
    ids = models.random_ids(model, 4)
    double = Double(model)
    direction = direction_of(double.run(ids)["token_embd"])
    g = model.gradients(ids, of=tl.nll(), wrt="token_embd")
    expected = double.slope(ids, loss(ids), "token_embd", direction)
    check(g["token_embd"], direction, expected, 3e-5)  # activations have 24 bits


@pytest.mark.parametrize("name", ["gemma2", "llama4", "gpt2"])
def test_masks_of_long_texts(name, tmp_path):
    """A window with a cap, chunks, and a triangle, over more queries than a tile has."""
    model = architectures.random_model(tmp_path, name)
    ids = models.random_ids(model, 150)
    scores = next(step for step in model.steps if step.op == "scores")
    mix = next(step for step in model.steps if step.op == "mix")
    numbers = {number.name: number.value for number in scores.numbers}
    query, key, value = *scores.reads, mix.reads[-1]
    taps = [query, key, value, mix.tap, "blk.0.attn_scores", "blk.0.attn_probs"]
    trace = model.trace(ids, taps)
    g = model.gradients(ids, of=tl.nll(), wrt=[query, key, value, mix.tap])
    q, k, v, _, s, p = (trace[tap].astype(np.float64) for tap in taps)
    group = model.config.heads // model.config.kv_heads
    d = g[mix.tap].astype(np.float64)
    dp = np.einsum("qhd,khd->hqk", d, v.repeat(group, axis=1))
    ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) * numbers["factor"]
    if numbers["cap"]:
        ds *= 1 - (np.where(p > 0, s, 0) / numbers["cap"]) ** 2

    def per_group(x):
        return x.reshape(len(x), model.config.kv_heads, group, -1).sum(axis=2)

    for tap, expected in (
        (query, np.einsum("hqk,khd->qhd", ds, k.repeat(group, axis=1))),
        (key, per_group(np.einsum("hqk,qhd->khd", ds, q))),
        (value, per_group(np.einsum("hqk,qhd->khd", p, d))),
    ):
        error = np.linalg.norm(g[tap] - expected) / np.linalg.norm(expected)
        assert error < 1e-5, tap


def test_bits_depend_on_nothing(llama, ids):
    script = (
        "import sys, numpy as np, tinyllm as tl\n"
        "m = tl.load(sys.argv[1], threads=int(sys.argv[2]))\n"
        "g = m.gradients([3, 1, 4, 1, 5] * 30, of=tl.nll(), wrt=['token_embd', '*.attn_v'])\n"
        "import hashlib; print(hashlib.sha256(b''.join(g[n].tobytes() for n in g)).hexdigest())\n"
    )
    seen = set()
    same = ("plain", "avx512vnni", "avx512bf16", "amx")
    sets = [name for name in _core.kernel_sets() if name not in same]
    for i, name in enumerate(sets):
        seen.add(every_set.run(name, "-c", script, llama.path, str(1 + i % 2)))
    assert len(seen) == 1
    two = tl.load(llama.path, threads=2).gradients(ids, of=tl.nll(), wrt="*")
    one = tl.load(llama.path, threads=1).gradients(ids, of=tl.nll(), wrt="*")
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_scalars(llama, ids):
    logits = llama.logits(ids).astype(np.float64)
    log = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    of = tl.logit(5) - 0.5 * tl.logit(6, at=1) + 2 * tl.logprob(7, at=-2) - tl.nll()
    assert repr(of) == "logit(5) - 0.5 * logit(6, at=1) + 2 * logprob(7, at=-2) - nll()"
    g = llama.gradients(ids, of=of, wrt="output")
    n = len(ids) - 1
    expected = np.zeros_like(logits)
    expected[:-1] += -np.exp(log[:-1]) / n * -1
    expected[np.arange(n), ids[1:]] -= 1 / n
    expected = -expected
    expected[-1, 5] += 1
    expected[1, 6] -= 0.5
    expected[-2] -= 2 * np.exp(log[-2])
    expected[-2, 7] += 2
    assert models.normwise_error(g["output"], expected) < 1e-6
    value = logits[-1, 5] - 0.5 * logits[1, 6] + 2 * log[-2, 7]
    value += log[np.arange(n), ids[1:]].mean()
    assert g.value == pytest.approx(value, rel=1e-5)


def test_values_of_taps(llama, ids):
    double = Double(llama)
    values = double.run(ids)
    for tap, index in (("blk.1.ffn_act", (2, 7)), ("blk.1.attn_probs", (1, 4, 2))):
        g = llama.gradients(ids, of=tl.tap_value(tap, index), wrt="blk.0.resid_post")
        direction = direction_of(values["blk.0.resid_post"])
        expected = double.slope(
            ids, lambda taps, tap=tap, index=index: taps[tap][index], "blk.0.resid_post", direction
        )
        check(g["blk.0.resid_post"], direction, expected, 1e-5)
        assert g.value == pytest.approx(values[tap][index], rel=1e-4)
    g = llama.gradients(ids, of=tl.tap_value("blk.0.ffn_act", (0, 0)), wrt="blk.1.*")
    assert not any(gradient.any() for gradient in g.values())  # nothing depends on these


def test_edits(llama, ids):
    tap = "blk.1.attn_v"
    other = llama.trace(models.random_ids(llama, len(ids), seed=5), tap)
    scores = "blk.1.attn_scores"
    edits = [
        tl.scale(tap, 3.0, head=0),
        tl.patch(tap, other, at=2),
        tl.add("blk.1.attn_mix", 0.25),
        tl.zero("blk.1.ffn_act", at=1),
        tl.scale(scores, 0.5, head=1),
        tl.scale("blk.0.attn_probs", 0.5, at=-1),
    ]

    def change_v(x):
        x = x.copy()
        x[:, 0] *= 3
        x[2] = other[tap][2]
        return x

    def half(x, index):
        x = x.copy()
        x[index] *= 0.5
        return x

    def without(x):
        x = x.copy()
        x[1] = 0
        return x

    change = {
        tap: change_v,
        "blk.1.attn_mix": lambda x: x + 0.25,
        "blk.1.ffn_act": without,
        scores: lambda x: half(x, 1),
        "blk.0.attn_probs": lambda x: half(x, (slice(None), -1)),
    }
    double = Double(llama)
    values = double.run(ids, change)
    g = llama.gradients(ids, of=tl.nll(), wrt=["token_embd", tap, scores], edits=edits)
    assert g.value == pytest.approx(loss(ids)(values), abs=1e-5)
    for name in g:
        direction = direction_of(values[name])
        check(g[name], direction, double.slope(ids, loss(ids), name, direction, change), 1e-5)


def test_batch(llama, ids):
    prompts = [ids, ids[:3]]
    both = llama.gradients(prompts, of=tl.nll(), wrt="token_embd")
    for prompt, g in zip(prompts, both, strict=True):
        alone = llama.gradients(prompt, of=tl.nll(), wrt="token_embd")
        assert np.array_equal(alone["token_embd"], g["token_embd"])


def test_wrong_arguments(llama, ids):
    for of, error, text in (
        (3, TypeError, "of is 3; expected tl.logit"),
        (tl.logit(5, at=9), IndexError, "at is 9; expected -6 to 5"),
        (tl.logit(10**6), ValueError, "token is 1000000"),
        (tl.tap_value("blk.0.attn_q", 0), ValueError, "expected one number for each axis"),
        (tl.tap_value("blk.0.attn_q", (0, 99, 0)), IndexError, "has shape"),
        (lambda logits: 3, TypeError, "expected its value and its gradient"),
        (lambda logits: (3, [1.0]), ValueError, "a gradient of shape"),
    ):
        with pytest.raises(error, match=text):
            llama.gradients(ids, of=of)
    with pytest.raises(ValueError, match="at least two"):
        llama.gradients(ids[:1], of=tl.nll())
    with pytest.raises(ValueError, match="whose derivative is not known"):
        llama.gradients(ids, of=tl.nll(), edits=tl.apply("blk.0.attn_q", np.tanh))
    with pytest.raises(TypeError, match="name of one tap"):
        tl.tap_value(["a"], 0)


def test_core_checks_its_arguments(llama):
    ids = (np.array([1, 2], np.int32),)
    last = len(llama.steps) - 1
    seed = np.ones((2, llama.config.vocab_size), np.float32)
    seeds = (((last,), -1, seed),)
    to = np.zeros((2, llama.config.width), np.float32)
    wanted = (((0,), -1, to),)
    with pytest.raises(ValueError, match=r"reads step \d+, whose value is not given"):
        llama.core.backward(ids, (), seeds, wanted)
    with pytest.raises(ValueError, match="vocabulary"):
        llama.core.backward((np.array([-1], np.int32),), (), seeds, wanted)
    with pytest.raises(ValueError, match="has no value for piece"):
        llama.core.backward(ids, (), (((last + 1,), -1, seed),), wanted)
    with pytest.raises(ValueError, match="too small"):
        llama.core.backward(ids, (), (((last,), -1, seed[:1]),), wanted)
    with pytest.raises(ValueError, match="larger"):
        llama.core.backward(ids, (), (((last,), -1, np.ones((3, seed.shape[1]), "f")),), wanted)
    with pytest.raises(ValueError, match="expected 0 values"):
        llama.core.backward(ids, (), seeds, wanted, weights=((1, 0, to),))
    with pytest.raises(TypeError, match="tuple"):
        llama.core.backward(ids, (), seeds, wanted, weights=(3,))


def test_attribution_patching(llama, ids):
    clean = ids.copy()
    clean[2] = (clean[2] + 1) % llama.config.vocab_size
    of = tl.logit(5) - tl.logit(6)

    def metric(logits):
        return logits[-1, 5] - logits[-1, 6]

    taps = ["blk.0.resid_pre", "blk.1.resid_post"]
    exact = tl.patch_sweep(llama, clean, ids, taps, metric, progress=False)
    found = tl.attribution_patching(llama, clean, ids, of, taps)
    assert found.shape == exact.shape
    base = metric(llama.logits(ids))
    # positions before the change hold the same values, so the patches do nothing
    np.testing.assert_allclose(found[:, :2], base, rtol=1e-5)
    # the gradient times a small change is the change
    trace = llama.trace(ids, "blk.0.attn_mix")
    rows = np.array(trace["blk.0.attn_mix"])
    slope = llama.gradients(ids, of=of, wrt="blk.0.attn_mix")["blk.0.attn_mix"]
    heads = tl.attribution_patching(llama, clean, ids, of, "blk.*.attn_mix", by="heads")
    change = llama.trace(clean, "blk.0.attn_mix")["blk.0.attn_mix"] - rows
    np.testing.assert_allclose(heads[0] - base, (slope * change).sum(axis=(0, 2)), atol=1e-4)
    with pytest.raises(ValueError, match="has no heads"):
        tl.attribution_patching(llama, clean, ids, of, by="heads")


def test_integrated_gradients_are_complete(llama, ids):
    of = tl.logprob(5)
    start = np.roll(llama.trace(ids, "token_embd")["token_embd"], 1, axis=0)
    parts = tl.integrated_gradients(llama, ids, of, baseline=start, steps=24, progress=False)
    ends = [
        llama.gradients(ids, of=of, edits=edits).value
        for edits in ((), tl.set("token_embd", start))
    ]
    assert parts.shape == (len(ids), llama.config.width)
    assert parts.sum() == pytest.approx(ends[0] - ends[1], rel=0.02)
    found = tl.saliency(llama, ids, of)
    g = llama.gradients(ids, of=of, wrt="token_embd")["token_embd"]
    embedding = llama.trace(ids, "token_embd")["token_embd"]
    np.testing.assert_allclose(found, (g * embedding).sum(axis=1), rtol=1e-4, atol=1e-6)
