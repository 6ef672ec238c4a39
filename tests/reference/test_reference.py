"""The NumPy reference, compared with Hugging Face, papers and numbers computed by hand."""

import doctest
import math

import numpy as np
import pytest

import tinyllm.errors
from testkit import data, hf, models
from tinyllm import reference


def small_model(seed=0, layers=2, **options):
    """Return (config, float32 weights) of a random model that runs in a millisecond."""
    sizes = {"width": 32, "heads": 4, "kv_heads": 2, "ffn": 64, "vocab": 50} | options
    metadata, tensors = models.random_llama(seed=seed, layers=layers, **sizes)
    return models.reference_config(metadata, tensors), models.values(tensors)


def rope_config(**options):
    metadata = {"llama.rope.scaling." + key: value for key, value in options.items()}
    return small_model(metadata=metadata, width=256, layers=1)[0]


# --- against Hugging Face ----------------------------------------------------------------------


@pytest.mark.parametrize("name", hf.LLAMAS)
def test_hidden_states_and_logits_are_those_of_hugging_face(name):
    directory = data.path("hf", name)
    metadata, tensors = hf.load_checkpoint(directory)
    ids, logits, hidden = hf.load_golden(directory)
    config = models.reference_config(metadata, tensors)
    taps = reference.forward(config, tensors, ids)
    names = [f"blk.{i}.resid_pre" for i in range(config.layers)] + ["output_norm"]
    for tap, expected in zip(names, hidden, strict=True):
        # Hugging Face computes norms and RoPE in float32 even in a float64 model.
        assert models.normwise_error(taps[tap], expected) < 1e-6, tap
    assert models.normwise_error(taps["output"], logits) < 1e-6


def test_each_part_of_a_checkpoint_matters():
    """The test above would fail for a wrong pairing, or for a missing bias or factor."""
    root = data.path("hf")

    def error(name, change):
        metadata, tensors = hf.load_checkpoint(root / name)
        ids, logits, _ = hf.load_golden(root / name)
        change(metadata, tensors)
        config = models.reference_config(metadata, tensors)
        return models.normwise_error(reference.forward(config, tensors, ids)["output"], logits)

    def unpermute(metadata, tensors):
        q = tensors["blk.0.attn_q.weight"]
        tensors["blk.0.attn_q.weight"] = q.reshape(5, 8, 2, -1).swapaxes(1, 2).reshape(q.shape)

    def pairs(metadata, tensors):
        turned = {key.replace("qwen2", "llama"): value for key, value in metadata.items()}
        metadata.update(turned, **{"general.architecture": "llama"})

    assert error("llama", unpermute) > 1e-2
    assert error("qwen2", pairs) > 1e-2
    assert error("llama_bias_tied", lambda m, t: t.pop("blk.1.attn_k.bias")) > 1e-3
    assert error("llama_bias_tied", lambda m, t: t.pop("blk.1.attn_output.bias")) > 1e-3
    assert error("llama31_rope", lambda m, t: t.pop("rope_freqs.weight")) > 1e-3
    assert error("qwen2_yarn", lambda m, t: m.pop("qwen2.rope.scaling.type")) > 1e-3


def step_of(config, name):
    return reference.step(config, f"blk.0.{name}", ())


def turned(config, x, positions):
    return step_of(config, "attn_q_rope").compute(x, positions, None)


def frequencies_of(config, factors=None):
    numbers = step_of(config, "attn_q_rope").step.numbers
    numbers = {n.name: float(np.float32(n.value)) for n in numbers if n.name != "layout"}
    return reference.rope_frequencies(factors, **numbers)


# --- by hand -----------------------------------------------------------------------------------


