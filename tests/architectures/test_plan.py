"""The plan of steps: what Python makes, and that the core checks all of it."""

import math
import re
import time

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, models
from tinyllm import _core
from tinyllm.architectures.plan import ForwardPlan
from tinyllm.architectures.table import ARCHITECTURES, read_model

pytestmark = pytest.mark.sanitize

SMALL = {"width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 40, "context": 64}
IDS = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.random_model(tmp_path_factory.mktemp("plan"), biases=True, **SMALL)


def make(model, steps, weights=None, **options):
    """A `_core.Model` of lowered steps."""
    given = {"layers": model.config.layers, "max_context": 64} | options
    return _core.Model(steps, model.weights.values() if weights is None else weights, **given)


def run(core, ids=IDS, **options):
    return core.forward((_core.Session(core),), (ids,), range(len(ids)), threads=2, **options)


def number_of(model):
    return {step.tap: i for i, step in enumerate(model.steps)}


def replaced(model, tap, op=None, layer=None, reads=None, weights=None, numbers=None):
    """The lowered steps with other parts of one; reads are names, numbers {place: value}."""
    steps, of = model.steps.lowered(), number_of(model)
    old = steps[of[tap]]
    if isinstance(numbers, dict):
        numbers = tuple(numbers.get(i, value) for i, value in enumerate(old[4]))
    if reads is not None:
        reads = tuple(of[r] if isinstance(r, str) else r for r in reads)
    new = (op, layer, reads, weights, numbers)
    steps[of[tap]] = tuple(b if a is None else a for a, b in zip(new, old, strict=True))
    return steps


def inserted(steps, at, *new):
    """The steps with others inserted before step `at`; later steps read the same values."""

    def moved(step):
        op, layer, reads, weights, numbers = step
        return op, layer, tuple(r + len(new) * (r >= at) for r in reads), weights, numbers

    return [*steps[:at], *new, *map(moved, steps[at:])]


# ---- shapes ----

SHAPES = {
    "plain": {},
    "biases": {"biases": True},
    "tied": {"tied": True},
    "layers_differ": {"heads": [4, 6], "kv_heads": [2, 3], "ffn": [48, 64], "head_size": 8},
    "values_differ_from_keys": {"head_size": 12, "value_size": 20},
    "one_head": {"heads": 1, "kv_heads": 1, "head_size": 2, "value_size": 1},
    "rope_factors": {"rope_freqs": [1, 2, 3, 4]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_core_derives_the_shapes_that_the_plan_states(shape, tmp_path):
    model = models.random_model(tmp_path, **SMALL | SHAPES[shape])
    stated = tuple(step.shape if step.visible else None for step in model.steps)
    assert model.core.shapes == stated
    trace = model.trace(IDS, "*")
    n = len(IDS)
    for step in model.steps:
        if step.visible:
            want = (*step.shape, n, n) if step.matrix else (n, *step.shape)
            assert trace[step.tap].shape == want, step.tap


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_runs_right(shape, tmp_path):
    model = models.random_model(tmp_path, **SMALL | SHAPES[shape])
    want = tl.reference.forward(model.steps, model.weights, IDS)
    got = model.trace(IDS, "*")
    for name, array in want.items():
        assert models.normwise_error(got[name], array) < 2e-6, name


# ---- hostile plans ----

NAN, INF = math.nan, math.inf
Q, K, V = "blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v"
CACHE, SCORES, PROBS, MIX = "blk.0.cache", "blk.0.attn_scores", "blk.0.attn_probs", "blk.0.attn_mix"
NORM, SCALE, ROPE = "blk.0.attn_norm", "blk.0.attn_norm_scale", "blk.0.attn_q_rope"
PRE, MID, ACT = "blk.0.resid_pre", "blk.0.resid_mid", "blk.0.ffn_act"
GATE, UP = "blk.0.ffn_gate", "blk.0.ffn_up"

WRONG = [
    (Q, {"op": "fold"}, "fold"),
    (Q, {"op": ""}, ""),
    # counts
    (Q, {"reads": ()}, "0 reads"),
    (Q, {"reads": (NORM, NORM)}, "2 reads"),
    (Q, {"weights": ("blk.0.attn_q.weight",)}, "1 weights"),
    (Q, {"numbers": (4.0,)}, "1 numbers"),
    (PRE, {"numbers": (4.0,)}, "1 numbers"),
    # reads of later steps
    (NORM, {"reads": (NORM, SCALE)}, "earlier"),
    (NORM, {"reads": (UP, SCALE)}, "earlier"),
    (NORM, {"reads": (10**6, SCALE)}, "earlier"),
    (NORM, {"reads": (2**64 - 1, SCALE)}, "earlier"),
    # values of the wrong kind
    ("blk.0.ffn_norm_scale", {"reads": (CACHE,)}, ""),
    ("blk.0.ffn_norm_scale", {"reads": (SCORES,)}, ""),
    ("blk.0.ffn_norm_scale", {"reads": (SCALE,)}, ""),
    ("blk.0.ffn_norm", {"reads": (CACHE, "blk.0.ffn_norm_scale")}, ""),
    ("blk.0.ffn_norm", {"reads": (MID, Q)}, ""),
    ("blk.1.resid_pre", {"reads": (PROBS,)}, ""),
    ("blk.0.attn_output", {"reads": (PROBS,)}, ""),
    ("blk.0.attn_output", {"reads": (CACHE,)}, ""),
    (ROPE, {"reads": (PRE,)}, ""),
    (CACHE, {"reads": (NORM, V)}, ""),
    (CACHE, {"reads": (K, Q)}, ""),
    (CACHE, {"reads": (K, SCALE)}, ""),
    (SCORES, {"reads": (ROPE, V)}, ""),
    (SCORES, {"reads": (NORM, CACHE)}, ""),
    (SCORES, {"reads": (CACHE, CACHE)}, ""),
    (PROBS, {"reads": (Q,)}, ""),
    (PROBS, {"reads": (CACHE,)}, ""),
    ("blk.1.attn_probs", {"reads": (SCORES,)}, ""),
    (MIX, {"reads": (SCORES, CACHE)}, ""),
    (MIX, {"reads": (PROBS, V)}, ""),
    ("blk.1.attn_mix", {"reads": ("blk.1.attn_probs", CACHE)}, ""),
    ("blk.1.attn_mix", {"reads": (PROBS, CACHE)}, ""),
    # shapes
    (MID, {"reads": (PRE, Q)}, ""),
    (MID, {"reads": (PRE, SCORES)}, ""),
    (MID, {"reads": (PRE, SCALE)}, ""),
    (ACT, {"reads": (GATE, MID)}, ""),
    # numbers
    ("token_embd", {"numbers": {0: NAN}}, "nan"),
    ("token_embd", {"numbers": {1: 0.0}}, ""),
    *((Q, {"numbers": {0: x}}, "") for x in (NAN, INF, -1.0, 0.5, 2.0**24 + 1, 1e300)),
    *((Q, {"numbers": {1: x}}, "") for x in (NAN, -INF, 0.0, -8.0, 7.5, 2.0**25)),
    *((SCALE, {"numbers": {0: x}}, "") for x in (NAN, INF, -1e-9, 1.0)),
    *((SCORES, {"numbers": {0: x}}, "") for x in (NAN, INF, 0.0, -1.0, 1e31)),
    *((ACT, {"numbers": {0: x}}, "") for x in (NAN, 11.0, 0.5, -1.0)),
    *((SCORES, {"numbers": {1: x}}, "") for x in (NAN, 5.0, 1.5, -1.0)),
    *((SCORES, {"numbers": {1: 1.0, 2: x}}, "") for x in (NAN, 0.0, 1.5, -1.0)),
    *((SCORES, {"numbers": {3: x}}, "") for x in (NAN, INF, -1.0)),
    *((Q, {"numbers": {2: x, 3: 40.0}}, "") for x in (NAN, 9.0, 0.5, -1.0)),
    *((SCALE, {"numbers": {i: x}}, "") for i in (1, 2) for x in (NAN, 2.0, 0.5, -1.0)),
    *((NORM, {"numbers": {0: x}}, "") for x in (NAN, 2.0, 0.5, -1.0)),
    *(("token_embd", {"numbers": {2: x}}, "") for x in (NAN, 3.0, 0.5, -1.0)),
    *((ROPE, {"numbers": {0: x}}, "layout") for x in (NAN, 2.0, 0.5, -1.0)),
    *((ROPE, {"numbers": {1: x}}, "") for x in (NAN, -2.0, 3.0, 10.0, 2.5, INF)),
    *((ROPE, {"numbers": {3: x}}, "scaling") for x in (NAN, 3.0, -1.0, 0.5)),
    *(
        (ROPE, {"numbers": {i: x}}, "")
        for i in (2, 4, 5, 6, 7, 8, 9)
        for x in (NAN, INF, 0.0, -1.0, 1e31)
    ),
    # weights that must be there
    ("token_embd", {"weights": (None,)}, ""),
    (Q, {"weights": (None, None, None)}, ""),
    ("output", {"weights": (None, None, None)}, ""),
]


@pytest.mark.parametrize(("tap", "change", "text"), WRONG)
def test_a_wrong_step_is_named(tap, change, text, model):
    step = number_of(model)[tap]
    with pytest.raises(ValueError, match=rf"step {step}\b") as caught:
        make(model, replaced(model, tap, **change))
    assert text in str(caught.value)
    assert not isinstance(caught.value, tl.FormatError)


def test_a_right_plan_is_taken(model):
    """The plans of the tests above are right apart from the one change."""
    core = make(model, model.steps.lowered())
    assert np.array_equal(run(core), model.logits(IDS))
    # numbers at their limits
    for place, value in ((1, 0.0), (2, 1.0), (2, 1e30), (2, 1e-300), (4, 1e30), (9, 1e30)):
        run(make(model, replaced(model, ROPE, numbers={place: value})))
    run(make(model, replaced(model, SCORES, numbers={0: 1e30})))


@pytest.mark.parametrize("layer", [-2, 1, 2, 3, 2**31 - 1])
def test_blocks_come_in_order(layer, model):
    step = number_of(model)[SCALE]
    wrong = step if layer in (-2, 3, 2**31 - 1) else step + 1
    with pytest.raises(ValueError, match=rf"step {wrong}\b.*layer"):
        make(model, replaced(model, SCALE, layer=layer))


@pytest.mark.parametrize(
    ("tap", "layer"), [("token_embd", 2), ("blk.1.attn_q_rope", 2), ("blk.1.cache", 2)]
)
def test_what_needs_the_context_is_not_after_the_blocks(tap, layer, model):
    steps, last = model.steps.lowered(), len(model.steps) - 1
    op, _, *rest = steps[number_of(model)[tap]]
    with pytest.raises(ValueError, match=rf"step {last} \({op}\)"):
        make(model, inserted(steps, last, (op, layer, *rest)))


def test_attention_is_not_after_the_blocks(model):
    steps, of = model.steps.lowered(), number_of(model)
    first, last = of[SCORES], len(steps) - 1
    three = [(op, 2, *rest) for op, _, *rest in steps[first : first + 3]]
    three[1] = ("softmax", 2, (last,), (None,), ())
    three[2] = ("mix", 2, (last + 1, of[CACHE]), (), ())
    with pytest.raises(ValueError, match=rf"step {last} \(scores\)"):
        make(model, inserted(steps, last, *three))


def test_scores_softmax_and_mix_stand_together(model):
    steps, of = model.steps.lowered(), number_of(model)
    at = of[SCORES]
    for extra, wrong in ((at + 1, at + 2), (at + 2, at + 3)):
        with pytest.raises(ValueError, match=rf"step {wrong}\b"):
            make(model, inserted(steps, extra, ("same", 0, (of[Q],), (), ())))
    # scores that no step reads, and scores that only their softmax reads
    with pytest.raises(ValueError, match=rf"step {at} \(scores\)"):
        make(model, inserted(steps, at, steps[at]))
    with pytest.raises(ValueError, match=rf"step {at} \(scores\)"):
        make(model, inserted(steps, at, steps[at], ("softmax", 0, (at,), (None,), ())))
    with pytest.raises(ValueError, match="last step"):
        make(model, [*steps, ("scores", 2, *steps[at][2:])])
    # in two blocks
    parts = [*steps[at : at + 2], ("mix", 1, *steps[at + 2][2:])]
    rest = [(op, max(layer, 1), *more) for op, layer, *more in steps[at + 3 :]]
    with pytest.raises(ValueError, match=rf"step {at} \(scores\)"):
        make(model, [*steps[:at], *parts, *rest])


def test_the_last_step_gives_the_logits(model):
    steps = model.steps.lowered()
    of = number_of(model)
    for wrong in (
        steps[: of["blk.1.resid_post"] + 1],  # in a block
        [*steps, ("norm_scale", 2, (len(steps) - 1,), (), (1e-5, 0.0, 1.0))],  # (T,)
        [*steps, ("same", 2, (of[Q],), (), ())],  # heads
    ):
        with pytest.raises(ValueError, match="last step"):
            make(model, wrong)
    with pytest.raises(ValueError, match="last step"):
        make(model, steps, layers=3)
    with pytest.raises(ValueError, match=r"step 0\b.*earlier"):
        make(model, [("same", -1, (0,), (), ())])


def test_few_steps_come_after_the_blocks(model):
    steps = model.steps.lowered()
    n = len(steps)
    long = [*steps, *(("same", 2, (n - 1 + i,), (), ()) for i in range(61))]
    assert len(make(model, long).shapes) == n + 61
    long.append(("same", 2, (n + 60,), (), ()))
    with pytest.raises(ValueError, match=r"64 steps|after the blocks"):
        make(model, long)


def test_a_plan_may_end_with_another_name_for_its_logits(model):
    # A step `same` that is not captured copies nothing, so its value was never written as logits.
    steps = model.steps.lowered()
    core = make(model, [*steps, ("same", 2, (len(steps) - 1,), (), ())])
    want = model.logits(IDS)
    for _ in range(3):
        assert np.array_equal(run(core), want)
        got = core.forward((_core.Session(core),), (IDS,), [2, 7], threads=1)
        assert np.array_equal(got, want[[2, 7]])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("token_embd.weight", (32, 40)),
        ("blk.0.attn_norm.weight", (31,)),
        ("blk.0.attn_norm.weight", (1, 32)),
        ("blk.0.attn_q.weight", (32, 33)),
        ("blk.0.attn_q.weight", (31, 32)),
        ("blk.0.attn_q.weight", (1024,)),
        ("blk.0.attn_q.weight", (1, 32, 32)),
        ("blk.1.attn_q.bias", (33,)),
        ("blk.1.ffn_down.weight", (48, 32)),
        ("output.weight", (39, 32)),
    ],
)
def test_a_misshapen_or_missing_tensor_is_named(name, shape, model):
    wrong = _core.Weight(name, shape, "F32", bytes(4 * math.prod(shape)))
    others = [weight for weight in model.weights.values() if weight.name != name]
    with pytest.raises(tl.FormatError, match=re.escape(name)) as caught:
        make(model, model.steps.lowered(), [*others, wrong])
    assert name in caught.value.field
    with pytest.raises(tl.FormatError, match=f"{re.escape(name)}.*missing"):
        make(model, model.steps.lowered(), others)


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "token_embd.weight", "output.weight"])
def test_a_tensor_of_integers_does_not_run(name, model):
    shape = model.weights[name].shape
    others = [weight for weight in model.weights.values() if weight.name != name]
    wrong = _core.Weight(name, shape, "I32", bytes(4 * math.prod(shape)))
    with pytest.raises(tl.UnsupportedError, match=re.escape(name)):
        make(model, model.steps.lowered(), [*others, wrong])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layers": 0}, "layers"),
        ({"layers": -1}, "layers"),
        ({"layers": 10**6}, "layers"),
        ({"max_context": 0}, "max_context"),
        ({"max_context": -5}, "max_context"),
        ({"max_context": 2**31}, "max_context"),
    ],
)
def test_options_out_of_range(options, text, model):
    with pytest.raises(ValueError, match=text):
        make(model, model.steps.lowered(), **options)


