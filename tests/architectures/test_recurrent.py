"""Blocks with a state: LFM2's short convolutions, and the gated delta nets of Qwen 3.5."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import every_split, models, recurrent
from testkit.exact_arithmetic import fma32
from tinyllm import reference

pytestmark = pytest.mark.sanitize

SHAPES = {
    "lfm2": {},
    "qwen35": {},
    "qwen35 with wide heads": {"state_size": 80, "key_heads": 1, "value_heads": 3, "taps": 2},
    "lfm2 with 7 taps": {"taps": 7, "width": 36},
}


@pytest.fixture(scope="module", params=SHAPES)
def model(request, tmp_path_factory):
    name, shape = request.param.split()[0], SHAPES[request.param]
    path = tmp_path_factory.mktemp("recurrent") / "m.gguf"
    return tl.load(models.write(path, *recurrent.random_model(name, **shape)), threads=2)


@pytest.fixture(scope="module")
def long(model):
    """600 tokens, and their logits in one call."""
    ids = models.random_ids(model, 600)
    return ids, model.logits(ids)


def test_every_tap_is_that_of_the_reference(model):
    ids = models.random_ids(model, 70)
    want = reference.forward(model.steps, model.weights, ids)
    got = model.trace(ids, "*")
    assert list(got) == list(want)
    for name, array in want.items():
        assert models.normwise_error(got[name], array) < 5e-6, name


def chain(pairs):
    """Return the sum of products as a chain of fma from +0."""
    sum_ = np.float32(0)
    for a, b in pairs:
        sum_ = fma32(a, b, sum_)
    return np.float32(sum_)


def test_the_bits_of_the_convolution(tmp_path):
    metadata, tensors = recurrent.random_model("lfm2", layers=1, width=24, taps=3)
    model = tl.load(models.write(tmp_path / "m.gguf", metadata, tensors))
    trace = model.trace([1, 2, 3, 4, 5], "*")
    x, y = trace["blk.0.shortconv.bx"], trace["blk.0.shortconv.conv"]
    weights = tensors["blk.0.shortconv.conv.weight"]
    bias = tensors["blk.0.shortconv.conv.bias"]
    before = np.concatenate([np.zeros((2, 24), np.float32), x])
    for t in range(5):
        for c in range(24):
            want = chain((weights[c, j], before[t + j, c]) for j in range(3)) + bias[c]
            assert y[t, c] == want


def test_the_bits_of_the_delta_rule(tmp_path):
    shape = {"layers": 1, "key_heads": 1, "value_heads": 2, "state_size": 5}
    metadata, tensors = recurrent.random_model("qwen35", **shape)
    model = tl.load(models.write(tmp_path / "m.gguf", metadata, tensors))
    trace = model.trace([1, 2, 3, 4], "blk.0.ssm_*")
    names = ("q_norm", "k_norm", "v", "decay", "beta_sigmoid", "mix", "alpha")
    q, k, v, decay, beta, mix, alpha = (trace[f"blk.0.ssm_{name}"] for name in names)
    t = alpha.astype(np.float64) + tensors["blk.0.ssm_dt.bias"]
    softplus = np.maximum(t, 0) + np.log(1 + np.exp(-abs(t)))
    assert np.array_equal(decay, np.exp(tensors["blk.0.ssm_a"] * softplus).astype(np.float32))
    factor = np.float32(1 / np.sqrt(5))
    for head in range(2):
        state = np.zeros((5, 5), np.float32)
        for i in range(4):
            key, query = k[i, 0], q[i, 0]
            state = decay[i, head] * state
            for j in range(5):
                change = (v[i, head, j] - chain(zip(state[:, j], key, strict=True))) * beta[i, head]
                state[:, j] = [fma32(key[d], change, state[d, j]) for d in range(5)]
                assert mix[i, head, j] == factor * chain(zip(state[:, j], query, strict=True))


def test_value_heads_find_their_key_heads(tmp_path):
    """qwen35: value head h uses key head h mod 2, so a change of key head 1 reaches 1, 3 and 5."""
    file = recurrent.random_model("qwen35", layers=1)
    model = tl.load(models.write(tmp_path / "m.gguf", *file))
    clean = model.trace([1, 2, 3], "blk.0.ssm_mix")["blk.0.ssm_mix"]
    edit = tl.scale("blk.0.ssm_k", 2.0, head=1)
    changed = model.trace([1, 2, 3], "blk.0.ssm_mix", edits=tl.zero("blk.0.ssm_q", head=1))
    assert [h for h in range(6) if (changed["blk.0.ssm_mix"][:, h] != clean[:, h]).any()] == [
        1,
        3,
        5,
    ]
    # keys have unit length, so a factor changes nothing but roundings
    scaled = model.trace([1, 2, 3], "blk.0.ssm_mix", edits=edit)["blk.0.ssm_mix"]
    assert models.normwise_error(scaled, clean) < 1e-4


# --- bits --------------------------------------------------------------------------------------


def test_threads_splits_captures_and_batches(model):
    every_split.check(model.path, "exact", 90)


def test_long_contexts_in_any_parts(model, long):
    ids, want = long
    for sizes in ([600], [1] * 3 + [254, 255, 1, 87], [256, 256, 88], [511, 89], [300, 300]):
        session = model.session()
        ends = np.cumsum(sizes)
        parts = [session.eval(ids[e - n : e], "all") for e, n in zip(ends, sizes, strict=True)]
        assert np.array_equal(np.concatenate(parts), want)


def test_a_batch_of_sessions_that_go_on(model, long):
    ids, want = long
    sessions = [model.session() for _ in range(3)]
    for session, n in zip(sessions, (250, 0, 40), strict=True):
        if n:
            session.eval(ids[:n], "none")
    tokens = [
        ids[250:300].astype(np.int32),
        ids[:300].astype(np.int32),
        ids[40:41].astype(np.int32),
    ]
    cores = [session.core for session in sessions]
    logits, _ = model.run(cores, tokens, np.arange(351))
    assert np.array_equal(logits[:50], want[250:300])
    assert np.array_equal(logits[50:350], want[:300])
    assert np.array_equal(logits[350], want[40])


def test_a_start_in_the_middle(model, long):
    ids, want = long
    trace = model.trace(ids[:50], "*.resid_pre")
    for layer in range(1, 4):
        again = model.run_from(layer, trace[f"blk.{layer}.resid_pre"])
        assert np.array_equal(again["output"], want[:50])


# --- sessions ----------------------------------------------------------------------------------


def session_of(model, ids, *ends):
    session = model.session()
    for first, end in zip((0, *ends), ends, strict=False):
        session.eval(ids[first:end], "none")
    return session


def test_a_rewind_goes_back_to_the_last_multiple_of_256(model, long):
    ids, _ = long
    for ends, kept in (
        ((600,), 512),
        ((511,), 256),
        ((512,), 512),
        ((512, 513), 512),
        ((100, 400, 530), 512),
        ((255,), 0),
        ((256, 300), 256),
        ((250, 255, 260), 256),
    ):
        for n in (0, 1, kept - 1, kept, kept + 1, ends[-1] - 1):
            if 0 <= n < ends[-1]:
                core = session_of(model, ids, *ends).core
                assert core.rewind(n) == (kept if n >= kept else 0)
                assert len(core) == len(core.tokens) == (kept if n >= kept else 0)
        core = session_of(model, ids, *ends).core
        assert core.rewind(ends[-1]) == ends[-1]


def test_the_bits_after_a_rewind_are_those_of_a_new_session(model, long):
    ids, want = long
    session = session_of(model, ids, 100, 300, 590)
    for n in (0, 3, 255, 256, 257, 511, 512, 580, 590):
        fork = session.fork()
        fork.rewind(590 - n)
        assert fork.tokens == ids[:n].tolist()
        assert np.array_equal(fork.eval(ids[n:], "all"), want[n:])
    assert np.array_equal(session.eval(ids[590:], "all"), want[590:])  # forks share, not change


def test_forks_go_their_own_ways(model, long):
    ids, want = long
    session = session_of(model, ids, 258)
    fork = session.fork()
    other = np.concatenate([ids[:258], ids[:280]])
    assert np.array_equal(fork.eval(ids[:280], "all"), model.logits(other)[258:])
    assert np.array_equal(session.eval(ids[258:], "all"), want[258:])
    fork.rewind(280)
    assert np.array_equal(fork.eval(ids[258:], "all"), want[258:])


class Interrupted(Exception):
    pass


def interrupt(region):
    raise Interrupted


def test_a_call_that_fails_leaves_the_states(model, long):
    ids, want = long
    session = session_of(model, ids, 258)
    for tap in ("blk.0.resid_post", "blk.2.resid_post", "output"):
        with pytest.raises(Interrupted):
            session.eval(ids[:300], edits=tl.apply(tap, interrupt))
        assert len(session) == 258
    with pytest.raises(ValueError, match="the vocabulary has"):
        session.eval([model.config.vocab_size])
    fork = session.fork()
    assert np.array_equal(session.eval(ids[258:], "all"), want[258:])
    fork.rewind(1)
    assert np.array_equal(fork.eval(ids[257:], "all"), want[257:])


def test_a_rewind_that_fails_leaves_the_session(model, long, monkeypatch):
    ids, want = long
    session = session_of(model, ids, 300)
    logits = session.logits

    def run(*args):
        raise Interrupted

    monkeypatch.setattr(type(model), "run", run)
    with pytest.raises(Interrupted):
        session.rewind(10)
    monkeypatch.undo()
    assert session.tokens == ids[:300].tolist()
    assert session.logits is logits
    assert np.array_equal(session.eval(ids[300:], "all"), want[300:])


def test_a_call_with_edits_cannot_be_rewound_into(model, long):
    ids, want = long
    edit = tl.scale("blk.1.resid_post", 2.0)
    session = session_of(model, ids, 300)
    session.eval(ids[300:310], "none", edits=edit)
    with pytest.raises(ValueError, match=r"n is 5; the tokens 256 to 304 .* with edits.* 54$"):
        session.rewind(5)
    assert len(session) == 310
    for n in (10, 54, 310):
        fork = session.fork()
        fork.rewind(n)
        assert np.array_equal(fork.eval(ids[310 - n :], "all"), want[310 - n :])
    # a prompt under the same edits runs them again
    kept = session.fork().keep(ids[:310].tolist(), [edit])
    assert kept == 0
    assert session.keep([*ids[:300].tolist(), 1, 2]) == 256


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_a_saved_session_goes_on(model, long, tmp_path, ending):
    ids, want = long
    session = session_of(model, ids, 300)
    session.save(tmp_path / f"s{ending}")
    again = model.session(tmp_path / f"s{ending}")
    assert again.tokens == session.tokens
    fork = again.fork()
    assert np.array_equal(again.eval(ids[300:], "all"), want[300:])
    fork.rewind(3)
    assert np.array_equal(fork.eval(ids[297:], "all"), want[297:])


def test_a_saved_session_has_a_state_per_block(model, tmp_path):
    session = session_of(model, np.arange(1, 9), 8)
    session.save(tmp_path / "s.npz")
    delta = model.config.architecture == "qwen35"
    with np.load(tmp_path / "s.npz") as file:
        arrays = {name: file[name] for name in file.files}
    trace = model.trace(np.arange(1, 9), "*")
    tap, source = ("ssm_conv1d", "attn_qkv") if delta else ("shortconv.conv", "shortconv.bx")
    state = arrays[f"blk.0.{tap}.state"]
    last = trace[f"blk.0.{source}"].reshape(8, -1)[-len(state) :]
    assert np.array_equal(state, last)
    assert ("blk.0.ssm_mix.state" in arrays) == delta
    arrays[f"blk.0.{tap}.state"] = state[:1, :5]
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(
        tl.FormatError, match=rf"blk\.0\.{tap}\.state is 'float32 \(1, 5\)'; expected"
    ):
        model.session(tmp_path / "t.npz")


def test_an_empty_session(model, tmp_path):
    model.session().save(tmp_path / "s.npz")
    again = model.session(tmp_path / "s.npz")
    assert np.array_equal(again.eval([1, 2, 3]), model.session().eval([1, 2, 3]))


def test_memory_counts_the_states(model, long):
    ids, _ = long
    for tokens in (1, 255, 256, 257, 512, 600):
        assert model.memory(tokens).cache == session_of(model, ids, tokens).core.nbytes
    session = session_of(model, ids, 300)
    assert session.table()
    session.reset()
    assert session.core.nbytes == 0


@pytest.mark.parametrize("architecture", ["lfm2", "qwen35"])
def test_a_conversation_goes_on_in_its_session(architecture, tmp_path):
    demo = tl.load()
    metadata, tensors = recurrent.random_model(architecture, vocab=demo.config.vocab_size)
    vocabulary = {k: v for k, v in demo.metadata.items() if k.startswith("tokenizer.")}
    model = tl.load(models.write(tmp_path / "m.gguf", {**metadata, **vocabulary}, tensors))
    session = model.session()
    options = {"max_tokens": 20, "seed": 1, "template": "plain"}
    long, reused = "What ho! " * 90, []
    for text in (long + "Who", long + "Where is he", long[:300], long[:300] + "And then?"):
        messages = [{"role": "user", "content": text}]
        want = model.chat(messages, **options)
        got = model.chat(messages, session=session, **options)
        assert got.ids == want.ids
        reused.append(len(got.prompt_ids) - got.timings.prompt_tokens)
    assert reused[1] > 200  # a boundary of 256 tokens was kept


# --- files that are wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("qwen35", {"ssm.inner_size": 119}, r"ssm\.inner_size is 119; expected 6 heads of 20"),
        ("qwen35", {"ssm.group_count": 4}, r"ssm\.time_step_rank is 6; expected a multiple of"),
        ("qwen35", {"ssm.conv_kernel": 3}, r"ssm_conv1d\.weight.* is 200, 4; expected 200, 3"),
        ("qwen35", {"ssm.state_size": None}, r"ssm\.state_size is missing"),
        (
            "qwen35",
            {"full_attention_interval": 2},
            r"not use the tensors blk\.1\.attn_gate\.weight",
        ),
        ("lfm2", {"shortconv.l_cache": 3}, r"shortconv\.conv\.weight.* is 40, 4; expected 40, 3"),
        ("lfm2", {"shortconv.l_cache": None}, r"shortconv\.l_cache is missing"),
    ],
)
def test_wrong_keys(architecture, changes, message, tmp_path):
    metadata, tensors = recurrent.random_model(architecture)
    for key, value in changes.items():
        metadata[f"{architecture}.{key}"] = value
        if value is None:
            del metadata[f"{architecture}.{key}"]
    with pytest.raises((tl.FormatError, tl.UnsupportedError), match=message):
        tl.load(models.write(tmp_path / "m.gguf", metadata, tensors))


def test_the_blocks_with_attention_may_be_listed(tmp_path):
    metadata, tensors = recurrent.random_model("qwen35")
    ids = [1, 2, 3]
    want = tl.load(models.write(tmp_path / "a.gguf", metadata, tensors)).logits(ids)
    metadata["qwen35.attention.recurrent_layers"] = np.array([True, True, True, False])
    metadata["qwen35.full_attention_interval"] = 2
    model = tl.load(models.write(tmp_path / "b.gguf", metadata, tensors))
    assert np.array_equal(model.logits(ids), want)


# --- everything that takes a model -------------------------------------------------------------


def test_analyses_of_blocks_without_attention(model, tmp_path):
    ids = models.random_ids(model, 12)
    trace = model.trace(ids, "*")
    best = int(trace["output"][-1].argmax())
    parts = tl.attribution(trace, best)
    assert abs(parts.total - float(trace["output"][-1, best])) < 1e-3
    assert np.isnan(parts.heads[:3]).all()
    assert not np.isnan(parts.heads[3]).any()
    heads = trace.head_outputs(3).sum(axis=1)
    assert models.normwise_error(heads, trace["blk.3.attn_output"]) < 1e-5
    with pytest.raises(ValueError, match="role is 'attn_project'; expected a role"):
        trace.head_outputs(0)
    scores = tl.induction_scores(model, 8)
    assert np.isnan(scores[:3]).all()
    assert not np.isnan(scores[3]).any()
    assert tl.attention_entropy(trace).shape == (1, 4, 12)
    for ending in (".npz", ".safetensors"):
        trace.save(tmp_path / f"t{ending}")
        again = tl.read(tmp_path / f"t{ending}")
        assert all(np.array_equal(again[name], trace[name]) for name in trace)
    trace.html(tmp_path / "t.html")
    assert str(model.steps)
    assert str(model.table())
    assert str(model.session().table())


def test_edits_of_states_reach_later_tokens(model):
    """A value that enters a state changes the tokens after it, and none before it."""
    ids = models.random_ids(model, 9)
    tap = "ssm_v" if model.config.architecture == "qwen35" else "shortconv.x"
    clean, edited = (
        model.trace(ids, "output", edits=edits)["output"]
        for edits in ([], tl.zero(f"blk.0.{tap}", at=4))
    )
    assert np.array_equal(clean[:4], edited[:4])
    assert all((clean[i] != edited[i]).any() for i in range(4, 7))
