"""`tinyllm.read` of other programs' values, and `Trace.as_`: names, order, shapes, layouts."""

import pickle

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures
from tinyllm.conversion.table import FAMILIES
from tinyllm.trace.layouts import halves, pairs, permuted

IDS = [5, 9, 2, 77, 31, 8, 200]
SIZES = {"width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 320}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return architectures.random_model(tmp_path_factory.mktemp("read"), "llama", layers=3, **SIZES)


@pytest.fixture(scope="module")
def trace(model):
    return model.trace(IDS, "*")


def assert_equal(dump, trace, names=None):
    names = set(dump) if names is None else names
    assert set(dump) == set(names)
    for name in names:
        a, b = dump[name], trace[name]
        assert a.shape == b.shape, name
        assert a.dtype == np.float32
        assert not a.flags.writeable
        finite = np.isfinite(b)
        assert np.array_equal(np.isfinite(a), finite), name
        np.testing.assert_allclose(a[finite], b[finite], rtol=2e-6, atol=1e-6, err_msg=name)


def flat(array):
    return array.reshape(len(array), -1)


# ---- one library after the other, with layouts made by hand ----


def test_hugging_face_modules(model, trace):
    dump = {"logits": trace["output"][np.newaxis], "past_key_values": object()}
    for i in range(3):
        at, ours = f"model.layers.{i}", f"blk.{i}"
        q, k = (halves(trace[f"{ours}.attn_{kind}"]) for kind in "qk")
        dump |= {
            f"{at}.self_attn.q_proj": flat(q)[np.newaxis],
            f"{at}.self_attn.k_proj.output": flat(k)[np.newaxis],
            f"{at}.self_attn.o_proj.in": flat(trace[f"{ours}.attn_mix"])[np.newaxis],
            f"{at}.self_attn.output.1": trace[f"{ours}.attn_probs"][np.newaxis],
            f"{at}.post_attention_layernorm": trace[f"{ours}.ffn_norm"][np.newaxis],
            f"{at}.post_attention_layernorm.input": trace[f"{ours}.resid_mid"][np.newaxis],
            f"{at}.mlp.down_proj.in": trace[f"{ours}.ffn_act"][np.newaxis],
        }
    read = tl.read(dump, tokens=IDS, model=model)
    families = ("attn_q", "attn_k", "attn_mix", "attn_probs", "ffn_norm", "resid_mid", "ffn_act")
    names = [f"blk.{i}.{family}" for i in range(3) for family in families]
    assert_equal(read, trace, [*names, "output"])
    assert (read.dialect, read.unread, read.notes) == ("Hugging Face", [], [])
    assert read.theirs["blk.2.attn_mix"] == "model.layers.2.self_attn.o_proj.in"
    assert list(read)[:2] == ["blk.0.attn_q", "blk.0.attn_k"]  # as the forward pass computes them


@pytest.mark.parametrize("form", ["tuple", "stack", "entries"])
def test_hidden_states_whose_last_is_normalized(model, trace, form):
    streams = [trace["blk.0.resid_pre"], *(trace[f"blk.{i}.resid_post"] for i in range(2))]
    states = [s[np.newaxis] for s in (*streams, trace["output_norm"])]
    dump = {
        "tuple": {"hidden_states": tuple(states)},
        "stack": {"hidden_states": np.stack(states)},
        "entries": {f"hidden_states.{i}": state for i, state in enumerate(states)},
    }[form]
    names = ("blk.0.resid_pre", "blk.0.resid_post", "blk.1.resid_post", "output_norm")
    assert_equal(tl.read(dump, model=model), trace, names)
    assert_equal(tl.read(dump), trace, names)  # the model is not needed here
    assert "blk.2.resid_post" not in tl.read(dump, model=model)  # it is not among them


def test_transformer_lens(model, trace):
    weight = model.weights["blk.1.attn_norm.weight"].numpy()
    scale = 1 / trace["blk.1.attn_norm_scale"]
    dump = {
        "hook_embed": trace["token_embd"][np.newaxis],
        "blocks.1.ln1.hook_scale": scale[np.newaxis, :, np.newaxis],
        "blocks.1.ln1.hook_normalized": (trace["blk.1.attn_norm"] / weight)[np.newaxis],
        "blocks.1.attn.hook_q": halves(trace["blk.1.attn_q"])[np.newaxis],
        # the bridge has the heads first, and its own names
        "blocks.1.attn.hook_rot_k": halves(trace["blk.1.attn_k_rope"]).swapaxes(0, 1)[np.newaxis],
        "blocks.1.attn.hook_attn_scores": trace["blk.1.attn_scores"][np.newaxis],
        "blocks.1.attn.o.hook_in": flat(trace["blk.1.attn_mix"])[np.newaxis],
        "blocks.1.mlp.hook_pre": trace["blk.1.ffn_gate"][np.newaxis],
        "blocks.1.mlp.in.hook_out": trace["blk.1.ffn_up"][np.newaxis],
        "blocks.2.hook_out": trace["blk.2.resid_post"][np.newaxis],
    }
    read = tl.read(dump, tokens=IDS, model=model)
    assert_equal(read, trace)
    assert (len(read), read.dialect) == (len(dump), "TransformerLens")


def graph(trace, model, rows=slice(None)):
    """The tensors of llama.cpp's graph, as NumPy sees them, under names that repeat."""
    for i in range(3):
        ours = f"blk.{i}"
        factor = model.steps[f"{ours}.attn_scores"].number("factor")
        kq = np.einsum(
            "thd,shd->hts",
            trace[f"{ours}.attn_q_rope"],
            np.repeat(trace[f"{ours}.attn_k_rope"], 2, axis=1),
        )
        np.testing.assert_allclose(np.tril(kq * factor), np.nan_to_num(trace[f"{ours}.attn_scores"],
                                   neginf=0), atol=1e-4)  # fmt: skip
        pad = ((0, 0), (0, 0), (0, 256 - len(IDS)))
        for kind, name in (("q", "Qcur"), ("k", "Kcur")):
            yield f"{name}-{i}", flat(trace[f"{ours}.attn_{kind}"])
            yield f"{name}-{i}", trace[f"{ours}.attn_{kind}"]
            yield f"{name}-{i}", trace[f"{ours}.attn_{kind}_rope"]
        yield f"Vcur-{i}", flat(trace[f"{ours}.attn_v"])
        yield f"kq-{i}", np.pad(kq, pad)
        yield f"kq_soft_max-{i}", np.pad(trace[f"{ours}.attn_probs"], pad)
        yield f"kqv-{i}", trace[f"{ours}.attn_mix"].swapaxes(0, 1)
        yield f"kqv_out-{i}", flat(trace[f"{ours}.attn_mix"])
        yield f"attn_out-{i}", trace[f"{ours}.attn_output"]
        yield f"ffn_out-{i}", trace[f"{ours}.ffn_down"]
        yield f"ffn_out-{i}", trace[f"{ours}.resid_post"]
        yield f"l_out-{i}", trace[f"{ours}.resid_post"]


def test_llama_cpp_names_that_repeat(model, trace):
    read = tl.read(list(graph(trace, model)), tokens=IDS, model=model)
    families = ("q", "k", "q_rope", "k_rope", "v", "scores", "probs", "mix", "output")
    names = [f"blk.{i}.attn_{family}" for i in range(3) for family in families]
    names += [f"blk.{i}.{family}" for i in range(3) for family in ("ffn_down", "resid_post")]
    assert_equal(read, trace, names)
    assert read.dialect == "llama.cpp"


def test_llama_cpp_names_of_a_dict_are_decided_by_shape(model, trace):
    after, before = trace["blk.0.attn_q_rope"], flat(trace["blk.0.attn_q"])
    for array, name in ((after, "blk.0.attn_q_rope"), (before, "blk.0.attn_q")):
        read = tl.read({"Qcur-0": array, "l_out-0": trace["blk.0.resid_post"]}, model=model)
        assert_equal(read, trace, [name, "blk.0.resid_post"])
        assert "one name in llama.cpp" in read.notes[0]
    split = trace["blk.0.attn_q"]
    read = tl.read({"Qcur-0 (reshaped)": split, "Qcur-0": after}, model=model)
    assert_equal(read, trace, ["blk.0.attn_q", "blk.0.attn_q_rope"])
    views = {"01_Qcur-0": before, "02_Qcur-0": split, "03_Qcur-0": after, "09_Qcur-0 (view)": after}
    assert_equal(tl.read(views, model=model), trace, ["blk.0.attn_q", "blk.0.attn_q_rope"])


def test_kqv_out_changed_its_meaning_between_versions(model, trace):
    mix, out = flat(trace["blk.0.attn_mix"]), trace["blk.0.attn_output"]
    new = {"kqv_out-0": mix, "attn_out-0": out}
    assert_equal(tl.read(new, model=model), trace, ["blk.0.attn_mix", "blk.0.attn_output"])
    old = {"kqv_merged_cont-0": mix, "kqv_out-0": out}
    read = tl.read(old, model=model)
    assert_equal(read, trace, ["blk.0.attn_mix", "blk.0.attn_output"])
    assert read.notes == []
    assert "versions of 2025" in tl.read({"kqv_out-0": out}, model=model).notes[0]


def test_plain_names(model, trace):
    dump = {"emb": trace["token_embd"], "logits": trace["output"][-1]}
    for i in range(3):
        dump |= {
            f"layer{i}_q": flat(trace[f"blk.{i}.attn_q"]),
            f"k_rope.{i}": np.repeat(trace[f"blk.{i}.attn_k_rope"], 2, axis=1),  # for each query
            f"L{i}.v": trace[f"blk.{i}.attn_v"].swapaxes(0, 1),
            f"layers.{i}.att": trace[f"blk.{i}.attn_probs"].swapaxes(0, 1),
            f"blk{i}/hb2": trace[f"blk.{i}.ffn_up"].ravel(),
            f"layer_{i}": trace[f"blk.{i}.resid_post"].T,
        }
    read = tl.read(dump, "plain", tokens=IDS, model=model)
    families = ("attn_q", "attn_k_rope", "attn_v", "attn_probs", "ffn_up", "resid_post")
    names = [f"blk.{i}.{family}" for i in range(3) for family in families]
    assert_equal(read, trace, [*names, "token_embd"])
    assert list(read.tails) == ["output"]
    assert np.array_equal(read.logits, trace["output"][-1])
    with pytest.raises(KeyError, match="rows of the last 1 tokens only: see tails"):
        read["logits"]
    with pytest.raises(
        KeyError, match=r"the dump does not have 'blk.0.ffn_act'; it has token_embd"
    ):
        read["blk.0.ffn_act"]
    assert "the axes are (D, T)" in " ".join(read.notes)


def test_the_buffers_of_llama2c_are_dumped_after_rope(model, trace):
    dump = {
        "q0": flat(trace["blk.0.attn_q_rope"]),
        "xb2_0": trace["blk.0.attn_output"],
        "hb0": trace["blk.0.ffn_act"],
        "x0": trace["blk.0.resid_post"],
    }
    names = ("attn_q_rope", "attn_output", "ffn_act", "resid_post")
    read = tl.read(dump, tokens=IDS, model=model)
    assert_equal(read, trace, [f"blk.0.{name}" for name in names])
    assert read.dialect == "llama2.c"
    assert "blk.0.attn_q" in tl.read(dump, "plain", tokens=IDS, model=model)


def test_blocks_numbered_from_one_and_streams_with_the_first_input(model, trace):
    one = {f"layer{i + 1}_v": flat(trace[f"blk.{i}.attn_v"]) for i in range(3)}
    one |= {f"layer{i + 1}": trace[f"blk.{i}.resid_post"] for i in range(3)}
    read = tl.read(one, model=model)
    assert_equal(read, trace)
    assert len(read) == 6
    assert read.notes == ["the blocks are numbered from 1"]
    streams = [trace["blk.0.resid_pre"], *(trace[f"blk.{i}.resid_post"] for i in range(3))]
    read = tl.read({f"x{i}": stream for i, stream in enumerate(streams)}, model=model)
    assert_equal(read, trace)
    assert len(read) == 4


def test_ones_own_names(model, trace):
    q = {f"mha_{i:02d}/query": flat(trace[f"blk.{i}.attn_q"]) for i in range(3)}
    names = [f"blk.{i}.attn_q" for i in range(3)]
    for dialect in (
        {"mha_{i:02d}/query": "blk.{i}.attn_q"},
        {"mha_*/query": "blk.*.attn_q"},
        {"mha_{i}/query": "blocks.{i}.attn.q.hook_out"},
        lambda name: f"blk.{int(name[4:6])}.attn_q" if "query" in name else None,
    ):
        dump = {**q, "other": np.zeros(3)}
        if isinstance(dialect, dict) and "blocks" in str(dialect):  # then their layout, too
            dump |= {k: flat(halves(trace[f"blk.{i}.attn_q"])) for i, k in enumerate(q)}
        read = tl.read(dump, dialect, tokens=IDS, model=model)
        assert_equal(read, trace, names)
        assert read.unread == ["other"]
        assert read.theirs["blk.2.attn_q"] == "mha_02/query"
    for wrong, kind in (
        ({"mha_{i}/query": 3}, TypeError),
        (3, TypeError),
        (lambda name: 3, TypeError),
        ("pytorch", ValueError),
    ):
        with pytest.raises(kind, match="expected"):
            tl.read(q, wrong, model=model)


# ---- sources ----


def test_files(model, trace, tmp_path):
    arrays = {f"layer{i}_q": flat(trace[f"blk.{i}.attn_q"]) for i in range(3)}
    np.savez(tmp_path / "a.npz", tokens=np.array([IDS]), **arrays)
    (tmp_path / "folder" / "layer1").mkdir(parents=True)
    np.save(tmp_path / "folder" / "layer0_q.npy", arrays["layer0_q"])
    np.save(tmp_path / "folder" / "layer1" / "q.npy", arrays["layer1_q"].astype(np.float64))
    np.save(tmp_path / "layer1_q.npy", np.asfortranarray(arrays["layer1_q"]))
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(arrays, tmp_path / "a.safetensors")
    for name, count in (("a.npz", 3), ("folder", 2), ("layer1_q.npy", 1), ("a.safetensors", 3)):
        read = tl.read(tmp_path / name, model=model)
        assert_equal(read, trace)
        assert len(read) == count
        assert read.tokens.tolist() == (IDS if name == "a.npz" else [-1] * len(IDS))


def test_a_dump_is_a_trace(model, trace, tmp_path):
    dump = tl.read({"layer1": trace["blk.1.resid_post"]}, tokens=IDS, model=model)
    again = model.trace(IDS, "*", edits=tl.patch("blk.1.resid_post", dump))
    assert np.array_equal(again["output"], trace["output"])
    assert tl.lens(dump).ids.shape[:2] == (1, len(IDS))
    assert dump.by_role("resid_post") == ["blk.1.resid_post"]
    dump.save(tmp_path / "t.npz")
    for other in (
        tl.read(tmp_path / "t.npz"),
        pickle.loads(pickle.dumps(dump)),
        dump[:],
        dump.copy(),
    ):
        assert np.array_equal(other["blk.1.resid_post"], trace["blk.1.resid_post"])
        assert other.pieces == trace.pieces
    assert tl.read(tmp_path / "t.npz").fingerprint == model.fingerprint
    alone = tl.read({"layer1": trace["blk.1.resid_post"]})
    alone.save(tmp_path / "u.safetensors")
    assert tl.read(tmp_path / "u.safetensors").config == alone.config
    assert "blk.1.resid_post" in alone.table().rows[0]


def test_a_dump_that_was_read_without_a_model_can_get_one(model, trace):
    dump = tl.read({"q0": flat(trace["blk.0.attn_q"]), "kq-1": np.zeros((4, len(IDS), 256))})
    assert dump["blk.0.attn_q"].shape == (len(IDS), 32)
    assert dump.unread == ["kq-1"]
    fitted = dump.fitted(model, IDS)
    assert set(fitted) == {"blk.0.attn_q", "blk.1.attn_scores"}
    assert fitted.tokens.tolist() == IDS
    assert fitted.fitted(model) is fitted
    assert tl.read(dump, model=model).model is model
    assert tl.read(trace) is trace


# ---- what is refused ----


def test_what_is_refused_says_why(model, trace):
    q = flat(trace["blk.0.attn_q"])
    with pytest.raises(
        ValueError, match=r"no name of the dump means a tap: 'thing'; expected names"
    ):
        tl.read({"thing": q}, model=model)
    with pytest.raises(ValueError, match="tokens are 6 ids, and most arrays have the rows of 7"):
        tl.read({"q0": q}, tokens=IDS[1:], model=model)
    with pytest.raises(
        ValueError, match=r"'q0' \(blk.0.attn_q\) has shape \(7, 31\); expected \(7, 4"
    ):
        tl.read({"q0": q[:, :-1]}, tokens=IDS, model=model)
    with pytest.warns(UserWarning, match=r"left out: 'k0' .* expected \(7, 2, 8\)"):
        read = tl.read({"q0": q, "k0": q}, tokens=IDS, model=model)
    assert_equal(read, trace, ["blk.0.attn_q"])
    assert read.unread == ["k0"]
    wrong = trace["blk.0.attn_k"][:, [0, 1, 0, 1]]  # repeated, but not the way of queries
    with pytest.raises(ValueError, match=r"has shape \(7, 4, 8\)"):
        tl.read({"k0": wrong}, tokens=IDS, model=model)
    rows = {"q0": q, "k0": flat(trace["blk.0.attn_k"]), "o0": np.ones((9, 32))}
    with pytest.warns(UserWarning, match=r"'o0' .* has shape \(9, 32\)"):  # not empty
        tl.read(rows, "plain", tokens=IDS, model=model)
    for strange in ({"q0": "text"}, {3: q}, [q], [("q0", q, 1)]):
        with pytest.raises((TypeError, ValueError), match="expected"):
            tl.read(strange, model=model)
    with pytest.raises(TypeError, match="expected a path"):
        tl.read(3)
    with pytest.raises(TypeError, match="array of <U4; expected numbers"):
        tl.read({"q0": np.array(["text"])}, model=model)


def test_padding_is_cut_only_where_it_is_empty(model, trace):
    padded = np.zeros((12, 2, 8), np.float32)
    padded[: len(IDS)] = trace["blk.0.attn_v"]
    read = tl.read({"v0": padded, "q0": flat(trace["blk.0.attn_q"])}, tokens=IDS, model=model)
    assert_equal(read, trace, ["blk.0.attn_v", "blk.0.attn_q"])
    assert "12 rows, of which 7 are tokens" in read.notes[0]


def test_a_pickle_is_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY junk")
    with pytest.raises(tl.FormatError, match="not an array"):
        tl.read(tmp_path / "a.npy")
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(tl.FormatError, match="not an array"):
        tl.read(tmp_path / "o.npy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(IsADirectoryError, match=r"without \.npy files"):
        tl.read(tmp_path / "empty")


# ---- the other way ----


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt2", "qwen3moe", "command-r"])
@pytest.mark.parametrize("dialect", ["hf", "transformer_lens", "llama.cpp"])
def test_as_and_read_are_inverse(name, dialect, tmp_path):
    model = architectures.random_model(tmp_path, name, width=64, ffn=96, vocab=320)
    trace = model.trace(IDS[:5], "*")
    theirs = trace.as_(dialect)
    assert len(theirs) > len(trace) * 0.4
    read = tl.read(theirs, dialect, tokens=IDS[:5], model=model)
    assert read.unread == []
    assert_equal(read, trace)
    guessed = tl.read(theirs, tokens=IDS[:5], model=model)
    assert guessed.dialect == read.dialect
    with pytest.raises(ValueError, match="dialect is 'keras'; expected"):
        trace.as_("keras")


def test_queries_are_in_the_order_of_hugging_face(model, trace):
    """The names and the order are those that the conversion of checkpoints has."""
    q = trace.as_("hf")["model.layers.0.self_attn.q_proj"][0].reshape(len(IDS), 4, 2, 4)
    assert np.array_equal(q.swapaxes(2, 3).reshape(len(IDS), 4, 8), trace["blk.0.attn_q"])
    assert np.array_equal(pairs(halves(q)), q)
    moved = {name for name in FAMILIES if permuted(name)}
    assert {"llama", "granite", "smollm3", "olmo"} <= moved
    assert not {"qwen2", "gemma2", "gpt2", "command-r", "cohere2", "ernie4_5"} & moved


def test_what_only_keeps_stays_when_a_model_is_known(model, trace):
    values = {name: trace[name] for name in ("blk.0.attn_q", "blk.1.resid_post", "output")}
    dump = (
        tl.read(values, tokens=IDS).only(["blk.1.resid_post", "output"]).only(["output", "other"])
    )
    assert list(dump) == list(dump.fitted(model)) == ["output"]
    assert "1 taps compared" in str(tl.diff(model, dump))