def test_the_memory_of_the_longest_context_is_known_at_once(model):
    # Two million chunks were planned one by one, which took seconds and held the GIL.
    core = make(model, model.steps.lowered(), max_context=2**30)
    begin = time.process_time()
    longest, shorter = (core.memory(2**n, 2) for n in (30, 29))
    assert time.process_time() - begin < 0.5
    assert longest[0] == 2 * shorter[0]
    assert core.memory(1025, 2)[1] > core.memory(1, 2)[1]
    with pytest.raises(ValueError, match="tokens"):
        core.memory(2**30 + 1, 2)
    with pytest.raises(ValueError, match="tokens"):
        core.memory(0, 2)
    with pytest.raises(ValueError, match="threads"):
        core.memory(1, 0)


STEP = ("same", 0, (0,), (), ())


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (list(STEP), TypeError),
        (STEP[:4], TypeError),
        ((*STEP, ()), TypeError),
        ((b"same", *STEP[1:]), TypeError),
        (("same\0", *STEP[1:]), ValueError),
        (("same", 2**40, *STEP[2:]), OverflowError),
        (("same", 0.5, *STEP[2:]), TypeError),
        (("same", 0, [0], (), ()), ValueError),
        (("same", 0, (0, 0, 0, 0), (), ()), ValueError),
        (("same", 0, (-1,), (), ()), OverflowError),
        (("same", 0, (2**70,), (), ()), OverflowError),
        (("same", 0, (0.0,), (), ()), TypeError),
        (("same", 0, ("token_embd",), (), ()), TypeError),
        (("same", 0, (0,), (7,), ()), TypeError),
        (("same", 0, (0,), ("a", "b", "c"), ()), ValueError),
        (("same", 0, (0,), ("\udc80",), ()), ValueError),
        (("same", 0, (0,), (), ("one",)), TypeError),
        (("same", 0, (0,), (), (0.0,) * 11), ValueError),
    ],
)
def test_what_is_no_step_at_all(step, error, model):
    steps = model.steps.lowered()
    with pytest.raises(error):
        make(model, [steps[0], step, *steps[1:]])


