"""Latent attention: files of both kinds, the limits of an indexer, and what the core refuses."""

import re

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, data, hf, models
from tinyllm import _core, reference

pytestmark = pytest.mark.sanitize


def expanded(metadata, tensors):
    """A file as it was before the matrix of keys and values was split in two."""
    prefix = f"{metadata['general.architecture']}.attention."
    for kind in ("key", "value"):
        metadata[f"{prefix}{kind}_length"] = metadata.pop(f"{prefix}{kind}_length_mla")
    metadata[f"{prefix}head_count_kv"] = metadata[f"{prefix}head_count"]
    for name in [name for name in tensors if name.endswith("attn_k_b.weight")]:
        keys = np.asarray(tensors.pop(name)).swapaxes(1, 2)
        values = np.asarray(tensors.pop(name.replace("attn_k_b", "attn_v_b")))
        both = np.concatenate([keys, values], axis=1)
        tensors[name.replace("attn_k_b", "attn_kv_b")] = both.reshape(-1, both.shape[-1])
    return metadata, tensors


def test_a_file_with_one_matrix_for_keys_and_values(tmp_path):
    directory = data.path("hf", "deepseek_v3")
    ids, logits, _ = hf.load_golden(directory)
    file = expanded(*hf.load_checkpoint(directory))
    model = tl.load(models.write(tmp_path / "m.gguf", *file))
    assert "blk.0.attn_kv_b" in [step.tap for step in model.steps]
    assert models.normwise_error(model.logits(ids), logits) < 1e-5
    split = tl.load(models.write(tmp_path / "n.gguf", *hf.load_checkpoint(directory)))
    assert model.memory(50).cache > split.memory(50).cache


def test_heads_have_matrices_of_their_own(tmp_path):
    """A change of the matrix of head 1 reaches head 1 alone."""
    metadata, tensors = architectures.random_architecture("deepseek2")
    clean = tl.load(models.write(tmp_path / "a.gguf", metadata, tensors))
    name = "blk.0.attn_v_b"
    values = tensors[f"{name}.weight"].numpy().copy()
    values[1] *= 2
    tensors[f"{name}.weight"] = values
    changed = tl.load(models.write(tmp_path / "b.gguf", metadata, tensors))
    one, other = (m.trace([1, 2, 3], name)[name] for m in (clean, changed))
    assert [h for h in range(4) if (one[:, h] != other[:, h]).any()] == [1]
    assert np.array_equal(other[:, 1], 2 * one[:, 1])


def test_longer_contexts_than_an_indexer_chooses(tmp_path):
    metadata, tensors = architectures.random_architecture("glm-dsa")
    metadata["glm-dsa.attention.indexer.top_k"] = 512
    path = models.write(tmp_path / "m.gguf", metadata, tensors)
    message = "top_k is 512, and the model is loaded for a context of 2048 .* max_context=512 or"
    with pytest.raises(tl.UnsupportedError, match=message):
        tl.load(path)
    model = tl.load(path, max_context=512)
    assert model.logits([1, 2, 3]).shape == (3, 320)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention.kv_lora_rank": None}, r"attention\.kv_lora_rank is missing"),
        ({"attention.key_length_mla": 16}, r"rope\.dimension_count is 16; expected less than 16"),
        ({"attention.kv_lora_rank": 128}, r"attn_kv_a_mqa\.weight' is 272, 256; expected 144, 256"),
        ({"attention.value_length_mla": 32}, r"attn_v_b\.weight' is 4, 64, 256; expected 4, 32,"),
    ],
)
def test_wrong_keys(changes, message, tmp_path):
    metadata, tensors = architectures.random_architecture("deepseek2")
    for key, value in changes.items():
        metadata[f"deepseek2.{key}"] = value
        if value is None:
            del metadata[f"deepseek2.{key}"]
    with pytest.raises(tl.FormatError, match=message):
        tl.load(models.write(tmp_path / "m.gguf", metadata, tensors))


# --- plans that the core refuses ----------------------------------------------------------------

