"""LoRA adapters: against models whose weights include the change, and the plan in float64."""

import copy
import pickle
import re

import numpy as np
import pytest

import tinyllm as tl
from testkit import adapters, architectures, models
from tinyllm import reference

#: What a random adapter of alpha 6 and rank 3 is multiplied by.
FACTOR = 2.0


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return models.random_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def pairs(llama):
    return adapters.random_adapter(llama)


@pytest.fixture(scope="module")
def file(pairs, tmp_path_factory):
    return adapters.write(tmp_path_factory.mktemp("adapter") / "a.gguf", pairs)


@pytest.fixture(scope="module")
def adapted(llama, file):
    return llama.with_adapter(file)


@pytest.fixture(scope="module")
def ids(llama):
    return models.random_ids(llama, 20)


def normwise(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def check_merged(model, tmp_path, names=None):
    """The model with a random adapter computes what the merged model does, in every tap."""
    found = adapters.random_adapter(model, names, size=0.1)
    file = adapters.write(tmp_path / "a.gguf", found, architecture=model.config.architecture)
    adapted = model.with_adapter(file)
    merged = adapters.merged(tmp_path / "merged.gguf", model, [(found, FACTOR)])
    tokens = models.random_ids(model, 9)
    trace, want = adapted.trace(tokens, "*"), merged.trace(tokens, "*")
    assert set(want) <= set(trace)
    for tap in want:
        if not tap.endswith("attn_scores"):
            assert normwise(trace[tap], want[tap]) < 3e-5, tap
    last = model.steps[-1].tap
    assert normwise(trace[last], model.trace(tokens, last)[last]) > 0.05
    return adapted


@pytest.mark.sanitize
@pytest.mark.parametrize(
    "name",
    # plain; fused matrices; LayerNorm and biases; factors of matrices; experts, fused or not;
    # latent attention; recurrent; an encoder; heads as an axis of their own; soft caps
    ["llama", "phi3", "gptneox", "codeshell", "qwen2moe", "qwen3moe", "deepseek2", "lfm2", "bert",
     "mamba2", "gemma2"],
)  # fmt: skip
def test_every_tap_is_that_of_the_merged_model(name, tmp_path):
    check_merged(architectures.random_model(tmp_path, name), tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in architectures.DISTINCT if name != "t5"])
def test_every_architecture(name, tmp_path):  # with an adapter, T5 is its encoder only
    model = architectures.random_model(tmp_path, name)
    tied = sum("token_embd.weight" in step.weights for step in model.steps) > 1
    names = [n for n in adapters.targets(model) if not (tied and n == "token_embd.weight")]
    check_merged(model, tmp_path, names)


def test_the_reference_walks_the_same_plan(adapted, ids):
    trace = adapted.trace(ids, "*")
    want = reference.forward(adapted.steps, adapted.weights, ids)
    assert list(trace) == list(want)
    for tap, values in want.items():
        finite = np.isfinite(values)
        assert normwise(trace[tap][finite], values[finite]) < 2e-6, tap