def test_what_is_no_list_of_steps_or_weights(model):
    steps = model.steps.lowered()
    for wrong in (None, 5, [None]):
        with pytest.raises(TypeError):
            make(model, wrong)
    with pytest.raises(ValueError, match="0 steps"):
        make(model, [])
    for wrong in ([None], ["blk.0.attn_q.weight"], 5):
        with pytest.raises(TypeError):
            make(model, steps, wrong)


# ---- captures and edits ----


@pytest.mark.parametrize("step", ["cache", -1, 10**6, 2**70])
def test_a_step_without_a_value_is_not_captured_or_edited(step, model):
    step = number_of(model)[CACHE] if step == "cache" else step
    error = OverflowError if step == 2**70 else ValueError
    with pytest.raises(error):
        run(model.core, captures=(((step,), -1, np.empty((8, 32), np.float32)),))
    with pytest.raises(error):
        run(model.core, edits=(step,), edit=lambda *_: None)


@pytest.mark.parametrize(
    ("taps", "piece", "size"),
    [
        ((Q,), -1, 8 * 32 - 1),
        ((Q,), -1, 8 * 32 + 1),
        ((Q,), -1, 0),
        ((Q, K), -1, 8 * 32),
        ((Q, K), -1, 8 * (32 + 16) + 1),
        ((), -1, 0),
        ((SCORES,), 0, 4 * 8 * 8 - 1),
        ((SCORES,), 0, 4 * 8 * 9),
        ((SCORES, PROBS), 0, 4 * 8 * 8),
    ],
)
def test_captures_of_another_size(taps, piece, size, model):
    steps = tuple(number_of(model)[tap] for tap in taps)
    with pytest.raises(ValueError, match=r"captures\[0\]"):
        run(model.core, captures=((steps, piece, np.empty(size, np.float32)),))