def test_attention_over_four_positions():
    config, _ = small_model(heads=2, kv_heads=1, head_size=4, width=8)
    # One key per axis, queries along them: a query of length 2 ln 2 along its own key's axis
    # scores 2 ln 2 / sqrt(4) = ln 2 there, and 0 elsewhere.
    k = np.eye(4)[:, np.newaxis]
    q = np.zeros((4, 2, 4))
    for t in range(4):
        q[t, 0, t] = 2 * math.log(2)  # head 0 looks at itself
        q[t, 1, 0] = 2 * math.log(4)  # head 1 looks at the first token
    v = np.arange(1.0, 5.0).reshape(4, 1, 1)
    scores = step_of(config, "attn_scores").compute(q, k)
    probs = reference.softmax(scores)
    mix = reference.mix_values(probs, v)
    hidden = -np.inf
    one, two = math.log(2), math.log(4)
    np.testing.assert_allclose(
        scores[0],
        [
            [one, hidden, hidden, hidden],
            [0, one, hidden, hidden],
            [0, 0, one, hidden],
            [0, 0, 0, one],
        ],
        atol=1e-15,
    )
    np.testing.assert_allclose(scores[1][3], [two, 0, 0, 0], atol=1e-15)
    np.testing.assert_allclose(
        probs[0],
        [[1, 0, 0, 0], [1 / 3, 2 / 3, 0, 0], [1 / 4, 1 / 4, 2 / 4, 0], [0.2, 0.2, 0.2, 0.4]],
        atol=1e-15,
    )
    np.testing.assert_allclose(probs[1][3], [4 / 7, 1 / 7, 1 / 7, 1 / 7], atol=1e-15)
    np.testing.assert_allclose(mix[:, 0, 0], [1, 5 / 3, 9 / 4, 14 / 5])
    np.testing.assert_allclose(mix[3, 1, 0], (4 * 1 + 2 + 3 + 4) / 7)


def test_neighbouring_query_heads_share_a_key_head():
    config, _ = small_model(heads=4, kv_heads=2, metadata={"llama.attention.scale": 1.0})
    two = np.array([[[10.0], [20.0]]])  # one token, 10 in head 0 and 20 in head 1
    scores = step_of(config, "attn_scores").compute(np.ones((1, 4, 1)), two)
    assert scores.ravel().tolist() == [10, 10, 20, 20]
    mix = reference.mix_values(np.ones((4, 1, 1)), two)
    assert mix.ravel().tolist() == [10, 10, 20, 20]


def test_rms_norm_of_three_and_four():
    config, _ = small_model(norm_epsilon=0.0)
    x = np.array([[3.0, 4.0]])  # mean square 12.5
    scale = step_of(config, "attn_norm_scale").compute(x)
    assert scale == pytest.approx(1 / math.sqrt(12.5), rel=1e-15)
    y = reference.norm(x, scale, np.array([2.0, 0.5]))
    np.testing.assert_allclose(y, [[6 / math.sqrt(12.5), 2 / math.sqrt(12.5)]], rtol=1e-15)


def test_epsilon_and_rope_base_are_the_stored_float32():
    config, _ = small_model(norm_epsilon=1e-5, rope_base=10000.1)
    scale = step_of(config, "attn_norm_scale").compute(np.zeros((1, 2)))
    assert scale == pytest.approx(9.999999747378752e-06**-0.5, rel=1e-15)
    frequencies, _ = frequencies_of(config)
    assert frequencies[1] == pytest.approx(10000.099609375 ** (-2 / 8), rel=1e-15)


def test_silu_mul():
    y = reference.gated(np.array([[0.0, 1.0, -1.0]]), np.array([[5.0, 2.0, 3.0]]))
    e = math.e
    np.testing.assert_allclose(y, [[0, 2 * e / (e + 1), -3 / (1 + e)]], rtol=1e-15)


def test_silu_mul_far_out_is_quiet():
    config, weights = small_model(layers=1)
    step = reference.step(config, "blk.0.ffn_act", weights)
    far = {"blk.0.ffn_gate": [[-1000.0, 1000.0]], "blk.0.ffn_up": [[1.0, 1.0]]}
    assert step.run(weights, far).tolist() == [[0, 1000]]


# --- RoPE --------------------------------------------------------------------------------------