def test_taps_are_the_products_with_a_and_b(adapted, pairs, ids):
    a, b = pairs["blk.1.ffn_down.weight"]
    t = adapted.trace(ids, ["blk.1.ffn_act", "blk.1.ffn_down*"])
    x = t["blk.1.ffn_act"].astype(np.float64)
    tap = "blk.1.ffn_down"
    assert list(t)[1:] == [f"{tap}.{n}" for n in ("base", "lora_a", "lora_b", "lora")] + [tap]
    np.testing.assert_allclose(t[f"{tap}.lora_a"], x @ a.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(t[f"{tap}.lora_b"], x @ a.T @ b.T, rtol=1e-5, atol=1e-5)
    assert (t[f"{tap}.lora"] == np.float32(FACTOR) * t[f"{tap}.lora_b"]).all()
    assert (t[tap] == t[f"{tap}.base"] + t[f"{tap}.lora"]).all()
    base = x @ adapted.weights["blk.1.ffn_down.weight"].numpy(dtype=np.float64).T
    np.testing.assert_allclose(t[f"{tap}.base"], base, rtol=1e-5, atol=1e-5)
    assert adapted.steps.role("ffn_add", 1) == tap


def test_roles_and_shapes(llama, adapted):
    for role in ("queries", "values", "attn_add", "ffn_input", "ffn_hidden", "resid_post"):
        assert adapted.steps.role(role, 1) == llama.steps.role(role, 1)
    assert adapted.steps.role("attn_project", 1) == "blk.1.attn_output.base"
    assert adapted.steps.roles("queries") == llama.steps.roles("queries")
    shapes = {tap.name: tap.row for tap in adapted.taps}
    for tap in llama.taps:
        assert shapes[tap.name] == tap.row
    assert adapted.steps["blk.0.attn_q.lora_b"].shape == (4, 64)


def test_several_adapters_and_scales(llama, pairs, file, ids, tmp_path):
    names = [n for n in pairs if n.startswith("blk.0.")]
    second = adapters.random_adapter(llama, names, rank=2, seed=5)
    other = adapters.write(tmp_path / "b.gguf", second, alpha=0.0)
    model = tl.load(llama.path, adapters=[(file, 0.5), other])
    want = adapters.merged(tmp_path / "m.gguf", llama, [(pairs, 0.5 * FACTOR), (second, 1.0)])
    assert normwise(model.logits(ids), want.logits(ids)) < 3e-6
    chained = llama.with_adapter(file, 0.5).with_adapter(tl.Adapter(other))
    assert (chained.logits(ids) == model.logits(ids)).all()
    assert [scale for _, scale in chained.adapters] == [0.5, 1.0]
    assert "blk.0.attn_q.lora_a_2" in model.steps._numbers
    assert "blk.0.attn_q.sum" in model.steps._numbers
    assert "blk.1.attn_q.lora_a_2" not in model.steps._numbers
    zero = llama.with_adapter(file, 0.0)
    assert (zero.logits(ids) == llama.logits(ids)).all()
    there_and_back = llama.with_adapter(file).with_adapter(file, -1)
    assert normwise(there_and_back.logits(ids), llama.logits(ids)) < 3e-6


def test_the_change_of_an_embedding_and_of_a_tied_output(tmp_path):
    """Both have the matrix ``token_embd.weight``. An adapter changes each apart, as PEFT does."""
    model = models.random_model(tmp_path, tied=True)
    table = model.weights["token_embd.weight"].numpy()
    tokens = models.random_ids(model, 6)
    random = np.random.default_rng(0)
    a, b = (random.standard_normal(s).astype(np.float32) for s in ((3, 256), (320, 3)))
    file = adapters.write(tmp_path / "a.gguf", {"output.weight": (0.1 * a, 0.1 * b)})
    adapted = model.with_adapter(file)
    tensors = dict(model.weights)
    tl.write_gguf(
        tmp_path / "untied.gguf",
        dict(model.metadata),
        tensors | {"output.weight": table + np.float32(FACTOR * 0.01) * (b @ a)},
    )
    assert normwise(adapted.logits(tokens), tl.load(tmp_path / "untied.gguf").logits(tokens)) < 3e-6
    change = {"token_embd.weight": (0.3 * b, 0.1 * a.T)}
    adapted = model.with_adapter(adapters.write(tmp_path / "e.gguf", change))
    tl.write_gguf(
        tmp_path / "untied.gguf",
        dict(model.metadata),
        tensors
        | {
            "output.weight": table,
            "token_embd.weight": table + np.float32(FACTOR * 0.03) * (b @ a),
        },
    )
    assert normwise(adapted.logits(tokens), tl.load(tmp_path / "untied.gguf").logits(tokens)) < 3e-6


@pytest.mark.sanitize
@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0", "BF16", "F16"])
def test_quantized_models(kind, pairs, file, ids, tmp_path):
    """The change is added to the exact values of the weights."""
    model = models.random_model(tmp_path, kind)
    adapted = model.with_adapter(file)
    want = adapters.merged(tmp_path / "m.gguf", model, [(pairs, FACTOR)]).logits(ids)
    assert normwise(adapted.logits(ids), want) < 3e-6
    fast = tl.load(model.path, mode="fast", adapters=[file])
    assert normwise(fast.logits(ids), want) < 0.05
    if kind != "BF16":  # which some processors multiply without rounding the activations
        assert np.array_equal(fast.logits(ids), adapted.logits(ids)) == (kind == "F16")


@pytest.mark.parametrize("name", ["llama", "qwen2moe"])
def test_bits_do_not_depend_on_how_it_runs(name, tmp_path):
    model = architectures.random_model(tmp_path, name, "Q4_K")
    found = adapters.random_adapter(model)
    file = adapters.write(tmp_path / "a.gguf", found, architecture=name)
    tokens = models.random_ids(model, 40)
    want = None
    for threads, chunk in ((1, 40), (2, 1), (3, 7), (5, 33)):
        one = tl.load(model.path, threads=threads, adapters=[(file, 0.7)])
        want = one.logits(tokens) if want is None else want
        session = one.session()
        parts = [session.eval(tokens[i : i + chunk], "all") for i in range(0, 40, chunk)]
        assert np.array_equal(np.concatenate(parts), want)
        trace = one.trace(tokens, "*")
        assert np.array_equal(trace["output"], want)
        ragged = one.trace([list(map(int, tokens[:9])), list(map(int, tokens))], "*")
        for tap in trace:
            assert np.array_equal(ragged[1][tap], trace[tap]), tap


def test_a_tap_written_back_changes_no_bit(adapted, ids):
    trace = adapted.trace(ids, "*")
    for tap in trace:
        if ".0." in tap or (".lora" in tap and ".1.attn" in tap):
            edited = adapted.trace(ids, "output", edits=tl.set(tap, trace[tap]))
            assert np.array_equal(edited["output"], trace["output"]), tap


def test_edits_of_an_adapter(llama, adapted, ids):
    """Without its parts the adapter has no effect; a doubled part is a doubled scale."""
    zero = [tl.zero(step.tap) for step in adapted.steps if step.family.endswith(".lora")]
    assert len(zero) == 16
    assert np.array_equal(adapted.logits(ids, edits=zero), llama.logits(ids))
    twice = [tl.scale(edit.tap, 2) for edit in zero]
    double = llama.with_adapter(adapted.adapters[0][0], 2.0)
    assert np.array_equal(adapted.logits(ids, edits=twice), double.logits(ids))


def test_gradients(adapted, ids):
    """By finite differences in float64, and those of the parts of a sum are that of the sum."""
    tokens = ids[:5]
    g = adapted.gradients(tokens, of=tl.logit(7), wrt="*")
    for tap in ("blk.0.attn_q", "blk.1.ffn_down", "blk.0.attn_output", "output"):
        assert np.array_equal(g[f"{tap}.base"], g[tap])
        assert np.array_equal(g[f"{tap}.lora"], g[tap])
        assert np.array_equal(g[f"{tap}.lora_b"], np.float32(FACTOR) * g[tap])
    weights = {name: w.numpy(dtype=np.float64) for name, w in adapted.weights.items()}
    random = np.random.default_rng(0)

    def value(tap, change):
        inputs = {"tokens": np.asarray(tokens), "positions": np.arange(5)}
        taps = {}
        for step in reference.steps(adapted.steps):
            taps[step.tap] = step.run(weights, {**inputs, **taps})
            if step.tap == tap:
                taps[tap] = taps[tap] + change
        return taps["output"][-1, 7]

    for tap in ("token_embd.lora_a", "blk.0.attn_k.lora_a", "blk.1.ffn_gate.lora_b"):
        direction = random.standard_normal(g[tap].shape)
        slope = (value(tap, 1e-6 * direction) - value(tap, -1e-6 * direction)) / 2e-6
        found = (g[tap] * direction).sum()
        assert abs(found - slope) < 1e-5 * np.linalg.norm(g[tap]) * np.linalg.norm(direction)


def test_analyses_see_the_changed_matrices(llama, adapted, pairs, ids, tmp_path):
    merged = adapters.merged(tmp_path / "m.gguf", llama, [(pairs, FACTOR)])
    trace, want = adapted.trace(ids, "*"), merged.trace(ids, "*")
    np.testing.assert_allclose(tl.ov_circuit(adapted, 1, 2), tl.ov_circuit(merged, 1, 2), atol=1e-5)
    np.testing.assert_allclose(
        tl.qk_circuit(adapted, 1, 2, offset=3), tl.qk_circuit(merged, 1, 2, offset=3), atol=1e-5
    )
    outputs = trace.head_outputs(1)
    np.testing.assert_allclose(outputs, want.head_outputs(1), atol=2e-4)
    np.testing.assert_allclose(outputs.sum(axis=1), trace["blk.1.attn_output"], atol=2e-4)
    parts = tl.attribution(trace, 5)
    logit = trace["output"][-1, 5]
    assert sum(parts.values) == pytest.approx(logit, abs=1e-3)
    assert "blk.1.attn_output.lora_b" in parts.names
    np.testing.assert_allclose(tl.lens(trace).probs, tl.lens(want).probs, atol=1e-4)


def test_a_model_with_adapters_is_another_model(llama, pairs, file, adapted, ids, tmp_path):
    half = llama.with_adapter(file, 0.5)
    other = llama.with_adapter(adapters.write(tmp_path / "alpha.gguf", pairs, alpha=5.0))
    assert len({m.fingerprint for m in (llama, adapted, half, other)}) == 4
    assert llama.with_adapter(file).fingerprint == adapted.fingerprint
    session = adapted.session()
    session.eval(ids)
    session.save(tmp_path / "s.npz")
    assert tl.Session.load(llama.with_adapter(file), tmp_path / "s.npz").tokens == session.tokens
    for other in (llama, half):
        with pytest.raises(tl.FormatError, match="the session belongs to another model"):
            other.session(tmp_path / "s.npz")
    tokens = {"template": "plain", "max_tokens": 2, "seed": 1}
    demo = tl.load()
    change = adapters.random_adapter(demo, ["blk.0.attn_v.weight"])
    talker = demo.with_adapter(adapters.write(tmp_path / "d.gguf", change))
    with pytest.raises(ValueError, match="session belongs to another model"):
        talker.chat("Good morrow!", session=demo.session(), **tokens)
    assert copy.deepcopy(adapted) is adapted
    with pytest.raises(TypeError, match="paths and scales of its adapters"):
        pickle.dumps(adapted)
    with pytest.raises(ValueError, match="model has 1 adapters"):
        tl.quantize(adapted, tmp_path / "q.gguf", "Q8_0")


def test_what_is_shown(llama, adapted, file):
    (adapter, scale), = adapted.adapters  # fmt: skip
    assert scale == 1.0
    assert "1 adapters" in repr(adapted)
    assert "adapter, scale 1" in str(adapted.table())
    assert re.search(r"Adapter: llama, 16 tensors of rank 3, alpha 6, .*a\.gguf", repr(adapter))
    assert re.search(r"blk.1.ffn_up.weight +3 +2 +F32 +\(3, 256\) +\(512, 3\)", str(adapter))
    assert "<table" in adapter._repr_html_()
    assert "alpha 6 / rank 3, times 0.5" in str(llama.with_adapter(file, 0.5).steps)
    assert llama.adapters == ()
    assert adapted.memory(16).weights == llama.memory(16).weights + adapter.nbytes


def test_files_of_rank_one_and_of_other_types(llama, ids, tmp_path):
    """llama.cpp's writer leaves out leading axes of one; its converter writes F16 and BF16, too."""
    (a, b), = adapters.random_adapter(llama, ["blk.0.attn_q.weight"], rank=1).values()  # fmt: skip
    full = adapters.write(tmp_path / "full.gguf", {"blk.0.attn_q.weight": (a, b)})
    flat = adapters.write(tmp_path / "flat.gguf", {"blk.0.attn_q.weight": (a[0], b)})
    want = llama.with_adapter(full).logits(ids)
    assert np.array_equal(llama.with_adapter(flat.read_bytes()).logits(ids), want)
    half = {"blk.0.attn_q.weight": (a.astype(np.float16), b.astype(np.float16))}
    again = {"blk.0.attn_q.weight": tuple(x.astype(np.float32) for x in half.popitem()[1])}
    exact = llama.with_adapter(adapters.write(tmp_path / "e.gguf", again)).logits(ids)
    half = {name: tuple(x.astype(np.float16) for x in pair) for name, pair in again.items()}
    assert np.array_equal(
        llama.with_adapter(adapters.write(tmp_path / "h.gguf", half)).logits(ids), exact
    )


ONE = {"blk.0.attn_q.weight": (np.ones((3, 256), np.float32), np.ones((256, 3), np.float32))}


@pytest.mark.sanitize
@pytest.mark.parametrize(
    ("change", "keys", "error", "text"),
    [
        ({}, {"general__architecture": "qwen2"}, tl.FormatError, "architecture 'qwen2', and this"),
        ({}, {"general__type": "model"}, tl.FormatError, "general.type is 'model'; expected 'ada"),
        ({}, {"adapter__type": "ia3"}, tl.UnsupportedError, "adapter.type is 'ia3'"),
        ({}, {"adapter__lora__alpha": "x"}, tl.FormatError, "adapter.lora.alpha is 'x'"),
        ({}, {"adapter__lora__alpha": float("nan")}, tl.FormatError, "alpha is nan; expected a fi"),
        ({}, {"adapter__alora__invocation_tokens": [1]}, tl.UnsupportedError, "activated LoRA"),
        ({"blk.9.attn_q.weight": ONE["blk.0.attn_q.weight"]}, {}, tl.FormatError,
         "changes 'blk.9.attn_q.weight', and the model has no such tensor"),
        ({"blk.0.attn_norm.weight": ((1, 3), (256, 3))}, {}, tl.UnsupportedError,
         "'blk.0.attn_norm.weight', which a step 'norm' uses"),
        ({"blk.0.attn_k.weight": ((3, 128), (128, 3))}, {}, tl.FormatError,
         r"attn_k.weight.lora_a has shape \(3, 128\), and blk.0.attn_k.weight of the model "
         r"\(128, 256\); expected \(3, 256\)"),
        ({"blk.0.attn_k.weight": ((3, 256), (256, 3))}, {}, tl.FormatError,
         r"attn_k.weight.lora_b has shape \(256, 3\).*expected \(128, 3\)"),
        ({"blk.0.attn_k.weight": ((2, 256), (128, 3))}, {}, tl.FormatError, r"expected \(3, 256\)"),
        ({"token_embd.weight": ((3, 256), (320, 3))}, {}, tl.FormatError, r"expected \(320, 3\)"),
    ],
)  # fmt: skip
def test_wrong_adapters(llama, change, keys, error, text, tmp_path):
    found = dict(ONE)
    for name, pair in change.items():
        made = [np.ones(s, np.float32) if isinstance(s, tuple) else s for s in pair]
        found[name] = tuple(made)
    path = adapters.write(tmp_path / "wrong.gguf", found, **keys)
    with pytest.raises(error, match=text) as caught:
        llama.with_adapter(path)
    assert caught.value.path == str(path)
    with pytest.raises(error, match=text) as caught:
        tl.load(llama.path, adapters=[path])
    assert caught.value.path == str(path)


def test_wrong_tensors_of_a_file(tmp_path):
    keys = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}
    a = np.ones((3, 256), np.float32)
    for names, text in (
        (["blk.0.attn_q.weight.lora_a"], "attn_q.weight.lora_b' is missing; expected both"),
        (["blk.0.attn_q.weight"], "only names that end with .lora_a or .lora_b"),
        ([".lora_a"], "only names that end"),
        ([], "tensors is 0"),
    ):
        tl.write_gguf(tmp_path / "w.gguf", keys, dict.fromkeys(names, a))
        with pytest.raises(tl.FormatError, match=re.escape(text)):
            tl.Adapter(tmp_path / "w.gguf")
    ones = np.ones((1, 1, 1, 1), np.float32)
    tl.write_gguf(tmp_path / "w.gguf", keys, {"x.lora_a": ones, "x.lora_b": ones})
    with pytest.raises(tl.FormatError, match="expected two or three axes"):
        tl.Adapter(tmp_path / "w.gguf")


