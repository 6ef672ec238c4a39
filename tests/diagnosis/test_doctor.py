"""The doctor finds every mistake of its catalogue, and accuses no right engine."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest

import tinyllm as tl
from testkit import architectures, models, sick
from tinyllm.cli.main import main
from tinyllm.diagnosis.faults import CATALOGUE, candidates
from tinyllm.diagnosis.guide import SNIPPETS
from tinyllm.diagnosis.replay import Replay, relative_error
from tinyllm.diagnosis.rounding import ROUNDINGS

#: The names that people look for. `CATALOGUE` may have more.
NAMES = """
rope_pairing rope_cos_sin_swapped rope_direction rope_missing rope_base rope_frequency_exponent
position_off_by_one position_restarts rope_applied_to_values rope_after_cache keys_as_values
kv_head_modulo cache_off_by_one cache_overwritten attention_scale_missing attention_scale_full_width
causal_mask_missing causal_mask_off_by_one softmax_axis norm_epsilon norm_weight_missing
norm_weight_twice norm_mean_subtracted norm_before_residual final_norm_missing
weight_dimension_order output_weight_dimension_order embedding_dimension_order tied_embedding_missed
residual_missing residual_twice gate_up_swapped activation_gelu activation_relu activation_on_up
bias_missing qk_permutation q4_nibble_order k_quant_scale_order k_quant_min_sign f16_as_bf16
block_size_misread layer_order_shuffled logits_of_previous_token bos_missing bos_twice
leading_space_missing newline_as_space wrong_id_for_same_text chat_template_missing
norm_weight_plus_one_missing embedding_scale_missing logit_softcap_missing parallel_residual_serial
qkv_split_order qk_norm_after_rope window_off_by_one window_ignored sink_missing
router_not_renormalized router_bias_in_weights shared_expert_missing delta_head_order
gate_after_norm
""".split()

SHAPES = ("llama", "qwen2", "gemma2", "gpt2")

#: What a dump cannot show: nothing after the last block in one of the stream, and a shift of all
#: positions in values that depend on their differences only.
AFTER = {
    *("final_norm_missing", "output_weight_dimension_order", "output_weight_ignored"),
    *("tied_embedding_missed", "logits_of_previous_token", "logit_softcap_missing"),
}
UNSEEN = {"full": set(), "sparse": AFTER, "logits": set()}
#: An epsilon this small changes less than the rounding of float32 in a whole block.
FAINT = {"norm_epsilon"}


def tiny(directory, architecture, type_name="F32", layers=2, **options):
    sizes = {"width": 32, "ffn": 48, "vocab": 64} if type_name == "F32" else {"ffn": 256}
    metadata = {}
    if architecture in ("gemma2", "gpt-oss"):
        metadata[f"{architecture}.attention.sliding_window"] = 6
    if architecture == "gpt2":
        options["kv_heads"] = 4
    options = {**sizes, "layers": layers, "metadata": metadata, "threads": 1, **options}
    return architectures.random_model(directory, architecture, type_name, **options)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("doctor")
    return {name: tiny(directory, name) for name in SHAPES}


def some_ids(model, count=12):
    return np.random.default_rng(1).integers(0, model.config.vocab_size, count)


def first(diagnosis):
    return {diagnosis.faults[0].name, *diagnosis.faults[0].also} if diagnosis.faults else set()


def examine(model, kind):
    """Return the faults that are not found alone and first in a dump."""
    ids = some_ids(model)
    assert tl.doctor(model, sick.sick_values(model, ids, [], kind)).ok
    missed = set()
    for candidate in sick.sicknesses(model, len(ids)):
        found = tl.doctor(model, sick.sick_values(model, ids, [candidate], kind))
        if candidate.fault.name not in first(found) or found.unexplained or found.faults[1:]:
            missed.add(candidate.fault.name)
    return missed


def test_all_names_are_there():
    assert set(NAMES) <= set(CATALOGUE)
    for entry in CATALOGUE.values():
        assert entry.message.endswith(".")
        assert entry.repair.endswith(".")


def test_the_page_has_the_whole_catalogue():
    page = Path(__file__).parents[2] / "docs" / "doctor.md"
    if not page.is_file():
        pytest.skip("needs the source tree")
    text = page.read_text("utf-8")
    assert [name for name in CATALOGUE if f"`{name}`" not in text] == []


@pytest.mark.parametrize("shape", SHAPES)
def test_every_fault_is_found_in_a_full_dump(shapes, shape):
    assert examine(shapes[shape], "full") == set()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sparse", "logits"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_fault_is_found_in_few_values(shapes, shape, kind):
    unseen = UNSEEN[kind] | FAINT
    if shape != "gpt2":  # RoPE has only differences of positions
        unseen = unseen | {"position_off_by_one"}
    assert examine(shapes[shape], kind) <= unseen


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("kind", sick.DUMPS)
@pytest.mark.parametrize("type_name", ["Q6_K", "Q4_K", "Q4_0", "Q8_0", "F16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_fault_is_found_in_quantized_models(tmp_path, shape, type_name, kind):
    unseen = UNSEEN[kind] | FAINT | ({"position_off_by_one"} if kind != "full" else set())
    assert examine(tiny(tmp_path, shape, type_name), kind) <= unseen


OTHERS = {
    "qwen3": {"qk_norm_after_rope"},
    "phi2": {"parallel_residual_serial"},
    "gpt-oss": {"sink_missing", "window_ignored"},
    "glm4moe": {"router_bias_in_weights", "router_not_renormalized"},
    "qwen2moe": {"shared_expert_missing", "router_renormalized"},
    "qwen3next": {"gate_after_norm", "delta_head_order"},
}


@pytest.mark.parametrize("architecture", OTHERS)
def test_traps_of_other_architectures(tmp_path, architecture):
    options = {"width": 256, "ffn": 256, "vocab": 64}
    model = tiny(tmp_path, architecture, **options)
    ids = some_ids(model)
    known = {c.fault.name: c for c in sick.sicknesses(model, len(ids))}
    assert OTHERS[architecture] <= set(known)
    for name in OTHERS[architecture]:
        found = tl.doctor(model, sick.sick_values(model, ids, [known[name]]))
        assert name in first(found), (name, found)
        assert not found.unexplained


@pytest.mark.parametrize(
    ("type_name", "name"),
    [
        ("Q4_0", "q4_nibble_order"),
        ("Q4_K", "q4_nibble_order"),
        ("Q4_K", "k_quant_scale_order"),
        ("Q6_K", "k_quant_scale_order"),
        ("Q5_K", "k_quant_min_sign"),
        ("Q8_0", "f16_as_bf16"),
        ("F16", "f16_as_bf16"),
        ("Q4_1", "block_size_misread"),
        ("Q6_K", "block_size_misread"),
    ],
)
def test_misread_blocks(tmp_path, type_name, name):
    model = models.random_model(tmp_path, type_name, layers=1, ffn=256, vocab=64)
    ids = some_ids(model)
    for candidate in candidates(model.steps, model.weights, len(ids), names=[name]):
        found = tl.doctor(model, sick.sick_values(model, ids, [candidate]))
        assert first(found) >= {name}, (candidate.variant, found)
        assert not found.unexplained
        assert candidate.message == found.faults[0].message


def test_blocks_in_the_order_of_texts(tmp_path):
    model = tiny(tmp_path, "llama", layers=11)
    ids = some_ids(model)
    (shuffled,) = candidates(model.steps, model.weights, 12, names=["layer_order_shuffled"])
    for kind in sick.DUMPS:
        found = tl.doctor(model, sick.sick_values(model, ids, [shuffled], kind))
        assert found.faults[0].name == "layer_order_shuffled"
        assert len(found.faults) == 1


PAIRS = (
    ("rope_cos_sin_swapped", "keys_as_values"),
    ("kv_head_modulo", "activation_gelu"),
    ("norm_weight_missing", "residual_twice"),
    ("rope_base", "causal_mask_off_by_one"),
)


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_two_faults_are_both_named(shapes, names):
    model = shapes["llama"]
    ids = some_ids(model)
    known = {c.fault.name: c for c in sick.sicknesses(model, len(ids))}
    pair = [known[name] for name in names]
    found = tl.doctor(model, sick.sick_values(model, ids, pair))
    assert {each.name for each in found.faults} == set(names)
    assert not found.unexplained  # later steps are no faults
    sparse = tl.doctor(model, sick.sick_values(model, ids, pair, "sparse"))
    assert {each.name for each in sparse.faults} == set(names)


def test_a_fault_in_one_block(shapes):
    model = shapes["llama"]
    ids = some_ids(model)
    (candidate, *_) = candidates(model.steps, model.weights, 12, names=["rope_direction"])
    one = {tap: wrong for tap, wrong in candidate.steps.items() if tap.startswith("blk.1.")}
    found = tl.doctor(model, sick.sick_values(model, ids, [type("One", (), {"steps": one})()]))
    assert found.faults[0].name == "rope_direction"
    assert found.faults[0].taps == ("blk.1.attn_q_rope", "blk.1.attn_k_rope")
    assert found.faults[0].residual < 1e-5 < 0.1 < found.faults[0].error


# ---- right engines ----


@pytest.mark.parametrize("kind", sick.DUMPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_is_no_fault(shapes, shape, kind):
    model = shapes[shape]
    ids = some_ids(model)
    for rounded in ROUNDINGS.values():
        steps = {s.tap: rounded for s in model.steps if s.visible and s.op not in ("embed", "same")}
        injection = type("Rounding", (), {"steps": steps})()
        found = tl.doctor(model, sick.sick_values(model, ids, [injection], kind))
        assert found.ok, found
        assert found.rounding


@pytest.mark.parametrize("capture", ["*", "blk.*.resid_post", "output"])
def test_our_modes_are_not_accused(capture):
    exact, fast = tl.load(), tl.load(mode="fast")
    text = "Now is the winter of our discontent"
    assert tl.doctor(exact, exact.trace(text, capture), text).ok
    found = tl.doctor(exact, fast.trace(text, capture), text)
    assert found.ok
    assert "Nothing is wrong" in found.summary


def test_quantized_files_in_fast_mode_are_not_accused(tmp_path):
    for type_name in ("Q4_K", "Q8_0"):
        path = models.write(tmp_path / "m.gguf", *models.random_llama(type_name, ffn=256, vocab=64))
        exact, fast = tl.load(path), tl.load(path, mode="fast")
        ids = some_ids(exact)
        for capture in ("*", "blk.*.resid_post", "output"):
            found = tl.doctor(exact, fast.trace(ids, capture))
            assert found.ok, found
        assert found.rounding


# ---- what is unknown ----


def test_an_unknown_mistake_is_located(shapes):
    model = shapes["llama"]
    ids = some_ids(model)
    dump = sick.sick_values(model, ids, [])
    wrong = dump["blk.1.ffn_down"] + 0.3 * np.roll(dump["blk.1.ffn_down"], 3, axis=1)
    found = tl.doctor(model, {**dump, "blk.1.ffn_down": wrong})
    assert found.faults == []
    assert next(iter(found.unexplained)) == "blk.1.ffn_down"
    assert not found.ok
    assert "blk.1.ffn_down is wrong" in found.summary


def test_nan_is_an_error(shapes):
    model = shapes["llama"]
    dump = sick.sick_values(model, some_ids(model), [])
    dump["blk.0.attn_v"][3] = np.nan
    dump["blk.0.attn_mix"][3:] = np.nan  # earlier tokens do not see it
    found = tl.doctor(model, dump)
    assert "blk.0.attn_mix" not in found.unexplained  # as their own values demand
    assert found.unexplained["blk.0.attn_v"] == np.inf
    assert next(iter(found.unexplained)) == "blk.0.attn_v"


def test_what_cannot_be_examined_is_said(shapes):
    model = shapes["llama"]
    ids = some_ids(model)
    found = tl.doctor(model, sick.sick_values(model, ids, [], "sparse"))
    assert any("final_norm_missing" in each.names for each in found.untested)
    one = tl.doctor(model, sick.sick_values(model, ids[:1], []))
    assert any("rope_pairing" in each.names and "two tokens" in each.needs for each in one.untested)


# ---- tokens ----


def demo_dump(text, ids, capture="*"):
    dump = dict(tl.load().trace(ids, capture))
    return dump, text


def variants_of_ids(tokenizer, text):
    right = tokenizer.encode(text)
    return {
        "bos_missing": right[1:],
        "bos_twice": [right[0], *right],
        "newline_as_space": tokenizer.encode(text.replace("\n", " ")),
    }


@pytest.mark.parametrize("name", ["bos_missing", "bos_twice", "newline_as_space"])
@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("capture", ["*", "output"])
def test_wrong_ids(name, said, capture):
    model = tl.load()
    text = "ROMEO:\nWhat light is that?\nA light."
    ids = variants_of_ids(model.tokenizer, text)[name]
    dump = dict(model.trace(ids, capture))
    if said:
        dump["tokens"] = np.asarray(ids)
    found = tl.doctor(model, dump, text)
    assert [each.name for each in found.faults] == [name]
    assert found.faults[0].taps == ("tokens",)
    right = tl.doctor(model, dict(model.trace(text, capture)), text)
    assert right.ok


def spm(space):
    """A tokenizer with a space before the text, with every byte and two tokens of one text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    types = [2, 3, 3, *[6] * 256]
    pieces += ["▁", "a", "b", "▁a", "b", "<|im_start|>", "<|im_end|>"]
    types += [1, 1, 1, 1, 1, 3, 3]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": np.linspace(0, -1, len(pieces)).astype(np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.add_space_prefix": space,
        "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>"
        "{% endfor %}",
    }