@pytest.mark.parametrize(("tap", "piece"), [(Q, 0), (SCORES, -1), (SCORES, 1), (Q, 1)])
def test_captures_of_another_piece(tap, piece, model):
    array = np.empty(4 * 8 * 8, np.float32)
    with pytest.raises(ValueError, match=r"captures\[0\].*piece"):
        run(model.core, captures=(((number_of(model)[tap],), piece, array),))


@pytest.mark.parametrize(
    "array",
    [np.empty((8, 32)), np.empty((8, 64), np.float32)[:, ::2], [0.0] * 256, None, bytes(1024)],
)
def test_captures_go_to_writable_float32_arrays(array, model):
    with pytest.raises((TypeError, ValueError)):
        run(model.core, captures=(((number_of(model)[Q],), -1, array),))
    read_only = np.zeros((8, 32), np.float32)
    read_only.flags.writeable = False
    with pytest.raises((TypeError, ValueError)):
        run(model.core, captures=(((number_of(model)[Q],), -1, read_only),))


def test_scores_and_logits_are_edited_where_they_are_captured(model):
    of = number_of(model)
    scores, probs = (((of[tap],), 0, np.empty((4, 8, 8), np.float32)) for tap in (SCORES, PROBS))
    logits = ((of["output"],), -1, np.empty((8, 40), np.float32))
    seen = []

    def edit(step, array, piece):
        seen.append((step, array.shape, piece))

    for tap, captures in (
        (SCORES, ()),
        (SCORES, (scores,)),
        (SCORES, (probs,)),
        (PROBS, (probs,)),
        (PROBS, (scores,)),
        ("output", (scores, probs)),
    ):
        with pytest.raises(ValueError, match=r"edits\[0\]"):
            run(model.core, captures=captures, edits=(of[tap],), edit=edit)
    assert not seen
    order = (of["output"], of[PROBS], of[SCORES])
    got = run(model.core, captures=(scores, probs, logits), edits=order, edit=edit)
    assert np.array_equal(got, model.logits(IDS))
    assert seen == [
        (of[SCORES], (4, 8, 8), 0),
        (of[PROBS], (4, 8, 8), 0),
        (of["output"], (8, 40), -1),
    ]