def test_rope_turns_interleaved_pairs():
    config, _ = small_model(heads=1, kv_heads=1, head_size=4, width=4)
    x = np.array([[[1.0, 2.0, 3.0, 4.0]]] * 2)
    y = turned(config, x, np.array([0, 3]))
    assert np.array_equal(y[0], x[0])
    # as complex numbers: (1 + 2i) e^(3i) and (3 + 4i) e^(3i / 100)
    first, second = (1 + 2j) * np.exp(3j), (3 + 4j) * np.exp(0.03j)
    np.testing.assert_allclose(
        y[1, 0], [first.real, first.imag, second.real, second.imag], rtol=1e-14
    )


def test_rope_scores_depend_on_the_distance_only():
    config, _ = small_model()
    random = np.random.default_rng(0)
    q, k = random.normal(size=(2, 1, 4, 8))

    def score(at_q, at_k):
        a, b = (turned(config, x, np.array([p])) for x, p in ((q, at_q), (k, at_k)))
        return (a * b).sum(axis=-1)

    np.testing.assert_allclose(score(7, 3), score(1004, 1000), rtol=1e-10)
    assert not np.allclose(score(7, 3), score(7, 4), rtol=1e-2)


def test_rope_leaves_the_rest_of_a_partly_rotated_head():
    config, _ = small_model(metadata={"llama.rope.dimension_count": 4})
    x = np.random.default_rng(0).normal(size=(1, 4, 8))
    y = turned(config, x, np.array([5]))
    assert np.array_equal(y[..., 4:], x[..., 4:])
    assert not np.isclose(y[..., :4], x[..., :4]).any()


def test_linear_scaling_is_a_smaller_position():
    plain, _ = small_model()
    config, _ = small_model(
        metadata={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    )
    x = np.random.default_rng(0).normal(size=(1, 4, 8))
    scaled = turned(config, x, np.array([20]))
    smaller = turned(plain, x, np.array([5]))
    np.testing.assert_allclose(scaled, smaller, rtol=1e-13)


def test_yarn_keeps_fast_pairs_and_interpolates_slow_ones():
    """The ends of the ramp are the paper's: r(d) = L / wavelength, above 32 and below 1 turns."""
    length, factor, base = 4096, 8.0, 10000.0
    config = rope_config(type="yarn", factor=factor, original_context_length=length)
    frequencies, magnitude = frequencies_of(config)
    plain = base ** (-np.arange(32) / 32)
    turns = length * plain / (2 * math.pi)
    # A pair next to the ends may already be on the ramp: its ends are rounded to whole pairs.
    fast, slow = np.flatnonzero(turns > 32)[:-1], np.flatnonzero(turns < 1)[1:]
    assert len(fast) > 5
    assert len(slow) > 5
    np.testing.assert_allclose(frequencies[fast], plain[fast], rtol=1e-13)
    np.testing.assert_allclose(frequencies[slow], plain[slow] / factor, rtol=1e-13)
    between = slice(fast[-1] + 2, slow[0] - 2)
    assert (frequencies[between] < plain[between]).all()
    assert (frequencies[between] > plain[between] / factor).all()
    assert (np.diff(frequencies) < 0).all()
    assert magnitude == pytest.approx(0.1 * math.log(8) + 1, rel=1e-15)


def test_yarn_ramp_pair_by_pair():
    """The code of the authors (github.com/jquesnelle/yarn), with plain numbers."""
    head, base, length, factor = 64, 10000.0, 2048, 16.0
    # pairs that turn 32 times and once: 64 ln(2048 / (32 * 2 pi)) / (2 ln 10000) = 8.06...,
    # and 20.10...; rounded outwards.
    ends = [head * math.log(length / (r * math.tau)) / (2 * math.log(base)) for r in (32, 1)]
    assert [round(end, 2) for end in ends] == [8.06, 20.11]
    low, high = 8, 21
    expected = []
    for j in range(head // 2):
        ramp = 0.0 if j < low else 1.0 if j > high else (j - low) / (high - low)
        kept, interpolated = base ** (-2 * j / head), base ** (-2 * j / head) / factor
        expected.append(interpolated * ramp + kept * (1 - ramp))
    config = rope_config(type="yarn", factor=factor, original_context_length=length)
    frequencies, _ = frequencies_of(config)
    np.testing.assert_allclose(frequencies, expected, rtol=1e-13)


def test_yarn_magnitude_is_in_the_rotation():
    config = rope_config(type="yarn", factor=4.0, original_context_length=512, attn_factor=0.5)
    x = np.random.default_rng(0).normal(size=(2, 4, 64))
    y = turned(config, x, np.array([0, 9]))
    expected = 0.5 * (1 + 0.1 * math.log(4)) * np.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), expected, rtol=1e-13)