def test_wrong_ids_of_other_tokenizers(tmp_path):
    metadata, tensors = models.random_llama(width=32, ffn=32, vocab=266, layers=1)
    path = models.write(tmp_path / "m.gguf", {**metadata, **spm(True)}, tensors)
    model = tl.load(path)
    right = model.tokenizer.encode("ab ab")

    def name(ids, asked="ab ab"):
        found = tl.doctor(model, {"tokens": ids}, asked)
        return [each.name for each in found.faults]

    assert name(right) == []
    plain = tl.load(models.write(tmp_path / "n.gguf", {**metadata, **spm(False)}, tensors))
    assert name(plain.tokenizer.encode("ab ab")) == ["leading_space_missing"]
    same = [263 if i == 261 else i for i in right]  # both are "b"
    assert same != right
    assert name(same) == ["wrong_id_for_same_text"]
    assert name([*right[:-1], 3]) == ["tokens_differ"]
    pytest.importorskip("jinja2")
    talk = [{"role": "user", "content": "ab ab"}]
    chat = model.tokenizer.encode_chat(talk)
    assert name(chat, talk) == []
    assert name(right, talk) == ["chat_template_missing"]


# ---- generated ids alone ----


def generated(model, prompt, faults, count=12):
    ids = list(prompt)
    for _ in range(count):
        values = Replay(model, np.asarray(ids), {}).value(faults, model.steps.role("logits"))
        ids.append(int(values[-1].argmax()))
    return ids[len(prompt) :]