def test_a_call_that_is_refused_leaves_the_session_alone(model):
    core, want = model.core, model.logits(IDS)
    session = _core.Session(core)
    core.forward((session,), (IDS[:3],), [], threads=1)
    wrong = (
        {"captures": (((0,), -1, np.empty(1, np.float32)),)},
        {"edits": (number_of(model)[SCORES],), "edit": print},
        {"first_layer": 1},
        {"first_layer": 3, "resid": np.zeros((5, 32), np.float32)},
        {"first_layer": 1, "resid": np.zeros((5, 31), np.float32)},
    )
    for options in wrong:
        with pytest.raises(ValueError):  # noqa: PT011
            core.forward((session,), (IDS[3:],), [0], threads=1, **options)
    got = core.forward((session,), (IDS[3:],), range(5), threads=1)
    assert np.array_equal(got, want[3:])


def test_a_call_begins_only_where_the_stream_is_all_that_is_read(model):
    # block 1 reads a value of block 0 besides the stream
    steps = replaced(model, "blk.1.resid_mid", reads=(MID, "blk.1.attn_output"))
    core = make(model, steps)
    stream = np.zeros((8, 32), np.float32)
    run(core, first_layer=2, resid=stream)
    run(core, first_layer=0, resid=stream)
    with pytest.raises(ValueError, match="layer 1"):
        run(core, first_layer=1, resid=stream)
    # or attends to its keys
    steps = replaced(model, "blk.1.attn_scores", reads=("blk.1.attn_q_rope", CACHE))
    at = number_of(model)["blk.1.attn_mix"]
    steps[at] = ("mix", 1, (at - 1, number_of(model)[CACHE]), (), ())
    with pytest.raises(ValueError, match="layer 1"):
        run(make(model, steps), first_layer=1, resid=stream)