def test_yarn_defaults_and_switch():
    explicit = rope_config(type="yarn", factor=4.0, original_context_length=2048)
    implicit = rope_config(type="yarn", factor=4.0)  # of the file's context length, 2048
    assert np.array_equal(*(frequencies_of(c)[0] for c in (explicit, implicit)))
    other = rope_config(type="yarn", factor=4.0, original_context_length=512)
    assert (frequencies_of(other)[0] != frequencies_of(explicit)[0]).any()
    for key, value in (("yarn_beta_fast", 16.0), ("yarn_beta_slow", 2.0)):
        steeper = rope_config(type="yarn", factor=4.0, **{key: value})
        assert (frequencies_of(steeper)[0] != frequencies_of(explicit)[0]).any()
    switched_off = rope_config(type="yarn", factor=4.0, yarn_ext_factor=0.0)
    linear = rope_config(type="linear", factor=4.0)
    for a, b in zip(*(frequencies_of(c) for c in (switched_off, linear)), strict=True):
        assert np.array_equal(a, b)


def test_llama3_factors_divide_the_frequencies():
    factors = np.linspace(1, 8, 32)
    config = rope_config()
    plain, _ = frequencies_of(config)
    frequencies, magnitude = frequencies_of(config, factors)
    np.testing.assert_allclose(frequencies * factors, plain, rtol=1e-14)
    assert magnitude == 1


def test_unknown_scaling_is_named():
    config = rope_config(type="longrope", factor=4.0)
    with pytest.raises(tinyllm.errors.UnsupportedError, match="longrope"):
        frequencies_of(config)


# --- the whole ---------------------------------------------------------------------------------


def test_taps_have_the_documented_names_order_and_shapes():
    config, weights = small_model(head_size=12)
    t, h, k, d, f, v = 5, 4, 2, 32, 64, 50
    taps = reference.forward(config, weights, np.arange(t))
    assert list(taps) == models.tap_names(2)
    shapes = {
        "resid_pre": (t, d),
        "attn_norm_scale": (t,),
        "attn_norm": (t, d),
        "attn_q": (t, h, 12),
        "attn_k": (t, k, 12),
        "attn_v": (t, k, 12),
        "attn_q_rope": (t, h, 12),
        "attn_k_rope": (t, k, 12),
        "attn_scores": (h, t, t),
        "attn_probs": (h, t, t),
        "attn_mix": (t, h, 12),
        "attn_output": (t, d),
        "resid_mid": (t, d),
        "ffn_norm_scale": (t,),
        "ffn_norm": (t, d),
        "ffn_gate": (t, f),
        "ffn_up": (t, f),
        "ffn_act": (t, f),
        "ffn_down": (t, d),
        "resid_post": (t, d),
        "token_embd": (t, d),
        "output_norm_scale": (t,),
        "output_norm": (t, d),
        "output": (t, v),
    }
    for name, value in taps.items():
        assert value.shape == shapes[name.split(".")[-1]], name
        assert value.dtype == np.float64, name


@pytest.mark.parametrize(
    "options", [{}, {"biases": True, "tied": True, "rope_freqs": [1, 2, 3, 4]}]
)
def test_each_step_alone_repeats_its_tap(options):
    config, weights = small_model(**options)
    tokens = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    taps = reference.forward(config, weights, tokens)
    given = {"tokens": tokens, "positions": np.arange(8), **taps}
    for step in reference.steps(config, weights):
        alone = step.run(weights, {name: given[name] for name in step.reads})
        assert np.array_equal(alone, taps[step.tap]), step.tap
        assert reference.step(config, step.tap, weights) == step