def test_generated_ids_alone(shapes):
    model = shapes["llama"]
    prompt = some_ids(model, 6)
    made = generated(model, prompt, [])
    assert tl.doctor(model, {"generated": made}, prompt).ok
    for name in ("rope_pairing", "kv_head_modulo", "gate_up_swapped", "residual_twice"):
        candidate = next(iter(candidates(model.steps, model.weights, 6, names=[name])))
        found = tl.doctor(model, {"generated": generated(model, prompt, [candidate])}, prompt)
        assert name in first(found), (name, found)
        assert found.faults[0].taps == ("ids",)


# ---- arguments, and how it looks ----


def test_an_empty_dump_gets_a_guide(capsys):
    model = tl.load()
    found = tl.doctor(model, {})
    assert not found.ok
    for text in ("blk.0.attn_q", "(T, 4, 64)", *SNIPPETS):
        assert text in str(found)
    assert "<pre>" in found._repr_html_()
    assert main(["doctor", "-"]) == 0
    assert "np.savez" in capsys.readouterr().out


def test_results_are_shown_and_pickled(shapes):
    model = shapes["llama"]
    ids = some_ids(model)
    (candidate,) = candidates(model.steps, model.weights, 12, names=["gate_up_swapped"])
    found = tl.doctor(model, sick.sick_values(model, ids, [candidate]))
    assert found.faults[0].also == ("activation_on_up",)
    assert "blk.0-1.ffn_act" in str(found)
    assert found.faults[0].repair in found._repr_html_()
    assert found.summary.startswith("gate_up_swapped in blk.0-1.ffn_act: ")
    again = pickle.loads(pickle.dumps(found))
    assert str(again) == str(found)