# ---- ForwardPlan ----


def test_steps_by_number_name_and_slice(model):
    steps = model.steps
    assert steps[0].tap == "token_embd"
    assert steps[-1] is steps["output"]
    assert steps["blk.1.attn_q"].layer == 1
    assert [step.tap for step in steps[1:3]] == [PRE, SCALE]
    assert isinstance(steps[1:3], ForwardPlan)
    assert isinstance(steps[::-1], ForwardPlan)
    assert len(steps[5:5]) == 0
    assert list(steps) == [steps[i] for i in range(len(steps))]
    assert [step.tap for step in steps if step.visible] == models.tap_names(2)
    with pytest.raises(KeyError, match=r"blk\.9\.attn_q"):
        steps["blk.9.attn_q"]
    with pytest.raises(IndexError):
        steps[len(steps)]
    assert "84" not in repr(steps[:3])
    assert str(len(steps)) in repr(steps)


def test_a_step_knows_its_family_and_numbers(model):
    step = model.steps["blk.1.attn_q"]
    assert (step.family, model.steps["output"].family) == ("attn_q", "output")
    assert (step.number("heads"), step.number("size")) == (4, 8)
    assert not model.steps[CACHE].visible


def test_roles(model):
    steps = model.steps
    assert steps.role("attn_add", 1) == "blk.1.attn_output"
    assert steps.role("logits") == "output"
    assert steps.role("embedding") == "token_embd"
    assert steps.roles("resid_post") == ["blk.0.resid_post", "blk.1.resid_post"]
    assert steps.roles("nothing") == []
    for role, layer in (("nothing", None), ("attn_add", None), ("attn_add", 2), ("logits", 0)):
        with pytest.raises(ValueError, match=role):
            steps.role(role, layer)