CASES = [
    ("deepseek2", "attn_queries", {"reads": ("attn_q_rope", "attn_k_pe")}, None),
    ("deepseek2", "attn_queries", {"reads": ("attn_norm", "attn_q_rope")}, "too few axes"),
    ("deepseek2", "attn_keys", {"reads": ("attn_k_rope", "attn_q_rope")}, r"expected \(H, n\), an"),
    ("deepseek2", "attn_k_b", {"reads": ("attn_norm",)}, "too few axes"),
    ("deepseek2", "attn_k_b", {"numbers": (257.0, 0.0, 256.0)}, "257 rows from 0 on; expected at"),
    ("deepseek2", "attn_k_b", {"numbers": (256.0, 0.0, 300.0)}, "is 4, 256, 64; expected 4, 300"),
    (
        "bloom",
        "attn_scores",
        {"numbers": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)},
        "number 4 is -1; expected 0",
    ),
    ("apertus", "ffn_act", {"numbers": (1.0, 1.0, 1.0, np.nan)}, "number 3 is nan; expected"),
    ("laguna", "attn_gate_softplus", {"weights": ("output_norm.weight",)}, "is 256; expected 4"),
    ("phimoe", "ffn_expert_weights", {"numbers": (0.0, 1.5, 1.0)}, "not a whole number"),
    ("phimoe", "ffn_expert_weights", {"numbers": (0.0, 3.0, 1.0)}, "number 1 is 3; expected 0 to"),
    ("mamba2", "ssm_mix", {"weights": ("output_norm.weight",)}, "is 256; expected 8"),
    ("mamba2", "ssm_mix", {"reads": {0: "ssm_gate"}}, r"expected x \(H, P\)"),
    ("mamba2", "ssm_mix", {"reads": {1: "ssm_b"}}, "expected one per head"),
    ("mamba2", "ssm_mix", {"reads": {2: "ssm_values"}}, "do not match; expected x"),
    ("mamba", "ssm_mix", {"reads": {1: "attn_norm_scale"}}, "too few axes"),
    ("mamba", "ssm_mix", {"reads": {2: "ssm_gate"}}, r"expected x and dt \(n\), B and C \(N\)"),
    ("mamba", "ssm_mix", {"weights": (None, None)}, "its weight is None"),
    ("gemma3n", "altup_mixed", {"reads": {0: "resid_pre"}}, "too few axes"),
    ("gemma3n", "altup_mixed", {"reads": {1: "altup_predict_norm_scale"}}, "too few axes"),
    ("gemma3n", "altup_mixed", {"reads": {1: "altup_predict"}}, "do not match|differ in shape"),
    ("gemma3n", "altup_shared", {"reads": {1: "altup_predict"}}, r"expected \(n, D\) and \(D\)"),
    ("gemma3n", "ffn_gate_sparse", {"reads": {1: "attn_norm"}}, "expected one for each vector"),
    ("gemma3n", "ffn_gate_sparse", {"numbers": (np.nan,)}, "number 0 is nan"),
    ("t5encoder", "attn_scores", {"numbers": (1, 4, 0, 0, 0, 30)}, "no multiple of 4, or too many"),
    ("t5encoder", "attn_scores", {"numbers": (1, 4, 0, 0, 0, 2048)}, "or too many"),
    ("t5encoder", "attn_scores", {"numbers": (1, 4, 0, 0, 0, 64)}, "is 32, 4; expected 64, 4"),
    ("t5encoder", "attn_scores", {"weights": (None,)}, "its weight is None"),
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = architectures.random_model(tmp_path_factory.mktemp("core"), name)
        return made[name]

    return get


@pytest.mark.parametrize(("name", "tap", "changes", "message"), CASES)
def test_what_the_core_refuses(name, tap, changes, message, loaded):
    model = loaded(name)
    steps = model.steps.lowered()
    of = {step.tap: i for i, step in enumerate(model.steps)}
    at = of[f"blk.0.{tap}"]
    op, layer, reads, weights, numbers = steps[at]
    given = changes.get("reads", {})
    given = given if isinstance(given, dict) else dict(enumerate(given))
    reads = tuple(of[f"blk.0.{given[i]}"] if i in given else r for i, r in enumerate(reads))
    weights, numbers = changes.get("weights", weights), changes.get("numbers", numbers)
    steps[at] = op, layer, reads, weights, numbers

    def load():
        options = {"layers": model.config.layers, "max_context": 64}
        return _core.Model(steps, model.weights.values(), **options)

    if message is None:  # the change is of the sizes of later steps
        message = "do not match|does not match"
    with pytest.raises((ValueError, tl.FormatError), match=re.compile(message)):
        load()