def test_wrong_arguments(llama, file):
    for scale in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"scale is .*; expected a finite number"):
            llama.with_adapter(file, scale)
    for scale in ("1", True, None):
        with pytest.raises(TypeError, match=r"scale is .*; expected a number"):
            llama.with_adapter(file, scale)
    assert len(tl.load(llama.path, adapters=str(file)).adapters) == 1
    with pytest.raises(TypeError, match=r"adapters\[1\] is 0.8; expected a path"):
        tl.load(llama.path, adapters=(file, 0.8))
    with pytest.raises(FileNotFoundError):
        tl.load(llama.path, adapters=["none.gguf"])
    with pytest.raises(tl.FormatError, match=r"expected the model, with adapters="):
        tl.load(file)
    with pytest.raises(tl.FormatError, match=r"general.type is None; expected 'adapter'"):
        llama.with_adapter(llama.path)
    with pytest.raises(TypeError, match=r"lora_path; here it is adapters="):
        tl.load(llama.path, lora_path=file)


def test_doctor_finds_nothing_wrong_in_a_right_run(tmp_path):
    demo = tl.load()
    found = adapters.random_adapter(demo, size=0.02)
    model = demo.with_adapter(adapters.write(tmp_path / "a.gguf", found))
    trace = model.trace("ROMEO: But soft", "*")
    assert tl.doctor(model, trace).ok