def test_the_table_says_where_numbers_come_from(model, tmp_path):
    text = str(model.steps)
    assert text == str(model.steps.table())
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert len(lines) == len(model.steps) + 1
    assert "(llama.attention.head_count)" in lines[Q]
    assert "(llama.attention.head_count_kv)" in lines[K]
    assert "(row: pairs)" in lines[ROPE]
    assert "(rule: 1/sqrt(head size))" in lines[SCORES]
    assert "(rows of token_embd.weight)" in lines["output"]
    assert "attn_q.weight attn_q.bias" in lines[Q]
    assert "(4, T, S)" in lines[SCORES]
    assert "(T, 4, 8)" in lines[Q]
    for unused in ("beta_fast", "ext_factor", "heads 0", "factor 1 "):
        assert unused not in lines[ROPE] + lines["output"]
    scaling = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    scaling["llama.rope.scaling.yarn_beta_fast"] = 16.0
    halves = {key.replace("llama", "qwen2"): value for key, value in scaling.items()}
    qwen2 = models.random_model(tmp_path, architecture="qwen2", metadata=halves, **SMALL)
    line = next(line for line in str(qwen2.steps).splitlines() if line.startswith(ROPE))
    assert "(row: halves)" in line
    assert "beta_fast 16 (qwen2.rope.scaling.yarn_beta_fast)" in line
    assert "beta_slow 1 (rule)" in line


def test_the_plan_as_html(model):
    page = model.steps._repr_html_()
    assert page.count("<tr") == len(model.steps) + 1
    assert "blk.1.attn_probs" in page
    assert "&lt;tinyllm.ForwardPlan" in page


def test_attention_reads_the_cache(model):
    lowered, of = model.steps.lowered(), number_of(model)
    for i in range(2):
        cache = of[f"blk.{i}.cache"]
        assert lowered[cache][2] == (of[f"blk.{i}.attn_k_rope"], of[f"blk.{i}.attn_v"])
        assert lowered[of[f"blk.{i}.attn_scores"]][2] == (of[f"blk.{i}.attn_q_rope"], cache)
        assert lowered[of[f"blk.{i}.attn_mix"]][2] == (of[f"blk.{i}.attn_probs"], cache)
    # what Python shows is what attention means
    assert model.steps[SCORES].reads == (ROPE, "blk.0.attn_k_rope")
    assert model.steps[MIX].reads == (PROBS, V)
    assert model.steps["token_embd"].reads == ("tokens",)
    assert lowered[0][2] == ()
    assert [step.tap for step in model.steps.caches] == ["blk.0.cache", "blk.1.cache"]


# ---- tensors that no step uses ----

EXTRA = {
    "blk.0.attn_q_norm.weight": (8,),
    "blk.1.attn_q.biass": (32,),
    "blk.0.post_attention_norm.weight": (32,),
    "position_embd.weight": (64, 32),
    "blk.1.ffn_gate_inp.weight": (4, 32),
    "blk.2.attn_q.weight": (32, 32),
}


def with_extra(tmp_path, names, **options):
    metadata, tensors = models.random_llama(**SMALL, **options)
    for name, shape in names.items():
        tensors[name] = np.zeros(shape, np.float32)
    return models.write(tmp_path / "extra.gguf", metadata, tensors)


@pytest.mark.parametrize("name", EXTRA)
def test_a_tensor_that_no_step_uses_is_refused(name, tmp_path):
    path = with_extra(tmp_path, {name: EXTRA[name]})
    with pytest.raises(tl.UnsupportedError, match=re.escape(name)):
        tl.load(path)
    with pytest.warns(UserWarning, match=re.escape(name)):
        model = tl.load(path, strict=False)
    assert np.array_equal(model.logits(IDS), models.random_model(tmp_path, **SMALL).logits(IDS))


def test_all_that_are_left_over_are_listed(tmp_path):
    path = with_extra(tmp_path, EXTRA)
    with pytest.raises(tl.UnsupportedError) as caught:
        tl.load(path)
    assert sum(name in str(caught.value) for name in EXTRA) == 5
    assert "1 more" in str(caught.value)


def test_tensors_that_change_nothing_load_in_silence(tmp_path):
    harmless = {
        "blk.0.attn_rot_embd": (4,),
        "blk.1.attn_q.input_scale": (1,),
        "blk.2.nextn.eh_proj.weight": (32, 64),
    }
    model = tl.load(with_extra(tmp_path, harmless))
    assert np.array_equal(model.logits(IDS), models.random_model(tmp_path, **SMALL).logits(IDS))