def test_wrong_arguments(shapes):
    model = shapes["llama"]
    ids = some_ids(model)
    x = np.zeros((12, 32), np.float32)
    with pytest.raises(TypeError, match="dump is a list; expected a trace"):
        tl.doctor(model, [1])
    with pytest.raises(ValueError, match="tokens is None and the dump has no entry 'tokens'"):
        tl.doctor(model, {"blk.0.resid_post": x})
    with pytest.raises(ValueError, match=r"holds the id 64; expected ids from 0 to 63"):
        tl.doctor(model, {"blk.0.resid_post": x}, [64])
    with pytest.raises(ValueError, match="values of the dump have 12 tokens, and tokens has 5"):
        tl.doctor(model, {"blk.0.resid_post": x}, ids[:5])
    with pytest.raises(ValueError, match="no name of the dump means a tap"):
        tl.doctor(model, {"nonsense": x}, ids)


def test_the_command(tmp_path, capsys):
    model = tl.load()
    text = "ROMEO: I am here"
    trace = model.trace(text, "*")
    np.savez(tmp_path / "right.npz", **trace)
    ids = np.asarray(trace.tokens)
    (candidate, *_) = candidates(model.steps, model.weights, 9, names=["rope_cos_sin_swapped"])
    np.savez(tmp_path / "wrong.npz", **sick.sick_values(model, ids, [candidate]))
    assert main(["doctor", str(tmp_path / "right.npz"), text]) == 0
    assert "Nothing is wrong" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "wrong.npz"), text]) == 1
    assert "1. rope_cos_sin_swapped: RoPE uses" in capsys.readouterr().out
    assert main(["doctor", "-", text, "--generated", "5,6,7"]) == 1
    assert main(["doctor", "-", text, "--generated", "x"]) == 2
    assert "expected numbers" in capsys.readouterr().err


def test_relative_errors():
    assert relative_error(np.array([1.0, np.nan]), np.array([1.0, np.nan])) == 0
    assert relative_error(np.array([1.0, 2.0]), np.array([1.0, np.nan])) == np.inf
    low = np.array([[0.0, -np.inf], [1.0, 2.0]])
    assert relative_error(low, np.array([[0.0, -3e38], [1.0, 2.0]]), scores=True) == 0
    assert relative_error(low, np.array([[0.0, 1.0], [1.0, 2.0]]), scores=True) > 0.5
    assert relative_error(np.zeros(3), np.zeros(2)) == np.inf


def test_names_of_taps_are_shortened():
    from tinyllm.diagnosis.report import short_taps

    blocks = itertools.chain(range(3), [5])
    assert short_taps([f"blk.{i}.attn_q" for i in blocks] + ["output"]) == (
        "blk.{0-2,5}.attn_q, output"
    )
