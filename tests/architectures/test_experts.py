"""Mixtures of experts: the router, the experts and their sum."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, models
from tinyllm import _core, reference

pytestmark = pytest.mark.sanitize

FUSED = ("*ffn_gate_up_exps.weight",)
GROUPS = {"expert_group_count": 4, "expert_group_used_count": 2}


def load(tmp_path, metadata, tensors, **options):
    return tl.load(models.write(tmp_path / "m.gguf", metadata, tensors), **options)


def mixture(type_name="F32", *, experts=8, used=2, ffn=256, keys=None, parts=(), **options):
    """A random Mixtral, with more keys and tensors than it has."""
    given = {
        "expert_count": experts,
        "expert_used_count": used,
        "feed_forward_length": ffn,
        **(keys or {}),
    }
    return architectures.random_architecture(
        "llama",
        type_name,
        metadata={f"llama.{key}": value for key, value in given.items()},
        parts=("output.weight", *parts),
        **options,
    )


def same_as_the_reference(model, ids):
    want = reference.forward(model.steps, model.weights, ids)
    got = model.trace(ids, "*")
    assert list(got) == list(want)
    for name, array in want.items():
        assert models.normwise_error(got[name], array) < 2e-6, name
    return want


@pytest.mark.parametrize("type_name", models.TYPES)
def test_every_tap_of_every_type(type_name, tmp_path):
    model = load(tmp_path, *mixture(type_name))
    same_as_the_reference(model, models.random_ids(model, 40))


@pytest.mark.parametrize(
    "options",
    [
        {"used": 1},
        {"used": 8},
        {"experts": 1, "used": 1},
        {"experts": 5, "used": 3, "width": 80, "ffn": 24, "heads": 4},
        {"parts": FUSED},
        {"parts": (*FUSED, "*exps.bias", "*exps.scale")},
        {"parts": ("*exps.bias",)},
        {"parts": ("*exps.scale",), "type_name": "Q4_K"},
        {"type_name": "Q4_K", "types": {"*up_exps.weight": "Q6_K", "*down_exps.weight": "Q8_0"}},
        {"parts": ("*exp_probs_b.bias",)},
        {"keys": {"leading_dense_block_count": 1}},
        {"keys": {"expert_shared_feed_forward_length": 128}},
        {"keys": {"expert_shared_count": 2}},
        {"keys": {"expert_gating_func": 2}},
        {"keys": {"expert_gating_func": 3}},
        {"keys": {"expert_weights_norm": False}},
        {"keys": {"expert_weights_scale": 2.5}},
        {"keys": GROUPS, "parts": ("*exp_probs_b.bias",)},
    ],
)
def test_every_tap_of_every_kind(options, tmp_path):
    model = load(tmp_path, *mixture(**options))
    same_as_the_reference(model, models.random_ids(model, 40))


def test_the_text_part_of_qwen3vlmoe_is_qwen3moe(tmp_path):
    metadata, tensors = architectures.random_architecture("qwen3moe")
    ids = np.arange(20)
    want = load(tmp_path, metadata, tensors).logits(ids)
    renamed = {key.replace("qwen3moe.", "qwen3vlmoe."): v for key, v in metadata.items()}
    renamed["general.architecture"] = "qwen3vlmoe"
    (tmp_path / "vl").mkdir()
    with pytest.warns(UserWarning, match="qwen3vlmoe is experimental"):
        model = load(tmp_path / "vl", renamed, tensors)
    assert np.array_equal(model.logits(ids), want)


# ---- edits ----


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Four experts, of which two are used."""
    file = mixture(experts=4, used=2, width=64, ffn=32)
    return load(tmp_path_factory.mktemp("experts"), *file, threads=2)


IDS = [5, 9, 2, 6, 1]


def setting(tap, value, at=None):
    """An edit that sets a value, also one that is no number, which `tl.set` refuses."""
    values = np.array(value, np.float32)
    return tl.apply(tap, lambda x: np.broadcast_to(values, x.shape).copy(), at=at)