def test_a_bias_without_its_step_is_refused(tmp_path):
    # the output matrix is the embedding, which has no bias of the output
    path = with_extra(tmp_path, {"output.bias": (40,)}, tied=True)
    with pytest.raises(tl.UnsupportedError, match=r"output\.bias"):
        tl.load(path)


@pytest.mark.parametrize(
    ("architecture", "tap"),
    [(name, tap) for name, row in ARCHITECTURES.items() for tap in row.biases],
)
def test_a_bias_that_the_architecture_requires(architecture, tap, tmp_path):
    options = {"parts": (f"*.{tap}.*",)} if tap in ARCHITECTURES[architecture].optional else {}
    metadata, tensors = architectures.random_architecture(architecture, **options)
    names = (f"blk.1.{tap}.bias", f"{tap}.bias", "blk.1.attn_qkv.bias")  # one matrix for all three
    name = next(name for name in names if name in tensors)
    del tensors[name]
    with pytest.raises(tl.FormatError, match=rf"{re.escape(name)}.*missing"):
        tl.load(models.write(tmp_path / "m.gguf", metadata, tensors))


def test_what_the_number_of_experts_says_about_llama4():
    """Maverick, which has 128, has no norms of queries and keys; Scout has."""
    for count in (16, 128):
        keys = {"llama4.expert_count": count}
        metadata, tensors = architectures.random_architecture(
            "llama4", metadata=keys, width=64, ffn=64, layers=4
        )
        _, plan = read_model(metadata, tensors)
        assert ("blk.0.attn_q_norm" in [step.tap for step in plan]) == (count == 16)
        assert "blk.3.attn_q_norm" not in [step.tap for step in plan]  # it has no RoPE


# ---- random changes ----

NUMBERS = (NAN, INF, -INF, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 1e30, 1e31, 1e300, 1e-300, 2.0**24 + 1)


def mutate(random, steps, names, ops):
    """One small change of lowered steps, in place."""

    def any_of(items):
        return items[random.integers(len(items))]

    def changed(items, value):
        place = random.integers(len(items)) if items else 0
        return (*items[:place], value, *items[place + 1 :])

    at = int(random.integers(len(steps)))
    op, layer, reads, weights, numbers = steps[at]
    alike = any_of([step for step in steps if step[0] == op])  # possibly of another block
    kind = random.integers(10)
    if kind == 0:
        op = any_of([*ops, "conv"])
    elif kind == 1:
        layer += int(random.integers(-1, 2))
    elif kind == 2:
        reads = changed(reads, int(random.integers(max(0, at - 20), at + 2)))
    elif kind == 3:
        reads = alike[2]
    elif kind == 4:
        weights = changed(weights, any_of([*names, None, "nobody"]))
    elif kind == 5:
        weights = alike[3]
    elif kind in (6, 7):
        numbers = changed(numbers, any_of([*NUMBERS, *numbers]))
    elif kind == 8:
        steps[:] = inserted(steps, at + 1, ("same", layer, (at,), (), ()))
        return
    else:
        del steps[at]
        return
    steps[at] = op, layer, reads, weights, numbers


def test_random_changes_are_refused_or_run():
    """Whatever plan is accepted runs, and its bits depend on nothing but the tokens."""
    model = tl.load(threads=1)
    lowered, names = model.steps.lowered(), list(model.weights)
    ops = sorted({step[0] for step in lowered})
    layers, random, accepted = model.config.layers, np.random.default_rng(11), 0
    for _ in range(400):
        steps = list(lowered)
        for _ in range(random.integers(1, 3)):
            mutate(random, steps, names, ops)
        try:
            core = make(model, steps, fast=bool(random.integers(2)))
        except (ValueError, NotImplementedError):
            continue
        accepted += 1
        assert core.config["layers"] == layers
        rows = [i for i, step in enumerate(steps) if step[0] not in ("cache", "scores", "softmax")]
        captures = tuple(
            ((i,), -1, np.empty((8, *core.shapes[i]), np.float32))
            for i in rows
            if random.integers(4) == 0
        )
        edits = tuple(i for i in rows[:-1] if random.integers(8) == 0)
        want = run(core)
        got = run(core, captures=captures, edits=edits, edit=lambda *_: None)
        assert np.array_equal(got, want, equal_nan=True)
        session = _core.Session(core)
        parts = [core.forward((session,), (IDS[i : i + 3],), [0], threads=1) for i in (0, 3, 6)]
        assert np.array_equal(np.concatenate(parts), want[::3], equal_nan=True)
    assert 60 < accepted < 340