def test_every_weight_is_read_by_exactly_the_steps_that_name_it():
    config, weights = small_model(layers=1, biases=True, rope_freqs=[1, 2, 3, 4])
    tokens = np.arange(6)
    before = reference.forward(config, weights, tokens)
    for name in weights:
        changed = reference.forward(config, weights | {name: weights[name] * 1.5}, tokens)
        first = next(tap for tap in before if not np.array_equal(before[tap], changed[tap]))
        expected = {"rope_freqs": "blk.0.attn_q_rope"}.get(
            name.split(".")[0], name.rsplit(".", 1)[0]
        )
        assert first == expected


def test_a_token_changes_nothing_before_it():
    config, weights = small_model()
    tokens = np.array([3, 1, 4, 1, 5, 9])
    before = reference.forward(config, weights, tokens)
    tokens[3] = 7
    after = reference.forward(config, weights, tokens)
    for name in before:
        axis = 1 if name.endswith(("scores", "probs")) else 0
        a, b = (np.moveaxis(taps[name], axis, 0) for taps in (before, after))
        assert np.array_equal(a[:3], b[:3]), name
        if not name.endswith("token_embd"):
            assert not np.array_equal(a[4:], b[4:]) or "blk.0" in name, name
    assert not np.array_equal(before["output"][3:], after["output"][3:])


def test_queries_may_be_the_last_of_a_longer_context():
    config, weights = small_model(layers=1)
    taps = reference.forward(config, weights, np.arange(8))
    step = reference.step(config, "blk.0.attn_scores", weights)
    late = {**taps, "blk.0.attn_q_rope": taps["blk.0.attn_q_rope"][5:]}
    np.testing.assert_allclose(
        step.run(weights, late), taps["blk.0.attn_scores"][:, 5:], rtol=1e-13
    )


def test_positions_turn_but_do_not_mask():
    config, weights = small_model()
    tokens = np.array([3, 1, 4, 1])
    plain = reference.forward(config, weights, tokens)["output"]
    shifted = reference.forward(config, weights, tokens, positions=[5, 6, 7, 8])["output"]
    restarted = reference.forward(config, weights, tokens, positions=[0, 1, 0, 1])
    np.testing.assert_allclose(shifted, plain, rtol=1e-9)
    assert not np.allclose(restarted["output"], plain, rtol=1e-3)
    assert np.isneginf(restarted["blk.0.attn_scores"][0, 0, 1:]).all()


def test_layers_may_differ():
    config, weights = small_model(heads=[4, 2], kv_heads=[1, 2], ffn=[64, 96], head_size=8)
    taps = reference.forward(config, weights, [1, 2, 3])
    assert taps["blk.0.attn_k"].shape == (3, 1, 8)
    assert taps["blk.1.attn_q"].shape == (3, 2, 8)
    assert taps["blk.1.ffn_act"].shape == (3, 96)


def test_attention_scale_of_the_file():
    config, weights = small_model(metadata={"llama.attention.scale": 0.125})
    taps = reference.forward(config, weights, [1, 2])
    q, k = taps["blk.0.attn_q_rope"], taps["blk.0.attn_k_rope"]
    assert taps["blk.0.attn_scores"][3, 1, 0] == pytest.approx(0.125 * q[1, 3] @ k[0, 1])


def test_a_tied_model_is_its_untied_copy():
    config, weights = small_model(tied=True)
    copy = weights | {"output.weight": weights["token_embd.weight"]}
    tied, untied = (reference.forward(config, w, [1, 2])["output"] for w in (weights, copy))
    assert np.array_equal(tied, untied)