@pytest.mark.filterwarnings("ignore:.*(NaN|infinity|inf)")
@pytest.mark.parametrize(
    "value",
    [[4, 0], [-1, 0], [0.5, 1], [np.nan, 1], [np.inf, 1], [-np.inf, 1], [1, 1], [0, 3e38]],
)
@pytest.mark.parametrize("capture", [None, "*"])
def test_ids_that_are_no_experts(model, value, capture):
    tap = "blk.1.ffn_expert_ids"
    edit = setting(tap, value, at=3)
    with pytest.raises(
        ValueError, match=rf"edits\[0\].*{tap} becomes .* at token 3; expected 2 diff"
    ):
        model.trace(IDS, capture, edits=[edit])
    assert np.array_equal(model.logits(IDS), model.trace(IDS, "output")["output"])


@pytest.mark.parametrize("value", [4.0, -1.0, 0.5, np.nan, np.inf, -np.inf, 1.0])
def test_the_core_checks_ids_by_itself(model, value):
    steps = [step.tap for step in model.steps]
    number = steps.index("blk.0.ffn_expert_ids")

    def edit(step, array, piece):
        array[2] = [value, 1.0]

    session = _core.Session(model.core)
    tokens = (np.array(IDS, np.int32),)
    with pytest.raises(ValueError, match=rf"step {number} \(route_ids\).*token 2"):
        model.core.forward((session,), tokens, [4], edits=(number,), edit=edit)
    assert len(session) == 0


def test_chosen_experts_can_be_set(model):
    """Swapped ranks change nothing but the order of a sum; another expert changes the token."""
    trace = model.trace(IDS, "*")
    ids = trace["blk.0.ffn_expert_ids"]
    swap = tl.apply("blk.0.ffn_expert_ids", lambda x: x[:, ::-1].copy())
    swapped = model.trace(IDS, "*", edits=[swap])
    for name in ("ffn_gate_exps", "ffn_down_exps", "ffn_expert_weights"):
        want = trace[f"blk.0.{name}"][:, ::-1]
        assert models.normwise_error(swapped[f"blk.0.{name}"], want) < 1e-7
    error = models.normwise_error(swapped["output"], trace["output"])
    assert error < 1e-5
    others = np.array([[e for e in range(4) if e not in row] for row in ids], np.float32)
    changed = model.trace(IDS, "*", edits=[tl.set("blk.0.ffn_expert_ids", others)])
    assert models.normwise_error(changed["blk.0.ffn_moe"], trace["blk.0.ffn_moe"]) > 0.1
    weights = [model.weights[f"blk.0.ffn_{n}_exps.weight"].numpy() for n in ("gate", "up", "down")]
    x = np.asarray(changed["blk.0.ffn_norm"], np.float64)
    for t, row in enumerate(others.astype(int)):
        for rank, e in enumerate(row):
            gate, up, down = (w[e].astype(np.float64) for w in weights)
            g = gate @ x[t]
            want = down @ (g / (1 + np.exp(-g)) * (up @ x[t]))
            assert models.normwise_error(changed["blk.0.ffn_down_exps"][t, rank], want) < 1e-6


# ---- choices ----


def choice(model, values, tap="ffn_expert_probs"):
    """The ids of block 0 when the values that they are chosen by are set."""
    values = np.array(values, np.float32)
    edits = [setting(f"blk.0.{tap}", values)]
    return model.trace(IDS[: len(values)], "*", edits=edits)["blk.0.ffn_expert_ids"].tolist()


def test_ties_go_to_the_lower_id(model):
    assert choice(model, [[1, 1, 1, 1], [0, 2, 1, 2], [3, 2, 2, 1]]) == [[0, 1], [1, 3], [0, 1]]


@pytest.mark.filterwarnings("ignore:.*(NaN|infinity|inf)")
def test_without_numbers_the_ids_differ(model):
    nan, inf = np.nan, np.inf
    rows = [[nan] * 4, [nan, nan, 0, nan], [nan, -inf, nan, -inf], [inf, nan, inf, 1]]
    assert choice(model, rows) == [[0, 1], [2, 0], [0, 1], [0, 2]]
    trace = model.trace(IDS[:1], "*", edits=[setting("blk.0.ffn_gate_inp", nan)])
    assert trace["blk.0.ffn_expert_ids"].tolist() == [[0, 1]]
    assert np.isnan(trace["blk.0.ffn_expert_weights"]).all()
    assert np.isnan(trace["blk.0.ffn_moe"]).all()