@pytest.mark.parametrize(
    "name", ["deepseek2", "mamba", "mamba2", "bloom", "laguna", "phimoe", "gemma3n"]
)
def test_random_changes_are_refused_or_run(name, loaded):
    """Whatever plan is accepted runs, and gives the same bits again."""
    model = loaded(name)
    lowered, names = model.steps.lowered(), list(model.weights)
    random, accepted = np.random.default_rng(5), 0
    values = (np.nan, np.inf, -1.0, 0.0, 0.5, 1.0, 2.0, 7.0, 1e30, 2.0**24 + 1)
    ids = np.array([3, 1, 4], np.int32)
    for _ in range(150):
        steps = list(lowered)
        at = int(random.integers(len(steps)))
        op, layer, reads, weights, numbers = steps[at]
        kind, place = random.integers(3), int(random.integers(5))
        if kind == 0 and reads:
            near = int(random.integers(max(0, at - 25), at + 1))
            reads = tuple(near if i == place % len(reads) else r for i, r in enumerate(reads))
        elif kind == 1 and numbers:
            value = values[random.integers(len(values))]
            numbers = tuple(
                value if i == place % len(numbers) else n for i, n in enumerate(numbers)
            )
        elif weights:
            value = [*names, None][random.integers(len(names) + 1)]
            weights = tuple(
                value if i == place % len(weights) else w for i, w in enumerate(weights)
            )
        steps[at] = op, layer, reads, weights, numbers
        options = {"layers": model.config.layers, "max_context": 64}
        try:
            core = _core.Model(steps, model.weights.values(), **options)
        except (ValueError, NotImplementedError):
            continue
        accepted += 1
        try:
            runs = [
                core.forward((_core.Session(core),), (ids,), range(3), threads=t) for t in (1, 2)
            ]
        except ValueError:  # ids that are no experts
            assert name in ("phimoe", "deepseek2", "laguna")
            continue
        assert np.array_equal(*runs, equal_nan=True)
    assert accepted > 5


def test_a_model_with_several_streams_has_no_logit_lens(loaded):
    model = loaded("gemma3n")
    trace = model.trace([1, 2, 3])
    with pytest.raises(ValueError, match="is a gemma3n, whose logits are made from more than"):
        tl.lens(trace)
    with pytest.raises(ValueError, match="cannot start at layer 2"):
        model.run_from(2, trace["blk.2.resid_pre"])
    assert "blk.0.resid_post" in str(trace.table())


def test_buckets_of_distances():
    """The table of the paper's authors: 16 buckets on each side, 8 of them of one distance."""
    near = np.arange(-8, 9)
    assert reference.ops.relative_buckets(near, 32, later=True).tolist() == [
        *range(8, 0, -1),
        0,
        *range(17, 25),
    ]
    far = np.array([11, 12, 15, 16, 31, 32, 63, 64, 90, 91, 127, 128, 10**6])
    want = [8, 9, 9, 10, 11, 12, 13, 14, 14, 15, 15, 15, 15]
    assert reference.ops.relative_buckets(-far, 32, later=True).tolist() == want
    assert reference.ops.relative_buckets(far, 32, later=True).tolist() == [16 + b for b in want]


def test_distances_beyond_the_last_bucket(tmp_path):
    """300 tokens, so that most distances are in buckets that others share."""
    model = architectures.random_model(tmp_path, "t5encoder", width=64, ffn=64, vocab=50)
    ids = models.random_ids(model, 300)
    name = "blk.1.attn_scores"
    want = reference.forward(model.steps, model.weights, ids)[name]
    assert models.normwise_error(model.trace(ids, name)[name], want) < 5e-6