def test_weights_may_be_objects_that_know_their_exact_value():
    config, weights = small_model(layers=1)

    class Exact:
        def __init__(self, array):
            self.array = array

        def numpy(self, dtype):
            assert dtype is np.float64
            return self.array.astype(dtype)

    objects = {name: Exact(array) for name, array in weights.items()}
    a, b = (reference.forward(config, w, [1, 2])["output"] for w in (weights, objects))
    assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("tokens", "positions", "error", "message"),
    [
        ([], None, ValueError, r"tokens has shape \(0,\)"),
        ([[1, 2]], None, ValueError, r"tokens has shape \(1, 2\)"),
        ([0.5], None, TypeError, "tokens has dtype float64"),
        ("text", None, ValueError, "tokens"),
        ([-1], None, IndexError, "tokens holds the id -1"),
        ([50], None, IndexError, "50"),
        ([1, 2], [0], ValueError, "positions has length 1; expected 2"),
        ([1], [0.0], TypeError, "positions has dtype float64"),
    ],
)
def test_bad_arguments_are_named(tokens, positions, error, message):
    config, weights = small_model(layers=1)
    with pytest.raises(error, match=message):
        reference.forward(config, weights, tokens, positions)


def test_what_is_missing_is_named():
    config, weights = small_model(layers=1)
    del weights["blk.0.ffn_up.weight"]
    with pytest.raises(ValueError, match=r"weights has no 'blk\.0\.ffn_up\.weight'"):
        reference.forward(config, weights, [1])
    with pytest.raises(ValueError, match=r"taps has no 'blk\.0\.attn_scores'"):
        reference.step(config, "blk.0.attn_probs", weights).run(weights, {})
    with pytest.raises(ValueError, match=r"name is 'blk\.1\.attn_q'"):
        reference.step(config, "blk.1.attn_q", weights)
    with pytest.raises(TypeError, match="weights is None"):
        reference.steps(config)
    config.architecture = "rwkv6"
    with pytest.raises(
        tinyllm.errors.UnsupportedError, match="is 'rwkv6'; it needs RWKV's recurrence"
    ):
        reference.forward(config, weights, [1])


def test_shapes_that_do_not_fit_name_the_step():
    config, weights = small_model(layers=1)
    weights["blk.0.attn_k.weight"] = weights["blk.0.attn_k.weight"][:, :-1]
    with pytest.raises(ValueError, match=r"matmul") as caught:
        reference.forward(config, weights, [1])
    assert "in step blk.0.attn_k" in caught.value.__notes__[0]


def test_examples_in_the_docstrings():
    result = doctest.testmod(reference.walk)
    assert result.attempted > 5
    assert result.failed == 0


# --- the random models of other tests ----------------------------------------------------------


@pytest.mark.parametrize("type_name", [*models.TYPES, *models.RARE_TYPES])
def test_random_models_have_weights_of_the_size_of_a_trained_one(type_name):
    metadata, tensors = models.random_llama(type_name)
    values = models.values(tensors)
    for name, weight in tensors.items():
        value = values[name]
        assert np.isfinite(value).all()
        assert np.array_equal(weight.numpy(), value)
        assert weight.type == ("F32" if value.ndim == 1 else type_name)
        if value.ndim == 2:
            std = 1.0 if name == "token_embd.weight" else value.shape[1] ** -0.5
            assert value.std() == pytest.approx(std, rel=0.15), name
            assert abs(value.mean()) < 0.1 * std, name
    config = models.reference_config(metadata, tensors)
    taps = reference.forward(config, tensors, np.arange(20))
    assert list(taps) == models.tap_names(2)
    assert 0.3 < taps["output"].std() < 3
    assert np.abs(taps["blk.1.attn_scores"][:, -1]).max() < 20


def test_random_models_mix_types():
    _, tensors = models.random_llama("Q4_K", types={"*.attn_v.weight": "Q6_K", "output*": "F16"})
    chosen = {name: weight.type for name, weight in tensors.items()}
    assert chosen["blk.1.attn_v.weight"] == "Q6_K"
    assert chosen["output.weight"] == "F16"
    assert chosen["blk.0.attn_q.weight"] == "Q4_K"
    assert chosen["output_norm.weight"] == "F32"
    assert tensors["blk.1.attn_v.weight"].raw.shape == (128, 210)