def test_a_bias_takes_part_in_the_choice_only(tmp_path):
    metadata, tensors = mixture(experts=4, parts=("*exp_probs_b.bias",), layers=1)
    bias = np.array([0, 0, 5, 0], np.float32)
    tensors["blk.0.exp_probs_b.bias"] = bias
    model = load(tmp_path, metadata, tensors)
    trace = model.trace(IDS, "*")
    ids = trace["blk.0.ffn_expert_ids"].astype(int)
    assert (ids[:, 0] == 2).all()
    probs = np.take_along_axis(trace["blk.0.ffn_expert_probs"], ids, axis=1)
    want = probs / probs.astype(np.float64).sum(axis=1, keepdims=True)
    assert models.normwise_error(trace["blk.0.ffn_expert_weights"], want) < 1e-7


@pytest.mark.filterwarnings("ignore:.*(NaN|infinity|inf)")
def test_groups(tmp_path):
    """4 groups of 2: those with the best two sums, then the best 3 experts of these."""
    file = mixture(used=3, layers=1, keys=GROUPS)
    model = load(tmp_path, *file)
    rows = [
        [9, 0, 5, 5, 1, 1, 6, 2],  # sums 9, 10, 2, 8: the expert 6 is not chosen
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 2, 2, 1, 3, 0, 0, 3],  # equal sums: the first groups
        [np.nan, 9, 1, 1, 1, 1, 1, 1],  # NaN counts as -inf
    ]
    assert choice(model, rows) == [[0, 2, 3], [0, 1, 2], [1, 2, 0], [2, 3, 4]]


def test_small_weights_are_divided_by_their_sum(model):
    """llama.cpp raises the sum to 2^-14; Hugging Face divides by it, and so do we."""
    tiny = np.array([[3e-6, 1e-6, 0, 0]], np.float32)
    edits = [tl.set("blk.0.ffn_expert_probs", tiny)]
    trace = model.trace(IDS[:1], "*", edits=edits)
    assert np.allclose(trace["blk.0.ffn_expert_weights"], [[0.75, 0.25]], rtol=1e-6)


# ---- bits ----


@pytest.mark.parametrize("type_name", ["F32", "Q8_0", "Q4_K"])
@pytest.mark.parametrize("kind", ["usual", "one", "all", "rest"])
def test_bits(type_name, kind, tmp_path):
    """Threads, calls, batches and captures change no bit, however experts share the tokens."""
    options = {
        "usual": {"experts": 16, "used": 4},
        "one": {"used": 1},
        "all": {"experts": 3, "used": 3, "parts": ("*exps.bias",)},
        "rest": {
            "parts": (*FUSED, "*exps.bias", "*exps.scale"),
            "types": {"*down_exps.weight": "Q6_K"},
            "keys": {"expert_shared_feed_forward_length": 256},
        },
    }[kind]
    file = mixture(type_name, layers=1, **options)
    path = models.write(tmp_path / "m.gguf", *file)
    for mode in ("exact", "fast"):
        model = tl.load(path, threads=1, mode=mode)
        ids = models.random_ids(model, 600)
        want = model.trace(ids, "*")
        for threads in (2, 5):
            other = tl.load(path, threads=threads, mode=mode)
            assert np.array_equal(other.logits(ids), want["output"])
            session = other.session()
            for first, last in ((0, 1), (1, 3), (3, 16), (16, 40), (40, 600)):
                got = session.eval(ids[first:last], "all")
                assert np.array_equal(got, want["output"][first:last])
        cuts = [ids[:1], ids[:40], ids[:13]]
        traces = other.trace([list(map(int, cut)) for cut in cuts], "*")
        for cut, trace in zip(cuts, traces, strict=True):
            for name in ("ffn_gate_exps", "ffn_down_exps", "ffn_moe"):
                name = f"blk.0.{name}"
                assert np.array_equal(trace[name], want[name][: len(cut)]), name
        writes = [
            tl.apply(f"blk.0.{name}", lambda x: x) for name in ("ffn_expert_ids", "ffn_up_exps")
        ]
        edited = other.trace(ids, "output", edits=writes)
        assert np.array_equal(edited["output"], want["output"])
